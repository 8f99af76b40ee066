"""Let a user use one of your models, on runtimes that satisfy a policy.

cloister grant MODEL --to USER --policy FILE.toml [--until 90d] [--quota N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cloister.cli.account import (
    add_account_options,
    add_owner_option,
    add_validity_options,
    open_client,
    outcome,
    read_policy,
    resolve_user,
    validity_of,
)
from cloister.cli.output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("model", help="the name of your model")
    parser.add_argument("--to", required=True, metavar="USER", help="the user's id, or an identity on this machine")
    parser.add_argument("--policy", required=True, type=Path, help="which runtimes may have the model's key")
    parser.add_argument("--quota", type=int, default=0, help="requests per lease of 60 s (default: no own limit)")
    add_validity_options(parser)
    add_owner_option(parser)
    add_account_options(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Say the grant."""
    policy = read_policy(args.policy)
    with open_client(args) as client:
        user = resolve_user(args, args.to)
        validity = validity_of(args, client.clock.now())
        acknowledged = client.grant(args.model, user, policy, validity=validity, quota=args.quota)
    out.result(
        {"model": args.model, "user": user.hex(), "policy": policy.digest.hex()}
        | {name: acknowledged[name] for name in ("entry", "pending")},
        outcome(acknowledged, f"granted {args.model} to {user.hex()[:16]}..."),
    )
    return 0
