"""Make, show and list identities: the keys with which an owner or user speaks.

cloister identity new NAME        make an identity, and register it where a KeyService is configured
cloister identity show [NAME]     its id, which others need for grants, and what the KeyService knows of it
cloister identity list
cloister identity rotate          replace its key; the id stays
cloister identity disable         for good
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cloister.base.errors import InvalidInput
from cloister.cli.account import (
    add_account_options,
    add_validity_options,
    home_of,
    open_client,
    outcome,
    parse_time,
    passphrase,
    resolve_user,
)
from cloister.cli.output import Output
from cloister.client.client import only_identity
from cloister.client.identity import (
    RECOVERY_FILE,
    create_identity,
    identity_id_of,
    list_identities,
    load_identity,
    load_recovery_key,
    replace_key,
)
from cloister.client.profile import FILE
from cloister.crypto.sign import SigningKey


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("action", choices=["new", "show", "list", "rotate", "delegate", "disable"])
    parser.add_argument("name", nargs="?", help="the identity's name on this machine")
    parser.add_argument("--offline", action="store_true", help="new, show: do not talk to the KeyService")
    parser.add_argument("--recovery-key", type=Path, help="rotate, disable: sign with the recovery key in this file")
    parser.add_argument("--to", metavar="USER", help="delegate: to whom, an id or an identity on this machine")
    add_validity_options(parser)
    parser.add_argument("--yes", action="store_true", help="disable: do not ask")
    add_account_options(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """One of the actions."""
    actions = {"new": _new, "show": _show, "list": _list, "rotate": _rotate, "delegate": _delegate, "disable": _disable}
    return actions[args.action](args, out)


def _new(args: argparse.Namespace, out: Output) -> int:
    if not args.name:
        raise InvalidInput("name-missing", "which name?", hint="cloister identity new NAME")
    home = home_of(args)
    identity = create_identity(home, args.name, passphrase())
    registered = False
    if not args.offline and (home / FILE).exists():
        args.identity = args.name
        with open_client(args) as client:
            registered = client.register()
    recovery = identity.folder / RECOVERY_FILE
    out.result(
        {"name": args.name, "id": identity.text, "registered": registered, "recovery_key": str(recovery)},
        f"identity {args.name}\n  id            {identity.text}\n"
        f"  registered    {'yes' if registered else 'no: run `cloister identity show` when there is a KeyService'}\n"
        f"  recovery key  {recovery}\n"
        "Move the recovery key off this machine: it can replace a lost or stolen key, and nothing else.",
    )
    return 0


def _show(args: argparse.Namespace, out: Output) -> int:
    home = home_of(args)
    args.identity = args.name or args.identity or only_identity(home)
    identity = load_identity(home, args.identity, passphrase())
    facts: dict[str, object] = {"name": identity.name, "id": identity.text, "key": identity.key.public_key.hex()}
    if not args.offline and (home / FILE).exists():
        with open_client(args) as client:
            client.register()
            known = client.whoami()
            facts["registered"] = True
            facts |= {name: known[name] for name in ("sequence", "disabled", "approvals") if name in known}
            facts["delegates"] = {item["id"].hex(): item["until"] for item in known["delegates"]}
    lines = [f"{name}: {value}" for name, value in facts.items() if name != "delegates"]
    lines += [f"delegate: {name}" for name in facts.get("delegates", ())]  # type: ignore[attr-defined]
    out.result(facts, "\n".join(lines))
    return 0


def _list(args: argparse.Namespace, out: Output) -> int:
    names = list_identities(home_of(args))
    found = [(name, identity_id_of(home_of(args), name).hex()) for name in names]
    text = "\n".join(f"{name:<16} {text}" for name, text in found) or f"no identities in {home_of(args)}"
    out.result({"identities": [{"name": name, "id": text} for name, text in found]}, text)
    return 0


def _rotate(args: argparse.Namespace, out: Output) -> int:
    args.identity = args.name or args.identity
    with open_client(args) as client:
        identity = client.account.identity
        signer = load_recovery_key(identity, args.recovery_key, passphrase()) if args.recovery_key else None
        key = SigningKey.generate()
        client.rotate_identity(key, signer)
        rotated = replace_key(identity, key, passphrase())
        client.account.keyring.rekeyed(rotated)
    out.result({"name": identity.name, "id": identity.text, "key": key.public_key.hex()})
    return 0


def _delegate(args: argparse.Namespace, out: Output) -> int:
    args.identity = args.name or args.identity
    if not args.to or not args.not_after:
        raise InvalidInput("delegate-missing", "to whom, and until when?", hint="Say --to USER and --until 30d.")
    with open_client(args) as client:
        delegate = resolve_user(args, args.to)
        until = parse_time(args.not_after, client.clock.now())
        acknowledged = client.delegate(delegate, until)
    said = {name: acknowledged[name] for name in ("entry", "pending")}
    done = f"to: {delegate.hex()}\nuntil: {until}"
    out.result({"to": delegate.hex(), "until": until, **said}, outcome(acknowledged, done))
    return 0


def _disable(args: argparse.Namespace, out: Output) -> int:
    args.identity = args.name or args.identity
    with open_client(args) as client:
        identity = client.account.identity
        if not args.yes:
            raise InvalidInput(
                "not-confirmed",
                f"disabling {identity.name!r} cannot be undone: its grants and consents end",
                hint="Add --yes if that is what you want.",
            )
        client.disable_identity()
    out.result({"name": identity.name, "id": identity.text, "disabled": True})
    return 0
