"""A configuration has one encoding and one digest."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attest.configuration import configure, decode_configuration
from cloister.base.errors import InvalidInput


def test_order_does_not_matter_and_every_value_does() -> None:
    one = configure({"isolation": "strict", "co_tenancy": False, "bundle_root": b"k" * 32, "engines": ("onnx",)})
    two = configure({"engines": ("onnx",), "bundle_root": b"k" * 32, "co_tenancy": False, "isolation": "strict"})
    assert one == two
    assert decode_configuration(one.encoded) == one
    assert configure({"isolation": "shared"}).digest != configure({"isolation": "strict"}).digest
    assert configure({"a": False}).digest != configure({"a": 0}).digest


@pytest.mark.parametrize(
    "values",
    [{"Upper": 1}, {"": 1}, {"a" * 65: 1}, {"a": 1.5}, {"a": None}, {"a": (1,)}, {"a": 2**63}, {"isolation": "none"}],
)
def test_other_forms_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="configuration-malformed"):
        configure(values)  # type: ignore[arg-type]


def test_size_is_bounded() -> None:
    with pytest.raises(InvalidInput, match="configuration-too-long"):
        configure({"a": bytes(20_000)})
    with pytest.raises(InvalidInput, match="configuration-too-long"):
        configure({f"a{n}": n for n in range(200)})


@given(st.binary(max_size=200))
def test_any_bytes_are_a_configuration_or_invalid_input(data: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        assert decode_configuration(data).encoded == data
