"""The SDK for asyncio: inference on the event loop, everything else in a thread of the synchronous client."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

import numpy.typing as npt

from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.problem import MAX_PROBLEM, from_response
from cloister.base.errors import CloisterError, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import MAX_RESPONSE_BODY
from cloister.client.client import DEADLINE_S, SEALED_HEADERS, Client, content_of, pause_before_next
from cloister.client.explain import AGAIN_S
from cloister.client.inference import Outputs, open_inference, seal_inference
from cloister.client.streaming import OutgoingStream

P = ParamSpec("P")
T = TypeVar("T")
Inputs = Mapping[str, npt.ArrayLike]


class AsyncClient:
    """As :class:`~cloister.client.client.Client`; belongs to one event loop.

    Statements and queries go through :meth:`run`: ``await client.run(client.sync.grant, "model", user, policy)``.
    """

    def __init__(self, sync: Client) -> None:
        self.sync = sync
        self._http = AsyncHttpClient()

    @classmethod
    def open(
        cls, home: Path | str | None = None, identity: str | None = None, passphrase: str | None = None
    ) -> AsyncClient:
        """As ``Client.open``."""
        return cls(Client.open(home, identity, passphrase))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close connections."""
        await self.disconnect()
        self.sync.close()

    async def disconnect(self) -> None:
        """Close the connections of this client, and leave those of the synchronous one."""
        await self._http.close()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A call of the synchronous client, in a thread."""
        return await asyncio.to_thread(function, *args, **kwargs)

    async def infer(
        self,
        model: str | ModelId,
        inputs: Mapping[str, npt.ArrayLike],
        outputs: Sequence[str] = (),
        *,
        deadline_s: float = DEADLINE_S,
    ) -> Outputs:
        """As ``Client.infer``."""
        loop, sync = asyncio.get_running_loop(), self.sync
        target = await self.run(sync.model_id, model)
        end = loop.time() + deadline_s
        again = True
        for attempt in itertools.count():
            try:
                key = await self.run(sync.keys.key, target)
                consented = await self.run(sync.keys.consented, target)
                sealed = seal_inference(key, sync.account.identity, inputs, outputs, sync.clock.now())
                answer = await self._http.request(
                    "POST",
                    sync.profile.gateway,
                    sealed.target,
                    headers=SEALED_HEADERS,
                    content=sealed.data,
                    deadline_s=end - loop.time(),
                    max_answer=MAX_RESPONSE_BODY,
                    idempotent=True,
                )
                return open_inference(sealed, content_of(answer), consented.manifest_digest)
            except Unavailable as error:
                await asyncio.sleep(pause_before_next(error, attempt, end - loop.time()))
            except CloisterError as error:
                reason = await self.run(sync.explained, error, target, again=again)
                if reason is not None:
                    raise reason from error
                again = False
                await asyncio.sleep(AGAIN_S)
        raise AssertionError

    async def infer_stream(
        self,
        model: str | ModelId,
        inputs: AsyncIterable[Inputs] | Iterable[Inputs],
        *,
        deadline_s: float = DEADLINE_S,
    ) -> AsyncGenerator[Outputs, None]:
        """Run a model on a stream of inputs over one sealed request; answers come in order, as they are made.

        Memory is bounded by one inference in each direction, however long the stream. It is not sent again by itself:
        after an error, begin anew with what was not answered.

        :param deadline_s: until the first answer.
        :raises CloisterError: as :meth:`infer`, at the first inference that fails; ``stream-truncated`` when the answer
            was cut.
        """
        sync = self.sync
        target = await self.run(sync.model_id, model)
        key = await self.run(sync.keys.key, target)
        consented = await self.run(sync.keys.consented, target)
        stream = OutgoingStream(key, sync.account.identity, sync.clock.now(), consented.manifest_digest)

        async def sealed() -> AsyncIterator[bytes]:
            yield stream.head()
            async for item in _each(inputs):
                yield stream.seal(item)
            yield stream.end()

        call = self._http.open(
            "POST", sync.profile.gateway, stream.target, headers=SEALED_HEADERS, content=sealed(), deadline_s=deadline_s
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
            reason = await self.run(sync.explained, error, target, again=False)
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
