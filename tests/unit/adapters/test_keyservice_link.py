"""An epoch ends, or another replica answers, between two exchanges that belong together: the caller begins anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.adapters.keyservice import KeyServiceLink, Transport, VolatileHeads
from cloister.attest.bundle import TrustBundle
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput
from cloister.crypto.sign import SigningKey
from cloister.runtime.keys import RuntimeSession
from cloister.runtime.stages import Timings
from cloister.testing.clock import FakeClock
from cloister.testing.collateral import NoCollateral
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.replicas import Cluster
from cloister.wire import calls


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
