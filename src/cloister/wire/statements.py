"""Statements and queries: what owners and users say to the KeyService, signed, once (protocol.md, section 6).

A statement changes something and carries the issuer's sequence number; a query reads and carries a nonce. Key material
is in neither: a statement carries a commitment, the key travels beside it in the sealed call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from cloister.base.errors import InvalidInput, Refused
from cloister.base.ids import ID_LENGTH, ModelId, check_name
from cloister.base.limits import (
    CLOCK_SKEW_S,
    MAX_APPROVED,
    MAX_DELEGATES,
    MAX_POLICY,
    MAX_STATEMENT,
    STATEMENT_LIFETIME_S,
)
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context, digest
from cloister.crypto.sign import PUBLIC_KEY_LENGTH, SIGNATURE_LENGTH, SigningKey
from cloister.wire import cbor, cose
from cloister.wire.cbor import Fields

FOREVER: Final = 2**53  # a validity without end; still an integer, so that it is always compared
ANY_VERSION: Final = "any-version-by-this-owner"
REQUEST_KEY: Final = "request-key"
SERVICE_KEY: Final = "service-key"


def identity_id(public_key: bytes) -> bytes:
    """The id of the identity whose first key this is (clause 4.1)."""
    return digest(Context.IDENTITY, public_key)


def key_commitment(key: SecretBytes) -> bytes:
    """What a statement says of a key, and the id under which requests name it (clause 6.4)."""
    return digest(Context.KEY_COMMITMENT, key.reveal())


@dataclass(frozen=True, slots=True)
class Validity:
    """Unix seconds; valid from ``not_before`` up to and not including ``not_after``."""

    not_before: int = 0
    not_after: int = FOREVER

    def holds(self, now: float) -> bool:
        """Whether it is valid now."""
        return self.not_before <= now < self.not_after


@dataclass(frozen=True, slots=True)
class Register:
    """A new identity. ``recovery_key`` may later rotate it when the key itself is lost."""

    public_key: bytes
    recovery_key: bytes


@dataclass(frozen=True, slots=True)
class RotateIdentity:
    """Replace the identity's key. Signed by the current or the recovery key; ``proof`` by the new one."""

    public_key: bytes
    proof: bytes

    @staticmethod
    def prove(new_key: SigningKey, issuer: bytes, sequence: int) -> RotateIdentity:
        """The statement's body, with possession of the new key proven for this issuer and sequence."""
        proof = new_key.sign(Context.IDENTITY, issuer, sequence.to_bytes(8, "big"))
        return RotateIdentity(new_key.public_key, proof)


@dataclass(frozen=True, slots=True)
class DisableIdentity:
    """The identity says nothing more; its grants and consents stop at once."""


@dataclass(frozen=True, slots=True)
class DefinePolicy:
    """An immutable runtime policy, referred to by its digest ever after."""

    policy: bytes


@dataclass(frozen=True, slots=True)
class PublishModel:
    """A new version: the manifest's digest, a version number above all earlier ones, the key's commitment."""

    name: str
    version: int
    manifest_digest: bytes
    key_commitment: bytes


@dataclass(frozen=True, slots=True)
class RotateModelKey:
    """The newest version again, encrypted anew: same version number, new manifest and key; the old ones go."""

    name: str
    version: int
    manifest_digest: bytes
    key_commitment: bytes


@dataclass(frozen=True, slots=True)
class RetireModel:
    """No release of this manifest any more, or of the whole model when ``manifest_digest`` is empty."""

    name: str
    manifest_digest: bytes


@dataclass(frozen=True, slots=True)
class Grant:
    """The owner lets one user use one model on runtimes that satisfy a policy.

    :param quota: requests a lease may serve for this user; 0 = the KeyService's own limit only.
    """

    name: str
    user: bytes
    policy_digest: bytes
    validity: Validity
    quota: int


@dataclass(frozen=True, slots=True)
class RevokeGrant:
    """Take a grant back."""

    name: str
    user: bytes


@dataclass(frozen=True, slots=True)
class Consent:
    """The user lets runtimes that satisfy a policy, running one manifest or any version, see his requests.

    :param manifest_digest: 32 bytes, or ``None`` for any version published by this owner.
    :param mode: ``request-key`` (with the key's commitment) or ``service-key`` (commitment empty).
    """

    model: ModelId
    policy_digest: bytes
    manifest_digest: bytes | None
    mode: str
    key_commitment: bytes
    validity: Validity


@dataclass(frozen=True, slots=True)
class RevokeConsent:
    """Take a consent back."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class RotateRequestKey:
    """A new request key under the same consent."""

    model: ModelId
    key_commitment: bytes


@dataclass(frozen=True, slots=True)
class Delegate:
    """Let another identity issue statements for this one until a time; a time in the past takes it back."""

    delegate: bytes
    not_after: int


@dataclass(frozen=True, slots=True)
class RequireApproval:
    """From now on two persons are needed for what widens or replaces, or again one only (clause 6.8).

    :param approvals: 2, or 1 to end it.
    :param delegates: those who may be the second person now, sorted: all that are delegated to; none to end it.
    """

    approvals: int
    delegates: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Approve:
    """A second person says it too: the statement that waits in this entry, to the byte."""

    entry: int
    statement: bytes


@dataclass(frozen=True, slots=True)
class Decline:
    """The statement that waits in this entry comes to nothing."""

    entry: int


Body = (
    Register
    | RotateIdentity
    | DisableIdentity
    | DefinePolicy
    | PublishModel
    | RotateModelKey
    | RetireModel
    | Grant
    | RevokeGrant
    | Consent
    | RevokeConsent
    | RotateRequestKey
    | Delegate
    | RequireApproval
    | Approve
    | Decline
)


@dataclass(frozen=True, slots=True)
class Statement:
    """One signed statement, parsed.

    :param subject: the identity for which the issuer speaks: itself, or one that delegated to it.
    :param sequence: strictly increasing per issuer.
    """

    keyservice: bytes
    issuer: bytes
    subject: bytes
    sequence: int
    issued_at: int
    lifetime: int
    body: Body

    def check_time(self, now: float) -> None:
        """:raises Refused: ``statement-expired``, ``statement-from-the-future``."""
        _check_time("statement", self.issued_at, self.lifetime, now)


@dataclass(frozen=True, slots=True)
class Query:
    """One signed question. ``kind`` and ``about`` are interpreted by the KeyService (protocol.md, 6.7)."""

    keyservice: bytes
    issuer: bytes
    nonce: bytes
    issued_at: int
    lifetime: int
    kind: str
    about: Mapping[str, Any]

    def check_time(self, now: float) -> None:
        """:raises Refused: ``query-expired``, ``query-from-the-future``."""
        _check_time("query", self.issued_at, self.lifetime, now)


def _check_time(what: str, issued_at: int, lifetime: int, now: float) -> None:
    hint = "Check the clock of the machine that signed it."
    if issued_at > now + CLOCK_SKEW_S:
        raise Refused(f"{what}-from-the-future", f"the {what} was issued {issued_at - now:.0f} s from now", hint=hint)
    if now >= issued_at + lifetime:
        late = now - issued_at - lifetime
        raise Refused(f"{what}-expired", f"the {what} expired {late:.0f} s ago", hint=hint)


# --- encoding: type name -> (class, to fields, from fields) ---

_B = TypeVar("_B")


def _validity(fields: Fields) -> Validity:
    value = Validity(fields.integer("not_before", high=FOREVER), fields.integer("not_after", high=FOREVER))
    if value.not_before >= value.not_after:
        raise InvalidInput("validity-empty", "the validity ends before it begins")
    return value


def _model(fields: Fields) -> ModelId:
    return ModelId.parse(fields.text("model", limit=200))


def _digest(fields: Fields, name: str) -> bytes:
    return fields.blob(name, exactly=32)


def _name(fields: Fields) -> str:
    return check_name(fields.text("name", limit=100), what="the model's name")


def _version(fields: Fields) -> int:
    return fields.integer("version", low=1, high=2**31)


def _consent(fields: Fields) -> Consent:
    manifest = fields.blob("manifest", exactly=32) if fields.has("manifest") else None
    if manifest is None and fields.text("versions", limit=32) != ANY_VERSION:
        raise InvalidInput("field-range", f"a consent without a manifest says versions = {ANY_VERSION!r}")
    mode = fields.text("mode", limit=16)
    if mode not in (REQUEST_KEY, SERVICE_KEY):
        raise InvalidInput("field-range", "a consent's mode is request-key or service-key")
    key = fields.blob("key", exactly=32 if mode == REQUEST_KEY else 0)
    return Consent(_model(fields), _digest(fields, "policy"), manifest, mode, key, _validity(fields))


def _consent_fields(body: Consent) -> dict[str, object]:
    what: dict[str, object] = (
        {"versions": ANY_VERSION} if body.manifest_digest is None else {"manifest": body.manifest_digest}
    )
    return {
        "model": str(body.model),
        "policy": body.policy_digest,
        "mode": body.mode,
        "key": body.key_commitment,
        **what,
        **_validity_fields(body.validity),
    }


def _validity_fields(value: Validity) -> dict[str, object]:
    return {"not_before": value.not_before, "not_after": value.not_after}


def _require_approval(fields: Fields) -> RequireApproval:
    approvals = fields.integer("approvals", low=1, high=2)
    delegates = fields.items("delegates", limit=MAX_DELEGATES)
    if not all(type(item) is bytes and len(item) == ID_LENGTH for item in delegates):
        raise InvalidInput("field-type", "delegates are ids of identities")
    if delegates != sorted(set(delegates)) or bool(delegates) is not (approvals > 1):
        raise InvalidInput("field-range", "delegates are sorted, each once, and named where two persons are required")
    return RequireApproval(approvals, tuple(delegates))


def _published(body: PublishModel | RotateModelKey) -> dict[str, object]:
    return {
        "name": body.name,
        "version": body.version,
        "manifest": body.manifest_digest,
        "key": body.key_commitment,
    }


_READ: Final[dict[str, Callable[[Fields], Body]]] = {
    "register": lambda f: Register(
        f.blob("key", exactly=PUBLIC_KEY_LENGTH), f.blob("recovery", exactly=PUBLIC_KEY_LENGTH)
    ),
    "rotate-identity": lambda f: RotateIdentity(
        f.blob("key", exactly=PUBLIC_KEY_LENGTH), f.blob("proof", exactly=SIGNATURE_LENGTH)
    ),
    "disable-identity": lambda _: DisableIdentity(),
    "define-policy": lambda f: DefinePolicy(f.blob("policy", limit=MAX_POLICY)),
    "publish-model": lambda f: PublishModel(_name(f), _version(f), _digest(f, "manifest"), _digest(f, "key")),
    "rotate-model-key": lambda f: RotateModelKey(_name(f), _version(f), _digest(f, "manifest"), _digest(f, "key")),
    "retire-model": lambda f: RetireModel(_name(f), f.blob("manifest", exactly=32 if f.boolean("one") else 0)),
    "grant": lambda f: Grant(
        _name(f),
        f.blob("user", exactly=ID_LENGTH),
        _digest(f, "policy"),
        _validity(f),
        f.integer("quota", high=2**31),
    ),
    "revoke-grant": lambda f: RevokeGrant(_name(f), f.blob("user", exactly=ID_LENGTH)),
    "consent": _consent,
    "revoke-consent": lambda f: RevokeConsent(_model(f)),
    "rotate-request-key": lambda f: RotateRequestKey(_model(f), _digest(f, "key")),
    "delegate": lambda f: Delegate(f.blob("delegate", exactly=ID_LENGTH), f.integer("not_after", high=FOREVER)),
    "require-approval": _require_approval,
    "approve": lambda f: Approve(f.integer("entry"), f.blob("statement", limit=MAX_APPROVED)),
    "decline": lambda f: Decline(f.integer("entry")),
}


def _fields(body: Body) -> tuple[str, dict[str, object]]:
    match body:
        case Register():
            return "register", {"key": body.public_key, "recovery": body.recovery_key}
        case RotateIdentity():
            return "rotate-identity", {"key": body.public_key, "proof": body.proof}
        case DisableIdentity():
            return "disable-identity", {}
        case DefinePolicy():
            return "define-policy", {"policy": body.policy}
        case PublishModel():
            return "publish-model", _published(body)
        case RotateModelKey():
            return "rotate-model-key", _published(body)
        case RetireModel():
            one = bool(body.manifest_digest)
            return "retire-model", {"name": body.name, "one": one, "manifest": body.manifest_digest}
        case Grant():
            return "grant", {
                "name": body.name,
                "user": body.user,
                "policy": body.policy_digest,
                "quota": body.quota,
                **_validity_fields(body.validity),
            }
        case RevokeGrant():
            return "revoke-grant", {"name": body.name, "user": body.user}
        case Consent():
            return "consent", _consent_fields(body)
        case RevokeConsent():
            return "revoke-consent", {"model": str(body.model)}
        case RotateRequestKey():
            return "rotate-request-key", {"model": str(body.model), "key": body.key_commitment}
        case Delegate():
            return "delegate", {"delegate": body.delegate, "not_after": body.not_after}
        case RequireApproval():
            return "require-approval", {"approvals": body.approvals, "delegates": list(body.delegates)}
        case Approve():
            return "approve", {"entry": body.entry, "statement": body.statement}
        case Decline():
            return "decline", {"entry": body.entry}


def sign_statement(statement: Statement, key: SigningKey) -> bytes:
    """COSE_Sign1 under ``Context.STATEMENT``."""
    kind, fields = _fields(statement.body)
    payload = {
        "ks": statement.keyservice,
        "issuer": statement.issuer,
        "subject": statement.subject,
        "seq": statement.sequence,
        "iat": statement.issued_at,
        "ttl": statement.lifetime,
        "type": kind,
        "body": fields,
    }
    return cose.sign1(key, Context.STATEMENT, cbor.encode(payload))


def peek_statement(data: bytes) -> Statement:
    """Parse **without** verifying: only to learn whose key must verify it; believe it after :func:`verify_statement`.

    :raises InvalidInput: anything malformed.
    """
    return _parse_statement(cose.peek1(data, limit=MAX_STATEMENT, what="the statement"))


def verify_statement(data: bytes, public_key: bytes) -> Statement:
    """The statement, signed by this key.

    :raises InvalidInput: anything malformed.
    :raises Tampered: ``signature-invalid``.
    """
    return _parse_statement(
        cose.verify1(data, Context.STATEMENT, public_key, limit=MAX_STATEMENT, what="the statement")
    )


def _parse_statement(payload: bytes) -> Statement:
    fields = Fields(cbor.decode(payload, limit=MAX_STATEMENT, what="the statement"), "the statement")
    kind = fields.text("type", limit=32)
    read = _READ.get(kind)
    if read is None:
        raise InvalidInput("statement-unknown", f"statements of type {kind!r} are unknown to this version")
    inner = Fields(fields.mapping("body"), f"the {kind} statement")
    body = read(inner)
    inner.done()
    statement = Statement(
        keyservice=fields.blob("ks", exactly=32),
        issuer=fields.blob("issuer", exactly=ID_LENGTH),
        subject=fields.blob("subject", exactly=ID_LENGTH),
        sequence=fields.integer("seq", low=1),
        issued_at=fields.integer("iat"),
        lifetime=fields.integer("ttl", low=1, high=STATEMENT_LIFETIME_S),
        body=body,
    )
    fields.done()
    return statement


def sign_query(query: Query, key: SigningKey) -> bytes:
    """COSE_Sign1 under ``Context.QUERY``."""
    payload = {
        "ks": query.keyservice,
        "issuer": query.issuer,
        "nonce": query.nonce,
        "iat": query.issued_at,
        "ttl": query.lifetime,
        "kind": query.kind,
        "about": cbor.plain(query.about),
    }
    return cose.sign1(key, Context.QUERY, cbor.encode(payload))


def peek_query(data: bytes) -> Query:
    """Parse **without** verifying, as :func:`peek_statement`."""
    return _parse_query(cose.peek1(data, limit=MAX_STATEMENT, what="the query"))


def verify_query(data: bytes, public_key: bytes) -> Query:
    """The query, signed by this key; raises as :func:`verify_statement`."""
    return _parse_query(cose.verify1(data, Context.QUERY, public_key, limit=MAX_STATEMENT, what="the query"))


def _parse_query(payload: bytes) -> Query:
    fields = Fields(cbor.decode(payload, limit=MAX_STATEMENT, what="the query"), "the query")
    query = Query(
        keyservice=fields.blob("ks", exactly=32),
        issuer=fields.blob("issuer", exactly=ID_LENGTH),
        nonce=fields.blob("nonce", exactly=16),
        issued_at=fields.integer("iat"),
        lifetime=fields.integer("ttl", low=1, high=STATEMENT_LIFETIME_S),
        kind=fields.text("kind", limit=32),
        about=fields.mapping("about"),
    )
    fields.done()
    return query
