"""A policy in words: what it demands, and what it leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cloister.attest.policy import Policy, Rule
from cloister.attest.policy_fields import FIELDS
from cloister.attest.policy_kinds import Field, LeftOut
from cloister.attest.policy_vendor_kinds import TcbMinimum
from cloister.attest.types import TeeType

# Least SNP security patch level that closes CVE-2024-56161 (AMD-SB-3019), by product.
_SNP_PATCHED: Final = {"Milan": 0x18, "Genoa": 0x17}
_DAY_S: Final = 86_400
_UNPATCHED: Final = "known vulnerabilities of the platform are not patched"
_SETTINGS: Final = "the platform's settings leave known attacks open"
_CODE: Final = "the code must defend itself against attacks that the platform does not stop"
_OLD_MODULE: Final = "the TD was started under an older TDX module"
_STATUSES: Final = {
    "SWHardeningNeeded": _CODE,
    "ConfigurationNeeded": _SETTINGS,
    "ConfigurationAndSWHardeningNeeded": f"{_SETTINGS}, and {_CODE}",
    "OutOfDate": _UNPATCHED,
    "OutOfDateConfigurationNeeded": f"{_UNPATCHED}, and {_SETTINGS}",
    "TDRelaunchAdvised": _OLD_MODULE,
    "TDRelaunchAdvisedConfigurationNeeded": f"{_OLD_MODULE}, and {_SETTINGS}",
}


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
    if rule.tee in (TeeType.SGX, TeeType.TDX):
        found += _intel(rule)
    if rule.tee is TeeType.SEV_SNP:
        found += _snp(rule)
    return found + _numbers(rule)


def _named(field: Field, rule: Rule) -> str:
    value = rule.values[field.name]
    return value.name if isinstance(value, LeftOut) else f"{field.name} = true"


def _listed(rule: Rule, name: str) -> tuple[Any, ...]:
    value = rule.values.get(name)
    return value if isinstance(value, tuple) else ()


def _intel(rule: Rule) -> list[str]:
    found = [f"tcb {status}: {_STATUSES[status]}" for status in _listed(rule, "tcb") if status in _STATUSES]
    if named := _listed(rule, "advisories"):
        found.append(f"advisories {', '.join(named)}: platforms that they apply to are accepted")
    return found


def _snp(rule: Rule) -> list[str]:
    found = []
    products, least = _listed(rule, "products"), dict(_listed(rule, "minimum_reported_tcb"))
    for product, patched in _SNP_PATCHED.items():
        level = least.get("snp", patched)
        if level < patched and (product in products or isinstance(rule.values["products"], LeftOut)):
            found.append(
                f"minimum_reported_tcb.snp {level} on {product}: below {patched}, microcode can be forged "
                "(CVE-2024-56161)"
            )
    if len(products) > 1 and least:
        found.append("several products share one minimum TCB: levels count separately in each; use a rule for each")
    minima = {field.name: dict(_listed(rule, field.name)) for field in FIELDS[rule.tee] if _is_minimum(field)}
    found += [
        f"{name} of zeros: firmware of any age is accepted"
        for name, levels in minima.items()
        if levels and not any(levels.values())
    ]
    found += [
        f"vmpl {level}: what runs at a lower number in the guest can read and change what speaks here"
        for level in _listed(rule, "vmpl")
        if level > 0
    ]
    if providers := _listed(rule, "vlek_csp_ids"):
        names = ", ".join(providers)
        found.append(f"vlek_csp_ids {names}: the key names no chip; any machine of theirs may have signed")
    return found


def _is_minimum(field: Field) -> bool:
    return isinstance(field.kind, TcbMinimum)


def _numbers(rule: Rule) -> list[str]:
    """Minimum and maximum values that demand nothing."""
    found = []
    if rule.values.get("minimum_tcb_evaluation_data_number") == 0:
        found.append("minimum_tcb_evaluation_data_number = 0: TCB information of any age is accepted while it is valid")
    code = rule.values.get("mrenclave", rule.values.get("measurement"))
    if rule.values.get("minimum_security_version") == 0 and isinstance(code, LeftOut):
        found.append("minimum_security_version = 0: every version of the code is accepted")
    age = rule.values.get("maximum_age_s")
    if isinstance(age, int) and age > _DAY_S:
        found.append(f"maximum_age_s = {age}: evidence of a TEE that ended days ago is accepted")
    return found
