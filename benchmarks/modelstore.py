"""Fetching a large model's ciphertext: from a directory, over HTTP with our own client, from S3 through obstore.

    python benchmarks/modelstore.py [--mib 170] [--rounds 5] [--delay-ms 30] [--json]

What a runtime does ahead of a model's keys: chunks of 1 MiB read by several threads into one buffer and hashed. Each
round is a process of its own, so that its peak of memory is its own; contestants are interleaved, medians reported.
HTTP and S3 read the same bytes from the same server, a process with everything in memory. Not measured: TLS, a real
object store, whose latency --delay-ms stands for.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.modelstore.directory import DirectoryStore
from cloister.adapters.modelstore.opened import open_store
from cloister.adapters.modelstore.patience import Patience
from cloister.adapters.modelstore.port import Place
from cloister.base.ids import ModelId

PLACE = Place(ModelId(b"o" * 32, "large"), b"d" * 32)
NAME = "weights.bin"
CHUNK, TAG = 1 << 20, 16


def content(mib: int) -> bytes:
    """Stored chunks of a file of so many MiB."""
    piece = os.urandom(CHUNK + TAG)
    return piece * mib


def serve(mib: int, delay_ms: float) -> None:
    """Until standard input ends."""
    from cloister.testing.object_server import ObjectServer

    with ObjectServer("bucket", public=True, delay_s=delay_ms / 1000) as server:
        server.objects[f"/bucket/models/{PLACE.path(NAME)}"] = content(mib)
        print(server.address, flush=True)
        sys.stdin.read()


def fetch(where: str, mib: int, parallel: int) -> dict[str, float]:
    """One fetch, as ``runtime.ahead`` does it."""
    from concurrent.futures import ThreadPoolExecutor

    from cloister.engines.buffers import BufferPool
    from cloister.runtime.chunks import IncomingFile, Reading
    from cloister.wire.manifest import FileEntry

    store = open_store(where, HttpClient(SystemClock()), Patience(SystemClock()))
    entry = FileEntry(NAME, mib * CHUNK, b"")
    file = IncomingFile(entry, BufferPool(1 << 32).take(entry.size))
    resident = _status("VmRSS")
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    threads = parallel or store.parallel
    with ThreadPoolExecutor(threads) as readers:
        work = Reading(store, PLACE, [file])
        for _ in range(threads):
            readers.submit(work.run)
    elapsed = time.perf_counter() - started
    if work.failed is not None:
        raise work.failed
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": elapsed,
        "processor_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mib_beside_the_model": _status("VmHWM") - resident - mib,
        "threads": threads,
    }


def _status(name: str) -> float:
    """Of this process, in MiB; getrusage would count what its parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=170)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delay-ms", type=float, default=30.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--fetch", help=argparse.SUPPRESS)
    parser.add_argument("--parallel", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args.mib, args.serve)
        return
    if args.fetch:
        print(json.dumps(fetch(args.fetch, args.mib, args.parallel)))
        return
    results: dict[str, list[dict[str, float]]] = {}
    own = [sys.executable, __file__, "--mib", str(args.mib)]
    with tempfile.TemporaryDirectory() as folder:
        data = content(args.mib)
        DirectoryStore(Path(folder)).write(PLACE, NAME, [data])
        del data
        servers = [
            subprocess.Popen([*own, "--serve", str(delay)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for delay in (0.0, args.delay_ms)
        ]
        near, far = (server.stdout.readline().strip() for server in servers if server.stdout)
        environment = {**os.environ, "AWS_ACCESS_KEY_ID": "a-key-of-nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
        contestants: list[tuple[str, str, int]] = [("directory", folder, 0)]
        for label, address in (("", near), (f", {args.delay_ms:g} ms away", far)):
            for parallel in (0,) if not label else (4, 8, 16):
                width = f", {parallel} at once" if parallel else ""
                contestants += [
                    (f"http, our client{label}{width}", f"{address}/bucket/models", parallel),
                    (f"s3, obstore{label}{width}", f"s3://bucket/models?region=r&endpoint={address}", parallel),
                ]
        try:
            for _ in range(args.rounds):
                for name, where, parallel in contestants:
                    command = [*own, "--fetch", where, "--parallel", str(parallel)]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
                    results.setdefault(name, []).append(json.loads(done.stdout))
        finally:
            for server in servers:
                server.communicate("")
    summary: dict[str, Any] = {
        name: {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
        for name, rows in results.items()
    }
    if args.json:
        print(json.dumps(summary, indent=1))
        return
    print(f"{args.mib} MiB, medians of {args.rounds}: seconds, processor seconds, MiB beside the model, threads")
    for name, row in summary.items():
        print(f"  {name:<40} " + "  ".join(f"{value:8.3f}" for value in row.values()))


if __name__ == "__main__":
    main()
