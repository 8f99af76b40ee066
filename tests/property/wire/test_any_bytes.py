"""Parsers return a value or raise one of our families, on any bytes at all (claim S8)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.base.errors import CloisterError, InvalidInput
from cloister.log import custody as entries
from cloister.wire import (
    bhttp,
    calls,
    cbor,
    custody,
    envelope,
    manifest,
    oip,
    padding,
    provisioning,
    recovery,
    statements,
)

PARSERS: dict[str, Callable[[bytes], object]] = {
    "cbor": lambda data: cbor.decode(data, limit=1 << 20, what="x"),
    "statement": statements.peek_statement,
    "query": statements.peek_query,
    "description": calls.Description.decode,
    "attest": provisioning.AttestRequest.decode,
    "session call": provisioning.parse_session_call,
    "recovery record": custody.CustodyRecord.decode,
    "custody entry": entries.CustodySet.decode,
    "recovery entry": entries.Recovery.decode,
    "offer to custodians": recovery.Offer.decode,
    "answer of a custodian": recovery.Answer.decode,
    "manifest": manifest.Manifest.parse,
    "model description": manifest.Description.decode,
    "request header": envelope.RequestHeader.decode,
    "request prefix": envelope.RequestPrefix.parse,
    "frames": envelope.plaintext_length,
    "inner request": bhttp.parse_request,
    "inner response": bhttp.parse_response,
    "inference": lambda data: oip.decode_request(memoryview(data), None),
    "inference with tensors": lambda data: oip.decode_request(memoryview(data), len(data) // 2),
    "padding": lambda data: padding.unpad(data, what="x"),
}

_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.binary(max_size=600))
def test_any_bytes(name: str, data: bytes) -> None:
    with contextlib.suppress(CloisterError):
        PARSERS[name](data)


@pytest.mark.parametrize("name", PARSERS)
@given(value=_values)
def test_any_cbor(name: str, value: object) -> None:
    with contextlib.suppress(CloisterError):
        PARSERS[name](cbor.encode(value))


@given(value=_values)
def test_cbor_reads_what_it_writes(value: object) -> None:
    data = cbor.encode(value)
    assert cbor.decode(data, limit=len(data), what="x") == value


@given(data=st.binary(max_size=64))
def test_cbor_accepts_one_encoding_only(data: bytes) -> None:
    try:
        value = cbor.decode(data, limit=64, what="x")
    except InvalidInput:
        return
    assert cbor.encode(value) == data


@given(length=st.integers(0, 10**9))
def test_buckets_grow_by_an_eighth_at_most(length: int) -> None:
    padded = padding.bucket(length)
    assert padded >= max(length, 256)
    assert padded <= max(256, length * 1.125)


@given(message=st.binary(max_size=2000))
def test_padding_comes_off_again(message: bytes) -> None:
    assert padding.unpad(padding.pad(message), what="x") == message


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "inputs",
                    "outputs",
                    "name",
                    "shape",
                    "datatype",
                    "data",
                    "parameters",
                    "binary_data_size",
                    "id",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)


@given(value=_json, tail=st.binary(max_size=32))
def test_any_json_is_an_inference_or_invalid(value: object, tail: bytes) -> None:
    text = json.dumps(value).encode()
    with contextlib.suppress(InvalidInput):
        oip.decode_request(memoryview(text + tail), len(text))
