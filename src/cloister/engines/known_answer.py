"""A known answer: what a model says to one fixed input, recorded at pack time and compared at load.

It turns silent faults (a layout made for another CPU, a kernel that miscomputes) into refusals. The input comes from
PCG64's raw stream, which numpy keeps stable, so only the answer is stored: at most :data:`MAX_VALUES` values an output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.engines.port import DTYPES, Array, Session, TensorSpec

MAX_VALUES: Final = 1024
MAX_ELEMENTS: Final = 64 * 1024 * 1024  # of one made-up input
_FREE: Final = 1  # what a free dimension becomes


@dataclass(frozen=True, slots=True)
class Expected:
    """One output: its shape, and values picked evenly from it, as little-endian bytes of its datatype."""

    shape: tuple[int, ...]
    values: bytes


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """:param tolerance: parts per million of the largest expected magnitude by which a value may differ."""

    seed: int
    tolerance: int
    outputs: Mapping[str, Expected]


def question(inputs: Sequence[TensorSpec], seed: int) -> dict[str, Array]:
    """The fixed input: floats in [0, 1), small non-negative integers, booleans; a free dimension is 1.

    :raises InvalidInput: ``model-too-large``, or ``engine-datatype`` for text.
    """
    bits = np.random.PCG64(seed)
    result: dict[str, Array] = {}
    for spec in inputs:
        shape = tuple(_FREE if dim < 0 else dim for dim in spec.shape)
        count = int(np.prod(shape, dtype=np.float64))
        if count > MAX_ELEMENTS:
            raise InvalidInput("model-too-large", f"an input of the model has more than {MAX_ELEMENTS} elements")
        words = bits.random_raw((count + 1) // 2).view(np.uint32)[:count]
        result[spec.name] = _values(words, spec.datatype).reshape(shape)
    return result


def _values(words: npt.NDArray[np.uint32], datatype: str) -> Array:
    if datatype == "BYTES":
        return np.array([str(int(word) % 10).encode() for word in words.tolist()], dtype=object)
    if datatype == "BF16":  # the upper half of a float32
        unit = (words >> 8).astype(np.float32) * np.float32(2.0**-24)
        return (unit.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    dtype: np.dtype[Any] = DTYPES[datatype]
    if dtype.kind == "f":
        return ((words >> 8).astype(np.float64) * 2.0**-24).astype(dtype)
    return (words & 1).astype(dtype)  # indices into anything stay in range


def record(session: Session, *, seed: int, tolerance: int) -> KnownAnswer:
    """Ask ``session`` and keep what it says."""
    answers = session.run(question(session.inputs, seed))
    outputs = {
        spec.name: Expected(answers[spec.name].shape, _sample(answers[spec.name], spec.datatype).tobytes())
        for spec in session.outputs
        if spec.datatype != "BYTES"
    }
    return KnownAnswer(seed, tolerance, outputs)


def deviation(session: Session, known: KnownAnswer) -> int:
    """How far the session's answer is from the known one: parts per million of each output's largest magnitude,
    the largest over outputs, rounded up; -1 where shape, a non-finite value or an integer differs."""
    answers = session.run(question(session.inputs, known.seed))
    types = {spec.name: spec.datatype for spec in session.outputs}
    worst = 0.0
    for name, expected in known.outputs.items():
        answer = answers.get(name)
        if answer is None or answer.shape != expected.shape:
            return -1
        got: npt.NDArray[Any] = _sample(answer, types[name])
        want: npt.NDArray[Any] = np.frombuffer(expected.values, got.dtype)
        if got.shape != want.shape:
            return -1
        if got.dtype.kind != "f":
            if not np.array_equal(got, want):
                return -1
            continue
        finite = np.isfinite(want)
        if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
            return -1
        if finite.any():
            scale = float(np.abs(want[finite]).max()) or 1.0
            worst = max(worst, float(np.abs(got[finite] - want[finite]).max()) / scale)
    return int(np.ceil(worst * 1e6))


def confirm(session: Session, known: KnownAnswer) -> None:
    """Compare.

    :raises Unavailable: ``engine-known-answer``: this machine computes something else than the packing machine did.
    """
    try:
        found = deviation(session, known)
    except CloisterError:
        found = -1
    if not 0 <= found <= known.tolerance:
        raise Unavailable(
            "engine-known-answer",
            "the loaded model does not give the answer that was recorded when it was packed",
            hint="Pack it again on a machine of this kind.",
        )


def _sample(answer: Array, datatype: str) -> Array:
    flat = np.ascontiguousarray(answer).reshape(-1)
    if flat.size > MAX_VALUES:
        flat = flat[np.linspace(0, flat.size - 1, MAX_VALUES).astype(np.int64)]
    if datatype == "BF16":
        return (flat.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return flat.astype(np.float32) if flat.dtype == np.float16 else flat
