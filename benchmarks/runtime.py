"""The runtime beside the raw engine: added latency at one client, throughput at many, cold and warm stages.

    python benchmarks/runtime.py [--model mobilenet] [--rounds 10] [--clients 16] [--json]

The server runs in a process of its own, over HTTP on loopback, with a fake KeyService in it. Requests are sealed before
the clock starts, so the client only sends and receives; contestants are interleaved, medians of rounds are reported.
Not measured: the network, the client's own cryptography, a real TEE.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.wire import bhttp, envelope, oip
from cloister.wire.envelope import OutgoingRequest

INPUT = (1, 224, 224, 3)


def tiny() -> bytes:
    """Takes the paper's input and does next to nothing: what remains is the runtime."""
    from onnx import helper, numpy_helper

    from cloister.engines.port import TensorSpec
    from cloister.testing.models.small import model_of

    return bytes(
        model_of(
            [helper.make_node("Slice", ["input", "start", "end"], ["output"])],
            [TensorSpec("input", "FP32", INPUT)],
            [TensorSpec("output", "FP32", (1, 4, 64, 3))],
            [
                numpy_helper.from_array(np.array([0, 0, 0, 0], np.int64), "start"),
                numpy_helper.from_array(np.array([1, 4, 64, 3], np.int64), "end"),
            ],
        ).SerializeToString()
    )


def build(name: str) -> bytes:
    """The ONNX bytes of a contestant."""
    if name == "tiny":
        return tiny()
    from cloister.testing.models import vision

    makers = {"mobilenet": vision.mobilenet_v1, "densenet": vision.densenet121, "resnet": vision.resnet101_v2}
    return makers[name]().onnx


# --- the server's process ---


def serve(name: str, concurrency: int) -> None:
    """Print one line of JSON with everything a client needs, then serve until stdin closes."""
    from cloister.adapters import process
    from cloister.runtime.app import Listen
    from cloister.runtime.app import serve as serve_runtime
    from cloister.testing.runtime import RuntimeBench

    process.tune_allocator()
    bench = RuntimeBench(concurrency=concurrency, memory_mb=4096)
    user = bench.user(bench.publish(name, build(name)))
    assert user.request_key is not None
    facts = {
        "model": str(user.model),
        "user": user.request.user.hex(),
        "key": user.request_key.reveal().hex(),
        "key_id": user.request.key_id.hex(),
    }

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(stopping.set)), daemon=True
        ).start()

        def announce(address: str) -> None:
            print(json.dumps({**facts, "address": address}), flush=True)

        await serve_runtime(bench.runtime, Listen(), stopping=stopping, announce=announce, init_s=lambda: 0.0)

    process.run(main())


# --- the client's ---


class Client:
    """Seals requests ahead, and sends them over one kept connection each."""

    def __init__(self, facts: dict[str, str]) -> None:
        self.host, port = facts["address"].removeprefix("http://").rsplit(":", 1)
        self.port = int(port)
        self.model = ModelId.parse(facts["model"])
        self.facts = facts
        self.input = np.random.default_rng(1).random(INPUT, dtype=np.float32)

    def message(self) -> bytes:
        """The plaintext of one inference."""
        request = oip.InferRequest((oip.tensor("input", self.input),))
        guess = 0
        while True:
            length, parts = oip.encode_request(request, offset=guess)
            size = sum(memoryview(part).nbytes for part in parts)
            path = f"/v2/models/{self.model.name}/infer"
            head = bhttp.request_head("POST", path, ((oip.HEADER_LENGTH_FIELD, str(length)),), size)
            if len(head) == guess:
                return bytes(envelope.join([head, *parts, bhttp.padding_after(len(head) + size)]))
            guess = len(head)

    def seal(self, count: int) -> list[tuple[OutgoingRequest, bytes]]:
        """Sealed HTTP requests."""
        message = self.message()
        sealed = []
        for _ in range(count):
            outgoing = envelope.new_request_with_key(
                request_key=SecretBytes(bytes.fromhex(self.facts["key"])),
                key_id=bytes.fromhex(self.facts["key_id"]),
                model=self.model,
                user=bytes.fromhex(self.facts["user"]),
                issued_at=int(time.time()),  # noqa: TID251  # a benchmark is its own adapter
            )
            body = outgoing.seal(message)
            head = f"POST /v1/models/{self.model}/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            sealed.append((outgoing, head.encode() + bytes(body)))
        return sealed

    def connect(self) -> socket.socket:
        """A connection."""
        sock = socket.create_connection((self.host, self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    @staticmethod
    def exchange(sock: socket.socket, data: bytes, scratch: bytearray) -> bytes:
        """Send one request, take its answer."""
        sock.sendall(data)
        got = sock.recv_into(scratch)
        while (end := scratch.find(b"\r\n\r\n", 0, got)) < 0:
            got += sock.recv_into(memoryview(scratch)[got:])
        head = bytes(scratch[:end])
        if not head.startswith(b"HTTP/1.1 200"):
            raise AssertionError(bytes(scratch[:got]))
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while got < end + 4 + length:
            got += sock.recv_into(memoryview(scratch)[got:])
        return bytes(scratch[end + 4 : end + 4 + length])

    def latency(self, count: int) -> list[float]:
        """Seconds of each of ``count`` requests, one after the other."""
        sealed = self.seal(count)
        scratch = bytearray(1 << 20)
        spent = []
        with self.connect() as sock:
            for _, data in sealed:
                begun = time.perf_counter()
                self.exchange(sock, data, scratch)
                spent.append(time.perf_counter() - begun)
        return spent

    def throughput(self, clients: int, each: int) -> float:
        """Requests per second."""
        work = [self.seal(each) for _ in range(clients)]
        barrier = threading.Barrier(clients + 1)

        def run(sealed: list[tuple[OutgoingRequest, bytes]]) -> None:
            scratch = bytearray(1 << 20)
            with self.connect() as sock:
                barrier.wait()
                for _, data in sealed:
                    self.exchange(sock, data, scratch)

        threads = [threading.Thread(target=run, args=(item,)) for item in work]
        for thread in threads:
            thread.start()
        barrier.wait()
        begun = time.perf_counter()
        for thread in threads:
            thread.join()
        return clients * each / (time.perf_counter() - begun)

    def first(self) -> dict[str, str]:
        """Fields of one opened answer, for its stages."""
        outgoing, data = self.seal(1)[0]
        with self.connect() as sock:
            opened = bhttp.parse_response(outgoing.open_response(self.exchange(sock, data, bytearray(1 << 20))))
        if opened.status != 200:
            raise AssertionError(bytes(opened.content))
        return dict(opened.fields)


def raw_engine(model: bytes) -> tuple[Callable[[int], list[float]], Callable[[int, int], float]]:
    """Latencies and throughput of the engine alone."""
    from cloister.engines.optimise import pack_onnx

    packed = pack_onnx(model)
    variant = packed.package.variants[0]
    session = packed.package.load(variant, {name: packed.files[name] for name in variant.files})
    x = np.random.default_rng(1).random(INPUT, dtype=np.float32)
    name = packed.package.inputs[0].name

    def latency(count: int) -> list[float]:
        spent = []
        for _ in range(count):
            begun = time.perf_counter()
            session.run({name: x})
            spent.append(time.perf_counter() - begun)
        return spent

    def throughput(threads: int, each: int) -> float:
        workers = [threading.Thread(target=latency, args=(each,)) for _ in range(threads)]
        begun = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return threads * each / (time.perf_counter() - begun)

    return latency, throughput


def measure(name: str, *, rounds: int, clients: int, each: int, concurrency: int) -> dict[str, Any]:
    """All figures of one model."""
    raw_latency, raw_throughput = raw_engine(build(name))
    command = [sys.executable, __file__, "--serve", "--model", name, "--concurrency", str(concurrency)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        client = Client(json.loads(server.stdout.readline()))
        first = client.first()["server-timing"]
        hot = client.first()["server-timing"]
        client.latency(each)
        raw_latency(each)
        added, ours_p50, raw_p50, ratios, cpu, raw_cpu = [], [], [], [], [], []
        for _ in range(rounds):
            before = _cpu_s(server.pid)
            ours = statistics.median(client.latency(each))
            cpu.append((_cpu_s(server.pid) - before) / each * 1e3)
            before = time.process_time()
            raw = statistics.median(raw_latency(each))
            raw_cpu.append((time.process_time() - before) / each * 1e3)
            added.append((ours - raw) * 1e3)
            ours_p50.append(ours * 1e3)
            raw_p50.append(raw * 1e3)
            if clients:
                ratios.append(client.throughput(clients, max(4, each // 4)) / raw_throughput(concurrency, each))
        return {
            "model": name,
            "first request": first,
            "hot request": hot,
            "p50 ms": _spread(ours_p50),
            "raw engine p50 ms": _spread(raw_p50),
            "added ms": _spread(added),
            "processor ms a request": _spread(cpu),
            "raw engine, processor ms": _spread(raw_cpu),
            f"throughput at {clients} clients / raw engine": _spread(ratios) if ratios else None,
        }
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(30)
        if server.stdout is not None:
            server.stdout.close()


def _cpu_s(pid: int) -> float:
    """Processor time of a process: says more than the clock on a machine that others use too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=["tiny", "mobilenet", "densenet", "resnet"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--each", type=int, default=60, help="requests a round and client")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.model or ["tiny", "mobilenet"]
    if args.serve:
        serve(names[0], args.concurrency)
        return
    for name in names:
        found = measure(name, rounds=args.rounds, clients=args.clients, each=args.each, concurrency=args.concurrency)
        print(json.dumps(found, indent=None if args.json else 2), flush=True)


if __name__ == "__main__":
    main()
