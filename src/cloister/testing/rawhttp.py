"""A client that sends whatever bytes a test wants, and reads answers one by one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer as it came: the first line, header lines, and the body with its framing undone."""

    status: int
    head: bytes
    body: bytes


class RawClient:
    """One connection; ``await RawClient.open(origin)``, with an origin as ``HttpServer.address`` gives it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, origin: str, source: str | None = None) -> RawClient:
        """Connect, from an address of this machine (127.0.0.1 to 127.255.255.254)."""
        if origin.startswith("unix:"):
            return cls(*await asyncio.open_unix_connection(origin.removeprefix("unix:")))
        host, _, port = origin.removeprefix("http://").rpartition(":")
        local = None if source is None else (source, 0)
        return cls(*await asyncio.open_connection(host.strip("[]"), int(port), local_addr=local))

    async def send(self, data: bytes) -> None:
        """Send these bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head_only: bool = False) -> RawAnswer:
        """Read one answer; ``asyncio.IncompleteReadError`` if the connection ends first."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        lower = head.lower()
        body = b""
        if head_only or status < 200 or status in {204, 304}:
            pass
        elif b"transfer-encoding: chunked" in lower:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        elif b"content-length: " in lower:
            body = await self.reader.readexactly(int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]))
        else:
            body = await self.reader.read()
        return RawAnswer(status, head, body)

    async def ended(self) -> bool:
        """Whether nothing more comes: the server has closed."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return
