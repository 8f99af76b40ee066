"""The configuration file: everything checked, every error with its path, a reload's change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.base.errors import InvalidInput
from cloister.control.configuration import NO_CHANGE, diff, parse_configuration

GOOD = """
[pools.p]
memory_mb = 512
[models.m]
pool = "p"
owner = "ann"
memory_mb = 100
"""


def test_the_documented_example_is_a_configuration() -> None:
    text = (Path(__file__).parents[3] / "docs/reference/gateway-configuration.md").read_text()
    example = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0]
    made = parse_configuration(example.encode())
    assert made.models[0].model.shares_with == {"lab"}
    assert made.pools[0].policies.keyless == 1
    assert made.pool_of("mobilenet-v1") == made.pools[0]
    assert made.pool_of("nobody") is None


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (GOOD + "colour = 1", "models.m.colour"),
        (GOOD.replace("memory_mb = 512", "memory_mb = -1"), "pools.p.memory_mb"),
        (GOOD.replace("memory_mb = 512", "memory_mb = 100"), "pools.p.memory_mb"),
        (GOOD.replace("memory_mb = 512", "memory_mb = nan"), "pools.p.memory_mb"),
        (GOOD.replace("memory_mb = 512", "memory_mb = true"), "pools.p.memory_mb"),
        (GOOD.replace("memory_mb = 100", "memory_mb = 400"), "models.m.memory_mb"),
        (GOOD.replace('pool = "p"', 'pool = "q"'), "models.m.pool"),
        (GOOD.replace('owner = "ann"', ""), "models.m.owner"),
        (GOOD + "[models.m.stages]\nattestation = 1", "models.m.stages.attestation"),
        (GOOD + "[models.M]\n", "models.M"),
        (GOOD + "[limits]\nqueue = 1.5", "limits.queue"),
        (GOOD + "[limit]\nqueue = 1", "limit"),
        (GOOD + '[pools.p.policies]\npacker = "best"', "pools.p.policies.packer"),
        (GOOD + "[pools.p.policies]\ncost_weight = 2", "pools.p.policies.cost_weight"),
        (GOOD + "[pools.q]\nmemory_mb = 512\nslowdown = [2, 1]", "pools.q.slowdown"),
        (GOOD + "[pools.q]\nmemory_mb = 512\nleast = 17", "pools.q.least"),
        ("", "pools"),
        ("pools = 3", "pools"),
    ],
)
def test_an_error_names_the_path(text: str, path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_configuration(text.encode())
    assert f"configuration: {path}: " in caught.value.message


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        parse_configuration(data)


def test_a_reload_says_what_changes() -> None:
    old = parse_configuration(GOOD.encode())
    assert diff(old, old) == NO_CHANGE
    assert not diff(old, old)
    text = GOOD.replace("512", "640").replace("models.m", "models.n") + "[pools.q]\nmemory_mb=300\n[limits]\nqueue=1"
    change = diff(old, parse_configuration(text.encode()))
    assert (change.pools_added, change.pools_removed, change.pools_changed) == (("q",), (), ("p",))
    assert (change.models_added, change.models_removed, change.models_changed) == (("n",), ("m",), ())
    assert change.limits_changed
    assert change
