"""Replicas: disks that fail while they follow, terms, whose turn it is, names (spec/protocol.md, 13.16 to 13.20)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.base.errors import CloisterError, InvalidInput, Tampered, Unavailable
from cloister.base.limits import FOLLOWER_SILENCE_S, LEADER_REST_S, LEADER_SILENCE_S, REPLICA_ROWS
from cloister.base.secret import SecretBytes
from cloister.keyservice.anchors.majority import MajorityAnchor
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.proposals import Proposal, Written
from cloister.keyservice.replication.peers import IDENTITY_FILE, replica_identity
from cloister.keyservice.replication.replica import FOLLOWER, LEADER, SEARCHING
from cloister.keyservice.storage.port import NewEntry, SealedEntry
from cloister.keyservice.storage.sealed import SealedStore
from cloister.log.entry import STATEMENT, Genesis
from cloister.testing.clock import FakeClock
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import Person, simulation_policy
from cloister.testing.replicas import Cluster, LocalPeer
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.wire.calls import LogHead, keyservice_id
from cloister.wire.statements import DefinePolicy

KS, KEY, LOG_KEY = keyservice_id(bytes(32)), SecretBytes(b"k" * 32), bytes(32)


def store(disk: MemoryDisk) -> SealedStore:
    return SealedStore(MemoryRows(disk), KEY, KS)


def write(ledger: Ledger, body: bytes) -> Written:
    written = ledger.write(lambda _state, _vault, _now: Proposal(STATEMENT, body))
    assert written is not None
    return written


class Pair:
    """A log with some entries, and an empty one that follows it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.disk = MemoryDisk()
        self.person = Person(KS, self.clock, b"p" * 32)
        self.first = Ledger.begin(store(MemoryDisk()), self.clock, Genesis(KS, LOG_KEY, b"\xa0"))
        write(self.first, self.person.register())
        for count in range(1, 4):
            self.say(count)
        self.second = self.opened()

    def say(self, count: int) -> None:
        body = DefinePolicy(simulation_policy(count.to_bytes(48, "big")).encode())
        write(self.first, self.person.statement(body))

    def opened(self) -> Ledger:
        self.disk.locked = False
        ledger = Ledger(store(self.disk), self.clock)
        ledger.follow()
        return ledger

    def pull(self, proof: bytes = b"") -> None:
        self.second.absorb(self.first.sealed(self.second.position()[0]), proof)


@pytest.fixture
def pair() -> Pair:
    return Pair()


# --- following ---


def test_one_that_follows_holds_the_same_and_opens_again(pair: Pair) -> None:
    pair.pull(b"proof")
    assert pair.second.position() == pair.first.position()
    assert pair.second.head().root == pair.first.head().root
    again = pair.opened()
    assert (again.position(), again.proof()) == (pair.first.position(), b"proof")
    with again.read() as (state, _), pair.first.read() as (other, _):
        assert set(state.policies._rows) == set(other.policies._rows)
    again.lead()
    write(again, pair.person.statement(DefinePolicy(simulation_policy(b"n" * 48).encode())))


@pytest.mark.parametrize("when", ["fail_before", "fail_after"])
def test_a_disk_that_fails_while_following_loses_and_doubles_nothing(pair: Pair, when: str) -> None:
    setattr(pair.disk, when, 0)
    with pytest.raises(Unavailable, match="store-unavailable"):
        pair.pull()
    assert pair.second.position()[0] == 0
    pair.pull()
    assert pair.second.position() == pair.first.position()
    assert pair.opened().position() == pair.first.position()


@pytest.mark.parametrize("when", ["fail_before", "fail_after"])
@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_disk_that_fails_while_cutting_is_read_anew(pair: Pair, when: str, size: int) -> None:
    pair.pull(b"one")
    setattr(pair.disk, when, 0)
    with pytest.raises(Unavailable, match="store-unavailable"):
        pair.second.cut(size, b"two")
    pair.pull()  # whatever is there, it goes on from what the disk holds
    while pair.second.position()[0] < pair.first.position()[0]:
        pair.pull()
    assert pair.second.position() == pair.first.position()
    pair.second.cut(size, b"three")
    assert pair.second.position() == (size, pair.first.link(size))
    again = pair.opened()
    assert (again.position(), again.proof()) == ((size, pair.first.link(size)), b"three")


def test_an_answer_holds_so_many_rows_and_one_that_follows_writes_nothing(pair: Pair) -> None:
    for count in range(10, 10 + REPLICA_ROWS):
        pair.say(count)
    rows = pair.first.sealed(0)
    assert len(rows) == REPLICA_ROWS
    pair.second.absorb(rows, b"")
    assert pair.second.holds(REPLICA_ROWS, pair.first.link(REPLICA_ROWS))
    assert not pair.second.holds(REPLICA_ROWS, bytes(32))
    assert pair.second.link(10**6) == b""
    with pytest.raises(Unavailable, match="keyservice-no-leader"):
        write(pair.second, b"anything")
    with pytest.raises(AssertionError):
        pair.first.absorb([], b"")


def test_what_was_replaced_before_it_was_confirmed_is_told_to_nobody(pair: Pair) -> None:
    """A replica writes, loses its place, drops the entry, and leads again: whoever still waits hears nothing of it."""
    pair.pull()
    pair.second.lead()
    body = DefinePolicy(simulation_policy(b"m" * 48).encode())
    written = write(pair.second, pair.person.statement(body))
    assert pair.second.confirm(written).index == written.index
    pair.second.follow()
    pair.second.cut(written.index, b"")
    with pytest.raises(Unavailable, match="keyservice-unconfirmed"):
        pair.second.confirm(written)
    pair.say(9)
    pair.pull()
    with pytest.raises(Unavailable, match="keyservice-unconfirmed"):  # another entry stands in its place
        pair.second.confirm(written)


def test_a_statement_is_found_among_the_newest_of_its_issuer_only_byte_for_byte(pair: Pair) -> None:
    body = DefinePolicy(simulation_policy(b"m" * 48).encode())
    statement = pair.person.statement(body)
    written = write(pair.first, statement)
    assert pair.first.find_statement(pair.person.id, statement) == written
    assert pair.first.find_statement(pair.person.id, statement[:-1] + b"\x00") is None
    assert pair.first.find_statement(bytes(32), statement) is None
    for count in range(20, 90):
        pair.say(count)
    assert pair.first.find_statement(pair.person.id, statement) is None


def test_rows_that_open_and_do_not_replay_are_refused_whole(pair: Pair) -> None:
    """Only who has the store's key can make them; even then the log's own rules hold."""
    disk = MemoryDisk()
    bad = store(disk)
    assert not list(bad.load())
    bad.append([NewEntry(b"no entry")])
    with pytest.raises(Tampered, match="log-order"):
        pair.second.absorb(bad.sealed(0, 1), b"")
    assert pair.second.position()[0] == 0
    with pytest.raises(Tampered, match="store-record"):
        pair.second.absorb([SealedEntry(b"short")], b"")
    pair.pull()


# --- terms ---


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def anchor_of(cluster: Cluster, number: int) -> MajorityAnchor:
    anchor = cluster.live[number].assembled.ledger._anchor
    assert isinstance(anchor, MajorityAnchor)
    return anchor


def test_who_follows_confirms_nothing_and_says_who_leads(cluster: Cluster) -> None:
    assert cluster.live[1].replica.role == SEARCHING
    with pytest.raises(Unavailable, match="keyservice-no-leader"):
        anchor_of(cluster, 1).require()
    leader = cluster.leader()
    assert (cluster.number(leader), leader.replica.leader, leader.replica.behind) == (0, None, 0)
    cluster.until(cluster.equal)
    follower = cluster.live[1]
    assert (follower.replica.role, follower.replica.leader) == (FOLLOWER, "http://replica-0")
    for attempt in (lambda: anchor_of(cluster, 1).require(), lambda: anchor_of(cluster, 1).confirm(1)):
        with pytest.raises(Unavailable, match="keyservice-no-leader"):
            attempt()
    assert not anchor_of(cluster, 1).state().open
    with pytest.raises(CloisterError):
        follower.service.status(bytes(32))


def test_whoever_waits_is_told_when_the_term_ends(cluster: Cluster) -> None:
    leader = cluster.leader()
    anchor = anchor_of(cluster, 0)
    anchor._patience = 30.0
    cluster.part([0], [1, 2])
    errors: list[CloisterError] = []

    def wait() -> None:
        try:
            anchor.confirm(leader.assembled.ledger.position()[0] + 1)
        except CloisterError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    leader.replica._step_down("keyservice-unconfirmed")
    thread.join(10)
    assert [error.code for error in errors] == ["keyservice-no-leader"]


def test_words_of_another_term_do_not_count_and_what_was_shown_stays_shown(cluster: Cluster) -> None:
    cluster.leader()
    cluster.until(cluster.equal)
    anchor, ledger = anchor_of(cluster, 0), cluster.live[0].assembled.ledger
    term = anchor._term
    assert term is not None
    size = ledger.position()[0]
    anchor.holds(b"other term", b"r" * 16, size + 99)
    assert b"r" * 16 not in term.held
    assert anchor.held_head(term).size == size
    for name in tuple(term.held):
        anchor.holds(term.name, name, 0)  # both lost their disks
    assert anchor.held_head(term).size == size
    with pytest.raises(Unavailable, match="keyservice-unconfirmed"):
        anchor.confirm(size)  # and nothing more is told before a majority holds it again


def test_one_that_is_alone_steps_down_and_lets_others_go_first(cluster: Cluster) -> None:
    leader = cluster.leader()
    cluster.crash(1)
    cluster.crash(2)
    cluster.step(seconds=FOLLOWER_SILENCE_S - 1)
    cluster.step()
    assert leader.replica.role == LEADER
    cluster.step(seconds=2)
    cluster.step()
    assert leader.replica.role == SEARCHING
    assert not leader.replica.standing().able
    cluster.clock.advance(LEADER_REST_S)
    assert leader.replica.standing().able
    cluster.step(seconds=LEADER_SILENCE_S + 2)
    cluster.step()
    assert leader.replica.role == SEARCHING  # a majority must answer


def test_one_whose_disk_fails_steps_down_and_another_goes_on(cluster: Cluster) -> None:
    leader = cluster.leader()
    person = cluster.attempt(leader.person)
    cluster.until(cluster.equal)
    leader.disk.fail_before = 0
    with pytest.raises(Unavailable, match="store-unavailable"):
        cluster.attempt(lambda: leader.say(person.statement(DefinePolicy(simulation_policy(b"x" * 48).encode()))))
    cluster.step()
    assert leader.replica.role != LEADER
    following = cluster.leader()
    assert following is not leader
    cluster.attempt(lambda: following.say(person.statement(DefinePolicy(simulation_policy(b"y" * 48).encode()))))
    cluster.until(cluster.equal)


def test_a_statement_that_was_dropped_with_its_entry_is_applied_when_it_is_sent_again(cluster: Cluster) -> None:
    """Its first leader wrote it, lost its place and the entry, and leads again: what is not there is forgotten."""
    first = cluster.leader()
    person = cluster.attempt(first.person)
    cluster.until(cluster.equal)
    cluster.part([0], [1, 2])
    statement = person.statement(DefinePolicy(simulation_policy(b"x" * 48).encode()))
    with pytest.raises(Unavailable, match="keyservice-unconfirmed"):
        cluster.attempt(lambda: first.say(statement))
    cluster.until(lambda: any(ks is not first for ks in cluster.leading()))
    second = next(ks for ks in cluster.leading() if ks is not first)
    cluster.attempt(second.person)  # in its place
    cluster.part()
    cluster.until(lambda: first.replica.role == FOLLOWER and cluster.equal())
    size = first.assembled.ledger.position()[0]
    cluster.crash(cluster.number(second))
    first.replica._take_over()
    cluster.until(lambda: cluster.leading() == [first])
    assert cluster.attempt(lambda: first.say(statement))["entry"] == size
    assert cluster.attempt(lambda: first.say(statement))["entry"] == size


# --- whose turn it is ---


def test_one_with_a_longer_log_goes_first_and_names_decide_between_equals(cluster: Cluster) -> None:
    leader = cluster.leader()
    cluster.until(cluster.equal)
    person = cluster.attempt(leader.person)
    cluster.part([1], [0, 2])
    cluster.attempt(lambda: leader.say(person.statement(DefinePolicy(simulation_policy(b"x" * 48).encode()))))
    cluster.crash(0)
    cluster.part()
    assert cluster.number(cluster.leader()) == 2  # 1 has the smaller name, and lacks an entry
    cluster.until(cluster.equal)
    cluster.start(0)
    cluster.until(cluster.equal)
    cluster.crash(2)
    assert cluster.number(cluster.leader()) == 0


def test_nobody_takes_over_at_once_unless_everybody_answers(cluster: Cluster) -> None:
    leader = cluster.leader()
    cluster.until(cluster.equal)
    cluster.crash(cluster.number(leader))
    for _ in range(5):
        cluster.step(seconds=0.5)
    assert not [ks for ks in cluster.live.values() if ks.replica.role == LEADER]
    cluster.leader()


def test_one_that_joined_and_has_nothing_never_leads(cluster: Cluster) -> None:
    cluster.crash(0)
    for _ in range(60):
        cluster.step(seconds=0.5)
    assert {ks.replica.role for ks in cluster.live.values()} == {SEARCHING}


def test_a_copy_with_the_same_name_counts_as_the_same_replica(cluster: Cluster) -> None:
    leader = cluster.leader()
    cluster.until(cluster.equal)
    cluster.live[1].replica.identity = leader.replica.identity
    for _ in range(40):
        cluster.step(seconds=0.5)
    assert leader.assembled.ledger._anchor.heard() == 2  # type: ignore[attr-defined]


def test_a_head_that_contradicts_the_log_keeps_a_replica_from_leading(cluster: Cluster) -> None:
    cluster.leader()
    cluster.until(cluster.equal)
    replica = cluster.live[1].replica
    cluster.until(lambda: replica._anchor.seen() is not None)
    seen = replica._anchor.seen()
    assert replica._able()
    assert seen is not None
    replica._anchor.saw(LogHead(seen.size + 5, bytes(32), seen.time, seen.cosignatures))
    assert not replica._able()
    replica._anchor._seen = replace(seen, root=bytes(32))
    assert not replica._able()


# --- names ---


def test_a_replica_keeps_its_name(tmp_path: Path) -> None:
    name = replica_identity(tmp_path)
    assert replica_identity(tmp_path) == name
    assert len(name) == 16
    (tmp_path / IDENTITY_FILE).write_text("nonsense")
    with pytest.raises(InvalidInput, match="replica-malformed"):
        replica_identity(tmp_path)
    with pytest.raises(Unavailable, match="state-unwritable"):
        replica_identity(tmp_path / "missing")


def test_peers_and_settings_must_agree() -> None:
    with pytest.raises(InvalidInput, match="peer-addresses"):
        EmbeddedKeyService(peers=[LocalPeer(None, 0, 1)])  # type: ignore[arg-type]
