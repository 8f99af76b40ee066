"""S7: replicas after a rotation. An old root leads nowhere, is told nothing, and a rotation that nobody saw is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.base.errors import CloisterError, Tampered, Unavailable
from cloister.base.secret import SecretBytes
from cloister.keyservice.offline import ROOT_FILE
from cloister.keyservice.root import Root, keep_root, root_of
from cloister.keyservice.rotation import rotate_root, stored
from cloister.log.receipt import check_statement_receipt
from cloister.log.replication import HELLO, Pull, open_answer, seal_request
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import Person
from cloister.testing.replicas import SEED, Cluster
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.wire.statements import DefinePolicy

OLD = root_of(SecretBytes(SEED))


class World:
    """Three replicas with a log; :meth:`rotate` is what the operator does when all have stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster = Cluster(folder)
        leader = self.cluster.leader()
        self.tee, self.settings = leader.tee, leader.settings
        self.person = Person(leader.id, self.cluster.clock)
        self.policy = self.cluster.platform.policy()
        self.cluster.attempt(lambda: leader.say(self.person.register()))
        self.say(OLD)

    def say(self, root: Root) -> int:
        """Its entry."""
        leader, statement = self.cluster.leader(), self.person.statement(DefinePolicy(self.policy.encode()))
        result = self.cluster.attempt(lambda: leader.say(statement))
        return check_statement_receipt(result, statement, root.log_keys).index

    def stop(self) -> None:
        self.cluster.until(self.cluster.equal)
        for number in tuple(self.cluster.live):
            self.cluster.crash(number)

    def rotate(self, number: int = 0) -> Root:
        path = self.folder / ROOT_FILE
        keep_root(path, OLD, self.tee.sealer())
        return rotate_root(
            path,
            self.tee.sealer(),
            self.settings,
            lambda: MemoryRows(self.cluster.disks[number]),
            clock=self.cluster.clock,
            witnesses=self.cluster.witnesses,
        )

    def start(self, number: int, root: Root, disk: MemoryDisk | None = None) -> EmbeddedKeyService:
        return self.cluster.start(number, disk if disk is not None else self.cluster.disks[number], root=root)

    def never_led(self, numbers: list[int]) -> None:
        """They go on for a while, and no head of theirs is confirmed."""
        for _ in range(60):
            self.cluster.step(seconds=0.5)
            for number in numbers:
                ks = self.cluster.live[number]
                assert not (ks.replica.role == "leader" and ks.assembled.ledger._anchor.state().open)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.cluster.close()


def test_s7_one_is_rotated_and_the_others_join_it_and_nothing_is_lost(world: World) -> None:
    before = world.say(OLD)
    world.stop()
    root = world.rotate()
    world.start(0, root)
    world.never_led([0])  # one alone is no majority
    for number in (1, 2):
        world.start(number, root, MemoryDisk())
    assert world.say(root) > root.log_keys.begins > before
    world.cluster.until(world.cluster.equal)
    world.cluster.crash(world.cluster.number(world.cluster.leader()))
    world.say(root)  # any may die
    for witness in world.cluster.witnesses:
        assert witness.record(OLD.id).log_keys in (root.log_keys, OLD.log_keys)


def test_s7_a_replica_may_bring_a_copy_of_the_rotated_store(world: World) -> None:
    """Stores are not bound to a machine: this saves fetching the log."""
    world.stop()
    root = world.rotate()
    for number in range(3):
        world.start(number, root, world.cluster.disks[0].copy())
    world.say(root)


def test_s7_old_replicas_get_nothing_confirmed_after_the_rotation(world: World) -> None:
    world.stop()
    old = [disk.copy() for disk in world.cluster.disks]
    root = world.rotate()
    world.start(0, root)
    for number in (1, 2):
        world.start(number, root, MemoryDisk())
    world.say(root)
    world.cluster.until(world.cluster.equal)
    kept = world.cluster.live.pop(0)
    for number in (1, 2):
        world.cluster.crash(number)
    kept.close()
    for number in (1, 2):  # a majority by the configuration, with the old root on the old disks
        world.start(number, OLD, old[number])
    world.never_led([1, 2])
    with pytest.raises(Unavailable):
        world.cluster.attempt(
            lambda: world.cluster.live[1].say(world.person.statement(DefinePolicy(world.policy.encode())))
        )


def test_s7_the_old_replication_key_is_told_nothing(world: World) -> None:
    world.stop()
    root = world.rotate()
    world.start(0, root)
    for number in (1, 2):
        world.start(number, root, MemoryDisk())
    world.say(root)
    thief, size, link = OLD.replication_key, *world.cluster.live[0].assembled.ledger.position()
    standing = world.cluster.live[0].replica.standing()
    for content in ({"kind": HELLO}, Pull(b"t" * 16, standing.term, size, link, 0).fields()):
        request = seal_request(thief, content)
        for ks in world.cluster.live.values():
            for ask in (ks.replica.genuine, ks.replica.handle):
                with pytest.raises(Tampered, match="box-open"):
                    ask(request)
    genuine = seal_request(root.replication_key, {"kind": HELLO})
    answer = world.cluster.live[0].replica.handle(genuine)
    with pytest.raises(CloisterError):
        open_answer(thief, genuine, answer)


def test_s7_a_rotation_that_no_majority_joined_is_lost_and_nothing_else(world: World) -> None:
    """The operator forgot to stop the others: they go on, and the rotated one is left behind, silent."""
    world.cluster.until(world.cluster.equal)
    world.cluster.crash(0)
    before = world.say(OLD)
    number = 0
    with pytest.raises(Unavailable) as caught:  # its log lacks what was confirmed since
        world.rotate(number)
    assert caught.value.code == "keyservice-superseded"
    (world.folder / ROOT_FILE).unlink()
    world.cluster.start(0, world.cluster.disks[0])
    world.cluster.until(world.cluster.equal)
    world.cluster.crash(0)
    root = world.rotate(number)  # with it; but two are running
    world.start(0, root)
    assert world.say(OLD) > before
    world.never_led([0])
    for witness in world.cluster.witnesses:
        assert witness.record(OLD.id).log_keys == OLD.log_keys
    world.cluster.crash(0)
    world.cluster.start(0, MemoryDisk())  # it joins again, with the root that goes on
    world.cluster.until(world.cluster.equal)
    world.say(OLD)


def test_s7_a_replica_without_the_rotation_it_was_handed_does_not_lead(world: World) -> None:
    """The rotated disk is lost while the others had fetched the log up to the rotation and not that entry."""
    world.stop()
    root = world.rotate()
    whole, lacking = world.cluster.disks[0].copy(), world.cluster.disks[0].copy()
    store = stored(MemoryRows(lacking), root)
    for _ in store.load():
        pass
    store.cut(root.log_keys.begins, b"")
    store.close()
    for number in (1, 2):
        world.start(number, root, lacking.copy())
    world.never_led([1, 2])
    assert {world.cluster.live[number].replica.role for number in (1, 2)} == {"searching"}
    world.start(0, root, whole)  # it was not lost after all
    world.say(root)
    world.cluster.until(world.cluster.equal)
