"""Log lines hold named fields only."""

from __future__ import annotations

import json
import os

from cloister.adapters.logs import JsonLog
from cloister.testing.clock import FakeClock
from cloister.testing.logs import MemoryLog


def test_a_line_is_json_and_unknown_fields_are_dropped() -> None:
    reader, writer = os.pipe()
    log = JsonLog(FakeClock(12.5), descriptor=writer, service="runtime")
    log.event("started", port=1, token="secret-token", model="a\nb" * 400)
    log.event("noise", level="debug")
    os.close(writer)
    with os.fdopen(reader) as lines:
        text = lines.read()
    assert text.count("\n") == 1
    line = json.loads(text)
    assert line["model"] == ("a\nb" * 400)[:400]
    assert (line["time"], line["event"], line["service"], line["port"]) == (12.5, "started", "runtime", 1)
    assert line["dropped"] == ["token"]
    assert "secret" not in text
    log.event("after the descriptor is closed")


def test_the_fake_admits_the_same() -> None:
    log = MemoryLog()
    log.event("x", level="error", body="secret", code="c")
    assert log.events == [("x", "error", {"code": "c", "dropped": ["body"]})]
