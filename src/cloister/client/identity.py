"""An identity on its owner's machine: two Ed25519 keys, in PKCS #8 files that only he can read.

The *identity key* signs statements and requests. The *recovery key* can only replace it, and belongs on paper or on
another machine (spec/protocol.md, sections 4 and 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.base.errors import InvalidInput, Refused, Tampered
from cloister.base.ids import check_name, parse_id
from cloister.base.secret import SecretBytes
from cloister.client.files import read_private, write_private
from cloister.crypto.sign import SigningKey
from cloister.wire.statements import identity_id

KEY_FILE: Final = "identity.pem"
RECOVERY_FILE: Final = "recovery.pem"
ID_FILE: Final = "id"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who speaks: a name for this machine only, the id everybody else knows, and the key."""

    name: str
    id: bytes
    key: SigningKey
    folder: Path

    @property
    def text(self) -> str:
        """The id as 64 hexadecimal digits."""
        return self.id.hex()

    def recovery_public_key(self) -> bytes:
        """Of the recovery key, which itself may be elsewhere."""
        return bytes.fromhex((self.folder / "recovery.pub").read_text("ascii").strip())


def create_identity(home: Path, name: str, passphrase: str | None = None) -> Identity:
    """Make both keys, in ``home/identities/name``.

    :raises Refused: ``identity-exists``.
    """
    folder = _folder(home, name)
    if folder.exists():
        raise Refused(
            "identity-exists",
            f"there is an identity {name!r} already",
            hint="Choose another name, or use the one there is (`cloister identity show`).",
        )
    key, recovery = SigningKey.generate(), SigningKey.generate()
    folder.mkdir(parents=True, mode=0o700)
    write_private(folder / RECOVERY_FILE, _to_pem(recovery, passphrase))
    (folder / "recovery.pub").write_text(recovery.public_key.hex() + "\n", "ascii")
    (folder / ID_FILE).write_text(identity_id(key.public_key).hex() + "\n", "ascii")
    write_private(folder / KEY_FILE, _to_pem(key, passphrase))
    return Identity(name, identity_id(key.public_key), key, folder)


def load_identity(home: Path, name: str, passphrase: str | None = None) -> Identity:
    """:raises InvalidInput: ``identity-unknown``, ``identity-unreadable``. :raises Refused: ``passphrase-wrong``."""
    folder = _folder(home, name)
    if not (folder / KEY_FILE).exists():
        known = ", ".join(list_identities(home)) or "none"
        raise InvalidInput(
            "identity-unknown",
            f"there is no identity {name!r} in {home}",
            hint=f"Known: {known}. Make one with `cloister identity new {name}`.",
        )
    key = _from_pem(read_private(folder / KEY_FILE), passphrase, what=str(folder / KEY_FILE))
    return Identity(name, identity_id_of(home, name), key, folder)


def identity_id_of(home: Path, name: str) -> bytes:
    """The id alone, which needs no passphrase.

    :raises InvalidInput: ``identity-unreadable``.
    """
    path = _folder(home, name) / ID_FILE
    try:
        return parse_id(path.read_text("ascii").strip(), what=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("identity-unreadable", f"{path} cannot be read") from error


def load_recovery_key(identity: Identity, path: Path | None = None, passphrase: str | None = None) -> SigningKey:
    """The recovery key, from where it was moved to.

    :raises InvalidInput: ``identity-unreadable``. :raises Tampered: ``recovery-key-other`` when it is another's.
    """
    place = path or identity.folder / RECOVERY_FILE
    key = _from_pem(read_private(place), passphrase, what=str(place))
    if key.public_key != identity.recovery_public_key():
        raise Tampered("recovery-key-other", f"{place} is not the recovery key of {identity.name!r}")
    return key


def replace_key(identity: Identity, key: SigningKey, passphrase: str | None = None) -> Identity:
    """Keep a rotated key on disk; the id stays."""
    write_private(identity.folder / KEY_FILE, _to_pem(key, passphrase))
    return Identity(identity.name, identity.id, key, identity.folder)


def list_identities(home: Path) -> list[str]:
    """Names, sorted."""
    folder = home / "identities"
    return sorted(entry.name for entry in folder.iterdir() if (entry / KEY_FILE).exists()) if folder.is_dir() else []


def _folder(home: Path, name: str) -> Path:
    return home / "identities" / check_name(name, what="the identity's name")


def _to_pem(key: SigningKey, passphrase: str | None) -> bytes:
    encryption: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    return Ed25519PrivateKey.from_private_bytes(key.seed().reveal()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def _from_pem(data: bytes, passphrase: str | None, *, what: str) -> SigningKey:
    try:
        key = serialization.load_pem_private_key(data, passphrase.encode() if passphrase else None)
    except TypeError as error:
        hint = (
            "Set CLOISTER_PASSPHRASE." if not passphrase else "This key has no passphrase: unset CLOISTER_PASSPHRASE."
        )
        raise Refused("passphrase-wrong", f"{what} cannot be opened this way", hint=hint) from error
    except ValueError as error:
        if passphrase:
            raise Refused("passphrase-wrong", f"the passphrase does not open {what}") from error
        raise InvalidInput("identity-unreadable", f"{what} is not a private key in PEM form") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidInput("identity-unreadable", f"{what} is not an Ed25519 key")
    return SigningKey.from_seed(SecretBytes(key.private_bytes_raw()))
