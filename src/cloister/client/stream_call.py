"""One sealed stream of inferences over HTTP, for both clients (spec/protocol.md, 8.6 and 9.5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from typing import Protocol

import numpy.typing as npt

from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.problem import MAX_PROBLEM, from_response
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, Unavailable
from cloister.base.ids import ModelId
from cloister.client.account import Account
from cloister.client.exchange import SEALED_HEADERS
from cloister.client.inference import Outputs
from cloister.client.profile import Profile
from cloister.client.sealing import SealingKeys
from cloister.client.streaming import OutgoingStream

Inputs = Mapping[str, npt.ArrayLike]


class Sender(Protocol):
    """What a stream needs of a client."""

    profile: Profile
    clock: Clock
    account: Account
    keys: SealingKeys

    def explained(self, error: CloisterError, target: ModelId, *, again: bool) -> CloisterError | None: ...


async def infer_stream(
    http: AsyncHttpClient,
    sender: Sender,
    target: ModelId,
    inputs: AsyncIterable[Inputs] | Iterable[Inputs],
    *,
    deadline_s: float,
) -> AsyncGenerator[Outputs, None]:
    """Run a model on a stream of inputs over one sealed request; answers come in order, as they are made.

    Memory is bounded by one inference in each direction, however long the stream. It is not sent again by itself:
    after an error, begin anew with what was not answered.

    :param deadline_s: until the first answer.
    :raises CloisterError: as ``Client.infer``, at the first inference that fails; ``stream-truncated`` when the answer
        was cut.
    """
    key = await asyncio.to_thread(sender.keys.key, target)
    consented = await asyncio.to_thread(sender.keys.consented, target)
    stream = OutgoingStream(key, sender.account.identity, sender.clock.now(), consented.manifest_digest)

    async def sealed() -> AsyncIterator[bytes]:
        yield stream.head()
        async for item in _each(inputs):
            yield stream.seal(item)
        yield stream.end()

    call = http.open(
        "POST", sender.profile.gateway, stream.target, headers=SEALED_HEADERS, content=sealed(), deadline_s=deadline_s
    )
    try:
        async with call as answer:
            if answer.status != 200:
                raise from_response(answer.status, answer.headers, await answer.read(MAX_PROBLEM))
            async for piece in answer.stream():
                for outputs in stream.feed(piece):
                    yield outputs
            stream.close()
    except Unavailable:
        raise
    except CloisterError as error:
        reason = await asyncio.to_thread(sender.explained, error, target, again=False)
        raise reason or error from error


async def _each(inputs: AsyncIterable[Inputs] | Iterable[Inputs]) -> AsyncIterator[Inputs]:
    if isinstance(inputs, AsyncIterable):
        async for item in inputs:
            yield item
        return
    iterator = iter(inputs)

    def following() -> Inputs | None:
        return next(iterator, None)

    while (given := await asyncio.to_thread(following)) is not None:  # making an input may take its time
        yield given
