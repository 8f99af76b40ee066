"""The pinned roots are the vendors' own, and a pin that could never match is a bug."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attest.anchors import TrustAnchors, production_anchors


def test_intel_root_is_the_published_certificate() -> None:
    (der,) = production_anchors().intel_root_der
    certificate = x509.load_der_x509_certificate(der)
    assert "CN=Intel SGX Root CA" in certificate.subject.rfc4514_string()
    assert certificate.subject == certificate.issuer
    certificate.verify_directly_issued_by(certificate)
    published = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
    assert hashlib.sha256(der).hexdigest() == published


def test_pins_agree_with_recorded_chains(evidence_dir: Path) -> None:
    anchors = production_anchors()
    for product, pins in anchors.amd_arks.items():
        for kind in ("", "_vlek"):
            path = evidence_dir / "sev-snp" / "trust-anchors" / f"ask_ark_{product.lower()}{kind}.pem"
            ark = x509.load_pem_x509_certificates(path.read_bytes())[-1]
            assert f"CN=ARK-{product}" in ark.subject.rfc4514_string()
            spki = ark.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            assert pins == (hashlib.sha256(spki).digest(),)
    root = x509.load_pem_x509_certificate((evidence_dir / "nitro" / "prod-2025" / "root.pem").read_bytes())
    assert anchors.nitro_root == (hashlib.sha256(root.public_bytes(Encoding.DER)).digest(),)
    collateral = json.loads((evidence_dir / "tdx" / "v4-uptodate" / "collateral.json").read_text())
    chain = x509.load_pem_x509_certificates(collateral["tcb_info_issuer_chain"].encode())
    assert chain[-1].public_bytes(Encoding.DER) in anchors.intel_root_der


def test_production_names_no_simulation_key() -> None:
    assert production_anchors().simulation_keys == ()
    with_key = production_anchors().with_simulation((b"k" * 32,))
    assert with_key.simulation_keys == (b"k" * 32,)
    assert production_anchors().simulation_keys == ()


def test_a_pin_of_the_wrong_length_is_a_bug() -> None:
    for wrong in (
        {"nitro_root": (b"short",)},
        {"amd_arks": {"Milan": (b"x" * 48,)}},
        {"simulation_keys": (b"k" * 31,)},
    ):
        with pytest.raises(AssertionError):
            TrustAnchors(**wrong)  # type: ignore[arg-type]


def test_anchors_do_not_change() -> None:
    arks = {"Milan": (b"x" * 32,)}
    anchors = TrustAnchors(amd_arks=arks)
    arks["Genoa"] = (b"y" * 32,)
    assert dict(anchors.amd_arks) == {"Milan": (b"x" * 32,)}
    with pytest.raises(TypeError):
        anchors.amd_arks["Genoa"] = ()  # type: ignore[index]
