"""Cost profiles and workloads from elsewhere: read, or refused with what is wrong; never a fault of ours."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.base.errors import InvalidInput
from cloister.control.simulator.profile import parse_profile
from cloister.control.simulator.workload import read_workload

SHIPPED = json.loads(files("cloister.control.simulator").joinpath("default_profile.json").read_text())
STRANGE: list[Any] = [None, True, -1, 0, 1e10, float("nan"), float("inf"), "", "x", [], {}, [[]], [{}], {"a": []}]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in a JSON value, outermost first."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


@pytest.mark.parametrize("path", list(places(SHIPPED)), ids=lambda path: ".".join(map(str, path)))
def test_whatever_stands_in_a_field_it_is_taken_or_refused(path: tuple[Any, ...]) -> None:
    for strange in STRANGE:
        value = copy.deepcopy(SHIPPED)
        there = value
        for key in path[:-1]:
            there = there[key]
        there[path[-1]] = strange
        try:
            profile = parse_profile(json.dumps(value).encode())
        except InvalidInput:
            continue
        assert profile.fleet.max_instances >= 1
        assert all(0 <= model.start_s + model.load_s + model.service_s < 1e8 for model in profile.models.values())


OBJECTS = [(), ("fleet",), ("hosts",), ("models", "resnet"), ("models", "resnet", "stages")]


@pytest.mark.parametrize("path", OBJECTS, ids=str)
def test_an_unknown_field_is_named(path: tuple[str, ...]) -> None:
    value = copy.deepcopy(SHIPPED)
    there = value
    for key in path:
        there = there[key]
    there["unheard-of"] = 1
    with pytest.raises(InvalidInput, match="unheard-of: is not known"):
        parse_profile(json.dumps(value).encode())


HEADERS = [
    b"time_s,model,user\n",
    b"time_s,model\n",
    b"app,func,end_timestamp,duration\n",
    b"HashOwner,HashApp,HashFunction,Trigger,1,2,3\n",
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    header=st.sampled_from([b"", *HEADERS]),
    rest=st.binary(max_size=200) | st.text(",0123456789.em-\n\"'", max_size=100),
)
def test_any_bytes_are_a_workload_or_refused_with_their_line(header: bytes, rest: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(header + (rest if isinstance(rest, bytes) else rest.encode()))
    try:
        arrivals = read_workload(path)
    except InvalidInput as error:
        arrivals = []
        told = error.code, "any.csv" in error.message
    else:
        told = "workload-malformed", True
    assert told == ("workload-malformed", True)
    assert [a.time_s for a in arrivals] == sorted(a.time_s for a in arrivals)
