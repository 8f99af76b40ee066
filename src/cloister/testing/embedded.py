"""The real KeyService in this process, on a disk in memory and in a simulated TEE: nothing of it is fake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from cloister.adapters.keyservice import BUNDLE_PATH
from cloister.adapters.logs import EventLog
from cloister.adapters.witness import WitnessPort
from cloister.attest.bundle import TrustBundle
from cloister.attest.types import CollateralSource
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput
from cloister.base.limits import BLOCK_ENTRIES
from cloister.base.secret import SecretBytes
from cloister.crypto.hpke import HpkePrivateKey
from cloister.crypto.sign import SigningKey
from cloister.keyservice.anchors.port import Unanchored
from cloister.keyservice.app import NO_BUNDLE, Assembled, assemble
from cloister.keyservice.custody.upkeep import Custodians, Custody
from cloister.keyservice.limiting.rates import Rates
from cloister.keyservice.offline import ROOT_FILE, begin
from cloister.keyservice.opening import Tee
from cloister.keyservice.replication.handover import (
    CHALLENGE_PATH,
    DESCRIPTION_PATH,
    HANDOVER_PATH,
    LEADER_CHALLENGE_PATH,
    LEADER_HANDOVER_PATH,
)
from cloister.keyservice.replication.replica import Peer, Replica
from cloister.keyservice.root import Root, keep_root, root_of
from cloister.keyservice.rotation import rotate_root
from cloister.keyservice.service import KeyService
from cloister.keyservice.settings import Settings
from cloister.keyservice.storage.port import Rows
from cloister.testing.clock import FakeClock
from cloister.testing.collateral import NoCollateral
from cloister.testing.logs import MemoryLog
from cloister.testing.people import Person
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.testing.tee import SimulatedTee
from cloister.wire import calls, provisioning
from cloister.wire.calls import WireEvidence
from cloister.wire.custody import custodian_id
from cloister.wire.provisioning import AttestRequest, Release, ReleaseRequest, Session


@final
class EmbeddedKeyService:
    """``cloister.adapters.keyservice.Transport`` to a KeyService that lives as long as this object.

    :param seed: of its root secret; the same one over the same disk is the same KeyService. ``root``: one that was
        rotated, instead.
    :param witnesses: how it reaches those that its settings name with ``witness_keys``.
    :param bundle_key: signs the trust bundle under which it runs: ``bundle``, or one that names it.
    :param identity: and ``peers``: of one of several replicas; ``empty``: which joined, and has no entry yet.
    :param rates: how much it lets through.
    :param custodian_keys: public keys of its custodians, of whom ``custodian_threshold`` bring it back.
    :param runtime_tee: whose evidence it accepts from runtimes; it runs on the same platform itself.
    :param block_entries: of a block of its store; few, so that a short log has several.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        disk: MemoryDisk | None = None,
        rows: Rows | None = None,
        seed: bytes = b"r" * 32,
        root: Root | None = None,
        runtime_tee: SimulatedTee | None = None,
        collateral: CollateralSource | None = None,
        bundle_digest: Callable[[], bytes] = lambda: NO_BUNDLE,
        events: EventLog | None = None,
        witnesses: Sequence[WitnessPort] = (),
        witness_keys: tuple[bytes, ...] = (),
        bundle_key: SigningKey | None = None,
        bundle: TrustBundle | None = None,
        code: str = "keyservice",
        world: Clock | None = None,
        identity: bytes = bytes(16),
        empty: bool = False,
        peers: Sequence[Peer] = (),
        rates: Rates | None = None,
        block_entries: int = BLOCK_ENTRIES,
        custodian_keys: Sequence[bytes] = (),
        reshare: bool = False,
        **settings: Any,
    ) -> None:
        self.clock = clock or FakeClock()
        self.disk = disk or MemoryDisk()
        self.runtime_tee = runtime_tee or SimulatedTee("runtime", clock=self.clock)
        self._custodians = Custodians({custodian_id(key): key for key in custodian_keys}, renew=reshare)
        if custodian_keys:
            settings.setdefault("custodians", tuple(self._custodians.keys))
        if bundle_key is not None:
            settings["bundle_root"] = bundle_key.public_key
        self.settings = Settings(simulation_keys=(self.runtime_tee.key.public_key,), witnesses=witness_keys, **settings)
        self.tee = SimulatedTee(
            code, values=self.settings.measured().values, key=self.runtime_tee.key, clock=self.clock
        )
        self.events = events or MemoryLog()
        self.root = root or root_of(SecretBytes(seed))
        self._rows = rows
        self._witnesses = tuple(witnesses)
        self._identity = identity
        self._peers = tuple(peers)
        self._rates = rates
        self._block_entries = block_entries
        self._collateral = collateral or NoCollateral()
        self._bundle_key = bundle_key
        self.bundle = (
            replace(self.tee, clock=world or self.clock).bundle(bundle_key)
            if bundle is None and bundle_key is not None
            else bundle
        )
        self._bundle_digest = bundle_digest
        if rows is None and not self.disk.tables["entries"] and not empty:
            ledger = begin(MemoryRows(self.disk), self.root, self.settings, self.clock)
            Custody(
                ledger,
                Unanchored(),
                self._custodians,
                root=self.root,
                settings=self.settings,
                code=self.as_tee().code(self.settings),
            ).upkeep()
            ledger.close()
        self.assembled = self._assemble()

    def as_tee(self) -> Tee:
        """Where it runs."""
        return Tee(self.tee.attester(), self.tee.sealer(), self.tee.measurement)

    def _assemble(self) -> Assembled:
        return assemble(
            self._storage(),
            self.root,
            self.as_tee(),
            self.settings,
            clock=self.clock,
            collateral=self._collateral,
            bundle_digest=self._bundle_digest,
            bundle=None if self.bundle is None else self._offered,
            events=self.events,
            witnesses=self._witnesses,
            identity=self._identity,
            peers=self._peers,
            rates=self._rates,
            block_entries=self._block_entries,
            custodians=self._custodians,
        )

    def _storage(self) -> Rows:
        return self._rows if self._rows is not None else MemoryRows(self.disk)

    def _offered(self) -> bytes:
        if self.bundle is None or self._bundle_key is None:
            raise AssertionError
        return self.bundle.sign(self._bundle_key)

    @property
    def service(self) -> KeyService:
        """The service itself."""
        return self.assembled.service

    @property
    def replica(self) -> Replica:
        """What makes it one of several."""
        if self.assembled.replica is None:
            raise AssertionError
        return self.assembled.replica

    @property
    def id(self) -> bytes:
        """The KeyService's id."""
        return self.root.id

    @property
    def log_key(self) -> bytes:
        """Public half of its log key."""
        return self.root.log_key.public_key

    def restart(self) -> None:
        """Close it and start it again on the same disk."""
        self.close()
        self.assembled = self._assemble()

    def rotate(self, folder: Path) -> None:
        """Stop it, rotate its root, whose sealed file is in ``folder``, and start it again."""
        self.close()
        path = folder / ROOT_FILE
        if not path.exists():
            keep_root(path, self.root, self.tee.sealer())
        self.root = rotate_root(
            path, self.tee.sealer(), self.settings, self._storage, clock=self.clock, witnesses=self._witnesses
        )
        self.assembled = self._assemble()

    def close(self) -> None:
        """Let the disk go."""
        self.service.close()

    # --- Transport ---

    def get(self, path: str, *, limit: int) -> bytes:
        """One HTTP GET, as the server routes it."""
        routes = {
            "/v1/description": self.service.description,
            "/v1/checkpoint": self.service.checkpoint,
            DESCRIPTION_PATH: self.service.description,
            BUNDLE_PATH: self.service.bundle,
        }
        if path not in routes:
            raise InvalidInput("not-found", "there is nothing here")
        return routes[path]()[:limit]

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        """One HTTP POST, as the server routes it."""
        routes: dict[str, Callable[[bytes], bytes]] = {
            "/v1/status": self.service.status,
            "/v1/challenge": lambda _: self.service.challenge(),
            "/v1/consistency": self.service.consistency,
            "/v1/leaves": self.service.leaves,
            "/v1/call": self.service.call,
            "/v1/session": self.service.session,
            CHALLENGE_PATH: lambda _: self.service.handover_challenge(),
            HANDOVER_PATH: self.service.hand_over,
            LEADER_CHALLENGE_PATH: lambda _: self.service.handover_challenge(),
            LEADER_HANDOVER_PATH: self.service.hand_over,
        }
        if path not in routes:
            raise InvalidInput("not-found", "there is nothing here")
        return routes[path](body)[:limit]

    # --- people ---

    def person(self, seed: bytes | None = None, *, register: bool = True) -> Person:
        """A registered identity."""
        person = Person(self.id, self.clock, seed)
        if register:
            self.say(person.register())
        return person

    def say(self, statement: bytes, *keys: SecretBytes) -> dict[str, Any]:
        """One sealed statement; the acknowledgement."""
        return self.call(calls.STATEMENT, statement, keys)

    def ask(self, person: Person, kind: str, **about: Any) -> dict[str, Any]:
        """One sealed query; its result."""
        return self.call(calls.QUERY, person.query(kind, about))

    def call(self, kind: str, body: bytes, keys: tuple[SecretBytes, ...] = ()) -> dict[str, Any]:
        """One sealed call; its result."""
        pending = calls.seal_call(calls.Description.decode(self.service.description()), kind, body, keys)
        return calls.open_reply(pending, self.service.call(pending.data))

    # --- runtimes ---

    def attest(self, tee: SimulatedTee | None = None) -> RuntimeSession:
        """A runtime proves itself; its session."""
        tee = tee or self.runtime_tee
        request, key = attest_request(tee, self.service.challenge())
        result = self.call(calls.ATTEST, request.encode())
        return RuntimeSession(self, provisioning.accept_session(result, request, key))


def attest_request(tee: SimulatedTee, challenge: bytes) -> tuple[AttestRequest, HpkePrivateKey]:
    """What a runtime sends to open a session, and the key to which the session is sealed."""
    key = HpkePrivateKey.generate()
    configuration, bundle = tee.configuration.encoded, bytes(32)
    bound = provisioning.runtime_report_data(key.public_key, challenge, configuration, bundle)
    evidence = tee.attester().evidence(bound)
    wire = WireEvidence(evidence.tee.value, evidence.body, {})
    return AttestRequest(key.public_key, challenge, configuration, bundle, wire), key


@final
class RuntimeSession:
    """A runtime's session with an :class:`EmbeddedKeyService`."""

    def __init__(self, keyservice: EmbeddedKeyService, session: Session) -> None:
        self._keyservice = keyservice
        self.session = session
        self.sequence = 0

    def seal(self, request: ReleaseRequest) -> bytes:
        """The next call of the session."""
        self.sequence += 1
        return provisioning.seal_session_call(self.session, self.sequence, request.fields())

    def release(self, request: ReleaseRequest) -> Release:
        """Ask for keys."""
        data = self.seal(request)
        reply = self._keyservice.service.session(data)
        return Release.read(provisioning.open_session_reply(self.session, data, reply))
