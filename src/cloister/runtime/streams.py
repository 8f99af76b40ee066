"""Sealed streams: many inferences over one request, answered as they come, in bounded memory (clauses 8.6 and 9.5).

Each frame is used as it authenticates; a request that ends without its final frame is an error, and so is a response
without one: the client never takes a cut stream for a short one. Every inference is counted to the lease anew, so a
revocation stops a stream within the lease as it stops requests.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from time import perf_counter
from typing import Final, Protocol

from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import CHUNK_SIZE, MAX_HEADER
from cloister.crypto.stream import Buffer, ChunkSealer
from cloister.runtime import endpoints
from cloister.runtime.messages import Answer
from cloister.runtime.serve import Sealed, Ticket, refused
from cloister.runtime.stages import Stage, Timings
from cloister.wire import bhttp, envelope, records
from cloister.wire.envelope import NONCE_LENGTH, RESPONSE_MAGIC, SEALED_SECRET, FrameReader

_MAX_PREFIX: Final = MAX_HEADER + SEALED_SECRET + 64
_MAX_HEAD: Final = 64 * 1024  # the inner message's head must come with the first bytes


class Body(Protocol):
    """A request's body as it arrives; each piece is valid until the next."""

    def __aiter__(self) -> AsyncIterator[memoryview]: ...


class _Opened:
    """The request's side of one stream: from pieces of the body to records."""

    def __init__(self, sealed: Sealed, ticket: Ticket) -> None:
        self._sealed = sealed
        self._ticket = ticket
        self.secret = sealed.open_secret(ticket)
        self._frames = FrameReader(envelope.request_opener(self.secret, ticket.prefix.digest))
        self._head = bytearray()
        self.request: bhttp.Request | None = None
        self._content = bhttp.StreamContent(CHUNK_SIZE)
        self._records = records.RecordReader()

    def feed(self, piece: Buffer) -> Iterator[records.Record]:
        """Records that are now complete.

        :raises CloisterError: not authentic, or malformed.
        """
        for plaintext in self._frames.feed(piece):
            data: Buffer = plaintext
            if self.request is None:
                self._head += plaintext
                begun = self._begin()
                if begun is None:
                    continue
                data = begun
            for part in self._content.feed(data):
                yield from self._records.feed(part)

    def close(self) -> None:
        """:raises Tampered: ``stream-truncated``. :raises InvalidInput: the content never ended."""
        self._frames.close()
        self._content.close()
        self._records.close()

    def _begin(self) -> memoryview | None:
        """Read signature and head once they are there; the rest of what arrived."""
        signature = envelope.signature_length(self._ticket.prefix.header.mode)
        if len(self._head) < signature:
            return None
        message = self._sealed.authenticate(self._ticket, memoryview(bytes(self._head)))
        try:
            request = bhttp.parse_request(message)
        except InvalidInput:
            if len(self._head) < _MAX_HEAD:
                return None
            raise
        if not request.streamed:
            raise InvalidInput("endpoint-unknown", "this route takes streams")
        self.request = request
        self._head.clear()
        return request.content


class Streams:
    """Answers sealed streams. Belongs to one event loop."""

    def __init__(self, sealed: Sealed, clock: Clock, *, deadline_s: float) -> None:
        self._sealed = sealed
        self._clock = clock
        self._deadline_s = deadline_s

    async def answer(self, model: ModelId, body: Body) -> AsyncIterator[Buffer]:
        """Frames of the sealed response, from its magic on; the first comes when the request has authenticated.

        :raises InvalidInput: ``request-refused``. :raises Unavailable: try again.
        """
        pieces = aiter(body)
        try:
            prefix, first = await self._prefix(model, pieces)
            ticket = await self._sealed.enter(prefix)
        except Unavailable:
            raise
        except CloisterError as error:
            raise refused() from error
        try:
            async for frame in self._answer(ticket, first, pieces):
                yield frame
        finally:
            self._sealed.close(ticket)

    async def _prefix(self, model: ModelId, pieces: AsyncIterator[memoryview]) -> tuple[envelope.RequestPrefix, bytes]:
        head = bytearray()
        async for piece in pieces:
            head += piece
            prefix = self._sealed.parse(model, bytes(head))
            if prefix is not None:
                return prefix, bytes(head[prefix.length :])
            if len(head) > _MAX_PREFIX:
                break
        raise InvalidInput("envelope-truncated", "the sealed stream has no prefix")

    async def _answer(self, ticket: Ticket, first: bytes, pieces: AsyncIterator[memoryview]) -> AsyncIterator[Buffer]:
        digest = ticket.prefix.digest
        try:
            opened = _Opened(self._sealed, ticket)
        except CloisterError as error:
            raise refused() from error
        nonce = secrets.token_bytes(NONCE_LENGTH)
        sealer = envelope.response_sealer(opened.secret, digest, nonce)
        endpoint: endpoints.Endpoint | None = None
        piece: Buffer | None = first
        try:
            while piece is not None:
                for record in opened.feed(piece):
                    if endpoint is None:
                        endpoint = self._begin(ticket, opened)
                        yield RESPONSE_MAGIC + nonce
                        yield _frame(sealer, self._head(ticket))
                    yield _frames(sealer, await self._one(ticket, endpoint, opened, record))
                piece = await anext(pieces, None)
            opened.close()
        except CloisterError as error:
            if endpoint is None:
                if opened.request is None:
                    raise refused() from error
                yield RESPONSE_MAGIC + nonce
                yield _frame(sealer, self._head(ticket))
            # The cause travels sealed; the end of the content is missing, so nobody takes this for a whole answer.
            yield _frames(sealer, _problem(self._sealed.told(ticket, error)))
            yield _frame(sealer, b"", last=True)
            return
        if endpoint is None:  # a stream of nothing
            yield RESPONSE_MAGIC + nonce
            yield _frame(sealer, self._head(ticket))
        yield _frame(sealer, bhttp.STREAM_END, last=True)
        self._sealed.metrics.count(ticket.timings.path, "ok")

    def _begin(self, ticket: Ticket, opened: _Opened) -> endpoints.Endpoint:
        """After the first record authenticated: not seen before, and an endpoint that is there."""
        model = self._sealed.first(ticket)
        if opened.request is None:
            raise Tampered("stream-truncated", "the stream has no head")
        return endpoints.find(opened.request, model, stream=True)

    def _head(self, ticket: Ticket) -> bytes:
        lease = ticket.lease
        fields = (*self._sealed.identity.fields(lease.release), ("content-type", "application/octet-stream"))
        return bhttp.response_head(200, fields, None)

    async def _one(
        self, ticket: Ticket, endpoint: endpoints.Endpoint, opened: _Opened, record: records.Record
    ) -> bytearray:
        """One inference, in a slot."""
        request = opened.request
        assert request is not None  # noqa: S101  # a record came after the head
        timings = Timings()

        def compute() -> bytearray:
            try:
                model = self._sealed.again(ticket)
                length = record.header_length or None
                answer = endpoint(endpoints.Call(request, record.body, length, model, timings))
                self._sealed.confirm(ticket)
            except CloisterError as error:
                if error.code == "lease-ended":
                    raise
                return _problem(self._sealed.told(ticket, error))
            except Exception as error:  # noqa: BLE001  # ours; its text may hold plaintext
                return _problem(self._sealed.told(ticket, self._sealed.fault(error)))
            begun = perf_counter()
            encoded = records.encode_record(_json_length(answer), answer.parts)
            timings.add(Stage.RESPONSE_ENCRYPT, perf_counter() - begun)
            self._sealed.metrics.observe(timings)
            return encoded

        await self._sealed.keep(ticket)
        return await self._sealed.run(ticket, self._clock.monotonic() + self._deadline_s, compute, keep=True)


def _json_length(answer: Answer) -> int:
    return memoryview(answer.parts[0]).nbytes


def _problem(answer: Answer) -> bytearray:
    return records.encode_record(0, answer.parts)


def _frames(sealer: ChunkSealer, record: bytearray) -> bytes:
    """A record as parts of the content, each a frame."""
    view = memoryview(record)
    most = CHUNK_SIZE - 8  # a part's own length takes up to eight bytes
    parts = (view[at : at + most] for at in range(0, view.nbytes, most))
    return b"".join(_frame(sealer, bhttp.stream_part(part)) for part in parts)


def _frame(sealer: ChunkSealer, part: Buffer, *, last: bool = False) -> bytes:
    return envelope.frame_head(memoryview(part).nbytes, last=last) + sealer.seal(part, last=last)
