"""The way through an API server to a Service, before one that only passes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.base.errors import Unavailable
from cloister.testing.kubernetes.service_proxy import ServiceProxy
from cloister.testing.logs import MemoryLog
from cloister.testing.openwhisk_cloud import Beside

TOKEN = "secret-of-the-operator"
PREFIX = "/api/v1/namespaces/ml/services/http:gateway:8080/proxy"


async def api(request: Request) -> Response:
    """What the API server does with such a call, and what the Service answers."""
    assert request.headers.get("authorization") == f"Bearer {TOKEN}"
    body = bytes(await request.body(1 << 20))
    if request.path == f"{PREFIX}/readyz":
        raise Unavailable("gateway-not-ready", "not yet", retry_after=3.0)
    told = {"method": request.method, "path": request.path, "type": request.headers.get("content-type")}
    told["body"] = body.hex()
    return Response(200, (("content-type", "application/json"),), json.dumps(told).encode())


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[ServiceProxy]:
    beside = Beside()
    server = HttpServer(api, log=MemoryLog())
    beside.run(server.start())
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": server.address}}],
                "users": [{"name": "u", "user": {"token": TOKEN}}],
            }
        )
    )
    found = ServiceProxy(str(kubeconfig), "ml", "gateway")
    yield found
    found.close()
    beside.run(server.close())
    beside.close()


def test_bytes_arrive_as_they_were_sent(proxy: ServiceProxy) -> None:
    client = HttpClient(SystemClock())
    body = bytes(range(256)) * 100
    headers = [("content-type", "application/vnd.cloister.request")]
    answer = client.request("POST", proxy.address, "/v1/models/aa/sums/infer", headers=headers, content=body)
    told = json.loads(bytes(answer.body))
    assert told == {
        "method": "POST",
        "path": f"{PREFIX}/v1/models/aa/sums/infer",
        "type": "application/vnd.cloister.request",
        "body": body.hex(),
    }
    refused = client.request("GET", proxy.address, "/readyz")
    assert (refused.status, refused.headers.get("retry-after")) == (503, "3")
    client.close()
