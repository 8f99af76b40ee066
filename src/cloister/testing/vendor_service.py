"""Vendors' collateral services on the loopback interface: Intel PCS, PCCS and AMD KDS, honest or not.

Answers are those of a synthetic vendor, or recorded ones. A reply may also be an action on the bare connection, so that
slow, oversized and malicious servers are real servers.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote

from cloister.attest.types import Collateral

Action = Callable[[BaseHTTPRequestHandler, threading.Event], None]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; ``act`` replaces it by whatever it does to the connection until the event is set."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    act: Action | None = None


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class VendorService:
    """A server in threads; use it as a context. Paths without an answer are 404."""

    def __init__(self, replies: Mapping[str, Reply]) -> None:
        self.replies = dict(replies)
        self.asked: list[str] = []
        self.stopping = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                service.asked.append(self.path)
                reply = service.replies.get(self.path, Reply(b"not here", status=404))
                try:
                    if reply.act is not None:
                        self.close_connection = True
                        reply.act(self, service.stopping)
                        return
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(reply.body)))
                    self.end_headers()
                    self.wfile.write(reply.body)
                except OSError:  # the client has had enough
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
                """Say nothing."""

        self._server = _QuietServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> VendorService:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def pcs_replies(
    collateral: Collateral, *, tee: str, fmspc: str, ca: str, hexadecimal: bool = False
) -> dict[str, Reply]:
    """What PCS, or with ``hexadecimal`` an older PCCS, answers for this ``collateral.json``."""
    parts: dict[str, str] = json.loads(collateral.files["collateral.json"])

    def signed(name: str, part: str, header: str) -> Reply:
        body = f'{{"{name}":{parts[part]},"signature":"{parts[part + "_signature"]}"}}'
        return Reply(body.encode(), headers={header: quote(parts[part + "_issuer_chain"])})

    def crl(part: str, headers: Mapping[str, str]) -> Reply:
        return Reply(parts[part].encode() if hexadecimal else bytes.fromhex(parts[part]), headers=headers)

    chain = {"SGX-PCK-CRL-Issuer-Chain": quote(parts["pck_crl_issuer_chain"])}
    return {
        f"/{tee}/certification/v4/tcb?fmspc={fmspc}&update=standard": signed(
            "tcbInfo", "tcb_info", "TCB-Info-Issuer-Chain"
        ),
        f"/{tee}/certification/v4/qe/identity?update=standard": signed(
            "enclaveIdentity", "qe_identity", "SGX-Enclave-Identity-Issuer-Chain"
        ),
        f"/sgx/certification/v4/pckcrl?ca={ca}&encoding=der": crl("pck_crl", chain),
        "/sgx/certification/v4/rootcacrl": crl("root_ca_crl", {}),
    }


# --- misbehaviour -----------------------------------------------------------------------------------------------------


def hang(_handler: BaseHTTPRequestHandler, stopping: threading.Event) -> None:
    """Say nothing."""
    stopping.wait(30)


def trickle_head(handler: BaseHTTPRequestHandler, stopping: threading.Event) -> None:
    """A header that never ends, byte by byte, each well within any timeout of a single read."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nx-endless: ")
    while not stopping.wait(0.01):
        handler.wfile.write(b"x")


def trickle_body(handler: BaseHTTPRequestHandler, stopping: threading.Event) -> None:
    """A body that never ends, byte by byte."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while not stopping.wait(0.01):
        handler.wfile.write(b"x")


def flood(handler: BaseHTTPRequestHandler, stopping: threading.Event) -> None:
    """As many bytes as are taken, without a length."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
    while not stopping.is_set():
        handler.wfile.write(bytes(65536))


def cut_short(handler: BaseHTTPRequestHandler, _stopping: threading.Event) -> None:
    """Fewer bytes than promised."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort")


def no_http(handler: BaseHTTPRequestHandler, _stopping: threading.Event) -> None:
    """Something else than HTTP."""
    handler.wfile.write(b"220 mail.example ESMTP\r\n")
