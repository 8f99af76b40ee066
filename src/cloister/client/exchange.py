"""What every way of sending a sealed request shares: its headers, its answer, and when it may be sent again."""

from __future__ import annotations

from typing import Final

from cloister.adapters.http.answer import Answer
from cloister.adapters.http.problem import from_response
from cloister.base.errors import Unavailable
from cloister.wire.envelope import REQUEST_MEDIA_TYPE

OUTER_REFUSAL: Final = "request-refused"
DEADLINE_S: Final = 120.0
SEALED_HEADERS: Final = (("content-type", REQUEST_MEDIA_TYPE),)
_BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
# An inference changes nothing, so it may be sent again, each time sealed anew.
_AGAIN: Final = frozenset({"connect-failed", "no-answer", "deadline-exceeded", "client-overloaded", "answer-truncated"})
# A rule of the owner's and not a hiccup: nobody waits for it silently, though the answer says when it ends.
_NEVER_AGAIN: Final = frozenset({"quota-exhausted"})
_MAY_START: Final = "An instance may still start, or cannot get its keys: give it longer, or ask the operator."


def content_of(answer: Answer) -> bytes:
    """The sealed answer; a refusal outside the envelope is raised."""
    if answer.status != 200:
        raise from_response(answer.status, answer.headers, answer.body)
    return bytes(answer.body)


def pause_before_next(error: Unavailable, attempt: int, left_s: float) -> float:
    """Seconds to wait before an inference is sent again.

    :raises Unavailable: ``error``, when sending again is not known to be safe or there is no time left.
    """
    pause = error.retry_after or _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
    again = error.code in _AGAIN or (error.retry_after is not None and error.code not in _NEVER_AGAIN)
    if again and pause < left_s:
        return pause
    if error.code == "deadline-exceeded":  # of any HTTP exchange; here it was one with a gateway
        raise Unavailable(error.code, error.message, retry_after=error.retry_after, hint=_MAY_START) from error
    raise error
