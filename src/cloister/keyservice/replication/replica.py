"""One of several replicas: it follows the one that leads, or leads (spec/protocol.md, 13.16 to 13.20).

No election is needed for safety: whoever leads tells nobody of an entry before witnesses confirmed it, and they confirm
one history. What is decided here is who tries, and what a replica may drop: only what a co-signed head contradicts.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, final

from cloister.adapters.logs import EventLog
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.base.limits import (
    LEAD_DEFERRALS,
    LEADER_JITTER_S,
    LEADER_REST_S,
    LEADER_SILENCE_S,
    MAX_REPLICA_REPLY,
    REPLICA_WAIT_S,
)
from cloister.crypto.digest import same
from cloister.keyservice.anchors.majority import MajorityAnchor
from cloister.keyservice.anchors.probe import Probe
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.proposals import newer
from cloister.keyservice.root import Root
from cloister.keyservice.storage.port import SealedEntry
from cloister.log.entry import LEVEL
from cloister.log.merkle import verify_inclusion
from cloister.log.replication import (
    ENTRY,
    HELLO,
    LINK,
    PULL,
    TERM_LENGTH,
    Place,
    Pull,
    Rows,
    Standing,
    at_fields,
    open_answer,
    open_request,
    seal_answer,
    seal_request,
)
from cloister.log.witness import valid_cosignatures
from cloister.wire import cbor
from cloister.wire.calls import LogHead
from cloister.wire.cbor import Fields

LEADER: Final = "leader"
FOLLOWER: Final = "follower"
SEARCHING: Final = "searching"
OUTGROWN: Final = "outgrown"
_NO_TERM: Final = bytes(TERM_LENGTH)
_PAUSE_S: Final = 0.25


class Peer(Protocol):
    """Port: another replica, or this one by another name. Real: ``keyservice.replication.peers.HttpPeer``."""

    @property
    def origin(self) -> str:
        """Where callers reach it."""

    def exchange(self, request: bytes) -> bytes:
        """:raises CloisterError: it does not answer, or refuses."""


@final
class Replica:
    """See the module. One thread calls :meth:`step`; any may call :meth:`handle`.

    :param identity: 16 bytes, kept with the store: a replica counts once, however often it starts.
    :param witnesses: keys of the configuration, of which ``threshold`` make a head confirmed.
    :param probe: asks the witnesses what they know.
    :param accepted: whether the trust bundle in use accepts this replica: else it does not lead (13.26.7).
    :param jitter: seconds, below one second's worth, that one waits longer than others before it takes over.
    """

    def __init__(
        self,
        ledger: Ledger,
        anchor: MajorityAnchor,
        *,
        identity: bytes,
        root: Root,
        replicas: int,
        witnesses: Sequence[bytes],
        threshold: int,
        peers: Sequence[Peer],
        probe: Callable[[], Probe],
        clock: Clock,
        events: EventLog,
        accepted: Callable[[], bool] = lambda: True,
        jitter: Callable[[], float] = lambda: LEADER_JITTER_S * secrets.randbelow(1000) / 1000,
    ) -> None:
        """:raises Tampered: the store's; ``cosignature-invalid``."""
        self.identity = identity
        self._ledger = ledger
        self._anchor = anchor
        self._root = root
        self._replicas = replicas
        self._witnesses = tuple(witnesses)
        self._threshold = threshold
        self._peers = tuple(peers)
        self._probe = probe
        self._clock = clock
        self._events = events
        self._accepted = accepted
        self._jitter = jitter
        self._term = b""
        self._leader: tuple[Peer, bytes] | None = None
        self._behind: int | None = None
        self._kept: LogHead | None = None
        self._beaten = False
        self._trouble = ""
        self._outgrown = False
        self._flowing = False
        self._rests_until = 0.0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._rest()
        ledger.follow()
        if kept := ledger.proof():
            self._learn(LogHead.read(cbor.decode(kept, limit=MAX_REPLICA_REPLY, what="the store's proof")))

    # --- how it stands ---

    @property
    def role(self) -> str:
        """``leader``, ``follower``, ``searching`` for one that leads, or ``outgrown``: a newer build is needed here."""
        if self._term:
            return LEADER
        if self._outgrown:
            return OUTGROWN
        return SEARCHING if self._leader is None else FOLLOWER

    @property
    def leader(self) -> str | None:
        """Where the one that leads answers; ``None`` when nobody is known to, or this one does."""
        found = self._leader
        return found[0].origin if found and not self._term else None

    @property
    def behind(self) -> int | None:
        """Entries that the one that leads has and this one lacks; ``None`` while nobody is followed."""
        return 0 if self._term else self._behind

    def standing(self) -> Standing:
        """What others are told."""
        return Standing(
            self.identity,
            self._term or _NO_TERM,
            self._able(),
            self._anchor.state().open,
            self._ledger.position()[0],
            self._anchor.seen(),
            LEVEL,
        )

    # --- what others ask ---

    def genuine(self, data: bytes) -> None:
        """Whether a request is of a replica at all: quickly, before anything waits for it; raises as :meth:`handle`."""
        open_request(self._root.replication_key, data)

    def handle(self, data: bytes) -> bytes:
        """One request of another replica; may be held back for a second.

        :raises Tampered: ``box-open``: it is of none. :raises InvalidInput: anything malformed.
        """
        fields = open_request(self._root.replication_key, data)
        kind = fields.text("kind", limit=16)
        answer: Mapping[str, object]
        if kind == PULL:
            answer = self._rows(Pull.read(fields)).fields()
        elif kind in (LINK, ENTRY):
            at = fields.integer("at")
            fields.done()
            answer = {"link": self._ledger.link(at)} if kind == LINK else self._place(at)
        elif kind == HELLO:
            fields.done()
            answer = {"standing": self.standing().fields()}
        else:
            raise InvalidInput("call-unknown", "replicas of this version do not ask that")
        return seal_answer(self._root.replication_key, data, answer)

    def _rows(self, pull: Pull) -> Rows:
        term = self._term
        good = bool(term) and pull.term == term and pull.replica != self.identity
        if not good or not self._ledger.holds(pull.size, pull.link):
            return Rows(self.standing(), same=False)
        self._anchor.holds(term, pull.replica, pull.size)
        self._ledger.wait_beyond(pull.size, pull.wait_ms / 1000)
        rows = self._ledger.sealed(pull.size)
        return Rows(self.standing(), same=True, rows=tuple((row.record, row.secret) for row in rows))

    def _place(self, at: int) -> Mapping[str, object]:
        """What a co-signed head says of this place; empty when none does."""
        head = self._anchor.seen()
        if head is None or at >= head.size or not self._continues(head):
            return {}
        return Place(head, self._ledger.leaf(at), self._ledger.inclusion(at, head.size)).fields()

    # --- what it does by itself ---

    def start(self) -> None:
        """Run, on a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="replica", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Lead and follow no more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(2 * REPLICA_WAIT_S)
        if self._term:
            self._step_down("keyservice-closing")

    def _run(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            try:
                self.step()
            except CloisterError as error:
                self._note(error)
                pause = _PAUSE_S
                continue
            except Exception as error:  # noqa: BLE001  # a fault of ours must not leave the KeyService without a leader
                self._events.event("internal-error", level="error", where="replica", error=type(error).__name__)
                pause = 1.0
                continue
            pause = 0.0 if self._flowing else _PAUSE_S

    def step(self, wait_s: float = REPLICA_WAIT_S) -> None:
        """Do what is next: lead on, follow on, or look for one that leads, and take over when nobody does.

        :param wait_s: how long one that leads may hold back its answer.
        :raises CloisterError: what went wrong; the next step tries again.
        """
        self._flowing = False
        if self._term:
            if self._anchor.superseded():
                self._beaten = True  # until one that is confirmed was followed to its end
                self._step_down("keyservice-superseded")
            elif why := "keyservice-unconfirmed" if self._anchor.alone() else self._ledger.trouble:
                self._step_down(why)  # its disk fails, or what it wrote may be what the others cannot take
                self._rests_until = self._clock.monotonic() + LEADER_REST_S  # they go first
            elif not self._accepted():
                self._step_down("measurement-not-allowed")
        elif self._leader is not None:
            self._follow(*self._leader, wait_s)
        else:
            self._search()

    def _follow(self, peer: Peer, term: bytes, wait_s: float) -> None:
        size, link = self._ledger.position()
        self._keep()
        if self._outgrown:
            return self._watch(peer, term)
        try:
            pull = Pull(self.identity, term, size, link, int(wait_s * 1000))
            rows = Rows.read(self._ask(peer, pull.fields()))
            if rows.standing.term != term:
                raise Unavailable("keyservice-no-leader", "the replica that was followed does not lead any more")
            self._heard = self._clock.monotonic()
            self._learn(rows.standing.head)
            if not rows.same:
                self._agree(peer, rows.standing)
            elif rows.rows:
                self._absorb([SealedEntry(*row) for row in rows.rows], rows.standing.level)
            elif size >= rows.standing.size and rows.standing.confirming:
                self._beaten = False
            self._behind = max(0, rows.standing.size - self._ledger.position()[0])
            self._trouble, self._flowing = "", rows.same
        except CloisterError:
            self._leader = self._behind = None
            raise

    def _absorb(self, entries: Sequence[SealedEntry], level: int) -> None:
        """:raises Unavailable: ``log-newer``: one that a newer build wrote; all before it were taken over (13.26.8)."""
        try:
            self._ledger.absorb(entries, self._anchor.proof())
        except Tampered as error:
            if level <= LEVEL or error.code != "log-order":
                raise
            if len(entries) > 1:
                for entry in entries:
                    self._absorb([entry], level)
                return
            self._outgrown = True
            self._events.event("outgrown", level="error", replica=self.identity.hex(), code="log-newer")
            raise newer(self._ledger.position()[0]) from error

    def _watch(self, peer: Peer, term: bytes) -> None:
        """Follow no more, and know for callers who leads."""
        try:
            answer = self._ask(peer, {"kind": HELLO})
            if Standing.read(answer.mapping("standing")).term != term:
                self._leader = self._behind = None
        except CloisterError:
            self._leader = self._behind = None
            raise

    def _agree(self, peer: Peer, standing: Standing) -> None:
        """The one that leads has another history: drop what a co-signed head contradicts, and only that."""
        own = self._ledger.position()[0]
        low, high = 0, min(own, standing.size)
        while low < high:  # the longest common beginning
            middle = (low + high + 1) // 2
            answer = self._ask(peer, at_fields(LINK, middle))
            link = answer.blob("link", limit=32)
            answer.leave_newer()
            low, high = (middle, high) if self._ledger.holds(middle, link) else (low, middle - 1)
        if low in (own, standing.size):
            return  # it caught up meanwhile; or it lacks what we have, which may yet be confirmed
        answer = self._ask(peer, at_fields(ENTRY, low))
        if not answer.has("head"):
            answer.done()
            return  # nothing says yet which of the two goes on
        place = Place.read(answer)
        self._verify(place.head)
        verify_inclusion(place.leaf, low, place.head.size, place.inclusion, place.head.root)
        if same(place.leaf, self._ledger.leaf(low)) or (self._kept is not None and self._kept.size > low):
            raise Tampered(
                "log-fork",
                "two heads that witnesses co-signed contradict each other: this replica keeps what it has",
                hint="More witnesses lied, or were restored, than the configuration bears. Tell the auditor.",
            )
        self._anchor.saw(place.head)
        self._events.event("history-cut", level="warning", count=own - low, sequence=low)
        self._ledger.cut(low, self._anchor.proof())

    def _search(self) -> None:
        found: dict[bytes, Standing] = {}
        leaders: list[tuple[int, int, Peer, bytes]] = []
        for number, peer in enumerate(self._peers):
            try:
                answer = self._ask(peer, {"kind": HELLO})
                standing = Standing.read(answer.mapping("standing"))
                answer.leave_newer()
                self._learn(standing.head)
            except CloisterError as error:
                self._note(error)
                continue
            if standing.replica == self.identity:
                continue
            found[standing.replica] = standing
            if standing.leads:
                size = standing.head.size if standing.head else 0
                leaders.append((size, -number, peer, standing.term))
        if leaders:
            _, _, peer, term = max(leaders, key=lambda item: item[:2])
            self._leader = (peer, term)
            self._rest()
            self._events.event("follows", replica=self.identity.hex(), address=peer.origin)
        elif self._due(found) and self._backed():
            self._take_over()

    def _due(self, found: Mapping[bytes, Standing]) -> bool:
        """Whether it is this replica's turn to lead."""
        silent = self._clock.monotonic() - self._heard
        everybody = len(found) >= self._replicas - 1
        if len(found) + 1 < self._anchor.majority or (silent < self._patience and not everybody) or not self._able():
            return False
        mine = (-self._ledger.position()[0], self.identity)
        if self._deferred < LEAD_DEFERRALS and any(
            other.able and (-other.size, other.replica) < mine for other in found.values()
        ):
            self._deferred += 1  # it is further, or as far: it goes first
            return False
        return True

    def _backed(self) -> bool:
        """Whether so many witnesses as must sign have what our log continues: then it holds all that was confirmed."""
        found = self._probe()
        if found.head is not None:
            self._learn(found.head)
        if found.agree < self._threshold:
            if len(self._witnesses) - found.ahead - found.other < self._threshold:
                self._beaten = True  # until one that is confirmed was followed to its end
                self._events.event("beaten", level="warning", code="keyservice-superseded")
            return False
        if found.ahead and self._deferred < LEAD_DEFERRALS:
            self._deferred += 1  # a majority held more once, and shows it, if it can
            return False
        return True

    def _take_over(self) -> None:
        self._ledger.lead()
        term = secrets.token_bytes(TERM_LENGTH)
        self._anchor.lead(term, self._ledger)
        self._term = term
        self._events.event("leads", replica=self.identity.hex(), sequence=self._ledger.position()[0])

    def _step_down(self, code: str) -> None:
        self._term = b""
        self._anchor.follow()
        self._ledger.follow()
        self._rest()
        self._events.event("steps-down", level="warning", replica=self.identity.hex(), code=code)

    def _rest(self) -> None:
        """Begin anew to wait for one that leads."""
        self._heard = self._clock.monotonic()
        self._patience = LEADER_SILENCE_S + self._jitter()
        self._deferred = 0

    # --- what heads prove ---

    def _able(self) -> bool:
        """Whether it may lead, as far as it knows: nothing says that its history is not the one."""
        if self._beaten or self._outgrown or not self._accepted():
            return False
        if self._clock.monotonic() < self._rests_until or not self._ledger.position()[0]:
            return False
        if self._ledger.log_keys() != self._root.log_keys:  # it lacks the rotation that it was handed over (13.27.8)
            return False
        since = self._root.since
        if since is not None and not self._ledger.contains(*since):  # nor has it all that was there then (13.26.5.1)
            return False
        head = self._anchor.seen()
        return head is None or self._continues(head)

    def _keep(self) -> None:
        """Remember the newest co-signed head that our log continues: what it contains is dropped for nobody."""
        head = self._anchor.seen()
        if head is not None and (self._kept is None or head.size > self._kept.size) and self._continues(head):
            self._kept = head

    def _continues(self, head: LogHead) -> bool:
        """Whether our log continues this head."""
        return self._ledger.contains(head.size, head.root)

    def _learn(self, head: LogHead | None) -> None:
        """:raises Tampered: ``cosignature-invalid``. :raises Refused: ``replica-unconfirmed``."""
        if head is not None and head != self._anchor.seen():
            self._verify(head)
            self._anchor.saw(head)

    def _verify(self, head: LogHead) -> None:
        if len(valid_cosignatures(self._root.id, head, self._witnesses)) < self._threshold:
            raise Refused("replica-unconfirmed", "a replica shows a head that too few witnesses co-signed")

    # --- talking ---

    def _ask(self, peer: Peer, content: Mapping[str, object]) -> Fields:
        key = self._root.replication_key
        request = seal_request(key, content)
        return open_answer(key, request, peer.exchange(request))

    def _note(self, error: CloisterError) -> None:
        """Tell the operator once, not four times a second."""
        if error.code != self._trouble:
            self._trouble = error.code
            self._events.event("replica-failed", level="warning", code=error.code, family=error.family)
