"""A custodian of a KeyService, on his own machine (spec/protocol.md, 13.24.1 and 13.24.7)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloister.adapters.keyservice import Transport
from cloister.adapters.recovery import code_of, judge_offer
from cloister.attest.bundle import TrustBundle
from cloister.attest.types import Appraisal, CollateralSource, Evidence, TeeType
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput, Refused
from cloister.base.limits import KIB, MAX_CUSTODIANS, MAX_RECOVERY_OFFER
from cloister.base.secret import SecretBytes
from cloister.client.files import read_private, write_private
from cloister.crypto.digest import same
from cloister.crypto.hpke import HpkePrivateKey
from cloister.wire import cbor
from cloister.wire.cbor import Fields
from cloister.wire.custody import custodian_id, open_share
from cloister.wire.recovery import OFFER_PATH, SHARE_PATH, Offer, seal_answer

_BLOCK: Final = re.compile(rb"-----BEGIN [A-Z ]+-----.+?-----END [A-Z ]+-----\n?", re.DOTALL)
_PUBLIC: Final = ".pub"


@dataclass(frozen=True, slots=True)
class Asked:
    """An enclave that asks for shares and may have them, as far as evidence and trust bundle say.

    :param same_code: whether it is exactly what was lost; otherwise a successor that the bundle names.
    """

    offer: Offer
    appraisal: Appraisal
    same_code: bool


@dataclass(frozen=True, slots=True)
class Given:
    """After an answer: how many custodians it takes, and how many have answered."""

    threshold: int
    answered: int


def public_file(path: Path) -> Path:
    """Where the public half of a key file is."""
    return path.with_name(path.name + _PUBLIC)


def make_key(path: Path, passphrase: str | None = None) -> HpkePrivateKey:
    """A new key in ``path``, as two PKCS #8 blocks in PEM form, and its public half beside it.

    :raises Refused: ``custodian-key-exists``. :raises Unavailable: ``file-not-written``.
    """
    if path.exists() or public_file(path).exists():
        raise Refused("custodian-key-exists", f"{path} exists already", hint="Choose another file.")
    mlkem, x25519 = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    write_private(path, b"".join(key.private_bytes(pem, form, encryption) for key in (mlkem, x25519)))
    key = HpkePrivateKey(mlkem, x25519)
    write_private(public_file(path), key.public_key.hex().encode() + b"\n")
    return key


def load_key(path: Path, passphrase: str | None = None) -> HpkePrivateKey:
    """The key of a file.

    :raises InvalidInput: ``custodian-key-malformed``, ``file-unreadable``.
    :raises Refused: ``passphrase-wrong``, ``file-exposed``.
    """
    blocks = _BLOCK.findall(read_private(path)[: 4 * KIB])
    try:
        keys = [serialization.load_pem_private_key(b, passphrase.encode() if passphrase else None) for b in blocks]
    except TypeError as error:
        hint = (
            "Set CLOISTER_PASSPHRASE." if not passphrase else "This key has no passphrase: unset CLOISTER_PASSPHRASE."
        )
        raise Refused("passphrase-wrong", f"{path} cannot be opened this way", hint=hint) from error
    except ValueError as error:
        if passphrase:
            raise Refused("passphrase-wrong", f"the passphrase does not open {path}") from error
        raise _malformed(path) from error
    match keys:
        case [MLKEM768PrivateKey() as mlkem, X25519PrivateKey() as x25519]:
            return HpkePrivateKey(mlkem, x25519)
        case _:
            raise _malformed(path)


def _malformed(path: Path) -> InvalidInput:
    return InvalidInput(
        "custodian-key-malformed", f"{path} holds no custodian's key", hint="`cloister custodian keygen` makes one."
    )


def look(
    transport: Transport,
    *,
    bundle: TrustBundle,
    collateral: CollateralSource,
    clock: Clock,
    expected: bytes | None = None,
) -> Asked:
    """Who asks for shares, judged; nothing is given away.

    :param expected: id of the only KeyService that is to be brought back; ``None``: whichever it is.
    :raises Refused: ``keyservice-other``, ``recovery-code``, and the codes of verification and appraisal.
    :raises InvalidInput: malformed. :raises Tampered: signatures. :raises Unavailable: it does not answer.
    """
    offer = Offer.decode(transport.get(OFFER_PATH, limit=MAX_RECOVERY_OFFER))
    if expected is not None and not same(offer.record.keyservice, expected):
        raise Refused("keyservice-other", "another KeyService asks than the one that was named")
    evidence = offer.evidence
    try:
        source = Evidence(TeeType(evidence.tee), evidence.body, evidence.endorsements)
    except ValueError as error:
        raise InvalidInput("evidence-unknown-tee", "the KeyService's evidence names no TEE known here") from error
    found = collateral.collateral(source)
    appraisal = judge_offer(offer, bundle=bundle, collateral=found, now=clock.now())
    found_code = code_of(appraisal.claims, appraisal.configuration.digest)
    return Asked(offer, appraisal, found_code == offer.record.code)


def share_of(asked: Asked, key: HpkePrivateKey) -> SecretBytes:
    """The custodian's share in the record, which fits what the record commits to.

    :raises Refused: ``custodian-unknown``. :raises Tampered: ``hpke-open``, ``custody-share``.
    """
    return open_share(asked.offer.record, key)


def answer(transport: Transport, asked: Asked, key: HpkePrivateKey) -> Given:
    """Give the share to the enclave that was judged, and to no other.

    :raises CloisterError: as :func:`share_of`; whatever it answers.
    """
    sealed = seal_answer(asked.offer, custodian_id(key.public_key), share_of(asked, key))
    what = "the reply to the share"
    fields = Fields(cbor.decode(transport.post(SHARE_PATH, sealed.encode(), limit=128), limit=128, what=what), what)
    given = Given(fields.integer("threshold", high=MAX_CUSTODIANS), fields.integer("answered", high=MAX_CUSTODIANS))
    fields.done()
    return given
