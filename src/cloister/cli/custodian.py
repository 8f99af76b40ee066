"""Hold a key with which a KeyService can be brought back when its machines are lost.

    cloister custodian keygen --key FILE
    cloister custodian show   --key FILE
    cloister custodian answer --key FILE --to URL --bundle FILE --bundle-root HEX [--only-check] [--yes]

`keygen` makes the key (encrypted where CLOISTER_PASSPHRASE is set) and FILE.pub, the public half for the KeyService's
operator, and prints the id that its measured configuration names. Shares are not kept here: they lie with the store of
the KeyService, each sealed to one custodian. `answer` verifies who asks under the trust bundle, says which KeyService,
code and configuration it would bring back, asks, and gives the share to that enclave only; `--only-check` stops before.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister.base.errors import InvalidInput
from cloister.base.ids import parse_id
from cloister.base.limits import MAX_BUNDLE
from cloister.cli.files import read_file
from cloister.cli.output import Output

if TYPE_CHECKING:
    from cloister.client.custodian import Asked


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("action", choices=("keygen", "show", "answer"), help="what to do")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="the custodian's private key")
    parser.add_argument("--to", metavar="URL", help="answer: where the KeyService that is brought back waits")
    parser.add_argument("--bundle", type=Path, metavar="FILE", help="answer: the trust bundle")
    parser.add_argument("--bundle-root", metavar="HEX", help="answer: the key that signs it")
    parser.add_argument("--keyservice", metavar="ID", help="answer: the only KeyService to bring back, in hexadecimal")
    parser.add_argument(
        "--collateral",
        metavar="SOURCE",
        help="answer: for the evidence: a folder, a bundle file or `vendors`; default: what it brings along",
    )
    parser.add_argument("--only-check", action="store_true", help="answer: verify who asks and the share, give nothing")
    parser.add_argument("--yes", action="store_true", help="answer: do not ask")


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    actions = {"keygen": _keygen, "show": _show, "answer": _answer}
    return actions[args.action](args, out)


def _keygen(args: argparse.Namespace, out: Output) -> int:
    from cloister.cli.account import passphrase
    from cloister.client.custodian import make_key, public_file
    from cloister.wire.custody import custodian_id

    key = make_key(args.key, passphrase())
    public = public_file(args.key)
    out.result(
        {"custodian": custodian_id(key.public_key).hex(), "key": str(args.key), "public_key": str(public)},
        f"custodian {custodian_id(key.public_key).hex()}\nGive {public} to whoever runs the KeyService, and compare "
        f"the id. Keep {args.key} off line, and a copy of it.",
    )
    return 0


def _show(args: argparse.Namespace, out: Output) -> int:
    from cloister.cli.account import passphrase
    from cloister.client.custodian import load_key
    from cloister.wire.custody import custodian_id

    out.result({"custodian": custodian_id(load_key(args.key, passphrase()).public_key).hex(), "key": str(args.key)})
    return 0


def _answer(args: argparse.Namespace, out: Output) -> int:
    from cloister.adapters.clock import SystemClock
    from cloister.adapters.collateral.configured import open_collateral
    from cloister.adapters.http.blocking import HttpClient
    from cloister.adapters.keyservice import HttpTransport
    from cloister.attest.bundle import open_bundle
    from cloister.cli.account import passphrase
    from cloister.client import custodian
    from cloister.wire.custody import custodian_id

    for name in ("to", "bundle", "bundle_root"):
        if getattr(args, name) is None:
            raise InvalidInput("argument", f"`cloister custodian answer` needs --{name.replace('_', '-')}")
    clock = SystemClock()
    key = custodian.load_key(args.key, passphrase())
    data = read_file(args.bundle, limit=MAX_BUNDLE, what="the trust bundle")
    bundle = open_bundle(data, parse_id(args.bundle_root, what="--bundle-root"), 0, clock.now())
    expected = None if args.keyservice is None else parse_id(args.keyservice, what="--keyservice")
    client = HttpClient(clock)
    try:
        transport = HttpTransport(client, args.to)
        collateral = open_collateral(args.collateral, bundle.anchors(), clock)
        asked = custodian.look(transport, bundle=bundle, collateral=collateral, clock=clock, expected=expected)
        custodian.share_of(asked, key)
        facts = _facts(asked, custodian_id(key.public_key))
        if args.only_check:
            out.result({**facts, "given": False})
            return 0
        _confirm(args, facts, out)
        given = custodian.answer(transport, asked, key)
    finally:
        client.close()
    left = max(0, given.threshold - given.answered)
    out.result(
        {**facts, "given": True, "answered": given.answered, "threshold": given.threshold},
        f"the share was given: {given.answered} of {given.threshold}"
        + (f", {left} more to go" if left else ", which is enough"),
    )
    return 0


def _facts(asked: Asked, own: bytes) -> dict[str, Any]:
    record, claims, configured = asked.offer.record, asked.appraisal.claims, asked.appraisal.configuration
    return {
        "custodian": own.hex(),
        "keyservice": record.keyservice.hex(),
        "set": record.set.hex(),
        "threshold": record.threshold,
        "custodians": len(record.holders),
        "tee": claims.tee.value,
        "measurements": {name: value.hex() for name, value in sorted(claims.measurements.items())},
        "configuration": configured.digest.hex(),
        "rollback_protection": str(configured.values.get("rollback_protection", "none")),
        "code": "the one that was lost" if asked.same_code else "a successor that the trust bundle names",
        "rule": asked.appraisal.rule,
        "warnings": list(asked.appraisal.warnings),
    }


def _confirm(args: argparse.Namespace, facts: dict[str, Any], out: Output) -> None:
    if args.yes:
        return
    if out.as_json or not sys.stdin.isatty():
        raise InvalidInput(
            "not-confirmed",
            f"this would bring back KeyService {facts['keyservice']}, with every key that it holds",
            hint="Add --yes if you were told by somebody whom you know that this is to happen.",
        )
    out.result(facts)
    out.line("\nYour share helps to bring this KeyService back, with every key that it holds.")
    if input("Type yes if somebody whom you know told you that this is to happen: ").strip() != "yes":
        raise InvalidInput("not-confirmed", "nothing was given")
