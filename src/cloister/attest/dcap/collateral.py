"""Intel collateral in one JSON file, ``collateral.json`` (spec/attestation.md, clauses 3.5 and 8.5).

The form is dcap-qvl's QuoteCollateralV3: issuer chains as PEM text, TCB info and QE identity as the exact JSON text
that Intel signed, their signatures and both CRLs (DER) in hexadecimal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_COLLATERAL

FILE: Final = "collateral.json"
_TEXTS: Final = ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "tcb_info", "qe_identity_issuer_chain", "qe_identity")
_HEXES: Final = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")
_OPTIONAL: Final = ("pck_certificate_chain",)  # dcap-qvl may add it; the quote's own chain is what is verified here
TCB_INFO_VERSION: Final = 3
QE_IDENTITY_VERSION: Final = 2
_SIGNATURE: Final = 64
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})*")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True, slots=True)
class SignedWindow:
    """From when to when a signed document says it holds; Unix seconds, both ends inside."""

    issued: int
    next_update: int


@dataclass(frozen=True, slots=True)
class TcbInfo:
    """The head of TCB info; its levels are read by dcap-qvl."""

    tee: str
    version: int
    window: SignedWindow
    fmspc: bytes
    pce_id: bytes
    evaluation_number: int


@dataclass(frozen=True, slots=True)
class QeIdentity:
    """The head of a QE identity; ``id`` is ``QE`` (SGX) or ``TD_QE``."""

    id: str
    version: int
    window: SignedWindow
    evaluation_number: int


@dataclass(frozen=True, slots=True)
class DcapCollateral:
    """Everything a quote's verification needs beside the quote. Nothing in it is believed yet."""

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info_text: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity_text: str
    qe_identity_signature: bytes
    tcb_info: TcbInfo
    qe_identity: QeIdentity

    @classmethod
    def of(
        cls,
        *,
        pck_crl_issuer_chain: str,
        root_ca_crl: bytes,
        pck_crl: bytes,
        tcb_info_issuer_chain: str,
        tcb_info: str,
        tcb_info_signature: bytes,
        qe_identity_issuer_chain: str,
        qe_identity: str,
        qe_identity_signature: bytes,
    ) -> DcapCollateral:
        """From its nine parts.

        :raises InvalidInput: ``collateral-malformed``, ``crl-missing``.
        """
        for name, crl in (("root", root_ca_crl), ("PCK", pck_crl)):
            if not crl:
                raise InvalidInput("crl-missing", f"the collateral has no {name} CRL")
        for name, signature in (("TCB info", tcb_info_signature), ("QE identity", qe_identity_signature)):
            if len(signature) != _SIGNATURE:
                raise InvalidInput("collateral-malformed", f"the signature of {name} does not have {_SIGNATURE} bytes")
        return cls(
            pck_crl_issuer_chain=pck_crl_issuer_chain,
            root_ca_crl=root_ca_crl,
            pck_crl=pck_crl,
            tcb_info_issuer_chain=tcb_info_issuer_chain,
            tcb_info_text=tcb_info,
            tcb_info_signature=tcb_info_signature,
            qe_identity_issuer_chain=qe_identity_issuer_chain,
            qe_identity_text=qe_identity,
            qe_identity_signature=qe_identity_signature,
            tcb_info=_tcb_info(tcb_info),
            qe_identity=_qe_identity(qe_identity),
        )

    def encode(self) -> bytes:
        """The content of ``collateral.json``; :func:`parse_collateral` gives the same value back."""
        return json.dumps(
            {
                "pck_crl_issuer_chain": self.pck_crl_issuer_chain,
                "root_ca_crl": self.root_ca_crl.hex(),
                "pck_crl": self.pck_crl.hex(),
                "tcb_info_issuer_chain": self.tcb_info_issuer_chain,
                "tcb_info": self.tcb_info_text,
                "tcb_info_signature": self.tcb_info_signature.hex(),
                "qe_identity_issuer_chain": self.qe_identity_issuer_chain,
                "qe_identity": self.qe_identity_text,
                "qe_identity_signature": self.qe_identity_signature.hex(),
            },
            indent=1,
        ).encode()


def parse_collateral(data: bytes) -> DcapCollateral:
    """Read ``collateral.json``.

    :raises InvalidInput: ``collateral-malformed``, ``crl-missing``.
    """
    if len(data) > MAX_COLLATERAL:
        raise InvalidInput("collateral-malformed", f"collateral has at most {MAX_COLLATERAL} bytes")
    value = load_object(data, "the collateral")
    unknown = sorted(set(value) - set(_TEXTS) - set(_HEXES) - set(_OPTIONAL))
    if unknown:
        raise InvalidInput("collateral-malformed", f"the collateral has an unknown field {unknown[0][:64]!r}")
    texts = {name: _text(value, name) for name in _TEXTS}
    blobs = {name: _blob(value, name) for name in _HEXES}
    return DcapCollateral.of(**texts, **blobs)  # type: ignore[arg-type]  # names and kinds are those listed above


def load_object(data: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object in which no name is repeated and no number is infinite.

    :raises InvalidInput: ``collateral-malformed``.
    """
    try:
        value = json.loads(data, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("collateral-malformed", f"{what} is not JSON with distinct names") from error
    if not isinstance(value, dict):
        raise InvalidInput("collateral-malformed", f"{what} is not a JSON object")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        msg = "repeated name"
        raise ValueError(msg)
    return value


def _no_constant(name: str) -> float:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _text(value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise InvalidInput("collateral-malformed", f"the collateral's {name!r} is missing or is not text")
    return text


def _blob(value: dict[str, Any], name: str) -> bytes:
    """Bytes as hexadecimal text, or as a list of their values, which some versions of dcap-qvl write."""
    found = value.get(name, "" if name.endswith("crl") else None)
    if isinstance(found, list) and all(type(item) is int and 0 <= item <= 0xFF for item in found):
        return bytes(found)
    if not isinstance(found, str) or not _HEX.fullmatch(found):
        raise InvalidInput("collateral-malformed", f"the collateral's {name!r} is missing or is not hexadecimal")
    return bytes.fromhex(found)


def _tcb_info(text: str) -> TcbInfo:
    get = _getter(text, "TCB info")
    version = get("version", int)
    return TcbInfo(
        tee=get("id", str) if version >= TCB_INFO_VERSION else "SGX",  # version 2 knew no other, and did not say
        version=version,
        window=_window(get, "TCB info"),
        fmspc=_digits(get("fmspc", str), 6, "TCB info's fmspc"),
        pce_id=_digits(get("pceId", str), 2, "TCB info's pceId"),
        evaluation_number=get("tcbEvaluationDataNumber", int),
    )


def _qe_identity(text: str) -> QeIdentity:
    get = _getter(text, "QE identity")
    return QeIdentity(
        id=get("id", str),
        version=get("version", int),
        window=_window(get, "QE identity"),
        evaluation_number=get("tcbEvaluationDataNumber", int),
    )


def _getter(text: str, what: str) -> Callable[[str, type], Any]:
    value = load_object(text, what)

    def get(name: str, kind: type) -> Any:
        found = value.get(name)
        if type(found) is not kind or (isinstance(found, int) and not 0 <= found < 2**32):
            raise InvalidInput("collateral-malformed", f"{what}: {name!r} is missing or is not {kind.__name__}")
        return found

    return get


def _window(get: Callable[[str, type], Any], what: str) -> SignedWindow:
    moments = []
    for name in ("issueDate", "nextUpdate"):
        text = get(name, str)
        try:
            if not _TIME.fullmatch(text):
                raise ValueError(text)
            moments.append(int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()))
        except ValueError as error:
            raise InvalidInput("collateral-malformed", f"{what}: {name!r} is not a UTC time") from error
    return SignedWindow(*moments)


def _digits(text: str, length: int, what: str) -> bytes:
    if len(text) != 2 * length or not _HEX.fullmatch(text):
        raise InvalidInput("collateral-malformed", f"{what} is not {length} bytes in hexadecimal")
    return bytes.fromhex(text)
