"""A head is shown to witnesses only after a majority of replicas holds it (spec/protocol.md, 13.18): an ``Anchor``.

Otherwise a confirmed entry could exist on one dead disk only, and no other replica would ever be confirmed again. The
witnesses decide which history goes on, as without replicas; the majority decides what they are asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import final

from cloister.base.clock import Clock
from cloister.base.errors import Unavailable
from cloister.base.limits import CONFIRM_PATIENCE_S, CONFIRM_RETRY_S, FOLLOWER_SILENCE_S
from cloister.keyservice.anchors.port import AnchorState, HeadSource
from cloister.keyservice.anchors.witnesses import UNCONFIRMED, WitnessAnchor
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.proposals import no_leader
from cloister.log.witness import agreed_time
from cloister.wire import cbor
from cloister.wire.calls import LogHead


@dataclass(slots=True)
class _Term:
    """One time that this replica leads; of another one nothing is carried over.

    :param name: 16 random bytes. :param began: monotonic.
    :param held: replica to entries that it holds; :param heard: and when it said so.
    :param shown: to the witnesses: what a majority held once is in this log, whatever becomes of their disks.
    :param inner: asks the witnesses, once a majority holds what was there at the start.
    """

    name: bytes
    ledger: Ledger
    size: int
    began: float
    shown: int = 0
    held: dict[bytes, int] = field(default_factory=dict)
    heard: dict[bytes, float] = field(default_factory=dict)
    inner: WitnessAnchor | None = None


@final
class MajorityAnchor:
    """See the module. Follows, which confirms nothing, until :meth:`lead`.

    Its lock is taken under that of the anchor inside, which asks for heads, and before the ledger's; so nothing of the
    anchor inside that takes a lock is called under it.

    :param replicas: how many there are by the measured configuration, this one included.
    :param threshold: of the witnesses, for the time that a head proves.
    :param witnesses: makes the anchor that asks them, a new one for each term.
    """

    protects = True
    tentative = True

    def __init__(
        self,
        replicas: int,
        *,
        threshold: int,
        witnesses: Callable[[], WitnessAnchor],
        clock: Clock,
        patience_s: float = CONFIRM_PATIENCE_S,
    ) -> None:
        self.majority = replicas // 2 + 1
        self._threshold = threshold
        self._witnesses = witnesses
        self._clock = clock
        self._patience = patience_s
        self._changed = threading.Condition()
        self._term: _Term | None = None
        self._seen: LogHead | None = None
        self._time = 0.0
        self._closed = False

    # --- as a replica ---

    def lead(self, name: bytes, ledger: Ledger) -> None:
        """Begin a term: count who holds what, then ask the witnesses."""
        self.follow()
        term = _Term(name, ledger, ledger.position()[0], self._clock.monotonic())
        with self._changed:
            if not self._closed:
                self._term = term
            self._changed.notify_all()

    def follow(self) -> None:
        """End the term; whoever waits is told."""
        inner = self._end()
        if inner is not None:  # it waits for calls that are under way
            threading.Thread(target=inner.close, name="term-ends", daemon=True).start()

    def holds(self, name: bytes, replica: bytes, size: int) -> None:
        """In the term of this name another replica holds our first ``size`` entries, durably."""
        begun: WitnessAnchor | None = None
        with self._changed:
            term = self._term
            if term is None or term.name != name:
                return
            term.held[replica] = size
            term.heard[replica] = self._clock.monotonic()
            if term.inner is None and self._held(term) >= term.size:
                begun = term.inner = self._witnesses()
            self._changed.notify_all()
        if begun is not None:
            begun.start(_Held(self, term))

    def saw(self, head: LogHead) -> None:
        """A head whose co-signatures were verified; the newest one is kept."""
        with self._changed:
            if self._seen is None or head.size >= self._seen.size:
                self._seen = head
            self._time = max(self._time, float(agreed_time(head.cosignatures, self._threshold)))

    def seen(self) -> LogHead | None:
        """The newest co-signed head known here, of this term or from others."""
        term, known = self._term, self._seen  # under the ledger's lock: takes none
        own = term.inner.confirmed() if term and term.inner else None
        return own if own is not None and (known is None or own.size >= known.size) else known

    def superseded(self) -> bool:
        """Whether the witnesses know another history than the one of this term."""
        term = self._term
        return term is not None and term.inner is not None and term.inner.superseded

    def heard(self) -> int:
        """How many replicas said something lately, this one included; 0 while it does not lead."""
        with self._changed:
            return self._alive(self._term) if self._term else 0

    def alone(self) -> bool:
        """Whether it has led for a while without a majority."""
        with self._changed:
            term = self._term
            if term is None:
                return False
            lately = self._clock.monotonic() - term.began < FOLLOWER_SILENCE_S
            return not lately and self._alive(term) < self.majority

    # --- the port ---

    def start(self, source: HeadSource) -> None:
        """Nothing yet: it follows."""

    def require(self) -> None:
        """See the port."""
        with self._changed:
            term = self._leading()
            inner = self._wait(term, lambda: term.inner is not None and self._alive(term) >= self.majority)
        inner.require()

    def confirm(self, size: int) -> LogHead | None:
        """See the port."""
        with self._changed:
            term = self._leading()
            inner = self._wait(term, lambda: term.inner is not None and self._held(term) >= size)
        return inner.confirm(size)

    def confirmed(self) -> LogHead | None:
        """See the port: in this term, for an earlier one may be behind what others were shown."""
        term = self._term
        return term.inner.confirmed() if term and term.inner else None

    def proof(self) -> bytes:
        """The newest co-signed head."""
        head = self.seen()
        return b"" if head is None else cbor.encode(head.fields())

    def time(self) -> float:
        """See the port."""
        term = self._term
        inner = term.inner if term else None
        return max(self._time, inner.time() if inner else 0.0)

    def tick(self) -> None:
        """See the port."""
        term = self._term
        if term is not None and term.inner is not None:
            term.inner.tick()

    def state(self) -> AnchorState:
        """See the port."""
        with self._changed:
            term, seen = self._term, self._seen
            enough = term is not None and self._alive(term) >= self.majority
        if term is None or term.inner is None:
            return AnchorState(False, None, seen.size if seen else 0, {})
        found = term.inner.state()
        return replace(found, open=found.open and enough)

    def close(self) -> None:
        """See the port."""
        self._closed = True
        inner = self._end()
        if inner is not None:
            inner.close()

    # --- under the condition ---

    def _leading(self) -> _Term:
        if self._closed:
            raise Unavailable("keyservice-closing", "the KeyService is shutting down", retry_after=5.0)
        if self._term is None:
            raise no_leader()
        return self._term

    def _wait(self, term: _Term, good: Callable[[], bool]) -> WitnessAnchor:
        """Until it is good within this term; the anchor that asks the witnesses."""
        self._changed.wait_for(lambda: self._term is not term or good(), self._patience)
        if self._term is not term:
            self._leading()
            raise no_leader()
        if not good() or term.inner is None:
            raise Unavailable(
                UNCONFIRMED,
                f"{self.majority} replicas of the KeyService do not hold its log yet: until then it releases and "
                "acknowledges nothing",
                retry_after=CONFIRM_RETRY_S,
            )
        return term.inner

    def _end(self) -> WitnessAnchor | None:
        with self._changed:
            term, self._term = self._term, None
            inner = term.inner if term else None
            if inner is not None:
                last = inner.confirmed()
                if last is not None and (self._seen is None or last.size >= self._seen.size):
                    self._seen = last
                self._time = max(self._time, inner.time())
            self._changed.notify_all()
            return inner

    def _held(self, term: _Term) -> int:
        """How many entries a majority holds, this replica included."""
        others = sorted(term.held.values(), reverse=True)
        if len(others) < self.majority - 1:
            return 0
        return min(term.ledger.position()[0], others[self.majority - 2])

    def _alive(self, term: _Term) -> int:
        least = self._clock.monotonic() - FOLLOWER_SILENCE_S
        return 1 + sum(when >= least for when in term.heard.values())

    def held_head(self, term: _Term) -> LogHead:
        """The newest head that a majority holds."""
        with self._changed:
            term.shown = size = max(term.shown, self._held(term))
        return term.ledger.head_at(size)


@final
class _Held:
    """``HeadSource`` of one term: what a majority holds."""

    def __init__(self, anchor: MajorityAnchor, term: _Term) -> None:
        self._anchor = anchor
        self._term = term

    def head(self) -> LogHead:
        """See the port."""
        return self._anchor.held_head(self._term)

    def consistency(self, first: int, second: int) -> tuple[bytes, ...]:
        """See the port."""
        return self._term.ledger.consistency(first, second)
