"""Let runtimes that satisfy a policy see your requests to one model; or rotate the key of a consent.

cloister consent OWNER/NAME --policy FILE.toml [--manifest DIGEST] [--mode request-key|service-key] [--until 90d]
cloister consent OWNER/NAME --rotate-key
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cloister.base.errors import InvalidInput
from cloister.base.ids import parse_id
from cloister.cli.account import (
    add_account_options,
    add_validity_options,
    open_client,
    outcome,
    read_policy,
    resolve_model,
    validity_of,
)
from cloister.cli.output import Output
from cloister.wire.statements import REQUEST_KEY, SERVICE_KEY


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("model", help="OWNER/NAME, as in `cloister access list`; OWNER's name where her identity is")
    parser.add_argument("--policy", type=Path, help="which runtimes may see your requests")
    parser.add_argument("--manifest", help="only this version (64 hexadecimal digits); default: any by this owner")
    parser.add_argument(
        "--mode", choices=[REQUEST_KEY, SERVICE_KEY], default=REQUEST_KEY, help="how requests are sealed"
    )
    parser.add_argument("--rotate-key", action="store_true", help="replace the request key of the consent there is")
    add_validity_options(parser)
    add_account_options(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Say the consent, or rotate its key."""
    args.model = resolve_model(args, args.model)
    if args.rotate_key:
        with open_client(args) as client:
            acknowledged = client.rotate_request_key(args.model)
        out.result(
            {"model": args.model, "entry": acknowledged["entry"], "pending": acknowledged["pending"]},
            outcome(acknowledged, "rotated the request key"),
        )
        return 0
    if args.policy is None:
        raise InvalidInput("policy-missing", "a consent needs a policy", hint="Name one with --policy FILE.toml.")
    policy = read_policy(args.policy)
    manifest = parse_id(args.manifest, what="the manifest's digest") if args.manifest else None
    with open_client(args) as client:
        validity = validity_of(args, client.clock.now())
        kept = client.consent(args.model, policy, manifest_digest=manifest, mode=args.mode, validity=validity)
    out.result(
        {"model": args.model, "policy": kept.policy_digest.hex(), "mode": kept.mode, **kept.place()},
        outcome(kept.place(), f"consented to {args.model} ({kept.mode})"),
    )
    return 0
