"""The openssl command line, which shares no code of ours, says the same of recorded SEV-SNP and Nitro evidence."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="no openssl command here")


def openssl(*arguments: object, stdin: bytes = b"") -> tuple[bool, bytes]:
    done = subprocess.run([str(OPENSSL), *map(str, arguments)], input=stdin, capture_output=True, check=False)
    return done.returncode == 0, done.stdout


def der_signature(r: int, s: int) -> bytes:
    def integer(value: int) -> bytes:
        raw = value.to_bytes(value.bit_length() // 8 + 1, "big")
        return bytes([2, len(raw)]) + raw

    content = integer(r) + integer(s)
    return bytes([0x30, len(content)]) + content


def signed_by(folder: Path, certificate: bytes, data: bytes, r: int, s: int) -> bool:
    _, key = openssl("x509", "-inform", "der", "-pubkey", "-noout", stdin=certificate)
    (folder / "key.pem").write_bytes(key)
    (folder / "signature").write_bytes(der_signature(r, s))
    (folder / "data").write_bytes(data)
    files = ("-verify", folder / "key.pem", "-signature", folder / "signature", folder / "data")
    return openssl("dgst", "-sha384", *files)[0]


def chains(folder: Path, at: int, root: bytes, issuers: bytes, leaf: bytes) -> bool:
    (folder / "root.pem").write_bytes(root)
    (folder / "issuers.pem").write_bytes(issuers)
    (folder / "leaf.pem").write_bytes(leaf)
    names = ("-CAfile", folder / "root.pem", "-untrusted", folder / "issuers.pem", folder / "leaf.pem")
    return openssl("verify", "-no-CApath", "-no-CAstore", "-attime", at, *names)[0]


def pem(der: bytes) -> bytes:
    return openssl("x509", "-inform", "der", stdin=der)[1]


@pytest.mark.parametrize("vector", ["genoa-v5-vcek", "milan-v2-DEBUG", "milan-v2-vcek", "milan-v3-vlek-aws"])
def test_a_recorded_report(evidence_dir: Path, tmp_path: Path, vector: str) -> None:
    folder = evidence_dir / "sev-snp" / vector
    body, leaf = (folder / "report.bin").read_bytes(), (folder / "vek.der").read_bytes()
    at = json.loads((folder / "meta.json").read_text())["verify_at"]
    r, s = (int.from_bytes(body[start : start + 72], "little") for start in (0x2A0, 0x2A0 + 72))
    assert signed_by(tmp_path, leaf, body[:0x2A0], r, s)
    assert not signed_by(tmp_path, leaf, b"\x09" + body[1:0x2A0], r, s)
    upper, root = (folder / "ask_ark.pem").read_bytes().split(b"-----END CERTIFICATE-----\n")[:2]
    ending = b"-----END CERTIFICATE-----\n"
    assert chains(tmp_path, at, root + ending, upper + ending, pem(leaf))
    assert not chains(tmp_path, at + 40 * 365 * 86400, root + ending, upper + ending, pem(leaf))


@pytest.mark.parametrize("letter", ["a", "b"])
def test_the_recorded_bad_vceks(evidence_dir: Path, tmp_path: Path, letter: str) -> None:
    folder = evidence_dir / "sev-snp" / "milan-v2-vcek"
    upper, root = (folder / "ask_ark.pem").read_bytes().split(b"-----END CERTIFICATE-----\n")[:2]
    ending = b"-----END CERTIFICATE-----\n"
    bad = (folder / f"negative-vcek-bad-sig-{letter}.der").read_bytes()
    assert not chains(tmp_path, 1780315200, root + ending, upper + ending, pem(bad))


def byte_string(data: bytes, at: int) -> tuple[bytes, int]:
    """A CBOR byte string with a length of 0, 1 or 2 bytes, and where it ends."""
    info = data[at] - 0x40
    size = info if info < 24 else int.from_bytes(data[at + 1 : at + info - 22], "big")
    start = at + (1 if info < 24 else info - 22)
    return data[start : start + size], start + size


def field(payload: bytes, name: str) -> int:
    """Where the value of a field of the payload begins."""
    key = bytes([0x60 + len(name)]) + name.encode()
    return payload.index(key) + len(key)


@pytest.mark.parametrize("vector", ["debug-2022", "prod-2022-nonce256", "prod-2025"])
def test_a_recorded_document(evidence_dir: Path, tmp_path: Path, vector: str) -> None:
    folder = evidence_dir / "nitro" / vector
    body = (folder / "document.cose").read_bytes()
    at = json.loads((folder / "meta.json").read_text())["verify_at"]
    assert body[:7] == bytes.fromhex("8444a1013822a0")
    payload, end = byte_string(body, 7)
    signature, last = byte_string(body, end)
    assert last == len(body)
    leaf, _ = byte_string(payload, field(payload, "certificate"))
    start = field(payload, "cabundle")
    count, start = payload[start] - 0x80, start + 1
    bundle = []
    for _ in range(count):
        certificate, start = byte_string(payload, start)
        bundle.append(certificate)
    # RFC 9052, section 4.4: ["Signature1", protected, h'', payload]
    signed = b"\x84\x6aSignature1\x44\xa1\x01\x38\x22\x40\x59" + len(payload).to_bytes(2, "big") + payload
    r, s = int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")
    assert signed_by(tmp_path, leaf, signed, r, s)
    assert not signed_by(tmp_path, leaf, signed[:-1] + b"\x00", r, s)
    root = (folder / "root.pem").read_bytes()
    issuers = b"".join(pem(certificate) for certificate in bundle[1:])
    assert chains(tmp_path, at, root, issuers, pem(leaf))
    assert not chains(tmp_path, at + 86400, root, issuers, pem(leaf))
    assert not chains(tmp_path, at, root, b"".join(pem(certificate) for certificate in bundle[2:]), pem(leaf))
