"""Turn "refused" into a reason: the KeyService tells a party which check fails (spec/protocol.md, 6.7 and 7.9)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from cloister.base.errors import CloisterError, Refused
from cloister.base.ids import ModelId
from cloister.client.account import Account

AGAIN_S: Final = 1.2  # a runtime remembers for a second that the KeyService refused it


def refusal(account: Account, model: ModelId, *, again: bool) -> CloisterError | None:
    """What to raise for a request that was refused without a reason: the first failing check of a dry run.

    :param again: whether it may be tried again; then ``None`` when no standing rule refuses, because the rules may have
        changed a moment ago. When the dry run itself fails, that failure is the best reason there is.
    """
    try:
        answer = account.ask("why", {"model": str(model), "user": account.identity.id})
    except CloisterError as error:
        return error
    failing = failure(answer["checks"])
    if failing is None and again:
        return None
    failing = failing or failure(answer["denial"].get("checks", []))
    if failing is None:
        return Refused(
            "request-refused",
            "the runtime refused the request, but the KeyService would release the keys now",
            hint="Something changed it on the way, or the clocks differ by minutes.",
        )
    whose = str(failing["whose"])
    details = {name: str(failing[name]) for name in ("name", "whose", "expected", "actual") if failing.get(name)}
    hint = "Ask the model's owner." if whose == "owner" else "`cloister access why MODEL` shows every check."
    return Refused(str(failing["code"]), f"the {whose}'s rule {failing['name']!r} says no", details=details, hint=hint)


def failure(checks: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The first check that fails."""
    return next((check for check in checks if check["verdict"] == "FAIL"), None)
