"""Who may use what, and why not.

cloister access list                       grants and consents that concern you
cloister access why MODEL [--user USER]    every check of a release, without one: which rule says no
cloister access log                        what happened: log entries about you
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from cloister.base.errors import InvalidInput
from cloister.base.ids import ModelId
from cloister.cli.account import add_account_options, add_owner_option, open_client, resolve_model, resolve_user
from cloister.cli.output import Output, as_json
from cloister.client.client import Client
from cloister.client.explain import failure
from cloister.log.entry import STATEMENT, Entry
from cloister.wire.statements import FOREVER, peek_statement


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("action", choices=["list", "why", "log"])
    parser.add_argument("model", nargs="?", help="why: OWNER/NAME, or the name of a model you own or consented to")
    parser.add_argument("--user", help="why, as an owner: the user's id, or an identity on this machine")
    add_owner_option(parser)
    add_account_options(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """One of the actions."""
    with open_client(args) as client:
        return {"list": _list, "why": _why, "log": _log}[args.action](args, out, client)


def _list(_args: argparse.Namespace, out: Output, client: Client) -> int:
    items = client.access()
    me = client.account.identity.id
    lines = [_line(item, me) for item in items]
    out.result(
        {"access": as_json(items)}, "\n".join(lines) or "nothing was granted to you, and you consented to nothing"
    )
    return 0


def _line(item: dict[str, Any], me: bytes) -> str:
    who = "you" if item["user"] == me else f"{item['user'].hex()[:16]}..."
    until = "for ever" if item["not_after"] >= FOREVER else f"until {_when(item['not_after'])}"
    extra = f"quota {item['quota']}" if item.get("quota") else item.get("mode", "")
    return (
        f"{item['kind']:<8} {item['model']}  to {who}  {until}  policy {item['policy'].hex()[:16]}...  {extra}".rstrip()
    )


def _why(args: argparse.Namespace, out: Output, client: Client) -> int:
    if not args.model:
        raise InvalidInput("model-missing", "why which model?", hint="cloister access why OWNER/NAME")
    user = resolve_user(args, args.user) if args.user else client.account.identity.id
    target: str | ModelId = resolve_model(args, args.model)
    if args.user and "/" not in args.model:
        target = client.own_model(args.model)
    answer = client.why(target, user)
    lines = ["the rules as they stand:", *map(_check, answer["checks"])]
    if answer["denial"]:
        lines.append(
            f"the last runtime that was refused ({answer['denial']['tee']}, {_when(answer['denial']['time'])}):"
        )
        lines += map(_check, answer["denial"]["checks"])
    lines += [
        f"  waits for a second person until {_when(item['until'])}: log entry {item['entry']}"
        for item in answer["waiting"]
    ]
    failing = failure(answer["checks"])
    lines.append(_verdict(failing, failure(answer["denial"].get("checks", []))))
    out.result({"allowed": failing is None, **dict(as_json(answer))}, "\n".join(lines))  # type: ignore[call-overload]
    return 1 if failing else 0


def _verdict(failing: dict[str, Any] | None, denied: dict[str, Any] | None) -> str:
    """Of the rules as they stand, which need no runtime; the last runtime may have been refused all the same."""
    if failing is not None:
        return f"refused: {failing['code']}"
    return f"no standing rule refuses; that runtime was refused: {denied['code']}" if denied else "nothing refuses"


def _check(check: dict[str, Any]) -> str:
    line = f"  {check['verdict']:<5} {check['whose']:<6} {check['name']:<24} {check['code']}"
    if check["verdict"] == "FAIL" and check["expected"]:
        line += f"  is {check['actual']}, expected {check['expected']}"
    return line


def _log(_args: argparse.Namespace, out: Output, client: Client) -> int:
    items = client.events()
    rows = []
    for item in items:
        entry = Entry.decode(item["entry"])
        row: dict[str, object] = {"index": item["index"], "time": entry.time, "kind": entry.kind}
        if entry.kind == STATEMENT:
            statement = peek_statement(entry.body)
            row |= {"statement": type(statement.body).__name__, "issuer": statement.issuer.hex()}
        rows.append(row)
    lines = [
        f"{row['index']:>6}  {_when(int(str(row['time'])))}  {row['kind']:<10} {row.get('statement', '')}  "
        f"{str(row.get('issuer', ''))[:16]}".rstrip()
        for row in rows
    ]
    out.result({"events": rows}, "\n".join(lines))
    return 0


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
