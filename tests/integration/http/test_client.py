"""Both clients against the real server, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.forward import forward
from cloister.adapters.http.limits import ClientLimits
from cloister.adapters.http.message import Request, Response
from cloister.base.errors import InvalidInput, Refused, Unavailable
from cloister.base.limits import MIB
from cloister.testing.rawhttp import RawClient

KEEPALIVE = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
SAMPLE = bytes(range(256)) * 2352

Scripted = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(request: Request) -> Response:
    if request.path == "/refuse":
        raise Refused("no-grant", "no grant", hint="Ask.")
    body = await request.body()
    answer = request.buffer(len(body))
    answer[:] = body
    return Response(200, [("x-method", request.method), ("x-query", request.query)], answer)


@contextlib.asynccontextmanager
async def scripted(*scripts: Scripted) -> AsyncIterator[tuple[str, list[int]]]:
    """A server whose n-th connection follows the n-th script (the last one from then on)."""
    count = [0]
    tasks: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = scripts[min(count[0], len(scripts) - 1)]
        count[0] += 1
        tasks.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await script(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", count
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks)
    await asyncio.sleep(0)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if b"content-length: " in lower:
        await reader.readexactly(int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]))
    return head


def answers(*data: bytes) -> Scripted:
    """Answer one request with each of these, then hang up."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in data:
            await read_request(reader)
            writer.write(answer)
            await writer.drain()

    return script


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_calls_and_errors_there_and_back(run, serving, client_class, tmp_path) -> None:
    async def scenario() -> None:
        for where in ({}, {"path": tmp_path / "s"}):
            async with serving(echo, **where) as server:
                client = client_class()
                for body in (b"", b"abc", SAMPLE, [b"a", memoryview(SAMPLE), bytearray(b"z")]):
                    answer = await client.request("POST", server.address, "/p?q=1", content=body)
                    assert answer.status == 200
                    assert answer.body == (b"".join(body) if isinstance(body, list) else body)
                    assert answer.headers.get("x-query") == "q=1"
                assert (await client.request("HEAD", server.address, "/")).body == b""
                with pytest.raises(Refused) as caught:
                    (await client.request("GET", server.address, "/refuse")).checked()
                assert (caught.value.code, caught.value.hint) == ("no-grant", "Ask.")
                assert server.connections == 1
                await client.close()

    run(scenario())


def test_a_connection_that_died_idle_is_replaced(run, client_class) -> None:
    async def scenario() -> None:
        async with scripted(answers(OK), answers(OK)) as (origin, count):
            client = client_class()
            assert (await client.request("GET", origin, "/")).body == b"ok"
            await asyncio.sleep(0.02)
            assert (await client.request("POST", origin, "/", content=b"x")).body == b"ok"
            assert count[0] == 2
            await client.close()

    run(scenario())


def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Awaitable[None]:
    """Answer once, then read a request and hang up."""

    async def script() -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)

    return script()


@pytest.mark.parametrize(
    ("method", "idempotent", "again"),
    [("GET", None, True), ("PUT", None, True), ("POST", None, False), ("POST", True, True), ("GET", False, False)],
)
def test_only_what_is_safe_is_sent_again(run, client_class, method: str, idempotent: bool | None, again: bool) -> None:
    async def scenario() -> None:
        async with scripted(dies, answers(OK)) as (origin, count):
            client = client_class()
            await client.request("GET", origin, "/")
            call = client.request(method, origin, "/", content=b"x" if method != "GET" else b"", idempotent=idempotent)
            if again:
                assert (await call).body == b"ok"
                assert count[0] == 2
            else:
                with pytest.raises(Unavailable, match="no-answer"):
                    await call
                assert count[0] == 1
            await client.close()

    run(scenario())


def test_peers_that_are_gone_without_a_word_are_noticed(run, serving) -> None:
    """The kernel asks: a network that was cut cannot be made here, what is asked of the kernel can be read back."""
    alive = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *((socket.IPPROTO_TCP, name) for name in KEEPALIVE)]

    async def scenario() -> None:
        async with serving(echo) as server:
            eager = AsyncHttpClient()
            await eager.request("GET", server.address, "/")
            (link,) = next(iter(eager._links.values()))
            found = link._transport.get_extra_info("socket")
            assert [found.getsockopt(*option) for option in alive] == [1, 5, 2, 3]
            assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0  # a stream may stand still
            await eager.close()
            patient = HttpClient(SystemClock())
            await asyncio.to_thread(patient.request, "GET", server.address, "/")
            ((kept,),) = patient._idle.values()
            assert [kept._sock.getsockopt(*option) for option in alive] == [1, 5, 2, 3]
            assert kept._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000
            patient.close()

    run(scenario())


def test_connections_that_lay_beside_one_that_died_are_not_used(run) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await both.wait()
        writer.write(OK)
        await asyncio.sleep(60)  # silent from here on, as behind a network that was cut

    both = asyncio.Event()

    async def scenario() -> None:
        async with scripted(once, once, answers(OK)) as (origin, count):
            client = HttpClient(SystemClock())
            calls = [asyncio.create_task(asyncio.to_thread(client.request, "GET", origin, "/")) for _ in range(2)]
            while count[0] < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            both.set()
            await asyncio.gather(*calls)
            with pytest.raises(Unavailable) as caught:
                await asyncio.to_thread(client.request, "GET", origin, "/", deadline_s=0.2)
            assert caught.value.code == "deadline-exceeded"
            assert (await asyncio.to_thread(client.request, "GET", origin, "/", deadline_s=5.0)).body == b"ok"
            assert count[0] == 3
            client.close()

    run(scenario())


def test_a_new_connection_that_dies_is_not_tried_again(run, client_class) -> None:
    async def scenario() -> None:
        async with scripted(answers()) as (origin, count):
            client = client_class()
            with pytest.raises(Unavailable, match="no-answer"):
                await client.request("GET", origin, "/")
            assert count[0] == 1
            await client.close()

    run(scenario())


BAD = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "answer-truncated"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "answer-truncated"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", "answer-truncated"),
    (b"HTTP/1.1 200 OK\r\nContent-Len", "answer-truncated"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "bad-gateway-answer"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "bad-gateway-answer"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "bad-gateway-answer"),
    (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", "bad-gateway-answer"),
    (b"SSH-2.0-x\r\n\r\n", "bad-gateway-answer"),
    (b"HTTP/1.1 200 OK\n\n", "bad-gateway-answer"),
    (b"X" * 20_000, "bad-gateway-answer"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n", "answer-too-large"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4C4B40\r\n" + bytes(2 * MIB), "answer-too-large"),
]


@pytest.mark.parametrize(("data", "code"), BAD, ids=range(len(BAD)))
def test_bad_answers_have_codes(run, client_class, data: bytes, code: str) -> None:
    async def scenario() -> None:
        async with scripted(answers(data)) as (origin, _):
            client = client_class()
            with pytest.raises(Unavailable) as caught:
                await client.request("GET", origin, "/", max_answer=MIB)
            assert caught.value.code == code
            await client.close()

    run(scenario())


def test_interim_answers_are_passed_over_and_ends_respected(run, client_class) -> None:
    async def scenario() -> None:
        interim = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        endless = b"HTTP/1.1 200 OK\r\n\r\n" + SAMPLE
        async with scripted(answers(interim + OK, endless)) as (origin, _):
            client = client_class()
            assert (await client.request("GET", origin, "/")).body == b"ok"
            assert (await client.request("GET", origin, "/")).body == SAMPLE
            await client.close()

    run(scenario())


def test_deadlines_hold_against_silence_and_dripping(run, client_class) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.01)

    async def scenario() -> None:
        for script in (silent, dripping):
            async with scripted(script) as (origin, _):
                client = client_class()
                with pytest.raises(Unavailable, match="deadline-exceeded"):
                    await client.request("GET", origin, "/", deadline_s=0.2)
                await client.close()

    run(scenario())


def test_an_unreachable_server_has_its_own_code(run, client_class) -> None:
    async def scenario() -> None:
        client = client_class()
        for origin in ("http://127.0.0.1:1", "unix:/nonexistent/socket"):
            with pytest.raises(Unavailable, match="connect-failed"):
                await client.request("GET", origin, "/")
        with pytest.raises(InvalidInput, match="origin-malformed"):
            await client.request("GET", "ftp://x", "/")
        await client.close()
        with pytest.raises(Unavailable, match="client-closed"):
            await client.request("GET", "http://127.0.0.1:1", "/")

    run(scenario())


def test_an_early_answer_is_heard_while_sending(run, serving, client_class) -> None:
    async def app(request: Request) -> Response:
        await request.body(limit=1000)
        raise AssertionError

    async def scenario() -> None:
        async with serving(app) as server:
            client = client_class()
            with pytest.raises(InvalidInput, match="body-too-large"):
                (await client.request("POST", server.address, "/", content=SAMPLE * 30)).checked()
            await client.close()

    run(scenario())


def test_many_calls_share_few_connections(run, serving) -> None:
    async def scenario() -> None:
        async with serving(echo) as server:
            client = AsyncHttpClient(limits=ClientLimits(max_per_origin=4, max_waiting=60))
            bodies = [b"%d" % i * 1000 for i in range(64)]
            calls = [client.request("POST", server.address, "/", content=body) for body in bodies]
            for body, answer in zip(bodies, await asyncio.gather(*calls), strict=True):
                assert answer.body == body
            assert server.connections <= 4
            more = [client.request("POST", server.address, "/", content=SAMPLE) for _ in range(66)]
            results = await asyncio.gather(*more, return_exceptions=True)
            codes = [error.code for error in results if isinstance(error, Unavailable)]
            assert codes == ["client-overloaded"] * 2
            await client.close()

    run(scenario())


def test_a_waiting_call_that_gives_up_takes_no_place(run, serving) -> None:
    async def scenario() -> None:
        go_on = asyncio.Event()

        async def app(request: Request) -> Response:
            if request.path == "/wait":
                await go_on.wait()
            return Response(200)

        async with serving(app) as server:
            client = AsyncHttpClient(limits=ClientLimits(max_per_origin=1))
            first = asyncio.create_task(client.request("GET", server.address, "/wait"))
            await asyncio.sleep(0.02)
            with pytest.raises(Unavailable, match="deadline-exceeded"):
                await client.request("GET", server.address, "/", deadline_s=0.02)
            go_on.set()
            await first
            assert (await client.request("GET", server.address, "/", deadline_s=5)).status == 200
            await client.close()

    run(scenario())


def test_threads_share_the_blocking_client(run, serving) -> None:
    async def scenario() -> None:
        async with serving(echo) as server:
            client = HttpClient(SystemClock())
            wrong = []

            def call(index: int) -> None:
                for turn in range(20):
                    body = b"%d-%d" % (index, turn) * 100
                    if client.request("POST", server.address, "/", content=body).body != body:
                        wrong.append(index)

            threads = [threading.Thread(target=call, args=(index,)) for index in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                await asyncio.to_thread(thread.join)
            assert wrong == []
            client.close()

    run(scenario())


def test_forwarding_streams_both_ways_without_holding_bodies(run, serving) -> None:
    async def back(request: Request) -> Response:
        if request.path == "/echo":

            async def pieces():
                async for piece in request.stream():
                    yield piece

            return Response(200, [("x-saw", request.headers.get("x-hop", "nothing"))], pieces())
        return await echo(request)

    async def scenario() -> None:
        client = AsyncHttpClient()

        async with serving(back) as instance:

            async def gateway(request: Request) -> Response:
                return await forward(client, instance.address, request, max_body=64 * MIB)

            async with serving(gateway) as front:
                raw = await RawClient.open(front.address)
                big = SAMPLE * 40
                head = b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: x-hop\r\nX-Hop: 1\r\nContent-Length: %d\r\n\r\n"
                for body in (big, b"small", b""):
                    sending = asyncio.create_task(raw.send(head % len(body) + body))
                    answer = await raw.answer()
                    await sending
                    assert answer.body == body
                    assert b"x-saw: nothing" in answer.head
                assert client._pool.idle_bytes <= MIB
                assert front.pool.idle_bytes <= MIB
                sender = AsyncHttpClient()
                for _ in range(30):
                    whole = await sender.request("POST", front.address, "/p", content=SAMPLE)
                    assert whole.body == SAMPLE
                assert (await sender.request("HEAD", front.address, "/p")).headers.get("content-length") == "0"
                with pytest.raises(Refused, match="no-grant"):
                    (await sender.request("GET", front.address, "/refuse")).checked()
                assert client.connections <= 2
                await raw.close()
                await sender.close()
        await client.close()

    run(scenario())


def test_a_client_that_leaves_the_gateway_frees_the_instance(run, serving) -> None:
    async def scenario() -> None:
        entered, left = asyncio.Event(), asyncio.Event()
        client = AsyncHttpClient()

        async def app(request: Request) -> Response:
            request.on_finish(left.set)
            entered.set()
            await asyncio.Event().wait()
            raise AssertionError

        async with serving(app) as instance:

            async def gateway(request: Request) -> Response:
                return await forward(client, instance.address, request, max_body=MIB)

            async with serving(gateway) as front:
                raw = await RawClient.open(front.address)
                await raw.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await entered.wait()
                await raw.close()
                await left.wait()
            assert client.connections == 0
        await client.close()

    run(scenario())


def test_idle_connections_are_closed_without_any_further_call(run, serving) -> None:
    async def scenario() -> None:
        async with serving(echo) as first, serving(echo) as second:
            client = AsyncHttpClient(limits=ClientLimits(keep_s=0.1))
            for server in (first, second):
                await client.request("POST", server.address, "/", content=b"x")
            assert client.connections == 2
            while client.connections or first.connections or second.connections:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.01)
            answer = await client.request("POST", first.address, "/", content=b"again")
            assert answer.body == b"again"
            await client.close()

    run(scenario())


def test_closing_ends_calls_waiting_connecting_and_under_way(run, serving) -> None:
    async def scenario() -> None:
        inside = asyncio.Event()

        async def app(request: Request) -> Response:
            inside.set()
            await asyncio.Event().wait()
            return Response(200)

        async with serving(app) as server:
            client = AsyncHttpClient(limits=ClientLimits(max_per_origin=1))
            calls = [asyncio.create_task(client.request("GET", server.address, "/")) for _ in range(3)]
            await inside.wait()
            await client.close()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert sorted(error.code for error in results) == ["client-closed", "client-closed", "no-answer"]
            assert client.connections == 0
            await client.close()

            late = AsyncHttpClient()
            call = asyncio.create_task(late.request("GET", server.address, "/"))
            await asyncio.sleep(0)  # it is connecting
            await late.close()
            with pytest.raises(Unavailable) as caught:
                await call
            assert caught.value.code in {"no-answer", "client-closed"}
            assert late.connections == 0

    run(scenario())


def test_nothing_is_kept_about_origins_that_are_gone(run, serving, tmp_path: Path) -> None:
    async def scenario() -> None:
        client = AsyncHttpClient()
        for number in range(5):
            async with serving(echo, path=tmp_path / str(number)) as server:
                await client.request("POST", server.address, "/", content=b"x")
            with pytest.raises(Unavailable):
                await client.request("POST", f"unix:{tmp_path}/absent{number}", "/", content=b"x")
        await client.close()
        assert not any((client._links, client._opening, client._waiting, client._idle))

    run(scenario())
