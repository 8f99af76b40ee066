"""Composition root of the gateway: where its ports meet adapters, how it starts, reloads and ends."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.http.buffers import BufferPool
from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.limits import ClientLimits, ServerLimits
from cloister.adapters.http.server import HttpServer
from cloister.adapters.logs import EventLog
from cloister.adapters.modelstore import opened
from cloister.adapters.modelstore.patience import Patience
from cloister.adapters.modelstore.port import ModelStore
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, Unavailable
from cloister.control import policies
from cloister.control.balancing.port import Balancer
from cloister.control.dispatch import Dispatcher
from cloister.control.gateway import configuration as config
from cloister.control.gateway.advice import Advice
from cloister.control.gateway.catalogue import Catalogue
from cloister.control.gateway.conductor import Conductor
from cloister.control.gateway.configuration import GatewayConfiguration, PoolSettings
from cloister.control.gateway.costs import Costs
from cloister.control.gateway.forward import Forwarder
from cloister.control.gateway.limits import UserLimits
from cloister.control.gateway.platforms import make_platform
from cloister.control.gateway.routes import GatewayApp
from cloister.control.gateway.scaler import ExternalScaler
from cloister.control.gateway.signals import export
from cloister.control.gateway.status import states, status_page
from cloister.control.gateway.telemetry import Telemetry
from cloister.control.gateway.watch import Watch
from cloister.control.packing.port import Packer
from cloister.control.scaling.port import Bounds, Scaler
from cloister.platforms.local import LocalPlatform
from cloister.platforms.port import Platform
from cloister.platforms.static.driver import StaticPlatform

ADDRESS_FILE: Final = "gateway.address"
_LOOKUP_THREADS: Final = 4
_PER_INSTANCE: Final = 1024  # connections; more than an instance has slots


@dataclass(frozen=True, slots=True)
class Ports:
    """What a gateway needs of the outside.

    :param store: None: only configured models are served.
    """

    platform: Platform
    store: ModelStore | None
    clock: Clock
    log: EventLog


class Gateway:
    """One gateway, but for signals and files. All of it belongs to one event loop."""

    def __init__(self, configuration: GatewayConfiguration, ports: Ports) -> None:
        self.configuration = configuration
        self.ports = ports
        self._executor = ThreadPoolExecutor(_LOOKUP_THREADS, thread_name_prefix="store")
        pool, limits = configuration.pool, configuration.limits
        packer, balancer, scaler = _policies(pool)
        self.dispatcher = Dispatcher(
            pool.fleet, packer, balancer, scaler, keyless=pool.keyless, new_id=lambda: f"i-{secrets.token_hex(6)}"
        )
        self.telemetry = Telemetry()
        self.buffers = BufferPool()
        client = AsyncHttpClient(limits=ClientLimits(max_per_origin=_PER_INSTANCE), pool=self.buffers)
        self.conductor = Conductor(
            self.dispatcher,
            ports.platform,
            client,
            packer=pool.packer,
            queue=configuration.queue,
            circuit=configuration.circuit,
            costs=Costs(),
            telemetry=self.telemetry,
            clock=ports.clock,
            log=ports.log,
        )
        self.catalogue = Catalogue(
            configuration.models,
            configuration.discovery,
            store=ports.store,
            executor=self._executor,
            clock=ports.clock,
            found=self.dispatcher.add_model,
        )
        self.advice = Advice(pool)
        self.watch = Watch(self.conductor, self.catalogue, self.advice)
        self.scaler = ExternalScaler(self.advice, lambda: self.advice.look(self.dispatcher.snapshot), ports.log)
        self.users = UserLimits(
            rate=limits.user_rate, burst=limits.user_burst, concurrency=limits.user_concurrency, users=limits.users
        )
        self.forwarder = Forwarder(self.conductor, answer_s=limits.answer_s, attempts=configuration.circuit.attempts)
        self.app = GatewayApp(
            self.conductor,
            self.catalogue,
            self.forwarder,
            self.users,
            limits=limits,
            status=lambda: status_page(self.conductor, self.configuration, self.advice),
            metrics=self._metrics,
            ready=lambda: self._watching is not None and not self.server.draining,
        )
        self.server = HttpServer(
            self.app,
            log=ports.log,
            pool=self.buffers,
            limits=ServerLimits(max_body=limits.max_body, max_connections=limits.connections),
        )
        gauge = self.telemetry.registry.gauge
        gauge("cloister_gateway_queue", "Requests waiting.", ask=lambda: self.dispatcher.snapshot.backlog)
        gauge("cloister_gateway_in_flight", "Requests in the gateway.", ask=lambda: len(self.conductor.flights))
        gauge("cloister_gateway_held_bytes", "Memory promised to bodies.", ask=lambda: self.app.held)
        gauge("cloister_gateway_models", "Models known.", ask=lambda: len(self.catalogue))
        export(self.telemetry.registry, self.conductor, self.advice, lambda: self.configuration)
        self._watching: asyncio.Task[None] | None = None

    async def open(self, host: str = "127.0.0.1", port: int = 0, *, path: Path | None = None) -> str:
        """Take over what runs, and listen; returns the address.

        :raises Unavailable: ``listen-failed``, and as the platform.
        """
        await self.conductor.open()
        await self.server.start(host, port, path=path)
        if self.configuration.scaler.listen:
            await self.scaler.open(self.configuration.scaler.listen)
        self._watching = asyncio.ensure_future(self._watch())
        return self.server.address

    async def close(self, drain_s: float) -> int:
        """Finish what is under way, then end; instances go on. Returns how many requests were cut."""
        cut = await self.server.drain(drain_s)
        await self.scaler.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.conductor.close()
        await self.conductor.client.close()
        self._executor.shutdown(wait=False, cancel_futures=True)
        return cut

    def reload(self, new: GatewayConfiguration) -> None:
        """Follow another configuration; no request is dropped for it."""
        old, self.configuration = self.configuration, new
        changed = config.changes(old, new)
        conductor, now = self.conductor, self.ports.clock.monotonic()
        conductor.queue, conductor.circuit = new.queue, new.circuit
        limits = self.app.limits = new.limits
        self.forwarder.answer_s, self.forwarder.attempts = limits.answer_s, new.circuit.attempts
        self.users.reconfigure(
            rate=limits.user_rate, burst=limits.user_burst, concurrency=limits.user_concurrency, users=limits.users
        )
        if old.pool != new.pool:
            self.advice.reconfigure(new.pool)
        if changed.models:
            self.catalogue.reconfigure(new.models, new.discovery)
        if changed.fleet:
            conductor.carry_out(self.dispatcher.reconfigure(now, new.pool.fleet))
        if changed.policies or changed.fleet:
            conductor.carry_out(self.dispatcher.replace_policies(now, *_policies(new.pool), keyless=new.pool.keyless))
        if changed.command and isinstance(self.ports.platform, LocalPlatform):
            self.ports.platform.reconfigure(new.platform.command)
        if changed.addresses and new.platform.static is not None and isinstance(self.ports.platform, StaticPlatform):
            self.ports.platform.reconfigure(new.platform.static)
        if changed.command or old.pool.packer != new.pool.packer:
            conductor.renew(new.pool.packer)
        self.ports.log.event("configuration-reloaded", cause=",".join(changed.restart), instances=len(conductor.places))

    async def _watch(self) -> None:
        while True:
            try:
                await self.watch.run()
            except Exception as error:  # noqa: BLE001  # a tick that fails is logged, and the next one comes
                self.ports.log.event("internal-error", level="error", error=type(error).__name__, where="watch")

    def _metrics(self) -> bytes:
        self.telemetry.instances(states(self.dispatcher.snapshot))
        return self.telemetry.registry.exposition()


def _policies(pool: PoolSettings) -> tuple[Packer[Any], Balancer[Any], Scaler[Any]]:
    return (
        policies.packer(pool.packer, cost_weight=pool.cost_weight),
        policies.balancer(pool.balancer),
        policies.scaler(
            pool.scaler,
            bounds=Bounds(pool.min_instances, pool.max_instances),
            slo_ms=pool.slo_ms,
            window_s=pool.window_s,
        ),
    )


def open_store(url: str, clock: Clock) -> ModelStore | None:
    """As ``adapters.modelstore.opened`` knows them; None for nothing. Lookups are few at a time: none may take long.

    :raises CloisterError: as ``opened.open_store``.
    """
    if not url:
        return None
    return opened.open_store(url, HttpClient(clock), Patience(clock, attempts=2, deadline_s=10.0, attempt_s=5.0))


async def serve(
    file: Path,
    state: Path,
    *,
    listen: tuple[str, int] | Path,
    clock: Clock,
    log: EventLog,
    announce: Callable[[str], None],
) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP reloads ``file``. Returns how many requests were cut at the end.

    :param state: of this gateway alone: records and logs of instances, and its address.
    :raises CloisterError: the configuration is malformed, the state is in use, the address is taken.
    """
    configuration = config.read(file)
    settings = configuration.platform
    platform = make_platform(settings, state, log)
    await platform.open()
    gateway = Gateway(configuration, Ports(platform, open_store(configuration.store, clock), clock, log))
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, gateway, file)
    try:
        if isinstance(listen, Path):
            address = await gateway.open(path=listen)
        else:
            address = await gateway.open(*listen)
        _write_address(state / ADDRESS_FILE, address)
        log.event("listening", address=address, platform=settings.kind, policy=configuration.pool.packer)
        announce(address)
        await stopping.wait()
    finally:
        cut = await gateway.close(gateway.configuration.limits.drain_s)
        if gateway.configuration.platform.on_exit == "stop":
            await platform.stop_all()
        await platform.close()
        (state / ADDRESS_FILE).unlink(missing_ok=True)
    return cut


def _reload(gateway: Gateway, file: Path) -> None:
    """A file that is malformed changes nothing."""
    try:
        gateway.reload(config.read(file))
    except CloisterError as error:
        gateway.ports.log.event("configuration-refused", level="error", code=error.code, error=error.message)


def _write_address(path: Path, address: str) -> None:
    temporary = path.with_suffix(".new")
    try:
        temporary.write_text(address + "\n")
        os.replace(temporary, path)  # noqa: PTH105
    except OSError as error:
        raise Unavailable("state-unavailable", f"cannot write {path}: {error.strerror}") from error
