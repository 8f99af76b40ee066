"""Collateral from Intel's Provisioning Certification Service, or a caching service (PCCS) with the same interface.

Source: Intel, "API Portal, SGX and TDX Provisioning Certification Service, version 4"; PCCS: the design guide of
Intel's DCAP. Nothing that comes back is believed here; it is put into the form that verification reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

from cloister.adapters.collateral.fetch import Answer, Connection, Fetcher
from cloister.adapters.collateral.subject import IntelSubject, subject_of
from cloister.attest.dcap.collateral import FILE, DcapCollateral
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_COLLATERAL

INTEL: Final = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
_HEX: Final = re.compile(rb"\s*((?:[0-9a-fA-F]{2})+)\s*")
_TCB_CHAINS: Final = ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain")
_QE_CHAINS: Final = ("sgx-enclave-identity-issuer-chain",)
_CRL_CHAINS: Final = ("sgx-pck-crl-issuer-chain",)


class IntelPcs:
    """``CollateralSource`` for SGX and TDX.

    :param base: of Intel's service, or of a PCCS (``https://pccs.example:8081``), without ``/sgx/certification/v4``.
    :param root_crl: where the root CRL is; by default the PCCS's own for a PCCS, Intel's for Intel.
    :param update: ``standard``, or ``early`` for TCB information before its enforcement date.
    """

    def __init__(
        self, fetcher: Fetcher, *, base: str = INTEL, root_crl: str | None = None, update: str = "standard"
    ) -> None:
        """:raises InvalidInput: ``collateral-service`` for a base that is no http(s) address, or an unknown update."""
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname or update not in ("standard", "early"):
            raise InvalidInput("collateral-service", f"{base!r} with update {update!r} is not a collateral service")
        self._fetcher = fetcher
        self._base = base.rstrip("/")
        self._update = update
        own = f"{self._base}/sgx/certification/v4/rootcacrl"
        self._root_crl = root_crl or (INTEL_ROOT_CRL if self._base == INTEL else own)

    def collateral(self, evidence: Evidence) -> Collateral:
        """TCB info, QE identity and both CRLs for the platform of this quote.

        :raises Unavailable: ``collateral-unavailable``.
        :raises InvalidInput: ``collateral-malformed``, ``collateral-other-tee``, and the quote's own codes.
        """
        subject = subject_of(evidence)
        if not isinstance(subject, IntelSubject):
            raise InvalidInput("collateral-other-tee", f"Intel has no collateral for {evidence.tee.value} evidence")
        tee = "tdx" if evidence.tee is TeeType.TDX else "sgx"
        with self._fetcher.session() as connection:
            tcb = self._get(connection, f"{tee}/certification/v4/tcb?fmspc={subject.fmspc.hex()}&update={self._update}")
            qe = self._get(connection, f"{tee}/certification/v4/qe/identity?update={self._update}")
            pck_crl = self._get(connection, f"sgx/certification/v4/pckcrl?ca={subject.ca}&encoding=der")
            root_crl = connection.get(self._root_crl, limit=MAX_COLLATERAL)
        tcb_info, tcb_signature = _signed(tcb.body, "tcbInfo")
        identity, identity_signature = _signed(qe.body, "enclaveIdentity")
        document = DcapCollateral.of(
            pck_crl_issuer_chain=_chain(pck_crl.headers, _CRL_CHAINS),
            root_ca_crl=_der(root_crl.body),
            pck_crl=_der(pck_crl.body),
            tcb_info_issuer_chain=_chain(tcb.headers, _TCB_CHAINS),
            tcb_info=tcb_info,
            tcb_info_signature=tcb_signature,
            qe_identity_issuer_chain=_chain(qe.headers, _QE_CHAINS),
            qe_identity=identity,
            qe_identity_signature=identity_signature,
        ).encode()
        if len(document) > MAX_COLLATERAL:
            raise InvalidInput("collateral-malformed", f"the collateral has more than {MAX_COLLATERAL} bytes")
        return Collateral({FILE: document})

    def _get(self, connection: Connection, path: str) -> Answer:
        return connection.get(f"{self._base}/{path}", limit=MAX_COLLATERAL)


def _chain(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    """An issuer chain: PEM, percent-encoded, in a header."""
    for name in names:
        if name in headers:
            try:
                return unquote_to_bytes(headers[name]).decode("ascii")
            except (UnicodeError, ValueError) as error:
                raise InvalidInput("collateral-malformed", f"the header {name!r} is not a PEM chain") from error
    raise InvalidInput("collateral-malformed", f"the answer lacks the header {names[0]!r}")


def _der(body: bytes) -> bytes:
    """A CRL as DER; some PCCS versions send it in hexadecimal."""
    text = _HEX.fullmatch(body)
    return bytes.fromhex(text.group(1).decode()) if text else body


def _signed(body: bytes, name: str) -> tuple[str, bytes]:
    """``{"<name>": {...}, "signature": "<hex>"}``: the exact text of the value, which is what was signed."""
    decoder = json.JSONDecoder()
    blank = re.compile(r"[ \t\r\n]*")
    found: dict[str, str] = {}

    def skip(at: int, character: str) -> int:
        at = _end(blank, text, at)
        if text[at : at + 1] != character:
            raise ValueError(at)
        return _end(blank, text, at + 1)

    try:
        text = body.decode()
        at = skip(0, "{")
        while True:
            key, at = decoder.raw_decode(text, at)
            start = skip(at, ":")
            _, at = decoder.raw_decode(text, start)
            if not isinstance(key, str) or key in found:
                raise ValueError(at)
            found[key] = text[start:at]
            at = _end(blank, text, at)
            if text[at : at + 1] != ",":
                break
            at = skip(at, ",")
        if skip(at, "}") != len(text):
            raise ValueError(at)
        signature = json.loads(found["signature"])
        return found[name], bytes.fromhex(signature)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInput("collateral-malformed", f"the answer is not {{{name!r}, 'signature'}}") from error


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at
