"""SGX and TDX quotes, and their collateral, by a synthetic Intel whose every field can be set before it is signed.

``SyntheticIntel.sgx()``, ``.tdx(4)``, ``.tdx(5)`` give platforms that verify as ``UpToDate`` at ``NOW`` under
``anchors()``. Change an attribute, then take ``evidence()`` and ``collateral()``: signatures stay genuine, so that the
check under test is the one that refuses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attest.anchors import TrustAnchors
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.base.errors import InvalidInput
from cloister.testing.evidence_dcap_pki import (
    DAY,
    NOW,
    Crl,
    Node,
    Platform,
    key_of,
    moment,
    raw_public_key,
    raw_signature,
)

Fields = dict[str, "int | bytes"]
_Layout = tuple[tuple[str, int], ...]

HEADER: Final[_Layout] = (
    ("version", 2),
    ("attestation_key_type", 2),
    ("tee_type", 4),
    ("qe_svn", 2),
    ("pce_svn", 2),
    ("qe_vendor_id", 16),
    ("user_data", 20),
)
ENCLAVE_REPORT: Final[_Layout] = (
    ("cpu_svn", 16),
    ("misc_select", 4),
    ("reserved1", 12),
    ("extended_product_id", 16),
    ("flags", 8),
    ("xfrm", 8),
    ("mr_enclave", 32),
    ("reserved2", 32),
    ("mr_signer", 32),
    ("reserved3", 32),
    ("config_id", 64),
    ("product_id", 2),
    ("isv_svn", 2),
    ("config_svn", 2),
    ("reserved4", 42),
    ("family_id", 16),
    ("report_data", 64),
)
TD_REPORT_10: Final[_Layout] = (
    ("tee_tcb_svn", 16),
    ("mr_seam", 48),
    ("mr_signer_seam", 48),
    ("seam_attributes", 8),
    ("td_attributes", 8),
    ("xfam", 8),
    ("mr_td", 48),
    ("mr_config_id", 48),
    ("mr_owner", 48),
    ("mr_owner_config", 48),
    ("rtmr0", 48),
    ("rtmr1", 48),
    ("rtmr2", 48),
    ("rtmr3", 48),
    ("report_data", 64),
)
TD_REPORT_15: Final[_Layout] = (*TD_REPORT_10, ("tee_tcb_svn2", 16), ("mr_service_td", 48))
TD_REPORT_15_EXTENDED: Final[_Layout] = (*TD_REPORT_15, ("extension", 237))
_TD_BODIES: Final[Mapping[int, _Layout]] = {2: TD_REPORT_10, 3: TD_REPORT_15, 4: TD_REPORT_15_EXTENDED}

_INTEL_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_QE_SIGNER: Final = hashlib.sha256(b"cloister synthetic quoting enclave signer").digest()


def pack(layout: _Layout, fields: Fields) -> bytes:
    """Fields to bytes: integers little-endian, absent fields zero.

    :raises InvalidInput: ``synthetic-field`` for a name that the layout does not have, or bytes of another length.
    """
    known = dict(layout)
    out = []
    for name in fields:
        if name not in known:
            raise InvalidInput("synthetic-field", f"there is no field {name!r}")
    for name, length in layout:
        value = fields.get(name, 0)
        raw = value.to_bytes(length, "little") if isinstance(value, int) else value
        if len(raw) != length:
            raise InvalidInput("synthetic-field", f"{name!r} has {len(raw)} bytes, not {length}")
        out.append(raw)
    return b"".join(out)


def _time(seconds: int) -> str:
    return moment(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class SyntheticIntel:
    """One platform, its certificates, its collateral and its quote.

    :param framed: the body is preceded by its type and size, as in version 5.
    :param body_type: of a framed body: 2 (TD report 1.0), 3 (1.5), 4 (1.5ex).
    :param qe_report_data: instead of the hash of the attestation key, for a QE that vouches for another key.
    :param padding: what follows the quote.
    """

    tee: TeeType
    header: Fields
    report: Fields
    qe_report: Fields
    platform: Platform
    root: Node
    pck_ca: Node
    pck: Node
    tcb_signer: Node
    qe_signer: Node
    root_crl: Crl
    pck_crl: Crl
    tcb_info: dict[str, Any]
    qe_identity: dict[str, Any]
    framed: bool = False
    body_type: int = 3
    body_size: int | None = None
    attestation_key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: key_of("attestation"))
    quote_signing_key: ec.EllipticCurvePrivateKey | None = None
    qe_report_signing_key: ec.EllipticCurvePrivateKey | None = None
    tcb_info_signing_key: ec.EllipticCurvePrivateKey | None = None
    qe_authentication_data: bytes = bytes(range(32))
    qe_report_data: bytes | None = None
    outer_certification_type: int = 6
    certification_type: int = 5
    signature_length_error: int = 0
    padding: bytes = b""
    chain_text: bytes | None = None

    @classmethod
    def sgx(cls) -> SyntheticIntel:
        """A version 3 quote of an enclave on a single-package platform (PCK Processor CA)."""
        platform = Platform(instance_id=None, configuration=None, sgx_type=0)
        return cls._make(
            TeeType.SGX,
            platform,
            "Processor",
            header={"version": 3, "tee_type": 0, "qe_svn": 10, "pce_svn": platform.pce_svn},
            report={
                "cpu_svn": platform.cpu_svn,
                "flags": 0x05,
                "xfrm": 0xE7,
                "mr_enclave": hashlib.sha256(b"synthetic enclave").digest(),
                "mr_signer": hashlib.sha256(b"synthetic enclave signer").digest(),
                "product_id": 7,
                "isv_svn": 3,
                "report_data": hashlib.sha512(b"synthetic report data").digest(),
            },
        )

    @classmethod
    def tdx(cls, version: int = 4, *, body_type: int = 3) -> SyntheticIntel:
        """A quote of a TD on a multi-package platform (PCK Platform CA): version 4, or 5 with a TD report 1.5."""
        report: Fields = {
            "tee_tcb_svn": bytes([6, 1, 3, *bytes(13)]),
            "mr_seam": hashlib.sha384(b"synthetic TDX module").digest(),
            "td_attributes": 1 << 28,
            "xfam": 0x602E7,
            "mr_td": hashlib.sha384(b"synthetic TD").digest(),
            **{f"rtmr{i}": hashlib.sha384(f"synthetic RTMR {i}".encode()).digest() for i in range(4)},
            "report_data": hashlib.sha512(b"synthetic report data").digest(),
        }
        if version == 5 and body_type > 2:
            report["tee_tcb_svn2"] = report["tee_tcb_svn"]
        intel = cls._make(TeeType.TDX, Platform(), "Platform", {"version": version, "tee_type": 0x81}, report)
        intel.framed = version == 5
        intel.body_type = body_type
        return intel

    @classmethod
    def _make(cls, tee: TeeType, platform: Platform, ca: str, header: Fields, report: Fields) -> SyntheticIntel:
        root = Node("Intel SGX Root CA", 1, ca=True, path_length=1)
        pck_ca = Node(f"Intel SGX PCK {ca} CA", 2, issuer=root, ca=True, path_length=0)
        pck = Node("Intel SGX PCK Certificate", 3, issuer=pck_ca)
        signer = Node("Intel SGX TCB Signing", 4, issuer=root)
        tdx = tee is TeeType.TDX
        intel = cls(
            tee=tee,
            header={"attestation_key_type": 2, "qe_vendor_id": _INTEL_VENDOR, **header},
            report=report,
            qe_report={
                "cpu_svn": platform.cpu_svn,
                "flags": 0x15,
                "xfrm": 0xE7,
                "mr_enclave": hashlib.sha256(b"synthetic quoting enclave").digest(),
                "mr_signer": _QE_SIGNER,
                "product_id": 2 if tdx else 1,
                "isv_svn": 8,
            },
            platform=platform,
            root=root,
            pck_ca=pck_ca,
            pck=pck,
            tcb_signer=signer,
            qe_signer=signer,
            root_crl=Crl(root),
            pck_crl=Crl(pck_ca),
            tcb_info=_tcb_info(platform, tdx=tdx),
            qe_identity=_qe_identity(tdx=tdx),
        )
        pck.extensions["1.2.840.113741.1.13.1"] = lambda: intel.platform.extension()  # noqa: PLW0108  # of the platform as it is then
        return intel

    # --- what a verifier is given ---

    def anchors(self) -> TrustAnchors:
        """This Intel's root, and no other vendor's."""
        return TrustAnchors(intel_root_der=(self.root.der(),))

    def evidence(self) -> Evidence:
        """The quote, labelled with its TEE."""
        return Evidence(self.tee, self.quote())

    def quote(self) -> bytes:
        """The signed quote."""
        signed = pack(HEADER, self.header) + self._body()
        signature = raw_signature(self.quote_signing_key or self.attestation_key, signed)
        qe = self._qe_data()
        if self.tee is TeeType.TDX:
            qe = self.outer_certification_type.to_bytes(2, "little") + len(qe).to_bytes(4, "little") + qe
        data = signature + raw_public_key(self.attestation_key) + qe
        return signed + (len(data) + self.signature_length_error).to_bytes(4, "little") + data + self.padding

    def collateral_parts(self) -> dict[str, str]:
        """The fields of ``collateral.json``."""
        tcb_info = json.dumps(self.tcb_info, separators=(",", ":"))
        qe_identity = json.dumps(self.qe_identity, separators=(",", ":"))
        key = self.tcb_info_signing_key or self.tcb_signer.key
        return {
            "pck_crl_issuer_chain": self.pck_ca.pem() + self.root.pem(),
            "root_ca_crl": self.root_crl.der().hex(),
            "pck_crl": self.pck_crl.der().hex(),
            "tcb_info_issuer_chain": self.tcb_signer.pem() + self.root.pem(),
            "tcb_info": tcb_info,
            "tcb_info_signature": raw_signature(key, tcb_info.encode()).hex(),
            "qe_identity_issuer_chain": self.qe_signer.pem() + self.root.pem(),
            "qe_identity": qe_identity,
            "qe_identity_signature": raw_signature(self.qe_signer.key, qe_identity.encode()).hex(),
        }

    def collateral(self, **changes: str) -> Collateral:
        """``collateral.json``; ``changes`` replace whole fields after signing."""
        return Collateral({"collateral.json": json.dumps({**self.collateral_parts(), **changes}).encode()})

    def set_status(self, status: str, *advisories: str) -> None:
        """The TCB status of the level that this platform meets."""
        self.tcb_info["tcbLevels"][0] |= {"tcbStatus": status, "advisoryIDs": list(advisories)}

    # --- parts ---

    def _body(self) -> bytes:
        if self.tee is TeeType.SGX:
            return pack(ENCLAVE_REPORT, self.report)
        if not self.framed:
            return pack(TD_REPORT_10, self.report)
        body = pack(_TD_BODIES[self.body_type], self.report)
        size = len(body) if self.body_size is None else self.body_size
        return self.body_type.to_bytes(2, "little") + size.to_bytes(4, "little") + body

    def _qe_data(self) -> bytes:
        bound = hashlib.sha256(raw_public_key(self.attestation_key) + self.qe_authentication_data).digest()
        report_data = bound + bytes(32) if self.qe_report_data is None else self.qe_report_data
        report = pack(ENCLAVE_REPORT, {**self.qe_report, "report_data": report_data})
        chain = self.chain_text
        if chain is None:
            chain = (self.pck.pem() + self.pck_ca.pem() + self.root.pem()).encode() + b"\x00"
        return (
            report
            + raw_signature(self.qe_report_signing_key or self.pck.key, report)
            + len(self.qe_authentication_data).to_bytes(2, "little")
            + self.qe_authentication_data
            + self.certification_type.to_bytes(2, "little")
            + len(chain).to_bytes(4, "little")
            + chain
        )


def _components(svns: bytes) -> list[dict[str, int]]:
    return [{"svn": svn} for svn in svns]


def _tcb_info(platform: Platform, *, tdx: bool) -> dict[str, Any]:
    """Two levels: the platform's own, and an ancient one that everything meets."""
    current: dict[str, Any] = {"sgxtcbcomponents": _components(platform.cpu_svn), "pcesvn": platform.pce_svn}
    ancient: dict[str, Any] = {"sgxtcbcomponents": _components(bytes(16)), "pcesvn": 0}
    info: dict[str, Any] = {
        "id": "TDX" if tdx else "SGX",
        "version": 3,
        "issueDate": _time(NOW - DAY),
        "nextUpdate": _time(NOW + 29 * DAY),
        "fmspc": platform.fmspc.hex().upper(),
        "pceId": platform.pce_id.hex().upper(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": 18,
    }
    if tdx:
        current["tdxtcbcomponents"] = _components(bytes([5, 0, 3, *bytes(13)]))
        ancient["tdxtcbcomponents"] = _components(bytes(16))
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        levels = [
            {"tcb": {"isvsvn": 4}, "tcbDate": _time(NOW - 300 * DAY), "tcbStatus": "UpToDate"},
            {"tcb": {"isvsvn": 2}, "tcbDate": _time(NOW - 900 * DAY), "tcbStatus": "OutOfDate"},
        ]
        info["tdxModule"] = module
        info["tdxModuleIdentities"] = [{"id": "TDX_01", **module, "tcbLevels": levels}]
    info["tcbLevels"] = [
        {"tcb": current, "tcbDate": _time(NOW - 300 * DAY), "tcbStatus": "UpToDate"},
        {
            "tcb": ancient,
            "tcbDate": _time(NOW - 2000 * DAY),
            "tcbStatus": "OutOfDate",
            "advisoryIDs": ["INTEL-SA-00106"],
        },
    ]
    return info


def _qe_identity(*, tdx: bool) -> dict[str, Any]:
    return {
        "id": "TD_QE" if tdx else "QE",
        "version": 2,
        "issueDate": _time(NOW - DAY),
        "nextUpdate": _time(NOW + 29 * DAY),
        "tcbEvaluationDataNumber": 18,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": _QE_SIGNER.hex().upper(),
        "isvprodid": 2 if tdx else 1,
        "tcbLevels": [
            {"tcb": {"isvsvn": 8}, "tcbDate": _time(NOW - 300 * DAY), "tcbStatus": "UpToDate"},
            {"tcb": {"isvsvn": 6}, "tcbDate": _time(NOW - 900 * DAY), "tcbStatus": "OutOfDate"},
            {"tcb": {"isvsvn": 2}, "tcbDate": _time(NOW - 1500 * DAY), "tcbStatus": "Revoked"},
        ],
    }
