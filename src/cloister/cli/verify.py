"""Verify evidence of a TEE and appraise it under a policy: one line a step.

cloister verify --tee TEE --evidence FILE --collateral DIR --policy FILE    evidence in a file
cloister verify --url URL --bundle FILE --bundle-root HEX                   a live KeyService, under a trust bundle
cloister verify --url URL --policy FILE                                     a live KeyService or runtime

Exit status: 0 accepted, 1 refused, 2 unusable arguments. A step that was skipped never counts as passed: it was left
out by name in the policy, not asked for, or not reached. Of evidence in a file nothing shows, without --report-data,
that it is fresh or made for you; a live service answers a nonce. Nobody but the TEE can answer, but anybody may carry
the answer: what is secret is sealed to attested keys by the client, not sent to an address that verified.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cloister.attest.appraise import appraisal_report
from cloister.attest.policy import Policy
from cloister.attest.policy_toml import MAX_POLICY_TEXT, parse_policy
from cloister.attest.steps import Steps
from cloister.attest.types import Claims, Configuration
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, InvalidInput
from cloister.cli.evidence import add_evidence_arguments, from_hex, read_presented
from cloister.cli.files import read_text
from cloister.cli.output import Output, show_error
from cloister.cli.verdict import UNUSABLE, Findings, failed
from cloister.crypto.digest import same


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of ``cloister verify``."""
    parser.add_argument("--url", metavar="URL", help="of a live KeyService or runtime (http, https, unix:/PATH)")
    add_evidence_arguments(parser, required=False)
    parser.add_argument("--policy", type=Path, metavar="FILE", help="see docs/reference/policy.md")
    parser.add_argument("--report-data", metavar="HEX", help="what the evidence must be bound to: 64 bytes")
    parser.add_argument("--bundle", type=Path, metavar="FILE", help="with --url: the trust bundle")
    parser.add_argument("--bundle-root", metavar="HEX", help="with --bundle: the pinned key that signed it")
    parser.add_argument("--bundle-version", type=int, default=1, metavar="N", help="with --bundle: the least version")


def run(args: argparse.Namespace, out: Output) -> int:
    """Verify and appraise."""
    try:
        if args.url is not None:
            from cloister.cli.verify_live import read_question

            question = read_question(args)
        else:
            return _verify_file(args, out)
    except InvalidInput as error:
        show_error(error, as_json=out.as_json)
        return UNUSABLE
    from cloister.cli.verify_live import examine

    return examine(question).show(out)


def read_policy(path: Path) -> Policy:
    """A policy file.

    :raises InvalidInput: unreadable, or no policy.
    """
    return parse_policy(read_text(path, limit=MAX_POLICY_TEXT, what="policy"))


def _verify_file(args: argparse.Namespace, out: Output) -> int:
    for name in ("bundle", "bundle_root"):
        if getattr(args, name) is not None:
            raise InvalidInput("argument", f"--{name.replace('_', '-')} goes with --url")
    for name in ("tee", "evidence", "policy"):
        if getattr(args, name) is None:
            raise InvalidInput("argument", f"without --url, --{name} must be given")
    presented = read_presented(args)
    policy = read_policy(args.policy)
    expected = None if args.report_data is None else _report_data(args)
    findings, recorder = Findings(presented.evidence.tee.value), Steps()
    if presented.problem is not None:
        problem = presented.problem
        findings.steps.append(failed(problem.step, problem.error, problem.clause))
        findings.not_reached(policy)
        return findings.show(out)
    if _is_text(presented.evidence.body):
        findings.warnings.append(f"{args.evidence} holds text; evidence is bytes: decode hexadecimal or base64 first")
    try:
        verified = verify(presented.evidence, presented.collateral, presented.anchors, presented.now, recorder)
    except CloisterError as error:
        findings.verification(recorder, error)
        findings.not_reached(policy)
        return findings.show(out)
    findings.verification(recorder)
    findings.verified = verified
    report = appraisal_report(
        verified,
        configuration=presented.configuration,
        report_data=expected,
        policy=policy,
        now=presented.now,
    )
    findings.appraisal(report, policy)
    if expected is None and findings.accepted:
        findings.warnings.append("without --report-data nothing shows that the evidence is fresh, or made for you")
    if findings.accepted and not _is_attested(presented.configuration, verified.claims):
        findings.warnings.append(
            "only --report-data that was made over its digest ties the configuration to the evidence"
        )
    return findings.show(out)


def _is_attested(configuration: Configuration | None, claims: Claims) -> bool:
    """Whether the evidence itself holds the digest of a configuration that was given."""
    return configuration is None or same(claims.configuration_digest[: len(configuration.digest)], configuration.digest)


def _is_text(body: bytes) -> bool:
    return bool(body) and all(byte in b"\t\r\n" or 0x20 <= byte < 0x7F for byte in body)


def _report_data(args: argparse.Namespace) -> bytes:
    data = from_hex(args.report_data, "--report-data")
    if args.tee == "nitro" and 0 < len(data) <= 1024:
        return data
    if len(data) != 64:
        raise InvalidInput("argument", f"--report-data has {len(data)} bytes; 64 are bound into evidence")
    return data
