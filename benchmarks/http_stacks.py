"""The HTTP stack: 602 KB in, AES-256-GCM open, seal, 4 KB out; beside what it could have been. Figures: ADR 0003.

    python benchmarks/http_stacks.py stacks  servers side by side, 1 and 8 clients, in another process on the other core
    python benchmarks/http_stacks.py clients  AsyncHttpClient, HttpClient, httpx, http.client against our server
    python benchmarks/http_stacks.py forward  what a hop through ``forward`` adds
    python benchmarks/http_stacks.py handoff  Workers against run_in_executor, empty call
    python benchmarks/http_stacks.py heads  httptools against a thin hand-written head parser

Contestants are interleaved, warmed up, and reported as medians over the rounds with their lowest and highest. On a busy
machine look at ``cpu us``: processor time of the server for one request, kernel included. uvicorn takes
part if it is there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httptools
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.forward import forward
from cloister.adapters.http.head import parse_request_head
from cloister.adapters.http.limits import HeadLimits
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.adapters.http.workers import Workers
from cloister.adapters.logs import JsonLog
from cloister.adapters.process import run, tune_allocator

SIZE = 224 * 224 * 3 * 4
NONCE = bytes(12)
AEAD = AESGCM(bytes(32))
ANSWER = bytes(4096)
SEALED = AEAD.encrypt(NONCE, bytes(SIZE), None)
HEAD = (
    b"POST /v2/models/a/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\n"
    b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % len(SEALED)
)

# --- servers ---


async def kept_buffers(request: Request) -> Response:
    """Ours: opened from the receive buffer into another kept one, sealed into a third."""
    body = await request.body()
    AEAD.decrypt_into(NONCE, body, None, request.buffer(SIZE))
    answer = request.buffer(len(ANSWER) + 16)
    AEAD.encrypt_into(NONCE, ANSWER, None, answer)
    return Response(200, [("content-type", "application/octet-stream")], answer)


def _answer(sealed: bytes) -> bytes:
    return AEAD.encrypt(NONCE, AEAD.decrypt(NONCE, sealed, None)[: len(ANSWER)], None)


async def serve_ours(*, threads: int = 0) -> None:
    app: Callable[[Request], Awaitable[Response]] = kept_buffers
    if threads:
        workers = Workers(threads, 64)

        async def app(request: Request) -> Response:
            body = await request.body()
            plain, answer = request.buffer(SIZE), request.buffer(len(ANSWER) + 16)

            def work() -> None:
                AEAD.decrypt_into(NONCE, body, None, plain)
                AEAD.encrypt_into(NONCE, ANSWER, None, answer)

            await workers.run(work)
            return Response(200, [("content-type", "application/octet-stream")], answer)

    server = HttpServer(app, log=JsonLog(SystemClock()))
    await server.start()
    _ready(int(server.address.rpartition(":")[2]))
    await asyncio.Event().wait()


class HttptoolsProtocol(asyncio.Protocol):
    """What most servers do: every body byte through the parser's callback, joined at the end."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.pieces: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)

    def on_message_complete(self) -> None:
        sealed, self.pieces = b"".join(self.pieces), []
        answer = _answer(sealed)
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)


async def serve_httptools() -> None:
    server = await asyncio.get_running_loop().create_server(HttptoolsProtocol, "127.0.0.1", 0)
    _ready(server.sockets[0].getsockname()[1])
    await asyncio.Event().wait()


def serve_threads() -> None:
    """A thread a connection, kept buffers, no HTTP worth the name: what the kernel and AES alone take."""
    listener = socket.create_server(("127.0.0.1", 0))

    def connection(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        total = len(HEAD) + len(SEALED)
        area, plain, answer = memoryview(bytearray(total)), bytearray(SIZE), bytearray(len(ANSWER) + 16)
        while True:
            filled = 0
            while filled < total:
                count = sock.recv_into(area[filled:])
                if not count:
                    return
                filled += count
            AEAD.decrypt_into(NONCE, area[len(HEAD) :], None, plain)
            AEAD.encrypt_into(NONCE, ANSWER, None, answer)
            sock.sendmsg([b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer), answer])

    _ready(listener.getsockname()[1])
    while True:
        threading.Thread(target=connection, args=(listener.accept()[0],), daemon=True).start()


def serve_uvicorn() -> None:
    import uvicorn

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        pieces, more = [], True
        while more:
            message = await receive()
            pieces.append(message["body"])
            more = message["more_body"]
        answer = _answer(b"".join(pieces))
        length = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": answer})

    sock = socket.create_server(("127.0.0.1", 0))
    _ready(sock.getsockname()[1])
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="warning", access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[sock])


SERVERS: dict[str, Callable[[], None]] = {
    "cloister": lambda: run(serve_ours()),
    "cloister-tuned": lambda: (tune_allocator(), run(serve_ours()))[1],
    "cloister-workers": lambda: run(serve_ours(threads=1)),
    "cloister-asyncio": lambda: asyncio.run(serve_ours()),
    "raw-threads": serve_threads,
    "httptools": lambda: run(serve_httptools()),
    "httptools-tuned": lambda: (tune_allocator(), run(serve_httptools()))[1],
    "uvicorn": serve_uvicorn,
    "uvicorn-tuned": lambda: (tune_allocator(), serve_uvicorn())[1],
}


def _ready(port: int) -> None:
    print(port, flush=True)


@contextlib.contextmanager
def server(name: str) -> Iterator[tuple[int, int]]:
    """A server process on the first core; yields its port and process id."""
    with subprocess.Popen(
        [sys.executable, "-P", __file__, "serve", name], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.kill()


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used, ended threads included (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


# --- load: raw sockets, so that the client costs as little as it can ---


def load(port: int, clients: int, seconds: float) -> dict[str, float]:
    """Requests a second and the median latency in microseconds, over ``clients`` connections."""
    latencies: list[float] = []
    stop = time.perf_counter() + seconds

    def client() -> None:
        mine, area = [], memoryview(bytearray(65536))
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while time.perf_counter() < stop:
                start = time.perf_counter()
                sent = sock.sendmsg([HEAD, SEALED])
                if sent < len(HEAD) + len(SEALED):
                    sock.sendall(memoryview(SEALED)[sent - len(HEAD) :])
                filled = head = 0
                while not head or filled < head + len(ANSWER) + 16:
                    count = sock.recv_into(area[filled:])
                    assert count
                    filled += count
                    head = head or bytes(area[: min(filled, 512)]).find(b"\r\n\r\n") + 4
                    head = 0 if head == 3 else head
                mine.append(time.perf_counter() - start)
        latencies.extend(mine)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    return {"rate": len(latencies) / seconds, "count": len(latencies), "p50_us": statistics.median(latencies) * 1e6}


def stacks(rounds: int, seconds: float) -> dict[str, Any]:
    names = [n for n in SERVERS if not n.startswith("uvicorn") or importlib.util.find_spec("uvicorn")]
    rates: dict[tuple[str, int], list[dict[str, float]]] = {}
    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(server(name)) for name in names}
        for turn in range(rounds + 1):
            for clients in (1, 8):
                for name in names:
                    command = [sys.executable, "-P", __file__, "load", str(ports[name][0]), str(clients), str(seconds)]
                    before = cpu_seconds(ports[name][1])
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    if turn:  # the first round warms up
                        result = json.loads(done.stdout)
                        result["cpu_us"] = (cpu_seconds(ports[name][1]) - before) / result["count"] * 1e6
                        rates.setdefault((name, clients), []).append(result)
    table = {}
    for (name, clients), results in rates.items():
        values = [result["rate"] for result in results]
        ratios = [value / ours["rate"] for value, ours in zip(values, rates["cloister", clients], strict=True)]
        table[f"{name}, {clients} client(s)"] = {
            "requests/s": round(statistics.median(values)),
            "spread": [round(min(values)), round(max(values))],
            "of cloister": round(statistics.median(ratios), 2),
            "cpu us": round(statistics.median(result["cpu_us"] for result in results)),
            "p50 us": round(statistics.median(result["p50_us"] for result in results)),
        }
    return table


# --- clients, a hop, the hand-over, heads ---


async def _timed(calls: dict[str, Callable[[], Awaitable[object]]], rounds: int, count: int) -> dict[str, Any]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start, cpu = time.perf_counter(), time.process_time()
            for _ in range(count):
                await call()
            if turn:
                spent = time.perf_counter() - start, time.process_time() - cpu
                times[name].append((spent[0] / count * 1e6, spent[1] / count * 1e6))
    return {
        name: {
            "us": round(statistics.median(wall for wall, _ in values), 1),
            "spread": [round(min(values)[0], 1), round(max(values)[0], 1)],
            "cpu us of this process": round(statistics.median(cpu for _, cpu in values), 1),
        }
        for name, values in times.items()
    }


async def clients(rounds: int) -> dict[str, Any]:
    import http.client

    import httpx

    with server("cloister") as (port, _):
        origin = f"http://127.0.0.1:{port}"
        ours, blocking, plain = (
            AsyncHttpClient(),
            HttpClient(SystemClock()),
            http.client.HTTPConnection("127.0.0.1", port),
        )

        async def call_blocking() -> None:
            blocking.request("POST", origin, "/", content=SEALED)

        async def call_plain() -> None:
            plain.request("POST", "/", SEALED)
            plain.getresponse().read()

        with httpx.Client() as sync_httpx:
            async with httpx.AsyncClient() as async_httpx:

                async def call_sync_httpx() -> None:
                    sync_httpx.post(origin, content=SEALED)  # noqa: ASYNC212  # nothing else runs meanwhile

                result = await _timed(
                    {
                        "AsyncHttpClient": lambda: ours.request("POST", origin, "/", content=SEALED),
                        "HttpClient": call_blocking,
                        "http.client": call_plain,
                        "httpx.AsyncClient": lambda: async_httpx.post(origin, content=SEALED),
                        "httpx.Client": call_sync_httpx,
                    },
                    rounds,
                    200,
                )
        plain.close()
        blocking.close()
        await ours.close()
        return result


async def hop(rounds: int) -> dict[str, Any]:
    """The gateway shares this process's core with the caller; the instance has the other."""
    with server("cloister") as (port, _):
        origin = f"http://127.0.0.1:{port}"
        inner, caller = AsyncHttpClient(), AsyncHttpClient()

        async def gateway(request: Request) -> Response:
            return await forward(inner, origin, request, max_body=1 << 30)

        front = HttpServer(gateway, log=JsonLog(SystemClock()))
        await front.start()
        result = await _timed(
            {
                "direct": lambda: caller.request("POST", origin, "/", content=SEALED),
                "forwarded": lambda: caller.request("POST", front.address, "/", content=SEALED),
            },
            rounds,
            200,
        )
        await caller.close()
        await inner.close()
        await front.close()
        return result


async def handoff(rounds: int) -> dict[str, Any]:
    workers, pool, loop = Workers(1, 8), ThreadPoolExecutor(1), asyncio.get_running_loop()

    def nothing() -> None:
        return

    result = await _timed(
        {"Workers": lambda: workers.run(nothing), "run_in_executor": lambda: loop.run_in_executor(pool, nothing)},
        rounds,
        3000,
    )
    await workers.close()
    pool.shutdown()
    return result


async def heads(rounds: int) -> dict[str, Any]:
    class Fields:
        def __init__(self) -> None:
            self.items: list[tuple[bytes, bytes]] = []

        def on_header(self, name: bytes, value: bytes) -> None:
            self.items.append((name, value))

    async def kept() -> None:
        httptools.HttpRequestParser(Fields()).feed_data(HEAD)

    async def thin() -> None:
        lines = HEAD[:-4].split(b"\r\n")
        lines[0].split(b" ")
        [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines[1:])]

    async def whole() -> None:
        parse_request_head(HEAD, HeadLimits())

    return await _timed({"httptools": kept, "by hand": thin, "parse_request_head": whole}, rounds, 20_000)


def main() -> None:
    if not sys.flags.safe_path:  # beside this file, `import http` would find this file
        os.execv(sys.executable, [sys.executable, "-P", *sys.argv])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["stacks", "clients", "forward", "handoff", "heads", "serve", "load"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0] if options.what == "serve" else cores[-1]})
    if options.what == "serve":
        SERVERS[options.rest[0]]()
        return
    if options.what == "load":
        port, count, seconds = options.rest
        print(json.dumps(load(int(port), int(count), float(seconds))))
        return
    if options.what == "stacks":
        os.sched_setaffinity(0, set(cores))  # children choose theirs
        result = stacks(options.rounds, options.seconds)
    else:
        measure = {"clients": clients, "forward": hop, "handoff": handoff, "heads": heads}[options.what]
        result = run(_with_all_cores(measure, options.rounds, cores))
    for name, figures in result.items():
        print(f"{name:32}", "  ".join(f"{key} {value}" for key, value in figures.items()))


async def _with_all_cores(measure: Callable[[int], Awaitable[dict[str, Any]]], rounds: int, cores: list[int]) -> Any:
    os.sched_setaffinity(0, set(cores[-1:]))
    return await measure(rounds)


if __name__ == "__main__":
    main()
