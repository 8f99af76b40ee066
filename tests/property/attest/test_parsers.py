"""Any bytes are a value or InvalidInput; nothing else comes out of a parser."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attest.policy import Policy
from cloister.attest.policy_toml import parse_policy
from cloister.attest.simulation import parse
from cloister.attest.simulation.parse import parse_payload
from cloister.attest.types import TeeType
from cloister.base.errors import InvalidInput
from cloister.wire import cbor

_LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.binary(max_size=64) | st.text(max_size=40)
_TREES: st.SearchStrategy[Any] = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
)
_FIELD_NAMES = st.sampled_from(["measurement", "isolation", "configuration", "maximum_age_s", "pcr0", "tcb", "x"])


@given(st.binary(max_size=600))
def test_any_bytes(data: bytes) -> None:
    for parser in (parse, parse_payload, Policy.decode):
        with contextlib.suppress(InvalidInput):
            parser(data)


@given(_TREES)
def test_any_cbor(value: Any) -> None:
    data = cbor.encode(value)
    for parser in (parse, parse_payload, Policy.decode):
        with contextlib.suppress(InvalidInput):
            parser(data)


@given(st.sampled_from([tee.value for tee in TeeType]), st.dictionaries(_FIELD_NAMES, _TREES, max_size=6))
def test_any_rule(tee: str, expect: dict[str, Any]) -> None:
    plain = {"version": 1, "co_tenancy": False, "rules": [{"name": "r", "tee": tee, "expect": expect}]}
    with contextlib.suppress(InvalidInput):
        Policy.decode(cbor.encode(plain))


@given(st.text(max_size=400))
@settings(max_examples=200)
def test_any_text(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        parse_policy(text)


_TOML = st.sampled_from(
    ["1", "true", '"any-x"', "[]", "[1]", '["00"]', "{ a = 1 }", "1979-05-27", "1.5", '[["a"]]', "99999999999999999999"]
)


@given(st.sampled_from([tee.value for tee in TeeType]), st.dictionaries(_FIELD_NAMES, _TOML, max_size=6))
def test_any_toml_values(tee: str, table: dict[str, str]) -> None:
    lines = ["version = 1", "[rule.a]", f'tee = "{tee}"', *(f"{key} = {value}" for key, value in table.items())]
    with contextlib.suppress(InvalidInput):
        parse_policy("\n".join(lines))
