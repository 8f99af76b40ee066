"""TLS in server and clients, and tunnels through a proxy: also one that refuses, lies, drips or says nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.connection import Connection
from cloister.adapters.http.limits import ClientLimits, ServerLimits
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.origin import proxy_from
from cloister.adapters.http.tls import server_context
from cloister.base.errors import InvalidInput, Unavailable
from cloister.testing.authority import Authority

SAMPLE = bytes(range(256)) * 2352  # 602,112 bytes
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(request: Request) -> Response:
    return Response(200, [], await request.body())


@contextlib.asynccontextmanager
async def listening(script: Script, **options: Any) -> AsyncIterator[int]:
    """A server that follows the script on each connection; its port."""
    tasks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                await script(reader, writer)
        finally:
            writer.close()
            # asyncio's streams never say that they are closed after a handshake that failed
            with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
                async with asyncio.timeout(0.2):
                    await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def quiet_loop() -> AsyncIterator[list[dict[str, Any]]]:
    """Handshakes that fail are told to the loop's exception handler: collected, so that nothing is printed."""
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    try:
        yield told
    finally:
        loop.set_exception_handler(None)


# --- TLS ---


def test_tls_carries_what_plain_tcp_does(run, serving, client_class, authority: Authority) -> None:
    async def scenario() -> None:
        tls = server_context(*authority.issue("127.0.0.1"))
        async with serving(echo, tls=tls) as server:
            assert server.address.startswith("https://127.0.0.1:")
            client = client_class(tls=authority.client_context())
            for content in (b"", b"small", SAMPLE, [SAMPLE, b"and", SAMPLE]):
                answer = await client.request("POST", server.address, "/", content=content)
                assert answer.body == (content if isinstance(content, bytes) else b"".join(content))
            assert server.connections == 1  # kept
            await client.close()

    run(scenario())


def test_streams_and_refused_bodies_over_tls(run, serving, authority: Authority) -> None:
    async def app(request: Request) -> Response:
        if request.path == "/refuse":
            raise InvalidInput("not-found", "there is nothing here")

        async def back() -> AsyncIterator[bytes]:
            async for piece in request.stream():
                yield bytes(piece)

        return Response(200, [], back())

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(SAMPLE), 100_000):
            yield SAMPLE[start : start + 100_000]

    async def scenario() -> None:
        limits = ServerLimits(linger_s=0.2)
        async with serving(app, limits, tls=server_context(*authority.issue("127.0.0.1"))) as server:
            client = AsyncHttpClient(tls=authority.client_context())
            async with client.open("POST", server.address, "/", content=pieces()) as answer:
                assert b"".join([bytes(piece) async for piece in answer.stream()]) == SAMPLE
            early = await client.request("POST", server.address, "/refuse", content=SAMPLE)
            assert early.status == 404  # TLS cannot half-close: the rest is read and dropped for a while
            await client.close()

    run(scenario())


@pytest.mark.parametrize("fault", ["other-name", "expired", "unknown-authority", "other-address"])
def test_a_wrong_certificate_ends_the_call_before_anything_is_sent(
    run, serving, client_class, authority: Authority, tmp_path: Path, fault: str
) -> None:
    async def scenario() -> None:
        issuer = authority
        if fault == "unknown-authority":
            issuer = Authority(tmp_path, SystemClock().now())  # of the same name
        host = {"other-name": "another.example", "other-address": "127.0.0.2"}.get(fault, "127.0.0.1")
        seen = []

        async def app(request: Request) -> Response:
            seen.append(request)
            return Response(200)

        async with (
            quiet_loop(),
            serving(app, tls=server_context(*issuer.issue(host, expired=fault == "expired"))) as server,
        ):
            client = client_class(tls=authority.client_context())
            with pytest.raises(Unavailable) as caught:
                await client.request("POST", server.address, "/", content=b"secret")
            assert caught.value.code == "tls-failed"
            assert not seen
            await client.close()

    run(scenario())


def test_the_system_roots_do_not_know_a_throw_away_authority(run, serving, client_class, authority: Authority) -> None:
    async def scenario() -> None:
        async with quiet_loop(), serving(echo, tls=server_context(*authority.issue("127.0.0.1"))) as server:
            client = client_class()
            with pytest.raises(Unavailable) as caught:
                await client.request("GET", server.address, "/")
            assert caught.value.code == "tls-failed"
            await client.close()

    run(scenario())


def test_a_server_that_closes_or_falls_silent_within_the_handshake(run, client_class, authority: Authority) -> None:
    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(5)  # of the ClientHello

    async def says_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(5)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def scenario() -> None:
        for script in (closes, says_nonsense, silent):
            async with listening(script) as port:
                limits = ClientLimits(connect_s=0.2 if script is silent else 10.0)
                client = client_class(tls=authority.client_context(), limits=limits)
                with pytest.raises(Unavailable) as caught:
                    await client.request("POST", f"https://127.0.0.1:{port}", "/", content=b"secret")
                assert caught.value.code in {"tls-failed", "connect-failed"}, script
                await client.close()

    run(scenario())


def test_the_end_of_a_tls_connection_ends_no_body(run, client_class, authority: Authority) -> None:
    """Anybody between can end a connection, so a body that ends with it could be cut unnoticed."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nnot all of it")

    async def scenario() -> None:
        async with listening(script, ssl=server_context(*authority.issue("127.0.0.1"))) as port:
            client = client_class(tls=authority.client_context())
            with pytest.raises(Unavailable) as caught:
                await client.request("GET", f"https://127.0.0.1:{port}", "/")
            assert caught.value.code == "bad-gateway-answer"
            await client.close()

    run(scenario())


def test_a_tls_connection_cut_within_an_answer(run, client_class, authority: Authority) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nnot all of it")
        await writer.drain()
        writer.transport.abort()

    async def scenario() -> None:
        async with listening(script, ssl=server_context(*authority.issue("127.0.0.1"))) as port:
            client = client_class(tls=authority.client_context())
            with pytest.raises(Unavailable) as caught:
                await client.request("GET", f"https://127.0.0.1:{port}", "/")
            assert caught.value.code in {"answer-truncated", "no-answer"}
            await client.close()

    run(scenario())


def test_clients_that_speak_no_tls_or_stop_within_it_hold_nothing(run, serving, authority: Authority) -> None:
    async def scenario() -> None:
        limits = ServerLimits(head_s=0.2)
        tls = server_context(*authority.issue("127.0.0.1"))
        async with quiet_loop() as told, serving(echo, limits, tls=tls) as server:
            port = int(server.address.rpartition(":")[2])
            for first in (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"\x16\x03\x01\x02\x00", b""):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(first)
                with contextlib.suppress(ConnectionError):
                    await reader.read()  # ends, at the latest when the handshake's time is up
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
            assert server.connections == 0
            assert all(isinstance(item.get("exception"), OSError | None) for item in told), told  # no fault of ours
            client = AsyncHttpClient(tls=authority.client_context())
            assert (await client.request("POST", server.address, "/", content=b"still here")).body == b"still here"
            await client.close()

    run(scenario())


def test_certificates_that_cannot_be_used_have_a_code(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("127.0.0.1")
    other = authority.issue("127.0.0.1")[1]
    for pair in ((certificate, other), (key, certificate), (tmp_path / "absent", key)):
        with pytest.raises(InvalidInput) as caught:
            server_context(*pair)
        assert caught.value.code == "tls-certificate"


# --- tunnels ---


@contextlib.asynccontextmanager
async def proxying(secret: str = "") -> AsyncIterator[tuple[int, list[bytes]]]:
    """A real CONNECT proxy: its port, and the heads it was sent."""
    heads: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        if secret and f"proxy-authorization: {secret}\r\n".encode() not in head:
            writer.write(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\n"
                b"content-length: 4\r\n\r\nno\r\n"
            )
            return
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        there = await asyncio.open_connection(host.strip("[]"), int(port))
        for piece in (b"HTTP/1.1 200 Connection", b" established\r\nvia: 1.1 test\r", b"\n\r\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        try:
            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
        finally:
            there[1].close()
            with contextlib.suppress(ConnectionError):
                await there[1].wait_closed()

    async with listening(script) as port:
        yield port, heads


def test_a_tunnel_carries_tls_with_the_origin_not_with_the_proxy(
    run, serving, client_class, authority: Authority
) -> None:
    async def scenario() -> None:
        async with (
            serving(echo, tls=server_context(*authority.issue("127.0.0.1"))) as server,
            proxying("Basic dXNlcjpwQHNz") as (port, heads),
        ):
            proxy = proxy_from({"HTTPS_PROXY": f"http://user:p%40ss@127.0.0.1:{port}"})
            client = client_class(tls=authority.client_context(), proxy=proxy)
            for content in (b"through", SAMPLE):
                answer = await client.request("POST", server.address, "/", content=content)
                assert answer.body == content
            authority_form = server.address.removeprefix("https://").encode()
            assert len(heads) == 1
            assert heads[0].startswith(b"CONNECT " + authority_form + b" HTTP/1.1\r\nhost: " + authority_form + b"\r\n")
            await client.close()

            direct = client_class(
                tls=authority.client_context(),
                proxy=proxy_from({"HTTPS_PROXY": f"http://127.0.0.1:{port}", "NO_PROXY": "127.0.0.1"}),
            )
            assert (await direct.request("POST", server.address, "/", content=b"x")).body == b"x"
            assert len(heads) == 1
            await direct.close()

    run(scenario())


def test_a_proxy_that_wants_a_password_says_so(run, client_class, authority: Authority) -> None:
    async def scenario() -> None:
        async with proxying("Basic dXNlcjpwQHNz") as (port, _):
            client = client_class(proxy=proxy_from({"HTTPS_PROXY": f"http://user:wrong@127.0.0.1:{port}"}))
            with pytest.raises(Unavailable) as caught:
                await client.request("POST", "https://origin.example", "/", content=b"secret")
            assert caught.value.code == "proxy-refused"
            assert "407" in caught.value.message
            assert caught.value.hint
            assert "wrong" not in str(caught.value)
            await client.close()

    run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
        b"HTTP/1.1 301 Moved\r\nlocation: https://elsewhere.example\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n\x16\x03\x03",  # speaks before the client does
        b"HTTP/2 200 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 4000,
        b"HTTP/1.1 200",
        b"",
    ],
    ids=["502", "301", "early", "version", "other", "endless", "cut", "nothing"],
)
def test_a_proxy_that_lies_is_not_believed(run, client_class, authority: Authority, answer: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async def scenario() -> None:
        async with listening(script) as port:
            client = client_class(
                tls=authority.client_context(), proxy=proxy_from({"HTTPS_PROXY": f"127.0.0.1:{port}"})
            )
            with pytest.raises(Unavailable) as caught:
                await client.request("POST", "https://origin.example", "/", content=b"secret")
            assert caught.value.code in {"proxy-refused", "connect-failed"}  # a reset can overtake its answer
            await client.close()

    run(scenario())


def test_a_proxy_that_answers_for_the_origin_has_no_certificate_of_it(
    run, client_class, authority: Authority, tmp_path: Path
) -> None:
    async def scenario() -> None:
        own = Authority(tmp_path, SystemClock().now())
        tls = server_context(*own.issue("origin.example"))

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await writer.drain()
            await writer.start_tls(tls)
            await reader.read()

        async with quiet_loop(), listening(script) as port:
            client = client_class(
                tls=authority.client_context(), proxy=proxy_from({"HTTPS_PROXY": f"127.0.0.1:{port}"})
            )
            with pytest.raises(Unavailable) as caught:
                await client.request("POST", "https://origin.example", "/", content=b"secret")
            assert caught.value.code == "tls-failed"
            await client.close()

    run(scenario())


@pytest.mark.parametrize("drips", [False, True])
def test_a_slow_proxy_does_not_outlast_the_time_for_connecting(run, client_class, drips: bool) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while drips:
            writer.write(b"x: y\r\n")
            await asyncio.sleep(0.05)
        await reader.read()

    async def scenario() -> None:
        async with listening(script) as port:
            client = client_class(
                limits=ClientLimits(connect_s=0.3), proxy=proxy_from({"HTTPS_PROXY": f"127.0.0.1:{port}"})
            )
            with pytest.raises(Unavailable) as caught:
                await client.request("GET", "https://origin.example", "/")
            assert caught.value.code == "connect-failed"
            await client.close()

    run(scenario())


def test_an_absent_proxy(run, client_class) -> None:
    async def scenario() -> None:
        client = client_class(proxy=proxy_from({"HTTPS_PROXY": "127.0.0.1:9"}))
        with pytest.raises(Unavailable) as caught:
            await client.request("GET", "https://origin.example", "/")
        assert caught.value.code == "connect-failed"
        await client.close()

    run(scenario())


def test_the_blocking_client_notices_that_an_idle_tls_connection_was_closed(serving, run, authority: Authority) -> None:
    async def scenario() -> None:
        limits = ServerLimits(idle_s=0.2, linger_s=0.2)
        async with serving(echo, limits, tls=server_context(*authority.issue("127.0.0.1"))) as server:
            client = HttpClient(SystemClock(), tls=authority.client_context())
            for _ in range(2):
                answer = await asyncio.to_thread(client.request, "POST", server.address, "/", content=b"x")
                assert answer.body == b"x"
                while server.connections:  # noqa: ASYNC110  # the server tells nobody that it cut an idler
                    await asyncio.sleep(0.01)
            client.close()

    run(scenario())


def test_asyncio_may_pause_a_connection_within_its_handshake(run, serving) -> None:
    """Its TLS does, when the handshake's own bytes fill the buffer: before there is a connection for us."""

    async def scenario() -> None:
        async with serving(echo) as server:
            connection = Connection(server)
            connection.pause_writing()
            connection.resume_writing()

    run(scenario())
