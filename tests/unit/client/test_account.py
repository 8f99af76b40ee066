"""An account heeds what the KeyService says of when to come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.keyservice import KeyServiceLink, VolatileHeads
from cloister.base.errors import Unavailable
from cloister.client.account import Account
from cloister.client.identity import create_identity
from cloister.client.keyring import Keyring
from cloister.crypto.sign import SigningKey
from cloister.keyservice.limiting.rates import Rate, Rates
from cloister.testing.collateral import NoCollateral
from cloister.testing.embedded import EmbeddedKeyService
from cloister.wire.statements import DefinePolicy


class World:
    """An account at a KeyService in this process, whose pauses let the clock go on."""

    def __init__(self, folder: Path, rates: Rates) -> None:
        self.ks = EmbeddedKeyService(rates=rates, bundle_key=SigningKey.generate())
        self.clock: Any = self.ks.clock
        bundle = self.ks.bundle
        assert bundle is not None
        link = KeyServiceLink(
            self.ks, bundle=lambda: bundle, collateral=NoCollateral(), clock=self.clock, heads=VolatileHeads()
        )
        identity = create_identity(folder, "owner")
        self.account = Account(identity, Keyring(identity), link, self.clock)
        self.pauses: list[float] = []
        self.account.pause = self._pause
        self.policy = self.ks.runtime_tee.policy()

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.advance(seconds)

    def define(self) -> None:
        self.account.say(DefinePolicy(self.policy.encode()))


def test_what_is_too_much_is_said_again_when_it_is_not(tmp_path: Path) -> None:
    world = World(tmp_path, Rates(statements=Rate(0.1, 2), queries=Rate(0.5, 1)))
    world.account.register()
    for _ in range(2):
        world.define()
    assert world.pauses == []
    world.define()
    assert world.pauses == [pytest.approx(10.0)]
    world.account.ask("whoami")
    world.account.ask("whoami")
    assert world.pauses[1:] == [pytest.approx(2.0)]
    assert world.account.ask("whoami")["sequence"] > 0
    world.ks.close()


def test_nobody_waits_for_longer_than_a_minute(tmp_path: Path) -> None:
    world = World(tmp_path, Rates(statements=Rate(0.01, 1)))
    world.account.register()
    world.define()
    with pytest.raises(Unavailable) as caught:
        world.define()
    assert (caught.value.code, world.pauses) == ("rate-limited", [])
    assert caught.value.retry_after == pytest.approx(100.0)
    world.ks.close()
