"""A policy in words: what it demands, and what it leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.attest.policy import Policy, Rule
from cloister.attest.policy_fields import FIELDS
from cloister.attest.policy_kinds import Field, LeftOut
from cloister.attest.types import TeeType

# Least SNP security patch level that closes CVE-2024-56161 (AMD-SB-3019), by product.
_SNP_PATCHED: Final = {"Milan": 0x18, "Genoa": 0x17}


@dataclass(frozen=True, slots=True)
class Sentence:
    """One line of an explanation.

    :param rule: which rule it is about; empty for the policy as a whole.
    :param warning: whether it names something that is left open.
    """

    rule: str
    text: str
    warning: bool = False

    def __str__(self) -> str:
        return ("warning: " if self.warning else "") + (f"{self.rule}: " if self.rule else "") + self.text


def explain_policy(policy: Policy) -> list[Sentence]:
    """What the policy demands, rule by rule, and warnings of what it leaves open."""
    if not policy.rules:
        return [Sentence("", "There is no rule, so everything is refused.", warning=True)]
    count = len(policy.rules)
    accepted = "the rule accepts" if count == 1 else f"one of the {count} rules accepts"
    sentences = [Sentence("", f"Evidence is accepted if {accepted} it.")]
    if policy.co_tenancy:
        text = "One process may hold this model beside other owners' models (co_tenancy)."
        sentences.append(Sentence("", text, warning=True))
    else:
        sentences.append(Sentence("", "No process may hold this model beside another owner's."))
    for rule in policy.rules:
        sentences.append(Sentence(rule.name, f"Evidence must be of {rule.tee}."))
        sentences += _demands(rule)
        sentences += [Sentence(rule.name, text, warning=True) for text in warnings(rule)]
    return sentences


def _demands(rule: Rule) -> list[Sentence]:
    return [
        Sentence(rule.name, field.kind.words(value, field))
        for field in FIELDS[rule.tee]
        if (value := rule.values.get(field.name)) is not None and not isinstance(value, LeftOut) and value is not True
    ]


def warnings(rule: Rule) -> list[str]:
    """What one rule leaves open, each with what it is called in the policy."""
    found = []
    if rule.tee is TeeType.SIMULATION:
        found.append("insecure-simulation: whoever runs the machine reads everything")
    found += [f"{_named(field, rule)}: {field.risk}" for field in rule.open_fields()]
    found += [
        f"{name} = []: nothing can satisfy this rule"
        for name, value in rule.values.items()
        if value == () and name not in ("advisories", "vlek_csp_ids")
    ]
    found += _known_attacks(rule)
    return found


def _named(field: Field, rule: Rule) -> str:
    value = rule.values[field.name]
    return value.name if isinstance(value, LeftOut) else f"{field.name} = true"


def _known_attacks(rule: Rule) -> list[str]:
    found = []
    if rule.tee in (TeeType.SGX, TeeType.TDX):
        statuses = rule.values["tcb"]
        weak = [status for status in statuses if status.startswith("OutOfDate")] if isinstance(statuses, tuple) else []
        found += [f"tcb {status}: known vulnerabilities of the platform are not patched" for status in weak]
    if rule.tee is TeeType.SEV_SNP:
        products, least = rule.values["products"], rule.values["minimum_reported_tcb"]
        level = dict(least).get("snp", 0) if isinstance(least, tuple) else None
        for product, patched in _SNP_PATCHED.items():
            if level is not None and level < patched and isinstance(products, tuple) and product in products:
                found.append(
                    f"minimum_reported_tcb.snp {level} on {product}: below {patched}, microcode can be forged "
                    "(CVE-2024-56161)"
                )
        if isinstance(products, tuple) and len(products) > 1 and isinstance(least, tuple):
            found.append("several products share one minimum TCB: levels count separately in each; use a rule for each")
    return found
