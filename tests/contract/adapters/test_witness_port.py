"""``WitnessPort``: a witness in the process and one over HTTP answer alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.witness import HttpWitness, WitnessPort
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.crypto.sign import SigningKey
from cloister.log.merkle import MerkleTree, leaf_hash
from cloister.testing.witness import LocalWitness, WitnessProcess
from cloister.wire.calls import keyservice_id
from cloister.wire.checkpoint import AddCheckpoint, Checkpoint, parse_cosignatures, parse_cosigned_note
from cloister.wire.log_keys import FollowLogKeys, KeyCertificate, LogKeys

LOG = SigningKey.generate()
KS = keyservice_id(LOG.public_key)
TREE = MerkleTree(leaf_hash(b"%d" % n) for n in range(9))
OTHER = MerkleTree(leaf_hash(b"%d" % (n * (n < 3))) for n in range(9))


@pytest.fixture(params=["in-process", "http"])
def witness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[WitnessPort, bytes]]:
    clock = SystemClock()
    if request.param == "in-process":
        local = LocalWitness(tmp_path / "w", clock)
        local.store.add(LOG.public_key)
        yield local, local.key
        return
    process, client = WitnessProcess(tmp_path / "w"), HttpClient(clock)
    process.add(LOG.public_key)
    process.start()
    yield HttpWitness(client, process.address), process.key.public_key
    client.close()
    process.kill()


def body(tree: MerkleTree, old: int, new: int, key: SigningKey = LOG, ks: bytes = KS) -> bytes:
    return AddCheckpoint(old, tree.consistency(old, new), Checkpoint(ks, new, tree.root(new)).sign(key)).encode()


def test_the_port(witness: tuple[WitnessPort, bytes]) -> None:
    port, key = witness
    assert port.newest(KS) == b""
    for old, new in ((0, 4), (4, 4), (4, 7)):
        answer = port.add_checkpoint(body(TREE, old, new))
        assert isinstance(answer, bytes)
        (found,) = parse_cosignatures(answer, Checkpoint(KS, new, TREE.root(new)), [key])
        assert found.key == key
        told = port.newest(KS)
        assert told is not None
        assert parse_cosigned_note(told, LOG.public_key, [key]) == (Checkpoint(KS, new, TREE.root(new)), found)
        assert parse_cosigned_note(told, LOG.public_key, [bytes(32)]) is None
        with pytest.raises(Tampered):
            parse_cosigned_note(told, bytes(32), [key])
    assert port.add_checkpoint(body(TREE, 4, 9)) == 7
    assert port.add_checkpoint(body(OTHER, 7, 7)) == 7
    refusals: list[tuple[bytes, type[CloisterError]]] = [
        (body(OTHER, 7, 9), Tampered),
        (body(TREE, 7, 9, SigningKey.generate()), Refused),
        (body(TREE, 0, 9, ks=bytes(32)), Refused),
    ]
    for data, family in refusals:
        with pytest.raises(family):
            port.add_checkpoint(data)
    with pytest.raises((InvalidInput, Unavailable)):
        port.add_checkpoint(b"noise")
    assert isinstance(port.add_checkpoint(body(TREE, 7, 9)), bytes)


def test_a_retired_log_key_is_followed_by_the_one_it_named(witness: tuple[WitnessPort, bytes]) -> None:
    port, key = witness
    new, third = SigningKey.generate(), SigningKey.generate()
    assert isinstance(port.add_checkpoint(body(TREE, 0, 4)), bytes)
    with pytest.raises(Refused):
        port.add_checkpoint(body(TREE, 4, 6, new))
    keys = LogKeys(LOG.public_key).then(KeyCertificate(KS, 1, new.public_key, 5, TREE.root(5), 1).sign(LOG))
    assert port.follow_log_keys(FollowLogKeys(keys, body(TREE, 3, 6, new)).encode()) == 4
    assert port.newest(KS) is not None
    answer = port.follow_log_keys(FollowLogKeys(keys, body(TREE, 4, 6, new)).encode())
    assert isinstance(answer, bytes)
    assert [found.key for found in parse_cosignatures(answer, Checkpoint(KS, 6, TREE.root(6)), [key])] == [key]
    told = port.newest(KS)
    assert told is not None
    assert parse_cosigned_note(told, new.public_key, [key])
    assert isinstance(port.add_checkpoint(body(TREE, 6, 7, new)), bytes)
    assert isinstance(
        port.follow_log_keys(FollowLogKeys(keys, body(TREE, 7, 7, new)).encode()), bytes
    )  # says nothing new
    rival = LogKeys(LOG.public_key).then(KeyCertificate(KS, 1, third.public_key, 5, TREE.root(5), 1).sign(LOG))
    bad: list[tuple[bytes, type[CloisterError]]] = [
        (FollowLogKeys(rival, body(TREE, 7, 9, third)).encode(), Tampered),
        (FollowLogKeys(LogKeys(LOG.public_key), body(TREE, 7, 9)).encode(), Refused),
        (FollowLogKeys(keys, body(TREE, 7, 9)).encode(), Refused),
        (FollowLogKeys(keys, body(OTHER, 7, 9, new)).encode(), Tampered),
    ]
    for data, family in bad:
        with pytest.raises(family):
            port.follow_log_keys(data)
    with pytest.raises(Refused):
        port.add_checkpoint(body(TREE, 7, 9))
    with pytest.raises((InvalidInput, Unavailable)):
        port.follow_log_keys(b"noise")


def test_what_does_not_tell_is_told_apart_from_what_is_away(witness: tuple[WitnessPort, bytes]) -> None:
    """Of a log that it was not told of; so answers any witness that has no such address."""
    port, _ = witness
    if isinstance(port, HttpWitness):
        assert port.newest(bytes(32)) is None
    else:
        with pytest.raises(Refused, match="witness-log-unknown"):
            port.newest(bytes(32))


def test_one_that_is_away_is_unavailable() -> None:
    client = HttpClient(SystemClock())
    with pytest.raises(Unavailable) as caught:
        HttpWitness(client, "http://127.0.0.1:1").add_checkpoint(body(TREE, 0, 1))
    assert caught.value.code == "witness-away"
    with pytest.raises(Unavailable, match="witness-away"):
        HttpWitness(client, "http://127.0.0.1:1").newest(KS)
    client.close()
