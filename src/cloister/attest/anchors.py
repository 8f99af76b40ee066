"""Vendor roots in use for a verification (spec/attestation.md, clause 2.4): pinned, never taken from evidence.

Three vendors, three forms, as each vendor's own documents pin them:

* Intel signs everything under one certificate, "Intel SGX Root CA", published as
  https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.cer and named in the PCS
  documentation; pinned as the whole certificate.
* AMD has one root key per product line, "ARK-Milan" and so on, published by the key distribution service
  (https://kdsintf.amd.com/vcek/v1/{product}/cert_chain); the certificate has been re-issued with the same key, so the
  *key* is pinned (SHA-256 of its SubjectPublicKeyInfo).
* AWS publishes the Nitro Enclaves root with its fingerprint in the Nitro Enclaves user guide ("Verifying the root of
  trust"); pinned as SHA-256 of the certificate.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

_FINGERPRINT: Final = 32
_ED25519_PUBLIC: Final = 32


@dataclass(frozen=True, slots=True)
class TrustAnchors:
    """The roots one verification accepts. An empty field refuses every piece of evidence that needs it.

    :param intel_root_der: DER certificates of which one must be the root of PCK, TCB and QE chains.
    :param amd_arks: product name (``Milan``, ``Genoa``, ``Turin``) to SHA-256 digests of the ARK's public key (SPKI).
    :param nitro_root: SHA-256 digests of root certificates (DER).
    :param simulation_keys: Ed25519 public keys (32 bytes) that may sign ``insecure-simulation`` evidence.
    """

    intel_root_der: tuple[bytes, ...] = ()
    amd_arks: Mapping[str, tuple[bytes, ...]] = field(default_factory=lambda: MappingProxyType({}))
    nitro_root: tuple[bytes, ...] = ()
    simulation_keys: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        """A pin of the wrong length is a programming error: it could only ever fail to match."""
        pins = [*self.nitro_root, *(pin for pins in self.amd_arks.values() for pin in pins)]
        if any(len(pin) != _FINGERPRINT for pin in pins):
            msg = "a pinned fingerprint is a SHA-256 digest of 32 bytes"
            raise AssertionError(msg)
        if any(len(key) != _ED25519_PUBLIC for key in self.simulation_keys):
            msg = "a simulation key is an Ed25519 public key of 32 bytes"
            raise AssertionError(msg)
        object.__setattr__(self, "amd_arks", MappingProxyType(dict(self.amd_arks)))

    def with_simulation(self, keys: tuple[bytes, ...]) -> TrustAnchors:
        """These anchors, and ``insecure-simulation`` evidence signed by one of ``keys``."""
        return replace(self, simulation_keys=keys)


_INTEL_SGX_ROOT_CA: Final = base64.b64decode(
    "MIICjzCCAjSgAwIBAgIUImUM1lqdNInzg7SVUr9QGzknBqwwCgYIKoZIzj0EAwIwaDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3Qg"
    "Q0ExGjAYBgNVBAoMEUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYT"
    "AlVTMB4XDTE4MDUyMTEwNDUxMFoXDTQ5MTIzMTIzNTk1OVowaDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNVBAoM"
    "EUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYTAlVTMFkwEwYHKoZI"
    "zj0CAQYIKoZIzj0DAQcDQgAEC6nEwMDIYZOj/iPWsCzaEKi71OiOSLRFhWGjbnBVJfVnkY4u3IjkDYYL0MxO4mqsyYjlBalTVYxF"
    "P2sJBK5zlKOBuzCBuDAfBgNVHSMEGDAWgBQiZQzWWp00ifODtJVSv1AbOScGrDBSBgNVHR8ESzBJMEegRaBDhkFodHRwczovL2Nl"
    "cnRpZmljYXRlcy50cnVzdGVkc2VydmljZXMuaW50ZWwuY29tL0ludGVsU0dYUm9vdENBLmRlcjAdBgNVHQ4EFgQUImUM1lqdNInz"
    "g7SVUr9QGzknBqwwDgYDVR0PAQH/BAQDAgEGMBIGA1UdEwEB/wQIMAYBAf8CAQEwCgYIKoZIzj0EAwIDSQAwRgIhAOW/5QkR+S9C"
    "iSDcNoowLuPRLsWGf/Yi7GSX94BgwTwgAiEA4J0lrHoMs+Xo5o/sX6O9QWxHRAvZUGOdRQ7cvqRXaqI="
)

_AMD_ARKS: Final[Mapping[str, tuple[bytes, ...]]] = MappingProxyType(
    {
        "Milan": (bytes.fromhex("9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9"),),
        "Genoa": (bytes.fromhex("429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831"),),
        "Turin": (bytes.fromhex("4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08"),),
    }
)

_NITRO_ROOT: Final = bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b")


def production_anchors() -> TrustAnchors:
    """The vendors' own roots, and no simulation key."""
    return TrustAnchors(
        intel_root_der=(_INTEL_SGX_ROOT_CA,),
        amd_arks=_AMD_ARKS,
        nitro_root=(_NITRO_ROOT,),
    )
