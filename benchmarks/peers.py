"""Cloister, encrypted, beside today's Python model servers in plaintext: same model, one worker each, loopback.

    python benchmarks/peers.py [--rounds 10] [--clients 16] [--peer fastapi ...] [--json] [--plot FILE.svg]

Servers are installed by uv into environments of their own under `.venv-peers`, pinned in PEERS. Each serves MobileNetV1
from the same ONNX file with one engine thread an inference, and takes 602,112 bytes of tensor by its cheapest binary
path. In a round each contestant, right after the raw engine, answers one client, then many; medians of rounds and of
per-round ratios to the raw engine are reported. Processor time is that of all processes of a server over the requests
of one client, less the engine's own: it says more than the clock on a machine with other work. The client reads and
writes bare sockets and does nothing else; Cloister's requests are sealed before the clock starts, as the peers'
bodies are encoded before.

Not measured: TLS, which the peers would need to come near what is compared; JSON, which is slower everywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import runtime

HERE = Path(__file__).parent
UV = Path(sys.executable).with_name("uv")  # `make setup` put it there
ENVIRONMENTS = HERE.parent / ".venv-peers"
ENGINE = ("onnxruntime==1.31.0", "numpy==2.4.6")
PEERS = {
    "fastapi": ("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
    "litserve": ("litserve==0.2.19", "python-multipart==0.0.20"),
    "bentoml": ("bentoml==1.4.40",),
    "mlserver": ("mlserver==1.7.1",),
    "kserve": ("kserve==0.21.0",),
}
OURS = "cloister, encrypted"


@dataclass
class Contestant:
    """One server, and whole requests for it.

    :param pid: of its first process. :param requests: makes that many, ready to send.
    """

    name: str
    port: int
    pid: int
    requests: Callable[[int], list[bytes]]
    added_ms: list[float] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def latency(self, count: int) -> float:
        """Median seconds of requests one after the other."""
        scratch, spent = bytearray(1 << 20), []
        with self._connect() as sock:
            for data in self.requests(count):
                begun = time.perf_counter()
                runtime.Client.exchange(sock, data, scratch)
                spent.append(time.perf_counter() - begun)
        return statistics.median(spent)

    def throughput(self, clients: int, each: int) -> float:
        """Requests a second."""
        work = [self.requests(each) for _ in range(clients)]
        barrier = threading.Barrier(clients + 1)

        def run(requests: list[bytes]) -> None:
            scratch = bytearray(1 << 20)
            with self._connect() as sock:
                barrier.wait()
                for data in requests:
                    runtime.Client.exchange(sock, data, scratch)

        threads = [threading.Thread(target=run, args=(item,)) for item in work]
        for thread in threads:
            thread.start()
        barrier.wait()
        begun = time.perf_counter()
        for thread in threads:
            thread.join()
        return clients * each / (time.perf_counter() - begun)

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


def request(path: str, body: bytes, headers: str = "content-type: application/octet-stream\r\n") -> bytes:
    """One HTTP request."""
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body


def body_for(peer: str, image: np.ndarray) -> bytes:
    """The cheapest binary request that a peer takes."""
    raw = image.tobytes()
    if peer == "litserve":
        part = 'content-disposition: form-data; name="image"; filename="image"\r\n\r\n'
        form = f"--x\r\n{part}".encode() + raw + b"\r\n--x--\r\n"
        return request("/infer", form, "content-type: multipart/form-data; boundary=x\r\n")
    if peer != "kserve":
        return request("/infer", raw)
    described = {
        "inputs": [
            {
                "name": "input",
                "shape": list(image.shape),
                "datatype": "FP32",
                "parameters": {"binary_data_size": len(raw)},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(described).encode()
    fields = f"content-type: application/octet-stream\r\ninference-header-content-length: {len(head)}\r\n"
    return request("/v2/models/vision/infer", head + raw, fields)


def free_port() -> int:
    """The first of three that are free, most likely."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def installed(peer: str) -> Path:
    """The Python of a peer's environment, made when it is not there."""
    folder = ENVIRONMENTS / peer
    if not (folder / "installed").exists():
        subprocess.run([UV, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run(
            [UV, "pip", "install", "--quiet", "--python", folder / "bin/python", *PEERS[peer], *ENGINE], check=True
        )
        (folder / "installed").touch()
    return folder / "bin" / "python"


@contextmanager
def running(peer: str, model: Path, image: np.ndarray) -> Iterator[Contestant]:
    """A peer's server, answering."""
    python, port, body = installed(peer), free_port(), body_for(peer, image)
    command = [str(python), str(HERE / "peer_servers" / f"{peer}_server.py")]
    if peer == "bentoml":
        command = [str(python), "-m", "bentoml", "serve", "bentoml_server:Vision", "--port", str(port)]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "MODEL": str(model),
        "PORT": str(port),
        "DO_NOT_TRACK": "true",
        "BENTOML_DO_NOT_TRACK": "true",
        "LITSERVE_DISABLE_TELEMETRY": "1",
    }
    with (model.parent / f"{peer}.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=HERE / "peer_servers", env=environment, stdout=log, stderr=log, start_new_session=True
        )
    # Copies: sealed requests differ, so ours cannot come from the processor's cache either.
    contestant = Contestant(peer, port, server.pid, lambda count: [bytes(bytearray(body)) for _ in range(count)])
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                contestant.latency(1)
                break
            except (OSError, AssertionError, IndexError):
                if time.monotonic() > deadline or server.poll() is not None:
                    sys.exit(f"{peer} does not answer:\n" + (model.parent / f"{peer}.log").read_text()[-2000:])
                time.sleep(0.2)
        yield contestant
    finally:
        os.killpg(server.pid, 15)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            server.wait()


@contextmanager
def ours(concurrency: int) -> Iterator[Contestant]:
    """Our runtime, in a process of its own, with everything sealed."""
    command = [sys.executable, runtime.__file__, "--serve", "--model", "mobilenet", "--concurrency", str(concurrency)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        client = runtime.Client(json.loads(server.stdout.readline()))
        client.first()
        try:
            yield Contestant(OURS, int(client.port), server.pid, lambda count: [data for _, data in client.seal(count)])
        finally:
            server.stdin.close()


def cpu_s(root: int) -> float:
    """Processor time of a process and all that descend from it, so far."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended
        pid = int(stat.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")


def spread(values: list[float]) -> dict[str, float]:
    """Median, and the middle half."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": round(middle, 3), "quartile_1": round(low, 3), "quartile_3": round(high, 3)}


COLUMNS = (
    ("added_ms", "added latency, 1 client, ms"),
    ("cpu_ms", "added processor time, ms"),
    ("throughput", "throughput, {clients} clients / raw engine"),
)


def table(rows: list[dict[str, object]], clients: int) -> str:
    """For people, and for benchmarks/README.md."""
    names = [title.format(clients=clients) for _, title in COLUMNS]
    lines = ["| server | " + " | ".join(names) + " |", "| --- |" + " --: |" * len(names)]
    for row in rows:
        cells = []
        for key, _ in COLUMNS:
            value = row[key]
            assert isinstance(value, dict)
            cells.append(f"{value['median']:.2f} ({value['quartile_1']:.2f} to {value['quartile_3']:.2f})")
        lines.append(f"| {row['server']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict[str, object]], clients: int, where: Path) -> None:
    """Two bars for each server."""
    import matplotlib as mpl

    mpl.use("svg" if where.suffix == ".svg" else "agg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "cloister"
    figure, panels = plt.subplots(1, len(COLUMNS), figsize=(12, 0.5 * len(rows) + 1.2), sharey=True)
    names = [str(row["server"]) for row in rows]
    colours = ["#1b7f5c" if name == OURS else "#9aa5b1" for name in names]
    for axes, (key, title) in zip(panels, COLUMNS, strict=True):
        values = [row[key]["median"] for row in rows]  # type: ignore[index]
        bars = axes.barh(names, values, color=colours)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
        axes.set_title(title.format(clients=clients), fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.18)
    panels[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(where, metadata={"Date": None} if where.suffix == ".svg" else None)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--each", type=int, default=40, help="requests a round at one client")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--peer", action="append", choices=sorted(PEERS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    image = np.random.default_rng(1).random(runtime.INPUT, dtype=np.float32)
    concurrency = os.cpu_count() or 1
    raw_latency, raw_throughput = runtime.raw_engine(runtime.build("mobilenet"))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = Path(folder) / "mobilenet.onnx"
        model.write_bytes(runtime.build("mobilenet"))
        contestants = [stack.enter_context(ours(concurrency))]
        contestants += [stack.enter_context(running(peer, model, image)) for peer in args.peer or PEERS]
        for contestant in contestants:
            contestant.latency(10)
        raw_latency(10)
        for number in range(args.rounds):
            for contestant in contestants:
                used = time.process_time()
                raw = statistics.median(raw_latency(args.each))
                engine_ms = 1e3 * (time.process_time() - used) / args.each
                most = raw_throughput(concurrency, args.each)
                used = cpu_s(contestant.pid)
                seconds = contestant.latency(args.each)
                contestant.cpu_ms.append(1e3 * (cpu_s(contestant.pid) - used) / args.each - engine_ms)
                contestant.p50_ms.append(1e3 * seconds)
                contestant.added_ms.append(1e3 * (seconds - raw))
                contestant.ratio.append(contestant.throughput(args.clients, max(4, args.each // 4)) / most)
            print(f"\rround {number + 1} of {args.rounds}", end="", file=sys.stderr, flush=True)
            contestants.append(contestants.pop(0))
        print(file=sys.stderr)
        contestants.sort(key=lambda one: statistics.median(one.added_ms))
        rows: list[dict[str, object]] = [
            {
                "server": one.name,
                "p50_ms": spread(one.p50_ms),
                "added_ms": spread(one.added_ms),
                "cpu_ms": spread(one.cpu_ms),
                "throughput": spread(one.ratio),
            }
            for one in contestants
        ]
    print(json.dumps(rows) if args.json else table(rows, args.clients))
    if args.plot:
        plot(rows, args.clients, args.plot)


if __name__ == "__main__":
    main()
