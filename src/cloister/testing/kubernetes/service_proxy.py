"""A Service of a cluster at an address of this machine, by way of the API server; what `kubectl port-forward` is for.

For tests against a live cluster. Whole bodies only: requests and answers of the SDK, no streams.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

CALL_S: Final = 180.0  # a cold start, with images to be pulled
_TRAVELS: Final = ("content-type", "retry-after", "cache-control", "etag")


class ServiceProxy:
    """Open until :meth:`close`.

    :param kubeconfig: file; its identity must be allowed ``services/proxy``. :param port: of the Service.
    """

    def __init__(self, kubeconfig: str, namespace: str, service: str, *, port: int = 8080) -> None:
        from kubernetes import config

        client = config.new_client_from_config(kubeconfig)
        prefix = f"/api/v1/namespaces/{namespace}/services/http:{service}:{port}/proxy"

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._pass_on()

            def do_POST(self) -> None:
                self._pass_on()

            def log_message(self, *_: Any) -> None:
                """Silent."""

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                given = {
                    "Content-Type": self.headers.get("content-type") or "application/octet-stream",
                    "Accept": "*/*",
                }
                method, url, headers, *_ = client.param_serialize(
                    self.command, prefix + self.path, header_params=given, auth_settings=["BearerToken"]
                )
                answer = client.rest_client.pool_manager.request(
                    method, url, body=body or None, headers=headers, timeout=CALL_S, retries=False
                )
                self.send_response(answer.status)
                for name in _TRAVELS:
                    if value := answer.headers.get(name):
                        self.send_header(name, value)
                self.send_header("content-length", str(len(answer.data)))
                self.end_headers()
                self.wfile.write(answer.data)

        self._client = client
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="service-proxy", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """For clients of the Service."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._client.close()
