"""Evidence that brings its collateral along, so that whoever verifies it needs no network of its own."""

from __future__ import annotations

from types import MappingProxyType
from typing import final

from cloister.adapters.collateral.check import check_subject
from cloister.adapters.collateral.subject import subject_of
from cloister.attest.types import Attester, CollateralSource, Evidence, TeeType
from cloister.base.errors import CloisterError
from cloister.base.limits import MAX_EVIDENCE


@final
class EndorsingAttester:
    """``cloister.attest.types.Attester`` around another one: adds what the collateral source has.

    Collateral proves itself, so nobody has to trust the carrier. If the source has none of this platform, evidence goes
    without.
    """

    def __init__(self, attester: Attester, source: CollateralSource) -> None:
        self._attester = attester
        self._source = source

    @property
    def tee(self) -> TeeType:
        """Of the attester inside."""
        return self._attester.tee

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over exactly these 64 bytes; see the port."""
        evidence = self._attester.evidence(report_data)
        try:
            subject = subject_of(evidence)
            collateral = self._source.collateral(evidence)
            if subject is not None:
                check_subject(subject, collateral)
        except CloisterError:
            return evidence
        files = collateral.files
        endorsements = {**evidence.endorsements, **files}
        if len(evidence.body) + sum(map(len, endorsements.values())) > MAX_EVIDENCE:
            return evidence
        return Evidence(evidence.tee, evidence.body, MappingProxyType(endorsements))
