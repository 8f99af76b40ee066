"""Nitro documents recorded on real hardware give the verdict that their meta.json states, at its time."""

from __future__ import annotations

import json
from pathlib import Path

import cbor2
import pytest

from cloister.attest import claim_names as names
from cloister.attest.anchors import TrustAnchors, production_anchors
from cloister.attest.nitro import parse
from cloister.attest.steps import Steps, Verdict
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.errors import Refused, Tampered

VECTORS = ("debug-2022", "prod-2022-nonce256", "prod-2025")


def load(folder: Path) -> tuple[Evidence, dict[str, object], float]:
    meta = json.loads((folder / "meta.json").read_text())
    return Evidence(TeeType.NITRO, (folder / "document.cose").read_bytes()), meta, float(meta["verify_at"])


@pytest.mark.parametrize("vector", VECTORS)
def test_a_recorded_document_verifies_and_says_what_its_meta_says(evidence_dir: Path, vector: str) -> None:
    evidence, meta, at = load(evidence_dir / "nitro" / vector)
    steps = Steps()
    found = verify(evidence, Collateral(), production_anchors(), at, steps)
    assert all(step.verdict is Verdict.PASS for step in steps.report)
    assert found.claims.specific[names.NITRO_MODULE_ID] == meta["module_id"]
    assert found.claims.measurements["pcr0"].hex() == meta["pcr0"]
    assert found.claims.debug is meta.get("debug", False)
    assert at < found.expires_at < at + 3 * 3600 + 60


def test_what_the_recorded_documents_bind(evidence_dir: Path) -> None:
    claims = {}
    for vector in VECTORS:
        evidence, _, at = load(evidence_dir / "nitro" / vector)
        claims[vector] = verify(evidence, Collateral(), production_anchors(), at).claims
    assert len(claims["prod-2025"].report_data) == 64
    assert names.NITRO_NONCE not in claims["prod-2025"].specific
    assert len(claims["prod-2022-nonce256"].specific[names.NITRO_NONCE]) == 256  # type: ignore[arg-type]
    assert claims["prod-2022-nonce256"].report_data == b""
    assert any(claims["prod-2022-nonce256"].measurements["pcr8"])
    assert claims["debug-2022"].specific[names.NITRO_PUBLIC_KEY] == b"my super secret key"


def test_the_payload_of_2025_is_a_map_without_a_length(evidence_dir: Path) -> None:
    """Why clause 5.1 lets the outermost map be open: refusing it would refuse today's genuine documents."""
    evidence, _, _ = load(evidence_dir / "nitro" / "prod-2025")
    payload = cbor2.loads(evidence.body)[2]
    assert payload[0] == 0xBF
    assert parse(evidence.body).timestamp_ms == cbor2.loads(payload)["timestamp"]


def test_a_tag_18_in_front_changes_nothing(evidence_dir: Path) -> None:
    evidence, _, at = load(evidence_dir / "nitro" / "prod-2025")
    tagged = Evidence(TeeType.NITRO, b"\xd2" + evidence.body)
    plain, other = (verify(item, Collateral(), production_anchors(), at).claims for item in (evidence, tagged))
    assert plain == other


@pytest.mark.parametrize("vector", VECTORS)
def test_a_recorded_document_is_refused_outside_of_its_time(evidence_dir: Path, vector: str) -> None:
    evidence, _, at = load(evidence_dir / "nitro" / vector)
    for moment, code in ((at - 86400 * 30, "certificate-not-yet-valid"), (at + 4 * 3600, "certificate-expired")):
        with pytest.raises(Refused, match=code):
            verify(evidence, Collateral(), production_anchors(), moment)


def test_a_leaf_swapped_between_two_recorded_documents_is_refused(evidence_dir: Path) -> None:
    """N3: the certificate and bundle of one genuine document in another, with either one's signature."""
    first, _, at = load(evidence_dir / "nitro" / "prod-2022-nonce256")
    second, _, _ = load(evidence_dir / "nitro" / "debug-2022")
    protected, _, payload, signature = cbor2.loads(first.body)
    other = cbor2.loads(second.body)
    ours, theirs = cbor2.loads(payload), cbor2.loads(other[2])
    mixed = cbor2.dumps(ours | {name: theirs[name] for name in ("certificate", "cabundle")})
    for proof in (signature, other[3]):
        document = cbor2.dumps([protected, {}, mixed, proof])
        with pytest.raises(Tampered, match="nitro-signature"):
            verify(Evidence(TeeType.NITRO, document), Collateral(), production_anchors(), at - 65_000)


def test_without_the_pinned_root_no_recorded_document_is_believed(evidence_dir: Path) -> None:
    evidence, _, at = load(evidence_dir / "nitro" / "prod-2025")
    for anchors in (TrustAnchors(), TrustAnchors(nitro_root=(b"k" * 32,))):
        with pytest.raises(Refused, match="nitro-root-not-pinned"):
            verify(evidence, Collateral(), anchors, at)
