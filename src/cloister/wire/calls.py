"""The sealed channel to the KeyService (spec/protocol.md, section 5).

:class:`Description` is what the KeyService says of itself, endorsed by evidence; :func:`seal_call` seals a call to
the attested key; the reply opens only with the secret that travelled inside the call.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.base.errors import FAMILIES, CloisterError, InvalidInput, Unavailable
from cloister.base.limits import MAX_CALL, MAX_COLLATERAL, MAX_EVIDENCE, MAX_LOG_KEYS, MAX_STATUS, MAX_WITNESSES
from cloister.base.secret import SecretBytes
from cloister.crypto import hpke
from cloister.crypto.box import open_once, seal_once
from cloister.crypto.digest import Context, derive, digest, report_data
from cloister.crypto.sign import SigningKey
from cloister.wire import cbor, cose, padding
from cloister.wire.cbor import Fields
from cloister.wire.checkpoint import Cosignature, read_cosignatures
from cloister.wire.log_keys import LogKeys

STATEMENT: Final = "statement"
QUERY: Final = "query"
ATTEST: Final = "attest"
HANDOVER: Final = "hand-over"
_NO_CONTEXT: Final = b""


@dataclass(frozen=True, slots=True)
class WireEvidence:
    """Evidence as it travels: the TEE's name, the body, certificates that came with it. Believed by nobody."""

    tee: str
    body: bytes
    endorsements: Mapping[str, bytes]

    def fields(self) -> dict[str, object]:
        """For CBOR."""
        return {"tee": self.tee, "body": self.body, "endorsements": dict(self.endorsements)}

    @staticmethod
    def read(value: object) -> WireEvidence:
        """:raises InvalidInput: anything malformed or oversized."""
        fields = Fields(value, "the evidence")
        endorsements = fields.mapping("endorsements")
        for name, content in endorsements.items():
            if type(name) is not str or type(content) is not bytes or len(name) > 64:
                raise InvalidInput("field-type", "the evidence's endorsements are not a map of names to bytes")
        if sum(map(len, endorsements.values())) > MAX_COLLATERAL:
            raise InvalidInput("field-range", f"the evidence's endorsements exceed {MAX_COLLATERAL} bytes")
        evidence = WireEvidence(fields.text("tee", limit=32), fields.blob("body", limit=MAX_EVIDENCE), endorsements)
        fields.done()
        return evidence


@dataclass(frozen=True, slots=True)
class Description:
    """What the KeyService says of itself (clause 5.1); ``evidence`` is over :meth:`report_data`.

    :param keyservice: its id, the digest of its first log key: the same over restarts, replicas, upgrades, rotations.
    :param epoch: 16 random bytes; one quote an epoch.
    :param call_key: HPKE public key to which calls are sealed during the epoch.
    :param log_keys: the present one signs status, tree heads and service-key endorsements.
    :param configuration: encoded measured configuration.
    """

    keyservice: bytes
    epoch: bytes
    call_key: bytes
    log_keys: LogKeys
    configuration: bytes
    bundle_digest: bytes
    evidence: WireEvidence

    @property
    def log_key(self) -> bytes:
        """The present log key."""
        return self.log_keys.current

    def report_data(self) -> bytes:
        """The 64 bytes that the evidence must be over (clause 5.2)."""
        return keyservice_report_data(
            epoch=self.epoch,
            call_key=self.call_key,
            log_keys=self.log_keys,
            configuration=self.configuration,
            bundle_digest=self.bundle_digest,
        )

    def encode(self) -> bytes:
        """Deterministic CBOR."""
        return cbor.encode(
            {
                "ks": self.keyservice,
                "epoch": self.epoch,
                "call_key": self.call_key,
                "configuration": self.configuration,
                "bundle": self.bundle_digest,
                "evidence": self.evidence.fields(),
            }
            | self.log_keys.fields()
        )

    @staticmethod
    def decode(data: bytes) -> Description:
        """:raises InvalidInput: anything malformed, or an id that is not the digest of the first log key.
        :raises Tampered: ``signature-invalid``, ``log-keys-broken``: the log keys do not follow from the first one.
        """
        what = "the KeyService's description"
        limit = MAX_EVIDENCE + MAX_COLLATERAL + MAX_LOG_KEYS + 8192
        fields = Fields(cbor.decode(data, limit=limit, what=what), what)
        keyservice = fields.blob("ks", exactly=32)
        description = Description(
            keyservice=keyservice,
            epoch=fields.blob("epoch", exactly=16),
            call_key=fields.blob("call_key", exactly=hpke.PUBLIC_LENGTH),
            log_keys=LogKeys.take(fields, keyservice),
            configuration=fields.blob("configuration", limit=16384),
            bundle_digest=fields.blob("bundle", exactly=32),
            evidence=WireEvidence.read(fields.mapping("evidence")),
        )
        fields.done()
        return description


def keyservice_id(first_log_key: bytes) -> bytes:
    """Clause 4.3."""
    return LogKeys(first_log_key).keyservice


def keyservice_report_data(
    *, epoch: bytes, call_key: bytes, log_keys: LogKeys, configuration: bytes, bundle_digest: bytes
) -> bytes:
    """Clauses 5.2 and 13.27.4.

    After a rotation the evidence is over all log keys: a certificate that a thief of an old key signed for the key of
    another genuine KeyService would otherwise pass that one off as this.
    """
    configured = digest(Context.CONFIGURATION, configuration)
    parts = [epoch, call_key, log_keys.current, configured, bundle_digest]
    if log_keys.certificates:
        parts.append(log_keys.bound())
    return report_data(Context.KEYSERVICE_EVIDENCE, *parts)


# --- status: freshness of the description and of the log head (clause 5.3) ---


@dataclass(frozen=True, slots=True)
class LogHead:
    """Size and root of the log, and the KeyService's time when it said so.

    :param cosignatures: of witnesses, sorted by key; unverified until ``log.witness.require_quorum`` took them.
    """

    size: int
    root: bytes
    time: int
    cosignatures: tuple[Cosignature, ...] = ()

    def fields(self) -> dict[str, object]:
        """For CBOR."""
        cosignatures = [item.fields() for item in self.cosignatures]
        return {"size": self.size, "root": self.root, "time": self.time, "cosignatures": cosignatures}

    @staticmethod
    def read(value: object) -> LogHead:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(value, "the log head")
        head = LogHead(
            fields.integer("size"),
            fields.blob("root", exactly=32),
            fields.integer("time"),
            read_cosignatures(fields.items("cosignatures", limit=MAX_WITNESSES)),
        )
        fields.done()
        return head


def sign_status(log_key: SigningKey, *, epoch: bytes, nonce: bytes, head: LogHead) -> bytes:
    """The KeyService's answer to a nonce."""
    payload = cbor.encode({"epoch": epoch, "nonce": nonce, "head": head.fields()})
    return cose.sign1(log_key, Context.KEYSERVICE_STATUS, payload)


def verify_status(data: bytes, description: Description, nonce: bytes) -> LogHead:
    """:raises Tampered: ``signature-invalid``, ``log-key-retired``. :raises InvalidInput: ``status-not-fresh``."""
    what = "the KeyService's status"
    payload = cose.verify1(data, Context.KEYSERVICE_STATUS, description.log_key, limit=MAX_STATUS, what=what)
    fields = Fields(cbor.decode(payload, limit=MAX_STATUS, what=what), what)
    head = LogHead.read(fields.mapping("head"))
    fresh = (fields.blob("epoch", exactly=16), fields.blob("nonce", exactly=32)) == (description.epoch, nonce)
    fields.done()
    if not fresh:
        raise InvalidInput("status-not-fresh", "the KeyService's status answers another question than ours")
    description.log_keys.require_current(head.size)
    return head


# --- calls ---


@dataclass(frozen=True, slots=True)
class Call:
    """An opened call, at the KeyService.

    :param kind: ``statement``, ``query``, ``attest`` or ``hand-over``.
    :param keys: key material beside a statement, each checked against its commitment by the state machine.
    """

    kind: str
    body: bytes
    keys: tuple[SecretBytes, ...]
    reply_secret: SecretBytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A sealed call, at the caller: the bytes to send, and what opens the reply."""

    data: bytes
    reply_secret: SecretBytes


def seal_call(description: Description, kind: str, body: bytes, keys: tuple[SecretBytes, ...] = ()) -> PendingCall:
    """Seal one call to an attested KeyService (clause 5.4)."""
    secret = secrets.token_bytes(32)
    inner = {"secret": secret, "kind": kind, "body": body, "keys": [key.reveal() for key in keys]}
    sealed = hpke.seal(
        description.call_key,
        padding.pad(cbor.encode(inner)),
        Context.KEYSERVICE_CALL,
        description.keyservice,
        description.epoch,
    )
    data = cbor.encode({"ks": description.keyservice, "epoch": description.epoch, "sealed": sealed})
    return PendingCall(data, SecretBytes(secret))


def open_call(data: bytes, *, keyservice: bytes, keys_by_epoch: Mapping[bytes, hpke.HpkePrivateKey]) -> Call:
    """Open one call (clause 5.5).

    :raises InvalidInput: anything malformed; ``call-other-keyservice``.
    :raises Unavailable: ``call-epoch-gone`` when it is sealed to an epoch that ended: attest again.
    :raises Tampered: ``hpke-open``.
    """
    outer = Fields(cbor.decode(data, limit=MAX_CALL, what="the call"), "the call")
    name, epoch = outer.blob("ks", exactly=32), outer.blob("epoch", exactly=16)
    sealed = outer.blob("sealed", limit=MAX_CALL)
    outer.done()
    if name != keyservice:
        raise InvalidInput("call-other-keyservice", "the call is for another KeyService")
    key = keys_by_epoch.get(epoch)
    if key is None:
        raise Unavailable("call-epoch-gone", "the call is sealed to an epoch that ended", hint="Attest again.")
    padded = key.open(sealed, Context.KEYSERVICE_CALL, name, epoch, what="the call")
    plaintext = padding.unpad(padded, what="the call")
    inner = Fields(cbor.decode(plaintext, limit=MAX_CALL, what="the sealed call"), "the sealed call")
    secret = SecretBytes.key(inner.blob("secret", exactly=32))
    kind = inner.text("kind", limit=16)
    body = inner.blob("body", limit=MAX_CALL)
    keys = inner.items("keys", limit=2)
    inner.done()
    if kind not in (STATEMENT, QUERY, ATTEST, HANDOVER):
        raise InvalidInput("call-unknown", f"calls of kind {kind!r} are unknown to this version")
    if not all(type(key) is bytes and len(key) == 32 for key in keys):
        raise InvalidInput("key-length", "the keys beside a call have 32 bytes each")
    return Call(kind, body, tuple(map(SecretBytes, keys)), secret, hashlib.sha256(data).digest())


# --- replies: results and errors alike travel sealed (clause 5.6) ---


def seal_reply(reply_secret: SecretBytes, call_digest: bytes, result: Mapping[str, Any] | CloisterError) -> bytes:
    """Seal a result or an error to whoever made the call."""
    return seal_reply_under(Context.KEYSERVICE_REPLY, reply_secret, call_digest, result)


def open_reply(call: PendingCall, data: bytes) -> dict[str, Any]:
    """The result; the KeyService's error is raised as it was raised there.

    :raises Tampered: ``box-open``.
    """
    return open_reply_under(Context.KEYSERVICE_REPLY, call.reply_secret, hashlib.sha256(call.data).digest(), data)


def seal_reply_under(
    context: Context, secret: SecretBytes, call_digest: bytes, result: Mapping[str, Any] | CloisterError
) -> bytes:
    """As :func:`seal_reply`, under another context and secret."""
    nonce = secrets.token_bytes(32)
    key = derive(context, secret.reveal(), nonce, call_digest)
    body = {"error": _error_fields(result)} if isinstance(result, CloisterError) else {"ok": cbor.plain(result)}
    return nonce + seal_once(key, padding.pad(cbor.encode(body)), _NO_CONTEXT)


def open_reply_under(context: Context, secret: SecretBytes, call_digest: bytes, data: bytes) -> dict[str, Any]:
    """As :func:`open_reply`, under another context and secret."""
    what = "the KeyService's reply"
    if not 32 < len(data) <= 4 * MAX_CALL:
        raise InvalidInput("reply-length", f"{what} has {len(data)} bytes")
    key = derive(context, secret.reveal(), data[:32], call_digest)
    plaintext = padding.unpad(open_once(key, data[32:], _NO_CONTEXT, what=what), what=what)
    fields = Fields(cbor.decode(plaintext, limit=4 * MAX_CALL, what=what), what)
    if fields.has("error"):
        error = _read_error(fields.mapping("error"))
        fields.done()
        raise error
    result = fields.mapping("ok")
    fields.done()
    return result


def _error_fields(error: CloisterError) -> dict[str, object]:
    retry = error.retry_after if isinstance(error, Unavailable) else None
    return {
        "family": error.family,
        "code": error.code,
        "message": error.message,
        "hint": error.hint or "",
        "details": error.details,
        "retry_ms": -1 if retry is None else math.ceil(retry * 1000),  # who waits so long has waited long enough
    }


def _read_error(value: object) -> CloisterError:
    fields = Fields(value, "the KeyService's error")
    family = FAMILIES.get(fields.text("family", limit=32), Unavailable)
    code, message = fields.text("code", limit=64), fields.text("message", limit=4096)
    hint = fields.text("hint", limit=1024) or None
    details = {str(name)[:64]: str(text)[:4096] for name, text in fields.mapping("details").items()}
    retry = fields.integer("retry_ms", low=-1)
    fields.done()
    if family is Unavailable:
        return Unavailable(code, message, hint=hint, details=details, retry_after=None if retry < 0 else retry / 1000)
    return family(code, message, hint=hint, details=details)
