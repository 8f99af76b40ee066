"""Released keys, and until when they may be used (S5; spec/protocol.md, clause 7.6).

A lease ends by the monotonic clock or by the number of requests, whichever comes first: the host owns the clock. While
in use it is renewed in the background at half its life, so that a renewal never stalls a request; a refused renewal
ends it at once. However many requests want the same keys, the KeyService is asked once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Final

from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import LEASE_REQUESTS
from cloister.crypto.hpke import HpkePrivateKey
from cloister.runtime.stages import Timings
from cloister.wire.provisioning import Release, ReleaseRequest
from cloister.wire.statements import SERVICE_KEY

NEGATIVE_S: Final = 1.0  # a refusal is believed for so long: a fresh grant works at once, a flood asks once a second
RENEW_RETRY_S: Final = 1.0  # between two attempts to renew while the KeyService is away
MAX_LEASES: Final = 4096  # pairs of user and model, and key rotation doubles some
MAX_FETCHES: Final = 64  # under way at once; strangers can name any user and model


class Lease:
    """The keys of one (user, model, mode, key id), for a while.

    :param release: what the KeyService gave.
    :param ends: monotonic time.
    """

    __slots__ = ("ends", "release", "renew_at", "request", "revoked", "said", "service_key")

    def __init__(self, request: ReleaseRequest, release: Release, now: float) -> None:
        self.request = request
        self.release = release
        self.ends = now + release.lease_s
        self.renew_at = now + release.lease_s / 2
        self.revoked = False
        self.said = b""  # what responses say of the release, encoded; filled in by whoever answers first
        # Made once a lease, not once a request.
        self.service_key = HpkePrivateKey.from_secret(release.key) if request.mode == SERVICE_KEY else None


class _Account:
    """Requests of one (user, model) within a lease's time, over all its keys: what a quota counts."""

    __slots__ = ("used", "window_ends")

    def __init__(self, window_ends: float) -> None:
        self.used = 0
        self.window_ends = window_ends


_Pair = tuple[bytes, ModelId]


class LeaseTable:
    """Leases in use. Safe for many threads.

    :param fetch: asks the KeyService; blocks.
    :param executor: where ``fetch`` runs.
    """

    def __init__(
        self,
        fetch: Callable[[ReleaseRequest, Timings], Release],
        executor: Executor,
        clock: Clock,
        *,
        capacity: int = MAX_LEASES,
    ) -> None:
        self._fetch = fetch
        self._executor = executor
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()
        self._leases: OrderedDict[ReleaseRequest, Lease] = OrderedDict()
        self._accounts: OrderedDict[_Pair, _Account] = OrderedDict()
        self._refused: OrderedDict[ReleaseRequest, tuple[float, CloisterError]] = OrderedDict()
        self._fetching: dict[ReleaseRequest, Future[Timings]] = {}
        self._generation = 0

    def __len__(self) -> int:
        return len(self._leases)

    def find(self, request: ReleaseRequest) -> Lease | None:
        """A running lease, if there is one; starts its renewal when that is due. Counts nothing."""
        with self._lock:
            lease = self._leases.get(request)
            if lease is None:
                return None
            now = self._clock.monotonic()
            limit = lease.release.lease_requests
            used = self._account(request, lease.release, now).used
            if now >= lease.ends or (limit >= LEASE_REQUESTS and used >= limit):
                del self._leases[request]
                return None
            future: Future[Timings] | None = None
            due = (now >= lease.renew_at or 2 * used >= limit >= LEASE_REQUESTS) and request not in self._fetching
            if due:
                lease.renew_at = now + RENEW_RETRY_S
                future = self._begin(request)
        if future is not None:
            with suppress(Unavailable):  # shutting down: the lease still runs
                self._submit(request, future)
        return lease

    def count(self, lease: Lease) -> None:
        """Count one authenticated request, and check that the lease still runs: the last step before computing.

        :raises Unavailable: ``lease-ended``; ``quota-exhausted`` when the grant's quota for this time is used up.
        """
        with self._lock:
            now = self._clock.monotonic()
            account = self._account(lease.request, lease.release, now)
            exhausted = account.used >= lease.release.lease_requests
            if exhausted and lease.release.lease_requests < LEASE_REQUESTS:
                wait = max(0.1, account.window_ends - now)
                raise Unavailable("quota-exhausted", "the quota of this grant is used up for now", retry_after=wait)
            if exhausted or now >= lease.ends or lease.revoked:
                raise Unavailable("lease-ended", "the lease of these keys has ended", retry_after=0.0)
            account.used += 1

    def obtain(self, request: ReleaseRequest) -> Future[Timings]:
        """Done when a lease is there to :meth:`find`, with what that took; fails as the KeyService did. Shared: not to
        be cancelled.

        :raises Unavailable: ``runtime-overloaded`` when too many different keys are being fetched.
        """
        with self._lock:
            under_way = self._fetching.get(request)
            if under_way is not None:
                return under_way
            refused = self._refused.get(request)
            if refused is not None:
                until, error = refused
                if self._clock.monotonic() < until:
                    failed: Future[Timings] = Future()
                    failed.set_exception(error)
                    return failed
                del self._refused[request]
            if len(self._fetching) >= MAX_FETCHES:
                raise Unavailable("runtime-overloaded", "too many keys are being fetched", retry_after=1.0)
            future = self._begin(request)
        return self._submit(request, future)

    def refused_lately(self, request: ReleaseRequest) -> CloisterError | None:
        """The refusal that is still believed, if any; not that of a renewal, while the lease itself may be used."""
        refused = self._refused.get(request)
        now = self._clock.monotonic()
        if refused is None or now >= refused[0]:
            return None
        lease = self._leases.get(request)
        return refused[1] if lease is None or now >= lease.ends else None

    def drop(self, request: ReleaseRequest) -> None:
        """Forget one lease."""
        with self._lock:
            self._leases.pop(request, None)

    def forget(self) -> None:
        """Forget everything, and whatever is still on its way. Quotas stay: forgetting must not reset them."""
        with self._lock:
            self._generation += 1
            self._leases.clear()
            self._refused.clear()
            self._fetching = {}

    def sweep(self) -> None:
        """Drop what has ended; called about once a second, so that keys do not outlive their lease in memory."""
        with self._lock:
            now = self._clock.monotonic()
            for request in [r for r, lease in self._leases.items() if now >= lease.ends]:
                del self._leases[request]
            for request in [r for r, (until, _) in self._refused.items() if now >= until]:
                del self._refused[request]
            for pair in [p for p, account in self._accounts.items() if now >= account.window_ends]:
                del self._accounts[pair]

    # --- all below ---

    def _account(self, request: ReleaseRequest, release: Release, now: float) -> _Account:
        pair: _Pair = (request.user, request.model)
        account = self._accounts.get(pair)
        if account is None or now >= account.window_ends:
            account = self._accounts[pair] = _Account(now + release.lease_s)
        return account

    def _begin(self, request: ReleaseRequest) -> Future[Timings]:
        """With the lock held: from here on, others wait for this fetch."""
        future: Future[Timings] = Future()
        self._fetching[request] = future
        return future

    def _submit(self, request: ReleaseRequest, future: Future[Timings]) -> Future[Timings]:
        """Without the lock."""
        try:
            self._executor.submit(self._run, request, future, self._generation)
        except RuntimeError as error:  # the executor is shut down
            draining = Unavailable("runtime-draining", "this instance is shutting down", retry_after=0.0)
            self._finish(request, future)
            future.set_exception(draining)
            raise draining from error
        return future

    def _run(self, request: ReleaseRequest, future: Future[Timings], generation: int) -> None:
        started = self._clock.monotonic()  # before the KeyService decided: a lease never outlives its decision
        timings = Timings()
        try:
            lease = Lease(request, self._fetch(request, timings), started)
        except CloisterError as error:
            self._failed(request, error, generation)
            self._finish(request, future)
            future.set_exception(error)
        except BaseException as error:
            self._finish(request, future)
            future.set_exception(error)
            raise
        else:
            with self._lock:
                if generation == self._generation:
                    self._store(request, lease)
            self._finish(request, future)
            future.set_result(timings)

    def _finish(self, request: ReleaseRequest, future: Future[Timings]) -> None:
        with self._lock:
            if self._fetching.get(request) is future:
                del self._fetching[request]

    def _store(self, request: ReleaseRequest, lease: Lease) -> None:
        self._leases[request] = lease
        self._leases.move_to_end(request)
        account = self._accounts.get((request.user, request.model))
        if account is not None and lease.release.lease_requests >= LEASE_REQUESTS:
            account.used = 0  # no quota: the count only bounds what one decision of the KeyService allows
            account.window_ends = lease.ends
        while len(self._leases) > self._capacity:
            self._leases.popitem(last=False)

    def _failed(self, request: ReleaseRequest, error: CloisterError, generation: int) -> None:
        with self._lock:
            if generation != self._generation:
                return
            if not isinstance(error, Unavailable):
                lease = self._leases.pop(request, None)
                if lease is not None:
                    lease.revoked = True  # no need to wait for the lease to end
            error.__traceback__ = None  # its frames hold keys of others
            self._refused[request] = (self._clock.monotonic() + NEGATIVE_S, error)
            while len(self._refused) > self._capacity:
                self._refused.popitem(last=False)
