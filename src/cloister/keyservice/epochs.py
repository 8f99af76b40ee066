"""Epochs: one call key and one quote each, the one before still opened for a grace period (protocol.md, 5.1, 5.5)."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from cloister.attest.types import Attester
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError
from cloister.crypto.hpke import HpkePrivateKey
from cloister.wire.calls import Description, WireEvidence, keyservice_report_data
from cloister.wire.log_keys import LogKeys


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch: what the service says of itself during it, and the key to which calls are sealed."""

    description: Description
    encoded: bytes
    call_key: HpkePrivateKey
    began: float


@final
class Epochs:
    """The present epoch and the one before; keys are in memory only and die with the process.

    :param bundle_digest: of the trust bundle in use; another one begins another epoch.
    :param configuration: encoded measured configuration. ``length_s`` and ``grace_s`` in seconds.
    """

    def __init__(
        self,
        attester: Attester,
        clock: Clock,
        *,
        keyservice: bytes,
        log_keys: LogKeys,
        configuration: bytes,
        bundle_digest: Callable[[], bytes],
        length_s: float,
        grace_s: float,
    ) -> None:
        """:raises Unavailable: ``evidence-unavailable``."""
        self._attester = attester
        self._clock = clock
        self._keyservice = keyservice
        self._log_keys = log_keys
        self._configuration = configuration
        self._bundle_digest = bundle_digest
        self._length = length_s
        self._grace = grace_s
        self._turning = threading.Lock()
        self._epochs: tuple[Epoch, ...] = (self._begin(),)

    def current(self) -> Epoch:
        """The epoch to which callers seal."""
        return self._epochs[0]

    def keys(self) -> Mapping[bytes, HpkePrivateKey]:
        """Call keys still in use, by epoch."""
        now = self._clock.monotonic()
        current, *before = self._epochs
        live = [current, *(epoch for epoch in before if now < current.began + self._grace)]
        return {epoch.description.epoch: epoch.call_key for epoch in live}

    def turn(self) -> bool:
        """Begin a new epoch if the present one is over, or its bundle is, and forget keys whose grace is; whether one
        began.

        :raises Unavailable: ``evidence-unavailable``; the present epoch goes on.
        """
        with self._turning:
            current = self._epochs[0]
            now = self._clock.monotonic()
            if now >= current.began + self._length or self._outdated(current):
                self._epochs = (self._begin(), current)
                return True
            if len(self._epochs) > 1 and now >= current.began + self._grace:
                self._epochs = (current,)
            return False

    def _outdated(self, epoch: Epoch) -> bool:
        try:
            return epoch.description.bundle_digest != self._bundle_digest()
        except CloisterError:  # expired, or cannot be read: its time ends with the epoch
            return False

    def _begin(self) -> Epoch:
        call_key, epoch = HpkePrivateKey.generate(), secrets.token_bytes(16)
        bundle_digest = self._bundle_digest()
        bound = keyservice_report_data(
            epoch=epoch,
            call_key=call_key.public_key,
            log_keys=self._log_keys,
            configuration=self._configuration,
            bundle_digest=bundle_digest,
        )
        evidence = self._attester.evidence(bound)
        description = Description(
            keyservice=self._keyservice,
            epoch=epoch,
            call_key=call_key.public_key,
            log_keys=self._log_keys,
            configuration=self._configuration,
            bundle_digest=bundle_digest,
            evidence=WireEvidence(evidence.tee.value, evidence.body, dict(evidence.endorsements)),
        )
        return Epoch(description, description.encode(), call_key, self._clock.monotonic())
