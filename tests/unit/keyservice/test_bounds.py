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
    monkeypatch.setattr(freshness.limits, "MAX_QUERY_NONCES_PER_IDENTITY", 2)
    nonces = QueryNonces()
    for number in range(2):
        nonces.use(b"a", bytes([number]), 100.0, 0.0)
    with pytest.raises(Refused):
        nonces.use(b"a", bytes([0]), 100.0, 0.0)
    with pytest.raises(Unavailable):  # this identity's share
        nonces.use(b"a", bytes([2]), 100.0, 0.0)
    nonces.use(b"b", bytes([0]), 50.0, 0.0)
    with pytest.raises(Refused):  # not forgotten before its time
        nonces.use(b"a", bytes([0]), 100.0, 99.9)
    nonces.use(b"a", bytes([2]), 200.0, 105.0)
    assert len(nonces) == 1


def test_those_who_hoard_query_nonces_leave_room_for_whoever_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freshness.limits, "MAX_QUERY_NONCES", 20_000)
    nonces = QueryNonces()

    def hoard(who: int) -> None:
        for number in range(20_000):
            nonces.use(b"hoarder %d" % who, number.to_bytes(2, "big"), 600.0, 0.0)

    for who in range(300):
        with pytest.raises(Unavailable) as caught:
            hoard(who)
        assert caught.value.code == "keyservice-busy"
    for number in range(20):
        nonces.use(b"honest", bytes([number]), 600.0, 0.0)
    assert 10_000 < len(nonces) < 20_000


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.floats(0, 90), st.floats(1, 90)), max_size=60))
def test_a_nonce_is_accepted_once_while_its_query_lives(asked: list[tuple[int, int, float, float]]) -> None:
    nonces, lives, now = QueryNonces(), dict[tuple[int, int], float](), 0.0
    for who, nonce, later, life in asked:
        now += later
        try:
            nonces.use(bytes([who]), bytes([nonce]), now + life, now)
        except Refused:
            assert lives[who, nonce] > now - 15.0
        else:
            assert lives.get((who, nonce), 0.0) <= now
            lives[who, nonce] = now + life


@given(st.lists(st.integers(1, 3 * limits.SESSION_WINDOW), max_size=60))
def test_a_sequence_number_is_accepted_once(numbers: list[int]) -> None:
    window, accepted = ReplayWindow(), set[int]()
    for number in numbers:
        fresh = number not in accepted and number > max(accepted, default=0) - limits.SESSION_WINDOW
        assert window.accept(number) == fresh
        if fresh:
            accepted.add(number)


def opened(table: Sessions, expires: float, *, useful: bool, now: float = 0.0, platform: str = "") -> OpenSession:
    runtime: Any = AttestedRuntime(None, None, bytes(64), platform)  # type: ignore[arg-type]
    session = OpenSession(new_session(10), runtime, expires)
    session.useful = useful
    table.add(session, now)
    return session


def test_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions.limits, "MAX_SESSIONS", 2)
    table = Sessions()
    first = opened(table, 10, useful=True)
    second = opened(table, 30, useful=False)
    third = opened(table, 40, useful=True)  # the idle one makes room
    assert table.get(second.session.id, 0.0) is None
    assert table.get(first.session.id, 0.0) is first
    fourth = opened(table, 45, useful=True)  # of those that are useful the oldest
    assert table.get(first.session.id, 0.0) is None
    opened(table, 60, useful=False, now=42.0)  # by now the third is over
    assert table.get(third.session.id, 42.0) is None
    assert table.get(fourth.session.id, 42.0) is fourth
    assert len(table) == 2
    table.sweep(100.0)
    assert len(table) == 0


def test_a_platform_pushes_out_its_own_sessions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions.limits, "MAX_SESSIONS", 20)
    monkeypatch.setattr(sessions.limits, "MAX_SESSIONS_PER_PLATFORM", 8)
    table = Sessions()
    honest = [opened(table, 1000, useful=False, platform=f"hospital {number}") for number in range(10)]
    for _ in range(50):
        opened(table, 1000, useful=True, platform="hostile")
    assert len(table) == 18
    for _ in range(50):  # and with a second machine, when all together are too many
        opened(table, 1000, useful=True, platform="hostile too")
    assert len(table) == 20
    assert all(table.get(one.session.id, 0.0) is one for one in honest)
    again = opened(table, 1000, useful=False, platform="hospital 0")
    assert all(table.get(one.session.id, 0.0) is one for one in (*honest, again))


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
