"""The log keys of one KeyService: each was named by the one before it (spec/protocol.md, 13.27).

A KeyService is known by its first log key. Who holds its id believes a later key when a chain of certificates leads to
it; each key signs for one part of the log, from where it begins to where the next one does. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloister.base.errors import InvalidInput, Refused, Tampered
from cloister.base.limits import MAX_ADD_CHECKPOINT, MAX_KEY_CERTIFICATE, MAX_LOG_KEYS, MAX_ROOT_GENERATIONS
from cloister.crypto.digest import Context, digest, same
from cloister.crypto.sign import PUBLIC_KEY_LENGTH, SigningKey
from cloister.wire import cbor, cose
from cloister.wire.cbor import Fields

_WHAT: Final = "the log key's certificate"
_ROOT_LENGTH: Final = 32


@dataclass(frozen=True, slots=True)
class KeyCertificate:
    """A log key's last word: which key signs after it, and from where.

    :param generation: of the new key; the first log key is of generation 0.
    :param size: entries of the log under this key and those before it; the next one, entry ``size``, is the rotation
        and the first that the new key signs for.
    :param root: of the tree over these entries.
    :param time: Unix seconds, the KeyService's time of the rotation.
    """

    keyservice: bytes
    generation: int
    key: bytes
    size: int
    root: bytes
    time: int

    def sign(self, log_key: SigningKey) -> bytes:
        """COSE_Sign1 by the key before it."""
        payload = {
            "ks": self.keyservice,
            "generation": self.generation,
            "key": self.key,
            "size": self.size,
            "root": self.root,
            "time": self.time,
        }
        return cose.sign1(log_key, Context.LOG_KEY_CERTIFICATE, cbor.encode(payload))

    @staticmethod
    def verify(data: bytes, log_key: bytes) -> KeyCertificate:
        """What this key certified.

        :raises InvalidInput: anything malformed. :raises Tampered: ``signature-invalid``.
        """
        payload = cose.verify1(data, Context.LOG_KEY_CERTIFICATE, log_key, limit=MAX_KEY_CERTIFICATE, what=_WHAT)
        fields = Fields(cbor.decode(payload, limit=MAX_KEY_CERTIFICATE, what=_WHAT), _WHAT)
        certificate = KeyCertificate(
            keyservice=fields.blob("ks", exactly=32),
            generation=fields.integer("generation", low=1, high=MAX_ROOT_GENERATIONS - 1),
            key=fields.blob("key", exactly=PUBLIC_KEY_LENGTH),
            size=fields.integer("size", low=1),
            root=fields.blob("root", exactly=_ROOT_LENGTH),
            time=fields.integer("time"),
        )
        fields.done()
        return certificate


@dataclass(frozen=True, slots=True)
class LogKeys:
    """All log keys of a KeyService, from the first to the present one; made by :meth:`then` and :meth:`read`.

    :param first: whose digest is the KeyService's id.
    :param certificates: verified, one for each later key; ``encoded``: the same as they were signed.
    """

    first: bytes
    certificates: tuple[KeyCertificate, ...] = ()
    encoded: tuple[bytes, ...] = ()

    @property
    def keyservice(self) -> bytes:
        """The KeyService's id (clause 4.3)."""
        return digest(Context.KEYSERVICE_ID, self.first)

    @property
    def generation(self) -> int:
        """Of the present key: how often the root was rotated."""
        return len(self.certificates)

    @property
    def current(self) -> bytes:
        """The present key."""
        return self.certificates[-1].key if self.certificates else self.first

    @property
    def begins(self) -> int:
        """Entries of the log before the present key's first one."""
        return self.certificates[-1].size if self.certificates else 0

    @property
    def all(self) -> tuple[bytes, ...]:
        """Every key, from the first."""
        return (self.first, *(item.key for item in self.certificates))

    def signer(self, size: int) -> bytes:
        """The only key that may have signed a head of ``size`` entries."""
        for key, certificate in zip(self.all, self.certificates, strict=False):
            if size <= certificate.size:
                return key
        return self.current

    def require_signer(self, key: bytes, size: int) -> None:
        """:raises Tampered: ``log-key-retired`` unless this key signs for heads of ``size`` entries."""
        if not same(key, self.signer(size)):
            raise Tampered(
                "log-key-retired",
                f"a head of {size} entries was not this log key's to sign: it was retired before, or not yet named",
                hint="Somebody has a retired log key of this KeyService. Tell whoever runs it, and the auditor.",
            )

    def require_current(self, size: int) -> None:
        """As :meth:`require_signer`, of the present key."""
        self.require_signer(self.current, size)

    def verify1(self, data: bytes, context: Context, *, limit: int, what: str) -> tuple[bytes, bytes]:
        """Which of the keys signed a COSE_Sign1, and its payload; that it might is for :meth:`require_signer`.

        :raises InvalidInput: anything malformed. :raises Tampered: ``signature-invalid``: none did.
        """
        for key in self.all[:0:-1]:
            try:
                return key, cose.verify1(data, context, key, limit=limit, what=what)
            except Tampered:
                continue
        return self.first, cose.verify1(data, context, self.first, limit=limit, what=what)

    def then(self, certificate: bytes) -> LogKeys:
        """These keys, and the one that is named by the present one.

        :raises InvalidInput: anything malformed. :raises Refused: ``limit-reached``.
        :raises Tampered: ``signature-invalid``: not by the present key; ``log-keys-broken``: by it, and out of place.
        """
        if self.generation + 1 >= MAX_ROOT_GENERATIONS:
            raise Refused("limit-reached", f"a KeyService has at most {MAX_ROOT_GENERATIONS} log keys")
        found = KeyCertificate.verify(certificate, self.current)
        last = self.certificates[-1].time if self.certificates else 0
        good = (
            same(found.keyservice, self.keyservice)
            and found.generation == self.generation + 1
            and found.key not in self.all
            and found.size > self.begins
            and found.time >= last
        )
        if not good:
            raise Tampered(
                "log-keys-broken", f"the certificate of log key {self.generation + 1} was not made for this place"
            )
        return LogKeys(self.first, (*self.certificates, found), (*self.encoded, certificate))

    def continues(self, earlier: LogKeys) -> bool:
        """Whether these are the earlier keys, or those and more after them."""
        return self.first == earlier.first and self.encoded[: len(earlier.encoded)] == earlier.encoded

    def items(self) -> list[bytes]:
        """For CBOR: the first key, then the certificates."""
        return [self.first, *self.encoded]

    def bound(self) -> bytes:
        """What evidence is over (clause 13.27.4)."""
        return digest(Context.LOG_KEYS, *self.items())

    @staticmethod
    def read(items: Sequence[object]) -> LogKeys:
        """What :meth:`items` made, each certificate verified.

        :raises InvalidInput: ``log-keys-malformed``, and as :meth:`then`. :raises Tampered: as :meth:`then`.
        """
        if not 1 <= len(items) <= MAX_ROOT_GENERATIONS:
            raise InvalidInput("log-keys-malformed", "a KeyService's log keys are none, or more than it may have")
        first, *rest = items
        if type(first) is not bytes or len(first) != PUBLIC_KEY_LENGTH:
            raise InvalidInput("log-keys-malformed", "a KeyService's log keys do not begin with a key")
        found = LogKeys(first)
        for item in rest:
            if type(item) is not bytes or len(item) > MAX_KEY_CERTIFICATE:
                raise InvalidInput("log-keys-malformed", "a log key's certificate is none")
            found = found.then(item)
        return found

    def fields(self) -> dict[str, object]:
        """What a message says of them: the present key, and only after a rotation how it came to be."""
        return {"log_key": self.current} | ({"log_keys": self.items()} if self.certificates else {})

    @staticmethod
    def take(fields: Fields, keyservice: bytes | None = None) -> LogKeys:
        """What :meth:`fields` said in a message of this KeyService; ``None``: of whichever it is.

        :raises InvalidInput: ``keyservice-id``: they are another's; ``log-keys-malformed`` and as :meth:`read`.
        :raises Tampered: as :meth:`then`.
        """
        current = fields.blob("log_key", exactly=PUBLIC_KEY_LENGTH)
        keys = LogKeys(current)
        if fields.has("log_keys"):
            keys = LogKeys.read(fields.items("log_keys", limit=MAX_ROOT_GENERATIONS))
            if not keys.certificates or keys.current != current:
                raise InvalidInput("log-keys-malformed", "the log keys do not lead to the present one")
        if keyservice is not None and not same(keys.keyservice, keyservice):
            raise InvalidInput("keyservice-id", "the KeyService's id is not that of its first log key")
        return keys


@dataclass(frozen=True, slots=True)
class FollowLogKeys:
    """What a witness is told after a rotation: the log keys, and a checkpoint by the new one (clause 13.27.7).

    :param checkpoint: the body of ``add-checkpoint``.
    """

    log_keys: LogKeys
    checkpoint: bytes

    def encode(self) -> bytes:
        """The body of ``follow-log-keys``."""
        return cbor.encode({"log_keys": self.log_keys.items(), "checkpoint": self.checkpoint})

    @staticmethod
    def decode(data: bytes) -> FollowLogKeys:
        """:raises InvalidInput: anything malformed. :raises Tampered: as :meth:`LogKeys.read`."""
        what = "the log keys"
        fields = Fields(cbor.decode(data, limit=MAX_FOLLOW_LOG_KEYS, what=what), what)
        found = FollowLogKeys(
            LogKeys.read(fields.items("log_keys", limit=MAX_ROOT_GENERATIONS)),
            fields.blob("checkpoint", limit=MAX_ADD_CHECKPOINT),
        )
        fields.done()
        return found


MAX_FOLLOW_LOG_KEYS: Final = MAX_LOG_KEYS + MAX_ADD_CHECKPOINT + 1024
