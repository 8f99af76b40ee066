"""A KEDA external scaler: how many instances are wanted, for who scales in the gateway's place (gRPC, ``[scaler]``).

A trigger names whose number it wants in its metadata, ``policy``: ``gateway`` (the default), ``slo`` or ``concurrency``
(``cloister.control.gateway.advice``). The metric's target is 1 for each instance, so replicas follow the number itself.
Nothing here changes anything, and nothing is told but numbers; who may ask is for the network to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from cloister.adapters.logs import EventLog
from cloister.base.errors import InvalidInput, Unavailable
from cloister.control.gateway.advice import GATEWAY, POLICIES, Advice
from cloister.control.gateway.keda import (
    MAX_MESSAGE,
    read_metrics_request,
    read_scaled_object,
    write_active,
    write_metric,
)

SERVICE: Final = "externalscaler.ExternalScaler"
METRIC: Final = "wanted-instances"
LOOK_S: Final = 0.1  # how late a stream tells that the first instance is wanted; beside a cold start it is nothing
MAX_CALLS: Final = 64  # at a time, streams included; a cluster has one KEDA, with a stream for each trigger
_GRACE_S: Final = 1.0


class ExternalScaler:
    """Belongs to the gateway's loop.

    :param look: brings ``advice`` up to date.
    """

    def __init__(self, advice: Advice, look: Callable[[], None], log: EventLog) -> None:
        self._advice = advice
        self._look = look
        self._log = log
        self._server: Any = None
        self.address = ""

    async def open(self, listen: str) -> None:
        """Listen on ``host:port``, in the clear.

        :raises Unavailable: ``scaler-not-installed``, ``listen-failed``.
        """
        try:
            import grpc
            import grpc.aio
        except ImportError as error:
            raise Unavailable(
                "scaler-not-installed",
                "[scaler] needs gRPC, which this installation has not",
                hint="pip install 'cloister[scaler]'",
            ) from error
        options = (
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_concurrent_streams", MAX_CALLS),
            ("grpc.max_metadata_size", 16 * 1024),
            ("grpc.so_reuseport", 0),  # a second gateway on this port is a mistake
        )
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MAX_CALLS)
        once, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        handlers = {
            "IsActive": once(self._is_active),
            "StreamIsActive": stream(self._stream_is_active),
            "GetMetricSpec": once(self._metric_spec),
            "GetMetrics": once(self._metrics),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            port = server.add_insecure_port(listen)
            await server.start()
        except RuntimeError as error:
            raise Unavailable("listen-failed", f"the scaler cannot listen on {listen}") from error
        self._server = server
        self.address = f"{listen.rpartition(':')[0]}:{port}"
        self._log.event("scaler-listening", address=self.address)

    async def close(self) -> None:
        """End streams and calls."""
        if self._server is not None:
            await self._server.stop(_GRACE_S)

    # --- calls: bytes in, bytes out ---

    async def _is_active(self, request: bytes, context: Any) -> bytes:
        policy = await self._policy(request, context)
        self._look()
        return write_active(self._advice.active(policy))

    async def _stream_is_active(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        policy = await self._policy(request, context)
        told: bool | None = None
        while True:
            self._look()
            active = self._advice.active(policy)
            if active is not told:
                told = active
                yield write_active(active)
            await asyncio.sleep(LOOK_S)

    async def _metric_spec(self, request: bytes, context: Any) -> bytes:
        await self._policy(request, context)
        return write_metric(METRIC, 1)

    async def _metrics(self, request: bytes, context: Any) -> bytes:
        import grpc

        try:
            about, metric = read_metrics_request(request)
            policy = _policy_of(about.metadata)
        except InvalidInput as error:
            return await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, error)
        if metric != METRIC:
            unknown = InvalidInput("scaler-metric", f"there is no metric {metric[:64]!r}", hint=f"There is {METRIC}.")
            return await _refuse(context, grpc.StatusCode.NOT_FOUND, unknown)
        self._look()
        return write_metric(METRIC, self._advice.wanted(policy))

    async def _policy(self, request: bytes, context: Any) -> str:
        import grpc

        try:
            return _policy_of(read_scaled_object(request).metadata)
        except InvalidInput as error:
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, error)
            raise


def _policy_of(metadata: dict[str, str]) -> str:
    policy = metadata.get("policy", GATEWAY)
    if policy not in POLICIES:
        raise InvalidInput(
            "scaler-policy", f"the trigger's policy is {policy[:64]!r}", hint=f"Known are: {', '.join(POLICIES)}."
        )
    return policy


async def _refuse(context: Any, status: Any, error: InvalidInput) -> bytes:
    """Ends the call; what it says is in the logs of whoever called."""
    hint = f" {error.hint}" if error.hint else ""
    await context.abort(status, f"{error.code}: {error.message}.{hint}")
    raise error
