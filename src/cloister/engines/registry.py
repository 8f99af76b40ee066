"""Engines by name, imported when first asked for: a runtime that serves ONNX never loads LiteRT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from cloister.base.errors import InvalidInput
from cloister.engines.port import Engine


def _onnx() -> Engine:
    from cloister.engines.onnx import OnnxEngine

    return OnnxEngine()


def _litert() -> Engine:
    from cloister.engines.litert import LiteRtEngine

    return LiteRtEngine()


ENGINES: Final[Mapping[str, Callable[[], Engine]]] = {"onnx": _onnx, "litert": _litert}


def engine(name: str) -> Engine:
    """:raises InvalidInput: ``engine-unknown``. That its library is missing shows at :meth:`Engine.load`."""
    make = ENGINES.get(name)
    if make is None:
        raise InvalidInput("engine-unknown", f"no engine is called {name[:64]!r}", hint="Known: " + ", ".join(ENGINES))
    return make()
