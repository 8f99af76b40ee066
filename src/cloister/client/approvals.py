"""Statements that need two persons: what waits, in words, and saying it too (spec/protocol.md, 6.8)."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

from cloister.base.errors import InvalidInput, Refused
from cloister.client.account import Account
from cloister.log.entry import Entry
from cloister.log.merkle import verify_inclusion
from cloister.log.receipt import read_proof
from cloister.wire.calls import LogHead
from cloister.wire.statements import (
    FOREVER,
    Approve,
    Consent,
    Decline,
    Delegate,
    Grant,
    PublishModel,
    RequireApproval,
    RotateModelKey,
    RotateRequestKey,
    Statement,
    Validity,
    peek_statement,
)

_CODE = 16  # hexadecimal digits: nobody makes two statements with the same within a day


@dataclass(frozen=True, slots=True)
class Waiting:
    """A statement that waits for a second person.

    :param said: the statement to the byte; an approval signs it. :param statement: the same, parsed.
    :param made_at: Unix seconds; :param until: when it comes to nothing by itself.
    """

    entry: int
    said: bytes
    statement: Statement
    made_at: int
    until: int

    @property
    def code(self) -> str:
        """Names what was shown, so that nothing else is approved in its place."""
        return hashlib.sha256(self.said).hexdigest()[:_CODE]

    @property
    def words(self) -> str:
        """What it would do, whole: every value that it sets."""
        return in_words(self.statement)


class Approvals:
    """Mixed into the client: what the persons of an identity do together."""

    account: Account
    owner: bytes

    def waiting(self) -> list[Waiting]:
        """Everything of this owner that waits for a second person, oldest first; each is shown to be in the log.

        :raises Tampered: ``log-inclusion``.
        """
        answer = self.account.ask("pending", {"subject": self.owner})
        head = LogHead.read(answer["head"])
        found = []
        for item in answer["items"]:
            entry = Entry.decode(item["entry"])
            verify_inclusion(entry.leaf(), item["index"], head.size, read_proof(item["inclusion"]), head.root)
            statement = peek_statement(entry.body)
            found.append(Waiting(item["index"], entry.body, statement, entry.time, item["until"]))
        return found

    def waiting_in(self, entry: int) -> Waiting:
        """The one in this log entry.

        :raises Refused: ``approval-unknown``.
        """
        for item in self.waiting():
            if item.entry == entry:
                return item
        raise Refused(
            "approval-unknown",
            f"no statement of this identity waits in log entry {entry}",
            hint="It may have been approved, declined or taken back, or have waited for a day.",
        )

    def approve(self, waiting: Waiting) -> dict[str, Any]:
        """Say it too, as another person than the one who made it; it has effect now.

        :param waiting: as it was shown: its very bytes are signed.
        :raises Refused: ``approval-same-person``, ``approval-settled``, ``approval-expired`` and what the statement
            itself would be refused for now.
        """
        return self.account.say(Approve(waiting.entry, waiting.said), subject=self.owner)

    def decline(self, entry: int) -> dict[str, Any]:
        """It shall come to nothing; one person is enough."""
        return self.account.say(Decline(entry), subject=self.owner)

    def require_approval(self, delegates: tuple[bytes, ...]) -> dict[str, Any]:
        """From now on what widens or replaces needs two persons; only this identity itself can say so.

        :param delegates: those in force, who can be the second person from now on: all of them.
        :raises Refused: ``delegates-differ``.
        """
        return self.account.say(RequireApproval(2, tuple(sorted(delegates))))

    def end_approval(self) -> dict[str, Any]:
        """One person shall be enough again; this needs two."""
        return self.account.say(RequireApproval(1, ()))


def in_words(statement: Statement) -> str:
    """What a statement that may wait does, in full: nobody should approve what is abbreviated."""
    body = statement.body
    match body:
        case Grant():
            quota = f", at most {body.quota} requests a lease" if body.quota else ""
            return (
                f"lets user {body.user.hex()}\n  use model {body.name!r} {_during(body.validity)}{quota}\n"
                f"  on runtimes that satisfy policy {body.policy_digest.hex()}"
            )
        case Consent():
            which = f"version {body.manifest_digest.hex()}" if body.manifest_digest else "any version by its owner"
            return (
                f"lets runtimes see requests to model {body.model}\n  ({which}; {body.mode}) {_during(body.validity)}\n"
                f"  if they satisfy policy {body.policy_digest.hex()}"
            )
        case PublishModel():
            return f"publishes version {body.version} of model {body.name!r}:\n  manifest {body.manifest_digest.hex()}"
        case RotateModelKey():
            return (
                f"replaces version {body.version} of model {body.name!r} by the same under another key:\n"
                f"  manifest {body.manifest_digest.hex()}"
            )
        case RotateRequestKey():
            return f"replaces the key of requests to model {body.model}\n  by {body.key_commitment.hex()}"
        case Delegate():
            until = "for ever" if body.not_after >= FOREVER else f"until {_when(body.not_after)}"
            return f"lets identity {body.delegate.hex()}\n  speak for this one {until}, and be its second person"
        case RequireApproval():
            return "makes one person enough again for everything"
        case _:
            raise InvalidInput(
                "statement-unknown", f"statements of type {type(body).__name__!r} are unknown to this version"
            )


def _during(validity: Validity) -> str:
    begin = f"from {_when(validity.not_before)} " if validity.not_before else ""
    return begin + ("for ever" if validity.not_after >= FOREVER else f"until {_when(validity.not_after)}")


def _when(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
