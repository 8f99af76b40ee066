"""Memory of a publisher and a reader does not grow with the model."""

from __future__ import annotations

import json
import subprocess
import sys

from cloister.testing.object_server import ObjectServer

MIB = 160
SCRIPT = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from cloister.adapters.clock import SystemClock
from cloister.adapters.modelstore.opened import open_for_publishing
from cloister.adapters.modelstore.patience import Patience
from cloister.adapters.modelstore.port import Place
from cloister.base.ids import ModelId

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

store = open_for_publishing(sys.argv[1], Patience(SystemClock()))
place, piece, count = Place(ModelId(b"o" * 32, "m"), b"d" * 32), bytes(range(256)) * 4096, int(sys.argv[2])
store.write(place, "small.bin", [piece])
start = peak()
store.write(place, "weights.bin", (piece for _ in range(count)))
written = peak()
def read(index):
    out = bytearray(len(piece))
    store.read_into(place, "weights.bin", index * len(piece), memoryview(out))
    return out == piece
with ThreadPoolExecutor(store.parallel) as pool:
    right = all(pool.map(read, range(count)))
print(json.dumps([right, written - start, peak() - written]))
"""


def test_neither_way_takes_more_than_a_few_parts() -> None:
    with ObjectServer("bucket") as server:
        command = [sys.executable, "-c", SCRIPT, f"s3://bucket/p?region=r&endpoint={server.address}", str(MIB)]
        environment = {"AWS_ACCESS_KEY_ID": "a-key-of-nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "PATH": "/usr/bin"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    right, writing, reading = json.loads(done.stdout)
    assert right
    assert writing < 60, f"{writing:.0f} MiB to write {MIB}"
    assert reading < 60, f"{reading:.0f} MiB to read {MIB}"
