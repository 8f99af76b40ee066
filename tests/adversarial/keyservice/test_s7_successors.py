"""S1, S2, S7: a KeyService goes on as other code only where its bundle's signer says so, and its log shows it first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.keyservice import BUNDLE_PATH, KeyServiceLink, VolatileHeads
from cloister.attest.bundle import Successor, TrustBundle
from cloister.attest.code import code_name
from cloister.attest.types import Claims, TeeType
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.client.audit import describe
from cloister.crypto.hpke import HpkePrivateKey
from cloister.crypto.sign import SigningKey
from cloister.keyservice.offline import ROOT_FILE
from cloister.keyservice.opening import Tee
from cloister.keyservice.replication.handover import CHALLENGE_PATH, HANDOVER_PATH, Joiner, check_successor
from cloister.keyservice.replication.joining import Joining, find_root
from cloister.keyservice.replication.replica import FOLLOWER, LEADER, OUTGROWN
from cloister.keyservice.root import Root, decode_root, keep_root, open_root
from cloister.keyservice.state.audit import audit
from cloister.keyservice.state.state import EVERYBODY
from cloister.log import entry as log
from cloister.log.entry import LEVEL, Entry
from cloister.testing.clock import FakeClock
from cloister.testing.collateral import NoCollateral
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.logs import MemoryLog
from cloister.testing.replicas import Cluster
from cloister.testing.rows import MemoryDisk
from cloister.testing.tee import SimulatedTee
from cloister.testing.witness import LocalWitness, local_witnesses, witnessed
from cloister.wire import calls
from cloister.wire.calls import Description, WireEvidence
from cloister.wire.handover import HandoverRequest, handover_report_data

NEXT = "build-b"


def pair(tee: SimulatedTee) -> Successor:
    return Successor(tee.measurement, tee.configuration.digest)


def upgrade(bundle: TrustBundle, *accepted: SimulatedTee, to: tuple[Successor, ...], **changes: Any) -> TrustBundle:
    """The next bundle: its policy accepts these, and its successors are ``to``."""
    policy = type(bundle.keyservice)(tuple(tee.rule(f"rule-{number}") for number, tee in enumerate(accepted)))
    return replace(bundle, version=bundle.version + 1, keyservice=policy, successors=to, **changes)


class World:
    """A KeyService alone, without replicas, and a next build with a configuration of its own."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.clock, self.signer = FakeClock(), SigningKey.generate()
        self.platform = SimulatedTee("runtime", clock=self.clock)
        self.folder = folder
        self.settings = settings
        self.running: list[EmbeddedKeyService] = []
        self.ks = self.start()
        assert self.ks.bundle is not None
        self.first = self.ks.bundle
        self.next = self.build(NEXT, lease_s=30)
        self.bundle = self.offer(self.next, to=(pair(self.next),))

    def start(self, **changes: Any) -> EmbeddedKeyService:
        values: dict[str, Any] = {"clock": self.clock, "runtime_tee": self.platform, "bundle_key": self.signer}
        self.running.append(EmbeddedKeyService(**values | self.settings | changes))
        return self.running[-1]

    def build(self, name: str, **settings: Any) -> SimulatedTee:
        """Other code, configured as the one that runs but for this."""
        return replace(self.ks.tee, name=name, values=replace(self.ks.settings, **settings).measured().values)

    def offer(self, *accepted: SimulatedTee, to: tuple[Successor, ...], **changes: Any) -> TrustBundle:
        """The signer signs another bundle, and the operator offers it."""
        assert self.ks.bundle is not None
        self.ks.bundle = self.bundle = upgrade(self.ks.bundle, self.ks.tee, *accepted, to=to, **changes)
        self.ks.service.maintain()
        return self.bundle

    def receive(self, tee: SimulatedTee | None = None, bundle: TrustBundle | None = None) -> Root:
        tee = tee or self.next
        return Joiner(tee.attester(), tee.configuration, bundle or self.bundle, NoCollateral(), self.clock).receive(
            self.ks
        )

    def request(self, tee: SimulatedTee | None = None, evidence_of: SimulatedTee | None = None) -> HandoverRequest:
        """What a joiner without scruples sends: whatever it is, it says to be ``tee``."""
        tee = tee or self.next
        key, challenge = HpkePrivateKey.generate(), self.ks.post(CHALLENGE_PATH, b"", limit=128)
        configuration = tee.configuration.encoded
        bound = handover_report_data(self.ks.id, key.public_key, challenge, configuration, self.bundle.digest)
        evidence = (evidence_of or tee).attester().evidence(bound)
        wire = WireEvidence(evidence.tee.value, evidence.body, {})
        return HandoverRequest(key.public_key, challenge, configuration, self.bundle.digest, wire)

    def ask(self, request: HandoverRequest) -> dict[str, Any]:
        call = calls.seal_call(Description.decode(self.ks.service.description()), calls.HANDOVER, request.encode())
        return calls.open_reply(call, self.ks.post(HANDOVER_PATH, call.data, limit=2**20))

    def entries(self) -> list[dict[str, Any]]:
        return entries(self.ks)

    def nothing(self, code: str, tee: SimulatedTee, family: type[CloisterError] = Refused) -> None:
        """Neither an honest joiner nor one without scruples gets anything, and the log says nothing."""
        before = len(self.entries())
        refused(code, lambda: self.ask(self.request(tee)), family)
        with pytest.raises(CloisterError):
            self.receive(tee)
        assert len(self.entries()) == before


def entries(ks: EmbeddedKeyService) -> list[dict[str, Any]]:
    """What the log says of the KeyService itself, as auditors read it."""
    indices = ks.assembled.ledger.concerning(EVERYBODY, 0, 100)
    return [describe(index, Entry.decode(data)) for index, data, _ in ks.assembled.ledger.entries(indices)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for ks in world.running:
        ks.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def refused(code: str, attempt: Callable[[], object], family: type[CloisterError] = Refused) -> None:
    with pytest.raises(family) as caught:
        attempt()
    assert caught.value.code == code


# --- it works ---


def test_s7_a_successor_that_the_bundle_names_gets_the_root_and_the_log_says_so(world: World) -> None:
    assert world.receive().id == world.ks.id
    *_, last = world.entries()
    assert last["kind"] == log.HAND_OVER
    assert last["measurements"] == {"measurement": world.next.measurement.hex()}
    assert last["configuration_digest"] == world.next.configuration.digest.hex()
    assert (last["bundle_digest"], last["bundle_version"]) == (world.bundle.digest.hex(), 2)
    assert "root secret handed over" in last["what"]
    # it takes the store over, and the callers go on
    person = world.ks.person()
    world.ks.close()
    successor = world.start(code=NEXT, disk=world.ks.disk, lease_s=30, bundle=world.bundle)
    assert successor.ask(person, "whoami")["id"] == person.id
    kinds = [entry["kind"] for entry in entries(successor)]
    assert kinds == [log.BUNDLE, log.HAND_OVER]
    genesis = successor.assembled.ledger.require_genesis(successor.id).configuration
    assert genesis == world.ks.settings.measured().encoded != successor.settings.measured().encoded


def test_s7_on_the_disk_of_the_build_before_it_a_successor_asks_for_the_root_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    """What that build sealed stays shut to it; and where nobody hands over it stays as it was."""
    leader, tee = cluster.leader(), successor_of(cluster)
    own = Tee(tee.attester(), tee.sealer(), tee.measurement)
    settings, state, events = replace(leader.settings, lease_s=30), tmp_path / "state", MemoryLog()
    state.mkdir()
    keep_root(state / ROOT_FILE, leader.root, leader.tee.sealer())
    before = (state / ROOT_FILE).read_bytes()
    assert leader.bundle is not None
    bundle = upgrade(leader.bundle, leader.tee, tee, to=(pair(tee),))

    def find(joining: Joining | None, **more: Any) -> Root:
        return cluster.attempt(
            lambda: find_root(state, own, settings, joining, clock=cluster.clock, events=events, **more)
        )

    def peers(*givers: Any) -> Joining:
        return Joining(givers, lambda: bundle, NoCollateral(), leader.id)

    refused("unseal-failed", lambda: find(None), Tampered)
    refused("unseal-failed", lambda: find(peers(Away()), patience_s=0.0), Tampered)
    refused("keyservice-bundle-differs", lambda: find(peers(leader)))  # nobody's bundle names it yet
    assert (state / ROOT_FILE).read_bytes() == before
    leader = offered(cluster, bundle)
    assert find(peers(Away(), leader)).id == leader.id
    assert open_root(state / ROOT_FILE, tee.sealer()).id == leader.id
    assert (state / "root.before").read_bytes() == before
    assert find(None).id == leader.id
    assert [name for name, *_ in events.events][-2:] == ["root-sealed-otherwise", "joined"]


class Away:
    """Nobody there."""

    def get(self, path: str, *, limit: int) -> bytes:
        raise Unavailable("keyservice-unreachable", f"{path} {limit}")

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        raise Unavailable("keyservice-unreachable", f"{path} {len(body)} {limit}")


# --- what nobody signed gets nothing ---


def test_s1_s2_s7_what_the_bundle_does_not_name_as_one_pair_gets_nothing(world: World) -> None:
    """Not even what its policy accepts: callers may believe several builds, and the secret goes where it is sent."""
    other = world.build("build-c", lease_s=20)
    mixed, present = replace(world.next, values=other.values), world.ks.tee
    right_code, right_configuration = replace(world.next, values=present.values), replace(present, values=other.values)
    everyone = (world.next, other, mixed, right_code, right_configuration)
    world.offer(*everyone, to=(pair(world.next), pair(other)))
    assert world.receive(other).id == world.receive(world.next).id == world.ks.id
    for tee in (mixed, right_code, right_configuration, present):
        world.nothing("replica-other", tee)
    world.nothing("measurement-not-allowed", replace(other, values=world.next.values))
    world.offer(*everyone, to=())
    for tee in everyone:
        world.nothing("replica-other", tee)


def test_s1_s7_what_is_named_but_not_accepted_gets_nothing(world: World) -> None:
    """Debug mode, another platform, and what the policy refuses are refused whatever `successors` says."""
    world.nothing("debug-not-allowed", replace(world.next, debug=True))
    world.nothing("simulation-refused", replace(world.next, key=SigningKey.generate()))
    world.offer(to=(pair(world.next),))
    world.nothing("measurement-not-allowed", world.next)
    claims = Claims(
        TeeType.SIMULATION,
        {"measurement": world.next.measurement},
        b"",
        True,
        "",
        (),
        0,
        b"",
        {},
        configuration_digest=b"",
    )
    refused(
        "replica-other",
        lambda: check_successor(world.bundle, world.ks.tee.configuration, world.next.configuration, claims),
    )


def test_s7_one_that_lies_about_its_configuration_gets_nothing(world: World) -> None:
    loose = replace(world.next, values=world.next.values | {"lease_s": 31})
    refused("configuration-mismatch", lambda: world.ask(world.request(world.next, evidence_of=loose)))
    request = world.request(loose)
    refused("report-data-mismatch", lambda: world.ask(replace(request, configuration=world.next.configuration.encoded)))
    refused("replica-other", lambda: world.ask(world.request(loose)))


def test_s6_s7_a_recorded_request_is_answered_once(world: World) -> None:
    request = world.request()
    world.ask(request)
    refused("challenge-redeemed", lambda: world.ask(request))
    late = world.request()
    world.clock.advance(61)
    refused("challenge-expired", lambda: world.ask(late))
    assert [entry["kind"] for entry in world.entries()].count(log.HAND_OVER) == 1


# --- the bundle ---


def test_s7_a_bundle_that_the_log_does_not_name_hands_over_nothing(world: World, tmp_path: Path) -> None:
    """Nor one whose entry witnesses do not confirm: the operator could show it to nobody but the joiner."""
    world.ks.close()
    ks = world.start(disk=MemoryDisk(), bundle=world.bundle)  # offered from the beginning, and not entered yet
    world.ks = ks
    world.nothing("bundle-unrecorded", world.next, Unavailable)
    ks.service.maintain()
    assert world.receive().id == ks.id


def test_s7_an_older_build_cannot_join_by_an_older_bundle(world: World) -> None:
    """The second bundle named a build that was found to be weak; it has not expired."""
    second, better = world.bundle, world.build("build-c")
    world.offer(better, to=(pair(better),))
    assert world.receive(better).id == world.ks.id
    world.nothing("replica-other", world.next)
    world.ks.bundle = second  # the operator brings it back
    world.ks.service.maintain()
    refused("keyservice-bundle-differs", lambda: world.receive(bundle=second))
    world.nothing("replica-other", world.next)
    with pytest.raises(Refused, match="bundle-rollback"):
        world.ks.restart()
    # nor does it help to take the store to the better build: the log is the same
    with pytest.raises(Refused, match="bundle-rollback"):
        world.start(code="build-c", disk=world.ks.disk, bundle=second)


def test_s7_a_bundle_of_another_root_and_one_that_expired_hand_over_nothing(world: World) -> None:
    stranger = SigningKey.generate()
    own = replace(world.bundle, root=stranger.public_key, version=9)
    bundles = world.ks.service._bundles
    assert bundles is not None
    offered, bundles._offered = bundles._offered, lambda: own.sign(stranger)
    world.ks.service.maintain()
    bundles._offered = offered
    assert Description.decode(world.ks.service.description()).bundle_digest == world.bundle.digest
    refused("keyservice-bundle-differs", lambda: world.receive(bundle=own))
    pinned = world.build(NEXT, bundle_root=stranger.public_key)
    world.offer(pinned, to=(pair(pinned),))
    world.nothing("replica-other", pinned)  # a successor that would believe another signer
    world.offer(world.next, to=(pair(world.next),))
    world.clock.advance(86_401)
    refused("bundle-expired", lambda: world.ask(world.request()))


# --- the entry comes first ---


def test_s1_s7_while_witnesses_are_kept_away_no_secret_leaves(tmp_path: Path) -> None:
    """What is handed over in secret would be a KeyService that no log knows of."""
    maker = World(tmp_path / "maker")
    key = maker.ks.log_key
    maker.ks.close()
    witnesses: list[LocalWitness] = local_witnesses(tmp_path, maker.clock, key, 3)
    world = World(tmp_path, **witnessed(witnesses, 2))
    anchor = world.ks.assembled.ledger._anchor
    anchor._patience = 0.2  # type: ignore[attr-defined]
    request = world.request()
    for witness in witnesses[1:]:
        witness.away = True
    with pytest.raises(Unavailable) as caught:
        world.ask(request)
    assert caught.value.code == "keyservice-unconfirmed"
    with pytest.raises(Unavailable):
        world.ask(world.request())
    for witness in witnesses:
        witness.away = False
    for _ in range(200):
        try:
            assert world.receive().id == world.ks.id
            break
        except Unavailable:
            anchor.tick()
            world.clock.advance(1)
    else:
        raise AssertionError
    handed = [entry for entry in world.entries() if entry["kind"] == log.HAND_OVER]
    head = anchor.confirmed()
    assert handed
    assert head is not None
    assert head.size > handed[-1]["index"]
    world.ks.close()


# --- replicas of two builds ---


def successor_of(cluster: Cluster, **settings: Any) -> SimulatedTee:
    present = next(iter(cluster.live.values()))
    changed = replace(present.settings, **({"lease_s": 30} | settings))
    return replace(present.tee, name=NEXT, values=changed.measured().values)


def offered(cluster: Cluster, bundle: TrustBundle) -> EmbeddedKeyService:
    """All are offered this bundle, and the one that leads has entered it."""
    leader = cluster.leader()
    for ks in cluster.live.values():
        ks.bundle = bundle
    cluster.attempt(leader.service.maintain)
    cluster.until(cluster.equal)
    for ks in cluster.live.values():
        ks.service.maintain()
    return leader


def ask(cluster: Cluster, giver: Any, tee: SimulatedTee, bundle: TrustBundle) -> Root:
    joiner = Joiner(tee.attester(), tee.configuration, bundle, NoCollateral(), cluster.clock)
    return cluster.attempt(lambda: joiner.receive(giver))


class Routed:
    """One that does not lead, as its server answers: what is not its own goes to the one that leads."""

    def __init__(self, cluster: Cluster, ks: EmbeddedKeyService) -> None:
        self.cluster, self.ks = cluster, ks

    def at(self, path: str) -> EmbeddedKeyService:
        return self.ks if path.startswith("/v1/replica/") else self.cluster.leading()[0]

    def get(self, path: str, *, limit: int) -> bytes:
        return self.at(path).get(path, limit=limit)

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        return self.at(path).post(path, body, limit=limit)


def test_s7_only_the_replica_that_leads_hands_over_to_a_successor(cluster: Cluster) -> None:
    leader, tee = cluster.leader(), successor_of(cluster)
    assert leader.bundle is not None
    bundle = upgrade(leader.bundle, leader.tee, tee, to=(pair(tee),))
    leader = offered(cluster, bundle)
    follower = next(ks for ks in cluster.live.values() if ks is not leader)
    with pytest.raises(Unavailable, match="keyservice-no-leader"):
        ask(cluster, follower, tee, bundle)  # its own paths only
    assert ask(cluster, Routed(cluster, follower), tee, bundle).id == leader.id
    seen = leader.assembled.ledger._anchor.confirmed()
    last = entries(leader)[-1]
    assert (last["kind"], last["bundle_version"]) == (log.HAND_OVER, 2)
    assert seen is not None
    assert seen.size > last["index"]
    # replicas of the same build still join at any of them, and without a majority too
    count = len(entries(leader))
    assert ask(cluster, follower, follower.tee, bundle).id == leader.id
    assert len(entries(leader)) == count
    assert ask(cluster, leader, leader.tee, bundle).id == leader.id
    assert [entry["kind"] for entry in entries(leader)[count:]] == [log.HAND_OVER]
    cluster.crash(cluster.number(leader))
    cluster.crash(next(number for number, ks in cluster.live.items() if ks is not follower))
    assert ask(cluster, follower, follower.tee, bundle).id == follower.id


@pytest.mark.parametrize("changed", ["witnesses", "witness_threshold", "replicas"])
def test_s7_a_successor_that_counts_or_verifies_otherwise_is_no_replica(cluster: Cluster, changed: str) -> None:
    leader = cluster.leader()
    values = {
        "witnesses": {"witnesses": (*leader.settings.witnesses[:2], SigningKey.generate().public_key)},
        "witness_threshold": {"witness_threshold": 3},
        "replicas": {"replicas": 2},
    }[changed]
    tee = successor_of(cluster, **values)
    assert leader.bundle is not None
    bundle = upgrade(leader.bundle, leader.tee, tee, to=(pair(tee),))
    leader = offered(cluster, bundle)
    with pytest.raises(Refused, match=f"its {changed} differ"):
        ask(cluster, leader, tee, bundle)


def test_s7_one_without_replicas_may_change_witnesses_and_number_by_its_signer(world: World) -> None:
    keys = tuple(SigningKey.generate().public_key for _ in range(3))
    tee = world.build(NEXT, rollback_protection="witnesses", witnesses=keys, witness_threshold=2, replicas=3)
    world.offer(tee, to=(pair(tee),))
    assert world.receive(tee).id == world.ks.id


def test_s7_other_witnesses_of_a_successor_do_not_confirm_an_older_store(tmp_path: Path) -> None:
    """They know nothing yet of this log; but the successor knows how far it had come when it got the root secret."""
    maker = World(tmp_path / "maker")
    key = maker.ks.log_key
    maker.ks.close()
    old = local_witnesses(tmp_path / "old", maker.clock, key, 3)
    world = World(tmp_path, **witnessed(old, 2))
    person = world.ks.person()
    before = world.ks.disk.copy()
    world.ks.say(person.statement(_bodies()[0]))  # what the operator would like to be undone
    for count in (0, 3):
        new = local_witnesses(tmp_path / f"new{count}", world.clock, key, 3)
        changed = witnessed(new, 2) | {"replicas": count, "lease_s": 30, "peers": [Nobody()] if count else []}
        keys = {"witnesses": changed["witness_keys"], "rollback_protection": "witnesses", "witness_threshold": 2}
        tee = world.build(NEXT, **keys, replicas=count, lease_s=30)
        world.offer(tee, to=(pair(tee),))
        root = world.receive(tee)
        assert decode_root(root.encode()).since == root.since
        assert root.since is not None
        start = partial(world.start, code=NEXT, bundle=world.bundle, empty=True, root=root, **changed)
        if count:  # one of several may be behind, and does not lead before it has all of it
            late = start(disk=before.copy())
            assert not late.replica.standing().able
            assert start(disk=world.ks.disk.copy()).replica.standing().able
            other, clone = SimulatedTee(NEXT, tee.values, tee.key, world.clock), start(disk=MemoryDisk())
            assert clone.bundle is not None
            asking = Joiner(other.attester(), other.configuration, clone.bundle, NoCollateral(), world.clock)
            assert asking.receive(clone).since == root.since  # handed on
        else:
            with pytest.raises(Tampered, match="store-before-hand-over"):
                start(disk=before.copy())
            successor = start(disk=world.ks.disk.copy())
            successor.say(person.statement(_bodies()[1]))
            head = successor.assembled.ledger.shown_head()
            assert {item.key for item in head.cosignatures} <= {witness.key for witness in new}
            assert len(head.cosignatures) >= 2
    for ks in world.running:
        ks.close()


class Nobody:
    """A replica that is away."""

    origin = "http://away"

    def exchange(self, request: bytes) -> bytes:
        raise Unavailable("replica-away", f"{len(request)}")


def test_s7_what_the_newest_bundle_does_not_accept_leads_no_more(cluster: Cluster) -> None:
    leader, tee = cluster.leader(), successor_of(cluster)
    assert leader.bundle is not None
    second = upgrade(leader.bundle, leader.tee, tee, to=(pair(tee),))
    leader = offered(cluster, second)
    number = next(number for number, ks in cluster.live.items() if ks is not leader)
    ask(cluster, leader, tee, second)
    cluster.crash(number)
    joined = cluster.start(number, MemoryDisk(), code=NEXT, lease_s=30, bundle=second)
    cluster.until(cluster.equal)
    third = upgrade(second, tee, to=())
    offered(cluster, third)
    cluster.until(lambda: cluster.leading() == [joined])
    roles = {ks.tee.name: ks.replica.role for ks in cluster.live.values() if ks is not joined}
    assert LEADER not in roles.values()
    for ks in cluster.live.values():  # nor can the older build join any more, at any of them
        with pytest.raises(Refused) as caught:
            ask(cluster, ks, leader.tee, third)
        assert caught.value.code == ("replica-other" if ks is joined else "measurement-not-allowed")


# --- two versions of the log ---


def test_s7_an_older_build_that_cannot_read_an_entry_keeps_what_it_has_and_stands_aside(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = cluster.leader()
    follower = next(ks for ks in cluster.live.values() if ks is not leader)
    person = cluster.attempt(leader.person)
    cluster.until(cluster.equal)
    size = follower.assembled.ledger.position()[0]
    newest = leader.replica.standing
    monkeypatch.setattr(leader.replica, "standing", lambda: replace(newest(), level=LEVEL + 1))
    decode, unread = log.Entry.decode, []

    def older(data: bytes, **options: bool) -> Entry:
        entry = decode(data, **options)
        if entry.kind == log.BUNDLE:
            unread.append(entry)
            raise InvalidInput("entry-unknown", "unknown to this version")
        return entry

    # what the leader writes next is two entries that all know, and one of a kind that the follower does not
    statements = [person.statement(body) for body in _bodies()]
    cluster.cut = {(cluster.number(follower), cluster.number(leader))}
    for statement in statements:
        cluster.attempt(lambda statement=statement: leader.say(statement))  # type: ignore[misc]
    cluster.attempt(leader.service.maintain)
    monkeypatch.setattr("cloister.keyservice.ledger.Entry.decode", staticmethod(older))
    cluster.cut = set()
    cluster.until(lambda: follower.replica.role == OUTGROWN)
    assert unread
    assert follower.assembled.ledger.position()[0] == size + len(statements)
    assert not follower.replica.standing().able
    assert isinstance(follower.events, MemoryLog)
    assert [name for name, *_ in follower.events.events].count("outgrown") == 1
    cluster.until(lambda: follower.replica.leader is not None)  # callers are passed on
    for _ in range(5):
        cluster.step(seconds=0.25)
    assert follower.replica.role == OUTGROWN
    assert follower.assembled.ledger.position()[0] == size + len(statements)
    number = cluster.number(follower)
    cluster.crash(number)
    with pytest.raises(Unavailable, match="log-newer"):  # and on a disk with such an entry it does not run
        cluster.start(number, cluster.live[cluster.number(leader)].disk.copy())


def _bodies() -> list[Any]:
    from cloister.wire.statements import RevokeGrant

    return [RevokeGrant("a", b"u" * 32), RevokeGrant("b", b"u" * 32)]


def test_s7_a_follower_that_meets_nonsense_of_its_own_version_is_no_older_build(cluster: Cluster) -> None:
    """Only one that leads with a higher level makes it stand aside: else it goes on looking for one that leads."""
    leader = cluster.leader()
    follower = next(ks for ks in cluster.live.values() if ks is not leader)
    assert follower.replica.role == FOLLOWER
    with pytest.raises(Tampered):
        follower.replica._absorb([leader.assembled.ledger.sealed(0)[0]], LEVEL)
    assert follower.replica.role == FOLLOWER


# --- callers ---


class Way:
    """From a caller to a KeyService that shows another bundle."""

    def __init__(self, world: World, data: bytes | None = None) -> None:
        self.world, self.data = world, data

    def get(self, path: str, *, limit: int) -> bytes:
        if path == BUNDLE_PATH and self.data is not None:
            return self.data
        return self.world.ks.get(path, limit=limit)

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        return self.world.ks.post(path, body, limit=limit)


def link(world: World, given: TrustBundle, data: bytes | None = None) -> KeyServiceLink:
    return KeyServiceLink(
        Way(world, data), bundle=lambda: given, collateral=NoCollateral(), clock=world.clock, heads=VolatileHeads()
    )


def test_s7_a_caller_follows_to_the_next_bundle_and_build_without_being_told(world: World) -> None:
    caller = link(world, world.first)
    assert caller.attested().description.bundle_digest == world.bundle.digest
    assert caller.bundle() == world.bundle
    third = upgrade(world.bundle, world.next, to=())
    world.ks.close()
    world.ks = world.start(code=NEXT, disk=world.ks.disk, lease_s=30, bundle=third)
    world.ks.service.maintain()
    caller.forget()
    assert caller.attested().appraisal.claims.measurements["measurement"] == world.next.measurement
    assert caller.bundle() == third


def test_s7_no_older_weaker_or_foreign_bundle_is_taken_from_the_network(world: World) -> None:
    stranger = SigningKey.generate()
    strict = replace(world.first, accept_rollback_unsafe=False)
    watched = replace(world.first, witnesses=(b"w" * 32,), witness_threshold=1)
    newest = replace(world.bundle, version=7)
    foreign = replace(world.bundle, root=stranger.public_key, version=8).sign(stranger)
    for given, data in (
        (strict, None),
        (watched, None),
        (newest, None),
        (world.first, foreign),
        (world.first, b"nonsense"),
        (world.first, b""),
        (world.first, world.first.sign(world.signer)),
        (world.first, replace(world.bundle, expires_at=int(world.clock.now()) - 1, issued_at=1).sign(world.signer)),
    ):
        caller = link(world, given, data)
        refused("keyservice-bundle-differs", caller.attested)
        assert caller.bundle() == given
    # a newer one, genuine, under which this KeyService does not run: it may have changed meanwhile, so attest anew
    later = link(world, world.first, replace(world.bundle, version=9).sign(world.signer))
    refused("call-epoch-gone", later.attested, Unavailable)
    assert later.bundle() == world.first
    production = replace(world.first, accept_simulation=False, simulation_keys=(), keyservice=_hardware())
    assert not world.bundle.replaces(production)
    assert not replace(production, version=9).replaces(world.first)


def _hardware() -> Any:
    from cloister.attest.policy import Policy

    return Policy(())


# --- auditors ---


def audited(world: World, *forged: tuple[str, bytes]) -> list[str]:
    """What an auditor finds in the log, with these entries behind it."""
    head = world.ks.assembled.ledger.head()
    found = world.ks.assembled.ledger.entries(list(range(head.size)))
    entries = [Entry.decode(data) for _, data, _ in found]
    entries += [Entry(kind, head.time, bytes(32), body) for kind, body in forged]
    return [finding.code for finding in audit(enumerate(entries), world.ks.id).findings]


def test_s7_an_auditor_finds_what_no_signer_said(world: World) -> None:
    """A KeyService that was broken into could write anything: but not the signer's name."""
    assert world.receive().id == world.ks.id
    assert audited(world) == []
    stranger = SigningKey.generate()
    given = world.bundle

    def used(bundle: TrustBundle, key: SigningKey = world.signer, **changes: Any) -> tuple[str, bytes]:
        record = log.BundleRecord(bundle.version, bundle.digest, bundle.sign(key))
        return log.BUNDLE, replace(record, **changes).encode()

    def handed(to: SimulatedTee, bundle: TrustBundle = given, **changes: Any) -> tuple[str, bytes]:
        measured, configured = {"measurement": to.measurement}, to.configuration.digest
        record = log.HandOverRecord(TeeType.SIMULATION.value, measured, configured, bundle.digest, bundle.version)
        return log.HAND_OVER, replace(record, **changes).encode()

    newer, other = replace(given, version=9, successors=()), world.build("build-c", lease_s=20)
    assert audited(world, handed(world.next), used(newer), handed(world.ks.tee, newer)) == []
    assert audited(world, used(world.first)) == ["bundle-rollback"]
    assert audited(world, used(replace(newer, root=stranger.public_key), stranger)) == ["signature-invalid"]
    assert audited(world, used(newer, version=10)) == ["bundle-other"]
    assert audited(world, used(newer, digest=bytes(32))) == ["bundle-other"]
    assert audited(world, handed(other)) == ["replica-other"]
    assert audited(world, handed(other, newer)) == ["bundle-other", "replica-other"]
    assert audited(world, handed(world.next, world.first)) == ["bundle-other"]
    assert audited(world, handed(other, tee="abacus")) == ["evidence-unknown-tee", "replica-other"]
    assert audited(world, handed(replace(other, name=NEXT))) == ["replica-other"]


# --- names of code ---


def test_s7_a_trust_domain_is_named_by_all_that_it_started() -> None:
    """MRTD is the firmware alone: whoever named a successor by it would hand the secret to any kernel."""

    def td(**changes: bytes) -> bytes:
        measured = {"mrtd": b"t" * 48, **{f"rtmr{index}": bytes([index]) * 48 for index in range(4)}, **changes}
        return code_name(TeeType.TDX, measured)

    names = {td(**{name: b"!" * 48}) for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")}
    assert len(names | {td()}) == 6
    assert all(len(name) == 48 for name in names)
    refused("code-unnamed", lambda: code_name(TeeType.SGX, {"mrsigner": b"s" * 32}), InvalidInput)
