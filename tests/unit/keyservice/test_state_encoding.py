"""The state as a snapshot holds it: everything, exactly, and named by all that its meaning hangs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cbor2
import pytest

from cloister.access.records import (
    ConsentRecord,
    GrantRecord,
    Identity,
    Model,
    ModelVersion,
    PreviousKey,
    ServiceKey,
)
from cloister.base.ids import ModelId
from cloister.keyservice.state import encoding
from cloister.keyservice.state.encoding import Copy, Reader, copy, rows, version
from cloister.keyservice.state.persons import APPROVED, Waiting
from cloister.keyservice.state.state import CustodyState, SecretPlace, State
from cloister.keyservice.state.tables import Table
from cloister.log.custody import CustodySet
from cloister.log.entry import BundleRecord, Genesis
from cloister.wire.log_keys import KeyCertificate, LogKeys
from cloister.wire.statements import Validity

ONE, TWO, NAME = b"1" * 32, b"2" * 32, b"n" * 32
MODEL = ModelId(ONE, "model")
BLOCK = 4


@dataclass(frozen=True)
class OtherIdentity:
    """``Identity``, but for one field's type."""

    id: bytes
    public_key: bytes
    recovery_key: bytes
    sequence: int
    registered_at: int
    recovery_sequence: int = 0
    disabled: int = 0
    past_keys: tuple[bytes, ...] = ()


def full() -> State:
    """Something in every table, with every field at a value of its own."""
    state = State(BLOCK)
    state.size, state.time, state.genesis = 11, 1_900_000_000, Genesis(NAME, ONE, b"configuration")
    state.bundle = BundleRecord(3, NAME, b"bundle")
    certified = KeyCertificate(NAME, 1, TWO, 5, NAME, 7)
    state.log_keys = LogKeys(ONE, (certified,), (b"certificate",))
    state.custody = CustodyState(5, CustodySet(NAME[:16], 2, (ONE, TWO), NAME), True)
    state.identities.put(ONE, Identity(ONE, TWO, NAME, 7, 8, 9, True, (ONE, TWO)))
    state.identities.put(TWO, Identity(TWO, ONE, NAME, 1, 2))
    state.policies.put(NAME, b"policy" * 9_000)
    state.policies_of.add(ONE, NAME)
    versions = (ModelVersion(1, NAME, ONE, 3, 4, True), ModelVersion(2, TWO, ONE, 5, 6))
    state.models.put(MODEL, Model(MODEL, versions, True))
    state.models_of.add(ONE, MODEL)
    for number in range(1_200):
        user = number.to_bytes(32, "big")
        state.grants.put((MODEL, user), GrantRecord(MODEL, user, NAME, Validity(number, number + 1), number, number))
        state.grants_by.add(ONE, (MODEL, user))
        state.grants_to.add(user, MODEL)
    state.grants.drop((MODEL, bytes(32)))
    state.grants_by.discard(ONE, (MODEL, bytes(32)))
    state.grants_to.discard(bytes(32), MODEL)
    previous = PreviousKey(NAME, 4, 5)
    pair = (TWO, MODEL)
    state.consents.put(pair, ConsentRecord(*pair, NAME, ONE, "request-key", TWO, 6, Validity(1, 2), 7, previous))
    other = (ONE, MODEL)
    state.consents.put(other, ConsentRecord(*other, NAME, None, "service-key", b"", 6, Validity(), 7))
    for user in (TWO, ONE):
        state.consents_by.add(user, MODEL)
        state.consents_to.add(MODEL, user)
    state.delegations.put((ONE, TWO), 2**40)
    state.delegates_of.add(ONE, TWO)
    state.delegated_to.add(TWO, ONE)
    state.service_keys.put((MODEL, None, NAME), (ServiceKey(MODEL, None, NAME, 1, TWO, 3, 4, 5),))
    state.service_keys.put((MODEL, ONE, NAME), ())
    state.two_persons.put(ONE, 5)
    state.proposed.put(6, Waiting(6, ONE, TWO, NAME, TWO, "grant model", 99, True))
    state.proposed.put(7, Waiting(7, ONE, TWO, NAME, TWO, "persons", 98, False, APPROVED, 8))
    state.waiting.add(ONE, 6)
    state.secrets.put(3, SecretPlace(NAME, None))
    state.secrets.put(4, SecretPlace(TWO, 99))
    state.dying.put(4, 99)
    for index in range(11):
        state.events.append(ONE if index % 3 else TWO, index)
    state.journal.keep()
    return state


def there_and_back(before: Copy) -> State:
    reader = Reader(BLOCK)
    for row in rows(before):
        data = cbor2.dumps(row)
        assert len(data) < 128 * 1024  # one record takes several
        reader.take(*cbor2.loads(data))
    return reader.done()


def test_everything_comes_back_in_its_order() -> None:
    state = full()
    before = copy(state, 2)
    assert all(before.values.values())
    assert all(before.tables.values())
    assert all(before.indexes.values())
    again = there_and_back(before)
    after = copy(again, 2)
    assert after == before
    assert [list(rows) for rows in after.tables.values()] == [list(rows) for rows in before.tables.values()]
    for name in encoding.DERIVED:
        assert getattr(again, name).copied() == getattr(state, name).copied(), name
    assert again.events.after(TWO, 8, 9, {}.__getitem__) == [9]


def test_an_empty_state_comes_back() -> None:
    before = copy(State(BLOCK), 0)
    assert copy(there_and_back(before), 0) == before


def test_a_copy_does_not_change_with_the_state() -> None:
    state = full()
    before, again = copy(state, 2), copy(state, 2)
    state.identities.drop(ONE)
    state.grants_to.add(TWO, MODEL)
    state.events.append(ONE, 11)
    state.size = 12
    assert before == again
    assert copy(state, 2) != before


def test_a_table_that_has_no_encoding_is_noticed() -> None:
    """Whoever adds one and forgets it here would lose it at the next start."""
    state = State(BLOCK)
    state.more = Table(state.journal)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="more"):
        copy(state, 0)


def test_the_version_says_code_and_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = version(b"code")
    assert plain == version(b"code")
    assert plain != version(b"other code")

    tables: Mapping[str, Any] = {**encoding.TABLES, "identities": (bytes, OtherIdentity)}
    monkeypatch.setattr(encoding, "TABLES", tables)
    changed = version(b"code")
    OtherIdentity.__annotations__["disabled"] = "bool"
    OtherIdentity.__name__ = "Identity"
    assert version(b"code") == plain != changed
