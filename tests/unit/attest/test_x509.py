"""The pieces of chain verification that no vendor's evidence reaches."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography import x509 as library
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attest import x509
from cloister.base.errors import InvalidInput, Refused
from cloister.testing.certificates import Template, issue

NOW = 1_800_000_000.0
ROOT = Template(subject="root", issuer="root", not_before=NOW - 10, not_after=NOW + 10)
KEY = ec.generate_private_key(ec.SECP384R1())


def root(template: Template = ROOT) -> x509.Certificate:
    return x509.load_certificate(issue(template, KEY, KEY), "the root")


def test_both_ends_of_a_window_are_inside() -> None:
    certificate = root()
    for now in (NOW - 10, NOW, NOW + 10):
        x509.check_window(certificate.not_before, certificate.not_after, now, "it")
    for now, code in ((NOW - 10.5, "certificate-not-yet-valid"), (NOW + 10.5, "certificate-expired")):
        with pytest.raises(Refused, match=code):
            x509.check_window(certificate.not_before, certificate.not_after, now, "it")
    with pytest.raises(Refused, match="certificate-expired"):
        x509.check_window(certificate.not_before, certificate.not_after, float("nan"), "it")


def test_a_key_of_another_kind_than_the_algorithm_needs() -> None:
    certificate = root()
    for algorithm in (x509.RSA_PSS_SHA384, "1.2.3"):
        with pytest.raises(Refused, match="certificate-algorithm"):
            x509.check_signed(
                replace(certificate, algorithm=algorithm), certificate, algorithm=algorithm, what="", by=""
            )


def test_a_certificate_for_another_kind_of_key() -> None:
    name = library.Name([library.NameAttribute(library.NameOID.COMMON_NAME, "x")])
    builder = library.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.public_key(ed25519.Ed25519PrivateKey.generate().public_key())
    builder = builder.not_valid_before(datetime.fromtimestamp(NOW, UTC))
    der = builder.not_valid_after(datetime.fromtimestamp(NOW + 1, UTC)).sign(KEY, hashes.SHA384())
    with pytest.raises(InvalidInput, match="certificate-key"):
        x509.load_certificate(der.public_bytes(Encoding.DER), "it")


def test_a_certificate_of_version_1() -> None:
    der = issue(ROOT, KEY, KEY)
    assert der.count(b"\xa0\x03\x02\x01\x02") == 1
    with pytest.raises(InvalidInput, match="certificate-malformed"):
        x509.load_certificate(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x00"), "it")


def test_a_pem_file_with_text_around_its_certificates() -> None:
    body = library.load_der_x509_certificate(issue(ROOT, KEY, KEY)).public_bytes(Encoding.PEM)
    found = x509.load_pem_chain(b"subject=root\n" + body + b"\r\nnext:\n" + body.replace(b"\n", b"\r\n"), "it")
    assert [certificate.common_name for certificate in found] == ["root", "root"]
    for wrong in (
        b"",
        body[:-30],
        body.replace(b"M", b"*", 1),
        b"-----BEGIN CERTIFICATE-----A-----END CERTIFICATE-----",
    ):
        with pytest.raises(InvalidInput, match="certificate-malformed"):
            x509.load_pem_chain(wrong, "it")


def test_a_name_with_two_common_names_is_no_name() -> None:
    two = [library.NameAttribute(library.NameOID.COMMON_NAME, text) for text in ("SEV-VCEK", "SEV-VLEK")]
    builder = library.CertificateBuilder().subject_name(library.Name(two)).issuer_name(library.Name(two))
    builder = builder.serial_number(1).public_key(KEY.public_key())
    builder = builder.not_valid_before(datetime.fromtimestamp(NOW, UTC))
    der = builder.not_valid_after(datetime.fromtimestamp(NOW + 1, UTC)).sign(KEY, hashes.SHA384())
    assert x509.load_certificate(der.public_bytes(Encoding.DER), "it").common_name == ""
