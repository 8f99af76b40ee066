"""Sealed streams: several inferences in, answers as they come, in bounded memory; a cut stream is an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest

from cloister.base.errors import CloisterError, InvalidInput, Tampered
from cloister.base.limits import CHUNK_SIZE
from cloister.testing.clock import FakeClock
from cloister.testing.models import small
from cloister.testing.runtime import RuntimeBench, User, image
from cloister.wire import bhttp, envelope, oip, records
from cloister.wire.envelope import OutgoingRequest

SIDE = 16
MATRIX = image(5, (SIDE, SIDE))


class Pieces:
    """A request's body in pieces of a given size."""

    def __init__(self, data: bytes, size: int) -> None:
        self._pieces = [memoryview(data)[i : i + size] for i in range(0, len(data), size)]

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for piece in self._pieces:
            await asyncio.sleep(0)
            yield piece


def stream_of(user: User, inputs: Sequence[Any]) -> tuple[OutgoingRequest, list[bytes]]:
    """Prefix and frames of a stream of inferences."""
    outgoing = user.begin()
    path = f"/v2/models/{user.model.name}/infer_stream"
    parts: list[bytes] = [outgoing.signature + bhttp.request_head("POST", path, (), None)]
    for value in inputs:
        length, body = oip.encode_request(oip.InferRequest((oip.tensor("x", value),)))
        record = records.encode_record(length, body)
        parts += [bhttp.stream_part(record[i : i + 500_000]) for i in range(0, len(record), 500_000)]
    parts.append(bhttp.STREAM_END)
    return outgoing, [outgoing.prefix, *envelope.seal_stream(outgoing.sealer(), parts)]


async def answers(bench: RuntimeBench, user: User, outgoing: OutgoingRequest, data: bytes, size: int) -> list[Any]:
    """Opened answers; raises as a careful client does."""
    response = bytearray()
    async for piece in bench.runtime.streams.answer(user.model, Pieces(data, size)):
        response += piece
    frames = envelope.FrameReader(outgoing.response_opener(response[: envelope.RESPONSE_PREFIX]))
    plain = list(frames.feed(response[envelope.RESPONSE_PREFIX :]))
    frames.close()
    head = bhttp.parse_response(plain[0])
    assert head.streamed
    assert dict(head.fields)["cloister-tee"] == "insecure-simulation"
    content, reader = bhttp.StreamContent(CHUNK_SIZE), records.RecordReader()
    found: list[Any] = []
    for part in plain[1:]:
        for piece in content.feed(part):
            for record in reader.feed(piece):
                if record.header_length == 0:
                    found.append(bytes(record.body))
                else:
                    found.append(oip.decode_response(record.body, record.header_length).outputs[0].data)
    try:
        content.close()
        reader.close()
    except CloisterError as error:
        found.append(error)
    return found


def bench_and_user(clock: FakeClock | None = None, **terms: Any) -> tuple[RuntimeBench, User]:
    bench = RuntimeBench(clock)
    return bench, bench.user(bench.publish("matrix", small.matrix(MATRIX)), **terms)


@pytest.mark.parametrize("service", [False, True])
@pytest.mark.parametrize("size", [300, 700_000])
def test_each_inference_is_answered_in_order(service: bool, size: int) -> None:
    bench, user = bench_and_user(service=service)
    inputs = [image(i, (rows, SIDE)) for i, rows in enumerate((1, 3, 20_000 if size > 1000 else 5, 2))]

    async def scenario() -> None:
        outgoing, frames = stream_of(user, inputs)
        found = await answers(bench, user, outgoing, b"".join(frames), size)
        assert len(found) == len(inputs)
        for got, x in zip(found, inputs, strict=True):
            np.testing.assert_allclose(got, x @ MATRIX, rtol=1e-4)
        assert bench.runtime.rooms.inside == 0

    bench.run(scenario)


def test_one_bad_inference_does_not_end_the_stream() -> None:
    bench, user = bench_and_user()

    async def scenario() -> None:
        outgoing, frames = stream_of(user, [image(1, (1, SIDE)), image(2, (1, SIDE + 1)), image(3, (1, SIDE))])
        first, second, third = await answers(bench, user, outgoing, b"".join(frames), 1000)
        assert first.shape == third.shape == (1, SIDE)
        assert b"urn:cloister:error:input-shape" in second

    bench.run(scenario)


def test_a_cut_stream_is_told_and_never_taken_for_a_short_one() -> None:
    bench, user = bench_and_user()

    async def scenario() -> None:
        outgoing, frames = stream_of(user, [image(i, (1, SIDE)) for i in range(3)])
        found = await answers(bench, user, outgoing, b"".join(frames[:-2]), 10_000)
        assert b"stream-truncated" in found[-2]
        assert isinstance(found[-1], InvalidInput)
        # the response cut on its way
        outgoing, frames = stream_of(user, [image(1, (1, SIDE))])
        response = bytearray()
        async for piece in bench.runtime.streams.answer(user.model, Pieces(b"".join(frames), 10_000)):
            response += piece
        reader = envelope.FrameReader(outgoing.response_opener(response[: envelope.RESPONSE_PREFIX]))
        list(reader.feed(response[envelope.RESPONSE_PREFIX : -30]))
        with pytest.raises(Tampered, match="stream-truncated"):
            reader.close()

    bench.run(scenario)


def test_before_it_authenticates_there_is_one_code_and_a_replay_is_refused_inside() -> None:
    bench, user = bench_and_user()

    async def scenario() -> None:
        outgoing, frames = stream_of(user, [image(1, (1, SIDE))])
        whole = bytearray(b"".join(frames))
        whole[len(frames[0]) + 10] ^= 1
        for data in (whole, whole[:50], b"", b"POST", frames[0]):
            with pytest.raises(InvalidInput, match="request-refused"):
                await answers(bench, user, outgoing, bytes(data), 1000)
        assert len(await answers(bench, user, outgoing, b"".join(frames), 1000)) == 1
        again = await answers(bench, user, outgoing, b"".join(frames), 1000)
        assert b"request-replayed" in again[0]
        assert bench.runtime.rooms.inside == 0

    bench.run(scenario)


def test_a_revocation_stops_a_stream_within_the_lease() -> None:
    clock = FakeClock()
    bench, user = bench_and_user(clock, lease_s=60)
    outgoing, frames = stream_of(user, [image(i, (1, SIDE)) for i in range(4)])

    class Slow:
        async def __aiter__(self) -> AsyncIterator[memoryview]:
            yield memoryview(b"".join(frames[:3]))
            bench.keyservice.deny(user.request)
            clock.advance(61)
            yield memoryview(b"".join(frames[3:]))

    async def scenario() -> None:
        response = bytearray()
        async for piece in bench.runtime.streams.answer(user.model, Slow()):
            response += piece
        opener = envelope.FrameReader(outgoing.response_opener(response[: envelope.RESPONSE_PREFIX]))
        plain = b"".join(opener.feed(response[envelope.RESPONSE_PREFIX :]))
        assert b"release-refused" in plain

    bench.run(scenario)


def test_whoever_leaves_in_the_middle_leaves_nothing_behind() -> None:
    bench, user = bench_and_user()

    async def scenario() -> None:
        _, frames = stream_of(user, [image(i, (2000, SIDE)) for i in range(3)])
        stream = bench.runtime.streams.answer(user.model, Pieces(b"".join(frames), 50_000))
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        task = asyncio.ensure_future(answers(bench, user, *_whole(stream_of(user, [image(1, (9000, SIDE))]))))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bench.infer(user, {"x": image(1, (1, SIDE))})
        while bench.runtime.rooms.inside:  # noqa: ASYNC110  # no event tells of a slot that ends
            await asyncio.sleep(0.001)

    bench.run(scenario)


def _whole(made: tuple[OutgoingRequest, list[bytes]]) -> tuple[OutgoingRequest, bytes, int]:
    return made[0], b"".join(made[1]), 50_000
