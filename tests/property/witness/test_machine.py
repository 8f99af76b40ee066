"""A witness against everything that a forked log, a stranger, a clock and a failing disk can do to it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cloister.base.errors import CloisterError, InvalidInput
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.log.merkle import MerkleTree, leaf_hash
from cloister.testing.clock import FakeClock
from cloister.testing.witness import LocalWitness
from cloister.wire.calls import keyservice_id
from cloister.wire.checkpoint import AddCheckpoint, Checkpoint, Cosignature, SignedNote, parse_cosignatures
from cloister.witness.store import OsDisk

LOG = SigningKey.from_seed(SecretBytes(b"l" * 32))
KS = keyservice_id(LOG.public_key)
SIZE = 24


class Crash(BaseException):
    """The machine is gone: nothing of ours runs on."""


class CrashingDisk(OsDisk):
    """Dies at one of its operations, before or after it happened; a write may be torn."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.torn = 0.5

    def _die(self) -> bool:
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0

    def write(self, path: Path, data: bytes) -> None:
        if self._die():
            super().write(path, data[: int(len(data) * self.torn)])
            raise Crash
        super().write(path, data)

    def sync(self, path: Path) -> None:
        if self._die():
            raise Crash
        super().sync(path)

    def rename(self, old: Path, new: Path) -> None:
        if self._die():
            if self.torn > 0.5:
                super().rename(old, new)
            raise Crash
        super().rename(old, new)


def histories() -> list[MerkleTree]:
    """One log, and forks of it at several places."""
    return [
        MerkleTree(leaf_hash(b"%d/%d" % (n, branch if n >= at else 0)) for n in range(SIZE))
        for branch, at in enumerate((SIZE, 0, 3, 8, 8, 20))
    ]


HISTORIES = histories()


class WitnessMachine(RuleBasedStateMachine):
    """Invariant: whatever was co-signed is one history, which only grew, at times that never went back."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.clock = FakeClock()
        self.disk = CrashingDisk()
        self.witness = LocalWitness(self.folder / "w", self.clock, self.disk)
        self.witness.store.add(LOG.public_key)
        self.cosigned: list[tuple[int, int, int]] = []  # history, size, time

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule(
        history=st.integers(0, len(HISTORIES) - 1),
        old=st.integers(0, SIZE),
        new=st.integers(0, SIZE),
        honest=st.booleans(),
        crash=st.none() | st.integers(0, 3),
        torn=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def submit(self, history: int, old: int, new: int, honest: bool, crash: int | None, torn: float) -> None:
        tree = HISTORIES[history]
        if honest:  # from where the witness is
            old = self.witness.record(KS).newest.size
            new = max(old, new)
        checkpoint = Checkpoint(KS, new, tree.root(new))
        proof = tree.consistency(old, new) if old <= new else ()
        self.clock.advance(1)
        self.disk.left, self.disk.torn = crash, torn
        try:
            answer = self.witness.add_checkpoint(AddCheckpoint(old, proof, checkpoint.sign(LOG)).encode())
        except CloisterError:
            return
        except Crash:
            self.disk.left = None
            self.witness.restart(self.disk)
            return
        finally:
            self.disk.left = None
        if isinstance(answer, bytes):
            (found,) = parse_cosignatures(answer, checkpoint, [self.witness.key])
            self.cosigned.append((history, new, found.time))
            newest = self.witness.record(KS).newest  # durable before the answer
            assert (newest.size, newest.root) == (new, tree.root(new))

    @rule(seconds=st.integers(-100_000, 100_000))
    def set_clock(self, seconds: int) -> None:
        self.clock.set(max(1.0, self.clock.now() + seconds))

    @rule()
    def restart(self) -> None:
        self.witness.restart(self.disk)

    @invariant()
    def one_history(self) -> None:
        if len(self.cosigned) < 2:
            return
        (before, size, time), (after, larger, later) = self.cosigned[-2:]
        assert size <= larger
        assert time <= later
        assert HISTORIES[before].root(size) == HISTORIES[after].root(size)

    @invariant()
    def never_behind_what_was_cosigned(self) -> None:
        if hasattr(self, "cosigned") and self.cosigned:
            assert self.witness.record(KS).newest.size >= self.cosigned[-1][1]


TestWitness = WitnessMachine.TestCase
TestWitness.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_crash_at_every_write_leaves_the_old_head_or_the_new_one(tmp_path: Path) -> None:
    tree = HISTORIES[0]
    for step in range(4):
        for torn in (0.0, 0.5, 1.0):
            disk = CrashingDisk()
            witness = LocalWitness(tmp_path / f"{step}-{torn}", FakeClock(), disk)
            witness.store.add(LOG.public_key)
            witness.add_checkpoint(AddCheckpoint(0, (), Checkpoint(KS, 5, tree.root(5)).sign(LOG)).encode())
            disk.left, disk.torn = step, torn
            body = AddCheckpoint(5, tree.consistency(5, 9), Checkpoint(KS, 9, tree.root(9)).sign(LOG)).encode()
            try:
                witness.add_checkpoint(body)
            except Crash:
                pass
            else:
                raise AssertionError("it was to crash")
            disk.left = None
            witness.restart(disk)
            found = witness.record(KS).newest.size
            assert found in (5, 9)
            answer = witness.add_checkpoint(body)  # the KeyService asks again, and finds out where the witness is
            assert answer == 9 if found == 9 else isinstance(answer, bytes)
            fork = HISTORIES[3]
            other = AddCheckpoint(9, fork.consistency(9, 12), Checkpoint(KS, 12, fork.root(12)).sign(LOG)).encode()
            with pytest.raises(CloisterError) as caught:
                witness.add_checkpoint(other)
            assert caught.value.code == "log-fork"


@given(st.binary(max_size=400))
def test_noise_is_refused_in_one_way(data: bytes) -> None:
    for read in (AddCheckpoint.decode, SignedNote.parse, Cosignature.read):
        try:
            read(data)
        except InvalidInput:
            continue
        raise AssertionError("accepted noise")


NOTE = Checkpoint(KS, 9, HISTORIES[0].root(9)).sign(LOG)
BODY = AddCheckpoint(5, HISTORIES[0].consistency(5, 9), NOTE).encode()


@given(st.integers(0, len(BODY) - 1), st.integers(0, 255))
def test_one_changed_byte_never_verifies_as_something_else(position: int, value: int) -> None:
    changed = BODY[:position] + bytes([value]) + BODY[position + 1 :]
    try:
        request = AddCheckpoint.decode(changed)
        found = SignedNote.parse(request.note).verify(LOG.public_key)
    except CloisterError:
        return
    assert found == Checkpoint(KS, 9, HISTORIES[0].root(9))
    assert request.encode() == changed  # one form only
