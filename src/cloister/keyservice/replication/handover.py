"""The root secret goes from a running KeyService to a new replica or to a successor, after mutual attestation.

Both sides judge the other's evidence under the trust bundle by whose rule callers believe a KeyService. Then each finds
in the other the very same code and configuration (protocol.md, 13.15), or the joiner is one that the bundle names as a
successor (13.26): then the log says so before the secret leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, final

from cloister.adapters.keyservice import MAX_DESCRIPTION, MAX_REPLY, Transport, believe, check_bundle_in_use
from cloister.attest.appraise import appraise
from cloister.attest.bundle import TrustBundle
from cloister.attest.code import code_measurements, code_name, same_code
from cloister.attest.configuration import decode_configuration
from cloister.attest.types import (
    Appraisal,
    Attester,
    Claims,
    CollateralSource,
    Configuration,
    Evidence,
    TeeType,
    VerifiedEvidence,
)
from cloister.attest.verify import verify
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput, Refused, Tampered, Unavailable
from cloister.base.limits import CONFIRM_RETRY_S
from cloister.crypto.digest import same
from cloister.crypto.hpke import HpkePrivateKey
from cloister.keyservice.freshness import Challenges
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.proposals import Proposal
from cloister.keyservice.root import Root, decode_root
from cloister.keyservice.state.state import State
from cloister.keyservice.vault import Vault
from cloister.log.entry import HAND_OVER, HandOverRecord
from cloister.wire import calls
from cloister.wire.calls import Description, LogHead, WireEvidence
from cloister.wire.handover import HandoverRequest, handover_report_data, open_sealed_root, seal_root

DESCRIPTION_PATH: Final = "/v1/replica/description"
CHALLENGE_PATH: Final = "/v1/replica/challenge"
HANDOVER_PATH: Final = "/v1/replica/handover"
# The same of the one that leads: a replica that does not lead passes these on.
LEADER_DESCRIPTION_PATH: Final = "/v1/description"
LEADER_CHALLENGE_PATH: Final = "/v1/successor/challenge"
LEADER_HANDOVER_PATH: Final = "/v1/successor/handover"
_MAX_CHALLENGE: Final = 128
# What replicas of two builds have in common: else they count and verify differently (13.26.4).
_COMMON: Final = ("replicas", "rollback_protection", "witnesses", "witness_threshold")


@final
class Donor:
    """Hands the root secret over; one KeyService's. Thread-safe.

    :param own: what this KeyService says of itself at present.
    :param bundle: the trust bundle in use.
    :param ledger: where hand-overs are entered, and by whose time evidence is judged.
    """

    def __init__(
        self,
        root: Root,
        *,
        configuration: Configuration,
        own: Callable[[], Description],
        bundle: Callable[[], TrustBundle],
        collateral: CollateralSource,
        ledger: Ledger,
    ) -> None:
        self.challenges = Challenges()
        self._root = root
        self._configuration = configuration
        self._own = own
        self._bundle = bundle
        self._collateral = collateral
        self._ledger = ledger

    def hand_over(self, body: bytes) -> tuple[dict[str, object], Claims]:
        """The root secret, sealed for whoever sent this request, and the claims of who that is.

        :raises CloisterError: whatever is wrong with request, challenge, evidence or collateral.
        :raises Refused: ``replica-other``: it is not what we are, and no successor.
        :raises Unavailable: ``bundle-unrecorded``; the entry about a successor cannot be written or confirmed.
        """
        request = HandoverRequest.decode(body)
        self.challenges.check(request.challenge, self._ledger.now())
        bundle = self._bundle()
        check_bundle_in_use(request.bundle_digest, bundle)
        configuration = decode_configuration(request.configuration)
        known = configuration.digest in (
            self._configuration.digest,
            *(item.configuration for item in bundle.successors),
        )
        if not known:
            raise other_configuration(self._configuration, configuration)
        bound = request.report_data(self._root.id)
        evidence = _evidence(request.evidence)
        verified = _verify(evidence, bundle, self._collateral, self._ledger.now())
        appraise(
            verified,
            configuration=configuration,
            report_data=bound,
            policy=bundle.keyservice,
            now=self._ledger.now(),
        )
        claims = verified.claims
        own = self.appraised(bundle)
        identical = is_replica(own.configuration, own.claims, configuration, claims)
        if not identical:
            check_successor(bundle, own.configuration, configuration, claims)
        self.challenges.redeem(request.challenge, self._ledger.now())
        root = self._root
        if not (identical and self._ledger.following):
            head = self._enter(claims, configuration, bundle, recorded=not identical)
            root = root if identical else replace(root, since=(head.size, head.root))
        return seal_root(request, root.id, root.encode()), claims

    def appraised(self, bundle: TrustBundle) -> Appraisal:
        """Our own evidence, which must satisfy the bundle as any KeyService's; raises as :func:`believe`."""
        description = self._own()
        collateral = self._collateral.collateral(_evidence(description.evidence))
        return believe(description, bundle=bundle, collateral=collateral, now=self._ledger.now()).appraisal

    def _enter(self, claims: Claims, configuration: Configuration, bundle: TrustBundle, *, recorded: bool) -> LogHead:
        """Durable, and confirmed by witnesses where there are any, when this returns (13.26.5); a head that holds it.

        :param recorded: the bundle must be the one that the log names.
        """
        record = HandOverRecord(
            claims.tee.value, code_measurements(claims), configuration.digest, bundle.digest, bundle.version
        )

        def propose(state: State, _vault: Vault, _now: float) -> Proposal:
            if recorded and (state.bundle is None or not same(state.bundle.digest, bundle.digest)):
                raise Unavailable(
                    "bundle-unrecorded",
                    "the log does not name the trust bundle yet by which this hand-over would be judged",
                    retry_after=CONFIRM_RETRY_S,
                )
            return Proposal(HAND_OVER, record.encode())

        written = self._ledger.commit(propose)
        if written is None:
            raise AssertionError
        return written.head


@dataclass(frozen=True, slots=True)
class Joiner:
    """One that asks for the root secret.

    :param expected: id of the only KeyService that will do; ``None``: the one that answers.
    """

    attester: Attester
    configuration: Configuration
    bundle: TrustBundle
    collateral: CollateralSource
    clock: Clock
    expected: bytes | None = None

    def receive(self, giver: Transport) -> Root:
        """Get the root secret from a running KeyService: as its replica, or as a successor from the one that leads.

        :raises Unavailable: it cannot be reached, or cannot answer now.
        :raises Refused: ``replica-other``, ``keyservice-other``, and the codes of :func:`believe`; whatever it answers.
        :raises Tampered: signatures; ``handover-other``: what was handed over is not the root of who was attested.
        """
        root = self._ask(giver, DESCRIPTION_PATH, CHALLENGE_PATH, HANDOVER_PATH, successor=False)
        if root is None:
            root = self._ask(
                giver, LEADER_DESCRIPTION_PATH, LEADER_CHALLENGE_PATH, LEADER_HANDOVER_PATH, successor=True
            )
        if root is None:
            raise AssertionError
        return root

    def _ask(self, giver: Transport, described: str, challenged: str, asked: str, *, successor: bool) -> Root | None:
        """``None`` when we are something else than the giver, and its successor, and asked for a replica."""
        description = Description.decode(giver.get(described, limit=MAX_DESCRIPTION))
        if self.expected is not None and not same(description.keyservice, self.expected):
            raise Refused("keyservice-other", "this is another KeyService than the one that was named")
        found = self.collateral.collateral(_evidence(description.evidence))
        theirs = believe(description, bundle=self.bundle, collateral=found, now=self.clock.now()).appraisal
        key = HpkePrivateKey.generate()
        challenge = giver.post(challenged, b"", limit=_MAX_CHALLENGE)
        encoded, digest = self.configuration.encoded, self.bundle.digest
        bound = handover_report_data(description.keyservice, key.public_key, challenge, encoded, digest)
        evidence = self.attester.evidence(bound)
        own = _verify(evidence, self.bundle, self.collateral, self.clock.now()).claims
        if not same(own.report_data, bound):
            raise Tampered("evidence-device-lied", "the device answers with evidence over other report data")
        if not is_replica(theirs.configuration, theirs.claims, self.configuration, own):
            check_successor(self.bundle, theirs.configuration, self.configuration, own)
            if not successor:
                return None
        wire = WireEvidence(evidence.tee.value, evidence.body, dict(evidence.endorsements))
        request = HandoverRequest(key.public_key, challenge, encoded, digest, wire)
        call = calls.seal_call(description, calls.HANDOVER, request.encode())
        result = calls.open_reply(call, giver.post(asked, call.data, limit=MAX_REPLY))
        root = decode_root(open_sealed_root(result, request, description.keyservice, key))
        if not same(root.id, description.keyservice) or root.log_keys != description.log_keys:
            raise Tampered("handover-other", "what was handed over is not the root of the KeyService that was attested")
        return root


def is_replica(giver: Configuration, given: Claims, joiner: Configuration, asking: Claims) -> bool:
    """Whether the joiner is what the giver is, and the giver one that has replicas (13.15.2)."""
    return bool(giver.values.get("replicas")) and same(giver.encoded, joiner.encoded) and same_code(given, asking)


def check_successor(bundle: TrustBundle, giver: Configuration, joiner: Configuration, asking: Claims) -> None:
    """:raises Refused: ``replica-other`` unless the bundle names the joiner's code and configuration, as one pair, and
    the two can be replicas of one KeyService where the giver has any (13.26.3, 13.26.4).
    """
    if asking.debug or not bundle.names(code_name(asking.tee, asking.measurements), joiner.digest):
        if not same(giver.encoded, joiner.encoded):
            raise other_configuration(giver, joiner)
        raise Refused(
            "replica-other",
            "the other side is other code, or runs in another kind of TEE or in debug mode, and the trust bundle "
            "names no such successor",
            hint="Replicas are the very same build in the same kind of TEE; an upgrade is a pair in `successors`.",
        )
    common = ("bundle_root", *(_COMMON if giver.values.get("replicas") else ()))
    differing = [name for name in common if giver.values.get(name) != joiner.values.get(name)]
    if differing:
        raise Refused(
            "replica-other",
            f"a successor that joins replicas has the same {', '.join(common)}; its {', '.join(differing)} differ",
            hint="What counts replicas and confirms heads changes with a new KeyService only.",
        )


def other_configuration(own: Configuration, other: Configuration) -> Refused:
    """Whose configuration is neither ours nor a successor's."""
    names = own.values.keys() | other.values.keys()
    differing = ", ".join(sorted(name for name in names if own.values.get(name) != other.values.get(name)))[:200]
    return Refused(
        "replica-other",
        f"the other side is configured otherwise: {differing}",
        hint="Replicas of one KeyService have the very same configuration; an upgrade is a pair in `successors`.",
    )


def _evidence(wire: WireEvidence) -> Evidence:
    try:
        return Evidence(TeeType(wire.tee), wire.body, wire.endorsements)
    except ValueError as error:
        raise InvalidInput("evidence-unknown-tee", "the evidence is of a TEE unknown here") from error


def _verify(evidence: Evidence, bundle: TrustBundle, source: CollateralSource, now: float) -> VerifiedEvidence:
    verified = verify(evidence, source.collateral(evidence), bundle.anchors(), now)
    bundle.check_collateral(verified.claims)
    return verified
