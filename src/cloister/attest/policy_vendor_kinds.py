"""Expectations that only one vendor's evidence has: AMD's TCB levels and VLEKs, PCRs of Nitro."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloister.attest.claim_names import TCB_PARTS, snp_tcb
from cloister.attest.policy_kinds import Field, Kind, Outcome, Subject, Texts, Value, integer, kind_name, show, wrong


@dataclass(frozen=True, slots=True)
class TcbMinimum(Kind):
    """Least security patch level of each part of an SEV-SNP platform; canonical: pairs in the order of TCB_PARTS."""

    kind: str

    def read(self, plain: object, where: str) -> Value:
        if not isinstance(plain, dict):
            raise wrong("policy-field-type", where, f"is {kind_name(plain)}, not a table")
        for name in plain:
            if name not in TCB_PARTS:
                raise wrong("policy-unknown-field", f"{where}.{str(name)[:64]}", "is not a part of the TCB")
        for name in TCB_PARTS:
            if name not in plain and name != "fmc":
                raise wrong("policy-field-missing", f"{where}.{name}", "is missing")
        return tuple((name, integer(plain[name], f"{where}.{name}", 255)) for name in TCB_PARTS if name in plain)

    def write(self, value: Value) -> object:
        return dict(value) if isinstance(value, tuple) else value

    def check(self, value: Value, field: Field, subject: Subject) -> Outcome:
        least = dict(value) if isinstance(value, tuple) else {}
        actual = {part: subject.get("specific." + snp_tcb(self.kind, part)) for part in least}
        passed = bool(least) and all(
            type(level := actual[part]) is int and level >= minimum for part, minimum in least.items()
        )
        return Outcome(passed, "at least " + _levels(least), _levels(actual))

    def observe(self, field: Field, subject: Subject) -> object:
        levels = {part: subject.get("specific." + snp_tcb(self.kind, part)) for part in TCB_PARTS}
        return {part: level for part, level in levels.items() if level is not None} or None

    def words(self, value: Value, field: Field) -> str:
        return f"{field.label} must be at least {_levels(dict(value) if isinstance(value, tuple) else {})}."


def _levels(levels: Mapping[str, object]) -> str:
    return ", ".join(f"{part} {show(level)}" for part, level in levels.items())


@dataclass(frozen=True, slots=True)
class VlekCsps(Kind):
    """Cloud providers whose VLEK may have signed instead of the chip's own VCEK; none by default."""

    def read(self, plain: object, where: str) -> Value:
        return Texts().read(plain, where)

    def write(self, value: Value) -> object:
        return list(value) if isinstance(value, tuple) else value

    def check(self, value: Value, field: Field, subject: Subject) -> Outcome:
        signer, provider = subject.get("specific.signer"), subject.get("specific.csp_id")
        accepted = value if isinstance(value, tuple) else ()
        passed = signer == "vcek" or (signer == "vlek" and isinstance(provider, str) and provider in accepted)
        expected = f"vcek, or vlek of {show(accepted)}" if accepted else "vcek"
        return Outcome(passed, expected, show(signer) if provider is None else f"{show(signer)} of {show(provider)}")

    def observe(self, field: Field, subject: Subject) -> object:
        provider = subject.get("specific.csp_id")
        return [provider] if subject.get("specific.signer") == "vlek" and isinstance(provider, str) else []

    def words(self, value: Value, field: Field) -> str:
        if not value:
            return "Only the chip's own key (VCEK) may have signed; a provider's (VLEK) is refused."
        return f"The chip's own key (VCEK), or a VLEK of {show(value)}, may have signed."


@dataclass(frozen=True, slots=True)
class OtherPcrs(Kind):
    """PCRs that the rule does not name: ``all-zero`` is the only expectation."""

    def read(self, plain: object, where: str) -> Value:
        if plain != "all-zero":
            raise wrong("policy-field-range", where, "is neither 'all-zero' nor 'any-other-pcr'")
        return "all-zero"

    def check(self, value: Value, field: Field, subject: Subject) -> Outcome:
        filled = sorted(
            name for name, digest in subject.claims.measurements.items() if name not in subject.named and any(digest)
        )
        return Outcome(not filled, "zero", f"not zero: {', '.join(filled)}" if filled else "zero")

    def observe(self, field: Field, subject: Subject) -> object:
        return None

    def words(self, value: Value, field: Field) -> str:
        return "Every PCR that the rule does not name must be zero."
