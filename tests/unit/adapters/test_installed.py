"""What is read of the installation, compared with the interpreter's own reader of distributions."""

from __future__ import annotations

import os
import re
from hashlib import sha256
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from cloister.adapters.tee.installed import distributions, files
from cloister.adapters.tee.simulation import TRUSTED_DISTRIBUTIONS, measure_installation
from cloister.base.errors import Unavailable


def test_distributions_are_those_the_interpreter_finds() -> None:
    found = distributions(TRUSTED_DISTRIBUTIONS)
    assert {"cryptography", "cffi", "numpy", "uvloop"} <= found.keys()
    for name, distribution in found.items():
        if distribution is None:
            continue
        theirs = Distribution.from_name(name)
        assert distribution.version == theirs.version
        assert distribution.record == sha256((theirs.read_text("RECORD") or "").encode()).digest()
        for line in theirs.requires or ():
            required = re.match(r"[A-Za-z0-9._-]+", line)
            assert required
            assert "extra" in line or re.sub(r"[-_.]+", "-", required[0]).lower() in found


def test_requirements_are_followed_whatever_their_spelling(tmp_path: Path) -> None:
    def install(name: str, metadata: str) -> None:
        folder = tmp_path / f"{name}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_bytes(metadata.encode())
        (folder / "RECORD").write_text(name)

    install("a_b-1.0", "Metadata-Version: 2.1\r\nName: A.B\r\nVersion: 1.0\r\nRequires-Dist: c\r\n\r\nVersion: 9\r\n")
    install(
        "c-2",
        "version:2\nLicense: some\n        \n        Version: 7\nrequires-dist: D (>=1)\n"
        "Requires-Dist: e; extra == 'x'\nRequires-Dist: f ;\n python_version > '3'\n\nRequires-Dist: g\n",
    )
    install("d-3", "Version: 3")
    found = distributions(["A-b"], [str(tmp_path / "absent"), str(tmp_path)])
    assert {name: value.version if value else None for name, value in found.items()} == {
        "a-b": "1.0", "c": "2", "d": "3", "f": None,
    }  # fmt: skip
    assert found["a-b"] is not None
    assert found["a-b"].record == sha256(b"a_b-1.0").digest()


def test_code_in_an_archive_cannot_be_overlooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "code.zip"
    archive.write_bytes(b"PK")
    monkeypatch.syspath_prepend(str(archive))
    with pytest.raises(Unavailable) as caught:
        measure_installation()
    assert caught.value.code == "installation-unreadable"


def test_every_file_counts_also_behind_a_link(tmp_path: Path) -> None:
    package, elsewhere = tmp_path / "package", tmp_path / "elsewhere"
    (package / "sub" / "__pycache__").mkdir(parents=True)
    elsewhere.mkdir()
    large = os.urandom(3 << 20)
    (package / "sub" / "large.bin").write_bytes(large)
    (package / "sub" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (package / "empty.py").write_bytes(b"")
    (elsewhere / "linked.py").write_bytes(b"y")
    (package / "link").symlink_to(elsewhere)
    expected = {
        "sub/large.bin": sha256(large).digest(),
        "empty.py": sha256(b"").digest(),
        "link/linked.py": sha256(b"y").digest(),
    }
    assert dict(files(str(package))) == expected
    (package / "circle").symlink_to(package)
    with pytest.raises(OSError, match="circle"):
        dict(files(str(package)))
