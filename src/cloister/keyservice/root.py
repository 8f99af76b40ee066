"""The root secret: made once, inside the TEE, and sealed to this code with this configuration (protocol.md, 13.5).

Everything lasting comes from it: the log key (and so the KeyService's id) and the key of the store.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.attest.types import Sealer
from cloister.base.errors import InvalidInput, Refused, Tampered, Unavailable
from cloister.base.limits import MAX_ROOT, MAX_SEALED_ROOT
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context, derive
from cloister.crypto.sign import SigningKey
from cloister.wire import cbor
from cloister.wire.calls import keyservice_id
from cloister.wire.cbor import Fields

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Root:
    """What the root secret gives.

    :param id: the KeyService's id.
    :param log_key: signs status, heads, receipts and endorsements.
    :param store_key: from which the store's records are sealed.
    :param replication_key: under which replicas talk to each other (clause 13.17).
    :param secret: the root secret itself, for replicas (clause 13.15) and for sealing.
    """

    id: bytes
    log_key: SigningKey
    store_key: SecretBytes
    replication_key: SecretBytes
    secret: SecretBytes

    def encode(self) -> SecretBytes:
        """All of it, for sealing and for whoever may have it; at most ``MAX_ROOT`` bytes."""
        return SecretBytes(
            cbor.encode({"context": Context.SEALED_STATE.encode(), "version": _VERSION, "root": self.secret.reveal()})
        )


def decode_root(data: SecretBytes) -> Root:
    """What :meth:`Root.encode` gave.

    :raises InvalidInput: anything malformed, and another version.
    """
    what = "the root"
    fields = Fields(cbor.decode(data.reveal(), limit=MAX_ROOT, what=what), what)
    context, version = fields.blob("context", limit=64), fields.integer("version")
    if context != Context.SEALED_STATE.encode() or version != _VERSION:
        raise InvalidInput("root-version", f"{what} was kept for another purpose, or by another version")
    secret = SecretBytes.key(fields.blob("root", exactly=32))
    fields.done()
    return root_of(secret)


def root_of(secret: SecretBytes) -> Root:
    """Derive everything from 32 secret bytes."""
    log_key = SigningKey.from_seed(SecretBytes(derive(Context.LOG_KEY, secret.reveal())))
    store_key = SecretBytes(derive(Context.STORE_KEY, secret.reveal()))
    replication_key = SecretBytes(derive(Context.REPLICATION_KEY, secret.reveal()))
    return Root(keyservice_id(log_key.public_key), log_key, store_key, replication_key, secret)


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
    except InvalidInput as error:
        raise Tampered("unseal-failed", f"{path} was sealed for another purpose or by another version") from error


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
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError as error:
        raise Refused(
            "state-exists",
            f"{path} exists already",
            hint="A KeyService's root is made once; use another directory for a new one.",
        ) from error
    except OSError as error:
        raise Unavailable("state-unwritable", f"{path} cannot be written: {error.strerror}") from error
