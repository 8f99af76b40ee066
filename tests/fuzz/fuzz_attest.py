"""Atheris targets: everything of attestation that reads a stranger's bytes.

Run: ``python -P tests/fuzz/fuzz_attest.py TARGET [-max_total_time=60]``; without a target it lists them. Parsers raise
nothing but InvalidInput, verification nothing but the four families. Each starts from synthetic evidence, and from the
recorded evidence below CLOISTER_EVIDENCE_DIR where that is set.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cloister.attest", "cloister.wire", "cloister.adapters.collateral"]):
    from cloister.adapters.collateral.bundle import Bundle, Entry, parse_bundle
    from cloister.adapters.collateral.subject import subject_of
    from cloister.attest.anchors import TrustAnchors
    from cloister.attest.bundle import open_bundle
    from cloister.attest.configuration import configure, decode_configuration
    from cloister.attest.dcap.collateral import FILE, parse_collateral
    from cloister.attest.dcap.parse import parse as parse_quote
    from cloister.attest.nitro.parse import parse as parse_document
    from cloister.attest.policy import Policy
    from cloister.attest.policy_toml import format_policy, parse_policy
    from cloister.attest.simulation.parse import parse as parse_token
    from cloister.attest.snp.certificates import cert_table
    from cloister.attest.snp.parse import parse as parse_report
    from cloister.attest.types import Collateral, Evidence, TeeType
    from cloister.attest.verify import verify
    from cloister.base.errors import CloisterError, InvalidInput
    from cloister.crypto.sign import SigningKey
    from cloister.testing.embedded import EmbeddedKeyService, attest_request
    from cloister.testing.evidence_dcap import SyntheticIntel
    from cloister.testing.evidence_dcap_pki import NOW
    from cloister.testing.evidence_nitro import NitroAuthority
    from cloister.testing.evidence_snp import SnpAuthority, build_cert_table
    from cloister.testing.tee import SimulatedTee
    from cloister.wire.calls import Description
    from cloister.wire.presence import Presence
    from cloister.wire.provisioning import AttestRequest

warnings.simplefilter("ignore")  # VCEK certificates have serial number 0

INTEL, AMD, AWS = (SyntheticIntel.sgx(), SyntheticIntel.tdx(5)), SnpAuthority.create(), NitroAuthority.create()
SIMULATED, ROOT = SimulatedTee(), SigningKey.generate()
SNP, SNP_COLLATERAL = AMD.evidence("Milan", crl=AMD.crl("Milan"))
ANCHORS = TrustAnchors(
    intel_root_der=INTEL[0].anchors().intel_root_der + INTEL[1].anchors().intel_root_der,
    amd_arks=AMD.anchors("Milan").amd_arks,
    nitro_root=AWS.anchors().nitro_root,
    simulation_keys=(SIMULATED.key.public_key,),
)


def parses(*parsers: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """A value or InvalidInput."""

    def one(data: bytes) -> None:
        for parser in parsers:
            with contextlib.suppress(InvalidInput):
                parser(data)

    return one


def policy(data: bytes) -> None:
    """As TOML and as CBOR; what is read is written, and read again as the same."""
    with contextlib.suppress(InvalidInput):
        found = Policy.decode(data)
        assert found.encode() == data
    with contextlib.suppress(InvalidInput, UnicodeDecodeError):
        found = parse_policy(data.decode())
        assert parse_policy(format_policy(found)) == found
        assert Policy.decode(found.encode()) == found


def trust_bundle(data: bytes) -> None:
    """The payload, signed by the root: the most that anybody below it can do; and any bytes in its place."""
    with contextlib.suppress(CloisterError):
        open_bundle(data, ROOT.public_key, 1, NOW)
    from cloister.crypto.digest import Context
    from cloister.wire import cose

    with contextlib.suppress(CloisterError):
        found = open_bundle(cose.sign1(ROOT, Context.BUNDLE, data), ROOT.public_key, 1, NOW)
        assert found.payload == data


def verification(data: bytes) -> None:
    """The whole of it: a first byte for the TEE, then the body; genuine collateral, and the body as collateral."""
    if not data:
        return
    tee = list(TeeType)[data[0] % len(TeeType)]
    genuine = {TeeType.SGX: INTEL[0].collateral(), TeeType.TDX: INTEL[1].collateral(), TeeType.SEV_SNP: SNP_COLLATERAL}
    body = data[1:]
    with contextlib.suppress(CloisterError):
        verify(Evidence(tee, body), genuine.get(tee, Collateral()), ANCHORS, NOW)
    bodies = {TeeType.SGX: INTEL_QUOTES[0], TeeType.TDX: INTEL_QUOTES[1], TeeType.SEV_SNP: SNP.body}
    for name in genuine.get(tee, Collateral()).files:
        files = dict(genuine[tee].files) | {name: body}
        with contextlib.suppress(CloisterError):
            verify(Evidence(tee, bodies[tee]), Collateral(files), ANCHORS, NOW)
    with contextlib.suppress(CloisterError):
        subject_of(Evidence(tee, body))


def seeds(tee: str, names: Iterable[str]) -> list[bytes]:
    """Recorded evidence, where there is some."""
    folder = os.environ.get("CLOISTER_EVIDENCE_DIR")
    if not folder:
        return []
    return [path.read_bytes() for name in names for path in Path(folder, tee).glob(f"*/{name}")]


INTEL_QUOTES = [intel.quote() for intel in INTEL]
COLLATERAL = [intel.collateral().files[FILE] for intel in INTEL]
NITRO = [AWS.evidence(AWS.content()).body]
TOKEN = SIMULATED.attester().evidence(bytes(64)).body
TABLE = build_cert_table({"vcek": b"x" * 100, "ask": b"y" * 10, "ark": b"z"})
CHALLENGE_REQUEST = attest_request(SIMULATED, b"c" * 64)[0].encode()
KEYSERVICE = EmbeddedKeyService()
COLLATERAL_BUNDLE = Bundle(1, 2, (Entry("tdx/50806f000000/platform", 1, INTEL[1].collateral()),)).encode()


@dataclass(frozen=True)
class Target:
    """What to run, and where to start."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


TARGETS = {
    "dcap": Target(parses(parse_quote), (*INTEL_QUOTES, *seeds("sgx", ["quote.bin"]), *seeds("tdx", ["quote.bin"]))),
    "dcap-collateral": Target(parses(parse_collateral), (*COLLATERAL, *seeds("tdx", ["collateral.json"]))),
    "snp": Target(parses(parse_report, cert_table), (SNP.body, TABLE, *seeds("sev-snp", ["report.bin"]))),
    "nitro": Target(parses(parse_document), (*NITRO, *seeds("nitro", ["document.cose"]))),
    "simulation": Target(parses(parse_token), (TOKEN,)),
    "policy": Target(policy, (SIMULATED.policy().encode(), format_policy(SIMULATED.policy()).encode())),
    "bundle": Target(trust_bundle, (SIMULATED.bundle(ROOT).payload, SIMULATED.bundle(ROOT).sign(ROOT))),
    "collateral-bundle": Target(parses(parse_bundle), (COLLATERAL_BUNDLE,)),
    "wire": Target(
        parses(AttestRequest.decode, Description.decode, Presence.decode, decode_configuration),
        (CHALLENGE_REQUEST, KEYSERVICE.service.description(), configure({"isolation": "strict"}).encoded),
    ),
    "verify": Target(
        verification,
        tuple(bytes([index]) + body for index, body in enumerate((*INTEL_QUOTES, SNP.body, NITRO[0], TOKEN))),
    ),
}


def main() -> None:
    """The first argument names the target; the others are libFuzzer's."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"which of {', '.join(TARGETS)}?")
    target = TARGETS[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory() as corpus:
        for index, seed in enumerate(target.seeds):
            target.run(seed)
            Path(corpus, f"seed-{index}").write_bytes(seed)
        atheris.Setup([*sys.argv, "-max_len=65536", corpus], target.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
