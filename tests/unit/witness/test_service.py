"""A witness: what it co-signs, what it refuses, what it keeps (spec/protocol.md, 13.8)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.base.limits import MAX_KEPT_CONFLICTS, WITNESS_REPEATS_PER_S
from cloister.crypto.sign import SigningKey
from cloister.log.merkle import MerkleTree, leaf_hash
from cloister.testing.clock import FakeClock
from cloister.testing.witness import LocalWitness
from cloister.wire.calls import keyservice_id
from cloister.wire.checkpoint import AddCheckpoint, Checkpoint, SignedNote, parse_cosignatures, parse_cosigned_note
from cloister.wire.log_keys import LogKeys
from cloister.witness.app import initialise, read_identity
from cloister.witness.store import Record, WitnessStore

LOG = SigningKey.generate()
KS = keyservice_id(LOG.public_key)


def tree(size: int, other_from: int | None = None) -> MerkleTree:
    return MerkleTree(
        leaf_hash(b"%d%s" % (n, b"x" if other_from is not None and n >= other_from else b"")) for n in range(size)
    )


def checkpoint(history: MerkleTree, size: int | None = None) -> Checkpoint:
    size = history.size if size is None else size
    return Checkpoint(KS, size, history.root(size))


def request(history: MerkleTree, old: int, new: int | None = None, key: SigningKey = LOG) -> bytes:
    wanted = checkpoint(history, new)
    proof = history.consistency(old, wanted.size) if old <= wanted.size else ()
    return AddCheckpoint(old, proof, wanted.sign(key)).encode()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def witness(tmp_path: Path, clock: FakeClock) -> LocalWitness:
    witness = LocalWitness(tmp_path / "w", clock)
    witness.store.add(LOG.public_key)
    return witness


def cosigned_at(witness: LocalWitness, history: MerkleTree, old: int, new: int | None = None) -> int:
    answer = witness.add_checkpoint(request(history, old, new))
    assert isinstance(answer, bytes), answer
    (found,) = parse_cosignatures(answer, checkpoint(history, new), [witness.key])
    return found.time


def test_it_cosigns_growth_and_remembers(witness: LocalWitness, clock: FakeClock) -> None:
    history = tree(9)
    for old, new in ((0, 1), (1, 4), (4, 4), (4, 9)):
        clock.advance(10)
        assert cosigned_at(witness, history, old, new) == int(clock.now())
        witness.restart()
        assert witness.record(KS).newest.size == new
    assert SignedNote.parse(witness.record(KS).note).verify(LOG.public_key) == checkpoint(history)


def test_it_says_where_the_log_is(witness: LocalWitness) -> None:
    history = tree(9)
    assert witness.add_checkpoint(request(history, 3, 5)) == 0
    cosigned_at(witness, history, 0, 5)
    for old, new in ((0, 9), (3, 9), (0, 3), (3, 4), (4, 4)):
        assert witness.add_checkpoint(request(history, old, new)) == 5


def test_its_time_never_goes_back(witness: LocalWitness, clock: FakeClock) -> None:
    first = cosigned_at(witness, tree(3), 0)
    clock.set(first - 5000)
    assert cosigned_at(witness, tree(4), 3) == first
    witness.restart()
    assert cosigned_at(witness, tree(5), 4) == first


def test_another_history_is_refused_and_the_proof_kept(witness: LocalWitness) -> None:
    cosigned_at(witness, tree(5), 0)
    with pytest.raises(Tampered) as caught:
        witness.add_checkpoint(request(tree(7, other_from=4), 5))
    assert caught.value.code == "log-fork"
    assert not witness.record(KS).conflicts  # a bad proof proves nothing against the log
    assert witness.add_checkpoint(request(tree(5, other_from=4), 5)) == 5
    witness.restart()
    first, second = (SignedNote.parse(note).verify(LOG.public_key) for note in witness.record(KS).conflicts)
    assert (first.size, first.root != second.root) == (second.size, True)
    assert witness.record(KS).newest.root == tree(5).root()


def test_it_keeps_few_proofs(witness: LocalWitness, clock: FakeClock) -> None:
    cosigned_at(witness, tree(5), 0)
    for other in range(5):
        for _ in range(4):
            clock.advance(1)
            witness.add_checkpoint(request(tree(5, other_from=other), 5))
    assert 2 <= len(witness.record(KS).conflicts) <= MAX_KEPT_CONFLICTS


def test_strangers_and_unsigned_heads_are_refused(witness: LocalWitness) -> None:
    other = SigningKey.generate()
    for body, code in (
        (request(tree(3), 0, key=other), "witness-not-signed"),
        (
            AddCheckpoint(0, (), Checkpoint(keyservice_id(other.public_key), 3, tree(3).root()).sign(other)).encode(),
            "witness-log-unknown",
        ),
    ):
        with pytest.raises(Refused) as caught:
            witness.add_checkpoint(body)
        assert caught.value.code == code
    assert witness.record(KS) == Record(LogKeys(LOG.public_key))


def test_it_tells_what_it_signed_last_and_says_nothing_new_by_that(witness: LocalWitness, clock: FakeClock) -> None:
    assert witness.newest(KS) == b""
    history = tree(5)
    padded = AddCheckpoint(0, (), checkpoint(history, 3).sign(LOG) + b"\xe2\x80\x94 stranger AAAAAAAA\n").encode()
    answer = witness.add_checkpoint(padded)
    assert isinstance(answer, bytes)
    (given,) = parse_cosignatures(answer, checkpoint(history, 3), [witness.key])
    before = witness.record(KS)
    clock.advance(100)
    witness.restart()
    told = witness.newest(KS)
    assert told is not None
    assert parse_cosigned_note(told, LOG.public_key, [witness.key]) == (checkpoint(history, 3), given)  # to the byte
    assert b"stranger" not in told
    assert witness.record(KS) == before
    with pytest.raises(Refused, match="witness-log-unknown"):
        witness.newest(bytes(32))
    for _ in range(WITNESS_REPEATS_PER_S - 1):
        witness.newest(KS)
    with pytest.raises(Unavailable, match="rate-limited"):
        witness.newest(KS)


def test_repeats_are_limited_and_growth_is_not(witness: LocalWitness, clock: FakeClock) -> None:
    history = tree(200)
    cosigned_at(witness, history, 0, 1)
    for _ in range(WITNESS_REPEATS_PER_S):
        cosigned_at(witness, history, 1, 1)
    with pytest.raises(Unavailable) as caught:
        witness.add_checkpoint(request(history, 1, 1))
    assert caught.value.code == "rate-limited"
    for size in range(1, 100):
        cosigned_at(witness, history, size, size + 1)
    clock.advance(1)
    cosigned_at(witness, history, 100, 100)


@pytest.mark.parametrize("change", ["flip", "cut", "empty", "other-log"])
def test_a_changed_store_stops_it(witness: LocalWitness, change: str) -> None:
    cosigned_at(witness, tree(3), 0)
    (path,) = (witness.folder / "logs").iterdir()
    data = path.read_bytes()
    path.write_bytes(
        {
            "flip": data[:60] + bytes([data[60] ^ 1]) + data[61:],
            "cut": data[:-1],
            "empty": b"",
            "other-log": replace(witness.record(KS), log_keys=LogKeys(SigningKey.generate().public_key)).encode(),
        }[change]
    )
    with pytest.raises(Tampered) as caught:
        witness.add_checkpoint(request(tree(4), 3))
    assert caught.value.code == "witness-store-corrupt"


def test_a_lost_store_is_no_new_beginning(witness: LocalWitness) -> None:
    (path,) = (witness.folder / "logs").iterdir()
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(Unavailable) as caught:
        witness.restart()
    assert caught.value.code == "witness-store-missing"


def test_a_log_is_added_once_and_a_witness_made_once(witness: LocalWitness) -> None:
    cosigned_at(witness, tree(3), 0)
    for again, code in (
        (lambda: witness.store.add(LOG.public_key), "witness-log-known"),
        (lambda: initialise(witness.folder), "state-exists"),
    ):
        with pytest.raises(Refused) as caught:
            again()
        assert caught.value.code == code
    assert witness.record(KS).newest.size == 3
    assert read_identity(witness.folder).key.public_key == witness.key


def test_two_processes_do_not_share_a_folder(witness: LocalWitness) -> None:
    other = WitnessStore(witness.folder)
    with witness.store.exclusive(), pytest.raises(Unavailable) as caught, other.exclusive():
        pass
    assert caught.value.code == "witness-running"
    with other.exclusive():
        pass


@pytest.mark.parametrize("name", ["", "with space", "with+plus", "x" * 129, "new\nline", "\u2003"])
def test_names_are_plain(tmp_path: Path, name: str) -> None:
    if not name:
        assert read_identity_after(tmp_path).name.startswith("witness.cloister.invalid/")
        return
    with pytest.raises(InvalidInput) as caught:
        initialise(tmp_path / "w", name)
    assert caught.value.code == "witness-name"


def read_identity_after(folder: Path) -> object:
    initialise(folder / "w")
    return read_identity(folder / "w")


def test_an_exposed_key_is_refused(witness: LocalWitness) -> None:
    (witness.folder / "witness.key").chmod(0o644)
    with pytest.raises(CloisterError) as caught:
        read_identity(witness.folder)
    assert caught.value.code == "file-exposed"
