"""What the gateway's hop costs: the same sealed request straight to an instance and through the gateway, in turn.

    python benchmarks/gateway.py [--rounds N] [--json]

Three processes: this client, `cloister gateway`, and one stand-in for a runtime (``cloister.testing.instance``), which
reads the body, hashes it and answers. Gateway to instance over a Unix socket, client to gateway over TCP and over a
Unix socket; straight calls use the instance's socket. Medians of interleaved calls, and throughput of 16 callers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from cloister.adapters.http.client import AsyncHttpClient
from cloister.testing.gateway import MODEL, sealed, toml

SIZES = {"4 KB": 4096, "602 KB": 602_112}
CALLERS = 16


async def timed(client: AsyncHttpClient, address: str, content: bytes) -> float:
    began = time.perf_counter()
    answer = await client.request("POST", address, f"/v1/models/{MODEL}/infer", content=content)
    took = time.perf_counter() - began
    assert answer.status == 200, answer.body
    return took


async def throughput(client: AsyncHttpClient, address: str, content: bytes, seconds: float) -> float:
    end = time.perf_counter() + seconds
    count = 0

    async def caller() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await timed(client, address, content)
            count += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return count / seconds


def processor_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(gateway: str, instance: str, rounds: int, pid: int) -> dict[str, object]:
    client = AsyncHttpClient()
    results: dict[str, object] = {}
    try:
        for name, size in SIZES.items():
            content = sealed(size=size)
            for _ in range(50):
                await timed(client, gateway, content)
                await timed(client, instance, content)
            direct, through = [], []
            before = processor_s(pid)
            for _ in range(rounds):
                direct.append(await timed(client, instance, content))
                through.append(await timed(client, gateway, content))
            processor = (processor_s(pid) - before) / rounds
            hop = [b - a for a, b in zip(direct, through, strict=True)]
            rates = {"direct": [], "gateway": []}
            for _ in range(3):
                rates["direct"].append(await throughput(client, instance, content, 1.0))
                rates["gateway"].append(await throughput(client, gateway, content, 1.0))
            results[name] = {
                "direct_us": round(1e6 * statistics.median(direct)),
                "gateway_us": round(1e6 * statistics.median(through)),
                "hop_us": round(1e6 * statistics.median(hop)),
                "gateway_processor_us": round(1e6 * processor),
                "hop_p95_us": round(1e6 * sorted(hop)[int(len(hop) * 0.95)]),
                "direct_per_s": round(statistics.median(rates["direct"])),
                "gateway_per_s": round(statistics.median(rates["gateway"])),
            }
    finally:
        await client.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        command = [sys.executable, "-m", "cloister.testing.instance", "--concurrency", "64"]
        configuration = state / "gateway.toml"
        configuration.write_text(toml(command=command, pool="max_instances = 1\nconcurrency = 64"))
        for kind, listen in (("tcp", "127.0.0.1:0"), ("unix", f"unix:{state / 'g'}")):
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "cloister", "gateway"),
                    *("--config", configuration, "--state", state, "--listen", listen),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            try:
                assert process.stdout is not None
                gateway = process.stdout.readline().decode().split()[-1]
                asyncio.run(first(gateway))
                instance = json.loads(next((state / "instances").glob("*.json")).read_text())["socket"]
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    results[kind] = runner.run(measure(gateway, f"unix:{instance}", options.rounds, process.pid))
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait()
                process.stdout.close()
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for kind, sizes in results.items():
        for size, figures in sizes.items():
            print(f"{kind:5} {size:7} " + "  ".join(f"{name} {value}" for name, value in figures.items()))


async def first(gateway: str) -> None:
    client = AsyncHttpClient()
    try:
        await timed(client, gateway, sealed())
    finally:
        await client.close()


if __name__ == "__main__":
    main()
