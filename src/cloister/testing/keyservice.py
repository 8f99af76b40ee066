"""A KeyService in the process, speaking the real wire formats: what a runtime's tests attest to.

It keeps grants in a dictionary and evaluates no policies; evidence, calls, sessions, releases, epochs and the log head
are as the real one makes them.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from cloister.adapters.tee.simulation import SimulatedAttester
from cloister.attest.appraise import appraise
from cloister.attest.bundle import TrustBundle
from cloister.attest.configuration import configure, decode_configuration
from cloister.attest.policy import Policy, Rule
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import LEASE_REQUESTS, LEASE_S, SESSION_LIFETIME_S
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context, digest
from cloister.crypto.hpke import HpkePrivateKey
from cloister.crypto.sign import SigningKey
from cloister.log.merkle import MerkleTree, leaf_hash
from cloister.wire import calls, cbor, provisioning
from cloister.wire.calls import Description, LogHead, WireEvidence
from cloister.wire.log_keys import LogKeys
from cloister.wire.provisioning import AttestRequest, Release, ReleaseRequest, Session
from cloister.wire.statements import REQUEST_KEY, SERVICE_KEY

_CODE: Final = b"k" * 48


@dataclass(frozen=True, slots=True)
class Permission:
    """What a release answers for one pair; the defaults of leases are the protocol's."""

    release: Release
    denied: bool = False


@dataclass(slots=True)
class Counts:
    """How often what was asked."""

    descriptions: int = 0
    attests: int = 0
    releases: int = 0
    by_request: dict[ReleaseRequest, int] = field(default_factory=dict)


class FakeKeyService:
    """``cloister.adapters.keyservice.Transport`` for tests. Safe for many threads.

    :ivar away: while true, nothing answers. :ivar lost: paths, of each of which the next call is not answered.
    :ivar before_release: called with each release request before it is answered, for example to wait on an event.
    """

    def __init__(self, clock: Clock, *, runtime_keys: tuple[bytes, ...] = ()) -> None:
        self.clock = clock
        self.root = SigningKey.generate()
        self.log_key = SigningKey.generate()
        self.simulation = SigningKey.generate()
        self.configuration = configure({"rollback_protection": "none"})
        self.counts = Counts()
        self.away = False
        self.lost: list[str] = []
        self.before_release: Callable[[ReleaseRequest], None] = lambda _request: None
        self._tree = MerkleTree([leaf_hash(b"genesis")])
        self._attester = SimulatedAttester(
            self.simulation, clock, configuration_digest=self.configuration.digest, measurement=_CODE
        )
        rule = Rule.of(
            "keyservice",
            TeeType.SIMULATION,
            {
                "measurement": [_CODE],
                "minimum_security_version": 0,
                "maximum_age_s": "any-age",
                "configuration": [self.configuration.digest],
                "isolation": "any-isolation",
            },
        )
        self.bundle = TrustBundle(
            root=self.root.public_key,
            version=1,
            name="test",
            issued_at=int(clock.now()) - 10,
            expires_at=int(clock.now()) + 86_400,
            keyservice=Policy((rule,)),
            accept_simulation=True,
            simulation_keys=(self.simulation.public_key, *runtime_keys),
            accept_rollback_unsafe=True,
        )
        self._lock = threading.Lock()
        self._challenges: set[bytes] = set()
        self._sessions: dict[bytes, tuple[Session, set[int]]] = {}
        self._permissions: dict[ReleaseRequest, Permission] = {}
        self.runtime_policy: Policy | None = None
        self.new_epoch()

    # --- what tests arrange ---

    def new_epoch(self) -> None:
        """A new call key; calls to the old one are answered ``call-epoch-gone``."""
        self._epoch = secrets.token_bytes(16)
        self._call_key = HpkePrivateKey.generate()

    def end_sessions(self) -> None:
        """Forget every session."""
        with self._lock:
            self._sessions.clear()

    def permit(
        self,
        user: SigningKey,
        model: ModelId,
        *,
        manifest_digest: bytes,
        version: int,
        model_key: SecretBytes,
        request_key: SecretBytes | None = None,
        service_key: HpkePrivateKey | None = None,
        lease_s: int = LEASE_S,
        lease_requests: int = LEASE_REQUESTS,
        co_tenancy: bool = False,
    ) -> ReleaseRequest:
        """Grant and consent in one; returns what the runtime will ask with."""
        key: SecretBytes
        if request_key is not None:
            mode, key_id, key = REQUEST_KEY, digest(Context.KEY_COMMITMENT, request_key.reveal()), request_key
        elif service_key is not None:
            mode, key_id = SERVICE_KEY, digest(Context.SERVICE_KEY, service_key.public_key)
            key = service_key.secret()
        else:
            msg = "one of the two keys"
            raise AssertionError(msg)
        request = ReleaseRequest(digest(Context.IDENTITY, user.public_key), model, mode, key_id)
        release = Release(
            manifest_digest=manifest_digest,
            version=version,
            model_key=model_key,
            key=key,
            user_key=user.public_key,
            lease_s=lease_s,
            lease_requests=lease_requests,
            owner_policy=b"o" * 32,
            user_policy=b"u" * 32,
            co_tenancy=co_tenancy,
            head=self.head(),
        )
        with self._lock:
            self._permissions[request] = Permission(release)
            self._grow()
        return request

    def deny(self, request: ReleaseRequest) -> None:
        """Revoke."""
        with self._lock:
            self._permissions[request] = replace(self._permissions[request], denied=True)
            self._grow()

    def head(self) -> LogHead:
        """The log's."""
        return LogHead(self._tree.size, self._tree.root(), int(self.clock.now()))

    def _grow(self) -> None:
        self._tree.append(leaf_hash(secrets.token_bytes(32)))

    # --- the transport ---

    def get(self, path: str, *, limit: int) -> bytes:
        """See the port."""
        del limit
        self._reach()
        if path != "/v1/description":
            raise InvalidInput("not-found", "no such path")
        self.counts.descriptions += 1
        return self.describe().encode()

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        """See the port."""
        del limit
        self._reach()
        if path in self.lost:
            self.lost.remove(path)
            raise _unreachable()
        match path:
            case "/v1/status":
                return calls.sign_status(self.log_key, epoch=self._epoch, nonce=body, head=self.head())
            case "/v1/challenge":
                challenge = secrets.token_bytes(32)
                self._challenges.add(challenge)
                return challenge
            case "/v1/consistency":
                asked = cbor.decode(body, limit=64, what="the request")
                return cbor.encode({"proof": list(self._tree.consistency(asked["first"], asked["second"]))})
            case "/v1/call":
                return self._call(body)
            case "/v1/session":
                return self._session_call(body)
            case _:
                raise InvalidInput("not-found", "no such path")

    def describe(self) -> Description:
        """With fresh evidence."""
        unsaid = Description(
            keyservice=calls.keyservice_id(self.log_key.public_key),
            epoch=self._epoch,
            call_key=self._call_key.public_key,
            log_keys=LogKeys(self.log_key.public_key),
            configuration=self.configuration.encoded,
            bundle_digest=self.bundle.digest,
            evidence=WireEvidence("", b"", {}),
        )
        evidence = self._attester.evidence(unsaid.report_data())
        return replace(unsaid, evidence=WireEvidence(evidence.tee.value, evidence.body, dict(evidence.endorsements)))

    # --- inside ---

    def _reach(self) -> None:
        if self.away:
            raise _unreachable()

    def _call(self, body: bytes) -> bytes:
        keyservice = calls.keyservice_id(self.log_key.public_key)
        call = calls.open_call(body, keyservice=keyservice, keys_by_epoch={self._epoch: self._call_key})
        try:
            if call.kind != calls.ATTEST:
                raise InvalidInput("call-unknown", "only attest calls")
            result: dict[str, object] | CloisterError = self._attest(AttestRequest.decode(call.body))
        except CloisterError as error:
            result = error
        return calls.seal_reply(call.reply_secret, call.digest, result)

    def _attest(self, request: AttestRequest) -> dict[str, object]:
        with self._lock:
            if request.challenge not in self._challenges:
                raise Refused("challenge-unknown", "the challenge was not issued here, or was redeemed")
            self._challenges.discard(request.challenge)
        wire = request.evidence
        evidence = Evidence(TeeType(wire.tee), wire.body, wire.endorsements)
        verified = verify(evidence, Collateral(), self.bundle.anchors(), self.clock.now())
        if self.runtime_policy is not None:
            appraise(
                verified,
                configuration=decode_configuration(request.configuration),
                report_data=request.report_data(),
                policy=self.runtime_policy,
                now=self.clock.now(),
            )
        session = provisioning.new_session(SESSION_LIFETIME_S)
        with self._lock:
            self._sessions[session.id] = (session, set())
            self.counts.attests += 1
        return provisioning.offer_session(request, session)

    def _session_call(self, body: bytes) -> bytes:
        call = provisioning.parse_session_call(body)
        with self._lock:
            found = self._sessions.get(call.session)
            if found is None:
                raise Unavailable("session-unknown", "attest again")
            session, used = found
            if call.sequence in used:
                raise Refused("session-replayed", "a sequence number is used once")
            used.add(call.sequence)
        try:
            result: dict[str, object] | CloisterError = self._release(
                ReleaseRequest.read(provisioning.open_session_call(call, session))
            )
        except CloisterError as error:
            result = error
        return provisioning.seal_session_reply(session, call, result)

    def _release(self, request: ReleaseRequest) -> dict[str, object]:
        with self._lock:
            self.counts.releases += 1
            self.counts.by_request[request] = self.counts.by_request.get(request, 0) + 1
        self.before_release(request)
        permission = self._permissions.get(request)
        if permission is None or permission.denied:
            raise Refused("release-refused", "the keys are not released")
        return replace(permission.release, head=self.head()).fields()


def _unreachable() -> Unavailable:
    return Unavailable("keyservice-unreachable", "the KeyService does not answer", retry_after=1.0)
