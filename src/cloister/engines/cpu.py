"""What of a processor decides whether a tuned graph fits: instruction sets, and the block size of ONNX Runtime's
NCHWc layout (mlas: 16 floats with AVX-512, 8 with AVX)."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FEATURES: Final = frozenset(
    (
        *("avx", "avx2", "fma", "f16c", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"),
        *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
        *("asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve"),
    )
)
_LINE_NAMES: Final = ("flags", "Features")
_MAX_LINE: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Cpu:
    """An architecture and those of its instruction sets that an engine's kernels ask for."""

    architecture: str
    features: frozenset[str]

    @property
    def block(self) -> int:
        """Channels in a block of the NCHWc layout; 0 where there is none, or it is not known."""
        if self.architecture != "x86_64":
            return 0
        return 16 if "avx512f" in self.features else 8 if "avx" in self.features else 0

    def runs(self, tuned_for: Cpu) -> bool:
        """Whether a graph tuned for ``tuned_for`` computes the same here: same layout, no instruction set missing.

        A wrong yes would be caught by the known answer, a wrong no costs time only.
        """
        return (
            self.architecture == tuned_for.architecture
            and self.block == tuned_for.block
            and tuned_for.features <= self.features
        )


def this_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> Cpu:
    """This machine, as the kernel describes its first processor; without features where that cannot be read."""
    features: frozenset[str] = frozenset()
    try:
        with cpuinfo.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                name, _, value = line[:_MAX_LINE].partition(":")
                if name.strip() in _LINE_NAMES:
                    features = frozenset(value.split()) & FEATURES
                    break
    except OSError:
        features = frozenset()
    return Cpu(platform.machine(), features)
