"""An epoch ends, or another replica answers, between two exchanges that belong together: the caller begins anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.adapters import keyservice
from cloister.adapters.keyservice import KeyServiceLink, Transport, VolatileHeads
from cloister.attest.bundle import TrustBundle
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput, Tampered
from cloister.crypto.sign import SigningKey
from cloister.runtime.keys import RuntimeSession
from cloister.runtime.stages import Timings
from cloister.testing.clock import FakeClock
from cloister.testing.collateral import NoCollateral
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import Person
from cloister.testing.replicas import Cluster
from cloister.wire import calls
from cloister.wire.statements import DefinePolicy


class Between:
    """``Transport``: something happens before the first POST to a path, which may change who answers it."""

    def __init__(self, transport: Transport, path: str, happens: Callable[[], Transport | None]) -> None:
        self.transport = transport
        self.path = path
        self.happens = happens

    def get(self, path: str, *, limit: int) -> bytes:
        return self.transport.get(path, limit=limit)

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        found: Transport | None = None
        if path == self.path:
            self.path = ""
            found = self.happens()
        return (found or self.transport).post(path, body, limit=limit)


def link(transport: Transport, bundle: TrustBundle | None, clock: Clock) -> KeyServiceLink:
    assert bundle is not None
    found = bundle
    return KeyServiceLink(
        transport, bundle=lambda: found, collateral=NoCollateral(), clock=clock, heads=VolatileHeads()
    )


def test_an_epoch_that_ends_before_the_status_is_asked_for() -> None:
    clock = FakeClock()
    ks = EmbeddedKeyService(clock=clock, bundle_key=SigningKey.generate())
    person = ks.person()

    def turn() -> None:
        clock.advance(ks.settings.epoch_s + 1)
        ks.service.maintain()

    made = link(Between(ks, "/v1/status", turn), ks.bundle, clock)
    assert made.settled().description.keyservice == ks.id
    made = link(Between(ks, "/v1/status", turn), ks.bundle, clock)
    assert made.call(calls.QUERY, lambda _: person.query("whoami"))["id"] == person.id

    class Always(Between):
        def post(self, path: str, body: bytes, *, limit: int) -> bytes:
            self.path = "/v1/status"
            return super().post(path, body, limit=limit)

    with pytest.raises(InvalidInput, match="status-not-fresh"):  # whoever always answers so is not believed
        link(Always(ks, "/v1/status", turn), ks.bundle, clock).settled()


@pytest.mark.parametrize("path", ["/v1/status", "/v1/challenge"])
def test_another_replica_answers_the_second_question(path: str, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    leader = cluster.leader()
    follower = next(ks for ks in cluster.live.values() if ks is not leader)
    if path == "/v1/status":  # it shows no head before it follows one that is confirmed; as one that leads would
        follower.assembled.ledger._anchor.confirmed = leader.assembled.ledger._anchor.confirmed
    made = link(Between(leader, path, lambda: follower), leader.bundle, cluster.clock)
    session = RuntimeSession(
        made,
        cluster.platform.attester(),
        cluster.platform.configuration,
        clock=cluster.clock,
    )
    cluster.attempt(lambda: session.connect(Timings()))
    assert session.attests == 1
    cluster.close()


def test_one_that_leads_no_more_gives_no_proof_and_is_no_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stopped, others went on, and it has not noticed: it lacks entries that it is asked about."""
    cluster = Cluster(tmp_path)
    leader = cluster.leader()
    cluster.until(cluster.equal)
    person = Person(leader.id, cluster.clock)

    class Way:
        """Every question goes to the one that leads, but the first about consistency."""

        asked = 0
        patient = True

        def get(self, path: str, *, limit: int) -> bytes:
            return leader.get(path, limit=limit)

        def post(self, path: str, body: bytes, *, limit: int) -> bytes:
            if path == "/v1/consistency":
                self.asked += 1
                if self.asked == 1 or not self.patient:
                    raise InvalidInput("call-refused", "the call was not accepted")
            return leader.post(path, body, limit=limit)

    way = Way()
    made = link(way, leader.bundle, cluster.clock)
    known = made.settled().description.keyservice
    cluster.attempt(lambda: leader.say(person.register()))
    made.saw(known, leader.assembled.ledger.shown_head())
    assert way.asked == 2
    way.patient = False  # if it lasts, it is an attack
    monkeypatch.setattr(keyservice, "_TAKE_OVER_S", 1.0)
    cluster.attempt(lambda: leader.say(person.statement(DefinePolicy(cluster.platform.policy().encode()))))
    with pytest.raises(Tampered, match="keyservice-forked"):
        made.saw(known, leader.assembled.ledger.shown_head())
    cluster.close()
