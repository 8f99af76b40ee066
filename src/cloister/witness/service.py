"""A witness without its transport: one request in, one co-signature out, thread-safe (spec/protocol.md, 13.8)."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import final

from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput, Refused, Tampered, Unavailable
from cloister.base.limits import WITNESS_REPEATS_PER_S
from cloister.crypto.sign import SigningKey
from cloister.log.witness import follow, judge
from cloister.wire.checkpoint import AddCheckpoint, SignedNote, check_name, cosignature_line, cosigned_note
from cloister.wire.log_keys import FollowLogKeys, LogKeys
from cloister.witness.store import Record, WitnessStore


def _unknown() -> Refused:
    return Refused("witness-log-unknown", "this witness was not told of that log")


@dataclass(slots=True)
class _Allowance:
    """Of what does not make a log grow: anybody can send it."""

    left: float
    at: float


@final
class Witness:
    """Checks and co-signs; ``cloister.adapters.witness.WitnessPort``.

    :param name: a label on its signature lines; it is known by its key.
    """

    def __init__(self, store: WitnessStore, key: SigningKey, name: str, clock: Clock) -> None:
        """:raises InvalidInput: ``witness-name``."""
        self.key = key
        self.name = check_name(name)
        self._store = store
        self._clock = clock
        self._locks: defaultdict[bytes, threading.Lock] = defaultdict(threading.Lock)
        self._guard = threading.Lock()
        self._allowances: dict[bytes, _Allowance] = {}

    def add_checkpoint(self, body: bytes) -> bytes | int:
        """The co-signature line; or, when the log is not where the request says, the size where it is.

        :raises InvalidInput: ``checkpoint-malformed``.
        :raises Refused: ``witness-log-unknown``, ``witness-not-signed``.
        :raises Tampered: ``log-fork``: another history; ``witness-store-corrupt``.
        :raises Unavailable: ``witness-store-failed``, ``rate-limited``.
        """
        request = AddCheckpoint.decode(body)
        note = SignedNote.parse(request.note)
        keyservice = note.checkpoint.keyservice
        if self._store.read(keyservice) is None:  # before a lock is made for it
            raise _unknown()
        with self._lock(keyservice):
            record = self._store.read(keyservice)
            if record is None:
                raise _unknown()
            return self._answer(record, request, note, record.log_keys)

    def follow_log_keys(self, body: bytes) -> bytes | int:
        """As :meth:`add_checkpoint`, of a log whose key was retired: co-signs under the new one, and no more under the
        old one, if the old one named it and the log goes on (13.27.7).

        :raises InvalidInput: ``checkpoint-malformed``, ``log-keys-malformed``.
        :raises Refused: ``witness-log-unknown``, ``witness-not-signed``.
        :raises Tampered: ``log-fork``: another history, or another successor of one key; ``signature-invalid``,
            ``log-keys-broken``; ``witness-store-corrupt``.
        :raises Unavailable: ``witness-store-failed``, ``rate-limited``.
        """
        told = FollowLogKeys.decode(body)
        request = AddCheckpoint.decode(told.checkpoint)
        note, keyservice = SignedNote.parse(request.note), told.log_keys.keyservice
        if note.checkpoint.keyservice != keyservice:
            raise InvalidInput("checkpoint-malformed", "the checkpoint is of another KeyService than the log keys")
        if self._store.read(keyservice) is None:  # before a lock is made for it
            raise _unknown()
        with self._lock(keyservice):
            record = self._store.read(keyservice)
            if record is None:
                raise _unknown()
            try:
                keys = follow(record.log_keys, record.newest, told.log_keys)
            except Tampered as error:
                if "rival" in error.details:
                    self._replace(record, record.with_rival(told.log_keys.encoded[int(error.details["rival"])]))
                raise
            return self._answer(record, request, note, keys)

    def newest(self, keyservice: bytes) -> bytes:
        """The checkpoint that it co-signed last, with that co-signature again; empty before the first (13.8.1).

        :raises Refused: ``witness-log-unknown``. :raises Tampered: ``witness-store-corrupt``.
        :raises Unavailable: ``witness-store-failed``, ``rate-limited``.
        """
        if self._store.read(keyservice) is None:
            raise _unknown()
        with self._lock(keyservice):
            self._charge(keyservice)
            record = self._store.read(keyservice)
        if record is None or not record.newest.size:
            return b""
        note = SignedNote.parse(record.note)
        again = note.checkpoint.cosign(self.key, record.newest.time)  # the very same signature: it says nothing new
        return cosigned_note(note, record.log_key, self.name, again)

    def _answer(self, record: Record, request: AddCheckpoint, note: SignedNote, keys: LogKeys) -> bytes | int:
        try:
            checkpoint = note.verify(keys.current)
            keys.require_current(checkpoint.size)
        except Tampered as error:
            raise Refused("witness-not-signed", "the checkpoint is not signed by its log") from error
        if checkpoint.size <= record.newest.size:
            self._charge(checkpoint.keyservice)
        try:
            newest = judge(record.newest, request, checkpoint, self._clock.now())
        except Refused as error:
            if error.details["forked"] == "yes":
                self._keep(record, request.note)
            return int(error.details["size"])
        self._replace(record, replace(record, log_keys=keys, newest=newest, note=request.note))
        return cosignature_line(self.name, checkpoint.cosign(self.key, newest.time))

    def _keep(self, record: Record, note: bytes) -> None:
        """Two checkpoints of one size, both signed by the log, prove a fork to anybody."""
        self._replace(record, record.with_conflict(note))

    def _replace(self, before: Record, after: Record) -> None:
        if after != before:
            self._store.replace(before, after)

    def record(self, keyservice: bytes) -> Record | None:
        """What it knows of a log; raises as the store."""
        return self._store.read(keyservice)

    def records(self) -> list[Record]:
        """What it knows of all logs."""
        return [record for name in self._store.logs() if (record := self._store.read(name)) is not None]

    def _lock(self, keyservice: bytes) -> threading.Lock:
        with self._guard:
            return self._locks[keyservice]

    def _charge(self, keyservice: bytes) -> None:
        """:raises Unavailable: ``rate-limited``."""
        now = self._clock.monotonic()
        allowance = self._allowances.setdefault(keyservice, _Allowance(WITNESS_REPEATS_PER_S, now))
        earned = (now - allowance.at) * WITNESS_REPEATS_PER_S
        allowance.left, allowance.at = min(float(WITNESS_REPEATS_PER_S), allowance.left + earned), now
        if allowance.left < 1.0:
            raise Unavailable("rate-limited", "this head was asked for too often", retry_after=1.0)
        allowance.left -= 1.0
