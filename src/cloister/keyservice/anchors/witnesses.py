"""Heads are confirmed by ``k`` of ``n`` witnesses (spec/protocol.md, 13.10): an ``Anchor``.

One thread a witness, all of them working on one head at a time, a *round*: co-signatures of different heads do not
add up. A round ends when ``k`` have signed; whoever is late joins the next. When so many fail that ``k`` cannot be
reached the anchor shuts: those who wait are told, nothing new is written, and the round is tried again until it
succeeds.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, final

from cloister.adapters.logs import EventLog
from cloister.adapters.witness import WitnessPort
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.base.limits import CONFIRM_INTERVAL_S, CONFIRM_PATIENCE_S, CONFIRM_RETRY_S, MAX_WITNESSES
from cloister.crypto.sign import SigningKey
from cloister.keyservice.anchors.port import AnchorState, HeadSource
from cloister.log.witness import agreed_time
from cloister.wire.calls import LogHead
from cloister.wire.checkpoint import AddCheckpoint, Checkpoint, Cosignature, parse_cosignatures
from cloister.wire.log_keys import FollowLogKeys, LogKeys

SUPERSEDED: Final = "keyservice-superseded"
UNCONFIRMED: Final = "keyservice-unconfirmed"
_CONFLICTS: Final = frozenset({"log-fork", "witness-conflict"})
_ATTEMPTS: Final = 3  # to find out at which size a witness is
_WAITING: Final = "waiting"
_CONFIRMED: Final = "confirmed"


class _Line:
    """One witness, as its thread sees it: the round it signed last, the one in which it failed last."""

    __slots__ = ("at", "done", "failed", "number", "outcome", "port", "retry_at")

    def __init__(self, number: int, port: WitnessPort) -> None:
        self.number = number
        self.port = port
        self.at = 0  # size that it has, as far as we know
        self.done = 0
        self.failed = 0
        self.outcome = _WAITING
        self.retry_at = 0.0


@final
class WitnessAnchor:
    """See the module.

    :param witnesses: how to reach them; which key answers where does not matter.
    :param keys: of the configured witnesses; :param threshold: how many must sign, more than half of them.
    :param patience_s: how long one entry waits for its confirmation.
    """

    protects = True
    tentative = False

    def __init__(
        self,
        witnesses: Sequence[WitnessPort],
        *,
        keys: Sequence[bytes],
        threshold: int,
        keyservice: bytes,
        log_key: SigningKey,
        log_keys: LogKeys,
        clock: Clock,
        events: EventLog,
        patience_s: float = CONFIRM_PATIENCE_S,
    ) -> None:
        """:raises InvalidInput: ``witness-addresses``: fewer than ``threshold`` or too many."""
        if not threshold <= len(witnesses) <= MAX_WITNESSES:
            raise InvalidInput(
                "witness-addresses",
                f"{threshold} of {len(keys)} witnesses must co-sign, and {len(witnesses)} addresses were given",
                hint="Say --witness URL for each witness of the configuration.",
            )
        self._keys = tuple(keys)
        self._threshold = threshold
        self._keyservice = keyservice
        self._log_key = log_key
        self._log_keys = log_keys
        self._clock = clock
        self._events = events
        self._patience = patience_s
        self._lines = [_Line(number, port) for number, port in enumerate(witnesses)]
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._source: HeadSource | None = None
        self._closed = False
        self._round = 0
        self._began = 0.0
        self._target: LogHead | None = None  # of the round under way
        self._signed: dict[bytes, Cosignature] = {}
        self._wanted = 0
        self._confirmed: LogHead | None = None
        self._confirmed_at = 0.0
        self._shut = ""  # why; empty while open
        self._time = 0.0

    # --- the port ---

    def start(self, source: HeadSource) -> None:
        """Begin, with a round over the present head."""
        self._source = source
        self._threads = [
            threading.Thread(target=self._work, args=(line,), name=f"witness-{line.number}", daemon=True)
            for line in self._lines
        ]
        with self._changed:
            self._begin(source)
        for thread in self._threads:
            thread.start()

    def require(self) -> None:
        """See the port."""
        with self._changed:
            self._changed.wait_for(  # the first round after a start
                lambda: self._closed or bool(self._shut) or self._confirmed is not None, self._patience
            )
            if self._shut or self._closed or self._confirmed is None:
                raise self._refusal()

    def confirm(self, size: int) -> LogHead | None:
        """See the port."""
        with self._changed:
            self._wanted = max(self._wanted, size)

            def settled() -> bool:
                return (
                    self._closed or bool(self._shut) or (self._confirmed is not None and self._confirmed.size >= size)
                )

            if not settled() and self._target is None and self._source is not None:
                self._begin(self._source)
            in_time = self._changed.wait_for(settled, self._patience)
            if self._confirmed is not None and self._confirmed.size >= size:
                return self._confirmed
            if not in_time and not self._shut:
                self._shut = UNCONFIRMED  # so slow that nothing more is written until this round is over
                self._changed.notify_all()
            raise self._refusal()

    def confirmed(self) -> LogHead | None:
        """See the port."""
        return self._confirmed

    @property
    def superseded(self) -> bool:
        """Whether so many witnesses know another or a later history that this one cannot be confirmed."""
        return self._shut == SUPERSEDED

    def seen(self) -> LogHead | None:
        """See the port."""
        return self._confirmed

    def proof(self) -> bytes:
        """Nothing: the witnesses remember."""
        return b""

    def time(self) -> float:
        """See the port; clause 13.11."""
        return self._time

    def tick(self) -> None:
        """See the port."""
        with self._changed:
            for line in self._lines:
                line.retry_at = 0.0
            now = self._clock.monotonic()
            # A round that lasts is begun anew: co-signatures of very different times are no confirmation for callers.
            due = self._confirmed_at + CONFIRM_INTERVAL_S if self._target is None else self._began + CONFIRM_PATIENCE_S
            if now >= due and self._source is not None:
                self._begin(self._source)
            self._changed.notify_all()

    def state(self) -> AnchorState:
        """See the port."""
        with self._changed:
            age = None if self._confirmed is None else self._age()
            size = self._confirmed.size if self._confirmed else 0
            return AnchorState(
                not self._shut and self._confirmed is not None,
                age,
                size,
                {line.number: line.outcome for line in self._lines},
            )

    def close(self) -> None:
        """See the port."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(1.0)  # one that waits for its witness ends by its deadline

    # --- rounds, under the condition ---

    def _age(self) -> float:
        return self._clock.monotonic() - self._confirmed_at

    def _begin(self, source: HeadSource) -> None:
        self._round += 1
        self._began = self._clock.monotonic()
        self._target = source.head()
        self._signed = {}
        self._changed.notify_all()

    def _refusal(self) -> Unavailable:
        if self._closed:
            return Unavailable("keyservice-closing", "the KeyService is shutting down", retry_after=5.0)
        if self._shut == SUPERSEDED:
            return Unavailable(
                SUPERSEDED,
                "witnesses know a later or another history of this KeyService's log: this copy of it was rolled back, "
                "or another one runs, and it releases and acknowledges nothing",
                retry_after=60.0,
                hint="Stop this copy. Tell whoever runs the KeyService, and the auditor.",
            )
        return Unavailable(
            UNCONFIRMED,
            f"{self._threshold} witnesses have not confirmed the KeyService's log: until then it releases and "
            "acknowledges nothing",
            retry_after=CONFIRM_RETRY_S,
        )

    def _note(self, line: _Line, turn: int, target: LogHead, found: tuple[Cosignature, ...] | CloisterError) -> None:
        if isinstance(found, CloisterError):
            self._failed(line, turn, found)
        else:
            line.done, line.outcome, line.at = turn, _CONFIRMED, target.size
            self._take(turn, target, found)
        if turn == self._round and self._target is not None:
            self._judge()
        self._changed.notify_all()

    def _failed(self, line: _Line, turn: int, error: CloisterError) -> None:
        if line.outcome != error.code:
            self._events.event("witness-failed", level="warning", instance=line.number, code=error.code)
        line.failed, line.outcome = turn, error.code
        line.retry_at = self._clock.monotonic() + CONFIRM_RETRY_S

    def _take(self, turn: int, target: LogHead, found: tuple[Cosignature, ...]) -> None:
        if turn != self._round:
            return
        for item in found:
            self._signed[item.key] = item
        if len(self._signed) < self._threshold:
            return
        ordered = tuple(self._signed[key] for key in sorted(self._signed))
        self._confirmed = replace(target, cosignatures=ordered)  # also with one that comes after the threshold
        self._time = max(self._time, float(agreed_time(ordered, self._threshold)))
        if self._target is None:
            return
        self._confirmed_at = self._clock.monotonic()
        if self._shut:
            self._events.event("confirmed", sequence=target.size)
        self._shut, self._target = "", None
        if self._wanted > target.size and self._source is not None:
            self._begin(self._source)

    def _judge(self) -> None:
        """Whether this round can still succeed."""
        left = [line for line in self._lines if line.done != self._round]
        failing = [line for line in left if line.failed == self._round]
        pending = len(left) - len(failing)
        if len(self._signed) + pending >= self._threshold:
            return
        conflicts = sum(line.outcome in _CONFLICTS for line in failing)
        why = SUPERSEDED if len(self._keys) - conflicts < self._threshold else UNCONFIRMED
        if why != self._shut:
            self._events.event("shut", level="error", code=why)
        self._shut = why

    # --- a witness's thread ---

    def _work(self, line: _Line) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._due(line):
                    self._changed.wait(CONFIRM_RETRY_S)
                if self._closed:
                    return
                turn, target = self._round, self._target
            if target is None:
                continue
            found: tuple[Cosignature, ...] | CloisterError
            try:
                found = self._ask(line, target)
            except CloisterError as error:
                found = error
            except Exception as error:  # noqa: BLE001  # a fault of ours with one witness must not end its thread
                found = Unavailable("keyservice-internal", f"a fault while asking a witness: {type(error).__name__}")
            with self._changed:
                self._note(line, turn, target, found)

    def _due(self, line: _Line) -> bool:
        return self._target is not None and line.done != self._round and self._clock.monotonic() >= line.retry_at

    def _ask(self, line: _Line, target: LogHead) -> tuple[Cosignature, ...]:
        if self._source is None:
            raise AssertionError
        checkpoint = Checkpoint(self._keyservice, target.size, target.root)
        note, at = checkpoint.sign(self._log_key), line.at
        answer: bytes | int = at
        for _ in range(_ATTEMPTS):
            proof = self._source.consistency(at, target.size)
            answer = self._show(line, AddCheckpoint(at, proof, note).encode())
            if not isinstance(answer, int):
                found = parse_cosignatures(answer, checkpoint, self._keys)
                if not found:
                    raise Refused("witness-other", "the answer is of no witness of the configuration")
                return found
            if answer == at or answer > target.size:  # another root, or more than we have
                break
            at = answer
        raise Refused("witness-conflict", f"the witness knows another head, of {int(answer)} entries")

    def _show(self, line: _Line, body: bytes) -> bytes | int:
        """One that follows a log key which was retired since is told of those after it (clause 13.27.7)."""
        try:
            return line.port.add_checkpoint(body)
        except Refused:
            if not self._log_keys.certificates:
                raise
        return line.port.follow_log_keys(FollowLogKeys(self._log_keys, body).encode())
