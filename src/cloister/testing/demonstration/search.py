"""Act three: search everything that the cloud held for plaintext."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from cloister.testing.demonstration.report import Report
from cloister.testing.demonstration.serving import Secrets
from cloister.testing.demonstration.stage import Stage

_NEEDLE: Final = 16  # bytes: four floats; by chance it does not occur
_SAMPLES: Final = 48  # places taken of each secret
_BLOCK: Final = 1 << 24


def search(stage: Stage, report: Report, secrets: Secrets) -> None:
    """Store, state, logs and both wires, for samples of every input, output and weight, raw and in base64."""
    held = dict(_held(stage))
    total = sum(map(len, held.values()))
    # A search that finds nothing must be able to find: what is public is there.
    model = stage.alice.own_model("breast-cancer")
    found_public = str(model).encode() in held["wire between users and gateway"]
    report.add(
        "search", "the search works: the public model id is found", holds=found_public, found=f"in {total:,} bytes"
    )
    for kind, values in (("inputs", secrets.inputs), ("outputs", secrets.outputs), ("weights", secrets.weights)):
        needles = {form for value in values for needle in _samples(value) for form in _forms(needle)}
        where = sorted(name for name, data in held.items() if occurring(data, needles))
        report.add(
            "search",
            f"no plaintext of {kind} in what the cloud held",
            holds=not where and len(needles) > 0,
            found=", ".join(where) or f"none of {len(needles):,} samples in {total / 2**20:,.0f} MiB",
        )
    report.facts["searched"] = {name: len(data) for name, data in held.items()}


def occurring(data: bytes, needles: set[bytes]) -> set[bytes]:
    """Which of the needles (all of one length of ``_NEEDLE`` or more) occur in the data; one pass for all of them.

    Three pairs of bytes are looked up in tables for every position; what passes is compared whole.
    """
    found: set[bytes] = set()
    lengths = {len(needle) for needle in needles}
    tables = [np.zeros(65536, dtype=bool) for _ in range(3)]
    for needle in needles:
        for place, table in enumerate(tables):
            table[int.from_bytes(needle[2 * place : 2 * place + 2], "little")] = True
    longest = max(lengths, default=0)
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK + longest]
        view = np.frombuffer(block, np.uint8).astype(np.uint16)
        if len(view) < 6:
            continue
        pairs = view[:-1] | view[1:] << 8
        passing = tables[0][pairs[:-4]] & tables[1][pairs[2:-2]] & tables[2][pairs[4:]]
        for position in np.flatnonzero(passing):
            found |= {block[position : position + length] for length in lengths} & needles
    return found


def _held(stage: Stage) -> Iterator[tuple[str, bytes]]:
    """Everything outside the TEEs and the people's own folders."""
    yield "wire to the KeyService", stage.keyservice_wire.recorded()
    yield "wire between users and gateway", stage.gateway_wire.recorded()
    folder = stage.cloud.folder
    for name in ("store", "keyservice", "gateway"):
        yield f"folder {name}", b"".join(_files(folder / name))
    yield "logs", b"".join(path.read_bytes() for path in stage.cloud.log_files)


def _files(folder: Path) -> Iterator[bytes]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.read_bytes()


def _samples(secret: bytes) -> Iterable[bytes]:
    """Windows that are not mostly one byte: those prove nothing."""
    last = max(0, len(secret) - _NEEDLE)
    for start in np.linspace(0, last, num=min(_SAMPLES, last + 1), dtype=int):
        window = secret[start : start + _NEEDLE]
        if len(window) == _NEEDLE and len(set(window)) >= _NEEDLE // 2:
            yield window


def _forms(needle: bytes) -> Iterable[bytes]:
    """Raw; and the middle of its base64, whatever stands before it (three alignments)."""
    yield needle
    for shift in range(3):
        yield base64.b64encode(bytes(shift) + needle)[4:-4]
