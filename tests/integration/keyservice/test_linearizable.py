"""Grants, revocations, consents and releases by many at once look as if the KeyService did one thing at a time."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.access.records import Facts
from cloister.adapters.clock import SystemClock
from cloister.adapters.keyservice import Transport
from cloister.attest.bundle import TrustBundle
from cloister.base.clock import Clock
from cloister.base.errors import Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.keyservice import ledger
from cloister.keyservice.root import root_of
from cloister.keyservice.state.state import State
from cloister.log.entry import STATEMENT, Entry
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.linearizability import NotLinearizable
from cloister.testing.people import Person, simulation_policy
from cloister.testing.permission_links import HostileNetwork, LinkCaller
from cloister.testing.permissions import Denied, Granted, Released, Revoked, Saw, Storm
from cloister.testing.replicas import SEED, Cluster
from cloister.testing.tee import SimulatedTee
from cloister.testing.witness import local_witnesses, witnessed

PAIRS = 2


def storm(
    keyservice: bytes,
    transport: Callable[[], Transport],
    bundle: TrustBundle | None,
    tee: SimulatedTee,
    clock: Clock,
    **options: Any,
) -> Storm:
    """Not begun yet."""
    assert bundle is not None
    found = bundle
    people = [Person(keyservice, clock) for _ in range(4 * PAIRS)]
    policies = [simulation_policy(tee.measurement).encode()]
    policies += [simulation_policy(tee.measurement, maximum_age_s=36_000 + more).encode() for more in range(2)]

    def connect() -> LinkCaller:
        return LinkCaller(transport(), bundle=found, clock=clock, tee=tee)

    return Storm(people, connect, policies, pairs=PAIRS, **options)


def over(ks: EmbeddedKeyService, **options: Any) -> Storm:
    return storm(ks.id, lambda: ks, ks.bundle, ks.runtime_tee, ks.clock, **options)


def enough(made: Storm, number: int = 150) -> bool:
    counts = [made.history.count(kind) for kind in (Granted, Revoked, Released)]
    return min(counts) >= number // 10 and sum(counts) >= number


def run(
    made: Storm,
    until: Callable[[], bool],
    *,
    meanwhile: Callable[[], None] = lambda: time.sleep(0.02),
    prepare: LinkCaller | None = None,
) -> None:
    """At most a minute."""
    made.begin(prepare)
    end = time.monotonic() + 60
    while not until() and not made.faults:
        assert time.monotonic() < end, dict(made.history.errors)
        meanwhile()
    made.end()


def direct(ks: EmbeddedKeyService) -> LinkCaller:
    assert ks.bundle is not None
    return LinkCaller(ks, bundle=ks.bundle, clock=ks.clock, tee=ks.runtime_tee)


@pytest.fixture
def ks() -> Iterator[EmbeddedKeyService]:
    made = EmbeddedKeyService(clock=SystemClock(), bundle_key=SigningKey.generate())
    yield made
    made.close()


def test_one_keyservice(ks: EmbeddedKeyService) -> None:
    made = over(ks)
    run(made, lambda: enough(made) and made.history.count(Saw) > 30)
    assert made.history.check() > 400
    assert set(made.history.errors) <= {"release-refused"}


def test_behind_a_network_that_loses_repeats_and_delays(ks: EmbeddedKeyService) -> None:
    made = storm(ks.id, lambda: HostileNetwork(ks), ks.bundle, ks.runtime_tee, ks.clock)
    run(made, lambda: enough(made), prepare=direct(ks))
    made.history.check()
    assert min(made.history.errors[code] for code in ("keyservice-unreachable", "release-refused")) > 0


# --- a KeyService with a fault is found out ---


def releases_from_an_old_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """One decision in four rests on what was true at the one before."""
    facts, old = State.facts, {}

    def stale(self: State, user: bytes, model: ModelId) -> Facts:
        found = facts(self, user, model)
        before = old.get((user, model), found)
        old[user, model] = found
        return found if secrets.randbelow(4) else before

    monkeypatch.setattr(State, "facts", stale)


def forgets_a_revocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in two is acknowledged, and in the log, and changes nothing."""
    apply = ledger.apply

    def forgetful(state: State, entry: Entry) -> None:
        grants = dict(state.grants.items())
        apply(state, entry)
        if entry.kind == STATEMENT and len(grants) > len(dict(state.grants.items())) and secrets.randbelow(2):
            for key, grant in grants.items():
                if key not in state.grants:
                    state.grants.put(key, grant)

    monkeypatch.setattr(ledger, "apply", forgetful)


def applies_after_it_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions are made on a state of some milliseconds ago."""
    facts, kept = State.facts, {}

    def late(self: State, user: bytes, model: ModelId) -> Facts:
        when, found = kept.get((user, model), (0.0, None))
        if found is None or time.monotonic() - when > 0.05:
            kept[user, model] = when, found = time.monotonic(), facts(self, user, model)
        return found

    monkeypatch.setattr(State, "facts", late)


@pytest.mark.parametrize("fault", [releases_from_an_old_state, forgets_a_revocation, applies_after_it_acknowledged])
def test_a_seeded_fault_is_found(
    fault: Callable[[pytest.MonkeyPatch], None], ks: EmbeddedKeyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    for _ in range(60):  # short ones: a search that finds nothing looks at everything
        made = over(ks, reads=False)
        run(made, lambda: made.history.count(Granted, Revoked, Released) > 100)  # noqa: B023  # ends before the next
        assert set(made.history.errors) <= {"release-refused"}
        try:
            made.history.check(without=(Denied,))
        except NotLinearizable:
            return
    pytest.fail("the fault was not found")


# --- witnesses and replicas ---


def test_with_witnesses_that_come_and_go(tmp_path: Path) -> None:
    clock = SystemClock()
    witnesses = local_witnesses(tmp_path, clock, root_of(SecretBytes(SEED)).log_key.public_key, 3)
    ks = EmbeddedKeyService(clock=clock, bundle_key=SigningKey.generate(), seed=SEED, **witnessed(witnesses, 2))
    made = over(ks)

    def flap() -> None:
        away = secrets.randbelow(8)  # one of three, which is enough; or all
        for number, witness in enumerate(witnesses):
            witness.away = away in (number, 4)
        time.sleep(0.1)
        for witness in witnesses:
            witness.away = False
        time.sleep(0.1)

    run(made, lambda: enough(made) and made.history.errors["keyservice-unconfirmed"] > 0, meanwhile=flap)
    made.history.check()
    ks.close()


class ToCluster:
    """``Transport`` to one that says that it leads; of two that say so to either."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def get(self, path: str, *, limit: int) -> bytes:
        return self._leader().get(path, limit=limit)

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        return self._leader().post(path, body, limit=limit)

    def _leader(self) -> EmbeddedKeyService:
        leads = [ks for ks in tuple(self._cluster.live.values()) if ks.replica.role == "leader"]
        if not leads:
            raise Unavailable("keyservice-no-leader", "nobody leads", retry_after=0.1)
        return secrets.choice(leads)


class Trouble:
    """One replica dies, or is cut off from the others, and comes back; again and again."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.killed = self.parted = self.leaders = 0
        self._round = 0
        self._led: EmbeddedKeyService | None = None

    def go_on(self) -> None:
        """Twenty times as fast as it is."""
        cluster = self.cluster
        cluster.step(seconds=0.05)
        for ks in cluster.live.values():
            ks.assembled.ledger._anchor.tick()
        leading = cluster.leading()
        if len(leading) == 1 and leading[0] is not self._led:
            self._led, self.leaders = leading[0], self.leaders + 1
        time.sleep(0.002)

    def __call__(self) -> None:
        self.go_on()
        self._round += 1
        phase, cluster = self._round % 320, self.cluster
        if phase == 80:
            cluster.crash(secrets.choice(list(cluster.live)))
            self.killed += 1
        elif phase == 160:
            for number in {0, 1, 2} - set(cluster.live):
                cluster.start(number)
        elif phase == 240:
            alone = secrets.randbelow(3)
            cluster.part([alone], [number for number in range(3) if number != alone])
            self.parted += 1
        elif phase == 0:
            cluster.part()


def test_three_replicas_that_die_and_are_parted(tmp_path: Path) -> None:
    """Releases and acknowledgements; a refusal or a query may rest on entries that are replaced (LIMITATIONS.md)."""
    cluster = Cluster(tmp_path)
    first = cluster.leader()
    made = storm(
        first.id, lambda: ToCluster(cluster), first.bundle, cluster.platform, cluster.clock, reads=False, pause_s=0.01
    )
    trouble, ended = Trouble(cluster), threading.Event()

    def work() -> None:
        try:
            run(made, lambda: enough(made) and min(trouble.killed, trouble.parted) >= 2 and trouble.leaders >= 3)
        finally:
            ended.set()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    while not ended.is_set():
        (trouble if made.started else trouble.go_on)()
    worker.join()
    assert not made.faults
    assert made.history.check(without=(Denied,)) > 150
    cluster.close()
