"""Take back a grant (as an owner) or a consent (as a user). Running instances stop within the lease, 60 s.

cloister revoke MODEL --from USER        the grant
cloister revoke MODEL --consent          the consent
"""

from __future__ import annotations

import argparse

from cloister.cli.account import add_account_options, add_owner_option, open_client, resolve_model, resolve_user
from cloister.cli.output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("model", help="your model's name; with --consent: OWNER/NAME, or the name alone")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--from", dest="user", metavar="USER", help="whose grant")
    what.add_argument("--consent", action="store_true", help="your own consent")
    add_owner_option(parser)
    add_account_options(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Say the revocation."""
    with open_client(args) as client:
        if args.consent:
            acknowledged = client.revoke_consent(resolve_model(args, args.model))
        else:
            acknowledged = client.revoke(args.model, resolve_user(args, args.user))
    out.result({"model": args.model, "entry": acknowledged["entry"]}, f"revoked; log entry {acknowledged['entry']}")
    return 0
