"""The least privilege of docs/how-to/object-stores.md, on a server that verifies signatures and obeys policies."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.modelstore.opened import open_for_publishing
from cloister.adapters.modelstore.patience import Patience
from cloister.adapters.modelstore.port import Place, PublishingStore
from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.ids import ModelId
from cloister.testing.s3_server import S3Server

PAGE = Path(__file__).parents[3] / "docs/how-to/object-stores.md"
PLACE = Place(ModelId(b"o" * 32, "some-model"), b"d" * 32)
LARGE = bytes(range(251)) * 50_000  # two parts

pytestmark = pytest.mark.xdist_group("stores")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    reader, publisher = re.findall(r"^```json\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    json.loads(reader)
    json.loads(publisher)
    with S3Server("models", users={"reader": reader, "publisher": publisher}) as started:
        yield started


def store(server: S3Server, user: str, prefix: str = "prod") -> PublishingStore:
    return open_for_publishing(server.url("models", prefix, user=user), Patience(SystemClock()))


def test_a_publisher_can_publish_and_a_reader_read(server: S3Server) -> None:
    publisher, reader = store(server, "publisher"), store(server, "reader")
    for _ in range(2):
        publisher.write(PLACE, "weights.bin", [LARGE[:9_000_000], LARGE[9_000_000:]])
        publisher.write(PLACE, "manifest", [b"the manifest"])
        publisher.point(PLACE)
    assert reader.latest(PLACE.model) == PLACE
    assert reader.read(PLACE, "manifest", limit=100) == b"the manifest"
    out = bytearray(1000)
    reader.read_into(PLACE, "weights.bin", 8_500_000, memoryview(out))
    assert out == LARGE[8_500_000:8_501_000]
    assert reader.latest(ModelId(b"o" * 32, "another")) is None, "absent is not denied"


def test_a_reader_cannot_write_nor_anybody_leave_the_prefix(server: S3Server) -> None:
    other = Place(PLACE.model, b"f" * 32)
    for content in (b"small", LARGE):
        with pytest.raises(Unavailable, match="store-denied"):
            store(server, "reader").write(other, "weights.bin", [content])
    with pytest.raises(Unavailable, match="store-denied"):
        store(server, "reader").point(other)
    for user in ("reader", "publisher"):
        with pytest.raises(Unavailable, match="store-denied"):
            store(server, user, "elsewhere").latest(PLACE.model)


def test_credentials_that_are_wrong_are_called_wrong(server: S3Server) -> None:
    file = server.credentials("forger")
    text = server.credentials("reader").read_text()
    file.write_text(text[:-5] + "abcd\n")
    with pytest.raises(Unavailable, match="store-denied") as error:
        store(server, "forger").latest(PLACE.model)
    assert "does not accept these credentials" in (error.value.hint or "")
    assert text.split("=")[-1][:8] not in str(error.value)
    for broken in ("", "[default]\naws_access_key_id=x\n", "no file of this kind", "[default\n"):
        file.write_text(broken)
        with pytest.raises(InvalidInput, match="store-credentials-malformed") as malformed:
            store(server, "forger")
        assert str(file) in malformed.value.message
