"""What the KeyService loads, and what it touches while it runs: the trusted base grows only on purpose."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cloister.testing.syscalls import SUPPORTED

ALLOWED = {"cloister", "cryptography", "cbor2", "dcap_qvl", "httptools", "uvloop"}

LOAD = """
import importlib.metadata, json, sys
import cloister.keyservice.app, cloister.adapters.process, cloister.cli.keyservice, uvloop
from cloister.testing.embedded import EmbeddedKeyService
before = set(sys.modules)
owners = importlib.metadata.packages_distributions()
names = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(name for name in names if name in owners and not name.startswith("_"))))
"""

QUIET = """
import tempfile
from pathlib import Path
from cloister.adapters.clock import SystemClock
from cloister.base.secret import SecretBytes
from cloister.keyservice.offline import begin
from cloister.keyservice.root import root_of
from cloister.keyservice.storage.sqlite import SqliteRows
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.syscalls import forbid_sockets_and_written_files
from cloister.wire.statements import DefinePolicy, PublishModel, key_commitment

with tempfile.TemporaryDirectory() as folder:
    path, clock, key = Path(folder) / "store.sqlite", SystemClock(), SecretBytes(b"k" * 32)
    first = EmbeddedKeyService(clock=clock)
    first.close()
    begin(SqliteRows(path), root_of(SecretBytes(b"r" * 32)), first.settings, clock).close()
    ks = EmbeddedKeyService(clock=clock, rows=SqliteRows(path), runtime_tee=first.runtime_tee)
    ks.person()  # the first write opens the write-ahead log
    forbid_sockets_and_written_files()
    owner = ks.person()
    ks.say(owner.statement(DefinePolicy(ks.runtime_tee.policy().encode())))
    for version in range(1, 400):
        secret = SecretBytes(version.to_bytes(32, "big"))
        name = key_commitment(secret)
        ks.say(owner.statement(PublishModel("model", version, name, name)), secret)
    ks.attest()
    ks.ask(owner, "models")
    ks.service.maintain()
    print("quiet", flush=True)
    import os
    os._exit(0)  # removing the folder would be a change of files
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)


def test_only_the_trusted_base_is_loaded() -> None:
    done = run(LOAD)
    assert done.returncode == 0, done.stderr
    third_party = set(json.loads(done.stdout))
    assert third_party <= ALLOWED, third_party - ALLOWED


@pytest.mark.skipif(not SUPPORTED, reason="seccomp filters are written for Linux on x86-64")
def test_it_opens_no_socket_and_writes_no_file_but_its_own() -> None:
    done = run(QUIET)
    assert (done.returncode, done.stdout) == (0, "quiet\n"), done.stderr
