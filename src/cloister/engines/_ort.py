"""The only place that imports ONNX Runtime, with its telemetry off.

The Linux wheels from 1.29 on start a thread that sends graph names, operator sets and error strings of the *decrypted*
model to the vendor, and writes a database under the user's cache folder. ``ORT_DISABLE_TELEMETRY=1`` is read when the
library is loaded; ``disable_telemetry_events()`` is too late. A process that imported it otherwise must not serve.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, Final

from cloister.base.errors import Unavailable
from cloister.base.limits import MIB

_SWITCH: Final = "ORT_DISABLE_TELEMETRY"
# Would let a model file choose its own session options (profiling writes files): never, whatever the environment says.
_MODEL_CONFIG: Final = "ORT_LOAD_CONFIG_FROM_MODEL"
_FATAL: Final = 4
WORKING_MEMORY: Final = 4096 * MIB

_lock = threading.Lock()
_arena: list[int] = []  # the cap of this process's arena, once there is one: ONNX Runtime can have only one
_bound: list[int] = [WORKING_MEMORY]


def bound_working_memory(limit: int) -> int:
    """Say how many bytes the arena may have, before the first model is loaded; imports nothing.

    :returns: what holds: another limit when there is an arena already, for a process has only one.
    """
    with _lock:
        if not _arena:
            _bound[0] = limit
        return _arena[0] if _arena else limit


def arena() -> Any:
    """:func:`runtime`, with one arena for the working memory of all sessions of this process.

    A graph can ask for any amount of memory by computing a shape; past the bound (:func:`bound_working_memory`) its
    request fails instead of the process. Weights do not count.

    :raises Unavailable: as :func:`runtime`.
    """
    ort = runtime()
    with _lock:
        if not _arena:
            limit = _bound[0]
            where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            bounds = {"max_mem": limit, "arena_extend_strategy": 0}
            default = {"initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
            ort.create_and_register_allocator(where, ort.OrtArenaCfg({**bounds, **default}))
            _arena.append(limit)
    return ort


def runtime() -> Any:
    """The ``onnxruntime`` module, imported with telemetry off.

    :raises Unavailable: ``engine-unsafe`` when it was imported before with telemetry on, ``engine-missing`` when it
        is not installed.
    """
    if "onnxruntime" in sys.modules and os.environ.get(_SWITCH) != "1":
        raise Unavailable(
            "engine-unsafe",
            "ONNX Runtime was imported with its telemetry on",
            hint=f"Set {_SWITCH}=1 in the environment, or let Cloister import it first.",
        )
    os.environ[_SWITCH] = "1"
    os.environ.pop(_MODEL_CONFIG, None)
    try:
        import onnxruntime
    except ImportError as error:
        raise Unavailable("engine-missing", "ONNX Runtime is not installed") from error
    # Its log lines name nodes and shapes of decrypted models.
    onnxruntime.set_default_logger_severity(_FATAL)
    return onnxruntime
