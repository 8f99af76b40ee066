"""Custodians in the test's own process, and a KeyService that asks them: the real code of both, without HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from cloister.attest.bundle import TrustBundle
from cloister.attest.types import CollateralSource
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput
from cloister.client import custodian
from cloister.client.custodian import Given
from cloister.crypto.hpke import HpkePrivateKey
from cloister.keyservice.custody.recovery import Asking
from cloister.keyservice.custody.restoring import Restoring
from cloister.keyservice.opening import Tee
from cloister.keyservice.settings import Settings
from cloister.keyservice.storage.port import Rows
from cloister.testing.collateral import NoCollateral
from cloister.testing.logs import MemoryLog
from cloister.testing.tee import SimulatedTee
from cloister.wire.custody import custodian_id
from cloister.wire.recovery import OFFER_PATH, SHARE_PATH


@dataclass(frozen=True)
class LocalCustodian:
    """One of them, on a machine of his own."""

    bundle: TrustBundle
    clock: Clock
    key: HpkePrivateKey = field(default_factory=HpkePrivateKey.generate)
    collateral: CollateralSource = field(default_factory=NoCollateral)

    @property
    def id(self) -> bytes:
        """His id."""
        return custodian_id(self.key.public_key)

    def answer(self, asking: AskingTransport, expected: bytes | None = None) -> Given:
        """Judge who asks, and give the share; raises as ``cloister.client.custodian``."""
        asked = custodian.look(
            asking, bundle=self.bundle, collateral=self.collateral, clock=self.clock, expected=expected
        )
        return custodian.answer(asking, asked, self.key)


@final
class AskingTransport:
    """``Transport`` to a KeyService that waits for shares.

    :ivar posted: what custodians sent, as the network saw it.
    """

    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        self.posted: list[bytes] = []

    def get(self, path: str, *, limit: int) -> bytes:
        """See the port."""
        if path != OFFER_PATH:
            raise InvalidInput("not-found", "there is nothing here")
        return self.asking.offer()[:limit]

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        """See the port."""
        if path != SHARE_PATH:
            raise InvalidInput("not-found", "there is nothing here")
        self.posted.append(body)
        return self.asking.accept(body)[:limit]


def restoring(
    folder: Path,
    rows: Rows,
    tee: SimulatedTee,
    settings: Settings,
    *,
    bundle: TrustBundle,
    clock: Clock,
    expected: bytes | None = None,
) -> Restoring:
    """An attempt to bring back what is in ``rows``, in this simulated TEE."""
    folder.mkdir(parents=True, exist_ok=True)
    return Restoring(
        folder,
        rows,
        Tee(tee.attester(), tee.sealer(), tee.measurement),
        settings,
        bundle=bundle,
        collateral=NoCollateral(),
        clock=clock,
        events=MemoryLog(),
        expected=expected,
    )


def public_keys(custodians: Sequence[HpkePrivateKey]) -> list[bytes]:
    """Their public halves."""
    return [key.public_key for key in custodians]
