"""The trust bundle that a KeyService runs under (spec/attestation.md, clause 10.2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.base.errors import Refused
from cloister.crypto.sign import SigningKey
from cloister.keyservice.app import trust_bundle
from cloister.keyservice.settings import Settings
from cloister.testing.clock import FakeClock
from cloister.testing.tee import SimulatedTee


def test_whoever_owns_the_file_does_not_bring_an_older_bundle_back(tmp_path: Path) -> None:
    root, clock, path = SigningKey.generate(), FakeClock(), tmp_path / "bundle.cbor"
    tee = SimulatedTee(clock=clock)
    bundles = {version: tee.bundle(root, version=version) for version in (2, 3, 4)}
    read = trust_bundle(path, Settings(bundle_root=root.public_key, bundle_version=2), clock)
    assert read is not None
    for version in (2, 4, 4):
        path.write_bytes(bundles[version].sign(root))
        assert read().digest == bundles[version].digest
    for version in (3, 2):
        path.write_bytes(bundles[version].sign(root))
        with pytest.raises(Refused, match="bundle-rollback"):
            read()
    path.write_bytes(bundles[4].sign(root))
    assert read().digest == bundles[4].digest
