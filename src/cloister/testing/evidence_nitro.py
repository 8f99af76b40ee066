"""Nitro documents under a throw-away AWS: right, or wrong in any one respect, always with a genuine signature.

A verifier accepts them only under :meth:`NitroAuthority.anchors`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from cloister.attest.anchors import TrustAnchors
from cloister.attest.types import Evidence, TeeType
from cloister.testing.certificates import Template, issue

NOW: Final = 1_800_000_000.0
HOUR: Final = 3600.0
MODULE_ID: Final = "i-0123456789abcdef0-enc0123456789abcdef"
ES384: Final = cbor2.dumps({1: -35})
_CA: Final = frozenset({"key_cert_sign", "crl_sign", "digital_signature"})
NAMES: Final = ("aws.nitro-enclaves", "region.nitro-enclaves", "zone.nitro-enclaves", "instance.nitro-enclaves")
LIFETIMES: Final = (200_000 * HOUR, 480 * HOUR, 130 * HOUR, 24 * HOUR)

Change = Callable[[int, Template], Template]


def genuine_template(at: int) -> Template:
    """What the certificate of the issuer at this place says; the leaf's is at the place after the last."""
    if at == len(NAMES):
        return Template(
            subject=f"{MODULE_ID}.aws",
            issuer=NAMES[-1],
            not_before=NOW - 60,
            not_after=NOW + 3 * HOUR,
            serial=99,
            ca=False,
            usage=frozenset({"digital_signature"}),
        )
    return Template(
        subject=NAMES[at],
        issuer=NAMES[max(at - 1, 0)],
        not_before=NOW - LIFETIMES[at] / 2,
        not_after=NOW + LIFETIMES[at] / 2,
        serial=at + 1,
        path_length=None if at == 0 else len(NAMES) - 1 - at,
        usage=_CA,
    )


@dataclass(frozen=True, slots=True)
class NitroAuthority:
    """A throw-away AWS: root, three intermediates, an enclave's key."""

    issuers: tuple[ec.EllipticCurvePrivateKey, ...]
    leaf: ec.EllipticCurvePrivateKey
    root: bytes

    @classmethod
    def create(cls) -> NitroAuthority:
        """New keys; milliseconds."""
        keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(len(NAMES) + 1)]
        return cls(tuple(keys[:-1]), keys[-1], issue(genuine_template(0), keys[0], keys[0]))

    def anchors(self) -> TrustAnchors:
        """This root, pinned."""
        return TrustAnchors(nitro_root=(hashlib.sha256(self.root).digest(),))

    def bundle(self, change: Change | None = None) -> tuple[list[bytes], bytes]:
        """The bundle and the leaf, after ``change`` had a look at each template but the root's."""
        certificates = [self.root]
        for at in range(1, len(NAMES) + 1):
            template = genuine_template(at) if change is None else change(at, genuine_template(at))
            key = self.leaf if at == len(NAMES) else self.issuers[at]
            certificates.append(issue(template, key, self.issuers[at - 1]))
        return certificates[:-1], certificates[-1]

    def content(self, change: Change | None = None, **values: object) -> dict[str, object]:
        """The fields of a payload, with those given instead; ``...`` leaves one out."""
        bundle, leaf = self.bundle(change)
        fields: dict[str, object] = {
            "module_id": MODULE_ID,
            "digest": "SHA384",
            "timestamp": int(NOW * 1000) - 500,
            "pcrs": pcrs(),
            "certificate": leaf,
            "cabundle": bundle,
            "public_key": None,
            "user_data": b"u" * 64,
            "nonce": None,
        }
        return {name: value for name, value in (fields | values).items() if value is not ...}

    def sign(self, payload: bytes, *, protected: bytes = ES384) -> bytes:
        """96 bytes over the Sig_structure."""
        signed = cbor2.dumps(["Signature1", protected, b"", payload])
        r, s = decode_dss_signature(self.leaf.sign(signed, ec.ECDSA(hashes.SHA384())))
        return r.to_bytes(48, "big") + s.to_bytes(48, "big")

    def evidence(
        self,
        content: Mapping[str, object] | bytes | None = None,
        *,
        protected: bytes = ES384,
        unprotected: Mapping[int, object] | None = None,
        tagged: bool = False,
    ) -> Evidence:
        """A signed document over a payload: fields to encode, or bytes as they are."""
        payload = content if isinstance(content, bytes) else cbor2.dumps(self.content() if content is None else content)
        signature = self.sign(payload, protected=protected)
        envelope = [protected, dict(unprotected or {}), payload, signature]
        return Evidence(TeeType.NITRO, (b"\xd2" if tagged else b"") + cbor2.dumps(envelope))


def pcrs(**values: bytes) -> dict[int, bytes]:
    """Sixteen PCRs as an enclave has them; ``pcr0=...`` and so on instead."""
    found = {index: bytes(48) for index in range(16)} | {index: bytes([index + 1]) * 48 for index in (0, 1, 2, 3, 4)}
    return found | {int(name.removeprefix("pcr")): value for name, value in values.items()}


def open_map(content: Mapping[str, object]) -> bytes:
    """The payload as Nitro hypervisors since 2025 write it: the outermost map without a length."""
    return b"\xbf" + b"".join(cbor2.dumps(key) + cbor2.dumps(value) for key, value in content.items()) + b"\xff"
