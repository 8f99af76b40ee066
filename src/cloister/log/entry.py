"""Log entries and their leaves (spec/protocol.md, section 13).

An entry's leaf is a commitment salted with 32 random bytes, so that the tree, its proofs and its heads tell nothing
(claim S10); whoever is handed an entry's encoding, salt included, can check that it is the one in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cloister.base.errors import InvalidInput
from cloister.base.ids import ID_LENGTH, ModelId, parse_id
from cloister.base.limits import MAX_BUNDLE, MAX_ENTRY
from cloister.crypto import hpke
from cloister.crypto.digest import Context, digest
from cloister.log.merkle import leaf_hash
from cloister.wire import cbor
from cloister.wire.cbor import Fields
from cloister.wire.statements import ANY_VERSION, REQUEST_KEY, SERVICE_KEY

GENESIS: Final = "genesis"
STATEMENT: Final = "statement"
RELEASE: Final = "release"
SERVICE_KEY_EPOCH: Final = "service-key"
BUNDLE: Final = "bundle"
HAND_OVER: Final = "hand-over"
ROTATION: Final = "rotation"
CUSTODY: Final = "custody"  # and the next: bodies in log/custody.py
RECOVERY: Final = "recovery"
KINDS: Final = (GENESIS, STATEMENT, RELEASE, SERVICE_KEY_EPOCH, BUNDLE, HAND_OVER, ROTATION, CUSTODY, RECOVERY)
# Grows whenever an entry may hold what the version before cannot read: a kind, a field, a type of statement (13.26.8).
LEVEL: Final = 1
SALT_LENGTH: Final = 32

_WHAT: Final = "the log entry"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: what happened, and the KeyService's time.

    :param kind: one of ``KINDS``.
    :param time: Unix seconds; never below that of the entry before it.
    :param body: ``statement``: the COSE_Sign1 as received; ``rotation``: the new log key's certificate (13.27.1);
        otherwise the encoding of the record of that kind.
    """

    kind: str
    time: int
    salt: bytes
    body: bytes

    def encode(self) -> bytes:
        """Deterministic CBOR; showing it to somebody opens the leaf to him."""
        return cbor.encode({"kind": self.kind, "time": self.time, "salt": self.salt, "body": self.body})

    @staticmethod
    def decode(data: bytes, *, sealed: bool = False) -> Entry:
        """The way back.

        :param sealed: whether it was just opened from our own store, where only what was decoded before comes to lie.
        :raises InvalidInput: anything malformed.
        """
        value = cbor.decode_sealed(data, what=_WHAT) if sealed else cbor.decode(data, limit=MAX_ENTRY, what=_WHAT)
        fields = Fields(value, _WHAT)
        entry = Entry(
            fields.text("kind", limit=16),
            fields.integer("time"),
            fields.blob("salt", exactly=SALT_LENGTH),
            fields.blob("body", limit=MAX_ENTRY),
        )
        fields.done()
        if entry.kind not in KINDS:
            raise InvalidInput("entry-unknown", f"log entries of kind {entry.kind!r} are unknown to this version")
        return entry

    def leaf(self) -> bytes:
        """The leaf hash in the tree."""
        return entry_leaf(self.encode())


def entry_leaf(encoded: bytes) -> bytes:
    """The leaf hash of an encoded entry (clause 13.2)."""
    return leaf_hash(digest(Context.LOG_LEAF, encoded))


@dataclass(frozen=True, slots=True)
class Genesis:
    """The first entry: whose log this is, and the measured configuration of the service that began it."""

    keyservice: bytes
    log_key: bytes
    configuration: bytes

    def encode(self) -> bytes:
        """Deterministic CBOR."""
        return cbor.encode({"ks": self.keyservice, "log_key": self.log_key, "configuration": self.configuration})

    @staticmethod
    def decode(data: bytes) -> Genesis:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(cbor.decode(data, limit=MAX_ENTRY, what="the first entry"), "the first entry")
        genesis = Genesis(
            fields.blob("ks", exactly=32),
            fields.blob("log_key", exactly=32),
            fields.blob("configuration", limit=MAX_ENTRY),
        )
        fields.done()
        return genesis


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """Who could read what, when, on which code, under which policies: one release of keys to a runtime.

    :param measurements: of the runtime, by name, as its evidence says.
    :param owner_rule: which rule of the owner's policy accepted it; ``user_rule`` likewise.
    """

    user: bytes
    model: ModelId
    manifest_digest: bytes
    version: int
    mode: str
    key_id: bytes
    tee: str
    measurements: Mapping[str, bytes]
    configuration_digest: bytes
    owner_policy: bytes
    owner_rule: str
    user_policy: bytes
    user_rule: str
    lease_s: int
    lease_requests: int

    def encode(self) -> bytes:
        """Deterministic CBOR."""
        return cbor.encode(
            {
                "user": self.user,
                "model": str(self.model),
                "manifest": self.manifest_digest,
                "version": self.version,
                "mode": self.mode,
                "key": self.key_id,
                "tee": self.tee,
                "measurements": dict(self.measurements),
                "configuration": self.configuration_digest,
                "owner_policy": self.owner_policy,
                "owner_rule": self.owner_rule,
                "user_policy": self.user_policy,
                "user_rule": self.user_rule,
                "lease_s": self.lease_s,
                "lease_requests": self.lease_requests,
            }
        )

    @staticmethod
    def decode(data: bytes) -> ReleaseRecord:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(cbor.decode(data, limit=MAX_ENTRY, what="the release"), "the release")
        record = ReleaseRecord(
            user=fields.blob("user", exactly=ID_LENGTH),
            model=ModelId.parse(fields.text("model", limit=200)),
            manifest_digest=fields.blob("manifest", exactly=32),
            version=fields.integer("version", low=1),
            mode=fields.text("mode", limit=16),
            key_id=fields.blob("key", exactly=32),
            tee=fields.text("tee", limit=32),
            measurements=_measurements(fields, "the release's"),
            configuration_digest=fields.blob("configuration", exactly=32),
            owner_policy=fields.blob("owner_policy", exactly=32),
            owner_rule=fields.text("owner_rule", limit=256),
            user_policy=fields.blob("user_policy", exactly=32),
            user_rule=fields.text("user_rule", limit=256),
            lease_s=fields.integer("lease_s", low=1),
            lease_requests=fields.integer("lease_requests", low=1),
        )
        fields.done()
        if record.mode not in (REQUEST_KEY, SERVICE_KEY):
            raise InvalidInput("field-range", "the release's mode is request-key or service-key")
        return record


def sealed_release_parties(body: bytes) -> tuple[bytes, bytes]:
    """User and owner of a release that was just opened from our own store.

    :raises InvalidInput: it is none.
    """
    fields = cbor.decode_sealed(body, what="the release")
    try:
        user, owner = fields["user"], parse_id(fields["model"][: 2 * ID_LENGTH], what="the model's owner")
    except (TypeError, KeyError) as error:
        raise InvalidInput("field-missing", "the release lacks its user or its model") from error
    if type(user) is not bytes or len(user) != ID_LENGTH:
        raise InvalidInput("field-type", "the release's user is no id")
    return user, owner


@dataclass(frozen=True, slots=True)
class ServiceKeyEpoch:
    """A new service key: for which model, versions (``None``: any by this owner) and policy, and when it is used."""

    model: ModelId
    manifest_digest: bytes | None
    policy_digest: bytes
    epoch: int
    public_key: bytes
    not_before: int
    not_after: int

    def encode(self) -> bytes:
        """Deterministic CBOR."""
        fields: dict[str, object] = {
            "model": str(self.model),
            "policy": self.policy_digest,
            "epoch": self.epoch,
            "key": self.public_key,
            "not_before": self.not_before,
            "not_after": self.not_after,
        }
        fields |= {"versions": ANY_VERSION} if self.manifest_digest is None else {"manifest": self.manifest_digest}
        return cbor.encode(fields)

    @staticmethod
    def decode(data: bytes) -> ServiceKeyEpoch:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(cbor.decode(data, limit=MAX_ENTRY, what="the service key"), "the service key")
        manifest = fields.blob("manifest", exactly=32) if fields.has("manifest") else None
        if manifest is None and fields.text("versions", limit=32) != ANY_VERSION:
            raise InvalidInput("field-range", "the service key names neither a manifest nor any version")
        record = ServiceKeyEpoch(
            model=ModelId.parse(fields.text("model", limit=200)),
            manifest_digest=manifest,
            policy_digest=fields.blob("policy", exactly=32),
            epoch=fields.integer("epoch", low=1),
            public_key=fields.blob("key", exactly=hpke.PUBLIC_LENGTH),
            not_before=fields.integer("not_before"),
            not_after=fields.integer("not_after"),
        )
        fields.done()
        return record


@dataclass(frozen=True, slots=True)
class BundleRecord:
    """From here on this trust bundle is in use, and none below it (clause 13.26.1).

    :param bundle: the file, a COSE_Sign1 by the bundle root.
    """

    version: int
    digest: bytes
    bundle: bytes

    def encode(self) -> bytes:
        """Deterministic CBOR."""
        return cbor.encode({"version": self.version, "digest": self.digest, "bundle": self.bundle})

    @staticmethod
    def decode(data: bytes) -> BundleRecord:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(cbor.decode(data, limit=MAX_ENTRY, what="the bundle's record"), "the bundle's record")
        record = BundleRecord(
            fields.integer("version", low=1),
            fields.blob("digest", exactly=32),
            fields.blob("bundle", limit=MAX_BUNDLE),
        )
        fields.done()
        return record


@dataclass(frozen=True, slots=True)
class HandOverRecord:
    """The root secret may leave for this code with this configuration (clause 13.26.5).

    :param tee: where it runs; :param measurements: of its code, by name, as its evidence says.
    :param bundle_digest: and ``bundle_version``: of the trust bundle by which it was judged.
    """

    tee: str
    measurements: Mapping[str, bytes]
    configuration_digest: bytes
    bundle_digest: bytes
    bundle_version: int

    def encode(self) -> bytes:
        """Deterministic CBOR."""
        return cbor.encode(
            {
                "tee": self.tee,
                "measurements": dict(self.measurements),
                "configuration": self.configuration_digest,
                "bundle": self.bundle_digest,
                "bundle_version": self.bundle_version,
            }
        )

    @staticmethod
    def decode(data: bytes) -> HandOverRecord:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(cbor.decode(data, limit=MAX_ENTRY, what="the hand-over's record"), "the hand-over's record")
        record = HandOverRecord(
            fields.text("tee", limit=32),
            _measurements(fields, "the hand-over's"),
            fields.blob("configuration", exactly=32),
            fields.blob("bundle", exactly=32),
            fields.integer("bundle_version", low=1),
        )
        fields.done()
        return record


def _measurements(fields: Fields, whose: str) -> Mapping[str, bytes]:
    found = fields.mapping("measurements")
    if not all(type(name) is str and type(value) is bytes for name, value in found.items()):
        raise InvalidInput("field-type", f"{whose} measurements are not a map of names to bytes")
    return found
