"""The root secret goes from a running KeyService to a new replica of it, after mutual attestation (protocol.md, 13.15).

Both sides judge the other's evidence under the trust bundle by whose rule callers believe a KeyService, and then
demand more than the rule may: the same kind of TEE, the same code and the same configuration as their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, final

from cloister.adapters.keyservice import MAX_DESCRIPTION, MAX_REPLY, Transport, believe, check_bundle_in_use
from cloister.attest.appraise import appraise
from cloister.attest.bundle import TrustBundle
from cloister.attest.configuration import decode_configuration
from cloister.attest.types import Attester, Claims, CollateralSource, Configuration, Evidence, TeeType, VerifiedEvidence
from cloister.attest.verify import verify
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput, Refused, Tampered
from cloister.crypto.digest import same
from cloister.crypto.hpke import HpkePrivateKey
from cloister.keyservice.freshness import Challenges
from cloister.keyservice.root import Root, decode_root
from cloister.wire import calls
from cloister.wire.calls import Description, WireEvidence
from cloister.wire.handover import HandoverRequest, handover_report_data, open_sealed_root, seal_root

DESCRIPTION_PATH: Final = "/v1/replica/description"
CHALLENGE_PATH: Final = "/v1/replica/challenge"
HANDOVER_PATH: Final = "/v1/replica/handover"
_MAX_CHALLENGE: Final = 128
# What tells one code from another, for each TEE; other registers differ from machine to machine (Nitro's PCR3, PCR4).
_CODE: Final = {
    TeeType.SGX: re.compile("mrenclave|mrsigner"),
    TeeType.TDX: re.compile("mrtd|rtmr[0-3]"),
    TeeType.SEV_SNP: re.compile("measurement"),
    TeeType.NITRO: re.compile("pcr[0-2]"),
    TeeType.SIMULATION: re.compile("measurement"),
}


@final
class Donor:
    """Hands the root secret over; one KeyService's. Thread-safe.

    :param own: what this KeyService says of itself at present.
    :param bundle: the trust bundle in use.
    :param now: the KeyService's time.
    """

    def __init__(
        self,
        root: Root,
        *,
        configuration: Configuration,
        own: Callable[[], Description],
        bundle: Callable[[], TrustBundle],
        collateral: CollateralSource,
        now: Callable[[], float],
    ) -> None:
        self.challenges = Challenges()
        self._root = root
        self._configuration = configuration
        self._own = own
        self._bundle = bundle
        self._collateral = collateral
        self._now = now

    def hand_over(self, body: bytes) -> tuple[dict[str, object], Claims]:
        """The root secret, sealed for whoever sent this request, and the claims of who that is.

        :raises CloisterError: whatever is wrong with request, challenge, evidence or collateral.
        :raises Refused: ``replica-other``: it is not what we are.
        """
        request = HandoverRequest.decode(body)
        self.challenges.check(request.challenge, self._now())
        bundle = self._bundle()
        check_bundle_in_use(request.bundle_digest, bundle)
        check_configuration(self._configuration, request.configuration)
        bound = request.report_data(self._root.id)
        evidence = _evidence(request.evidence)
        verified = _verify(evidence, bundle, self._collateral, self._now())
        appraise(
            verified,
            configuration=self._configuration,
            report_data=bound,
            policy=bundle.keyservice,
            now=self._now(),
        )
        check_code(self._claims(bundle), verified.claims)
        self.challenges.redeem(request.challenge, self._now())
        return seal_root(request, self._root.id, self._root.encode()), verified.claims

    def _claims(self, bundle: TrustBundle) -> Claims:
        """Of our own evidence, which must satisfy the bundle as any KeyService's."""
        description = self._own()
        collateral = self._collateral.collateral(_evidence(description.evidence))
        return believe(description, bundle=bundle, collateral=collateral, now=self._now()).appraisal.claims


def receive_root(
    giver: Transport,
    attester: Attester,
    *,
    configuration: Configuration,
    bundle: TrustBundle,
    collateral: CollateralSource,
    clock: Clock,
    expected: bytes | None = None,
) -> Root:
    """Get the root secret from a running KeyService of the same code and configuration.

    :param expected: id of the only KeyService that will do; ``None``: the one that answers.
    :raises Unavailable: it cannot be reached, or cannot answer now.
    :raises Refused: ``replica-other``, ``keyservice-other``, and the codes of :func:`believe`; whatever it answers.
    :raises Tampered: signatures; ``handover-other``: what was handed over is not the root of who was attested.
    """
    description = Description.decode(giver.get(DESCRIPTION_PATH, limit=MAX_DESCRIPTION))
    if expected is not None and not same(description.keyservice, expected):
        raise Refused("keyservice-other", "this is another KeyService than the one that was named")
    found = collateral.collateral(_evidence(description.evidence))
    attested = believe(description, bundle=bundle, collateral=found, now=clock.now())
    check_configuration(configuration, description.configuration)
    key = HpkePrivateKey.generate()
    challenge = giver.post(CHALLENGE_PATH, b"", limit=_MAX_CHALLENGE)
    bound = handover_report_data(
        description.keyservice, key.public_key, challenge, configuration.encoded, bundle.digest
    )
    evidence = attester.evidence(bound)
    own = _verify(evidence, bundle, collateral, clock.now())
    if not same(own.claims.report_data, bound):
        raise Tampered("evidence-device-lied", "the device answers with evidence over other report data")
    check_code(own.claims, attested.appraisal.claims)
    wire = WireEvidence(evidence.tee.value, evidence.body, dict(evidence.endorsements))
    request = HandoverRequest(key.public_key, challenge, configuration.encoded, bundle.digest, wire)
    call = calls.seal_call(description, calls.HANDOVER, request.encode())
    result = calls.open_reply(call, giver.post(HANDOVER_PATH, call.data, limit=MAX_REPLY))
    root = decode_root(open_sealed_root(result, request, description.keyservice, key))
    if not same(root.id, description.keyservice) or root.log_keys != description.log_keys:
        raise Tampered("handover-other", "what was handed over is not the root of the KeyService that was attested")
    return root


def check_configuration(own: Configuration, other: bytes) -> None:
    """:raises Refused: ``replica-other``."""
    if not same(own.encoded, other):
        differing = _differing(own, decode_configuration(other))
        raise Refused(
            "replica-other",
            f"the other side is configured otherwise: {differing}",
            hint="Replicas of one KeyService have the very same configuration.",
        )


def check_code(own: Claims, other: Claims) -> None:
    """:raises Refused: ``replica-other`` unless both are the same code in the same kind of TEE."""
    pattern = _CODE[own.tee]
    mine = {name: value for name, value in own.measurements.items() if pattern.fullmatch(name)}
    theirs = {name: value for name, value in other.measurements.items() if pattern.fullmatch(name)}
    if own.tee is not other.tee or not mine or mine != theirs or own.debug or other.debug:
        raise Refused(
            "replica-other",
            "the other side is other code, or runs in another kind of TEE or in debug mode",
            hint="Replicas of one KeyService are the very same build in the same kind of TEE.",
        )


def _differing(own: Configuration, other: Configuration) -> str:
    names = own.values.keys() | other.values.keys()
    return ", ".join(sorted(name for name in names if own.values.get(name) != other.values.get(name)))[:200]


def _evidence(wire: WireEvidence) -> Evidence:
    try:
        return Evidence(TeeType(wire.tee), wire.body, wire.endorsements)
    except ValueError as error:
        raise InvalidInput("evidence-unknown-tee", "the evidence is of a TEE unknown here") from error


def _verify(evidence: Evidence, bundle: TrustBundle, source: CollateralSource, now: float) -> VerifiedEvidence:
    verified = verify(evidence, source.collateral(evidence), bundle.anchors(), now)
    bundle.check_collateral(verified.claims)
    return verified
