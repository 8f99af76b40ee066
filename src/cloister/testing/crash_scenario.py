"""A KeyService's life in one process, on real files, told to a file as it goes: to be traced, and cut short anywhere.

``python -m cloister.testing.crash_scenario FOLDER``: ``FOLDER/leads`` is the KeyService's state, ``FOLDER/follows`` a
replica's store, ``FOLDER/told`` one line of JSON for what begins and what is acknowledged.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final, final

from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.keyservice.keeper import Keeper
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.offline import ROOT_FILE, initialise
from cloister.keyservice.opening import Tee
from cloister.keyservice.root import Root, open_root
from cloister.keyservice.settings import Settings
from cloister.keyservice.storage.place import STORE_FILE
from cloister.keyservice.storage.sealed import SealedStore
from cloister.keyservice.storage.sqlite import SqliteRows
from cloister.testing.clock import FakeClock
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.logs import MemoryLog
from cloister.testing.people import Person
from cloister.testing.tee import SimulatedTee, simulated_tee
from cloister.wire.provisioning import ReleaseRequest
from cloister.wire.statements import (
    REQUEST_KEY,
    Body,
    Consent,
    DefinePolicy,
    Grant,
    PublishModel,
    RevokeConsent,
    RevokeGrant,
    RotateModelKey,
    RotateRequestKey,
    Validity,
    key_commitment,
)

LEADS: Final = "leads"
FOLLOWS: Final = "follows"
TOLD: Final = "told"
BLOCK: Final = 4  # entries of a block of both stores: several blocks in a short life
_DYING_S: Final = 3600.0  # after it, secrets that were replaced or revoked are destroyed


def tee() -> SimulatedTee:
    """The runtime's; the KeyService runs on the same platform. The same one at every run."""
    return simulated_tee("runtime")


def settings() -> Settings:
    """Of the KeyService."""
    return Settings(simulation_keys=(tee().key.public_key,))


def keyservice_tee(clock: FakeClock) -> Tee:
    """The KeyService's."""
    found = SimulatedTee("keyservice", values=settings().measured().values, key=tee().key, clock=clock)
    return Tee(found.attester(), found.sealer(), found.measurement)


def root(folder: Path) -> Root:
    """Of the state in a folder; raises as :func:`open_root`."""
    sealer = keyservice_tee(FakeClock()).sealer
    if sealer is None:
        raise AssertionError
    return open_root(folder / ROOT_FILE, sealer)


def running(folder: Path, clock: FakeClock) -> EmbeddedKeyService:
    """The KeyService on the state in a folder; raises what the product raises."""
    secret = root(folder).secret.reveal()
    rows = SqliteRows(folder / STORE_FILE)
    return EmbeddedKeyService(clock=clock, rows=rows, seed=secret, runtime_tee=tee(), block_entries=BLOCK)


def follower(folder: Path, of: Root, clock: FakeClock) -> Ledger:
    """A replica's ledger."""
    folder.mkdir(exist_ok=True)
    store = SealedStore(SqliteRows(folder / STORE_FILE), of.store_key, of.id, block_entries=BLOCK)
    made = Ledger(store, clock)
    made.follow()
    return made


@final
class Teller:
    """Says what begins and what is done."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / TOLD, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(self, **what: Any) -> None:
        """One line."""
        os.write(self._descriptor, json.dumps(what).encode() + b"\n")


def main(folder: Path) -> None:
    """The scenario."""
    clock, teller = FakeClock(), Teller(folder)
    state = folder / LEADS
    teller.tell(store=LEADS, begins="init")
    initialise(state, keyservice_tee(clock), settings(), clock)
    teller.tell(store=LEADS, size=1)
    ks = running(state, clock)
    owner, user = Person(ks.id, clock), Person(ks.id, clock)

    def say(person: Person, body: Body | None, *keys: SecretBytes) -> None:
        statement = person.register() if body is None else person.statement(body)
        teller.tell(store=LEADS, begins="register" if body is None else type(body).__name__)
        done = ks.say(statement, *keys)
        teller.tell(store=LEADS, size=done["entry"] + 1)

    def release() -> None:
        session = ks.attest()
        teller.tell(store=LEADS, begins="release")
        teller.tell(store=LEADS, size=session.release(request).head.size)

    def sweep() -> None:
        clock.advance(_DYING_S)
        held = {index for index, _ in rows.scan("secrets")}
        teller.tell(store=LEADS, begins="sweep")
        ks.service.maintain()
        gone = held - {index for index, _ in rows.scan("secrets")}
        teller.tell(store=LEADS, gone=sorted(gone), size=ks.assembled.ledger.head().size)

    def snapshot(store: str, ledger: Ledger) -> None:
        teller.tell(store=store, begins="snapshot")
        if not Keeper(ledger, clock, MemoryLog()).save():
            raise AssertionError
        teller.tell(store=store, size=ledger.head().size)

    rows = _rows(ks)
    policy = tee().policy()
    model = ModelId(owner.id, "model")
    first, second, third = (SecretBytes(byte * 32) for byte in (b"1", b"2", b"3"))
    for person in (owner, user):
        say(person, None)
        say(person, DefinePolicy(policy.encode()))
    say(owner, PublishModel("model", 1, b"m" * 32, key_commitment(first)), first)
    say(owner, Grant("model", user.id, policy.digest, Validity(), 0))
    say(user, Consent(model, policy.digest, None, REQUEST_KEY, key_commitment(second), Validity()), second)
    request = ReleaseRequest(user.id, model, REQUEST_KEY, key_commitment(second))
    release()
    follows = follower(folder / FOLLOWS, root(state), clock)

    def absorb(size: int) -> None:
        have = follows.position()[0]
        teller.tell(store=FOLLOWS, begins="absorb")
        follows.absorb(ks.assembled.ledger.sealed(have)[: size - have], b"proof")
        teller.tell(store=FOLLOWS, size=size)

    snapshot(LEADS, ks.assembled.ledger)
    absorb(3)
    absorb(8)
    snapshot(FOLLOWS, follows)
    say(owner, RotateModelKey("model", 1, b"n" * 32, key_commitment(third)), third)
    say(user, RotateRequestKey(model, key_commitment(first)), first)
    request = ReleaseRequest(user.id, model, REQUEST_KEY, key_commitment(first))
    release()
    sweep()
    teller.tell(store=LEADS, begins="restart")
    ks.close()  # SQLite writes its log back into the file
    ks = running(state, clock)
    rows = _rows(ks)
    teller.tell(store=LEADS, size=ks.assembled.ledger.head().size)
    release()
    snapshot(LEADS, ks.assembled.ledger)
    absorb(ks.assembled.ledger.head().size)
    snapshot(FOLLOWS, follows)
    teller.tell(store=FOLLOWS, begins="cut")
    follows.cut(6, b"proof of another history")
    teller.tell(store=FOLLOWS, size=6)
    absorb(ks.assembled.ledger.head().size)
    say(owner, RevokeGrant("model", user.id))
    say(user, RevokeConsent(model))
    sweep()
    teller.tell(store=FOLLOWS, begins="close")
    follows.close()
    teller.tell(store=LEADS, begins="close")
    ks.close()
    teller.tell(store="", ends=True)


def _rows(ks: EmbeddedKeyService) -> SqliteRows:
    rows = ks._rows
    if not isinstance(rows, SqliteRows):
        raise AssertionError  # noqa: TRY004  # no caller's fault
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1]))
