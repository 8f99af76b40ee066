"""The lease table as a state machine: no key outlives its decision, a refusal, or being forgotten; quotas hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloister.base.errors import CloisterError, Refused, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import LEASE_REQUESTS
from cloister.base.secret import SecretBytes
from cloister.runtime.leases import NEGATIVE_S, Lease, LeaseTable
from cloister.runtime.stages import Timings
from cloister.testing.clock import FakeClock
from cloister.wire.calls import LogHead
from cloister.wire.provisioning import Release, ReleaseRequest

LEASE_S = 60
QUOTA = 3
OPEN = ReleaseRequest(b"u" * 32, ModelId(b"o" * 32, "open"), "request-key", b"k" * 32)
LIMITED = replace(OPEN, model=ModelId(b"o" * 32, "limited"))
REQUESTS = (OPEN, LIMITED, replace(LIMITED, key_id=b"r" * 32))  # the last two share a quota
RELEASE = Release(
    manifest_digest=b"m" * 32,
    version=1,
    model_key=SecretBytes(b"K" * 32),
    key=SecretBytes(b"R" * 32),
    user_key=b"U" * 32,
    lease_s=LEASE_S,
    lease_requests=LEASE_REQUESTS,
    owner_policy=b"o" * 32,
    user_policy=b"u" * 32,
    co_tenancy=False,
    head=LogHead(1, b"h" * 32, 0),
)
ANSWERS: tuple[CloisterError | None, ...] = (None, Refused("refused", "no"), Unavailable("away", "away"))


class Later(Executor):
    """Runs what was submitted when told."""

    def __init__(self) -> None:
        self.tasks: deque[Callable[[], None]] = deque()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.tasks.append(lambda: fn(*args, **kwargs))
        return Future()


class Leases(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.later = Later()
        self.table = LeaseTable(self._fetch, self.later, self.clock)
        self.answers: dict[ReleaseRequest, CloisterError | None] = dict.fromkeys(REQUESTS)
        self.decided: dict[ReleaseRequest, float] = {}  # when the KeyService last said yes
        self.revoked: dict[ReleaseRequest, bool] = {}  # its last word, told to the table since the last forgetting
        self.seen: list[Lease] = []
        self.counted: list[float] = []  # authenticated requests of the limited model
        self.waiting: list[Future[Timings]] = []
        self.asked: dict[ReleaseRequest, int] = dict.fromkeys(REQUESTS, 0)

    def _fetch(self, request: ReleaseRequest, timings: Timings) -> Release:
        del timings
        answer = self.answers[request]
        self.asked[request] += 1
        self.revoked[request] = isinstance(answer, Refused)
        if answer is not None:
            raise answer
        self.decided[request] = self.clock.monotonic()
        return replace(RELEASE, lease_requests=LEASE_REQUESTS if request == OPEN else QUOTA)

    @rule(request=st.sampled_from(REQUESTS))
    def find(self, request: ReleaseRequest) -> None:
        lease = self.table.find(request)
        if lease is None:
            return
        self.seen.append(lease)
        assert lease.request == request
        assert self.clock.monotonic() < lease.ends <= self.decided[request] + LEASE_S
        assert not self.revoked[request]

    @rule(request=st.sampled_from(REQUESTS))
    def obtain(self, request: ReleaseRequest) -> None:
        refused = self.table.refused_lately(request)
        before = len(self.later.tasks)
        future = self.table.obtain(request)
        self.waiting.append(future)
        if refused is not None:
            assert len(self.later.tasks) == before, "a refusal is believed for a while"
        elif not future.done():
            assert self.table.obtain(request) is future, "the KeyService is asked once"

    @rule(request=st.sampled_from(REQUESTS), answer=st.sampled_from(ANSWERS))
    def change_mind(self, request: ReleaseRequest, answer: CloisterError | None) -> None:
        self.answers[request] = answer

    @rule(count=st.integers(1, 4))
    def work(self, count: int) -> None:
        for _ in range(min(count, len(self.later.tasks))):
            self.later.tasks.popleft()()

    @rule(number=st.integers(0, 1000))
    def count(self, number: int) -> None:
        """A request that waited a while for its slot uses the lease it was given then."""
        if not self.seen:
            return
        lease = self.seen[number % len(self.seen)]
        now = self.clock.monotonic()
        try:
            self.table.count(lease)
        except Unavailable as error:
            assert error.code in ("lease-ended", "quota-exhausted")  # noqa: PT017  # either, or none
            return
        assert now < lease.ends
        assert not lease.revoked
        if lease.request.model == LIMITED.model:
            self.counted.append(now)

    @rule(seconds=st.sampled_from((0.1, NEGATIVE_S, 10.0, LEASE_S / 2, LEASE_S)))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def sweep(self) -> None:
        self.table.sweep()
        assert len(self.table) <= len(REQUESTS)

    @rule(request=st.sampled_from(REQUESTS))
    def drop(self, request: ReleaseRequest) -> None:
        self.table.drop(request)
        assert self.table.find(request) is None

    @rule()
    def forget(self) -> None:
        """Also what is on its way: it must not bring keys back."""
        self.table.forget()
        while self.later.tasks:
            self.later.tasks.popleft()()
        assert len(self.table) == 0
        assert all(self.table.find(request) is None for request in REQUESTS)

    @invariant()
    def the_quota_holds_whatever_keys_are_used_and_whatever_is_forgotten(self) -> None:
        """Windows follow each other: at most two touch any stretch as long as one."""
        for start in self.counted:
            assert sum(start <= at < start + LEASE_S for at in self.counted) <= 2 * QUOTA

    def teardown(self) -> None:
        while self.later.tasks:
            self.later.tasks.popleft()()
        assert all(future.done() for future in self.waiting), "nobody waits for ever"


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
