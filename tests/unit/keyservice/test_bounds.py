"""What strangers can make the KeyService remember is bounded, and full means busy, never yes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.access.checks import Check, Party
from cloister.attest.steps import Verdict
from cloister.base import limits
from cloister.base.errors import InvalidInput, Refused, Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.keyservice import freshness, ledger, sessions
from cloister.keyservice.freshness import Challenges, QueryNonces, ReplayWindow
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.proposals import Proposal
from cloister.keyservice.sessions import AttestedRuntime, Denial, Denials, OpenSession, Sessions
from cloister.keyservice.settings import Settings
from cloister.keyservice.state.state import State
from cloister.keyservice.storage.sealed import SealedStore
from cloister.keyservice.vault import Vault
from cloister.log.entry import Genesis
from cloister.testing.clock import FakeClock
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.wire.provisioning import new_session

RUNTIME: Any = AttestedRuntime(None, None, bytes(64))  # type: ignore[arg-type]  # only kept, never read here


def test_redeemed_challenges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness.limits, "MAX_CHALLENGES_REDEEMED", 2)
    challenges = Challenges()
    for _ in range(2):
        challenges.redeem(challenges.issue(1000.0), 1000.0)
    with pytest.raises(Unavailable) as caught:
        challenges.redeem(challenges.issue(1000.0), 1000.0)
    assert caught.value.code == "keyservice-busy"
    later = 1000.0 + limits.CHALLENGE_LIFETIME_S + 2
    challenges.redeem(challenges.issue(later), later)


@given(st.binary(max_size=100))
def test_no_bytes_are_a_challenge(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        Challenges().check(data, 0.0)


def test_challenges_of_the_future_are_none() -> None:
    challenges = Challenges()
    with pytest.raises(Refused):
        challenges.check(challenges.issue(1000.0), 900.0)


def test_query_nonces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness.limits, "MAX_QUERY_NONCES", 3)
    monkeypatch.setattr(freshness.limits, "MAX_QUERY_NONCES_PER_IDENTITY", 2)
    nonces = QueryNonces()
    for number in range(2):
        nonces.use(b"a", bytes([number]), 100.0, 0.0)
    with pytest.raises(Refused):
        nonces.use(b"a", bytes([0]), 100.0, 0.0)
    with pytest.raises(Unavailable):  # this identity's share
        nonces.use(b"a", bytes([2]), 100.0, 0.0)
    nonces.use(b"b", bytes([0]), 50.0, 0.0)
    with pytest.raises(Unavailable):  # everybody's
        nonces.use(b"c", bytes([0]), 100.0, 0.0)
    nonces.use(b"c", bytes([0]), 200.0, 60.0)  # b's is over
    nonces.use(b"a", bytes([2]), 200.0, 100.0)
    nonces.use(b"b", bytes([0]), 200.0, 100.0)  # a query so old would be refused by its own time


@given(st.lists(st.integers(1, 3 * limits.SESSION_WINDOW), max_size=60))
def test_a_sequence_number_is_accepted_once(numbers: list[int]) -> None:
    window, accepted = ReplayWindow(), set[int]()
    for number in numbers:
        fresh = number not in accepted and number > max(accepted, default=0) - limits.SESSION_WINDOW
        assert window.accept(number) == fresh
        if fresh:
            accepted.add(number)


def test_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions.limits, "MAX_SESSIONS", 2)
    table = Sessions()

    def opened(expires: float, *, useful: bool) -> OpenSession:
        session = OpenSession(new_session(10), RUNTIME, expires)
        session.useful = useful
        table.add(session, 0.0 if expires < 50 else 20.0)
        return session

    first, second = opened(10, useful=True), opened(30, useful=False)
    third = opened(40, useful=True)  # the idle one makes room
    assert table.get(second.session.id, 0.0) is None
    assert table.get(first.session.id, 0.0) is first
    with pytest.raises(Unavailable) as caught:
        opened(45, useful=True)
    assert caught.value.code == "sessions-full"
    opened(60, useful=True)  # by now the first is over
    assert len(table) == 2
    table.sweep(100.0)
    assert len(table) == 0
    assert table.get(third.session.id, 0.0) is None


def test_denials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions.limits, "MAX_DENIALS", 2)
    denials = Denials()
    model = ModelId(bytes(32), "m")
    denial = Denial(0, "sgx", (Check("grant", Party.OWNER, Verdict.FAIL, "grant-missing"),))
    for user in (b"1", b"2", b"1", b"3"):
        denials.note(model, user, denial)
    assert len(denials) == 2
    assert denials.last(model, b"2") is None
    assert denials.last(model, b"1") is denial


def opened_ledger() -> Ledger:
    store = SealedStore(MemoryRows(MemoryDisk()), SecretBytes(bytes(32)), bytes(32))
    return Ledger.begin(store, FakeClock(), Genesis(bytes(32), bytes(32), b""))


def test_waiting_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_COMMIT_QUEUE", 0)
    store = SealedStore(MemoryRows(MemoryDisk()), SecretBytes(bytes(32)), bytes(32))
    with pytest.raises(Unavailable) as caught:
        Ledger.begin(store, FakeClock(), Genesis(bytes(32), bytes(32), b""))
    assert caught.value.code == "keyservice-busy"


def test_a_bug_in_one_proposal_wedges_nothing() -> None:
    log = opened_ledger()

    def broken(_state: State, _vault: Vault, _now: float) -> Proposal:
        raise ZeroDivisionError

    with pytest.raises(Unavailable) as caught:
        log.commit(broken)
    assert caught.value.code == "keyservice-internal"
    assert log.commit(lambda _state, _vault, _now: None) is None
    assert log.head().size == 1


def test_after_closing_nothing_is_accepted() -> None:
    log = opened_ledger()
    log.close()
    with pytest.raises(Unavailable) as caught:
        log.commit(lambda _state, _vault, _now: None)
    assert caught.value.code == "keyservice-closing"
    assert log.sweep() == 0
    assert not log.open


@pytest.mark.parametrize(
    "values",
    [
        {"unknown": 1},
        {"lease_s": 0},
        {"lease_s": 61},
        {"lease_s": "60"},
        {"lease_s": True},
        {"epoch_s": 5},
        {"epoch_s": 60, "epoch_grace_s": 61},
        {"trust_anchors": "all"},
        {"rollback_protection": "quorum"},
        {"simulation_keys": "ab"},
        {"simulation_keys": ["zz"]},
        {"simulation_keys": ["ab"]},
        {"simulation_keys": 5},
        {"custodians": ["ab" * 32]},
        {"bundle_root": "ab"},
        {"bundle_root": 5},
        {"bundle_version": -1},
    ],
)
def test_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        Settings.read(values)
    assert caught.value.code == "configuration-malformed"


CHANGES: list[Callable[[Settings], Settings]] = [
    lambda _: Settings(lease_s=59),
    lambda _: Settings(trust_anchors="production"),
    lambda _: Settings(simulation_keys=(b"k" * 32,)),
    lambda _: Settings(bundle_root=b"r" * 32),
    lambda _: Settings(bundle_version=2),
    lambda _: Settings(epoch_s=3599),
    lambda _: Settings(epoch_grace_s=299),
    lambda _: Settings(session_s=599),
    lambda _: Settings(lease_requests=9),
    lambda _: Settings(service_key_epoch_s=3600),
]


def test_every_setting_is_measured() -> None:
    digests = {change(Settings()).measured().digest for change in CHANGES} | {Settings().measured().digest}
    assert len(digests) == len(CHANGES) + 1
    assert Settings().measured().values["role"] == "keyservice"
    assert Settings.read({"lease_s": 60}) == Settings()
