"""Identities and keyrings: only their owner reads them, and a changed one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.base.errors import InvalidInput, Refused, Tampered
from cloister.base.secret import SecretBytes
from cloister.client.identity import (
    create_identity,
    identity_id_of,
    list_identities,
    load_identity,
    load_recovery_key,
    replace_key,
)
from cloister.client.keyring import FILE, Keyring, ModelKey, RequestKey
from cloister.crypto.sign import SigningKey
from cloister.wire.calls import LogHead
from cloister.wire.log_keys import KeyCertificate, LogKeys
from cloister.wire.statements import REQUEST_KEY, identity_id

KS = bytes(range(32))


def test_an_identity_is_the_hash_of_its_first_key(tmp_path: Path) -> None:
    alice = create_identity(tmp_path, "alice")
    assert alice.id == identity_id(alice.key.public_key)
    assert load_identity(tmp_path, "alice").key.public_key == alice.key.public_key
    assert list_identities(tmp_path) == ["alice"]
    assert load_recovery_key(alice).public_key == alice.recovery_public_key()
    rotated = replace_key(alice, SigningKey.generate())
    assert load_identity(tmp_path, "alice").key.public_key == rotated.key.public_key
    assert identity_id_of(tmp_path, "alice") == alice.id


def test_a_name_is_used_once(tmp_path: Path) -> None:
    create_identity(tmp_path, "alice")
    with pytest.raises(Refused, match="identity-exists"):
        create_identity(tmp_path, "alice")


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "x" * 65])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="name-malformed"):
        create_identity(tmp_path, name)


def test_an_unknown_identity_says_which_there_are(tmp_path: Path) -> None:
    create_identity(tmp_path, "alice")
    with pytest.raises(InvalidInput, match=r"identity-unknown.*alice"):
        load_identity(tmp_path, "bob")


def test_a_passphrase_protects_the_key(tmp_path: Path) -> None:
    create_identity(tmp_path, "alice", "correct horse")
    assert load_identity(tmp_path, "alice", "correct horse").name == "alice"
    for wrong in (None, "battery staple"):
        with pytest.raises(Refused, match="passphrase-wrong"):
            load_identity(tmp_path, "alice", wrong)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    alice = create_identity(tmp_path, "alice")
    (alice.folder / "identity.pem").chmod(0o644)
    with pytest.raises(Refused, match=r"file-exposed.*chmod 600"):
        load_identity(tmp_path, "alice")


def test_the_recovery_key_of_another_identity_is_refused(tmp_path: Path) -> None:
    alice, bob = create_identity(tmp_path, "alice"), create_identity(tmp_path, "bob")
    with pytest.raises(Tampered, match="recovery-key-other"):
        load_recovery_key(alice, bob.folder / "recovery.pem")


def test_a_keyring_keeps_what_it_is_given(tmp_path: Path) -> None:
    alice = create_identity(tmp_path, "alice")
    ring = Keyring(alice)
    key = SecretBytes(b"k" * 32)
    ring.put_model_key("m", ModelKey(b"d" * 32, 2, key))
    ring.put_model_key("m", ModelKey(b"e" * 32, 1, key))
    ring.put_request_key("m", RequestKey(REQUEST_KEY, b"p" * 32, None, key))
    head = LogHead(5, b"r" * 32, 7)
    ring.remember(KS, head)
    ring.remember(KS, LogHead(4, b"o" * 32, 9))
    again = Keyring(load_identity(tmp_path, "alice"))
    assert [k.version for k in again.model_keys("m")] == [1, 2]
    assert again.request_key("m") == RequestKey(REQUEST_KEY, b"p" * 32, None, key)
    assert again.request_models() == ["m"]
    assert again.newest(KS) == head
    first = SigningKey.from_seed(key)
    keys = LogKeys(first.public_key)
    assert again.log_keys(keys.keyservice) is None
    longer = keys.then(KeyCertificate(keys.keyservice, 1, b"k" * 32, 5, b"r" * 32, 7).sign(first))
    for seen in (keys, longer, keys):  # a shorter one never takes the place of a longer one
        ring.remember_log_keys(seen)
    assert again.log_keys(keys.keyservice) == longer
    again.drop_request_key("m")
    assert ring.request_key("m") is None


def test_sequence_numbers_only_grow(tmp_path: Path) -> None:
    ring = Keyring(create_identity(tmp_path, "alice"))
    numbers = [ring.next_sequence(KS, now) for now in (1000.0, 1000.0, 5.0, 2000.0)]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 1_000_000


def test_no_secret_stands_in_the_keyring_file(tmp_path: Path) -> None:
    alice = create_identity(tmp_path, "alice")
    Keyring(alice).put_model_key("m", ModelKey(b"d" * 32, 1, SecretBytes(b"secret key of 32 bytes, exactly.")))
    data = (alice.folder / FILE).read_bytes()
    assert b"secret" not in data
    assert b"secret key".hex().encode() not in data


def test_a_changed_or_foreign_keyring_is_refused(tmp_path: Path) -> None:
    alice, bob = create_identity(tmp_path, "alice"), create_identity(tmp_path, "bob")
    Keyring(alice).put_model_key("m", ModelKey(b"d" * 32, 1, SecretBytes(b"k" * 32)))
    path = alice.folder / FILE
    data = path.read_bytes()
    (bob.folder / FILE).write_bytes(data)
    (bob.folder / FILE).chmod(0o600)
    with pytest.raises(Tampered, match="keyring-tampered"):
        Keyring(bob).model_keys("m")
    for changed in (data[:-1] + bytes([data[-1] ^ 1]), data[:20], b""):
        path.write_bytes(changed)
        with pytest.raises(Tampered, match="keyring-tampered"):
            Keyring(alice).model_keys("m")


def test_a_rotated_identity_keeps_its_keyring(tmp_path: Path) -> None:
    alice = create_identity(tmp_path, "alice")
    ring = Keyring(alice)
    ring.put_model_key("m", ModelKey(b"d" * 32, 1, SecretBytes(b"k" * 32)))
    rotated = replace_key(alice, SigningKey.generate())
    ring.rekeyed(rotated)
    assert len(Keyring(rotated).model_keys("m")) == 1
    with pytest.raises(Tampered):
        ring.model_keys("m")
