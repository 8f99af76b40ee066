"""Evidence for whoever asks what runs here (spec/protocol.md, clause 7.10), few at a time: each costs a quote."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import final

from cloister.attest.types import Attester, Configuration
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import PRESENCE_BURST, PRESENCE_INTERVAL_S
from cloister.wire.calls import WireEvidence
from cloister.wire.presence import NONCE_LENGTH, Presence, presence_report_data


@final
class PresenceDesk:
    """Answers strangers. Their questions never wait: one that finds no room is told to come back.

    :param bundle_digest: of the trust bundle by which this runtime judges its KeyService.
    """

    def __init__(
        self,
        attester: Attester,
        configuration: Configuration,
        *,
        bundle_digest: Callable[[], bytes],
        executor: Executor,
        clock: Clock,
    ) -> None:
        self._attester = attester
        self._configuration = configuration.encoded
        self._bundle_digest = bundle_digest
        self._executor = executor
        self._clock = clock
        self._lock = threading.Lock()
        self._busy = False
        self._left = float(PRESENCE_BURST)
        self._counted = clock.monotonic()

    async def answer(self, nonce: bytes) -> bytes:
        """An encoded :class:`~cloister.wire.presence.Presence` over this nonce.

        :raises InvalidInput: ``nonce-length``.
        :raises Unavailable: ``evidence-busy``; ``evidence-unavailable``. :raises Tampered: ``evidence-device-lied``.
        """
        if len(nonce) != NONCE_LENGTH:
            raise InvalidInput("nonce-length", f"a nonce has {NONCE_LENGTH} bytes, this has {len(nonce)}")
        self._enter()
        # Not cancelled with the caller: the quote is under way, and the desk is busy until it is made.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._executor, self._make, nonce))

    def _enter(self) -> None:
        with self._lock:
            now = self._clock.monotonic()
            self._left = min(float(PRESENCE_BURST), self._left + (now - self._counted) / PRESENCE_INTERVAL_S)
            self._counted = now
            if self._busy or self._left < 1:
                wait = 1.0 if self._left >= 1 else (1 - self._left) * PRESENCE_INTERVAL_S
                raise Unavailable("evidence-busy", "others are asking for evidence too", retry_after=wait)
            self._left -= 1
            self._busy = True

    def _make(self, nonce: bytes) -> bytes:
        try:
            bundle_digest = self._bundle_digest()
            bound = presence_report_data(nonce, self._configuration, bundle_digest)
            evidence = self._attester.evidence(bound)
            wire = WireEvidence(evidence.tee.value, evidence.body, dict(evidence.endorsements))
            return Presence(self._configuration, bundle_digest, wire).encode()
        finally:
            with self._lock:
                self._busy = False
