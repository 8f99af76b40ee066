"""The object stores' client is optional: measured where it is, loaded by those who have such a store, quiet before."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cloister.adapters.tee.simulation import TRUSTED_DISTRIBUTIONS
from cloister.testing.syscalls import SUPPORTED

ROOT = Path(__file__).parents[3]
ALWAYS = {"cryptography", "cbor2", "dcap-qvl", "httptools", "uvloop", "numpy", "onnxruntime"}
OPTIONAL = {
    "ai-edge-litert": "litert",  # models of that engine
    "obstore": "objectstores",  # models in S3, Google Cloud Storage, Azure
    "pycryptodome": "custodians",  # shares of the KeyService's root
    "pg8000": "postgres",  # records of the KeyService in PostgreSQL
}
MODULES = {"cloister", "cryptography", "cbor2", "dcap_qvl", "httptools", "uvloop", "numpy", "onnxruntime"}

LOAD = """
import importlib.metadata, json, sys
from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.modelstore.opened import open_store
from cloister.adapters.modelstore.patience import Patience
import cloister.adapters.process, cloister.cli.runtime, cloister.runtime.app, uvloop
import cloister.engines.onnx
open_store(sys.argv[1], HttpClient(SystemClock()), Patience(SystemClock()))
owners = importlib.metadata.packages_distributions()
names = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(name for name in names if name in owners and not name.startswith("_"))))
"""

QUIET = """
import os
from cloister.adapters.clock import SystemClock
from cloister.adapters.modelstore.opened import open_for_publishing
from cloister.adapters.modelstore.patience import Patience
from cloister.testing.syscalls import forbid_sockets_and_written_files
import obstore
forbid_sockets_and_written_files()
open_for_publishing("s3://bucket/prefix?region=eu-central-1&anonymous=true", Patience(SystemClock()))
open_for_publishing("gs://bucket/prefix?anonymous=true", Patience(SystemClock()))
open_for_publishing("az://bucket/prefix?account=somebody&anonymous=true", Patience(SystemClock()))
print(len(os.listdir("/proc/self/task")), flush=True)
os._exit(0)
"""


def loaded(store: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", LOAD, store], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_what_is_measured_is_what_is_required_or_optional() -> None:
    assert set(TRUSTED_DISTRIBUTIONS) == ALWAYS | set(OPTIONAL)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[<>=~!;\[ ]", requirement)[0] for requirement in requirements}

    assert names(project["dependencies"]) >= ALWAYS
    assert not names(project["dependencies"]) & set(OPTIONAL)
    for package, extra in OPTIONAL.items():
        assert names(project["optional-dependencies"][extra]) == {package}


def test_a_runtime_loads_nothing_else() -> None:
    for store in (".", "https://models.example/store"):
        assert loaded(store) <= MODULES, "object stores are loaded by those who have one"


def test_object_stores_bring_one_package() -> None:
    assert loaded("s3://bucket/prefix?region=eu-central-1&anonymous=true") - MODULES == {"obstore"}


@pytest.mark.skipif(not SUPPORTED, reason="seccomp filters are written for Linux on x86-64")
def test_opening_a_store_starts_nothing_and_speaks_to_nobody() -> None:
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
