"""A1, A2: every bit of recorded evidence matters, at every place, and so does its length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.attest import nitro, snp, x509
from cloister.attest.anchors import production_anchors
from cloister.attest.nitro.verify import check_signature as check_nitro_signature
from cloister.attest.snp.verify import check_signature as check_snp_signature
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, InvalidInput

SNP = ("genoa-v5-vcek", "milan-v2-DEBUG", "milan-v2-vcek", "milan-v3-vlek-aws")
NITRO = ("debug-2022", "prod-2022-nonce256", "prod-2025")


# Every one of them takes minutes: `make test` takes a sample whose stride no structure shares, `make test-all` all.
EACH = pytest.mark.parametrize("stride", [7, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])


def flip(body: bytes, bit: int) -> bytes:
    at = bit // 8
    return body[:at] + bytes([body[at] ^ 1 << bit % 8]) + body[at + 1 :]


@EACH
def test_every_bit_of_a_report(evidence_dir: Path, stride: int) -> None:
    """All 9,472 bits of the 1,184 bytes: none of a report's bytes is harmless."""
    folder = evidence_dir / "sev-snp" / "genoa-v5-vcek"
    body = (folder / "report.bin").read_bytes()
    leaf = x509.load_certificate((folder / "vek.der").read_bytes(), "the VCEK")
    check_snp_signature(snp.parse(body), leaf)
    accepted = []
    for bit in range(0, 8 * len(body), stride):
        try:
            check_snp_signature(snp.parse(flip(body, bit)), leaf)
        except CloisterError:
            continue
        accepted.append(bit)
    assert accepted == []


@EACH
@pytest.mark.parametrize("vector", SNP)
def test_bits_of_every_byte_of_a_report_in_a_whole_verification(evidence_dir: Path, vector: str, stride: int) -> None:
    folder = evidence_dir / "sev-snp" / vector
    body = (folder / "report.bin").read_bytes()
    at = json.loads((folder / "meta.json").read_text())["verify_at"]
    files = Collateral({name: (folder / name).read_bytes() for name in ("vek.der", "ask_ark.pem")})
    for byte in range(0, len(body), stride):
        for bit in range(8) if stride == 1 else [byte % 8]:
            changed = Evidence(TeeType.SEV_SNP, flip(body, 8 * byte + bit))
            with pytest.raises(CloisterError):
                verify(changed, files, production_anchors(), at)


@EACH
def test_every_bit_of_a_documents_signature_and_payload(evidence_dir: Path, stride: int) -> None:
    """Neither signature nor payload nor envelope of a Nitro document has a harmless byte."""
    body = (evidence_dir / "nitro" / "prod-2025" / "document.cose").read_bytes()
    accepted = []
    for byte in range(0, len(body), stride):
        bits = range(8) if stride == 1 or byte < 16 or byte >= len(body) - 98 else [byte % 8]
        for bit in bits:
            try:
                document = nitro.parse(flip(body, 8 * byte + bit))
                check_nitro_signature(document, x509.load_certificate(document.certificate, "the leaf"))
            except CloisterError:
                continue
            accepted.append(byte)
    assert accepted == []


@pytest.mark.parametrize("vector", NITRO)
def test_bits_of_a_document_in_a_whole_verification(evidence_dir: Path, vector: str) -> None:
    folder = evidence_dir / "nitro" / vector
    body = (folder / "document.cose").read_bytes()
    at = json.loads((folder / "meta.json").read_text())["verify_at"]
    for byte in range(0, len(body), 13):
        changed = Evidence(TeeType.NITRO, flip(body, 8 * byte + byte % 8))
        with pytest.raises(CloisterError):
            verify(changed, Collateral(), production_anchors(), at)


@pytest.mark.parametrize("vector", SNP)
def test_a_report_of_every_other_length(evidence_dir: Path, vector: str) -> None:
    body = (evidence_dir / "sev-snp" / vector / "report.bin").read_bytes()
    for length in range(len(body)):
        with pytest.raises(InvalidInput, match="snp-report-length"):
            snp.parse(body[:length])
    for more in (1, 16, 4096):
        for byte in (b"\x00", b"\x01"):
            with pytest.raises(InvalidInput, match="snp-report-length"):
                snp.parse(body + byte * more)


@pytest.mark.parametrize("vector", NITRO)
def test_a_document_of_every_other_length(evidence_dir: Path, vector: str) -> None:
    body = (evidence_dir / "nitro" / vector / "document.cose").read_bytes()
    for length in range(len(body)):
        with pytest.raises(InvalidInput, match="nitro-cbor-malformed"):
            nitro.parse(body[:length])
    for more in (1, 16, 4096):
        for byte in (b"\x00", b"\x01", b"\xff"):
            with pytest.raises(InvalidInput, match="nitro-cbor-trailing"):
                nitro.parse(body + byte * more)
