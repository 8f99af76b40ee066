"""The trusted base is a list: every third-party package that KeyService and Runtime can reach grows it on purpose only.

Imports within functions count, so what is loaded lazily is here too. ``tests/integration/keyservice`` and
``tests/integration/engines`` show what running processes load and touch.
"""

from __future__ import annotations

import sys

import grimp
import pytest

BOTH = {"cryptography", "cbor2", "dcap_qvl", "httptools", "uvloop"}
STORES = {"obstore"}  # optional, and loaded only where models lie in an object store (docs/adr/0011)
DATABASE = {"pg8000"}  # optional, and loaded only where records lie in PostgreSQL (docs/adr/0015)
VENDORS = {"httpx"}  # loaded only where collateral is fetched from a vendor or a cache of theirs
SHARING = {"Crypto"}  # PyCryptodome, optional, and loaded only where there are custodians (docs/adr/0017)
REACHED = {
    "keyservice": BOTH | VENDORS | DATABASE | SHARING,
    "runtime": BOTH | VENDORS | STORES | {"numpy", "onnxruntime", "ai_edge_litert"},
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    # Without its cache, which goes by times of files and misses a change within the second.
    return grimp.build_graph("cloister", include_external_packages=True, cache_dir=None)


@pytest.mark.parametrize("service", REACHED)
def test_nothing_else_is_reached(graph: grimp.ImportGraph, service: str) -> None:
    found: set[str] = set()
    waiting = [f"cloister.{service}.app", f"cloister.cli.{service}"]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        if module.startswith("cloister."):
            waiting += graph.find_modules_directly_imported_by(module)
            waiting.append(module.rpartition(".")[0])
    packages = {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names) - {"cloister"}
    assert packages == REACHED[service]
