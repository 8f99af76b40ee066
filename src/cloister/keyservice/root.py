"""The root secret: made once, inside the TEE, and sealed to this code with this configuration (protocol.md, 13.5).

Everything lasting comes from it: the log key (whose first one gives the KeyService's id) and the key of the store. It
can be rotated (13.27): then the secret before it is destroyed, and only what reads the entries that are sealed under it
is kept.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cloister.attest.types import Sealer
from cloister.base.errors import InvalidInput, Refused, Tampered, Unavailable
from cloister.base.limits import MAX_ROOT, MAX_ROOT_GENERATIONS, MAX_SEALED_ROOT
from cloister.base.secret import KEY_LENGTH, SecretBytes
from cloister.crypto.digest import Context, derive
from cloister.crypto.sign import SigningKey
from cloister.wire import cbor
from cloister.wire.cbor import Fields
from cloister.wire.log_keys import KeyCertificate, LogKeys

_VERSION: Final = 1  # of a root that was never rotated
_ROTATED: Final = 2


@dataclass(frozen=True, slots=True)
class Root:
    """What the root secret gives, and what is left of those before it.

    :param log_keys: every log key there was; the first one names the KeyService.
    :param log_key: the present one; signs status, heads, receipts and endorsements.
    :param store_key: from which the store's records are sealed.
    :param earlier_store_keys: one for each earlier root, oldest first: entries of its time are sealed under it.
    :param replication_key: under which replicas talk to each other (clause 13.17).
    :param secret: the root secret itself, for replicas (clause 13.15) and for sealing.
    :param since: size and tree root of the log when it was handed over to this build (13.26.5.1): no log that is
        shorter, or another, is gone on with, whatever store is put beside it.
    """

    log_keys: LogKeys
    log_key: SigningKey
    store_key: SecretBytes
    replication_key: SecretBytes
    secret: SecretBytes
    earlier_store_keys: tuple[SecretBytes, ...] = ()
    since: tuple[int, bytes] | None = None

    @property
    def id(self) -> bytes:
        """The KeyService's id."""
        return self.log_keys.keyservice

    @property
    def generation(self) -> int:
        """How often it was rotated."""
        return self.log_keys.generation

    @property
    def entry_keys(self) -> tuple[tuple[int, SecretBytes], ...]:
        """For each earlier root: where its part of the log ends, and the store key that opens it."""
        ends = (certificate.size for certificate in self.log_keys.certificates)
        return tuple(zip(ends, self.earlier_store_keys, strict=True))

    def rotated(self, size: int, tree_root: bytes, time: int) -> Root:
        """A fresh one that follows this, from log entry ``size`` on (clause 13.27.1).

        :param tree_root: of the log's first ``size`` entries. :param time: the KeyService's.
        :raises Refused: ``limit-reached``.
        """
        fresh = new_root()
        certificate = KeyCertificate(self.id, self.generation + 1, fresh.log_key.public_key, size, tree_root, time)
        return replace(
            fresh,
            log_keys=self.log_keys.then(certificate.sign(self.log_key)),
            earlier_store_keys=(*self.earlier_store_keys, self.store_key),
        )

    def encode(self) -> SecretBytes:
        """All of it, for sealing and for whoever may have it; at most ``MAX_ROOT`` bytes."""
        content: dict[str, object] = {
            "context": Context.SEALED_STATE.encode(),
            "version": _ROTATED if self.generation else _VERSION,
            "root": self.secret.reveal(),
        }
        if self.generation:
            content["log_keys"] = self.log_keys.items()
            content["store_keys"] = [key.reveal() for key in self.earlier_store_keys]
        if self.since is not None:
            content |= {"since": self.since[0], "since_root": self.since[1]}
        return SecretBytes(cbor.encode(content))


def decode_root(data: SecretBytes) -> Root:
    """What :meth:`Root.encode` gave.

    :raises InvalidInput: anything malformed, and another version.
    :raises Tampered: log keys that do not follow from each other.
    """
    what = "the root"
    fields = Fields(cbor.decode(data.reveal(), limit=MAX_ROOT, what=what), what)
    context, version = fields.blob("context", limit=64), fields.integer("version")
    if context != Context.SEALED_STATE.encode() or version not in (_VERSION, _ROTATED):
        raise InvalidInput("root-version", f"{what} was kept for another purpose, or by another version")
    root = root_of(SecretBytes.key(fields.blob("root", exactly=32)))
    if version == _ROTATED:
        log_keys = LogKeys.read(fields.items("log_keys", limit=MAX_ROOT_GENERATIONS))
        store_keys = fields.items("store_keys", limit=MAX_ROOT_GENERATIONS)
        whole = all(type(key) is bytes and len(key) == KEY_LENGTH for key in store_keys)
        if not whole or not 0 < len(store_keys) == log_keys.generation or log_keys.current != root.log_keys.current:
            raise InvalidInput("root-version", f"{what} does not hold what a rotated one does")
        root = replace(root, log_keys=log_keys, earlier_store_keys=tuple(map(SecretBytes, store_keys)))
    if fields.has("since"):
        root = replace(root, since=(fields.integer("since", low=1), fields.blob("since_root", exactly=32)))
    fields.done()
    return root


def root_of(secret: SecretBytes) -> Root:
    """Derive everything from 32 secret bytes."""
    log_key = SigningKey.from_seed(SecretBytes(derive(Context.LOG_KEY, secret.reveal())))
    store_key = SecretBytes(derive(Context.STORE_KEY, secret.reveal()))
    replication_key = SecretBytes(derive(Context.REPLICATION_KEY, secret.reveal()))
    return Root(LogKeys(log_key.public_key), log_key, store_key, replication_key, secret)


def new_root() -> Root:
    """Of a fresh secret."""
    return root_of(SecretBytes(secrets.token_bytes(32)))


def make_root(path: Path, sealer: Sealer) -> Root:
    """A new one, written to ``path``; raises as :func:`keep_root`."""
    root = new_root()
    keep_root(path, root, sealer)
    return root


def keep_root(path: Path, root: Root, sealer: Sealer) -> None:
    """Write the root secret to ``path``, sealed.

    :raises Refused: ``state-exists`` when there is one already: it is never overwritten.
    :raises Unavailable: ``state-unwritable``.
    """
    write_new(path, sealer.seal(root.encode().reveal()))


def open_root(path: Path, sealer: Sealer) -> Root:
    """The root again.

    :raises Unavailable: ``state-missing``, ``state-unreadable``.
    :raises Tampered: ``unseal-failed`` elsewhere, by other code, with another configuration, or when changed.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SEALED_ROOT + 1)
    except FileNotFoundError as error:
        raise Unavailable(
            "state-missing", f"{path} is not there", hint="`cloister keyservice init` makes a new KeyService."
        ) from error
    except OSError as error:
        raise Unavailable("state-unreadable", f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_SEALED_ROOT:
        raise Tampered("unseal-failed", f"{path} is longer than anything that was ever sealed")
    try:
        unsealed = SecretBytes(sealer.unseal(data))
    except Tampered as error:
        raise Tampered(
            error.code,
            f"{path} was sealed by other code, with another configuration, on another platform, or was changed",
            hint="Start the KeyService with the code, configuration and platform that `init` was run with.",
        ) from error
    try:
        return decode_root(unsealed)
    except (InvalidInput, Tampered) as error:
        raise Tampered("unseal-failed", f"{path} was sealed for another purpose or by another version") from error


def replace_root(path: Path, newer: Path) -> None:
    """Put ``newer`` in the place of ``path``, durably; after a failure it may have happened.

    :raises Unavailable: ``state-unwritable``.
    """
    try:
        newer.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise Unavailable("state-unwritable", f"{path} cannot be replaced: {error.strerror}") from error


def remove_root(path: Path) -> None:
    """Remove one that nothing hangs on, durably; there may be none.

    :raises Unavailable: ``state-unwritable``.
    """
    try:
        path.unlink(missing_ok=True)
        _sync(path.parent)
    except OSError as error:
        raise Unavailable("state-unwritable", f"{path} cannot be removed: {error.strerror}") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet, durably.

    :raises Refused: ``state-exists``. :raises Unavailable: ``state-unwritable``.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        _sync(path.parent)
    except FileExistsError as error:
        raise Refused(
            "state-exists",
            f"{path} exists already",
            hint="A KeyService's root is made once; use another directory for a new one.",
        ) from error
    except OSError as error:
        raise Unavailable("state-unwritable", f"{path} cannot be written: {error.strerror}") from error
