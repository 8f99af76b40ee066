"""Hashes and key derivation, each with a context string (claim S9; spec/protocol.md, section 3)."""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

DIGEST_LENGTH: Final = 32
_NO_SALT: Final = bytes(DIGEST_LENGTH)


class Context(StrEnum):
    """Every purpose for which anything is hashed, signed, sealed or derived. One value, one use, for ever."""

    IDENTITY = "cloister/v1/identity-id"
    STATEMENT = "cloister/v1/statement"
    WAITING_STATEMENT = "cloister/v1/waiting-statement"
    QUERY = "cloister/v1/query"
    POLICY = "cloister/v1/policy"
    CONFIGURATION = "cloister/v1/configuration"
    BUNDLE = "cloister/v1/trust-bundle"
    MANIFEST = "cloister/v1/model-manifest"
    KEY_COMMITMENT = "cloister/v1/key-commitment"
    KEYSERVICE_ID = "cloister/v1/keyservice-id"
    KEYSERVICE_EVIDENCE = "cloister/v1/keyservice-evidence"
    KEYSERVICE_STATUS = "cloister/v1/keyservice-status"
    KEYSERVICE_RECEIPT = "cloister/v1/keyservice-receipt"
    KEYSERVICE_HEAD = "cloister/v1/keyservice-head"
    KEYSERVICE_CALL = "cloister/v1/keyservice-call"
    KEYSERVICE_REPLY = "cloister/v1/keyservice-reply"
    HANDOVER_EVIDENCE = "cloister/v1/keyservice-handover-evidence"
    HANDOVER = "cloister/v1/keyservice-handover"
    REPLICATION_KEY = "cloister/v1/keyservice-replication-key"
    REPLICA_REQUEST = "cloister/v1/keyservice-replica-request"
    REPLICA_REPLY = "cloister/v1/keyservice-replica-reply"
    CUSTODIAN_ID = "cloister/v1/custodian-id"
    CUSTODY_SET = "cloister/v1/custody-set"
    CUSTODY_COMMITMENT = "cloister/v1/custody-share-commitment"
    CUSTODY_SHARE = "cloister/v1/custody-share"
    CUSTODY_RECORD = "cloister/v1/custody-record"
    CUSTODY_RECORD_ID = "cloister/v1/custody-record-id"
    RECOVERY_EVIDENCE = "cloister/v1/keyservice-recovery-evidence"
    RECOVERY_SHARE = "cloister/v1/keyservice-recovery-share"
    RUNTIME_EVIDENCE = "cloister/v1/runtime-evidence"
    RUNTIME_PRESENCE = "cloister/v1/runtime-presence"
    CHALLENGE = "cloister/v1/challenge"
    SESSION = "cloister/v1/runtime-session"
    SESSION_CALL = "cloister/v1/runtime-session-call"
    SESSION_REPLY = "cloister/v1/runtime-session-reply"
    SERVICE_KEY = "cloister/v1/service-key-endorsement"
    REQUEST_HEADER = "cloister/v1/request-header"
    REQUEST_SECRET = "cloister/v1/request-content-secret"  # noqa: S105  # a context, not a secret
    REQUEST_SEAL = "cloister/v1/request-seal"
    REQUEST_SIGNATURE = "cloister/v1/request-signature"
    REQUEST_CHUNKS = "cloister/v1/request-chunks"
    RESPONSE_CHUNKS = "cloister/v1/response-chunks"
    MODEL_FILE = "cloister/v1/model-file"
    MODEL_CHUNK = "cloister/v1/model-chunk"
    KEYRING = "cloister/v1/client-keyring"
    LOG_LEAF = "cloister/v1/log-leaf"
    LOG_KEY = "cloister/v1/log-key"
    LOG_KEYS = "cloister/v1/log-keys"
    LOG_KEY_CERTIFICATE = "cloister/v1/log-key-certificate"
    STORE_KEY = "cloister/v1/store-key"
    STORE_RECORD = "cloister/v1/store-record"
    STATE_ENCODING = "cloister/v1/keyservice-state-encoding"
    SEALED_STATE = "cloister/v1/sealed-state"
    SIMULATED_EVIDENCE = "cloister/v1/insecure-simulation-evidence"
    TEE_SEALING = "cloister/v1/tee-sealing"
    SIMULATED_SEALING = "cloister/v1/insecure-simulation-sealing"


def digest(context: Context, *parts: bytes) -> bytes:
    """SHA-256 over the context and the parts, each preceded by its length: no two inputs collide by shifting."""
    h = hashlib.sha256()
    for part in (context.encode(), *parts):
        h.update(len(part).to_bytes(8, "big"))
        h.update(part)
    return h.digest()


def report_data(context: Context, *parts: bytes) -> bytes:
    """SHA-512 in the same form: fills the 64 bytes of report data exactly (section 4)."""
    h = hashlib.sha512()
    for part in (context.encode(), *parts):
        h.update(len(part).to_bytes(8, "big"))
        h.update(part)
    return h.digest()


def derive(context: Context, secret: bytes, *parts: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869); salt empty, info = context and the digest of the parts.

    Two calls of OpenSSL's HMAC where the output is one block, as for every key here: half the time of pyca's object,
    which a test compares it with.
    """
    info = context.encode() + b"\x00" + digest(context, *parts)
    extracted = hmac.digest(_NO_SALT, secret, "sha256")
    if length > DIGEST_LENGTH:
        return HKDFExpand(algorithm=hashes.SHA256(), length=length, info=info).derive(extracted)
    return hmac.digest(extracted, info + b"\x01", "sha256")[:length]


def same(a: bytes, b: bytes) -> bool:
    """Constant-time equality."""
    return hmac.compare_digest(a, b)
