"""Composition root of the runtime: where its ports meet adapters, and how it starts and ends."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.server import HttpServer
from cloister.adapters.keyservice import HttpTransport, KeyServiceLink, VolatileHeads
from cloister.adapters.logs import EventLog
from cloister.adapters.modelstore.opened import open_store
from cloister.adapters.modelstore.patience import Patience
from cloister.attest.bundle import TrustBundle, open_bundle
from cloister.attest.types import Attester, CollateralSource
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput
from cloister.base.ids import ModelId
from cloister.base.limits import MAX_BUNDLE
from cloister.crypto.sign import SigningKey
from cloister.runtime.core import Ports, Runtime
from cloister.runtime.messages import RuntimeIdentity
from cloister.runtime.options import RuntimeOptions
from cloister.runtime.server import MAX_SEALED

_HOUSEKEEPING_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen: TCP, or a Unix socket where ``path`` is set."""

    host: str = "127.0.0.1"
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Listen:
        """``HOST:PORT`` or ``unix:PATH``.

        :raises InvalidInput: ``argument``.
        """
        if text.startswith("unix:/"):
            return cls(path=Path(text.removeprefix("unix:")))
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise InvalidInput("argument", "--listen takes HOST:PORT or unix:/PATH")
        return cls(host.strip("[]"), int(port))


def default_listen(environment: Mapping[str, str], otherwise: str) -> str:
    """Where to listen when nobody says: all addresses at ``$PORT``, which is how Knative and others tell a container.

    :raises InvalidInput: ``argument``.
    """
    port = environment.get("PORT", "")
    if not port:
        return otherwise
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidInput("argument", f"$PORT is {port[:20]!r}, which is no port")
    return f"0.0.0.0:{port}"


def read_bundle(path: Path, options: RuntimeOptions, clock: Clock) -> TrustBundle:
    """The trust bundle, as signed by the root that the measured configuration pins.

    :raises CloisterError: as ``attest.bundle.open_bundle``; ``bundle-unreadable``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BUNDLE + 1)
    except OSError as error:
        raise InvalidInput("bundle-unreadable", f"cannot read the trust bundle {path}: {error.strerror}") from error
    return open_bundle(data, options.bundle_root, options.bundle_version, clock.now())


def simulated(key_file: Path, options: RuntimeOptions, clock: Clock) -> tuple[Attester, RuntimeIdentity]:
    """The simulated TEE, measured over the installed code; the key file is the "platform".

    :param key_file: 64 hexadecimal digits, the seed of an Ed25519 key.
    :raises InvalidInput: ``simulation-key-malformed``. :raises Unavailable: ``installation-unreadable``.
    """
    from cloister.adapters.tee.simulation import SimulatedAttester, read_platform_seed

    configuration = options.measured().digest
    key = SigningKey.from_seed(read_platform_seed(key_file))
    attester = SimulatedAttester(key, clock, configuration_digest=configuration)
    return attester, RuntimeIdentity(attester.tee, attester.measurement, configuration)


def genuine(options: RuntimeOptions) -> tuple[Attester, RuntimeIdentity]:
    """The TEE of this machine.

    :raises Unavailable: ``evidence-unavailable``. :raises Refused: ``tee-ambiguous``.
    """
    from cloister.adapters.tee.detect import detect
    from cloister.adapters.tee.measurement import own_measurement

    attester = detect()
    return attester, RuntimeIdentity(attester.tee, own_measurement(attester), options.measured().digest)


def collateral_for(source: str | None, clock: Clock) -> CollateralSource:
    """Where collateral for the KeyService's evidence comes from; as ``adapters.collateral.configured`` names it.

    :raises InvalidInput: ``collateral-source``. :raises Unavailable: ``collateral-unavailable``.
    """
    from cloister.adapters.collateral.configured import open_collateral
    from cloister.attest.anchors import production_anchors

    return open_collateral(source, production_anchors(), clock)


def endorsed(tee: tuple[Attester, RuntimeIdentity], collateral: CollateralSource) -> tuple[Attester, RuntimeIdentity]:
    """The same TEE, whose evidence brings its collateral along (attestation.md, 11.8)."""
    from cloister.adapters.tee.endorsing import EndorsingAttester

    return EndorsingAttester(tee[0], collateral), tee[1]


def compose(
    options: RuntimeOptions,
    *,
    keyservice: str,
    bundle: Path,
    store: str,
    tee: tuple[Attester, RuntimeIdentity],
    collateral: CollateralSource,
    clock: Clock,
    log: EventLog,
) -> Runtime:
    """A runtime over real adapters.

    :param keyservice: its address. :param store: URL or directory, as ``adapters.modelstore.opened`` knows them.
    :raises CloisterError: as :func:`read_bundle` and ``open_store``, and for a malformed address.
    """
    trusted = read_bundle(bundle, options, clock)
    client = HttpClient(clock)
    link = KeyServiceLink(
        HttpTransport(client, keyservice),
        bundle=lambda: trusted,
        collateral=collateral,
        clock=clock,
        heads=VolatileHeads(),
    )
    attester, identity = tee
    ports = Ports(
        link=link,
        attester=attester,
        identity=identity,
        store=open_store(store, client, Patience(clock)),
        clock=clock,
        log=log,
        close=client.close,
    )
    return Runtime(options, ports)


def process_age() -> float:
    """Seconds since the kernel started this process; 0 where that cannot be read."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks = int(fields[19])
        import os

        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0


async def run_until_told(
    runtime: Runtime,
    listen: Listen,
    announce: Callable[[str], None],
    *,
    prewarm: Sequence[ModelId] = (),
    drain_s: float = 30.0,
) -> int:
    """Serve until SIGTERM or SIGINT, then drain; returns how many requests were cut."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return await serve(
        runtime,
        listen,
        stopping=stopping,
        announce=announce,
        init_s=process_age,
        prewarm=prewarm,
        drain_s=drain_s,
    )


async def serve(
    runtime: Runtime,
    listen: Listen,
    *,
    stopping: asyncio.Event,
    announce: Callable[[str], None],
    init_s: Callable[[], float],
    prewarm: Sequence[ModelId] = (),
    drain_s: float = 30.0,
) -> int:
    """Listen until ``stopping`` is set, then drain; returns how many requests were cut.

    :raises Unavailable: ``listen-failed``.
    """
    loop = asyncio.get_running_loop()
    server = HttpServer(runtime.app, log=runtime.ports.log, limits=ServerLimits(max_body=MAX_SEALED))
    await server.start(listen.host, listen.port, path=listen.path)
    announce(server.address)
    connecting = loop.run_in_executor(runtime.executor, partial(runtime.connect, init_s()))
    if prewarm:
        loop.run_in_executor(runtime.executor, runtime.prewarm, prewarm)
    house = asyncio.ensure_future(housekeeping(runtime, connecting))
    try:
        await stopping.wait()
    finally:
        house.cancel()
        cut = await server.drain(drain_s)
        await asyncio.gather(house, return_exceptions=True)
        await loop.run_in_executor(None, runtime.stop)
    return cut


async def housekeeping(runtime: Runtime, connecting: asyncio.Future[None]) -> None:
    """Once a second, from when the first attestation has been tried, until cancelled."""
    await asyncio.shield(connecting)
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(_HOUSEKEEPING_S)
        await loop.run_in_executor(runtime.executor, runtime.keep_house)
