"""Two object stores in memory: what of Google's XML API and of Azure's Blob service a model store uses.

Both are small: ranges, conditions, uploads in parts, and the errors with the codes that the real ones answer. S3 has a
stand-in of its own (``s3_server``), which others maintain. Requests without credentials are refused; whether they are
the right ones is not looked at.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import ssl
import threading
from types import TracebackType
from urllib.parse import parse_qs, unquote

from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.base.limits import MIB
from cloister.testing.logs import MemoryLog

Parts = dict[str, bytes]


class ObjectServer:
    """A context manager; runs its own thread. Paths are ``/bucket/name``; Azure is spoken where ``x-ms-`` headers are.

    :param buckets: that exist.
    :param tls: for ``https``.
    :param public: everybody may read. :param delay_s: before each answer, as from far away.
    :ivar objects: content by path.
    :ivar uploads: parts of uploads under way, by id, or by path for Azure.
    """

    def __init__(
        self, *buckets: str, public: bool = False, delay_s: float = 0.0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, Parts] = {}
        self.address = ""
        self._buckets = frozenset(buckets)
        self._public = public
        self._delay_s = delay_s
        self._tls = tls
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="object-server")

    def __enter__(self) -> ObjectServer:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = HttpServer(self._answer, log=MemoryLog(), limits=ServerLimits(max_body=64 * MIB))
        await server.start(tls=self._tls)
        self.address = server.address
        self._ready.set()
        await self._stop.wait()
        await server.close()

    async def _answer(self, request: Request) -> Response:
        path = unquote(request.path)
        azure = bool(request.headers.get("x-ms-version"))
        reading = request.method in ("GET", "HEAD")
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        if not (request.headers.get("authorization") or "sig=" in request.query or (reading and self._public)):
            return _error(403, "AuthenticationFailed" if azure else "AccessDenied")
        if path.split("/")[1] not in self._buckets:
            return _error(404, "ContainerNotFound" if azure else "NoSuchBucket")
        query = {name: values[0] for name, values in parse_qs(request.query, keep_blank_values=True).items()}
        if reading:
            return self._get(request, path, "BlobNotFound" if azure else "NoSuchKey")
        body = bytes(await request.body())
        return self._azure(request, path, query, body) if azure else self._google(request, path, query, body)

    def _get(self, request: Request, path: str, absent: str) -> Response:
        found = self.objects.get(path)
        if found is None:
            return _error(404, absent)
        headers = [
            ("etag", _tag(found)),
            ("last-modified", "Sat, 01 Nov 2025 00:00:00 GMT"),
            ("x-goog-generation", "1"),
        ]
        if request.headers.get("if-match") not in ("", _tag(found)):
            return _error(412, "ConditionNotMet")
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range") or request.headers.get("x-ms-range"))
        if span is None:
            return Response(200, [*headers], found)
        first, last = int(span[1]), min(int(span[2]), len(found) - 1)
        if first > last:
            return _error(416, "InvalidRange")
        headers.append(("content-range", f"bytes {first}-{last}/{len(found)}"))
        return Response(206, headers, found[first : last + 1])

    def _google(self, request: Request, path: str, query: dict[str, str], body: bytes) -> Response:
        upload = query.get("uploadId", "")
        if request.method == "POST" and "uploads" in query:
            upload = secrets.token_hex(8)
            self.uploads[upload] = {}
            return _xml(f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>")
        if upload and upload not in self.uploads:
            return _error(404, "NoSuchUpload")
        if request.method == "PUT" and upload:
            self.uploads[upload][query["partNumber"]] = body
            return Response(200, [("etag", _tag(body))])
        if request.method == "POST" and upload:
            parts = self.uploads.pop(upload)
            named = re.findall(r"<PartNumber>(\d+)</PartNumber>", body.decode())
            if any(number not in parts for number in named):
                return _error(400, "InvalidPart")
            self.objects[path] = b"".join(parts[number] for number in named)
            tag = _tag(self.objects[path]).replace('"', "&quot;")
            return _xml(f"<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>")
        if request.method == "DELETE" and upload:
            del self.uploads[upload]
            return Response(204)
        if request.headers.get("x-goog-if-generation-match") == "0" and path in self.objects:
            return _error(412, "PreconditionFailed")
        self.objects[path] = body
        return Response(200, [("etag", _tag(body)), ("x-goog-generation", "1")])

    def _azure(self, request: Request, path: str, query: dict[str, str], body: bytes) -> Response:
        match query.get("comp"):
            case "block":
                self.uploads.setdefault(path, {})[query["blockid"]] = body
                return Response(201)
            case "blocklist":
                parts = self.uploads.pop(path, {})
                names = re.findall(r"<Uncommitted>([^<]+)</Uncommitted>", body.decode())
                if any(name not in parts for name in names):
                    return _error(400, "InvalidBlockList")
                self.objects[path] = b"".join(parts[name] for name in names)
                return Response(201, [("etag", _tag(self.objects[path]))])
            case _:
                if request.headers.get("if-none-match") == "*" and path in self.objects:
                    return _error(409, "BlobAlreadyExists")
                self.objects[path] = body
                return Response(201, [("etag", _tag(body))])


def _tag(content: bytes) -> str:
    """Of the ends and the length: this is computed for each request."""
    return f'"{hashlib.sha256(content[:4096] + content[-4096:]).hexdigest()[:32]}-{len(content)}"'


def _xml(text: str) -> Response:
    return Response(200, [("content-type", "application/xml")], text.encode())


def _error(status: int, code: str) -> Response:
    body = f'<?xml version="1.0" encoding="utf-8"?>\n<Error><Code>{code}</Code><Message>{code}</Message></Error>'
    return Response(status, [("content-type", "application/xml"), ("x-ms-error-code", code)], body.encode())
