"""A KeyService without a root asks custodians for their shares (spec/protocol.md, 13.24.6 and 13.24.8)."""

from __future__ import annotations

import threading
from typing import final

from cloister.adapters.logs import EventLog
from cloister.adapters.recovery import judge_offer
from cloister.attest.bundle import TrustBundle
from cloister.attest.types import Appraisal, Attester, CollateralSource, Configuration
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError
from cloister.base.limits import KEYSERVICE_EPOCH_S
from cloister.base.secret import SecretBytes
from cloister.crypto.hpke import HpkePrivateKey
from cloister.keyservice.custody.sets import open_record
from cloister.keyservice.root import Root
from cloister.log.custody import Recovery
from cloister.wire import cbor
from cloister.wire.calls import WireEvidence
from cloister.wire.custody import CustodyRecord
from cloister.wire.recovery import Answer, Offer, open_answer


@final
class Asking:
    """One attempt, with one ephemeral key, under one trust bundle. Thread-safe.

    :param configuration: measured, of this enclave.
    :raises CloisterError: as :func:`~cloister.adapters.recovery.judge_offer`: no custodian would answer.
    """

    def __init__(
        self,
        record: CustodyRecord,
        *,
        attester: Attester,
        configuration: Configuration,
        bundle: TrustBundle,
        collateral: CollateralSource,
        clock: Clock,
        events: EventLog,
    ) -> None:
        self.record = record
        self._attester = attester
        self._configuration = configuration
        self._bundle = bundle
        self._collateral = collateral
        self._clock = clock
        self._events = events
        self._lock = threading.Lock()
        self._key = HpkePrivateKey.generate()
        self._shares: dict[bytes, SecretBytes] = {}
        self._made = 0.0
        self._offer, self._appraisal = self._attest()
        self._bound = self._offer.report_data()

    @property
    def enough(self) -> bool:
        """Whether as many custodians gave their shares as it takes."""
        return len(self._shares) >= self.record.threshold

    def offer(self) -> bytes:
        """What custodians judge; the evidence is made anew every hour, for the same key.

        :raises Unavailable: ``evidence-unavailable``.
        """
        with self._lock:
            if self._clock.monotonic() - self._made >= KEYSERVICE_EPOCH_S:
                self._offer, self._appraisal = self._attest()
            held = tuple(sorted(self._shares))
            offer = self._offer
        return Offer(
            offer.record, offer.session_key, offer.configuration, offer.bundle_digest, offer.evidence, held
        ).encode()

    def accept(self, data: bytes) -> bytes:
        """One custodian's answer; ``{threshold, answered}`` after it.

        :raises CloisterError: as :meth:`Answer.decode` and :func:`open_answer`; what was there stays.
        """
        answer = Answer.decode(data)
        try:
            share = open_answer(answer, self.record, self._bound, self._key)
        except CloisterError as error:
            self._events.event("share-refused", level="warning", custodian=answer.custodian.hex(), code=error.code)
            raise
        with self._lock:
            if not self.enough:
                self._shares[answer.custodian] = share
            count = len(self._shares)
        self._events.event("share", custodian=answer.custodian.hex(), count=count, limit=self.record.threshold)
        return cbor.encode({"threshold": self.record.threshold, "answered": count})

    def root(self) -> Root:
        """The root, once there are enough.

        :raises Tampered: ``recovery-record``, ``recovery-other``.
        """
        return open_record(self.record, self._shares)

    def entry(self) -> Recovery:
        """What the log says of it."""
        claims = self._appraisal.claims
        return Recovery(
            self.record.set,
            tuple(sorted(self._shares)),
            claims.tee.value,
            claims.measurements,
            self._configuration.digest,
        )

    def _attest(self) -> tuple[Offer, Appraisal]:
        """Evidence, judged as custodians will judge it: so that mistakes are told before they are called."""
        bare = Offer(
            self.record,
            self._key.public_key,
            self._configuration.encoded,
            self._bundle.digest,
            WireEvidence(self._attester.tee.value, b"", {}),
        )
        evidence = self._attester.evidence(bare.report_data())
        wire = WireEvidence(evidence.tee.value, evidence.body, dict(evidence.endorsements))
        offer = Offer(bare.record, bare.session_key, bare.configuration, bare.bundle_digest, wire)
        now = self._clock.now()
        appraisal = judge_offer(offer, bundle=self._bundle, collateral=self._collateral.collateral(evidence), now=now)
        self._made = self._clock.monotonic()
        return offer, appraisal
