"""SEV-SNP reports recorded on real hardware give the verdict that their meta.json states, at its time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.attest import claim_names as names
from cloister.attest import x509
from cloister.attest.anchors import TrustAnchors, production_anchors
from cloister.attest.snp import parse
from cloister.attest.snp.certificates import Chain, Signer, read_leaf, verify_chain
from cloister.attest.snp.tcb import PRODUCTS
from cloister.attest.snp.verify import check_signature
from cloister.attest.steps import Steps, Verdict
from cloister.attest.types import Collateral, Evidence, TeeType, VerifiedEvidence
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, Refused, Tampered

VECTORS = ("genoa-v5-vcek", "milan-v2-DEBUG", "milan-v2-vcek", "milan-v3-vlek-aws")


def load(folder: Path) -> tuple[Evidence, Collateral, dict[str, object]]:
    files = {name: (folder / name).read_bytes() for name in ("vek.der", "ask_ark.pem")}
    meta = json.loads((folder / "meta.json").read_text())
    return Evidence(TeeType.SEV_SNP, (folder / "report.bin").read_bytes()), Collateral(files), meta


def verified(folder: Path, steps: Steps | None = None) -> VerifiedEvidence:
    evidence, collateral, meta = load(folder)
    at = meta["verify_at"]
    assert isinstance(at, int)
    return verify(evidence, collateral, production_anchors(), at, steps)


@pytest.mark.parametrize("vector", VECTORS)
def test_a_recorded_report_verifies_and_says_what_its_meta_says(evidence_dir: Path, vector: str) -> None:
    folder = evidence_dir / "sev-snp" / vector
    _, _, meta = load(folder)
    steps = Steps()
    claims = verified(folder, steps).claims
    product = str(meta["product"]).removesuffix("-B0")
    assert claims.specific[names.SNP_PRODUCT] == product
    assert claims.specific[names.SNP_REPORT_VERSION] == meta["report_version"]
    assert claims.specific[names.SNP_SIGNER] == str(meta["signer"]).lower()
    assert claims.debug is meta["debug"]
    assert claims.specific[names.SNP_REVOCATION_CHECKED] is False
    skipped = [step.name for step in steps.report if step.verdict is not Verdict.PASS]
    assert skipped == ["revocation"]


def test_what_the_recorded_genoa_report_says(evidence_dir: Path) -> None:
    found = verified(evidence_dir / "sev-snp" / "genoa-v5-vcek")
    specific = found.claims.specific
    assert specific[names.SNP_LAUNCH_MITIGATIONS] == specific[names.SNP_CURRENT_MITIGATIONS] == 11
    assert specific[names.SNP_ALIAS_CHECK_COMPLETE] is True
    assert specific[names.SNP_CPUID] == "19-a0-2"
    assert [specific[names.snp_tcb("reported", part)] for part in PRODUCTS["Genoa"].layout] == [10, 0, 27, 27]
    assert len(found.claims.platform_id) == 64
    assert found.expires_at == 1992294096.0  # notAfter of the VCEK, 2033-02-17T23:01:36Z


def test_what_the_recorded_vlek_report_says(evidence_dir: Path) -> None:
    claims = verified(evidence_dir / "sev-snp" / "milan-v3-vlek-aws").claims
    assert claims.specific[names.SNP_CSP_ID] == "CN=cc-us-east-2.amazonaws.com"
    assert claims.specific[names.SNP_VMPL] == 1
    assert claims.platform_id == b""
    assert claims.specific[names.SNP_PROVISIONAL_FIRMWARE] is True


def test_what_the_recorded_report_with_an_id_block_says(evidence_dir: Path) -> None:
    claims = verified(evidence_dir / "sev-snp" / "milan-v2-vcek").claims
    assert any(claims.specific[names.SNP_ID_KEY_DIGEST])  # type: ignore[arg-type]
    assert claims.security_version == 4


@pytest.mark.parametrize("letter", ["a", "b"])
def test_the_recorded_bad_vceks_are_refused(evidence_dir: Path, letter: str) -> None:
    folder = evidence_dir / "sev-snp" / "milan-v2-vcek"
    evidence, collateral, meta = load(folder)
    bad = (folder / f"negative-vcek-bad-sig-{letter}.der").read_bytes()
    files = Collateral({**collateral.files, "vek.der": bad})
    with pytest.raises(CloisterError) as refusal:
        verify(evidence, files, production_anchors(), meta["verify_at"])  # type: ignore[arg-type]
    assert refusal.value.code == "certificate-signature"


def test_the_recorded_vlek_expires_after_a_year(evidence_dir: Path) -> None:
    evidence, collateral, _ = load(evidence_dir / "sev-snp" / "milan-v3-vlek-aws")
    for at, code in ((1733868000, "certificate-not-yet-valid"), (1765404900, "certificate-expired")):
        with pytest.raises(Refused) as refusal:
            verify(evidence, collateral, production_anchors(), at)
        assert refusal.value.code == code


@pytest.mark.parametrize(("signer", "suffix"), [(Signer.VCEK, ""), (Signer.VLEK, "_vlek")])
@pytest.mark.parametrize("product", sorted(PRODUCTS))
def test_the_pinned_keys_are_those_of_amds_chains(
    evidence_dir: Path, product: str, signer: Signer, suffix: str
) -> None:
    path = evidence_dir / "sev-snp" / "trust-anchors" / f"ask_ark_{product.lower()}{suffix}.pem"
    intermediate, ark = x509.load_pem_chain(path.read_bytes(), path.name)
    assert ark.spki_digest in production_anchors().amd_arks[product]
    assert intermediate.common_name == signer.intermediate_name(PRODUCTS[product])
    x509.check_signed(intermediate, ark, algorithm=x509.RSA_PSS_SHA384, what="ASK", by="ARK")
    x509.check_issuer(intermediate, below=0, what="ASK")


def test_a_turin_vcek_of_amd_is_read_in_its_own_layout(evidence_dir: Path) -> None:
    folder = evidence_dir / "sev-snp" / "trust-anchors"
    leaf = x509.load_certificate((folder / "turin-vcek-example.der").read_bytes(), "the VCEK")
    intermediate, ark = x509.load_pem_chain((folder / "ask_ark_turin.pem").read_bytes(), "chain")
    product = verify_chain(Chain(ark, intermediate, leaf, None), Signer.VCEK, production_anchors())
    assert product.name == "Turin"
    read = read_leaf(leaf, Signer.VCEK, product)
    assert set(read.levels) == {"fmc", "boot_loader", "tee", "snp", "microcode"}
    assert read.hwid is not None
    assert len(read.hwid) == 8


def test_a_certificate_with_serial_number_0_is_read_and_its_signature_checked(evidence_dir: Path) -> None:
    """AMD's leaves have serial number 0, which a future release of the library will refuse to load."""
    folder = evidence_dir / "sev-snp" / "genoa-v5-vcek"
    der = (folder / "vek.der").read_bytes()
    leaf = x509.load_certificate(der, "the VCEK")
    assert leaf.serial == 0
    assert leaf.tbs in der
    intermediate = x509.load_pem_chain((folder / "ask_ark.pem").read_bytes(), "chain")[0]
    x509.check_signed(leaf, intermediate, algorithm=x509.RSA_PSS_SHA384, what="VCEK", by="ASK")
    at = der.index(b"\xa0\x03\x02\x01\x02\x02\x01\x00") + 7
    other = x509.load_certificate(der[:at] + b"\x01" + der[at + 1 :], "the VCEK")
    assert other.serial == 1
    with pytest.raises(Tampered, match="certificate-signature"):
        x509.check_signed(other, intermediate, algorithm=x509.RSA_PSS_SHA384, what="VCEK", by="ASK")


def test_a_genuine_leaf_of_another_recording_does_not_verify_the_report(evidence_dir: Path) -> None:
    """S3: same product, same intermediate, another chip."""
    evidence, _, _ = load(evidence_dir / "sev-snp" / "milan-v2-vcek")
    _, other, meta = load(evidence_dir / "sev-snp" / "milan-v2-DEBUG")
    with pytest.raises(Tampered, match="snp-signature"):
        verify(evidence, other, production_anchors(), meta["verify_at"])  # type: ignore[arg-type]
    leaf = x509.load_certificate(other.files["vek.der"], "the VCEK")
    with pytest.raises(Tampered, match="snp-signature"):
        check_signature(parse(evidence.body), leaf)


def test_without_pinned_keys_no_recorded_report_is_believed(evidence_dir: Path) -> None:
    evidence, collateral, meta = load(evidence_dir / "sev-snp" / "genoa-v5-vcek")
    for anchors in (
        TrustAnchors(),
        TrustAnchors(amd_arks={"Genoa": ()}),
        TrustAnchors(amd_arks={"Genoa": (b"k" * 32,)}),
    ):
        with pytest.raises(Refused, match="snp-root-not-pinned"):
            verify(evidence, collateral, anchors, meta["verify_at"])  # type: ignore[arg-type]
