"""How a runtime proves itself to the KeyService and gets keys (spec/protocol.md, section 7).

One ``attest`` call opens a session; after that each release or renewal is one symmetric round trip, and the policy is
evaluated anew at every one of them.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.base.errors import CloisterError, InvalidInput
from cloister.base.ids import ID_LENGTH, ModelId
from cloister.base.limits import MAX_CALL
from cloister.base.secret import SecretBytes
from cloister.crypto import hpke
from cloister.crypto.box import open_once, seal_once
from cloister.crypto.digest import Context, derive, digest, report_data
from cloister.crypto.sign import SigningKey
from cloister.wire import calls, cbor, cose, padding
from cloister.wire.calls import LogHead, WireEvidence
from cloister.wire.cbor import Fields
from cloister.wire.statements import ANY_VERSION, REQUEST_KEY, SERVICE_KEY

SESSION_ID_LENGTH: Final = 16


@dataclass(frozen=True, slots=True)
class AttestRequest:
    """A runtime's evidence, over :meth:`report_data` (clause 7.2).

    :param session_key: ephemeral HPKE public key to which the session's secret is sealed.
    :param challenge: from the KeyService, redeemed once.
    :param configuration: encoded measured configuration of the runtime.
    """

    session_key: bytes
    challenge: bytes
    configuration: bytes
    bundle_digest: bytes
    evidence: WireEvidence

    def report_data(self) -> bytes:
        """The 64 bytes that the evidence must be over."""
        return runtime_report_data(self.session_key, self.challenge, self.configuration, self.bundle_digest)

    def encode(self) -> bytes:
        """Deterministic CBOR, the body of an ``attest`` call."""
        return cbor.encode(
            {
                "session_key": self.session_key,
                "challenge": self.challenge,
                "configuration": self.configuration,
                "bundle": self.bundle_digest,
                "evidence": self.evidence.fields(),
            }
        )

    @staticmethod
    def decode(data: bytes) -> AttestRequest:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(cbor.decode(data, limit=MAX_CALL, what="the attest request"), "the attest request")
        request = AttestRequest(
            session_key=fields.blob("session_key", exactly=hpke.PUBLIC_LENGTH),
            challenge=fields.blob("challenge", limit=128),
            configuration=fields.blob("configuration", limit=16384),
            bundle_digest=fields.blob("bundle", exactly=32),
            evidence=WireEvidence.read(fields.mapping("evidence")),
        )
        fields.done()
        return request


def runtime_report_data(session_key: bytes, challenge: bytes, configuration: bytes, bundle_digest: bytes) -> bytes:
    """Clause 7.2."""
    configured = digest(Context.CONFIGURATION, configuration)
    return report_data(Context.RUNTIME_EVIDENCE, session_key, challenge, configured, bundle_digest)


# --- the session ---


@dataclass(frozen=True, slots=True)
class Session:
    """What both sides share after ``attest``; ``lifetime`` in seconds."""

    id: bytes
    secret: SecretBytes
    lifetime: int


def offer_session(request: AttestRequest, session: Session) -> dict[str, object]:
    """The KeyService's result of ``attest``: the session, sealed to the attested key (clause 7.3)."""
    secret = session.id + session.secret.reveal()
    return {
        "sealed": hpke.seal(request.session_key, secret, Context.SESSION, request.report_data()),
        "lifetime": session.lifetime,
    }


def accept_session(result: Mapping[str, Any], request: AttestRequest, key: hpke.HpkePrivateKey) -> Session:
    """The runtime's side of :func:`offer_session`.

    :raises InvalidInput: anything malformed.
    :raises Tampered: ``hpke-open``.
    """
    fields = Fields(dict(result), "the session offer")
    sealed, lifetime = fields.blob("sealed", limit=4096), fields.integer("lifetime", low=1, high=86400)
    fields.done()
    secret = key.open(sealed, Context.SESSION, request.report_data(), what="the session offer")
    if len(secret) != SESSION_ID_LENGTH + 32:
        raise InvalidInput("key-length", "the session offer holds secrets of another length")
    return Session(secret[:SESSION_ID_LENGTH], SecretBytes(secret[SESSION_ID_LENGTH:]), lifetime)


@dataclass(frozen=True, slots=True)
class SessionCall:
    """A session call as the KeyService received it; opened with :func:`open_session_call`."""

    session: bytes
    sequence: int
    box: bytes
    digest: bytes


def seal_session_call(session: Session, sequence: int, body: Mapping[str, Any]) -> bytes:
    """One call within a session; a sequence number is used once (clause 7.4)."""
    number = sequence.to_bytes(8, "big")
    key = derive(Context.SESSION_CALL, session.secret.reveal(), number)
    box = seal_once(key, padding.pad(cbor.encode(cbor.plain(body))), session.id)
    return cbor.encode({"session": session.id, "seq": sequence, "box": box})


def parse_session_call(data: bytes) -> SessionCall:
    """:raises InvalidInput: anything malformed."""
    fields = Fields(cbor.decode(data, limit=MAX_CALL, what="the session call"), "the session call")
    call = SessionCall(
        fields.blob("session", exactly=SESSION_ID_LENGTH),
        fields.integer("seq", low=1),
        fields.blob("box", limit=MAX_CALL),
        hashlib.sha256(data).digest(),
    )
    fields.done()
    return call


def open_session_call(call: SessionCall, session: Session) -> dict[str, Any]:
    """:raises Tampered: ``box-open``. :raises InvalidInput: anything malformed inside."""
    key = derive(Context.SESSION_CALL, session.secret.reveal(), call.sequence.to_bytes(8, "big"))
    what = "the session call"
    plaintext = padding.unpad(open_once(key, call.box, session.id, what=what), what=what)
    value = cbor.decode(plaintext, limit=MAX_CALL, what=what)
    if not isinstance(value, dict):
        raise InvalidInput("field-type", "the session call is not a map")
    return value


def seal_session_reply(session: Session, call: SessionCall, result: Mapping[str, Any] | CloisterError) -> bytes:
    """Results and errors alike."""
    return calls.seal_reply_under(Context.SESSION_REPLY, session.secret, call.digest, result)


def open_session_reply(session: Session, call: bytes, data: bytes) -> dict[str, Any]:
    """The result; the KeyService's error is raised as it was raised there."""
    return calls.open_reply_under(Context.SESSION_REPLY, session.secret, hashlib.sha256(call).digest(), data)


# --- releases ---


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """Which keys, for whom: the pair that a request names (clause 7.5).

    :param key_id: commitment of the request key, or id of the service key, as the request's header has it.
    """

    user: bytes
    model: ModelId
    mode: str
    key_id: bytes

    def fields(self) -> dict[str, object]:
        """For a session call."""
        return {
            "kind": "release",
            "user": self.user,
            "model": str(self.model),
            "mode": self.mode,
            "key": self.key_id,
        }

    @staticmethod
    def read(value: object) -> ReleaseRequest:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(value, "the release request")
        if fields.text("kind", limit=16) != "release":
            raise InvalidInput("call-unknown", "sessions are for releases only")
        request = ReleaseRequest(
            fields.blob("user", exactly=ID_LENGTH),
            ModelId.parse(fields.text("model", limit=200)),
            fields.text("mode", limit=16),
            fields.blob("key", exactly=32),
        )
        fields.done()
        if request.mode not in (REQUEST_KEY, SERVICE_KEY):
            raise InvalidInput("field-range", "the mode is request-key or service-key")
        return request


@dataclass(frozen=True, slots=True)
class Release:
    """What a runtime gets, and until when it may use it (clause 7.6).

    :param key: the request key (32 bytes) or the service key's private half (96 bytes).
    :param user_key: the user's Ed25519 public key, for the signature in service-key mode.
    :param lease_s: seconds; ``lease_requests`` requests: whichever ends first.
    :param co_tenancy: whether owner's and user's policy both allow models of other owners in the same process.
    """

    manifest_digest: bytes
    version: int
    model_key: SecretBytes
    key: SecretBytes
    user_key: bytes
    lease_s: int
    lease_requests: int
    owner_policy: bytes
    user_policy: bytes
    co_tenancy: bool
    head: LogHead

    def fields(self) -> dict[str, object]:
        """For a session reply."""
        return {
            "manifest": self.manifest_digest,
            "version": self.version,
            "model_key": self.model_key.reveal(),
            "key": self.key.reveal(),
            "user_key": self.user_key,
            "lease_s": self.lease_s,
            "lease_requests": self.lease_requests,
            "owner_policy": self.owner_policy,
            "user_policy": self.user_policy,
            "co_tenancy": self.co_tenancy,
            "head": self.head.fields(),
        }

    @staticmethod
    def read(value: object) -> Release:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(value, "the release")
        release = Release(
            manifest_digest=fields.blob("manifest", exactly=32),
            version=fields.integer("version", low=1),
            model_key=SecretBytes.key(fields.blob("model_key", exactly=32)),
            key=SecretBytes(fields.blob("key", limit=hpke.PRIVATE_LENGTH)),
            user_key=fields.blob("user_key", exactly=32),
            lease_s=fields.integer("lease_s", low=1, high=86400),
            lease_requests=fields.integer("lease_requests", low=1),
            owner_policy=fields.blob("owner_policy", exactly=32),
            user_policy=fields.blob("user_policy", exactly=32),
            co_tenancy=fields.boolean("co_tenancy"),
            head=LogHead.read(fields.mapping("head")),
        )
        fields.done()
        return release


# --- service keys (clause 7.8) ---


@dataclass(frozen=True, slots=True)
class ServiceKeyEndorsement:
    """The KeyService's word on one service key: for which model, versions and policy, and when.

    :param manifest_digest: ``None`` for any version by this owner.
    :param public_key: HPKE public key to which users seal.
    """

    keyservice: bytes
    model: ModelId
    manifest_digest: bytes | None
    policy_digest: bytes
    epoch: int
    public_key: bytes
    not_before: int
    not_after: int

    @property
    def key_id(self) -> bytes:
        """How requests name this key."""
        return digest(Context.SERVICE_KEY, self.public_key)

    def sign(self, log_key: SigningKey) -> bytes:
        """COSE_Sign1 under ``Context.SERVICE_KEY``."""
        payload: dict[str, object] = {
            "ks": self.keyservice,
            "model": str(self.model),
            "policy": self.policy_digest,
            "epoch": self.epoch,
            "key": self.public_key,
            "not_before": self.not_before,
            "not_after": self.not_after,
        }
        payload |= {"versions": ANY_VERSION} if self.manifest_digest is None else {"manifest": self.manifest_digest}
        return cose.sign1(log_key, Context.SERVICE_KEY, cbor.encode(payload))

    @staticmethod
    def verify(data: bytes, log_key: bytes) -> ServiceKeyEndorsement:
        """:raises Tampered: ``signature-invalid``. :raises InvalidInput: anything malformed."""
        what = "the service key's endorsement"
        payload = cose.verify1(data, Context.SERVICE_KEY, log_key, limit=8192, what=what)
        fields = Fields(cbor.decode(payload, limit=8192, what=what), what)
        manifest = fields.blob("manifest", exactly=32) if fields.has("manifest") else None
        if manifest is None and fields.text("versions", limit=32) != ANY_VERSION:
            raise InvalidInput("field-range", f"{what} names neither a manifest nor any version")
        endorsement = ServiceKeyEndorsement(
            keyservice=fields.blob("ks", exactly=32),
            model=ModelId.parse(fields.text("model", limit=200)),
            manifest_digest=manifest,
            policy_digest=fields.blob("policy", exactly=32),
            epoch=fields.integer("epoch", low=1),
            public_key=fields.blob("key", exactly=hpke.PUBLIC_LENGTH),
            not_before=fields.integer("not_before"),
            not_after=fields.integer("not_after"),
        )
        fields.done()
        return endorsement


def new_session(lifetime: int) -> Session:
    """Fresh id and secret."""
    return Session(secrets.token_bytes(SESSION_ID_LENGTH), SecretBytes(secrets.token_bytes(32)), lifetime)
