"""What every remote store does on a network that cuts, drips, refuses and lies."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.tls import server_context
from cloister.adapters.modelstore.object_url import parse
from cloister.adapters.modelstore.objects import ObjectStore
from cloister.adapters.modelstore.patience import Patience
from cloister.adapters.modelstore.port import Place
from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.base.ids import ModelId
from cloister.testing.authority import Authority
from cloister.testing.clock import FakeClock
from cloister.testing.faulty_proxy import Fault, Rule
from cloister.testing.object_server import ObjectServer
from cloister.testing.s3_server import SECRET_KEY, S3Server

pytestmark = pytest.mark.xdist_group("stores")  # one server for all
PLACE = Place(ModelId(b"o" * 32, "some-model"), b"d" * 32)
CONTENT = bytes(range(251)) * 6000  # 1.5 MB
OFFSET, LENGTH = 100_000, 1 << 20
ATTEMPTS = 6  # of the suite's patience
BURST = "retry-after: 0\r\n"


def read(remote: Any) -> bytes:
    out = bytearray(LENGTH)
    remote.store.read_into(PLACE, "weights.bin", OFFSET, memoryview(out))
    return bytes(out)


def ranges(remote: Any) -> list[int]:
    """Where each request's range began."""
    found = [re.search(r"(?im)^(?:x-ms-)?range: bytes=(\d+)-", head) for head in remote.proxy.heads]
    return [int(match[1]) for match in found if match]


def only(number: int, fault: Fault) -> Rule:
    return lambda _head, now: fault if now == number else None


@pytest.fixture
def filled(remote: Any) -> Any:
    remote.writable.write(PLACE, "weights.bin", [CONTENT])
    remote.writable.point(PLACE)
    return remote


@pytest.mark.parametrize("after", [0, 1, 300_000, LENGTH - 1])
def test_a_cut_connection_is_continued_from_the_byte_reached(filled: Any, after: int) -> None:
    filled.proxy.rule = only(0, Fault(cut_after=after))
    assert read(filled) == CONTENT[OFFSET : OFFSET + LENGTH]
    first, second = ranges(filled)
    assert first == OFFSET
    assert OFFSET + after - 262_144 < second <= OFFSET + after


def test_it_goes_on_through_many_cuts_and_gives_up_in_the_end(filled: Any) -> None:
    filled.proxy.rule = lambda _head, _number: Fault(cut_after=270_000)
    assert read(filled) == CONTENT[OFFSET : OFFSET + LENGTH]
    filled.proxy.heads.clear()
    filled.proxy.rule = lambda _head, _number: Fault(cut_after=10)
    with pytest.raises(Unavailable, match="store-unavailable"):
        read(filled)
    assert len(filled.proxy.heads) == ATTEMPTS


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_burst_of_refusals_is_waited_for(filled: Any, status: int) -> None:
    filled.proxy.rule = lambda _head, number: Fault(status=status, headers=BURST) if number < 3 else None
    assert read(filled) == CONTENT[OFFSET : OFFSET + LENGTH]
    assert len(filled.proxy.heads) == 4
    filled.proxy.rule = lambda _head, _number: Fault(status=status, headers=BURST)
    for ask in (lambda: read(filled), lambda: filled.store.latest(PLACE.model)):
        with pytest.raises(Unavailable, match="store-unavailable") as error:
            ask()
        assert str(status) in error.value.message
        assert error.value.retry_after


@pytest.mark.parametrize("status", [401, 403])
def test_who_is_denied_is_told_what_to_do_and_nothing_secret(filled: Any, status: int) -> None:
    filled.proxy.rule = lambda head, _number: Fault(status=status, body=lambda _: head.encode() + SECRET_KEY.encode())
    for ask in (
        lambda: read(filled),
        lambda: filled.store.read(PLACE, "manifest", limit=10),
        lambda: filled.store.latest(PLACE.model),
    ):
        filled.proxy.heads.clear()
        with pytest.raises(Unavailable, match="store-denied") as error:
            ask()
        assert len(filled.proxy.heads) == 1, "asking again changes nothing"
        assert error.value.hint
        told = f"{error.value} {error.value.details}".lower()
        assert not [word for word in ("authorization", "signature=", "bearer", SECRET_KEY) if word in told]


def test_whole_files_in_place_of_ranges_are_not_taken(filled: Any) -> None:
    def whole(head: str) -> str:
        return re.sub(r"(?m)^HTTP/1.1 206.*$", "HTTP/1.1 200 OK\r", head)

    filled.proxy.rule = lambda _head, _number: Fault(head=whole)
    with pytest.raises(Unavailable, match="store-misconfigured"):
        read(filled)
    assert len(filled.proxy.heads) == 1


@pytest.mark.parametrize(
    "said", ["bytes 0-1048575/1506000", "bytes 100000-1148574/1506000", "items 100000-1148575/1506000", "nonsense", ""]
)
def test_another_range_than_asked_for_is_not_taken(filled: Any, said: str) -> None:
    def other(head: str) -> str:
        return re.sub(r"(?im)^content-range:.*$", f"content-range: {said}\r" if said else "x-nothing: 1\r", head)

    filled.proxy.rule = lambda _head, _number: Fault(head=other)
    with pytest.raises((Unavailable, InvalidInput)) as error:
        read(filled)
    assert error.value.code in ("store-misconfigured", "store-unavailable", "model-file-short")
    assert len(filled.proxy.heads) <= ATTEMPTS


def test_an_answer_shorter_than_its_range_is_continued(filled: Any) -> None:
    def shorter(head: str) -> str:
        return re.sub(r"(?im)^content-length:.*$", "content-length: 500000\r", head)

    filled.proxy.rule = only(0, Fault(head=shorter, body=lambda body: body[:500_000]))
    assert read(filled) == CONTENT[OFFSET : OFFSET + LENGTH]
    assert len(filled.proxy.heads) == 2


def test_an_answer_longer_than_its_range_is_not_written_beyond(filled: Any) -> None:
    def longer(head: str) -> str:
        return re.sub(r"(?im)^content-length:.*$", f"content-length: {LENGTH + 999}\r", head)

    filled.proxy.rule = lambda _head, _number: Fault(head=longer, body=lambda body: body + b"z" * 999)
    around = bytearray(LENGTH + 100)
    try:
        filled.store.read_into(PLACE, "weights.bin", OFFSET, memoryview(around)[50:-50])
    except Unavailable as error:
        assert error.code == "store-unavailable"  # noqa: PT017  # both are sound; neither writes elsewhere
    assert around[:50] == around[-50:] == bytes(50)


def test_a_file_that_changes_while_it_is_read_is_read_anew(filled: Any) -> None:
    def tagged(head: str) -> str:
        return re.sub(r"(?im)^etag:.*$", 'etag: "of-another-content"\r', head)

    filled.proxy.rule = only(0, Fault(head=tagged, body=lambda body: b"x" * len(body), cut_after=600_000))
    assert read(filled) == CONTENT[OFFSET : OFFSET + LENGTH], "nothing of the other content is left"
    assert ranges(filled)[-1] == OFFSET


def test_a_file_that_shrinks_is_short(filled: Any) -> None:
    with pytest.raises(InvalidInput, match="model-file-short"):
        filled.store.read_into(PLACE, "weights.bin", len(CONTENT) - 10, memoryview(bytearray(11)))


def test_a_drip_ends_at_the_deadline(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hurried = Patience(SystemClock(), attempts=100, deadline_s=1.5, attempt_s=0.5, first_s=0.01)
    if isinstance(filled.store, ObjectStore):
        store: Any = ObjectStore(replace(filled.store._url), hurried)
    else:
        store = filled.store
        monkeypatch.setattr(store, "_patience", hurried)
    filled.proxy.rule = lambda _head, _number: Fault(bytes_a_second=2000)
    started = time.monotonic()
    with pytest.raises(Unavailable, match="store-unavailable"):
        store.read_into(PLACE, "weights.bin", OFFSET, memoryview(bytearray(LENGTH)))
    assert time.monotonic() - started < 10
    filled.proxy.rule = lambda _head, _number: Fault(delay_s=30)
    with pytest.raises(Unavailable, match="store-unavailable"):
        store.latest(PLACE.model)
    assert time.monotonic() - started < 20


def test_nobody_there(filled: Any) -> None:
    filled.proxy.rule = lambda _head, _number: Fault(cut_after=0, status=200)
    with pytest.raises(CloisterError):
        read(filled)
    filled.proxy.__exit__(None, None, None)
    with pytest.raises(Unavailable, match="store-unavailable"):
        read(filled)
    with pytest.raises(Unavailable, match="store-unavailable"):
        filled.store.latest(PLACE.model)


def test_uploads_go_on_through_faults_and_can_be_repeated(remote: Any) -> None:
    if not isinstance(remote.store, ObjectStore):
        return  # HTTP stores are not published to
    content = bytes(range(251)) * 120_000  # 30 MB: four parts

    def parts() -> Any:
        return (content[at : at + (1 << 20)] for at in range(0, len(content), 1 << 20))

    def sometimes(head: str, number: int) -> Fault | None:
        return Fault(status=503) if number % 3 == 1 and not head.startswith("GET") else None

    remote.proxy.rule = sometimes
    remote.store.write(PLACE, "weights.bin", parts())
    puts = len(remote.proxy.heads)
    assert puts > 6
    remote.proxy.rule = lambda _head, _number: None
    remote.proxy.heads.clear()
    remote.store.write(PLACE, "weights.bin", parts())
    assert all(head.startswith(("GET", "HEAD")) for head in remote.proxy.heads), "what lies there is only compared"
    with pytest.raises(Refused, match="store-conflict"):
        remote.store.write(PLACE, "weights.bin", [content[:-1]])
    remote.proxy.rule = lambda head, _number: Fault(status=403) if not head.startswith("HEAD") else None
    with pytest.raises(Unavailable, match="store-denied"):
        remote.store.write(PLACE, "other.bin", [content[:100]])
    remote.proxy.rule = lambda _head, _number: None
    remote.store.write(PLACE, "other.bin", [content[:100]])


# --- TLS ---


def test_a_private_authority_has_to_be_named(tmp_path: Path, surroundings: None) -> None:
    authority = Authority(tmp_path, SystemClock().now())
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    with ObjectServer("bucket", tls=server_context(*authority.issue("127.0.0.1"))) as server:
        url = f"gs://bucket/models?endpoint={server.address}"
        store = ObjectStore(parse(f"{url}&ca={ca}"), Patience(SystemClock()))
        store.write(PLACE, "manifest", [b"m"])
        assert store.read(PLACE, "manifest", limit=1) == b"m"
        with pytest.raises(Unavailable, match="store-misconfigured") as error:
            ObjectStore(parse(url), Patience(SystemClock())).latest(PLACE.model)
        assert "?ca=" in (error.value.hint or "")
    with ObjectServer("bucket", tls=server_context(*authority.issue("elsewhere.example"))) as server:
        store = ObjectStore(parse(f"gs://bucket/models?endpoint={server.address}&ca={ca}"), Patience(SystemClock()))
        with pytest.raises(Unavailable, match="store-misconfigured"):
            store.latest(PLACE.model)
    (tmp_path / "no.pem").write_text("nothing of the kind")
    for file in ("no.pem", "absent.pem"):
        with pytest.raises(InvalidInput, match="store-url-malformed"):
            ObjectStore(parse(f"{url}&ca={tmp_path / file}"), Patience(SystemClock()))


# --- S3 alone ---


def open_s3(url: str) -> ObjectStore:
    return ObjectStore(parse(url), Patience(SystemClock(), attempts=2, first_s=0.01))


def test_a_bucket_that_is_not_there(s3: S3Server) -> None:
    store = open_s3(s3.url("nobody-made-it"))
    for ask in (lambda: store.latest(PLACE.model), lambda: store.write(PLACE, "manifest", [b"m"])):
        with pytest.raises(Unavailable, match="store-misconfigured") as error:
            ask()
        assert "bucket" in str(error.value)


def test_credentials_that_cannot_be_had_any_more(tmp_path: Path, s3: S3Server) -> None:
    file = tmp_path / "credentials"
    file.write_text(s3.credentials().read_text())
    url = f"s3://bucket/models?region=us-east-1&endpoint={s3.address}&credentials={file}"
    long_ago = Patience(FakeClock(1_600_000_000.0), attempts=1)  # so they are asked for each time
    store = ObjectStore(parse(url), long_ago)
    assert store.latest(ModelId(b"n" * 32, "nothing")) is None
    file.unlink()
    with pytest.raises(Unavailable, match="store-denied"):
        store.latest(ModelId(b"n" * 32, "nothing"))


def test_without_authorities_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.setenv(name, "/nonexistent")
    with pytest.raises(InvalidInput, match="store-url-malformed") as error:
        open_s3("s3://bucket/models?region=us-east-1&anonymous=true")
    assert "ca-certificates" in (error.value.hint or "")


@pytest.mark.parametrize(("status", "code"), [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")])
def test_the_wrong_region_is_named(remote: Any, status: int, code: str) -> None:
    if not isinstance(remote.store, ObjectStore):
        return
    body = f"<Error><Code>{code}</Code><Region>eu-central-1</Region></Error>".encode()
    remote.proxy.rule = lambda _head, _number: Fault(status=status, body=lambda _: body)
    with pytest.raises(Unavailable, match="store-misconfigured") as error:
        remote.store.latest(PLACE.model)
    assert "region" in (error.value.hint or "")


def test_without_credentials_it_says_so(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # never the machine's own
    store = open_s3(f"s3://bucket/models?region=us-east-1&endpoint={s3.address}")
    with pytest.raises(Unavailable, match="store-denied") as error:
        store.latest(PLACE.model)
    assert "AWS_ACCESS_KEY_ID" in (error.value.hint or "")
    public = open_s3(f"s3://bucket/models?region=us-east-1&endpoint={s3.address}&anonymous=true")
    assert public.latest(ModelId(b"n" * 32, "nothing")) is None
