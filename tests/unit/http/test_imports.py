"""What importing costs: a cold start waits for every module."""

from __future__ import annotations

import subprocess
import sys

HEAVY = frozenset({
    "asyncio", "ssl", "http.client", "email", "numpy", "httpx", "rich", "onnx", "onnxruntime", "importlib.metadata",
})  # fmt: skip


def loaded(statement: str) -> frozenset[str]:
    """Modules in a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return frozenset(done.stdout.split())


def test_the_blocking_client_knows_neither_an_event_loop_nor_tls() -> None:
    modules = loaded("import cloister.adapters.http.blocking")
    assert "cloister.adapters.http.blocking" in modules
    assert not modules & HEAVY


def test_the_package_itself_imports_next_to_nothing() -> None:
    assert not loaded("import cloister.adapters.http.content") & {*HEAVY, "httptools", "json"}
