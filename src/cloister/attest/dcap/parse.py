"""Bytes to an SGX or TDX quote, or InvalidInput (spec/attestation.md, clauses 2.1 and 3.1 to 3.3)."""

from __future__ import annotations

from typing import Final

from cloister.attest.dcap.quote import (
    CERTIFICATION_PCK_CHAIN,
    CERTIFICATION_QE_REPORT,
    ENCLAVE_REPORT_LENGTH,
    HEADER_LENGTH,
    INTEL_QE_VENDOR,
    KEY_TYPE_ECDSA_P256,
    TD_REPORT_10_LENGTH,
    TD_REPORT_15_EXTENDED_LENGTH,
    TD_REPORT_15_LENGTH,
    TEE_SGX,
    TEE_TDX,
    EnclaveReport,
    QuoteHeader,
    QuoteSignature,
    SgxQuote,
    TdReport,
    TdxQuote,
)
from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_EVIDENCE, MAX_PCK_CHAIN, MAX_QE_AUTHENTICATION, MAX_QUOTE_PADDING

# version 5 names its body: type -> (TD report version, length)
_TD_BODIES: Final = {
    2: ("1.0", TD_REPORT_10_LENGTH),
    3: ("1.5", TD_REPORT_15_LENGTH),
    4: ("1.5ex", TD_REPORT_15_EXTENDED_LENGTH),
}


class _Reader:
    """Takes fields off the front of bytes; every take is bounded by what is there."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self.position = 0

    def take(self, length: int, field: str) -> bytes:
        end = self.position + length
        if end > len(self._data):
            raise InvalidInput(
                "quote-truncated",
                f"{self._what} ends at byte {len(self._data)}, inside {field} ({length} bytes from {self.position})",
            )
        piece = self._data[self.position : end]
        self.position = end
        return piece

    def integer(self, length: int, field: str) -> int:
        return int.from_bytes(self.take(length, field), "little")

    def zeros(self, length: int, field: str) -> None:
        if any(self.take(length, field)):
            raise InvalidInput("quote-reserved", f"{self._what}: reserved bytes ({field}) are not zero")

    def rest(self) -> bytes:
        return self._data[self.position :]

    def finish(self) -> None:
        if left := len(self._data) - self.position:
            raise InvalidInput("quote-length", f"{self._what} has {left} bytes more than its fields")


def parse(body: bytes) -> SgxQuote | TdxQuote:
    """Read a quote.

    :param body: the whole quote; zero padding may follow it (clause 3.3).
    :raises InvalidInput: ``quote-too-long, quote-truncated, quote-version, quote-key-type, quote-tee-type,
        quote-vendor, quote-body-type, quote-reserved, quote-length, quote-certification-type, quote-trailing-bytes``.
    """
    if len(body) > MAX_EVIDENCE:
        raise InvalidInput("quote-too-long", f"a quote has at most {MAX_EVIDENCE} bytes, this one has {len(body)}")
    reader = _Reader(body, "the quote")
    header = _header(reader)
    if header.tee_type == TEE_SGX:
        report = _enclave_report(reader.take(ENCLAVE_REPORT_LENGTH, "the enclave report"), "the enclave report")
        signed = body[: reader.position]
        signature = _signature(reader, wrapped=False)
        return SgxQuote(header, report, signature, signed, _padding(reader))
    td_report = _td_body(reader, header.version)
    signed = body[: reader.position]
    signature = _signature(reader, wrapped=True)
    return TdxQuote(header, td_report, signature, signed, _padding(reader))


def _header(reader: _Reader) -> QuoteHeader:
    """Clause 3.1."""
    raw = _Reader(reader.take(HEADER_LENGTH, "the header"), "the quote's header")
    header = QuoteHeader(
        version=raw.integer(2, "version"),
        attestation_key_type=raw.integer(2, "attestation key type"),
        tee_type=raw.integer(4, "TEE type"),
        qe_svn=raw.integer(2, "QE SVN"),
        pce_svn=raw.integer(2, "PCE SVN"),
        qe_vendor_id=raw.take(16, "QE vendor id"),
        user_data=raw.take(20, "user data"),
    )
    if header.version not in (3, 4, 5):
        raise InvalidInput("quote-version", f"quote version {header.version} is not 3, 4 or 5")
    if header.tee_type not in (TEE_SGX, TEE_TDX):
        raise InvalidInput("quote-tee-type", f"TEE type {header.tee_type:#x} is neither SGX (0) nor TDX (0x81)")
    if (header.tee_type == TEE_SGX) != (header.version == 3):
        name = "an SGX quote" if header.tee_type == TEE_SGX else "a TDX quote"
        raise InvalidInput("quote-tee-type", f"{name} does not have version {header.version}")
    if header.attestation_key_type != KEY_TYPE_ECDSA_P256:
        raise InvalidInput("quote-key-type", f"attestation key type {header.attestation_key_type} is not 2 (P-256)")
    if header.qe_vendor_id != INTEL_QE_VENDOR:
        raise InvalidInput("quote-vendor", f"QE vendor {header.qe_vendor_id.hex()} is not Intel")
    return header


def _enclave_report(raw: bytes, what: str) -> EnclaveReport:
    reader = _Reader(raw, what)
    cpu_svn = reader.take(16, "CPUSVN")
    misc_select = reader.integer(4, "MISCSELECT")
    reader.zeros(12, "offset 20")
    extended_product_id = reader.take(16, "ISVEXTPRODID")
    flags = reader.integer(8, "ATTRIBUTES.FLAGS")
    xfrm = reader.integer(8, "ATTRIBUTES.XFRM")
    mr_enclave = reader.take(32, "MRENCLAVE")
    reader.zeros(32, "offset 96")
    mr_signer = reader.take(32, "MRSIGNER")
    reader.zeros(32, "offset 160")
    config_id = reader.take(64, "CONFIGID")
    product_id = reader.integer(2, "ISVPRODID")
    isv_svn = reader.integer(2, "ISVSVN")
    config_svn = reader.integer(2, "CONFIGSVN")
    reader.zeros(42, "offset 262")
    family_id = reader.take(16, "ISVFAMILYID")
    report_data = reader.take(64, "REPORTDATA")
    reader.finish()
    return EnclaveReport(
        raw=raw,
        cpu_svn=cpu_svn,
        misc_select=misc_select,
        extended_product_id=extended_product_id,
        flags=flags,
        xfrm=xfrm,
        mr_enclave=mr_enclave,
        mr_signer=mr_signer,
        config_id=config_id,
        product_id=product_id,
        isv_svn=isv_svn,
        config_svn=config_svn,
        family_id=family_id,
        report_data=report_data,
    )


def _td_body(reader: _Reader, version: int) -> TdReport:
    if version == 4:
        return _td_report(reader.take(TD_REPORT_10_LENGTH, "the TD report"), "1.0")
    kind = reader.integer(2, "body type")
    size = reader.integer(4, "body size")
    if kind not in _TD_BODIES:
        raise InvalidInput("quote-body-type", f"body type {kind} is not a TD report (2, 3 or 4)")
    name, length = _TD_BODIES[kind]
    if size != length:
        raise InvalidInput("quote-length", f"a TD report {name} has {length} bytes, the quote says {size}")
    return _td_report(reader.take(length, "the TD report"), name)


def _td_report(raw: bytes, version: str) -> TdReport:
    reader = _Reader(raw, f"the TD report {version}")
    base = TdReport(
        version=version,
        tee_tcb_svn=reader.take(16, "TEE_TCB_SVN"),
        mr_seam=reader.take(48, "MRSEAM"),
        mr_signer_seam=reader.take(48, "MRSIGNERSEAM"),
        seam_attributes=reader.take(8, "SEAMATTRIBUTES"),
        td_attributes=reader.integer(8, "TDATTRIBUTES"),
        xfam=reader.integer(8, "XFAM"),
        mr_td=reader.take(48, "MRTD"),
        mr_config_id=reader.take(48, "MRCONFIGID"),
        mr_owner=reader.take(48, "MROWNER"),
        mr_owner_config=reader.take(48, "MROWNERCONFIG"),
        rtmr=(
            reader.take(48, "RTMR0"),
            reader.take(48, "RTMR1"),
            reader.take(48, "RTMR2"),
            reader.take(48, "RTMR3"),
        ),
        report_data=reader.take(64, "REPORTDATA"),
        tee_tcb_svn2=None if version == "1.0" else reader.take(16, "TEE_TCB_SVN2"),
        mr_service_td=None if version == "1.0" else reader.take(48, "MRSERVICETD"),
        extension=reader.take(237, "the 1.5ex fields") if version == "1.5ex" else None,
    )
    reader.finish()
    return base


def _signature(reader: _Reader, *, wrapped: bool) -> QuoteSignature:
    """Clauses 3.2 and 3.3. From version 4 on the QE report is itself certification data, of type 6."""
    length = reader.integer(4, "the length of the signature data")
    data = _Reader(reader.take(length, "the signature data"), "the signature data")
    signature = data.take(64, "the signature")
    attestation_key = data.take(64, "the attestation key")
    inner = data
    if wrapped:
        inner = _Reader(_certification(data, CERTIFICATION_QE_REPORT, MAX_EVIDENCE), "the QE report data")
        data.finish()
    qe_report = _enclave_report(inner.take(ENCLAVE_REPORT_LENGTH, "the QE report"), "the QE report")
    qe_report_signature = inner.take(64, "the QE report's signature")
    authentication_length = inner.integer(2, "the length of the QE authentication data")
    if authentication_length > MAX_QE_AUTHENTICATION:
        raise InvalidInput("quote-length", f"QE authentication data has more than {MAX_QE_AUTHENTICATION} bytes")
    authentication = inner.take(authentication_length, "the QE authentication data")
    pck_chain = _certification(inner, CERTIFICATION_PCK_CHAIN, MAX_PCK_CHAIN)
    inner.finish()
    return QuoteSignature(
        signature=signature,
        attestation_key=attestation_key,
        qe_report=qe_report,
        qe_report_signature=qe_report_signature,
        qe_authentication_data=authentication,
        pck_chain=pck_chain,
    )


def _certification(reader: _Reader, expected: int, limit: int) -> bytes:
    kind = reader.integer(2, "the certification data type")
    if kind != expected:
        raise InvalidInput(
            "quote-certification-type",
            f"certification data of type {kind} where type {expected} is needed",
            hint="Only quotes that carry the PCK certificate chain (type 5) are understood.",
        )
    length = reader.integer(4, "the length of the certification data")
    if length > limit:
        raise InvalidInput("quote-length", f"certification data has more than {limit} bytes")
    return reader.take(length, "the certification data")


def _padding(reader: _Reader) -> int:
    """Clause 3.3: some generators fill a fixed buffer with zeros; nothing else may follow."""
    rest = reader.rest()
    if len(rest) > MAX_QUOTE_PADDING or any(rest):
        raise InvalidInput(
            "quote-trailing-bytes", f"{len(rest)} bytes follow the quote; only {MAX_QUOTE_PADDING} zeros may"
        )
    return len(rest)
