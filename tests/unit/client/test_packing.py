"""Packing: what comes out is what went in, and nobody else's."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from cloister.base.errors import CloisterError, InvalidInput, Tampered
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.client.packing import Packing, check_packing, encrypt_files, open_packing, pack_model, unpack_file
from cloister.crypto.sign import SigningKey
from cloister.engines.package import Package
from cloister.testing.models.small import sum_difference
from cloister.wire.manifest import CHUNK, DESCRIPTION, Description, padded_size
from cloister.wire.statements import identity_id

OWNER = SigningKey.generate()
MODEL = ModelId(identity_id(OWNER.public_key), "m")
KEY = SecretBytes(secrets.token_bytes(32))


def pack(folder: Path, files: dict[str, bytes], version: int = 1) -> Packing:
    return encrypt_files(files, folder, model=MODEL, version=version, key=KEY, owner=OWNER)


@pytest.mark.parametrize("size", [0, 1, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_a_file_comes_back(tmp_path: Path, size: int) -> None:
    content = secrets.token_bytes(size)
    packing = pack(tmp_path / "p", {DESCRIPTION: b"d", "weights": content})
    plain = b"".join(unpack_file(packing, "weights", KEY))
    assert plain[:size] == content
    assert len(plain) == padded_size(size)
    assert not any(plain[size:])
    check_packing(open_packing(tmp_path / "p", OWNER.public_key))


def test_a_model_file_is_packed_whole(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(sum_difference())
    seen: list[str] = []
    packing = pack_model(
        source,
        tmp_path / "p",
        model=MODEL,
        version=3,
        key=KEY,
        owner=OWNER,
        progress=lambda what, _done, _total: seen.append(what),
    )
    description = Description.decode(b"".join(unpack_file(packing, DESCRIPTION, KEY)))
    package = Package.parse(description.package)
    assert set(description.sizes) == {entry.name for entry in packing.manifest.files} - {DESCRIPTION}
    for variant in package.variants:
        for name in variant.files:
            assert len(b"".join(unpack_file(packing, name, KEY))) >= description.sizes[name]
    assert "encrypt" in seen
    assert source.read_bytes() not in b"".join(path.read_bytes() for path in (tmp_path / "p").iterdir())


@pytest.mark.parametrize("change", ["flip", "cut", "grow", "swap", "remove"])
def test_a_changed_packing_is_noticed_without_the_key(tmp_path: Path, change: str) -> None:
    packing = pack(tmp_path / "p", {DESCRIPTION: b"d", "a": b"1" * 5000, "b": b"2" * 5000})
    path = tmp_path / "p" / "a"
    data = path.read_bytes()
    match change:
        case "flip":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "cut":
            path.write_bytes(data[:-1])
        case "grow":
            path.write_bytes(data + b"\x00")
        case "swap":
            path.write_bytes((tmp_path / "p" / "b").read_bytes())
        case _:
            path.unlink()
    with pytest.raises(CloisterError) as refused:
        check_packing(packing)
    assert refused.value.code in ("model-file-changed", "file-unreadable")


def test_the_owner_notices_a_swapped_version(tmp_path: Path) -> None:
    one = pack(tmp_path / "1", {DESCRIPTION: b"d", "a": b"1" * 5000}, version=1)
    pack(tmp_path / "2", {DESCRIPTION: b"d", "a": b"1" * 5000}, version=2)
    (tmp_path / "1" / "a").write_bytes((tmp_path / "2" / "a").read_bytes())
    with pytest.raises(Tampered, match="model-chunk"):
        b"".join(unpack_file(one, "a", KEY))


def test_a_manifest_of_another_owner_is_refused(tmp_path: Path) -> None:
    pack(tmp_path / "p", {DESCRIPTION: b"d"})
    with pytest.raises(Tampered, match="signature-invalid"):
        open_packing(tmp_path / "p", SigningKey.generate().public_key)


def test_what_cannot_be_packed_is_said(tmp_path: Path) -> None:
    def attempt(source: Path, folder: Path) -> None:
        pack_model(source, folder, model=MODEL, version=1, key=KEY, owner=OWNER)

    with pytest.raises(InvalidInput, match="model-type-unknown"):
        attempt(tmp_path / "model.pt", tmp_path / "p")
    with pytest.raises(InvalidInput, match="file-unreadable"):
        attempt(tmp_path / "missing.onnx", tmp_path / "p")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(InvalidInput, match="model-malformed"):
        attempt(broken, tmp_path / "p")
    assert not (tmp_path / "p").exists()
    (tmp_path / "p").mkdir()
    with pytest.raises(InvalidInput, match="folder-exists"):
        attempt(broken, tmp_path / "p")
