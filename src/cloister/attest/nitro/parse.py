"""A Nitro attestation document as bytes, to its fields (spec/attestation.md, clauses 5.1 and 5.2).

Source: AWS, Nitro Enclaves attestation process (aws-nitro-enclaves-nsm-api, docs/attestation_process.md); RFC 9052.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeVar

import cbor2

from cloister.attest.nitro.cbor import CborValue, read
from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_EVIDENCE

COSE_SIGN1_TAG: Final = 0xD2  # tag 18, one byte
ALGORITHM_HEADER: Final = 1
ES384: Final = -35
SIGNATURE_SIZE: Final = 96
DIGEST: Final = "SHA384"
PCR_SIZE: Final = 48
MAX_PCR: Final = 31
MAX_FIELD: Final = 1024  # user_data, nonce, public_key, and each certificate
MAX_MODULE_ID: Final = 128
MAX_BUNDLE: Final = 8  # four in use
MAX_TIMESTAMP: Final = 2**53  # milliseconds; far beyond every certificate

_FIELDS: Final = frozenset(
    {
        "module_id",
        "digest",
        "timestamp",
        "pcrs",
        "certificate",
        "cabundle",
        "public_key",
        "user_data",
        "nonce",
    }
)
T = TypeVar("T", int, str, bytes)


@dataclass(frozen=True, slots=True)
class NitroDocument:
    """All fields of a document; nothing in it is believed yet.

    :param signed: the Sig_structure of RFC 9052, section 4.4: what the signature is over.
    :param r, s: of the signature, as integers.
    :param pcrs: index (0 to 31) to 48 bytes, for those that are there.
    :param certificate: the leaf, DER.
    :param cabundle: root first, then down to the leaf's issuer, DER.
    :param user_data, nonce, public_key: ``None`` if null or absent.
    """

    signed: bytes
    r: int
    s: int
    module_id: str
    timestamp_ms: int
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    user_data: bytes | None
    nonce: bytes | None
    public_key: bytes | None


def parse(body: bytes) -> NitroDocument:
    """Read a document.

    :raises InvalidInput: ``nitro-too-long``, ``nitro-cbor-...``, ``nitro-envelope``, ``nitro-algorithm``,
        ``nitro-algorithm-missing``, ``nitro-protected-header``, ``nitro-unprotected-header``,
        ``nitro-payload-detached``, ``nitro-signature-length``, ``nitro-field-missing``, ``nitro-field-unknown``,
        ``nitro-field-type``, ``nitro-field-size``, ``nitro-digest``, ``nitro-pcr-index``, ``nitro-pcr-value``,
        ``nitro-cabundle-empty``.
    """
    if len(body) > MAX_EVIDENCE:
        raise InvalidInput("nitro-too-long", f"the document has {len(body)} bytes; at most {MAX_EVIDENCE} are read")
    envelope = read(body[1:] if body[:1] == bytes([COSE_SIGN1_TAG]) else body, what="the document")
    if not isinstance(envelope, list) or len(envelope) != 4:
        raise InvalidInput("nitro-envelope", "the document is not a COSE_Sign1 array of 4")
    protected, unprotected, payload, signature = envelope
    if type(protected) is not bytes:
        raise InvalidInput("nitro-envelope", "the protected header is not a byte string")
    _check_headers(protected, unprotected)
    if payload is None:
        raise InvalidInput("nitro-payload-detached", "the payload is not in the document")
    if type(payload) is not bytes or type(signature) is not bytes:
        raise InvalidInput("nitro-envelope", "payload or signature is not a byte string")
    if len(signature) != SIGNATURE_SIZE:
        raise InvalidInput("nitro-signature-length", f"the signature has {len(signature)} bytes, not {SIGNATURE_SIZE}")
    content = read(payload, what="the payload", open_map=True)
    if not isinstance(content, dict):
        raise InvalidInput("nitro-field-type", "the payload is not a map")
    unknown = [str(name)[:32] for name in content if name not in _FIELDS]
    if unknown:
        raise InvalidInput("nitro-field-unknown", f"the payload has fields unknown here: {', '.join(unknown[:4])}")
    if _text(content, "digest") != DIGEST:
        raise InvalidInput("nitro-digest", f"the PCRs are not made with {DIGEST}")
    timestamp = _need(content, "timestamp", int)
    if not 0 < timestamp <= MAX_TIMESTAMP:
        raise InvalidInput("nitro-field-size", "the timestamp is not a number of milliseconds since 1970")
    return NitroDocument(
        signed=cbor2.dumps(["Signature1", protected, b"", payload]),
        r=int.from_bytes(signature[: SIGNATURE_SIZE // 2], "big"),
        s=int.from_bytes(signature[SIGNATURE_SIZE // 2 :], "big"),
        module_id=_text(content, "module_id"),
        timestamp_ms=timestamp,
        pcrs=_pcrs(content),
        certificate=_bytes(content, "certificate", least=1),
        cabundle=_bundle(content),
        user_data=_optional(content, "user_data"),
        nonce=_optional(content, "nonce"),
        public_key=_optional(content, "public_key"),
    )


def _check_headers(protected: bytes, unprotected: CborValue) -> None:
    """Exactly the algorithm ES384, under the signature; nothing beside it (clause 5.1)."""
    header = read(protected, what="the protected header") if protected else {}
    if not isinstance(header, dict):
        raise InvalidInput("nitro-protected-header", "the protected header is not a map")
    if ALGORITHM_HEADER not in header:
        raise InvalidInput("nitro-algorithm-missing", "the protected header names no algorithm")
    if type(header[ALGORITHM_HEADER]) is not int or header[ALGORITHM_HEADER] != ES384:
        raise InvalidInput("nitro-algorithm", f"the document is not signed with ES384 ({ES384})")
    if len(header) != 1:
        raise InvalidInput("nitro-protected-header", "the protected header holds more than the algorithm")
    if unprotected != {}:
        raise InvalidInput("nitro-unprotected-header", "the unprotected header is not an empty map")


def _need(content: Mapping[int | str, CborValue], name: str, kind: type[T]) -> T:
    if name not in content:
        raise InvalidInput("nitro-field-missing", f"the payload lacks {name!r}")
    value = content[name]
    if type(value) is not kind:
        raise InvalidInput("nitro-field-type", f"{name!r} is {type(value).__name__}, not {kind.__name__}")
    return value


def _text(content: Mapping[int | str, CborValue], name: str) -> str:
    value = _need(content, name, str)
    if not 0 < len(value) <= MAX_MODULE_ID or not value.isprintable():
        raise InvalidInput("nitro-field-size", f"{name!r} is not of 1 to {MAX_MODULE_ID} printable characters")
    return value


def _bytes(content: Mapping[int | str, CborValue], name: str, *, least: int = 0) -> bytes:
    value = _need(content, name, bytes)
    if not least <= len(value) <= MAX_FIELD:
        raise InvalidInput("nitro-field-size", f"{name!r} has {len(value)} bytes, not {least} to {MAX_FIELD}")
    return value


def _optional(content: Mapping[int | str, CborValue], name: str) -> bytes | None:
    return None if content.get(name) is None else _bytes(content, name)


def _pcrs(content: Mapping[int | str, CborValue]) -> Mapping[int, bytes]:
    value = content.get("pcrs")
    if not isinstance(value, dict):
        raise InvalidInput("nitro-field-type" if "pcrs" in content else "nitro-field-missing", "'pcrs' is not a map")
    found: dict[int, bytes] = {}
    for index, pcr in value.items():
        if not isinstance(index, int) or not 0 <= index <= MAX_PCR:
            raise InvalidInput("nitro-pcr-index", f"a PCR's index is not 0 to {MAX_PCR}")
        if type(pcr) is not bytes or len(pcr) != PCR_SIZE:
            raise InvalidInput("nitro-pcr-value", f"PCR{index} is not a byte string of {PCR_SIZE} bytes")
        found[index] = pcr
    return MappingProxyType(dict(sorted(found.items())))


def _bundle(content: Mapping[int | str, CborValue]) -> tuple[bytes, ...]:
    value = content.get("cabundle")
    if not isinstance(value, list):
        code = "nitro-field-type" if "cabundle" in content else "nitro-field-missing"
        raise InvalidInput(code, "'cabundle' is not an array")
    if not value:
        raise InvalidInput("nitro-cabundle-empty", "'cabundle' is empty")
    if len(value) > MAX_BUNDLE:
        raise InvalidInput("nitro-field-size", f"'cabundle' holds more than {MAX_BUNDLE} certificates")
    found: list[bytes] = []
    for entry in value:
        if type(entry) is not bytes or not 0 < len(entry) <= MAX_FIELD:
            raise InvalidInput("nitro-field-size", f"a certificate of 'cabundle' is not of 1 to {MAX_FIELD} bytes")
        found.append(entry)
    return tuple(found)
