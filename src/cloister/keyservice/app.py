"""Where the KeyService's ports meet their adapters."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.logs import EventLog
from cloister.adapters.metrics import Registry
from cloister.adapters.tee.measurement import own_code
from cloister.adapters.witness import HttpWitness, WitnessPort
from cloister.attest.configuration import decode_configuration
from cloister.attest.types import CollateralSource, TeeType
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import BLOCK_ENTRIES
from cloister.keyservice.anchors.majority import MajorityAnchor
from cloister.keyservice.anchors.port import Anchor, Unanchored
from cloister.keyservice.anchors.probe import probe
from cloister.keyservice.anchors.witnesses import WitnessAnchor
from cloister.keyservice.bundles import Bundles
from cloister.keyservice.control import CONTROL_FILE, make_control
from cloister.keyservice.custody.upkeep import NO_CUSTODIANS, Custodians, Custody
from cloister.keyservice.epochs import Epochs
from cloister.keyservice.keeper import Keeper
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.limiting.limiter import Limiter
from cloister.keyservice.limiting.rates import Rates
from cloister.keyservice.offline import ROOT_FILE
from cloister.keyservice.opening import Tee
from cloister.keyservice.releases import Releases
from cloister.keyservice.replication.acceptance import Acceptance
from cloister.keyservice.replication.handover import Donor
from cloister.keyservice.replication.peers import HttpPeer, replica_identity
from cloister.keyservice.replication.replica import Peer, Replica
from cloister.keyservice.root import Root
from cloister.keyservice.rotation import require_root, stored
from cloister.keyservice.server import KeyServiceServer
from cloister.keyservice.service import KeyService
from cloister.keyservice.settings import NO_ROLLBACK_PROTECTION, Settings
from cloister.keyservice.standing import Standing
from cloister.keyservice.storage.place import StorePlace, store_place
from cloister.keyservice.storage.port import Rows
from cloister.keyservice.telemetry import Telemetry, observe_anchor, observe_keeper, observe_replica

if TYPE_CHECKING:
    import ssl

ADDRESS_FILE: Final = "address"
NO_BUNDLE: Final = bytes(32)
DRAIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Assembled:
    """A KeyService that answers, not listening yet."""

    service: KeyService
    ledger: Ledger
    releases: Releases
    telemetry: Telemetry
    root: Root
    anchor: Anchor
    keeper: Keeper
    replica: Replica | None = None


def assemble(
    rows: Rows,
    root: Root,
    tee: Tee,
    settings: Settings,
    *,
    clock: Clock,
    collateral: CollateralSource,
    events: EventLog,
    bundle_digest: Callable[[], bytes] = lambda: NO_BUNDLE,
    witnesses: Sequence[WitnessPort] = (),
    bundle: Callable[[], bytes] | None = None,
    identity: bytes = b"",
    peers: Sequence[Peer] = (),
    rates: Rates | None = None,
    block_entries: int = BLOCK_ENTRIES,
    custodians: Custodians = NO_CUSTODIANS,
) -> Assembled:
    """Everything but the transport.

    :param rates: how much it lets through; by default as much as ``Rates`` says.
    :param witnesses: how to reach those of the settings.
    :param bundle: the operator's trust bundle file; replicas need one. ``bundle_digest``: where there is none.
    :param identity: what this replica is counted by; :param peers: the others, and perhaps itself.
    :param block_entries: entries of a block of the store (13.23.2).
    :param custodians: public keys of all that the settings name.
    :raises InvalidInput: ``witness-addresses``, ``bundle-missing``, ``custodian-keys``.
    :raises Tampered: somebody changed the store. :raises Unavailable: store or evidence are away.
    """
    anchor: Anchor = Unanchored()
    try:
        if settings.replicas and bundle is None:
            raise InvalidInput("bundle-missing", "replicas judge each other by the trust bundle; say --bundle FILE")
        if bool(settings.replicas) is not bool(peers):
            raise InvalidInput(
                "peer-addresses",
                f"there are {settings.replicas} replicas by the configuration, and {len(peers)} peers were named",
                hint="Say --peer URL for each other replica; `replicas` in the configuration says how many there are.",
            )
        custodians.check(settings)
        anchor = make_anchor(settings, root, witnesses, clock, events)
        ledger = Ledger(stored(rows, root, block_entries), clock, anchor, own_code(tee.attester))
        ledger.watch(lambda error: events.event("store-tampered", level="error", code=error.code))
        if not settings.replicas or ledger.head().size:  # a replica that joined has nothing yet
            require_root(ledger, root, catching_up=bool(settings.replicas))
        bundles = make_bundles(settings, ledger, bundle, events)
        configuration = settings.measured()
        epochs = Epochs(
            tee.attester,
            clock,
            keyservice=root.id,
            log_keys=root.log_keys,
            configuration=configuration.encoded,
            bundle_digest=bundle_digest if bundles is None else bundles.digest,
            length_s=settings.epoch_s,
            grace_s=settings.epoch_grace_s,
        )
        donor = make_donor(settings, root, ledger=ledger, epochs=epochs, bundles=bundles, collateral=collateral)
        acceptance = make_acceptance(epochs, bundles, donor, events)
        replica = make_replica(
            settings,
            root,
            acceptance=acceptance,
            ledger=ledger,
            anchor=anchor,
            witnesses=witnesses,
            identity=identity,
            peers=peers,
            clock=clock,
            events=events,
        )
    except BaseException:
        anchor.close()
        rows.close()
        raise
    registry = Registry()
    telemetry = Telemetry(registry, clock)
    limiter = Limiter(rates or Rates(), clock, telemetry.limited)
    releases = Releases(
        ledger,
        anchors=settings.anchors(),
        collateral=collateral,
        bounds=settings.bounds(),
        session_s=settings.session_s,
        limiter=limiter,
    )
    registry.gauge(
        "cloister_keyservice_growth_room", "How much more people may say now, 0 to 1 of a burst.", ask=limiter.room
    )
    registry.gauge("cloister_keyservice_sessions", "Sessions of runtimes.", ask=lambda: len(releases.sessions))
    registry.gauge("cloister_keyservice_log_entries", "Entries of the log.", ask=lambda: ledger.head().size)
    service = KeyService(
        ledger,
        epochs,
        releases,
        root=root,
        settings=settings,
        configuration=decode_configuration(configuration.encoded),
        events=events,
        telemetry=telemetry,
        limiter=limiter,
        anchor=anchor,
        bundles=bundles,
        donor=donor,
        acceptance=acceptance,
        custody=Custody(
            ledger, anchor, custodians, root=root, settings=settings, code=tee.code(settings), events=events
        ),
    )
    keeper = Keeper(ledger, clock, events)
    observe_keeper(registry, keeper)
    observe_anchor(registry, anchor)
    if replica is not None and isinstance(anchor, MajorityAnchor):
        observe_replica(registry, replica, anchor)
    return Assembled(service, ledger, releases, telemetry, root, anchor, keeper, replica)


def make_anchor(
    settings: Settings, root: Root, witnesses: Sequence[WitnessPort], clock: Clock, events: EventLog
) -> Anchor:
    """What confirms heads, as the settings say.

    :raises InvalidInput: ``witness-addresses``.
    """
    if settings.rollback_protection == NO_ROLLBACK_PROTECTION:
        if witnesses:
            raise InvalidInput(
                "witness-addresses",
                "addresses of witnesses were given, but the configuration names none",
                hint='Add rollback_protection = "witnesses" to it; it is measured.',
            )
        return Unanchored()

    def asking() -> WitnessAnchor:
        return WitnessAnchor(
            witnesses,
            keys=settings.witnesses,
            threshold=settings.witness_threshold,
            keyservice=root.id,
            log_key=root.log_key,
            log_keys=root.log_keys,
            clock=clock,
            events=events,
        )

    anchor = asking()
    if not settings.replicas:
        return anchor
    return MajorityAnchor(settings.replicas, threshold=settings.witness_threshold, witnesses=asking, clock=clock)


def make_replica(
    settings: Settings,
    root: Root,
    *,
    acceptance: Acceptance | None,
    ledger: Ledger,
    anchor: Anchor,
    witnesses: Sequence[WitnessPort],
    identity: bytes,
    peers: Sequence[Peer],
    clock: Clock,
    events: EventLog,
) -> Replica | None:
    """What makes this one of several; ``None`` where there is one only."""
    if not isinstance(anchor, MajorityAnchor):
        return None
    return Replica(
        ledger,
        anchor,
        identity=identity,
        root=root,
        replicas=settings.replicas,
        witnesses=settings.witnesses,
        threshold=settings.witness_threshold,
        peers=peers,
        probe=lambda: probe(
            witnesses,
            ledger,
            keys=settings.witnesses,
            threshold=settings.witness_threshold,
            keyservice=root.id,
            log_keys=root.log_keys,
        ),
        clock=clock,
        events=events,
        accepted=lambda: acceptance is None or acceptance.accepted,
    )


def make_bundles(
    settings: Settings, ledger: Ledger, offered: Callable[[], bytes] | None, events: EventLog
) -> Bundles | None:
    """Which trust bundle is in use, where one is configured (clause 13.26.1).

    :raises CloisterError: as :class:`~cloister.keyservice.bundles.Bundles`.
    """
    if offered is None:
        return None
    return Bundles(ledger, offered, root=settings.bundle_root, minimum=settings.bundle_version, events=events)


def make_donor(
    settings: Settings,
    root: Root,
    *,
    ledger: Ledger,
    epochs: Epochs,
    bundles: Bundles | None,
    collateral: CollateralSource,
) -> Donor | None:
    """Who hands the root secret to further replicas and to successors (clauses 13.15, 13.26)."""
    if bundles is None:
        return None
    return Donor(
        root,
        configuration=settings.measured(),
        own=lambda: epochs.current().description,
        bundle=bundles.current,
        collateral=collateral,
        ledger=ledger,
    )


def make_acceptance(
    epochs: Epochs, bundles: Bundles | None, donor: Donor | None, events: EventLog
) -> Acceptance | None:
    """Whether the bundle in use accepts this very KeyService (clause 13.26.7); ``None`` where there is no bundle."""
    if bundles is None or donor is None:
        return None
    return Acceptance(lambda: epochs.current().description, bundles.current, donor.appraised, events=events)


async def serve(
    state: Path,
    root: Root,
    tee: Tee,
    settings: Settings,
    *,
    host: str,
    port: int,
    clock: Clock,
    collateral: CollateralSource,
    bundle: Callable[[], bytes] | None,
    events: EventLog,
    ready: Callable[[str], None],
    tls: ssl.SSLContext | None = None,
    witnesses: Sequence[str] = (),
    peers: Sequence[str] = (),
    rates: Rates | None = None,
    control_on: tuple[str, int] | None = None,
    store: StorePlace | None = None,
    custodians: Custodians = NO_CUSTODIANS,
) -> None:
    """Run until SIGTERM or SIGINT, then drain. The address stands in the state directory while it listens.

    :raises Tampered: the store does not hold what was written to it: the scrub, or what somebody asked, showed it.

    :param ready: called with the address once calls are answered.
    :param tls: to speak TLS; calls are sealed with and without it.
    :param witnesses: addresses of those in the settings; :param peers: of the other replicas.
    :param rates: and :param custodians: as :func:`assemble`.
    :param control_on: loopback address for the operator, in place of the socket in the state directory.
    :param store: where its records are; by default in the state directory.
    """
    rows, name = (store or store_place(state)).open()
    client = HttpClient(clock)
    assembled = assemble(
        rows,
        root,
        tee,
        settings,
        clock=clock,
        collateral=collateral,
        bundle=bundle,
        events=events,
        witnesses=[HttpWitness(client, address) for address in witnesses],
        identity=(name or replica_identity(state)) if settings.replicas else b"",
        peers=[HttpPeer(client, address) for address in peers],
        rates=rates,
        custodians=custodians,
    )
    replica = assembled.replica
    server = KeyServiceServer(
        assembled.service, assembled.telemetry, log=events, keeper=assembled.keeper, replica=replica
    )
    control = make_control(
        state,
        Standing(assembled, rows, settings, tee, clock, lambda: server.address, tuple(witnesses)),
        root_file=state / ROOT_FILE,
        events=events,
    )
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    assembled.ledger.watch(lambda _error: _from_thread(loop, stopping))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        await server.start(host, port, tls=tls)
        await (control.start_on(*control_on) if control_on else control.start(state / CONTROL_FILE))
        if replica is not None:
            replica.start()
        _write_address(state / ADDRESS_FILE, server.address)
        events.event(
            "started",
            address=server.address,
            measurement=tee.measurement.hex(),
            tee=tee.attester.tee.value,
            simulated=tee.attester.tee is TeeType.SIMULATION,
        )
        ready(server.address)
        await stopping.wait()
    finally:
        with contextlib.suppress(OSError):
            (state / ADDRESS_FILE).unlink()
        await control.stop()
        cut = await server.stop(DRAIN_S)
        client.close()
        events.event("stopped", count=cut)
    if assembled.ledger.condemned is not None:
        raise assembled.ledger.condemned


def _from_thread(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped already
        loop.call_soon_threadsafe(event.set)


def _write_address(path: Path, address: str) -> None:
    """Whole or not at all, for whoever waits for it."""
    temporary = path.with_suffix(".new")
    try:
        temporary.write_text(address + "\n", encoding="ascii")
        temporary.replace(path)
    except OSError as error:
        raise Unavailable("state-unwritable", f"{path} cannot be written: {error.strerror}") from error
