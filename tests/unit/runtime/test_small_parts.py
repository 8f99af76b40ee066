"""Scheduler, replay memory, stages, options."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cloister.adapters.metrics import Registry
from cloister.base.errors import InvalidInput, Unavailable
from cloister.runtime.isolation import Isolation
from cloister.runtime.options import RuntimeOptions
from cloister.runtime.replay import ReplayCache, check_fresh
from cloister.runtime.scheduler import Job, Scheduler
from cloister.runtime.stages import Path, Stage, StageMetrics, Timings
from cloister.testing.clock import FakeClock


class Log:
    def __init__(self) -> None:
        self.ran: list[str] = []
        self.abandoned: list[tuple[str, str]] = []
        self.delivered = threading.Semaphore(0)

    def job(self, user: bytes, name: str, deadline: float = 1e9, gate: threading.Event | None = None) -> Job:
        def run() -> Any:
            if gate is not None:
                gate.wait(10)
            self.ran.append(name)
            return self.delivered.release

        def abandon(error: BaseException) -> None:
            assert isinstance(error, Unavailable)
            self.abandoned.append((name, error.code))
            self.delivered.release()

        return Job(user, run, abandon, deadline)

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self.delivered.acquire(timeout=10)


def test_users_take_turns_and_the_queue_is_bounded() -> None:
    log, gate = Log(), threading.Event()
    scheduler = Scheduler(FakeClock(), slots=1, queue_limit=4)
    scheduler.submit(log.job(b"a", "gate", gate=gate))
    for name in ("a1", "a2", "a3"):
        scheduler.submit(log.job(b"a", name))
    scheduler.submit(log.job(b"b", "b1"))
    with pytest.raises(Unavailable, match="runtime-overloaded") as caught:
        scheduler.submit(log.job(b"c", "c1"))
    assert caught.value.retry_after is not None
    gate.set()
    log.wait(5)
    scheduler.stop()
    assert log.ran in (["gate", "a1", "b1", "a2", "a3"], ["gate", "b1", "a1", "a2", "a3"])


def test_deadlines_and_departures_are_kept() -> None:
    log, gate, clock = Log(), threading.Event(), FakeClock()
    scheduler = Scheduler(clock, slots=1, queue_limit=4)
    scheduler.submit(log.job(b"a", "gate", gate=gate))
    gone = log.job(b"b", "gone")
    scheduler.submit(log.job(b"a", "late", deadline=clock.monotonic() + 1))
    scheduler.submit(gone)
    gone.cancelled = True
    clock.advance(2)
    gate.set()
    log.wait(3)
    scheduler.stop()
    assert log.ran == ["gate"]
    assert dict(log.abandoned) == {"late": "deadline-exceeded", "gone": "deadline-exceeded"}
    assert scheduler.idle


def test_stopping_abandons_what_waits_and_finishes_what_runs() -> None:
    log, gate = Log(), threading.Event()
    scheduler = Scheduler(FakeClock(), slots=1, queue_limit=4)
    scheduler.submit(log.job(b"a", "running", gate=gate))
    while scheduler.queued:
        threading.Event().wait(0.001)
    scheduler.submit(log.job(b"a", "waiting"))
    stopper = threading.Thread(target=scheduler.stop)
    stopper.start()
    log.wait(1)
    gate.set()
    stopper.join(10)
    assert log.ran == ["running"]
    assert log.abandoned == [("waiting", "runtime-draining")]
    with pytest.raises(Unavailable, match="runtime-draining"):
        scheduler.submit(log.job(b"a", "after"))


def test_a_request_is_answered_once_while_it_counts_as_fresh() -> None:
    clock = FakeClock()
    replay = ReplayCache(clock, capacity=2)
    replay.admit(b"1" * 32)
    for _ in range(3):
        with pytest.raises(InvalidInput, match="request-replayed"):
            replay.admit(b"1" * 32)
        clock.advance(100)
    replay.admit(b"2" * 32)
    replay.admit(b"3" * 32)
    with pytest.raises(Unavailable, match="replay-memory-full"):
        replay.admit(b"4" * 32)
    clock.advance(1000)
    replay.admit(b"1" * 32)
    assert len(replay) == 1


@pytest.mark.parametrize("off", [-121, 121, 10**9])
def test_a_stale_request_is_refused(off: int) -> None:
    check_fresh(1000, 1120)
    check_fresh(1120, 1000)
    with pytest.raises(InvalidInput, match="request-stale"):
        check_fresh(10**9 + off, 10**9)


def test_stages_tell_the_path_and_are_rounded_for_the_user() -> None:
    timings = Timings()
    timings.add(Stage.INFERENCE, 0.0123456)
    assert timings.path is Path.HOT
    assert timings.server_timing() == 'path;desc="hot", inference;dur=12'
    timings.add(Stage.KEY_FETCH, 0.001)
    assert timings.path is Path.WARM
    timings.add(Stage.ATTEST, 1.0)
    assert timings.path is Path.COLD
    registry = Registry()
    metrics = StageMetrics(registry)
    metrics.observe(timings)
    metrics.count("cold", "ok")
    for _ in range(3):
        metrics.loaded("model", 100)
    text = registry.exposition().decode()
    assert 'cloister_stage_seconds_count{stage="attest",path="cold"} 1' in text
    assert 'cloister_requests_total{path="cold",outcome="ok"} 1' in text
    assert metrics.churn_bytes == 200


def test_every_option_changes_the_measured_configuration() -> None:
    base = RuntimeOptions(bundle_root=b"r" * 32)
    others = [
        RuntimeOptions(bundle_root=b"s" * 32),
        RuntimeOptions(bundle_root=b"r" * 32, bundle_version=2),
        RuntimeOptions(bundle_root=b"r" * 32, keyservice=b"k" * 32),
        RuntimeOptions(bundle_root=b"r" * 32, isolation=Isolation.PER_USER),
        RuntimeOptions(bundle_root=b"r" * 32, concurrency=5),
        RuntimeOptions(bundle_root=b"r" * 32, memory_mb=1),
        RuntimeOptions(bundle_root=b"r" * 32, co_tenancy=False),
        RuntimeOptions(bundle_root=b"r" * 32, threads=2),
        RuntimeOptions(bundle_root=b"r" * 32, queue=1),
        RuntimeOptions(bundle_root=b"r" * 32, deadline_s=1),
        RuntimeOptions(bundle_root=b"r" * 32, engines=("onnx",)),
    ]
    digests = {options.measured().digest for options in (base, *others)}
    assert len(digests) == len(others) + 1
    assert len(base.measured().values) == len(others) + 1, "an option that no test changes"


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"memory_mb": 0},
        {"queue": -1},
        {"bundle_root": b"short"},
        {"isolation": Isolation.STRICT, "concurrency": 2},
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="option-range"):
        RuntimeOptions(**{"bundle_root": b"r" * 32, **options})
