"""The SDK for asyncio: inference on the event loop, everything else in a thread of the synchronous client."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

import numpy.typing as npt

from cloister.adapters.http.client import AsyncHttpClient
from cloister.base.errors import CloisterError, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import MAX_RESPONSE_BODY
from cloister.client.client import Client
from cloister.client.exchange import DEADLINE_S, SEALED_HEADERS, content_of, pause_before_next
from cloister.client.explain import AGAIN_S
from cloister.client.inference import (
    Outputs,
    Provenance,
    SealedInference,
    SealingKey,
    open_answer,
    open_inference,
    seal_http,
    seal_inference,
)
from cloister.client.stream_call import Inputs, infer_stream
from cloister.crypto.stream import Buffer
from cloister.wire import bhttp

P = ParamSpec("P")
T = TypeVar("T")


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
        await self._http.close()
        self.sync.close()

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
        sync = self.sync
        target = await self.run(sync.model_id, model)

        def seal(key: SealingKey, now: float) -> SealedInference:
            return seal_inference(key, sync.account.identity, inputs, outputs, now)

        return await self._exchange(target, seal, open_inference, deadline_s)

    async def request(
        self,
        target: ModelId,
        method: str,
        path: str,
        *,
        fields: Sequence[bhttp.Field] = (),
        content: Sequence[Buffer] = (),
        deadline_s: float = DEADLINE_S,
    ) -> tuple[bhttp.Response, Provenance]:
        """Any request to what answers for a model inside the envelope (spec/protocol.md, section 9); errors as
        ``Client.infer``.
        """
        sync = self.sync

        def seal(key: SealingKey, now: float) -> SealedInference:
            return seal_http(key, sync.account.identity, now, method=method, path=path, fields=fields, content=content)

        return await self._exchange(target, seal, open_answer, deadline_s)

    async def _exchange(
        self,
        target: ModelId,
        seal: Callable[[SealingKey, float], SealedInference],
        opened: Callable[[SealedInference, bytes, bytes | None], T],
        deadline_s: float,
    ) -> T:
        """Sealed anew for each attempt, while the service is only unavailable."""
        loop, sync = asyncio.get_running_loop(), self.sync
        end = loop.time() + deadline_s
        again = True
        for attempt in itertools.count():
            try:
                key = await self.run(sync.keys.key, target)
                consented = await self.run(sync.keys.consented, target)
                sealed = seal(key, sync.clock.now())
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
                return opened(sealed, content_of(answer), consented.manifest_digest)
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
        """Run a model on a stream of inputs; see ``client.stream_call.infer_stream``."""
        target = await self.run(self.sync.model_id, model)
        async for outputs in infer_stream(self._http, self.sync, target, inputs, deadline_s=deadline_s):
            yield outputs
