"""What every model store promises: the one in memory, a directory, HTTP, S3, Google's and Azure's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.modelstore.directory import DirectoryStore
from cloister.adapters.modelstore.patience import Patience
from cloister.adapters.modelstore.port import ModelStore, Place
from cloister.adapters.modelstore.ranged import HttpStore
from cloister.base.errors import InvalidInput, Refused, Unavailable
from cloister.base.ids import ModelId

pytestmark = pytest.mark.xdist_group("stores")  # one server for all
PLACE = Place(ModelId(b"o" * 32, "some-model"), b"d" * 32)
CONTENT = bytes(range(256)) * 20


@pytest.fixture
def store(pair: tuple[Any, ModelStore]) -> ModelStore:
    writable, store = pair
    writable.write(PLACE, "weights.bin", [CONTENT[:1000], CONTENT[1000:]])
    writable.point(PLACE)
    return store


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
    with pytest.raises(Unavailable, match="model-not-found"):
        store.read_into(PLACE, "manifest", 0, memoryview(bytearray(1)))
    for offset in (len(CONTENT) - 1, len(CONTENT), 10 * len(CONTENT)):
        with pytest.raises(InvalidInput, match="model-file-short"):
            store.read_into(PLACE, "weights.bin", offset, memoryview(bytearray(2)))
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


def test_what_is_published_is_never_overwritten(pair: tuple[Any, ModelStore]) -> None:
    writable, store = pair
    large = bytes(range(251)) * 40_000  # more than one part of an upload
    for name, content in (("manifest", CONTENT), ("weights.bin", large)):
        for _ in range(2):  # said again, after an interruption
            writable.write(PLACE, name, (content[at : at + 999_999] for at in range(0, len(content), 999_999)))
        for other in (content[:-1], content + b"x", b"y" + content[1:], b""):
            with pytest.raises(Refused, match="store-conflict"):
                writable.write(PLACE, name, [other])
        assert store.read(PLACE, name, limit=len(content)) == content
    other = Place(PLACE.model, b"e" * 32)
    for place in (PLACE, other):
        writable.point(place)
        assert store.latest(PLACE.model) == place


def test_an_upload_that_breaks_leaves_nothing(pair: tuple[Any, ModelStore]) -> None:
    writable, store = pair

    def parts() -> Iterator[bytes]:
        for _ in range(20):
            yield bytes(1 << 20)
        raise InvalidInput("file-unreadable", "the disk is gone")

    with pytest.raises(InvalidInput, match="file-unreadable"):
        writable.write(PLACE, "weights.bin", parts())
    with pytest.raises(Unavailable, match="model-not-found"):
        store.read(PLACE, "weights.bin", limit=1 << 30)


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
        HttpStore(HttpClient(SystemClock()), url, Patience(SystemClock()))
