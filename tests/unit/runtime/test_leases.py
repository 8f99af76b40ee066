"""Keys are used while their lease runs, and fetched once however many want them."""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from cloister.base.errors import CloisterError, Refused, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import LEASE_REQUESTS
from cloister.base.secret import SecretBytes
from cloister.runtime.leases import NEGATIVE_S, LeaseTable
from cloister.runtime.stages import Timings
from cloister.testing.clock import FakeClock
from cloister.wire.calls import LogHead
from cloister.wire.provisioning import Release, ReleaseRequest

REQUEST = ReleaseRequest(b"u" * 32, ModelId(b"o" * 32, "m"), "request-key", b"k" * 32)
ROTATED = replace(REQUEST, key_id=b"r" * 32)
RELEASE = Release(
    manifest_digest=b"m" * 32,
    version=1,
    model_key=SecretBytes(b"K" * 32),
    key=SecretBytes(b"R" * 32),
    user_key=b"U" * 32,
    lease_s=60,
    lease_requests=LEASE_REQUESTS,
    owner_policy=b"o" * 32,
    user_policy=b"u" * 32,
    co_tenancy=False,
    head=LogHead(1, b"h" * 32, 0),
)


class AtOnce(Executor):
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        fn(*args, **kwargs)
        return Future()


class KeyService:
    def __init__(self) -> None:
        self.asked = 0
        self.answer: Release | CloisterError = RELEASE

    def __call__(self, request: ReleaseRequest, timings: Timings) -> Release:
        del request, timings
        self.asked += 1
        if isinstance(self.answer, CloisterError):
            raise self.answer
        return self.answer


def table(executor: Executor | None = None) -> tuple[LeaseTable, KeyService, FakeClock]:
    clock, keyservice = FakeClock(), KeyService()
    return LeaseTable(keyservice, executor or AtOnce(), clock), keyservice, clock


def test_a_lease_serves_until_it_ends() -> None:
    leases, keyservice, clock = table()
    assert leases.find(REQUEST) is None
    leases.obtain(REQUEST).result(0)
    lease = leases.find(REQUEST)
    assert lease is not None
    leases.count(lease)
    keyservice.answer = Unavailable("keyservice-unavailable", "away")
    clock.advance(59.9)
    assert leases.find(REQUEST) is lease, "while the KeyService is away the lease is used to its end"
    clock.advance(0.1)
    assert leases.find(REQUEST) is None
    with pytest.raises(Unavailable, match="lease-ended"):
        leases.count(lease)  # a request that waited too long for its slot


def test_it_is_renewed_in_the_background_at_half_its_life_only_while_in_use() -> None:
    leases, keyservice, clock = table()
    leases.obtain(REQUEST).result(0)
    clock.advance(31)
    assert keyservice.asked == 1
    first = leases.find(REQUEST)
    assert keyservice.asked == 2
    second = leases.find(REQUEST)
    assert second is not first
    assert keyservice.asked == 2
    clock.advance(61)
    leases.sweep()
    assert len(leases) == 0, "an idle lease is not renewed, and its keys do not stay"


def test_a_refused_renewal_ends_the_lease_at_once() -> None:
    leases, keyservice, clock = table()
    leases.obtain(REQUEST).result(0)
    clock.advance(31)
    keyservice.answer = Refused("release-refused", "revoked")
    lease = leases.find(REQUEST)
    assert lease is not None
    assert leases.find(REQUEST) is None
    with pytest.raises(Unavailable, match="lease-ended"):
        leases.count(lease)


def test_a_renewal_that_fails_refuses_nobody_while_the_lease_runs() -> None:
    leases, keyservice, clock = table()
    leases.obtain(REQUEST).result(0)
    clock.advance(31)
    keyservice.answer = Unavailable("keyservice-unavailable", "away")
    assert leases.find(REQUEST) is not None
    assert keyservice.asked == 2
    assert leases.refused_lately(REQUEST) is None
    assert leases.find(REQUEST) is not None
    clock.advance(28.5)
    assert leases.find(REQUEST) is not None  # renewing failed again, half a second before the end
    clock.advance(0.5)
    assert leases.refused_lately(REQUEST) is not None


def test_a_refusal_is_believed_for_a_second() -> None:
    leases, keyservice, clock = table()
    keyservice.answer = Refused("release-refused", "no grant")
    for _ in range(5):
        with pytest.raises(Refused):
            leases.obtain(REQUEST).result(0)
    assert keyservice.asked == 1
    assert leases.refused_lately(REQUEST) is not None
    clock.advance(NEGATIVE_S)
    keyservice.answer = RELEASE
    leases.obtain(REQUEST).result(0)
    assert leases.find(REQUEST) is not None


def test_a_frozen_clock_is_bounded_by_the_count() -> None:
    leases, keyservice, _ = table()
    keyservice.answer = replace(RELEASE, lease_requests=LEASE_REQUESTS)
    leases.obtain(REQUEST).result(0)
    lease = leases.find(REQUEST)
    assert lease is not None
    leases._accounts[REQUEST.user, REQUEST.model].used = LEASE_REQUESTS - 1
    leases.count(lease)
    with pytest.raises(Unavailable, match="lease-ended"):
        leases.count(lease)
    assert leases.find(REQUEST) is None
    leases.obtain(REQUEST).result(0)
    assert keyservice.asked == 2


def test_a_quota_counts_over_all_keys_and_renewals_of_a_pair() -> None:
    leases, keyservice, clock = table()
    keyservice.answer = replace(RELEASE, lease_requests=3)
    for request in (REQUEST, ROTATED):
        leases.obtain(request).result(0)
    one, two = leases.find(REQUEST), leases.find(ROTATED)
    assert one is not None
    assert two is not None
    for lease in (one, two, one):
        leases.count(lease)
    clock.advance(31)
    leases.find(REQUEST)
    renewed = leases.find(REQUEST)
    assert renewed is not None
    with pytest.raises(Unavailable, match="quota-exhausted") as caught:
        leases.count(renewed)
    assert caught.value.retry_after == pytest.approx(29)
    leases.forget()
    leases.obtain(REQUEST).result(0)
    again = leases.find(REQUEST)
    assert again is not None
    with pytest.raises(Unavailable, match="quota-exhausted"):
        leases.count(again)  # forgetting does not reset it
    clock.advance(30)
    leases.count(again)


def test_many_threads_ask_once() -> None:
    gate = threading.Event()
    leases, keyservice, _ = table(ThreadPoolExecutor(4))
    before = keyservice.__call__

    def slow(request: ReleaseRequest, timings: Timings) -> Release:
        gate.wait(10)
        return before(request, timings)

    leases._fetch = slow
    futures = [leases.obtain(REQUEST) for _ in range(50)]
    gate.set()
    for future in futures:
        future.result(10)
    assert keyservice.asked == 1
    leases._executor.shutdown()


def test_what_arrives_after_forgetting_is_forgotten_too() -> None:
    gate, leases = threading.Event(), table(ThreadPoolExecutor(1))[0]

    def slow(request: ReleaseRequest, timings: Timings) -> Release:
        gate.wait(10)
        return RELEASE

    leases._fetch = slow
    future = leases.obtain(REQUEST)
    leases.forget()
    gate.set()
    future.result(10)
    assert leases.find(REQUEST) is None
    leases._executor.shutdown()


def test_the_table_is_bounded() -> None:
    clock, keyservice = FakeClock(), KeyService()
    leases = LeaseTable(keyservice, AtOnce(), clock, capacity=3)
    for index in range(10):
        leases.obtain(replace(REQUEST, user=bytes([index]) * 32)).result(0)
    assert len(leases) == 3
