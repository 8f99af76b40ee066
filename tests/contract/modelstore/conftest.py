"""Every kind of store, on a real server or disk: the suite's fixtures."""

from __future__ import annotations

import asyncio
import re
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.adapters.modelstore.directory import DirectoryStore
from cloister.adapters.modelstore.object_url import parse
from cloister.adapters.modelstore.objects import ObjectStore
from cloister.adapters.modelstore.patience import Patience
from cloister.adapters.modelstore.port import ModelStore
from cloister.adapters.modelstore.ranged import HttpStore
from cloister.testing.faulty_proxy import FaultyProxy
from cloister.testing.logs import MemoryLog
from cloister.testing.modelstore import MemoryStore
from cloister.testing.object_server import ObjectServer
from cloister.testing.s3_server import S3Server

QUICK = Patience(SystemClock(), attempts=6, deadline_s=20.0, first_s=0.01, longest_s=0.05)


class FileServer:
    """A stock file server with ranges and ETags, in a thread of its own."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._ready = threading.Event()
        self.address = ""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(10)

    async def _app(self, request: Request) -> Response:
        path = self._root / request.path.lstrip("/")
        if not path.is_file():
            return Response(404)
        data = path.read_bytes()
        headers = [("etag", f'"{path.stat().st_mtime_ns}"')]
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range"))
        if match is None:
            return Response(200, headers, data)
        first, last = int(match[1]), min(int(match[2]), len(data) - 1)
        if first > last:
            return Response(416)
        headers.append(("content-range", f"bytes {first}-{last}/{len(data)}"))
        return Response(206, headers, data[first : last + 1])

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        server = HttpServer(self._app, log=MemoryLog())
        await server.start()
        self.address = server.address
        self._ready.set()
        await self._stop.wait()
        await server.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with S3Server("bucket", "other") as server:
        yield server


@pytest.fixture(scope="session")
def objects() -> Iterator[ObjectServer]:
    with ObjectServer("bucket") as server:
        yield server


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stores without an option for credentials read from the environment; they look at no metadata service."""
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "a-token")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", b64encode(b"k" * 64).decode())


class Remote:
    """One kind of remote store behind a proxy that can be told to fail.

    :ivar writable: the same store, not through the proxy.
    :ivar store: through it.
    """

    def __init__(self, writable: Any, proxy: FaultyProxy, opened: Callable[[str], ModelStore]) -> None:
        self.writable = writable
        self.proxy = proxy
        self.store = opened(proxy.address)


def object_url(kind: str, prefix: str, address: str, request: pytest.FixtureRequest) -> str:
    """Of a store of this kind that is seen at ``address``."""
    if kind == "s3":
        return request.getfixturevalue("s3").url("bucket", prefix, address=address)
    account = "account=devstoreaccount1&" if kind == "az" else ""
    return f"{kind}://bucket/{prefix}?{account}endpoint={address}"


@pytest.fixture(params=["http", "s3", "gs", "az"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, surroundings: None) -> Iterator[Remote]:
    with ExitStack() as stack:
        if request.param == "http":
            server, client = FileServer(tmp_path), HttpClient(SystemClock())
            stack.callback(server.close)
            stack.callback(client.close)
            proxy = stack.enter_context(FaultyProxy(server.address))
            writable: Any = DirectoryStore(tmp_path / "prefix")
            yield Remote(writable, proxy, lambda address: HttpStore(client, address + "/prefix", QUICK))
            return
        address = request.getfixturevalue("s3" if request.param == "s3" else "objects").address
        proxy = stack.enter_context(FaultyProxy(address))

        def opened(where: str) -> ObjectStore:
            return ObjectStore(parse(object_url(request.param, tmp_path.name, where, request)), QUICK)

        yield Remote(opened(address), proxy, opened)


@pytest.fixture(params=["memory", "directory", "http", "s3", "gs", "az"])
def pair(request: pytest.FixtureRequest, tmp_path: Path, surroundings: None) -> Iterator[tuple[Any, ModelStore]]:
    """(a store to publish to, the same one to read from)."""
    if request.param in ("memory", "directory"):
        store: Any = MemoryStore() if request.param == "memory" else DirectoryStore(tmp_path)
        yield store, store
    elif request.param == "http":
        server, client = FileServer(tmp_path), HttpClient(SystemClock())
        yield DirectoryStore(tmp_path / "prefix"), HttpStore(client, server.address + "/prefix", QUICK)
        client.close()
        server.close()
    else:
        address = request.getfixturevalue("s3" if request.param == "s3" else "objects").address
        store = ObjectStore(parse(object_url(request.param, tmp_path.name, address, request)), QUICK)
        yield store, store
