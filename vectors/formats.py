"""The formats of the specification, read a second time: what the generators share; nothing of the package."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HERE = Path(__file__).parent
V = "cloister/v1/"
Case = dict[str, Any]


def cbor(value: object) -> bytes:
    return cbor2.dumps(value, canonical=True)


def framed(context: str, parts: tuple[bytes, ...]) -> bytes:
    return b"".join(len(p).to_bytes(8, "big") + p for p in ((V + context).encode(), *parts))


def h(context: str, *parts: bytes) -> bytes:
    return hashlib.sha256(framed(context, parts)).digest()


def h512(context: str, *parts: bytes) -> bytes:
    return hashlib.sha512(framed(context, parts)).digest()


def kdf(context: str, secret: bytes, *parts: bytes) -> bytes:
    info = (V + context).encode() + b"\x00" + h(context, *parts)
    return HKDF(hashes.SHA256(), 32, None, info).derive(secret)


def fixed(label: str, length: int = 32) -> bytes:
    """Bytes that are the same at every run."""
    out = b""
    while len(out) < length:
        out += hashlib.sha256(f"{label}/{len(out)}".encode()).digest()
    return out[:length]


def signer(label: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(fixed(label))


def public(label: str) -> bytes:
    return signer(label).public_key().public_bytes_raw()


def cose(label: str, context: str, payload: bytes) -> bytes:
    protected = cbor({1: -8})
    message = cbor(["Signature1", protected, (V + context).encode(), payload])
    return cbor([protected, {}, payload, signer(label).sign(message)])


def bucket(length: int) -> int:
    if length <= 256:
        return 256
    step = 2 ** ((length - 1).bit_length() - 4)
    return (length + step - 1) // step * step


def pad(message: bytes) -> bytes:
    body = len(message).to_bytes(4, "big") + message
    return body + bytes(bucket(len(body)) - len(body))


def varint(value: int) -> bytes:
    for bits, size, mark in ((6, 1, 0), (14, 2, 1), (30, 4, 2), (62, 8, 3)):
        if value < 1 << bits:
            return (value | mark << (8 * size - 2)).to_bytes(size, "big")
    raise AssertionError


def text(value: bytes) -> bytes:
    return varint(len(value)) + value


def bhttp_request(path: bytes, fields: list[tuple[bytes, bytes]], content: bytes) -> bytes:
    section = b"".join(text(n) + text(v) for n, v in fields)
    message = varint(0) + text(b"POST") + text(b"https") + text(b"") + text(path) + text(section) + text(content)
    return message + bytes(bucket(len(message) + 1) - len(message))


def frames(key: bytes, bound: bytes, chunks: list[bytes]) -> list[bytes]:
    out = []
    for index, chunk in enumerate(chunks):
        last = index == len(chunks) - 1
        nonce = bytes(7) + index.to_bytes(4, "big") + bytes([last])
        word = len(chunk) | (0x80000000 if last else 0)
        out.append(word.to_bytes(4, "big") + AESGCM(key).encrypt(nonce, chunk, bound))
    return out


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def case(name: str, expect: str, **values: Any) -> Case:
    """``expect`` is "ok" or the stable error code."""
    return {"name": name, "expect": expect} | {k: v.hex() if isinstance(v, bytes) else v for k, v in values.items()}


SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


class Recipient:
    """An HPKE key of suite 1 from a label: private = ML-KEM seed || X25519 scalar."""

    def __init__(self, label: str) -> None:
        self.private = fixed(label + "/mlkem", 64) + fixed(label + "/x25519")
        mlkem = MLKEM768PrivateKey.from_seed_bytes(self.private[:64])
        x25519 = X25519PrivateKey.from_private_bytes(self.private[64:])
        self.public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        self._key = hpke.MLKEM768X25519PrivateKey(mlkem, x25519)

    def seal(self, message: bytes, context: str, bound: tuple[bytes, ...], old: str | None) -> bytes:
        """Randomised: the committed ciphertext stays while it opens to the same message."""
        info = (V + context).encode() + b"\x00" + h(context, *bound)
        if old is not None:
            try:
                if SUITE.decrypt(bytes.fromhex(old), self._key, info=info) == message:
                    return bytes.fromhex(old)
            except (InvalidTag, ValueError):
                pass
        return SUITE.encrypt(message, self._key.public_key(), info=info)


def kept(old: Any, name: str) -> str | None:
    return next((c["sealed"] for c in old or [] if c["name"] == name), None)


def main(files: dict[str, Callable[[Any], list[Case]]]) -> int:
    stale = []
    for name, make in files.items():
        path = HERE / f"{name}.json"
        old = json.loads(path.read_text())["cases"] if path.exists() else None
        content = json.dumps({"cases": make(old)}, indent=1) + "\n"
        if "--check" not in sys.argv:
            path.write_text(content)
        elif not path.exists() or path.read_text() != content:
            stale.append(path.name)
    if stale:
        print(f"stale: {', '.join(stale)}; run python vectors/generate.py", file=sys.stderr)
    return 1 if stale else 0
