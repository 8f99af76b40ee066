"""Ask a live service for its evidence over a fresh nonce, and verify it (spec/protocol.md, 5.1 to 5.3 and 7.10).

A KeyService makes one quote an epoch, which endorses the key that signs our nonce; a runtime makes a quote over it.
"""

from __future__ import annotations

import argparse
import secrets
from dataclasses import dataclass
from typing import Final

from cloister.adapters.clock import SystemClock
from cloister.adapters.collateral.configured import open_collateral
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.http.origin import parse_origin
from cloister.adapters.keyservice import MAX_DESCRIPTION, check_bundle_in_use, check_rollback_protection
from cloister.attest.anchors import TrustAnchors
from cloister.attest.appraise import appraisal_report
from cloister.attest.bundle import TrustBundle, open_bundle
from cloister.attest.configuration import decode_configuration
from cloister.attest.policy import Policy
from cloister.attest.steps import Steps
from cloister.attest.types import CollateralSource, Configuration, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.base.limits import MAX_BUNDLE
from cloister.cli.evidence import TEES, anchors_of, from_hex
from cloister.cli.files import read_file
from cloister.cli.verdict import Findings, configuration_json, failed, passed
from cloister.cli.verify import read_policy
from cloister.log.witness import require_quorum
from cloister.wire.calls import Description, WireEvidence, verify_status
from cloister.wire.presence import MAX_PRESENCE, NONCE_LENGTH, Presence

KEYSERVICE: Final = "keyservice"
RUNTIME: Final = "runtime"
_NOT_ASKED: Final = ("evidence", "report_data", "configuration", "at")


@dataclass(frozen=True, slots=True)
class Question:
    """What was given on the command line.

    :param tee: what the service must run in; ``None`` for whatever the policy accepts.
    :param policy: ours; ``None`` for the bundle's alone.
    """

    url: str
    tee: TeeType | None
    policy: Policy | None
    bundle: TrustBundle | None
    anchors: TrustAnchors
    collateral: CollateralSource
    clock: Clock


@dataclass(frozen=True, slots=True)
class Answered:
    """What the service said, believed by nobody yet.

    :param proof: after the evidence: what shows that it is fresh.
    """

    service: str
    evidence: WireEvidence
    configuration: bytes
    bundle_digest: bytes
    report_data: bytes
    description: Description | None
    status: bytes
    nonce: bytes


def read_question(args: argparse.Namespace) -> Question:
    """From the arguments.

    :raises InvalidInput: unusable ones, an unreadable policy, a bundle that is not signed by the root.
    """
    for name in _NOT_ASKED:
        if getattr(args, name) is not None:
            raise InvalidInput("argument", f"--{name.replace('_', '-')} does not go with --url: the service is asked")
    parse_origin(args.url)
    clock = SystemClock()
    bundle = _bundle(args, clock)
    if bundle is None and args.policy is None:
        raise InvalidInput("argument", "say --policy FILE, or for a KeyService --bundle FILE and --bundle-root HEX")
    if bundle is not None and args.insecure_simulation_key:
        raise InvalidInput("argument", "--bundle says which simulation keys count, if any")
    anchors = bundle.anchors() if bundle else anchors_of(args)
    return Question(
        url=args.url,
        tee=TEES[args.tee] if args.tee else None,
        policy=read_policy(args.policy) if args.policy else None,
        bundle=bundle,
        anchors=anchors,
        collateral=open_collateral(args.collateral, anchors, clock),
        clock=clock,
    )


def _bundle(args: argparse.Namespace, clock: Clock) -> TrustBundle | None:
    if args.bundle is None:
        if args.bundle_root is not None:
            raise InvalidInput("argument", "--bundle-root goes with --bundle")
        return None
    if args.bundle_root is None:
        raise InvalidInput("argument", "--bundle needs --bundle-root: the key that must have signed it")
    data = read_file(args.bundle, limit=MAX_BUNDLE, what="trust bundle")
    root = from_hex(args.bundle_root, "--bundle-root")
    if len(root) != 32:
        raise InvalidInput("argument", "--bundle-root has not 32 bytes")
    try:
        return open_bundle(data, root, args.bundle_version, clock.now())
    except CloisterError as error:  # not the service's fault: the argument is of no use
        raise InvalidInput(error.code, error.message, hint=error.hint) from error


def examine(question: Question) -> Findings:
    """Ask, verify, appraise; everything that was found, step by step. Raises nothing that the service could cause."""
    findings = Findings("unknown", more={"url": question.url, "service": "unknown"})
    try:
        answered = ask(question.url, question.clock)
    except CloisterError as error:
        findings.steps.append(failed("ask", error, "protocol.md 5.1, 7.10"))
        return findings
    clause = "protocol.md 5.1" if answered.service == KEYSERVICE else "protocol.md 7.10"
    findings.steps.append(passed("ask", f"a {answered.service} answers at {question.url}", clause))
    findings.more["service"] = answered.service
    try:
        _examine(question, answered, findings)
    except CloisterError as error:
        findings.steps.append(failed("answer", error, clause))
    return findings


def _examine(question: Question, answered: Answered, findings: Findings) -> None:
    tee = next((kind for kind in TeeType if kind.value == answered.evidence.tee), None)
    if tee is None:
        raise InvalidInput("evidence-unknown-tee", "the evidence names no TEE known here")
    findings.tee = tee.value
    if question.tee not in (None, tee):
        raise Refused("tee-unexpected", f"the service runs in {tee.value}, not in {question.tee}")
    configuration = decode_configuration(answered.configuration)
    findings.more["configuration"] = {
        "digest": configuration.digest.hex(),
        "values": configuration_json(configuration.values),
    }
    policies = _policies(question, answered)
    evidence = Evidence(tee, answered.evidence.body, answered.evidence.endorsements)
    recorder = Steps()
    try:
        collateral = question.collateral.collateral(evidence)
        verified = verify(evidence, collateral, question.anchors, question.clock.now(), recorder)
    except CloisterError as error:
        findings.verification(recorder, error)
        for policy in policies:
            findings.not_reached(policy)
        return
    findings.verification(recorder)
    findings.verified = verified
    now = question.clock.now()
    for policy in policies:
        report = appraisal_report(
            verified, configuration=configuration, report_data=answered.report_data, policy=policy, now=now
        )
        findings.appraisal(report, policy)
        if report.accepted_by is None:
            return
    steps = Steps()
    try:
        _after_appraisal(question, answered, configuration, findings, steps)
    except CloisterError as error:
        findings.verification(steps, error)
    else:
        findings.verification(steps)


def _policies(question: Question, answered: Answered) -> list[Policy]:
    """Ours and the bundle's: all of them must accept."""
    found = [] if question.policy is None else [question.policy]
    if answered.service == KEYSERVICE and question.bundle is not None:
        found.append(question.bundle.keyservice)
    if not found:
        raise InvalidInput(
            "policy-missing",
            "a runtime answers, of which a trust bundle says nothing",
            hint="Say --policy FILE with the policy of your grant or consent.",
        )
    return found


def _after_appraisal(
    question: Question, answered: Answered, configuration: Configuration, findings: Findings, steps: Steps
) -> None:
    """What holds beside the policies: fresh, and under our trust bundle."""
    if answered.description is not None:
        steps.extend((("freshness", "protocol.md 5.3"),))
    if question.bundle is not None:
        steps.extend((("collateral-age", "attestation.md 10.8"), ("bundle-in-use", "protocol.md 5.4")))
        if answered.description is not None:
            steps.extend((("rollback-protection", "attestation.md 10.5"),))
            steps.extend((("witnesses", "protocol.md 13.12"),) if question.bundle.witnesses else ())
    if answered.description is not None:
        with steps.step("freshness", "the attested key signed our nonce"):
            head = verify_status(answered.status, answered.description, answered.nonce)
        findings.more["keyservice"] = answered.description.keyservice.hex()
        findings.more["log"] = {"entries": head.size, "root": head.root.hex(), "time": head.time}
    if question.bundle is not None and findings.verified is not None:
        with steps.step("collateral-age"):
            question.bundle.check_collateral(findings.verified.claims)
        with steps.step("bundle-in-use", f"version {question.bundle.version}"):
            check_bundle_in_use(answered.bundle_digest, question.bundle)
        if answered.description is not None:
            with steps.step("rollback-protection"):
                check_rollback_protection(configuration, question.bundle)
            if question.bundle.witnesses:
                with steps.step("witnesses", f"{question.bundle.witness_threshold} must have co-signed lately"):
                    require_quorum(
                        answered.description.keyservice,
                        verify_status(answered.status, answered.description, answered.nonce),
                        witnesses=question.bundle.witnesses,
                        threshold=question.bundle.witness_threshold,
                        now=question.clock.now(),
                    )


def ask(url: str, clock: Clock) -> Answered:
    """Ask whatever answers there for evidence over a fresh nonce.

    :raises Unavailable: ``service-unknown`` when it is neither KeyService nor runtime; unreachable.
    :raises InvalidInput: its answer is malformed.
    """
    client, nonce = HttpClient(clock), secrets.token_bytes(NONCE_LENGTH)
    try:
        answer = client.request("GET", url, "/v1/description", max_answer=MAX_DESCRIPTION)
        if answer.status == 200:
            description = Description.decode(bytes(answer.body))
            status = client.request("POST", url, "/v1/status", content=nonce, max_answer=4096).checked()
            return Answered(
                service=KEYSERVICE,
                evidence=description.evidence,
                configuration=description.configuration,
                bundle_digest=description.bundle_digest,
                report_data=description.report_data(),
                description=description,
                status=bytes(status.body),
                nonce=nonce,
            )
        if answer.status not in (404, 405):
            answer.checked()
        answer = client.request("POST", url, "/v1/evidence", content=nonce, max_answer=MAX_PRESENCE)
        if answer.status in (404, 405):
            raise Unavailable(
                "service-unknown",
                f"what answers at {url} is neither a KeyService nor a runtime",
                hint="A gateway shows no evidence: name the service behind it.",
            )
        presence = Presence.decode(bytes(answer.checked().body))
        return Answered(
            service=RUNTIME,
            evidence=presence.evidence,
            configuration=presence.configuration,
            bundle_digest=presence.bundle_digest,
            report_data=presence.report_data(nonce),
            description=None,
            status=b"",
            nonce=nonce,
        )
    finally:
        client.close()
