"""What the verifiers of SEV-SNP and Nitro refuse by themselves, whoever calls them."""

from __future__ import annotations

import pytest
from cryptography import x509 as library
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest import nitro, snp, x509
from cloister.attest.anchors import production_anchors
from cloister.attest.nitro.verify import check_signature as check_nitro_signature
from cloister.attest.snp.certificates import Signer, cert_table, collect
from cloister.attest.snp.verify import check_signature as check_snp_signature
from cloister.attest.steps import Steps
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.base.errors import InvalidInput, Refused
from cloister.testing.certificates import Template, issue
from cloister.testing.evidence_nitro import NitroAuthority
from cloister.testing.evidence_snp import build_report

NOW = 1_800_000_000.0
OTHER = Template(subject="x", issuer="x", not_before=NOW - 1, not_after=NOW + 1, ca=None, usage=None)
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize("verifier", [snp.verify, nitro.verify])
def test_a_verifier_refuses_the_label_of_another_tee(verifier: object) -> None:
    assert callable(verifier)
    with pytest.raises(InvalidInput, match="evidence-tee"):
        verifier(Evidence(TeeType.SGX, b""), Collateral(), production_anchors(), NOW, Steps())


def test_a_parser_bounds_what_it_reads() -> None:
    with pytest.raises(InvalidInput, match="nitro-too-long"):
        nitro.parse(bytes(70_000))
    with pytest.raises(InvalidInput, match="snp-cert-table-malformed"):
        cert_table(bytes(70_000))


def test_a_leaf_in_a_pem_file_stands_there_alone() -> None:
    pem = library.load_der_x509_certificate(issue(OTHER, KEY, KEY)).public_bytes(Encoding.PEM)
    files = {"vek.der": pem * 2, "ask_ark.pem": pem}
    with pytest.raises(InvalidInput, match="snp-chain-shape"):
        collect(Evidence(TeeType.SEV_SNP, b""), Collateral(files), Signer.VCEK)


def test_no_signature_is_checked_with_a_key_on_another_curve() -> None:
    leaf = x509.load_certificate(issue(OTHER, KEY, KEY), "the leaf")
    report = bytearray(build_report("Milan"))
    report[0x2A0] = report[0x2E8] = 1
    with pytest.raises(Refused, match="snp-leaf-key"):
        check_snp_signature(snp.parse(bytes(report)), leaf)
    with pytest.raises(Refused, match="nitro-leaf-key"):
        check_nitro_signature(nitro.parse(NitroAuthority.create().evidence().body), leaf)


def sequence(content: bytes) -> bytes:
    size = len(content).to_bytes(2, "big").lstrip(b"\x00")
    return b"\x30" + (size if len(content) < 128 else bytes([0x80 + len(size)]) + size) + content


def test_a_genuine_certificate_of_version_1_has_no_extensions_to_check() -> None:
    der = issue(OTHER, KEY, KEY)
    signed = library.load_der_x509_certificate(der).tbs_certificate_bytes
    version = signed.index(b"\xa0\x03\x02\x01\x02")
    old = sequence(sequence(signed[version + 5 :]) + der[der.index(signed) + len(signed) :])
    assert library.load_der_x509_certificate(old).version is library.Version.v1
    with pytest.raises(InvalidInput, match="certificate-malformed"):
        x509.load_certificate(old, "it")
