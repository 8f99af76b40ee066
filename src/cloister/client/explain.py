"""Turn "refused" into a reason: the KeyService tells a party which check fails (spec/protocol.md, 6.7 and 7.9)."""

from __future__ import annotations

from typing import Any

from cloister.base.errors import CloisterError, Refused
from cloister.base.ids import ModelId
from cloister.client.account import Account


def refusal(account: Account, model: ModelId) -> CloisterError:
    """What to raise for a request that was refused without a reason: the first failing check of a dry run.

    When the dry run itself fails, that failure is the best reason there is.
    """
    try:
        answer = account.ask("why", {"model": str(model), "user": account.identity.id})
    except CloisterError as error:
        return error
    failing = first_failure(answer)
    if failing is None:
        return Refused(
            "request-refused",
            "the runtime refused the request, but the KeyService would release the keys now",
            hint="A key may just have been rotated, or the clocks differ by minutes: try again, or see `access why`.",
        )
    whose = str(failing["whose"])
    details = {name: str(failing[name]) for name in ("name", "whose", "expected", "actual") if failing.get(name)}
    hint = "Ask the model's owner." if whose == "owner" else "`cloister access why MODEL` shows every check."
    return Refused(str(failing["code"]), f"the {whose}'s rule {failing['name']!r} says no", details=details, hint=hint)


def first_failure(answer: dict[str, Any]) -> dict[str, Any] | None:
    """The first check that fails, of the standing rules or of the last denial to a runtime."""
    checks = [*answer["checks"], *answer["denial"].get("checks", [])]
    for check in checks:
        if check["verdict"] == "FAIL":
            found: dict[str, Any] = check
            return found
    return None
