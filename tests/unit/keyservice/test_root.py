"""The root of a KeyService: what is kept of it, over rotations and in both versions of its encoding."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.base.errors import CloisterError
from cloister.base.limits import MAX_ROOT, MAX_ROOT_GENERATIONS
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context
from cloister.keyservice.root import Root, decode_root, new_root, root_of
from cloister.wire import cbor

SECRET = SecretBytes(b"r" * 32)


def rotated(count: int) -> Root:
    root = root_of(SECRET)
    for number in range(1, count + 1):
        root = root.rotated(10 * number, bytes(32), 1000 + number)
    return root


def contents(root: Root) -> dict[str, Any]:
    found: dict[str, Any] = cbor.decode(root.encode().reveal(), limit=MAX_ROOT, what="it")
    return found


def code(changed: dict[str, Any]) -> str:
    with pytest.raises(CloisterError) as caught:
        decode_root(SecretBytes(cbor.encode(changed)))
    return caught.value.code


def test_a_root_that_was_never_rotated_is_written_as_it_always_was() -> None:
    first = root_of(SECRET)
    assert contents(first) == {"context": Context.SEALED_STATE.encode(), "version": 1, "root": SECRET.reveal()}
    assert decode_root(first.encode()).encode() == first.encode()
    assert first.generation == 0
    assert first.entry_keys == ()


def test_a_rotated_root_keeps_the_id_and_what_opens_old_entries_and_nothing_else_of_the_old_one() -> None:
    first, third = root_of(SECRET), rotated(2)
    again = decode_root(third.encode())
    assert again.id == third.id == first.id
    assert again.log_keys == third.log_keys
    assert again.log_key.public_key == third.log_keys.current != first.log_keys.current
    assert again.store_key == third.store_key
    assert again.entry_keys == ((10, first.store_key), (20, third.earlier_store_keys[1]))
    for secret in (SECRET, first.log_key.seed(), first.replication_key):
        assert secret.reveal() not in third.encode().reveal()
    assert len({root.replication_key.reveal() for root in (first, rotated(1), third)}) == 3


def test_the_last_rotation_fits() -> None:
    last = rotated(MAX_ROOT_GENERATIONS - 1)
    assert len(last.encode()) <= MAX_ROOT
    with pytest.raises(CloisterError, match="limit-reached"):
        last.rotated(1000, bytes(32), 2000)


def test_what_is_no_root_is_refused() -> None:
    good = contents(rotated(2))
    other = contents(rotated(1))
    for changed in (
        {"version": 3},
        {"version": 0},
        {"context": b"cloister/v1/log-key"},
        {"store_keys": good["store_keys"][:1]},
        {"store_keys": []},
        {"store_keys": [*good["store_keys"], b"k" * 32]},
        {"store_keys": [b"short", b"k" * 32]},
        {"log_keys": good["log_keys"][:2]},
        {"log_keys": other["log_keys"]},
        {"root": new_root().secret.reveal()},
        {"root": SECRET.reveal()},
    ):
        assert code(good | changed) == "root-version"
    assert code(good | {"version": 1}) == "field-unknown"
    assert code(good | {"root": b"k"}) == "field-range"
    assert code(good | {"log_keys": [good["log_keys"][0], *reversed(good["log_keys"][1:])]}) == "signature-invalid"
