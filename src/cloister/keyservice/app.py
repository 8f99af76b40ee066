"""Where the KeyService's ports meet their adapters."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.logs import EventLog
from cloister.adapters.metrics import Registry
from cloister.adapters.tee.measurement import own_code
from cloister.adapters.witness import HttpWitness, WitnessPort
from cloister.attest.bundle import TrustBundle, open_bundle
from cloister.attest.configuration import decode_configuration
from cloister.attest.types import Attester, CollateralSource, Sealer, TeeType
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput, Refused, Unavailable
from cloister.base.limits import BLOCK_ENTRIES, KIB, MAX_BUNDLE
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.keyservice.anchors.majority import MajorityAnchor
from cloister.keyservice.anchors.port import Anchor, Unanchored
from cloister.keyservice.anchors.probe import probe
from cloister.keyservice.anchors.witnesses import WitnessAnchor
from cloister.keyservice.bundles import Bundles
from cloister.keyservice.control import CONTROL_FILE, make_control
from cloister.keyservice.custody.upkeep import NO_CUSTODIANS, Custodians, Custody, renew_now
from cloister.keyservice.epochs import Epochs
from cloister.keyservice.keeper import Keeper
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.limiting.limiter import Limiter
from cloister.keyservice.limiting.rates import Rates
from cloister.keyservice.releases import Releases
from cloister.keyservice.replication.acceptance import Acceptance
from cloister.keyservice.replication.handover import Donor
from cloister.keyservice.replication.peers import HttpPeer, replica_identity
from cloister.keyservice.replication.replica import Peer, Replica
from cloister.keyservice.root import Root, make_root, new_root
from cloister.keyservice.rotation import require_root, rotate_root, settled_root, stored
from cloister.keyservice.server import KeyServiceServer
from cloister.keyservice.service import KeyService
from cloister.keyservice.settings import NO_ROLLBACK_PROTECTION, Settings
from cloister.keyservice.standing import Standing
from cloister.keyservice.storage.place import StorePlace, store_place
from cloister.keyservice.storage.port import Rows
from cloister.keyservice.telemetry import Telemetry, observe_anchor, observe_keeper, observe_replica
from cloister.log.entry import Genesis
from cloister.wire.custody import Code

if TYPE_CHECKING:
    import ssl

ROOT_FILE: Final = "root.sealed"
ADDRESS_FILE: Final = "address"
NO_BUNDLE: Final = bytes(32)
DRAIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Tee:
    """Where it runs: evidence, sealing, and what the evidence says of the code.

    :param sealer: ``None`` where the TEE has no key that survives a restart: a replica's root secret is in memory only.
    """

    attester: Attester
    sealer: Sealer | None
    measurement: bytes

    def code(self, settings: Settings) -> Code:
        """What a recovery record names it by (clause 13.24.4)."""
        return Code(self.attester.tee.value, self.measurement, settings.measured().digest)


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


def read_settings(path: Path | None) -> Settings:
    """The configuration file, TOML.

    :raises InvalidInput: ``configuration-malformed``.
    """
    if path is None:
        return Settings()
    try:
        with path.open("rb") as file:
            return Settings.read(tomllib.loads(file.read(64 * KIB).decode()))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput("configuration-malformed", f"{path} is not readable as TOML: {error}") from error


def simulated_tee(key_file: Path, settings: Settings, clock: Clock) -> Tee:
    """The simulated TEE, measured over the installed code; the key file is the "platform".

    :param key_file: 64 hexadecimal digits, the seed of an Ed25519 key.
    :raises InvalidInput: ``simulation-key-malformed``. :raises Unavailable: ``installation-unreadable``.
    """
    from cloister.adapters.tee.simulation import SimulatedAttester, SimulatedSealer, measure_installation

    try:
        seed = SecretBytes.key(bytes.fromhex(key_file.read_text(encoding="ascii").strip()))
    except (OSError, ValueError, InvalidInput) as error:
        raise InvalidInput(
            "simulation-key-malformed",
            f"{key_file} does not hold a simulation key",
            hint="It is a file with 64 hexadecimal digits.",
        ) from error
    key, measurement, digest = SigningKey.from_seed(seed), measure_installation(), settings.measured().digest
    attester = SimulatedAttester(key, clock, configuration_digest=digest, measurement=measurement)
    return Tee(attester, SimulatedSealer(seed, measurement=measurement, configuration_digest=digest), measurement)


def hardware_tee(settings: Settings) -> Tee:
    """The TEE of this machine, whichever it is; never simulation. One of several replicas needs no sealing key.

    :raises Unavailable: ``evidence-unavailable``, ``sealing-unavailable``.
    :raises Refused: ``tee-ambiguous``. :raises Tampered: ``evidence-device-lied``.
    """
    from cloister.adapters.tee.open import open_tee

    found = open_tee(settings.measured().digest, sealing_needed=not settings.replicas)
    return Tee(found.attester, found.sealer, found.measurement)


def offered_bundle(path: Path | None, settings: Settings) -> Callable[[], bytes] | None:
    """The operator's trust bundle file, read anew each time; ``None`` where none is configured.

    :raises InvalidInput: ``bundle-missing`` when the configuration names a bundle root and there is no file;
        ``bundle-unexpected`` the other way round.
    """
    if not settings.bundle_root:
        if path is not None:
            raise InvalidInput(
                "bundle-unexpected",
                "a trust bundle was given, but the configuration names no bundle_root",
                hint="Add bundle_root to the KeyService's configuration; it is measured.",
            )
        return None
    if path is None:
        raise InvalidInput("bundle-missing", "the configuration names a bundle_root; say --bundle FILE")

    def read() -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(MAX_BUNDLE + 1)
        except OSError as error:
            raise Unavailable("bundle-unreadable", f"{path} cannot be read: {error.strerror}") from error

    return read


def trust_bundle(offered: Callable[[], bytes], settings: Settings, clock: Clock) -> Callable[[], TrustBundle]:
    """What is offered, believed; for one that has no log yet."""
    return lambda: open_bundle(offered(), settings.bundle_root, settings.bundle_version, clock.now())


def initialise(
    state: Path,
    tee: Tee,
    settings: Settings,
    clock: Clock,
    store: StorePlace | None = None,
    *,
    custodians: Custodians = NO_CUSTODIANS,
) -> Root:
    """Make a new KeyService in a directory: root secret, store, first log entry, shares for custodians.

    Without a sealing key the root secret is in what is returned only.

    :param store: where its records go; by default in the same directory.
    :param custodians: public keys of all that the settings name.
    :raises InvalidInput: ``custodian-keys``.
    :raises Refused: ``state-exists``.
    :raises Unavailable: ``state-unwritable``, ``store-...``, ``custodians-extra-missing``.
    """
    custodians.check(settings)
    store = store or store_place(state)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable("state-unwritable", f"{state} cannot be made: {error.strerror}") from error
    if store.exists():
        raise Refused("state-exists", f"{store.name} holds a KeyService already")
    if (state / ROOT_FILE).exists():
        raise Refused("state-exists", f"{state} holds a root secret already")
    rows, _ = store.open()  # before there is a secret: a database that is away leaves nothing behind
    try:
        root = new_root() if tee.sealer is None else make_root(state / ROOT_FILE, tee.sealer)
    except BaseException:
        rows.close()
        raise
    ledger = begin(rows, root, settings, clock)
    try:
        Custody(ledger, Unanchored(), custodians, root=root, settings=settings, code=tee.code(settings)).upkeep()
    finally:
        ledger.close()
    return root


def kept_root(state: Path, sealer: Sealer, store: StorePlace | None = None) -> Root:
    """The root of a KeyService that was made or joined in this directory.

    :param store: where its records are; by default in the same directory.
    :raises Unavailable: ``state-missing``, ``state-unreadable``. :raises Tampered: as :func:`settled_root`.
    """
    return settled_root(state / ROOT_FILE, sealer, (store or store_place(state)).rows)


def rotate(
    state: Path,
    tee: Tee,
    settings: Settings,
    *,
    clock: Clock,
    witnesses: Sequence[WitnessPort] = (),
    store: StorePlace | None = None,
    custodians: Custodians = NO_CUSTODIANS,
) -> Root:
    """Give the KeyService of this directory, which does not run, another root, and custodians shares of it.

    :raises InvalidInput: ``custodian-keys``. :raises CloisterError: as :func:`rotate_root`. After one, a set that is
        due is made by the KeyService when it runs.
    """
    custodians.check(settings)
    if tee.sealer is None:
        raise AssertionError
    rows = (store or store_place(state)).rows
    root = rotate_root(state / ROOT_FILE, tee.sealer, settings, rows, clock=clock, witnesses=witnesses)
    renew_now(rows(), root, custodians, settings=settings, code=tee.code(settings), clock=clock)
    return root


def begin(rows: Rows, root: Root, settings: Settings, clock: Clock) -> Ledger:
    """A new log in an empty store."""
    try:
        genesis = Genesis(root.id, root.log_key.public_key, settings.measured().encoded)
        return Ledger.begin(stored(rows, root), clock, genesis)
    except BaseException:
        rows.close()
        raise


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
