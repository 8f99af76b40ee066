"""The page that Prometheus reads."""

from __future__ import annotations

import threading

import pytest

from cloister.adapters.metrics import MAX_SERIES, Registry
from cloister.base.errors import InvalidInput


def test_the_page() -> None:
    registry = Registry()
    requests = registry.counter("requests_total", "Requests.", ["model", "code"])
    requests.add('a/"b"\n', "ok")
    requests.add('a/"b"\n', "ok", amount=2)
    registry.gauge("open", "Open.", ask=lambda: 3)
    ready = registry.gauge("ready", "Ready.")
    ready.set(0.5)
    stage = registry.histogram("stage_seconds", "Stages.", ["stage"], bounds=[0.1, 1])
    for value in (0.1, 0.5, 7):
        stage.observe(value, "attest")
    assert registry.exposition().decode() == (
        "# HELP requests_total Requests.\n# TYPE requests_total counter\n"
        'requests_total{model="a/\\"b\\"\\n",code="ok"} 3\n'
        "# HELP open Open.\n# TYPE open gauge\nopen 3\n"
        "# HELP ready Ready.\n# TYPE ready gauge\nready 0.5\n"
        "# HELP stage_seconds Stages.\n# TYPE stage_seconds histogram\n"
        'stage_seconds_bucket{stage="attest",le="0.1"} 1\n'
        'stage_seconds_bucket{stage="attest",le="1"} 2\n'
        'stage_seconds_bucket{stage="attest",le="+Inf"} 3\n'
        'stage_seconds_sum{stage="attest"} 7.6\n'
        'stage_seconds_count{stage="attest"} 3\n'
    )
    with pytest.raises(InvalidInput, match="metric-repeated"):
        registry.gauge("open", "Again.")


def test_threads_lose_no_count_and_labels_are_bounded() -> None:
    registry = Registry()
    counter = registry.counter("x_total", "X.", ["n"])

    def count() -> None:
        for number in range(2 * MAX_SERIES):
            counter.add(str(number))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value("5") == 4
    assert counter.value("other") == 4 * MAX_SERIES
