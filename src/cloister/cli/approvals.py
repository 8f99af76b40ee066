"""Statements that need two persons: require them, see what waits, say it too or decline it.

cloister approvals list [--for OWNER]                        what waits for a second person, and what it would do
cloister approvals approve ENTRY --code CODE [--for OWNER]   say it too; without --code it is only shown
cloister approvals decline ENTRY [--for OWNER]               it comes to nothing; one person is enough
cloister approvals require [--yes]                           from now on two persons are needed
cloister approvals end                                       one is enough again; this needs two as well
"""

from __future__ import annotations

import argparse
import time

from cloister.base.errors import CloisterError, InvalidInput, Refused
from cloister.cli.account import add_account_options, add_owner_option, open_client, outcome
from cloister.cli.output import Output
from cloister.client.approvals import Waiting
from cloister.client.client import Client
from cloister.wire.statements import FOREVER


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("action", choices=["list", "approve", "decline", "require", "end"])
    parser.add_argument("entry", nargs="?", type=int, help="approve, decline: the log entry that waits")
    parser.add_argument("--code", help="approve: as it was shown with the statement, so that nothing else is approved")
    parser.add_argument("--yes", action="store_true", help="require: do not ask")
    add_owner_option(parser)
    add_account_options(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """One of the actions."""
    actions = {"list": _list, "approve": _approve, "decline": _decline, "require": _require, "end": _end}
    with open_client(args) as client:
        return actions[args.action](args, out, client)


def _list(args: argparse.Namespace, out: Output, client: Client) -> int:
    items = client.waiting()
    lines = [_shown(args, client, item) for item in items]
    out.result({"waiting": [_row(item) for item in items]}, "\n\n".join(lines) or "nothing waits for a second person")
    return 0


def _approve(args: argparse.Namespace, out: Output, client: Client) -> int:
    item = client.waiting_in(_entry(args))
    if args.code is None:
        out.result({**_row(item), "approved": False}, _shown(args, client, item))
        return 1
    if args.code != item.code:
        raise Refused(
            "approval-other",
            f"what waits in log entry {item.entry} has the code {item.code}, not the one given",
            hint="Look at it: `cloister approvals approve ENTRY` shows what it would do.",
        )
    acknowledged = client.approve(item)
    out.result(
        {**_row(item), "approved": True, "by_entry": acknowledged["entry"]},
        f"approved, and in force: log entry {acknowledged['entry']}\n{item.words}",
    )
    return 0


def _decline(args: argparse.Namespace, out: Output, client: Client) -> int:
    acknowledged = client.decline(_entry(args))
    out.result(
        {"declined": args.entry, "by_entry": acknowledged["entry"]},
        f"declined: log entry {acknowledged['entry']}; what waited in {args.entry} comes to nothing",
    )
    return 0


def _require(args: argparse.Namespace, out: Output, client: Client) -> int:
    known = client.whoami()
    now = client.clock.now()
    delegates = [item for item in known["delegates"] if item["until"] > now]
    if not delegates:
        raise Refused(
            "approval-nobody",
            "this identity has delegated to nobody, so there would be no second person",
            hint="`cloister identity delegate --to USER --until 3650d`, better to two: a lost key then ends nothing.",
        )
    persons = {item["id"].hex(): _ends(item["until"]) for item in delegates}
    lines = [*(f"  {name}  {ends}" for name, ends in persons.items()), *_warnings(delegates)]
    if not args.yes:
        warnings = {f"warning {number}": text for number, text in enumerate(_warnings(delegates), 1)}
        raise InvalidInput(
            "not-confirmed",
            "from now on whatever opens or replaces something would wait for one of these, or for this identity",
            hint="Add --yes if these are all whom you want. Ending it takes two persons.",
            details=persons | warnings,
        )
    acknowledged = client.require_approval(tuple(item["id"] for item in delegates))
    out.result(
        {"approvals": 2, "delegates": [item["id"].hex() for item in delegates], "entry": acknowledged["entry"]},
        "\n".join((f"two persons are needed from log entry {acknowledged['entry']} on:", *lines)),
    )
    return 0


def _warnings(delegates: list[dict[str, int]]) -> list[str]:
    found = []
    if len(delegates) == 1:
        found.append("one delegate only: when one of the two keys is lost, nothing new can be said any more")
    if any(item["until"] < FOREVER for item in delegates):
        found.append("a delegation ends by itself, and prolonging it takes two persons: do it in time")
    return found


def _end(_args: argparse.Namespace, out: Output, client: Client) -> int:
    acknowledged = client.end_approval()
    out.result(
        {"entry": acknowledged["entry"], "pending": acknowledged["pending"]},
        outcome(acknowledged, "one person is enough again"),
    )
    return 0


def _entry(args: argparse.Namespace) -> int:
    if args.entry is None:
        raise InvalidInput("entry-missing", "which one?", hint="`cloister approvals list` shows their log entries.")
    return int(args.entry)


def _row(item: Waiting) -> dict[str, object]:
    return {
        "entry": item.entry,
        "made_by": item.statement.issuer.hex(),
        "made_at": item.made_at,
        "until": item.until,
        "code": item.code,
        "words": item.words,
    }


def _shown(args: argparse.Namespace, client: Client, item: Waiting) -> str:
    by = "you" if item.statement.issuer == client.account.identity.id else f"identity {item.statement.issuer.hex()}"
    lines = [
        f"log entry {item.entry}, made by {by}",
        f"  at {_when(item.made_at)}, waits until {_when(item.until)}",
        item.words,
        *_policy(client, item),
    ]
    if by == "you":
        lines.append("somebody else has to approve it")
    else:
        speaking = f" --for {args.owner}" if args.owner else ""
        lines.append(f"to approve exactly this: cloister approvals approve {item.entry} --code {item.code}{speaking}")
    return "\n".join(lines)


def _policy(client: Client, item: Waiting) -> list[str]:
    """The policy that it names, as far as the KeyService has it; what it demands is for `cloister policy check`."""
    from cloister.attest.policy import Policy
    from cloister.attest.policy_words import explain_policy

    digest = getattr(item.statement.body, "policy_digest", None)
    if digest is None:
        return []
    try:
        answer = client.account.ask("policy", {"digest": digest, "subject": client.owner})
        policy = Policy.decode(answer["policy"])
        if policy.digest != digest:
            raise Refused("policy-other", "the KeyService shows another policy than the one named")
        sentences = explain_policy(policy)
    except CloisterError as error:
        return [f"  that policy cannot be shown: {error.code}"]
    return ["that policy:", *(f"  {sentence}" for sentence in sentences)]


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _ends(until: int) -> str:
    return "for ever" if until >= FOREVER else f"until {_when(until)}"
