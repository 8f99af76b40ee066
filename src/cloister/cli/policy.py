"""Attestation policies: what one says in words, and a first one from evidence that was seen.

cloister policy check FILE      explain a policy, and warn of what it leaves open
cloister policy observe ...     verify evidence and print the policy that accepts it, to be read before it is used
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cloister.attest.policy_observed import policy_for
from cloister.attest.policy_toml import MAX_POLICY_TEXT, format_policy, parse_policy
from cloister.attest.policy_words import explain_policy
from cloister.attest.verify import verify
from cloister.base.errors import InvalidInput
from cloister.cli.evidence import add_evidence_arguments, claims_json, read_presented
from cloister.cli.files import read_text
from cloister.cli.output import Output, show_error


def configure(parser: argparse.ArgumentParser) -> None:
    """The sub-commands of ``cloister policy``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    json_option = argparse.ArgumentParser(add_help=False)
    json_option.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
    check = actions.add_parser("check", parents=[json_option], help="explain a policy and warn of what it leaves open")
    check.add_argument("file", type=Path, metavar="FILE", help="TOML, see docs/reference/policy.md")
    observe = actions.add_parser(
        "observe", parents=[json_option], help="verify evidence and print a policy that accepts it"
    )
    add_evidence_arguments(observe)
    observe.add_argument("--name", default="observed", help="name of the rule; default: observed")
    observe.add_argument("--pin-platform", action="store_true", help="accept this very chip only")
    observe.add_argument("--insecure-debug", action="store_true", help="accept a TEE whose memory the host can read")


def run(args: argparse.Namespace, out: Output) -> int:
    """Run one of them."""
    return _check(args, out) if args.action == "check" else _observe(args, out)


def _check(args: argparse.Namespace, out: Output) -> int:
    try:
        text = read_text(args.file, limit=MAX_POLICY_TEXT, what="policy")
    except InvalidInput as error:
        show_error(error, as_json=out.as_json)
        return 2
    policy = parse_policy(text)
    sentences = explain_policy(policy)
    out.result(
        {
            "digest": policy.digest.hex(),
            "co_tenancy": policy.co_tenancy,
            "rules": [{"name": rule.name, "tee": rule.tee.value} for rule in policy.rules],
            "sentences": [{"rule": item.rule, "text": item.text} for item in sentences if not item.warning],
            "warnings": [{"rule": item.rule, "text": item.text} for item in sentences if item.warning],
        },
        "\n".join([*map(str, sentences), f"digest: {policy.digest.hex()}"]),
    )
    return 0


def _observe(args: argparse.Namespace, out: Output) -> int:
    try:
        presented = read_presented(args)
    except InvalidInput as error:
        show_error(error, as_json=out.as_json)
        return 2
    if presented.problem is not None:
        raise presented.problem.error
    verified = verify(presented.evidence, presented.collateral, presented.anchors, presented.now)
    policy = policy_for(
        verified.claims,
        presented.configuration,
        name=args.name,
        pin_platform=args.pin_platform,
        insecure_debug=args.insecure_debug,
    )
    text = format_policy(policy)
    out.result({"policy": text, "digest": policy.digest.hex(), "claims": claims_json(verified.claims)}, text.rstrip())
    return 0
