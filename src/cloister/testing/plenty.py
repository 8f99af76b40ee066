"""Limits that nobody meets, for tests and benchmarks of something else."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Final

from cloister.keyservice.limiting.rates import Rate, Rates

_PLENTY: Final = Rate(1e6, 10**9)
PLENTY: Final = Rates(**{item.name: _PLENTY for item in fields(Rates)})


def plenty_of_everything(folder: Path) -> Path:
    """A file for ``cloister keyservice run --limits``."""
    path = folder / "limits.toml"
    text = "".join(f"[{item.name}]\nper_s = {_PLENTY.per_s}\nburst = {_PLENTY.burst}\n" for item in fields(Rates))
    path.write_text(text, encoding="ascii")
    return path
