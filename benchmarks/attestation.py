"""What one verification costs, per TEE: medians over the rounds, and how many a second one core does.

    python benchmarks/attestation.py [--evidence DIR] [--rounds N] [--json]

Without recorded evidence (DIR, or CLOISTER_EVIDENCE_DIR) every TEE still runs, on evidence made here under a throw-away
root. Its AMD keys are RSA-2048 where AMD's are RSA-4096; every row says which it is. The rows are
interleaved, one verification each in turn, so a busy machine slows all of them alike. What one core does follows from
the processor time of a verification, which other processes on the machine do not add to; its wall time is beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from cloister.attest.anchors import TrustAnchors, production_anchors
from cloister.attest.simulation import SimulatedToken, produce
from cloister.attest.snp.certificates import Signer
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_nitro import NitroAuthority
from cloister.testing.evidence_snp import NOW, SnpAuthority

Row = tuple[str, Evidence, Collateral, TrustAnchors, float]

RECORDED = {
    TeeType.SGX: ("quote.bin", ("collateral.json",)),
    TeeType.TDX: ("quote.bin", ("collateral.json",)),
    TeeType.SEV_SNP: ("report.bin", ("vek.der", "ask_ark.pem")),
    TeeType.NITRO: ("document.cose", ()),
}


def recorded(folder: Path) -> Iterator[Row]:
    """Every piece of recorded evidence that verifies (debug quotes of Intel do not)."""
    for tee, (body, files) in RECORDED.items():
        for place in sorted((folder / tee).glob("*/" + body)):
            meta = json.loads((place.parent / "meta.json").read_text())
            if tee is TeeType.TDX and meta.get("debug"):
                continue
            collateral = Collateral({name: (place.parent / name).read_bytes() for name in files})
            label = f"{tee} {place.parent.name}"
            yield label, Evidence(tee, place.read_bytes()), collateral, production_anchors(), meta["verify_at"]


def synthetic() -> Iterator[Row]:
    """Evidence under throw-away roots."""
    amd, aws = SnpAuthority.create(), NitroAuthority.create()
    for product, signer in (("Milan", Signer.VCEK), ("Turin", Signer.VCEK), ("Genoa", Signer.VLEK)):
        evidence, collateral = amd.evidence(product, signer, version=5, crl=amd.crl(product))
        label = f"sev-snp synthetic {product} {signer.label} with CRL"
        yield label, evidence, collateral, amd.anchors(product), NOW
    for label, intel in (
        ("sgx synthetic v3", SyntheticIntel.sgx()),
        ("tdx synthetic v4", SyntheticIntel.tdx(4)),
        ("tdx synthetic v5, TD report 1.5", SyntheticIntel.tdx(5)),
    ):
        yield label, intel.evidence(), intel.collateral(), intel.anchors(), NOW
    yield "nitro synthetic", aws.evidence(), Collateral(), aws.anchors(), NOW
    key = SigningKey.from_seed(SecretBytes(bytes(32)))
    token = SimulatedToken(
        key=key.public_key,
        measurement=b"m" * 48,
        configuration_digest=b"c" * 32,
        report_data=b"r" * 64,
        issued_at=int(NOW),
    )
    anchors = TrustAnchors(simulation_keys=(key.public_key,))
    yield "insecure-simulation", produce(key, token), Collateral(), anchors, NOW


def measure(rows: list[Row], rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of wall and of processor time of each verification, by label."""
    spent: dict[str, tuple[list[float], list[float]]] = {row[0]: ([], []) for row in rows}
    for turn in range(-3, rounds):  # three turns to warm up
        for label, evidence, collateral, anchors, now in rows:
            wall, processor = time.perf_counter(), time.process_time()
            verify(evidence, collateral, anchors, now)
            processor, wall = time.process_time() - processor, time.perf_counter() - wall
            if turn >= 0:
                spent[label][0].append(wall)
                spent[label][1].append(processor)
    return spent


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evidence", type=Path, default=os.environ.get("CLOISTER_EVIDENCE_DIR"))
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    rows = [*(recorded(Path(chosen.evidence)) if chosen.evidence else ()), *synthetic()]
    results = {
        label: {
            "median_ms": round(statistics.median(wall) * 1000, 3),
            "median_processor_ms": round(statistics.median(processor) * 1000, 3),
            "per_second_one_core": round(1 / statistics.median(processor)),
        }
        for label, (wall, processor) in measure(rows, chosen.rounds).items()
    }
    if chosen.json:
        print(json.dumps(results, indent=1))
        return
    print(f"{'evidence':44} {'median ms':>10} {'processor ms':>13} {'a second':>9}")
    for label, row in results.items():
        figures = f"{row['median_ms']:10.2f} {row['median_processor_ms']:13.2f} {row['per_second_one_core']:9}"
        print(f"{label:44} {figures}")


if __name__ == "__main__":
    main()
