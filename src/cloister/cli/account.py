"""Options that every command of an owner or user takes, and the client they lead to."""

from __future__ import annotations

import argparse
import calendar
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloister.attest.policy import Policy
from cloister.attest.policy_toml import MAX_POLICY_TEXT, parse_policy
from cloister.base.errors import InvalidInput
from cloister.base.ids import parse_id
from cloister.cli.files import read_text
from cloister.client.client import Client
from cloister.client.identity import identity_id_of, list_identities
from cloister.client.profile import default_home
from cloister.wire.statements import FOREVER, Validity


def add_account_options(parser: argparse.ArgumentParser) -> None:
    """``--home`` and ``--as``."""
    parser.add_argument("--home", type=Path, help="the client's folder (default: $CLOISTER_HOME, or ~/.cloister)")
    parser.add_argument("--as", dest="identity", metavar="NAME", help="which identity speaks (default: the only one)")


def add_owner_option(parser: argparse.ArgumentParser) -> None:
    """``--for``."""
    parser.add_argument("--for", dest="owner", metavar="OWNER", help="speak for an owner who delegated to you")


def outcome(acknowledged: Mapping[str, Any], done: str) -> str:
    """What a statement came to, for people: done, or waiting for a second person (clause 6.8)."""
    if not acknowledged["pending"]:
        return f"{done}; log entry {acknowledged['entry']}"
    until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(acknowledged["pending"]))
    return (
        f"waits for a second person until {until}: entry {acknowledged['entry']}. Nothing has changed yet.\n"
        f"Another person says: cloister approvals approve {acknowledged['entry']} --for OWNER (or, as the owner, alone)"
    )


def home_of(args: argparse.Namespace) -> Path:
    """The client's folder."""
    return args.home or default_home()


def passphrase() -> str | None:
    """``CLOISTER_PASSPHRASE``: never an argument, which other users of the machine can read."""
    return os.environ.get("CLOISTER_PASSPHRASE") or None


def open_client(args: argparse.Namespace) -> Client:
    """The client of the identity that speaks."""
    owner = resolve_user(args, args.owner) if getattr(args, "owner", None) else None
    return Client.open(home_of(args), args.identity, passphrase(), owner=owner)


def read_policy(path: Path) -> Policy:
    """A policy file.

    :raises InvalidInput: ``file-unreadable`` and the codes of policies, naming the place.
    """
    return parse_policy(read_text(path, limit=MAX_POLICY_TEXT, what="policy"))


def resolve_user(args: argparse.Namespace, text: str) -> bytes:
    """A user's id: 64 hexadecimal digits, or the name of an identity in the same folder."""
    if re.fullmatch(r"[0-9a-f]{64}", text):
        return parse_id(text, what="the user's id")
    if text in list_identities(home_of(args)):
        return identity_id_of(home_of(args), text)
    raise InvalidInput(
        "user-unknown",
        f"{text!r} is neither a user's id nor an identity in {home_of(args)}",
        hint="An id is 64 hexadecimal digits: `cloister identity show` prints it on the user's machine.",
    )


def resolve_model(args: argparse.Namespace, text: str) -> str:
    """``OWNER/NAME``, where OWNER may be an identity in the same folder; a name alone stays as it is.

    :raises InvalidInput: ``user-unknown``.
    """
    owner, slash, name = text.partition("/")
    return f"{resolve_user(args, owner).hex()}/{name}" if slash else text


def add_validity_options(parser: argparse.ArgumentParser) -> None:
    """``--from`` and ``--until``."""
    times = "a date (2027-01-31, UTC), Unix seconds, or a duration from now (90d, 12h, 30m)"
    parser.add_argument("--from", dest="not_before", metavar="TIME", help=f"valid from: {times}")
    parser.add_argument("--until", dest="not_after", metavar="TIME", help=f"valid until: {times}; default: for ever")


def validity_of(args: argparse.Namespace, now: float) -> Validity:
    """:raises InvalidInput: ``time-malformed``, ``validity-empty``."""
    value = Validity(
        parse_time(args.not_before, now) if args.not_before else 0,
        parse_time(args.not_after, now) if args.not_after else FOREVER,
    )
    if value.not_before >= value.not_after:
        raise InvalidInput("validity-empty", "--until is not after --from")
    return value


def parse_time(text: str, now: float) -> int:
    """Unix seconds from a date, Unix seconds or a duration from now.

    :raises InvalidInput: ``time-malformed``.
    """
    if match := re.fullmatch(r"(\d{1,6})([dhm])", text):
        return int(now) + int(match[1]) * {"d": 86400, "h": 3600, "m": 60}[match[2]]
    if re.fullmatch(r"\d{9,11}", text):
        return int(text)
    try:
        return calendar.timegm(time.strptime(text, "%Y-%m-%d"))
    except ValueError as error:
        raise InvalidInput(
            "time-malformed", f"{text!r} is not a time", hint="Write 2027-01-31, Unix seconds, or 90d, 12h, 30m."
        ) from error
