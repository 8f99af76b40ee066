"""How hard the platform presses on memory, where the system tells (FIELD-NOTES: S3ML's signal)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_PSI: Final = re.compile(r"^some avg10=([0-9.]+)", re.MULTILINE)
_FAULTS: Final = re.compile(r"^pgmajfault ([0-9]+)", re.MULTILINE)
_MAX: Final = 64 * 1024


def read_pressure(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> dict[str, float]:
    """What can be read: ``memory_some_avg10`` (percent of time stalled), ``major_faults``, ``sgx_epc`` (bytes)."""
    found: dict[str, float] = {}
    if match := _PSI.search(_read(proc / "pressure" / "memory")):
        found["memory_some_avg10"] = float(match[1])
    if match := _FAULTS.search(_read(proc / "vmstat")):
        found["major_faults"] = float(match[1])
    for line in _read(cgroup / "misc.current").splitlines():
        name, _, value = line.partition(" ")
        if name == "sgx_epc" and value.isdigit():
            found["sgx_epc"] = float(value)
    return found


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX).decode("ascii", "replace")
    except OSError:
        return ""
