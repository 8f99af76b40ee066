"""The simulated attester measures the code that is installed; the simulated sealer binds to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import cloister
from cloister.adapters.tee.simulation import SimulatedAttester, SimulatedSealer, measure_installation
from cloister.attest.anchors import TrustAnchors
from cloister.attest.types import Collateral
from cloister.attest.verify import verify
from cloister.base.errors import InvalidInput, Tampered
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.testing.clock import FakeClock


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(
            Path(cloister.__file__).parent, tmp_path / "cloister", ignore=shutil.ignore_patterns("__pycache__")
        )
    )


def test_a_copy_measures_the_same_and_a_changed_byte_does_not(package: Path) -> None:
    before = measure_installation(package)
    assert before == measure_installation()
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").write_bytes(b"cache")
    assert measure_installation(package) == before
    code = package / "base" / "limits.py"
    content = code.read_bytes()
    code.write_bytes(content[:-1] + b" ")
    assert measure_installation(package) != before
    code.write_bytes(content)
    assert measure_installation(package) == before
    code.rename(code.with_name("limit.py"))
    assert measure_installation(package) != before


def test_an_added_file_or_another_library_changes_it(package: Path) -> None:
    before = measure_installation(package)
    assert measure_installation(package, ("cryptography",)) != before
    assert measure_installation(package, ("no-such-distribution",)) != measure_installation(package, ())
    (package / "sitecustomize.py").touch()
    assert measure_installation(package) != before


def test_the_attester_vouches_for_the_installation() -> None:
    key, clock = SigningKey.generate(), FakeClock()
    attester = SimulatedAttester(key, clock, configuration_digest=b"c" * 32)
    verified = verify(
        attester.evidence(b"r" * 64), Collateral(), TrustAnchors(simulation_keys=(attester.public_key,)), clock.now()
    )
    assert verified.claims.measurements["measurement"] == measure_installation()
    assert verified.claims.report_data == b"r" * 64
    with pytest.raises(InvalidInput, match="report-data-length"):
        attester.evidence(b"r" * 63)


def test_sealed_data_opens_for_the_same_code_configuration_and_platform_only() -> None:
    secret = SecretBytes(b"s" * 32)
    sealer = SimulatedSealer(secret, measurement=b"m" * 48, configuration_digest=b"c" * 32)
    sealed = sealer.seal(b"the state")
    assert b"the state" not in sealed
    assert SimulatedSealer(secret, measurement=b"m" * 48, configuration_digest=b"c" * 32).unseal(sealed) == b"the state"
    others = [
        SimulatedSealer(secret, measurement=b"n" * 48, configuration_digest=b"c" * 32),
        SimulatedSealer(secret, measurement=b"m" * 48, configuration_digest=b"d" * 32),
        SimulatedSealer(SecretBytes(b"t" * 32), measurement=b"m" * 48, configuration_digest=b"c" * 32),
    ]
    for other in others:
        with pytest.raises(Tampered, match="unseal-failed"):
            other.unseal(sealed)
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(Tampered):
            sealer.unseal(bytes(changed))
    for length in range(len(sealed)):
        with pytest.raises(Tampered):
            sealer.unseal(sealed[:length])
