"""S7 with replicas: an old disk, a fork, a lie in between, and rows from elsewhere get no key out and no entry lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.adapters import keyservice
from cloister.adapters.keyservice import KeyServiceLink, VolatileHeads
from cloister.base.errors import CloisterError, Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.keyservice.replication.replica import FOLLOWER, LEADER, SEARCHING
from cloister.keyservice.root import root_of
from cloister.keyservice.storage.port import SealedEntry
from cloister.keyservice.storage.sealed import SealedStore
from cloister.log.receipt import check_statement_receipt
from cloister.log.replication import HELLO, Pull, Rows, Standing, open_answer, open_request, seal_answer, seal_request
from cloister.testing.collateral import NoCollateral
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import Person, simulation_policy
from cloister.testing.replicas import SEED, Cluster
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.wire import calls
from cloister.wire.calls import LogHead
from cloister.wire.checkpoint import SignedNote
from cloister.wire.log_keys import LogKeys
from cloister.wire.provisioning import ReleaseRequest
from cloister.wire.statements import (
    REQUEST_KEY,
    Consent,
    DefinePolicy,
    Grant,
    PublishModel,
    RevokeGrant,
    Validity,
    key_commitment,
)

MODEL_KEY, REQUEST = SecretBytes(b"M" * 32), SecretBytes(b"Q" * 32)
ROOT = root_of(SecretBytes(SEED))


class World:
    """Three replicas; a grant and a consent; a release succeeds at the one that leads."""

    def __init__(self, folder: Path) -> None:
        self.cluster = Cluster(folder)
        leader = self.cluster.leader()
        self.owner = Person(leader.id, self.cluster.clock)
        policy = self.cluster.platform.policy()
        self.model = ModelId(self.owner.id, "model")
        self.grant = Grant("model", self.owner.id, policy.digest, Validity(), 0)
        self.say(leader, self.owner.register())
        self.say(leader, self.owner.statement(DefinePolicy(policy.encode())))
        published = PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY))
        self.say(leader, self.owner.statement(published), MODEL_KEY)
        self.say(leader, self.owner.statement(self.grant))
        consent = Consent(self.model, policy.digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())
        self.say(leader, self.owner.statement(consent), REQUEST)
        self.request = ReleaseRequest(self.owner.id, self.model, REQUEST_KEY, key_commitment(REQUEST))
        self.cluster.until(self.cluster.equal)

    def say(self, ks: EmbeddedKeyService, statement: bytes, *keys: SecretBytes) -> int:
        """Its entry."""
        result = self.cluster.attempt(lambda: ks.say(statement, *keys))
        return check_statement_receipt(result, statement, LogKeys(self.cluster.log_key)).index

    def release(self, ks: EmbeddedKeyService) -> LogHead:
        found = self.cluster.attempt(lambda: ks.attest(self.cluster.platform).release(self.request))
        assert found.key == REQUEST
        return found.head

    def nothing_leaves(self, ks: EmbeddedKeyService) -> None:
        for attempt in (
            lambda: ks.attest(self.cluster.platform).release(self.request),
            lambda: ks.say(self.owner.statement(self.grant)),
        ):
            with pytest.raises(Unavailable) as caught:
                self.cluster.attempt(attempt)  # type: ignore[arg-type]
            assert caught.value.code in (
                "keyservice-unconfirmed",
                "keyservice-no-leader",
                "keyservice-superseded",
            )
            self.owner.sequence += 1

    def others(self, ks: EmbeddedKeyService) -> list[int]:
        return [number for number, other in self.cluster.live.items() if other is not ks]

    def sizes(self) -> list[int]:
        return [ks.assembled.ledger.position()[0] for ks in self.cluster.live.values()]

    def witnessed(self) -> int:
        """The largest head that any witness ever saw."""
        found = [SignedNote.parse(body.partition(b"\n\n")[2]) for w in self.cluster.witnesses for body, _ in w.seen]
        return max(note.checkpoint.size for note in found)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.cluster.close()


# --- the majority ---


def test_s7_a_head_is_shown_to_no_witness_before_a_majority_holds_it(world: World) -> None:
    leader, before = world.cluster.leader(), world.sizes()[0]
    world.cluster.part([world.cluster.number(leader)], world.others(leader))
    with pytest.raises(Unavailable) as caught:
        world.cluster.attempt(lambda: leader.say(world.owner.statement(world.grant)))
    assert caught.value.code == "keyservice-unconfirmed"
    assert caught.value.details["written"] == "yes"
    assert leader.assembled.ledger.position()[0] == before + 1
    world.cluster.attempt(lambda: threading.Event().wait(0.2))
    assert world.witnessed() == before
    world.cluster.part()
    world.cluster.until(lambda: world.witnessed() == before + 1)


def test_s7_the_number_of_replicas_cannot_be_changed_by_the_host(world: World) -> None:
    """It is in the evidence, and the root secret is sealed to it."""
    tee, settings = world.cluster.live[0].tee, world.cluster.live[0].settings
    sealed = tee.sealer().seal(b"root")
    for count in (0, 2):
        other = replace(tee, values=replace(settings, replicas=count).measured().values)
        with pytest.raises(Tampered, match="unseal-failed"):
            other.sealer().unseal(sealed)
        assert other.configuration.digest != tee.configuration.digest


# --- old disks ---


def test_s7_an_old_disk_of_a_follower_learns_and_never_leads_before(world: World) -> None:
    leader = world.cluster.leader()
    number = world.others(leader)[0]
    old = world.cluster.live[number].disk.copy()
    world.say(leader, world.owner.statement(RevokeGrant("model", world.owner.id)))
    world.cluster.until(world.cluster.equal)
    world.cluster.crash(number)
    restored = world.cluster.start(number, old)
    assert restored.assembled.ledger.position()[0] == world.sizes()[0] - 1 or world.sizes()
    world.cluster.until(world.cluster.equal)
    assert restored.replica.role == FOLLOWER


def test_s7_a_majority_of_old_disks_releases_nothing_and_the_true_one_is_found(world: World) -> None:
    """Two of three are restored while the third is away: witnesses know more, so nothing leaves until it is back."""
    leader = world.cluster.leader()
    true = world.cluster.number(leader)
    others = world.others(leader)
    old = {number: world.cluster.live[number].disk.copy() for number in others}
    revoked = world.say(leader, world.owner.statement(RevokeGrant("model", world.owner.id)))
    world.cluster.until(world.cluster.equal)
    for number in (0, 1, 2):
        world.cluster.crash(number)
    for number in others:
        world.cluster.start(number, old[number])
    for _ in range(120):
        world.cluster.step(seconds=0.25)
        assert not [ks for ks in world.cluster.live.values() if ks.replica.role == LEADER]
    assert any(name == "beaten" for ks in world.cluster.live.values() for name, *_ in ks.events.events)  # type: ignore[attr-defined]
    restored = world.cluster.live[others[0]]
    restored.replica._take_over()  # whatever the witnesses say
    world.cluster.until(restored.replica._anchor.superseded)
    for ks in list(world.cluster.live.values()):
        world.nothing_leaves(ks)
    world.cluster.start(true)
    found = world.cluster.leader()
    assert world.cluster.number(found) == true
    world.cluster.until(world.cluster.equal)
    assert found.assembled.ledger.position()[0] > revoked
    with pytest.raises(CloisterError, match="release-refused"):
        world.release(found)


def test_s7_an_old_disk_with_a_recorded_network_neither_releases_nor_makes_others_forget(world: World) -> None:
    """It plays the leader with co-signatures of its time; those that follow keep what they have."""
    leader = world.cluster.leader()
    number, (follower, away) = world.cluster.number(leader), world.others(leader)
    old = leader.disk.copy()
    index = world.say(leader, world.owner.statement(world.grant))
    world.cluster.until(world.cluster.equal)
    world.cluster.crash(away)
    world.cluster.crash(number)
    recorded = [dict(answers_by_checkpoint(witness.seen)) for witness in world.cluster.witnesses]

    class Replay:
        def __init__(self, answers: dict[bytes, bytes]) -> None:
            self.answers = answers

        def add_checkpoint(self, body: bytes) -> bytes | int:
            return self.answers.get(body.partition(b"\n\n")[2], next(iter(self.answers.values())))

    restored = world.cluster.start(number, old, witnesses=[Replay(answers) for answers in recorded])
    restored.replica._take_over()  # whatever the others say
    world.cluster.until(lambda: world.cluster.live[follower].replica.role == FOLLOWER)
    for _ in range(20):
        world.cluster.step(seconds=0.1)
    world.nothing_leaves(restored)
    kept = world.cluster.live[follower]
    assert kept.assembled.ledger.position()[0] == index + 1
    assert not restored.replica._anchor.superseded()


def answers_by_checkpoint(seen: list[tuple[bytes, bytes | int]]) -> Iterator[tuple[bytes, bytes]]:
    for body, answer in seen:
        if isinstance(answer, bytes):
            yield body.partition(b"\n\n")[2], answer


# --- forks ---


def test_s7_of_two_that_lead_one_is_confirmed_and_the_other_gives_in(world: World) -> None:
    first = world.cluster.leader()
    number, others = world.cluster.number(first), world.others(first)
    world.cluster.part([number], others)
    world.nothing_leaves(first)  # it leads on for a while, and has written by itself
    own = first.assembled.ledger.position()[0]
    assert first.replica.role == LEADER
    world.cluster.until(lambda: any(world.cluster.live[other].replica.role == LEADER for other in others))
    world.cluster.until(lambda: any(ks is not first for ks in world.cluster.leading()))
    second = next(ks for ks in world.cluster.leading() if ks is not first)
    index = world.say(second, world.owner.statement(RevokeGrant("model", world.owner.id)))
    assert index < own  # in the very place of what the first one wrote
    world.nothing_leaves(first)
    world.cluster.part()
    world.cluster.until(lambda: first.replica.role == FOLLOWER and world.cluster.equal())
    assert [name for name, *_ in first.events.events].count("history-cut") == 1  # type: ignore[attr-defined]
    assert same_history(world)
    with pytest.raises(CloisterError, match="release-refused"):
        world.release(world.cluster.leader())


def same_history(world: World) -> bool:
    roots = {ks.assembled.ledger.head().root for ks in world.cluster.live.values()}
    return len(roots) == 1


def test_s7_what_may_have_been_confirmed_is_dropped_for_nobody(world: World) -> None:
    """A follower holds an entry that its leader died over. Another leader without it cannot make it forget."""
    leader = world.cluster.leader()
    number, (one, other) = world.cluster.number(leader), world.others(leader)
    for witness in world.cluster.witnesses:
        witness.away = True
    world.cluster.part([number, one], [other])
    with pytest.raises(Unavailable):
        world.cluster.attempt(lambda: leader.say(world.owner.statement(world.grant)))
    size = leader.assembled.ledger.position()[0]
    assert world.cluster.live[one].assembled.ledger.position()[0] == size
    world.cluster.crash(number)
    for witness in world.cluster.witnesses:
        witness.away = False
    world.cluster.part()
    world.cluster.live[other].replica._take_over()  # against the rule: it is behind
    for _ in range(60):
        world.cluster.step(seconds=0.1)
        assert world.cluster.live[one].assembled.ledger.position()[0] >= size
    world.cluster.until(lambda: bool(world.cluster.leading()))
    assert world.cluster.leader().assembled.ledger.position()[0] >= size


def test_s7_one_that_leads_shows_no_head_that_may_yet_be_replaced(world: World) -> None:
    """Callers remember heads: one of an entry that is dropped later would look like a fork."""
    leader = world.cluster.leader()
    for witness in world.cluster.witnesses:
        witness.away = True
    number = world.others(leader)[0]
    world.cluster.crash(world.cluster.number(leader))
    for _ in range(40):
        world.cluster.step(seconds=0.25)
    following = world.cluster.live[number]
    assert following.replica.role == SEARCHING  # without witnesses nobody takes over by himself
    following.replica._take_over()
    shows: list[Callable[[], object]] = [
        lambda: following.service.status(bytes(32)),
        following.service.checkpoint,
        lambda: following.ask(world.owner, "events"),
        lambda: following.ask(world.owner, "keyservice"),
    ]
    for show in shows:
        with pytest.raises(Unavailable, match="keyservice-unconfirmed"):
            show()
    assert following.ask(world.owner, "whoami")["confirmed"] == -1  # what shows no head is answered
    for witness in world.cluster.witnesses:
        witness.away = False
    world.cluster.leader()
    for show in shows:
        show()


def test_s7_a_caller_waits_for_a_take_over_and_no_longer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head behind the one it saw: for some seconds it may be one that leads no more; then it is an old disk."""
    monkeypatch.setattr(keyservice, "_TAKE_OVER_S", 0.3)
    monkeypatch.setattr(keyservice, "_TAKE_OVER_PAUSE_S", 0.1)
    leader, asked = world.cluster.leader(), 0
    bundle = leader.bundle
    assert bundle is not None
    heads = VolatileHeads()

    class Way:
        def get(self, path: str, *, limit: int) -> bytes:
            nonlocal asked
            asked += path == "/v1/description"
            return leader.get(path, limit=limit)

        def post(self, path: str, body: bytes, *, limit: int) -> bytes:
            return leader.post(path, body, limit=limit)

    link = KeyServiceLink(
        Way(), bundle=lambda: bundle, collateral=NoCollateral(), clock=world.cluster.clock, heads=heads
    )
    query = lambda _attested: world.owner.query("whoami", {})  # noqa: E731
    assert link.call(calls.QUERY, query)
    seen = heads.newest(leader.id)
    assert seen is not None
    heads.remember(leader.id, replace(seen, size=seen.size + 5))
    link.forget()
    asked = 0
    with pytest.raises(Tampered, match="keyservice-rolled-back"):
        link.call(calls.QUERY, query)
    assert asked == 3
    asked = 0
    with pytest.raises(Tampered, match="keyservice-rolled-back"):
        link.settled()
    assert asked == 3
    heads.remember(leader.id, replace(seen, root=bytes(32)))  # of the same size with another root: no waiting
    asked = 0
    with pytest.raises(Tampered, match="keyservice-forked"):
        link.call(calls.QUERY, query)
    assert asked == 1


def test_s7_what_witnesses_confirmed_wins_over_entries_that_contradict_it(world: World) -> None:
    """One disk has another entry, one is lost, and the third does not know that its own was confirmed: witnesses do."""
    first = world.cluster.leader()
    number, (one, other) = world.cluster.number(first), world.others(first)
    world.cluster.part([number], [one, other])
    with pytest.raises(Unavailable):
        world.cluster.attempt(lambda: first.say(world.owner.statement(world.grant)))
    world.cluster.crash(number)
    second = world.cluster.leader()
    true, lost = (
        world.cluster.number(second),
        next(item for item in (one, other) if item != world.cluster.number(second)),
    )
    index = world.say(second, world.owner.statement(RevokeGrant("model", world.owner.id)))
    leaf = second.assembled.ledger.leaf(index)
    world.cluster.crash(true)
    world.cluster.crash(lost)
    world.cluster.part()
    for each, disk in ((lost, MemoryDisk()), (number, None), (true, None)):
        world.cluster.start(each, disk, empty=True)
    assert world.cluster.number(world.cluster.leader()) == true
    world.cluster.until(world.cluster.equal)
    assert world.cluster.leader().assembled.ledger.leaf(index) == leaf
    for witness in world.cluster.witnesses:  # and none of them was led astray
        assert not witness.record(ROOT.id).conflicts


def test_s7_asking_what_witnesses_know_tells_them_nothing(world: World) -> None:
    """One that holds more than they co-signed asks, and they stay where they are."""
    leader = world.cluster.leader()
    world.cluster.until(world.cluster.equal)
    confirmed = max(witness.record(ROOT.id).newest.size for witness in world.cluster.witnesses)
    world.cluster.part([world.cluster.number(leader)], world.others(leader))
    with pytest.raises(Unavailable):
        world.cluster.attempt(lambda: leader.say(world.owner.statement(world.grant)))
    found = leader.replica._probe()
    assert (found.agree, found.ahead, found.other) == (3, 0, 0)
    assert found.head is not None
    assert found.head.size < leader.assembled.ledger.position()[0]
    assert leader.assembled.ledger.position()[0] > confirmed
    for witness in world.cluster.witnesses:  # one that was late may have got there since, and no further
        assert witness.record(ROOT.id).newest.size <= confirmed


# --- the network between ---


def test_s7_whoever_sits_between_can_drop_and_nothing_else(world: World) -> None:
    """Bits turned, answers of other questions, questions sent back: nothing of it is taken, nothing is lost."""
    leader = world.cluster.leader()
    victim = world.others(leader)[0]
    answers: list[bytes] = []
    ways: list[Callable[[bytes, bytes], bytes]] = [
        lambda _request, answer: answer[:-1] + bytes([answer[-1] ^ 1]),
        lambda _request, answer: bytes([answer[0] ^ 1]) + answer[1:],
        lambda _request, answer: answer[:40],
        lambda request, _answer: request,
        lambda _request, _answer: answers[0],
        lambda _request, _answer: b"",
    ]
    world.cluster.tap = lambda _from, _to, _request, answer: (answers.append(answer), answer)[1]
    world.cluster.step()
    assert answers
    for way in ways:
        world.cluster.tap = (
            lambda source, _to, request, answer, way=way: way(request, answer) if source == victim else answer  # type: ignore[misc]
        )
        before = world.cluster.live[victim].assembled.ledger.position()
        world.say(leader, world.owner.statement(world.grant))  # with the other one
        for _ in range(4):
            world.cluster.step()
        assert world.cluster.live[victim].assembled.ledger.position() == before
        assert world.cluster.live[victim].replica.role == SEARCHING
        world.cluster.tap = lambda _from, _to, _request, answer: answer
        world.cluster.until(world.cluster.equal)


def test_s7_only_who_has_the_root_secret_is_heard(world: World) -> None:
    leader = world.cluster.leader()
    with pytest.raises(Tampered, match="box-open"):
        leader.replica.handle(seal_request(SecretBytes(b"x" * 32), {"kind": HELLO}))
    for data in (b"", bytes(32), bytes(100), bytes(9000)):
        with pytest.raises(CloisterError):
            leader.replica.handle(data)
    with pytest.raises(CloisterError):
        leader.replica.handle(seal_request(ROOT.replication_key, {"kind": "forget"}))


def test_s6_s7_a_recorded_pull_neither_counts_twice_nor_for_another_leader(world: World) -> None:
    """A follower's words, played to the same leader once it is gone, and to the next leader, hold up nothing new."""
    leader = world.cluster.leader()
    pulls: list[bytes] = []
    world.cluster.tap = lambda _from, to, request, answer: (pulls.append(request), answer)[1]
    world.cluster.step()
    one, other = world.others(leader)
    world.cluster.crash(one)
    world.cluster.crash(other)

    def played() -> None:
        for request in pulls:
            leader.replica.handle(request)

    before = world.sizes()[0]
    threading.Thread(target=lambda: [played() for _ in range(50)], daemon=True).start()
    with pytest.raises(Unavailable):
        world.cluster.attempt(lambda: leader.say(world.owner.statement(world.grant)))
    assert world.witnessed() <= before
    world.cluster.crash(world.cluster.number(leader))
    world.cluster.start(one)
    world.cluster.start(other)
    following = world.cluster.leader()
    world.cluster.tap = lambda _from, _to, _request, answer: answer
    played_back = 0
    for request in pulls:
        fields = open_request(ROOT.replication_key, request)
        answer = open_answer(ROOT.replication_key, request, following.replica.handle(request))
        if fields.text("kind", limit=16) == "pull":
            rows = Rows.read(answer)
            if Pull.read(fields).term != rows.standing.term:
                assert not rows.same
                played_back += 1
    assert played_back


def test_s7_rows_of_another_place_time_or_store_are_not_absorbed(world: World) -> None:
    leader = world.cluster.leader()
    victim = world.cluster.live[world.others(leader)[0]].assembled.ledger
    ledger, size = leader.assembled.ledger, world.sizes()[0]
    world.cluster.part([world.cluster.number(leader)], world.others(leader))
    with pytest.raises(Unavailable):
        world.cluster.attempt(lambda: leader.say(world.owner.statement(world.grant)))
    with pytest.raises(Unavailable):
        world.cluster.attempt(lambda: leader.say(world.owner.statement(world.grant)))
    first, *rest = ledger.sealed(size)
    before = ledger.sealed(size - 1)[0]
    disk = MemoryDisk()
    stranger = SealedStore(MemoryRows(disk), SecretBytes(b"s" * 32), ROOT.id)
    assert not list(stranger.load())
    for rows in (
        [before],
        rest or [before],
        [SealedEntry(first.record[:-1] + bytes([first.record[-1] ^ 1]))],
        [SealedEntry(first.record, before.record)],
        [first, first],
    ):
        position = victim.position()
        with pytest.raises(Tampered, match="store-record"):
            victim.absorb(rows, b"")
        assert victim.position() == position
    assert victim.position()[0] == size


def test_s7_a_head_in_an_answer_counts_with_its_cosignatures_only(world: World) -> None:
    """Also a genuine replica may have been made to say anything: what it shows is proven by witnesses."""
    leader = world.cluster.leader()
    victim = world.others(leader)[0]
    head = LogHead(999, bytes(32), 0, ())

    def lie(source: int, _to: int, request: bytes, answer: bytes) -> bytes:
        if source != victim:
            return answer
        fields = open_answer(ROOT.replication_key, request, answer)
        standing = Standing.read(fields.mapping("standing"))
        told = Standing(standing.replica, standing.term, standing.able, standing.confirming, standing.size, head)
        content = Rows(told, same=True).fields() if fields.has("same") else {"standing": told.fields()}
        return seal_answer(ROOT.replication_key, request, content)

    world.cluster.tap = lie
    replica = world.cluster.live[victim].replica
    for _ in range(10):
        world.cluster.step()
    assert replica.role == SEARCHING
    assert replica._anchor.seen() != head
    assert "replica-unconfirmed" in [fields.get("code") for _, _, fields in world.cluster.live[victim].events.events]  # type: ignore[attr-defined]


# --- nothing lost, nothing twice ---


def test_s6_s7_a_statement_sent_again_to_the_next_leader_is_acknowledged_once(world: World) -> None:
    leader = world.cluster.leader()
    statement = world.owner.statement(RevokeGrant("model", world.owner.id))
    index = world.say(leader, statement)
    world.cluster.crash(world.cluster.number(leader))
    following = world.cluster.leader()
    size = following.assembled.ledger.position()[0]
    assert world.say(following, statement) == index
    assert following.assembled.ledger.position()[0] == size
    world.cluster.clock.advance(700)  # when its life is over it is refused as ever
    following = world.cluster.leader()
    with pytest.raises(CloisterError) as caught:
        world.cluster.attempt(lambda: following.say(statement))
    assert caught.value.code == "statement-expired"
    other = world.owner.statement(DefinePolicy(simulation_policy(b"n" * 48).encode()), sequence=2)
    with pytest.raises(CloisterError, match="statement-replayed"):  # another one under its number is none
        world.cluster.attempt(lambda: following.say(other))


def test_s5_s7_a_revocation_that_was_acknowledged_binds_whoever_leads_next(world: World) -> None:
    for _ in range(3):
        leader = world.cluster.leader()
        world.say(leader, world.owner.statement(world.grant))
        assert world.release(leader)
        world.say(leader, world.owner.statement(RevokeGrant("model", world.owner.id)))
        number = world.cluster.number(leader)
        world.cluster.crash(number)
        following = world.cluster.leader()
        with pytest.raises(CloisterError, match="release-refused"):
            world.release(following)
        world.cluster.start(number)
        world.cluster.until(world.cluster.equal)


def test_s10_what_replicas_say_shows_no_key_and_no_name_to_the_network(world: World) -> None:
    seen: list[bytes] = []
    world.cluster.tap = lambda _from, _to, request, answer: (seen.extend((request, answer)), answer)[1]
    leader = world.cluster.leader()
    published = PublishModel("model", 2, b"2" * 32, key_commitment(MODEL_KEY))
    with pytest.raises(CloisterError):  # a key is used once
        world.say(leader, world.owner.statement(published), MODEL_KEY)
    fresh = SecretBytes(b"F" * 32)
    world.say(leader, world.owner.statement(PublishModel("other", 1, b"3" * 32, key_commitment(fresh))), fresh)
    world.cluster.until(world.cluster.equal)
    everything = b"".join(seen)
    hidden = (fresh.reveal(), SEED, ROOT.replication_key.reveal(), ROOT.store_key.reveal())
    for secret in (*hidden, world.owner.id, b"other"):
        assert secret not in everything
    with pytest.raises(Tampered):
        open_request(SecretBytes(bytes(32)), seen[0])
