"""URLs of object stores: what is understood, what is refused, and that a refusal repeats nothing secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.adapters.clock import SystemClock
from cloister.adapters.modelstore.object_url import Kind, ObjectUrl, parse
from cloister.adapters.modelstore.opened import check, open_for_publishing
from cloister.adapters.modelstore.patience import Patience
from cloister.base.errors import InvalidInput, Unavailable
from cloister.control.gateway import configuration
from cloister.testing.clock import FakeClock


@pytest.mark.parametrize(
    ("text", "kind", "container", "prefix", "settings"),
    [
        ("s3://models", Kind.S3, "models", "", {}),
        ("s3://my.models-1/a/b=2/", Kind.S3, "my.models-1", "a/b=2", {}),
        (
            "s3://models/p?region=eu-central-1&endpoint=https://minio.example:9000&virtual_hosted=true&anonymous=false",
            Kind.S3,
            "models",
            "p",
            {
                "region": "eu-central-1",
                "endpoint": "https://minio.example:9000",
                "virtual_hosted_style_request": True,
                "skip_signature": False,
            },
        ),
        ("gs://models/p?anonymous=true", Kind.GCS, "models", "p", {"skip_signature": True}),
        ("gs://models?credentials=/run/key.json", Kind.GCS, "models", "", {"application_credentials": "/run/key.json"}),
        ("az://models/p?account=somebody", Kind.AZURE, "models", "p", {"account_name": "somebody"}),
        ("abfss://models@some1.dfs.core.windows.net/p", Kind.AZURE, "models", "p", {"account_name": "some1"}),
        ("abfs://models/p", Kind.AZURE, "models", "p", {}),
    ],
)
def test_what_is_understood(text: str, kind: Kind, container: str, prefix: str, settings: dict[str, Any]) -> None:
    url = parse(text)
    assert (url.kind, url.container, url.prefix, dict(url.settings)) == (kind, container, prefix, settings)
    assert not url.allow_http
    check(text)


def test_files_that_a_url_names() -> None:
    url = parse("s3://models?credentials=/run/aws&ca=/etc/ca.pem&endpoint=http://10.0.0.1:9000")
    assert (url.credentials, url.ca, url.allow_http) == (Path("/run/aws"), Path("/etc/ca.pem"), True)
    assert parse("gs://models?endpoint=http://127.0.0.1:1").allow_http
    assert parse("az://models?anonymous=true&endpoint=http://10.0.0.1").allow_http


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://", "bucket"),
        ("s3://Models", "bucket"),
        ("s3:///models", "bucket"),
        ("s3://models/../other", "prefix"),
        ("s3://models/a//b", "prefix"),
        ("s3://models/a%2f%2e%2e/b", "prefix"),
        ("s3://models/a b", "prefix"),
        ("s3://models:9000/a", "port"),
        ("s3://key:hunter2hunter2@models/a", "password"),
        ("s3://models@host/a", "@"),
        ("az://models@nobody.example/a", "@"),
        ("s3://models#part", "fragment"),
        ("s3://models?secret_access_key=hunter2hunter2", "no place for credentials"),
        ("s3://models?aws_session_token=hunter2hunter2", "no place for credentials"),
        ("az://models?sas_token=hunter2hunter2", "no place for credentials"),
        ("az://models?sv=2020&sig=hunter2hunter2", "unknown"),
        ("az://models?sig=hunter2hunter2", "no place for credentials"),
        ("s3://models?regoin=x", "regoin"),
        ("s3://models?region=a&region=b", "region"),
        ("s3://models?region=", "region"),
        ("s3://models?anonymous=yes", "anonymous"),
        ("s3://models?endpoint=minio.example", "endpoint"),
        ("s3://models?endpoint=https://a@b", "endpoint"),
        ("gs://models?endpoint=http://10.0.0.1", "https"),
        ("az://models?endpoint=http://store.example", "https"),
        ("gs://models?region=x", "region"),
        ("s3://models?", "")
    ],
)  # fmt: skip
def test_what_is_refused(text: str, said: str) -> None:
    if not said:
        assert parse(text).container == "models"
        return
    with pytest.raises(InvalidInput, match="store-url-malformed") as error:
        parse(text)
    assert said in error.value.message
    assert "hunter2" not in str(error.value)


@given(st.text(max_size=80), st.sampled_from(["s3://", "gs://", "az://", "abfss://", "s3://models/", "s3://models?"]))
def test_anything_else_is_one_clear_error(text: str, begin: str) -> None:
    try:
        assert isinstance(parse(begin + text), ObjectUrl)
    except InvalidInput as error:
        assert error.code == "store-url-malformed"  # noqa: PT017  # both outcomes are sound


def test_schemes_that_are_none_are_no_directories() -> None:
    for text in ("ftp://host/a", "s4://models", "S3://models", "file:///srv", ""):
        with pytest.raises(InvalidInput, match="store-url-malformed"):
            check(text)
    for text in ("/srv/models", "models", "./s3:models"):
        check(text)
    with pytest.raises(InvalidInput, match="store-read-only"):
        open_for_publishing("https://models.example/store", Patience(SystemClock()))


def test_a_gateway_is_told_when_its_file_is_checked() -> None:
    text = "[platform]\ncommand = ['x']\n[store]\nurl = '{}'\n"
    assert configuration.parse(text.format("s3://models/p?region=eu-central-1").encode()).store
    for url in ("ftp://models", "s3://models?sig=hunter2hunter2"):
        with pytest.raises(InvalidInput, match="configuration-malformed") as error:
            configuration.parse(text.format(url).encode())
        assert "[store] url" in error.value.message
        assert "hunter2" not in str(error.value)


class Pauses:
    """A clock that pauses move on."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.made: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.made.append(seconds)
        self.clock.advance(seconds)


def away() -> Unavailable:
    return Unavailable("store-unavailable", "away", retry_after=1.0)


def test_patience_grows_and_ends() -> None:
    pauses = Pauses()
    patience = Patience(pauses.clock, pause=pauses)
    left: list[float] = []

    def act(for_s: float) -> None:
        left.append(for_s)
        raise away()

    with pytest.raises(Unavailable, match="store-unavailable"):
        patience.insist(act)
    assert len(left) == 8
    assert all(step <= 20.0 for step in left)
    for number, made in enumerate(pauses.made):
        longest = min(5.0, 0.1 * 2**number)
        assert longest / 2 <= made <= longest


def test_patience_ends_at_the_deadline_and_at_what_will_not_change() -> None:
    pauses = Pauses()
    asked: list[float] = []

    def slow(for_s: float) -> None:
        asked.append(for_s)
        pauses.clock.advance(for_s)
        raise away()

    with pytest.raises(Unavailable):
        Patience(pauses.clock, pause=pauses, attempts=99).insist(slow)
    assert 3 <= len(asked) <= 4
    assert sum(asked) + sum(pauses.made) <= 60.0 + 1e-6

    def denied(_for_s: float) -> None:
        asked.append(0.0)
        raise Unavailable("store-denied", "no")

    asked.clear()
    with pytest.raises(Unavailable, match="store-denied"):
        Patience(pauses.clock, pause=pauses).insist(denied)
    assert len(asked) == 1
    assert Patience(pauses.clock).brief().attempts == 2
