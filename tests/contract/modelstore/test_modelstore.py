"""What every model store promises: the one in memory, a directory, and HTTP."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.adapters.modelstore.directory import DirectoryStore
from cloister.adapters.modelstore.port import ModelStore, Place
from cloister.adapters.modelstore.ranged import HttpStore
from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.ids import ModelId
from cloister.testing.logs import MemoryLog
from cloister.testing.modelstore import MemoryStore

PLACE = Place(ModelId(b"o" * 32, "some-model"), b"d" * 32)
CONTENT = bytes(range(256)) * 20


class FileServer:
    """A stock file server with ranges, in a thread of its own."""

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
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range"))
        if match is None:
            return Response(200, (), data)
        first, last = int(match[1]), min(int(match[2]), len(data) - 1)
        if first > last:
            return Response(416)
        return Response(206, [("content-range", f"bytes {first}-{last}/{len(data)}")], data[first : last + 1])

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


@pytest.fixture(params=["memory", "directory", "http"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModelStore]:
    writable: Any = MemoryStore() if request.param == "memory" else DirectoryStore(tmp_path / "prefix")
    writable.write(PLACE, "weights.bin", [CONTENT[:1000], CONTENT[1000:]])
    writable.point(PLACE)
    if request.param != "http":
        yield writable
        return
    server, client = FileServer(tmp_path), HttpClient(SystemClock())
    yield HttpStore(client, server.address + "/prefix")
    client.close()
    server.close()


def test_ranges_and_whole_files(store: ModelStore) -> None:
    assert store.read(PLACE, "weights.bin", limit=len(CONTENT)) == CONTENT
    for offset, length in ((0, 1), (0, len(CONTENT)), (999, 3), (len(CONTENT) - 1, 1)):
        out = bytearray(length)
        store.read_into(PLACE, "weights.bin", offset, memoryview(out))
        assert out == CONTENT[offset : offset + length]


def test_the_hint(store: ModelStore) -> None:
    assert store.latest(PLACE.model) == PLACE
    assert store.latest(ModelId(b"o" * 32, "another")) is None


def test_what_is_not_there_or_ends_early(store: ModelStore) -> None:
    with pytest.raises(Unavailable, match="model-not-found"):
        store.read(PLACE, "manifest", limit=10)
    with pytest.raises(Unavailable):
        store.read_into(PLACE, "manifest", 0, memoryview(bytearray(1)))
    with pytest.raises((InvalidInput, Unavailable)):
        store.read_into(PLACE, "weights.bin", len(CONTENT) - 1, memoryview(bytearray(2)))
    with pytest.raises(InvalidInput, match="model-file-too-long"):
        store.read(PLACE, "weights.bin", limit=len(CONTENT) - 1)


def test_names_lead_nowhere_else(store: ModelStore) -> None:
    for name in ("../latest", "a/b", "..", "", "a..b", ".hidden", "A", "a" * 65, "weights.bin\x00"):
        with pytest.raises(InvalidInput, match="file-name-malformed"):
            store.read(PLACE, name, limit=10)
        with pytest.raises(InvalidInput, match="file-name-malformed"):
            store.read_into(PLACE, name, 0, memoryview(bytearray(1)))


def test_many_threads_read_at_once(store: ModelStore) -> None:
    failed: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # told by the test
            failed.append(error)

    def read() -> None:
        out = bytearray(512)
        for offset in range(0, 4096, 512):
            store.read_into(PLACE, "weights.bin", offset, memoryview(out))
            assert out == CONTENT[offset : offset + 512]

    threads = [threading.Thread(target=guarded, args=(read,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failed


def test_a_hint_that_is_none(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    folder = tmp_path / str(PLACE.model)
    folder.mkdir(parents=True)
    for text in (b"", b"xyz", b"G" * 64, b"a" * 63, b"a" * 65, b"\xff" * 64):
        (folder / "latest").write_bytes(text)
        assert store.latest(PLACE.model) is None


def test_a_link_out_of_the_store_is_not_followed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    path = tmp_path / "store" / PLACE.path("weights.bin")
    path.parent.mkdir(parents=True)
    path.symlink_to(secret)
    with pytest.raises(Unavailable, match="store-unavailable"):
        store.read(PLACE, "weights.bin", limit=100)


@pytest.mark.parametrize("url", ["ftp://x/y", "http://", "http://host/a?b", "https:///a", "http://host/a#b"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InvalidInput):
        HttpStore(HttpClient(SystemClock()), url)
