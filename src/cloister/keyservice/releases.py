"""Runtimes: attestation opens a session, and every release is decided anew (spec/protocol.md, section 7)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from types import MappingProxyType
from typing import Any, Final, final

from cloister.access.checks import Asked
from cloister.access.decide import KeyRelease, LeaseBounds, decide, explain
from cloister.attest.anchors import TrustAnchors
from cloister.attest.appraise import AppraisalReport, appraisal_report, appraise
from cloister.attest.configuration import decode_configuration
from cloister.attest.policy import Policy
from cloister.attest.types import (
    Appraisal,
    Claims,
    CollateralSource,
    Configuration,
    Evidence,
    TeeType,
    VerifiedEvidence,
)
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.base.limits import VERIFICATIONS_AT_ONCE
from cloister.base.secret import SecretBytes
from cloister.keyservice.freshness import Challenges
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.limiting.limiter import Limiter, platform_of
from cloister.keyservice.limiting.verifications import Verifications
from cloister.keyservice.proposals import Proposal
from cloister.keyservice.sessions import AttestedRuntime, Denial, Denials, OpenSession, Sessions
from cloister.keyservice.state.state import State
from cloister.keyservice.vault import Vault
from cloister.log.entry import RELEASE, ReleaseRecord
from cloister.wire.provisioning import AttestRequest, Release, ReleaseRequest, new_session, offer_session

_CACHED_POLICIES: Final = 1024  # decoded; a policy is immutable and named by its digest


@final
class PolicyCache:
    """Policies of the state, decoded once."""

    def __init__(self) -> None:
        self._decoded: OrderedDict[bytes, Policy] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, state: State, digest: bytes) -> Policy | None:
        """The policy of this digest, if the state has it."""
        with self._lock:
            policy = self._decoded.get(digest)
            if policy is not None:
                return policy
            encoded = state.policies.get(digest)
            if encoded is None:
                return None
            policy = self._decoded[digest] = Policy.decode(encoded)
            if len(self._decoded) > _CACHED_POLICIES:
                self._decoded.popitem(last=False)
            return policy


@final
class Releases:
    """Sessions and releases over one ledger."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        anchors: TrustAnchors,
        collateral: CollateralSource,
        bounds: LeaseBounds,
        session_s: int,
        limiter: Limiter,
    ) -> None:
        self.challenges = Challenges()
        self.sessions = Sessions()
        self.denials = Denials()
        self.policies = PolicyCache()
        self._ledger = ledger
        self._anchors = anchors
        self._collateral = collateral
        self._bounds = bounds
        self._session_s = session_s
        self._limiter = limiter
        self._admitting = threading.Lock()
        self._verifying = Verifications(VERIFICATIONS_AT_ONCE)

    def attest(self, body: bytes) -> dict[str, object]:
        """Verify a runtime's evidence and open a session (clauses 7.2, 7.3).

        :raises CloisterError: whatever is wrong with request, challenge, evidence or collateral.
        :raises Unavailable: ``keyservice-busy``, ``rate-limited``.
        """
        request = AttestRequest.decode(body)
        self.challenges.check(request.challenge, self._ledger.now())
        with self._verifying.one():
            verified, configuration = self._verify(request)
        platform, now = platform_of(verified.claims), self._ledger.now()
        with self._admitting:  # a replay is refused before it costs the platform anything
            self.challenges.check(request.challenge, now)
            self._limiter.attestation(platform)
            self.challenges.redeem(request.challenge, now)
        lifetime = max(1, min(self._session_s, int(verified.expires_at - now)))
        session = new_session(lifetime)
        runtime = AttestedRuntime(verified, configuration, request.report_data(), platform)
        self.sessions.add(OpenSession(session, runtime, now + lifetime), now)
        return offer_session(request, session)

    def _verify(self, request: AttestRequest) -> tuple[VerifiedEvidence, Configuration]:
        try:
            tee = TeeType(request.evidence.tee)
        except ValueError as error:
            raise InvalidInput("evidence-unknown-tee", "the evidence is of a TEE unknown here") from error
        evidence = Evidence(tee, request.evidence.body, request.evidence.endorsements)
        configuration = decode_configuration(request.configuration)
        collateral = self._collateral.collateral(evidence)
        verified = verify(evidence, collateral, self._anchors, self._ledger.now())
        if not _bound(verified.claims, request.report_data()):
            raise Refused("report-data-mismatch", "the evidence is not over this request")
        return verified, configuration

    def release(self, opened: OpenSession, body: dict[str, Any]) -> dict[str, object]:
        """Decide about one pair of keys; the decision is in the log before the keys leave (clauses 7.5, 7.6).

        :raises Refused: ``release-refused``, and nothing else of why (clause 7.9).
        :raises Unavailable: ``rate-limited``; the ledger's codes.
        """
        request = ReleaseRequest.read(body)
        self._limiter.release(opened.bucket, opened.runtime.platform)
        taken: list[tuple[KeyRelease, SecretBytes, SecretBytes]] = []

        def propose(state: State, vault: Vault, now: float) -> Proposal:
            decision = self._decide(state, request, opened.runtime, now)
            self._limiter.entry()
            taken.append((decision, *vault.release(decision)))
            return Proposal(RELEASE, _record(decision, opened.runtime).encode())

        try:
            done = self._ledger.commit(propose)
        except Unavailable:
            raise
        except CloisterError as error:
            raise Refused(
                "release-refused",
                "owner or user does not let this runtime have these keys",
                hint="Each of them sees which rule refuses with `cloister access why`.",
            ) from error
        if done is None:
            msg = "a release is always an entry"
            raise AssertionError(msg)
        opened.useful = True
        decision, model_key, key = taken[0]
        release = Release(
            manifest_digest=decision.manifest_digest,
            version=decision.version,
            model_key=model_key,
            key=key,
            user_key=decision.user_key,
            lease_s=decision.lease_s,
            lease_requests=decision.lease_requests,
            owner_policy=decision.owner_appraisal.policy_digest,
            user_policy=decision.user_appraisal.policy_digest,
            co_tenancy=decision.co_tenancy,
            head=done.head,
        )
        return release.fields()

    def _decide(self, state: State, request: ReleaseRequest, runtime: AttestedRuntime, now: float) -> KeyRelease:
        facts = state.facts(request.user, request.model)
        owner_policy = self.policies.get(state, facts.grant.policy_digest) if facts.grant else None
        user_policy = self.policies.get(state, facts.consent.policy_digest) if facts.consent else None
        try:
            if owner_policy is None or user_policy is None:
                raise Refused("policy-unknown", "there is no policy of one party to hold the evidence against")
            return decide(
                request,
                facts,
                owner_policy=owner_policy,
                owner_appraisal=_appraise(runtime, owner_policy, now),
                user_policy=user_policy,
                user_appraisal=_appraise(runtime, user_policy, now),
                now=now,
                bounds=self._bounds,
            )
        except CloisterError:
            if facts.grant is None and facts.consent is None:
                raise  # `why` says so by itself, and names that a runtime invents push out nobody's denial
            checks = explain(
                Asked(request.user, request.model, request.mode, request.key_id),
                facts,
                owner_report=_report(runtime, owner_policy, now),
                user_report=_report(runtime, user_policy, now),
                now=now,
            )
            claims = runtime.verified.claims
            measurements = MappingProxyType(dict(claims.measurements))
            self.denials.note(request.model, request.user, Denial(int(now), claims.tee.value, checks, measurements))
            raise


def _bound(claims: Claims, report_data: bytes) -> bool:
    """Early word to the runtime; the appraisals compare again, with the same value."""
    return claims.report_data == report_data


def _appraise(runtime: AttestedRuntime, policy: Policy, now: float) -> Appraisal:
    return appraise(
        runtime.verified,
        configuration=runtime.configuration,
        report_data=runtime.report_data,
        policy=policy,
        now=now,
    )


def _report(runtime: AttestedRuntime, policy: Policy | None, now: float) -> AppraisalReport | None:
    if policy is None:
        return None
    return appraisal_report(
        runtime.verified,
        configuration=runtime.configuration,
        report_data=runtime.report_data,
        policy=policy,
        now=now,
    )


def _record(decision: KeyRelease, runtime: AttestedRuntime) -> ReleaseRecord:
    claims = runtime.verified.claims
    return ReleaseRecord(
        user=decision.user,
        model=decision.model,
        manifest_digest=decision.manifest_digest,
        version=decision.version,
        mode=decision.mode,
        key_id=decision.key_id,
        tee=claims.tee.value,
        measurements=claims.measurements,
        configuration_digest=runtime.configuration.digest,
        owner_policy=decision.owner_appraisal.policy_digest,
        owner_rule=decision.owner_appraisal.rule,
        user_policy=decision.user_appraisal.policy_digest,
        user_rule=decision.user_appraisal.rule,
        lease_s=decision.lease_s,
        lease_requests=decision.lease_requests,
    )
