"""What a witness decides, and what its co-signatures are worth (spec/protocol.md, clauses 13.8 to 13.12). Pure.

What a witness knows of one log is :class:`Witnessed`, which only :func:`judge` changes, and the log's keys, which only
:func:`follow` does. :func:`require_quorum` is what a caller asks of a head.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cloister.base.errors import InvalidInput, Refused, Tampered, Unavailable
from cloister.base.limits import CLOCK_SKEW_S, HEAD_FRESHNESS_S
from cloister.crypto.digest import same
from cloister.log.merkle import EMPTY_ROOT, verify_consistency
from cloister.wire.calls import LogHead
from cloister.wire.checkpoint import AddCheckpoint, Checkpoint, Cosignature
from cloister.wire.log_keys import LogKeys


@dataclass(frozen=True, slots=True)
class Witnessed:
    """The newest head of one log that a witness co-signed, and when; a log that it never saw is empty."""

    size: int = 0
    root: bytes = EMPTY_ROOT
    time: int = 0


def judge(known: Witnessed, request: AddCheckpoint, checkpoint: Checkpoint, now: float) -> Witnessed:
    """The state after co-signing ``checkpoint``, whose signature was verified; time never goes back.

    :raises InvalidInput: ``checkpoint-malformed``: the old size is above the checkpoint's, or a proof from nothing.
    :raises Refused: ``witness-conflict`` when the log is not where the request says it is: detail ``size`` has where
        it is, and ``forked`` is ``yes`` when the checkpoint is of the same size with another root.
    :raises Tampered: ``log-fork`` when the proof does not show that it continues what is known.
    """
    if request.old > checkpoint.size:
        raise InvalidInput("checkpoint-malformed", "the old size is above the checkpoint's")
    if checkpoint.size == known.size and not same(checkpoint.root, known.root):
        raise _conflict(known, forked=True)
    if request.old != known.size:
        raise _conflict(known, forked=False)
    if request.old == 0 and request.proof:
        raise InvalidInput("checkpoint-malformed", "a proof from an empty log is empty")
    verify_consistency(known.size, known.root, checkpoint.size, checkpoint.root, request.proof)
    return Witnessed(checkpoint.size, checkpoint.root, max(known.time, int(now)))


def follow(known: LogKeys, newest: Witnessed, told: LogKeys) -> LogKeys:
    """The log keys after being told of these, which are of the same KeyService and verified (clause 13.27.7).

    :raises Refused: ``witness-not-signed``: the last of them was retired.
    :raises Tampered: ``log-fork``: they part from those that are followed, detail ``rival`` has from which on; or the
        key that is followed would have ended before the newest head that it signed.
    """
    if known.continues(told):
        if known != told:
            raise Refused("witness-not-signed", "the log key was retired: this witness follows a later one")
        return known
    if not told.continues(known):
        pairs = zip(known.encoded, told.encoded, strict=False)
        rival = next(number for number, (ours, theirs) in enumerate(pairs) if ours != theirs)
        raise Tampered(
            "log-fork", f"log key {rival} of this KeyService names two successors", details={"rival": str(rival)}
        )
    ends = told.certificates[known.generation]
    if ends.size < newest.size or (ends.size == newest.size and not same(ends.root, newest.root)):
        raise Tampered("log-fork", "the log key is said to have ended before the newest head that it signed")
    return told


def _conflict(known: Witnessed, *, forked: bool) -> Refused:
    return Refused(
        "witness-conflict",
        f"this witness knows another head of {known.size} entries" if forked else f"the log has {known.size} entries",
        details={"size": str(known.size), "forked": "yes" if forked else "no"},
    )


def require_quorum(
    keyservice: bytes, head: LogHead, *, witnesses: Collection[bytes], threshold: int, now: float
) -> tuple[Cosignature, ...]:
    """The valid, fresh co-signatures of our witnesses on a head, at least ``threshold`` of them (13.12).

    Co-signatures of keys that are not in ``witnesses`` count for nothing.

    :param now: the caller's own clock.
    :raises Tampered: ``cosignature-invalid``: one in a witness's name does not verify.
    :raises Unavailable: ``keyservice-unconfirmed``: fewer than ``threshold``.
    """
    ours = valid_cosignatures(keyservice, head, witnesses)
    fresh = tuple(item for item in ours if now - HEAD_FRESHNESS_S <= item.time <= now + CLOCK_SKEW_S)
    if len(fresh) < threshold:
        raise Unavailable(
            "keyservice-unconfirmed",
            f"of the {threshold} witnesses that must have co-signed the KeyService's log head within "
            f"{HEAD_FRESHNESS_S} s, {len(fresh)} did ({len(ours) - len(fresh)} at another time)",
            retry_after=1.0,
            hint="Its witnesses are away, or its log was rolled back. If it lasts, ask whoever runs it, and them.",
        )
    return fresh


def valid_cosignatures(keyservice: bytes, head: LogHead, witnesses: Collection[bytes]) -> tuple[Cosignature, ...]:
    """Those of our witnesses on a head, one a key, whatever their time.

    :raises Tampered: ``cosignature-invalid``: one in a witness's name does not verify.
    """
    checkpoint = Checkpoint(keyservice, head.size, head.root)
    ours = {item.key: item for item in head.cosignatures if item.key in witnesses}
    for item in ours.values():
        try:
            checkpoint.check(item)
        except Tampered as error:
            raise Tampered(
                "cosignature-invalid", f"the co-signature of witness {item.key.hex()[:16]}... does not verify"
            ) from error
    return tuple(ours.values())


def agreed_time(cosignatures: Collection[Cosignature], threshold: int) -> int:
    """The ``threshold``-th newest time: no ``threshold - 1`` witnesses can push it ahead (13.11). 0 for too few."""
    times = sorted((item.time for item in cosignatures), reverse=True)
    return times[threshold - 1] if 0 < threshold <= len(times) else 0
