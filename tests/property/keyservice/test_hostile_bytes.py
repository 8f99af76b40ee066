"""Whatever bytes arrive in a sealed call, the KeyService answers with one of its errors, and goes on (S8)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.base.errors import CloisterError, InvalidInput, Refused
from cloister.base.secret import SecretBytes
from cloister.log.replication import (
    Place,
    Pull,
    Rows,
    Standing,
    open_answer,
    open_request,
    seal_answer,
    seal_request,
)
from cloister.testing.embedded import EmbeddedKeyService
from cloister.wire import calls, cbor, cose
from cloister.wire.handover import HandoverRequest

KS = EmbeddedKeyService()
PERSON = KS.person()
REPLICATION_KEY = SecretBytes(b"k" * 32)
REPLICA_FIELDS = [
    "kind",
    "replica",
    "term",
    "size",
    "link",
    "wait_ms",
    "standing",
    "same",
    "rows",
    "head",
    "leaf",
    "at",
]

leaves = st.one_of(st.integers(-(2**62), 2**62), st.binary(max_size=70), st.text(max_size=70), st.booleans(), st.none())
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)
kinds = st.sampled_from([calls.STATEMENT, calls.QUERY, calls.ATTEST, calls.HANDOVER])


@settings(max_examples=150, deadline=None)
@given(kinds, st.binary(max_size=300), st.integers(0, 2))
def test_any_bytes(kind: str, body: bytes, keys: int) -> None:
    with pytest.raises(CloisterError):
        KS.call(kind, body, (SecretBytes(bytes(32)),) * keys)


@settings(max_examples=150, deadline=None)
@given(kinds, values)
def test_any_cbor(kind: str, value: Any) -> None:
    with pytest.raises(CloisterError):
        KS.call(kind, cbor.encode(value))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["ks", "issuer", "seq", "iat", "ttl", "type", "body", "nonce"]), leaves))
def test_any_signed_map(fields: dict[str, Any]) -> None:
    from cloister.crypto.digest import Context

    for context, kind in ((Context.STATEMENT, calls.STATEMENT), (Context.QUERY, calls.QUERY)):
        with pytest.raises(CloisterError):
            KS.call(kind, cose.sign1(PERSON.key, context, cbor.encode(fields)))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["whoami", "models", "access", "events", "why", "service-key", "policy", "keyservice"]),
    st.dictionaries(
        st.sampled_from(["after", "model", "user", "policy", "manifest", "versions", "digest", "subject"]), leaves
    ),
)
def test_any_question(kind: str, about: dict[str, Any]) -> None:
    try:
        result = KS.ask(PERSON, kind, **about)
    except CloisterError:
        return
    assert result


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_outside(data: bytes) -> None:
    for answer in (KS.service.call, KS.service.session):
        with pytest.raises(InvalidInput) as caught:
            answer(data)
        assert caught.value.code == "call-refused"


# --- between replicas, and of one that joins ---


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), values, st.dictionaries(st.sampled_from(REPLICA_FIELDS), leaves))
def test_anything_between_replicas(data: bytes, value: Any, fields: dict[str, Any]) -> None:
    """Under the right key too: one that was made to say anything is refused as any stranger."""
    with pytest.raises(CloisterError):
        open_request(REPLICATION_KEY, data)
    with pytest.raises(CloisterError):
        open_answer(REPLICATION_KEY, b"asked", data)
    for content in (fields, {"kind": "pull", **fields}, {"value": value}):
        request = seal_request(REPLICATION_KEY, content)
        answer = seal_answer(REPLICATION_KEY, request, content)
        for read in (Pull.read, Rows.read, Place.read):
            with pytest.raises(CloisterError):
                read(open_answer(REPLICATION_KEY, request, answer))
        with pytest.raises(CloisterError):
            Standing.read(content)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000), values)
def test_anything_of_one_that_joins(data: bytes, value: Any) -> None:
    for body in (data, cbor.encode(value)):
        with pytest.raises(CloisterError):
            HandoverRequest.decode(body)
    with pytest.raises(Refused, match="replicas-none"):
        KS.service.hand_over(data)
