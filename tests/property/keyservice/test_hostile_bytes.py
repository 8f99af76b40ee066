"""Whatever bytes arrive in a sealed call, the KeyService answers with one of its errors, and goes on (S8)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.base.errors import CloisterError, InvalidInput
from cloister.base.secret import SecretBytes
from cloister.testing.embedded import EmbeddedKeyService
from cloister.wire import calls, cbor, cose

KS = EmbeddedKeyService()
PERSON = KS.person()

leaves = st.one_of(st.integers(-(2**62), 2**62), st.binary(max_size=70), st.text(max_size=70), st.booleans(), st.none())
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)
kinds = st.sampled_from([calls.STATEMENT, calls.QUERY, calls.ATTEST])


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
