"""What a store's failures mean, whatever it speaks: one table from HTTP statuses to the port's codes.

A store's own text is never repeated: it can hold what a request was signed with.
"""

from __future__ import annotations

from typing import Final

from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.base.ids import ModelId

ABSENT: Final = 404
DENIED: Final = frozenset({401, 403})
OUT_OF_RANGE: Final = 416
BUSY: Final = frozenset({408, 425, 429})


def not_found(model: ModelId, name: str) -> Unavailable:
    """There is no such file."""
    return Unavailable("model-not-found", f"the model store has no {name!r} of {model.name!r} as released")


def too_short(name: str) -> InvalidInput:
    """A file ends within a range that its manifest says it has."""
    return InvalidInput("model-file-short", f"the model's file {name!r} ends before its last chunk")


def too_long(name: str, limit: int) -> InvalidInput:
    """A small file that is none."""
    return InvalidInput("model-file-too-long", f"the model's file {name!r} has more than {limit} bytes")


def unavailable(what: str, *, retry_after: float | None = None) -> Unavailable:
    """It may answer the next time."""
    return Unavailable("store-unavailable", f"the model store {what}", retry_after=retry_after or 1.0)


def denied(hint: str) -> Unavailable:
    """It does not let us."""
    return Unavailable("store-denied", "the model store does not allow this", hint=hint)


def misconfigured(what: str, hint: str) -> Unavailable:
    """It will never answer like this."""
    return Unavailable("store-misconfigured", f"the model store {what}", hint=hint)


def conflict(model: ModelId, name: str) -> Refused:
    """Something else lies where a file of ours belongs."""
    return Refused(
        "store-conflict",
        f"the store holds another {name!r} of {model.name!r} under this packing's digest",
        hint="Versions are never overwritten. Somebody changed the store: remove that file, then publish again.",
    )


def of_status(status: int, model: ModelId, name: str, *, hint: str, retry_after: float | None = None) -> CloisterError:
    """Of an answer that is no success.

    :param hint: for whoever is denied.
    """
    if status == ABSENT:
        return not_found(model, name)
    if status in DENIED:
        return denied(hint)
    if status == OUT_OF_RANGE:
        return too_short(name)
    if status in BUSY or status >= 500:
        return unavailable(f"answers {status}", retry_after=retry_after)
    return misconfigured(f"answers {status}", "Check the store's URL: scheme, host, region, bucket and prefix.")
