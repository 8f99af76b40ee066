"""Policies as people write them: TOML in, TOML out. docs/reference/policy.md is the schema."""

from __future__ import annotations

import tomllib
from typing import Any, Final

from cloister.attest.policy import Policy, Rule, tee_type
from cloister.attest.policy_fields import FIELDS
from cloister.attest.policy_kinds import wrong
from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_NAME, MAX_POLICY

_VERSION: Final = 1
MAX_POLICY_TEXT: Final = 4 * MAX_POLICY  # hexadecimal text and comments
_HEXADECIMAL: Final = frozenset({"xfam", "xfrm", "required_launch_mitigations", "required_current_mitigations"})


def parse_policy(text: str) -> Policy:
    """Read a policy.

    :raises InvalidInput: ``policy-syntax`` when it is not TOML, ``policy-version``, ``policy-tee``, and the codes of
        :meth:`cloister.attest.policy.Rule.of`; ``details["place"]`` names the field.
    """
    if len(text) > MAX_POLICY_TEXT:
        raise InvalidInput("policy-too-long", f"policy: {len(text)} characters; at most {MAX_POLICY_TEXT} are accepted")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise InvalidInput("policy-syntax", f"policy: not TOML: {error}"[:300]) from error
    for key in document:
        if key not in ("version", "co_tenancy", "rule"):
            raise wrong(
                "policy-unknown-field",
                key[:MAX_NAME],
                "is not a field of a policy",
                hint="A policy has version, co_tenancy and tables [rule.NAME].",
            )
    if type(document.get("version")) is not int or document["version"] != _VERSION:
        raise wrong("policy-version", "version", f"must be {_VERSION}")
    co_tenancy = document.get("co_tenancy", False)
    if type(co_tenancy) is not bool:
        raise wrong("policy-field-type", "co_tenancy", "is not true or false")
    rules = document.get("rule", {})
    if not isinstance(rules, dict):
        raise wrong("policy-field-type", "rule", "is not a table of rules", hint="Write [rule.NAME].")
    return Policy(tuple(_rule(name, table) for name, table in rules.items()), co_tenancy)


def _rule(name: str, table: object) -> Rule:
    where = f"rule.{name[:MAX_NAME]}"
    if not isinstance(table, dict):
        raise wrong("policy-field-type", where, "is not a table", hint="Write [rule.NAME].")
    if "tee" not in table:
        raise wrong("policy-field-missing", f"{where}.tee", "is missing")
    tee = tee_type(table["tee"], where)
    kinds = {field.name: field for field in FIELDS[tee]}
    plain: dict[str, object] = {}
    for key, raw in table.items():
        if key == "tee":
            continue
        field = kinds.get(key)
        # an "any-..." text, right or wrong, is for Rule.of to judge
        leaves_out = isinstance(raw, str) and not raw.startswith("0x")
        plain[key] = raw if field is None or leaves_out else field.kind.from_toml(raw, f"{where}.{key}")
    return Rule.of(name, tee, plain)


def format_policy(policy: Policy) -> str:
    """The policy as TOML that :func:`parse_policy` reads back to the same value."""
    lines = [f"version = {_VERSION}", f"co_tenancy = {_toml(policy.co_tenancy)}"]
    for rule in policy.rules:
        lines += ["", f"[rule.{_key(rule.name)}]", f"tee = {_toml(rule.tee.value)}"]
        lines += [f"{key} = {_toml(value, hexadecimal=key in _HEXADECIMAL)}" for key, value in rule.plain().items()]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return f'"{name}"' if "." in name else name


def _toml(value: Any, *, hexadecimal: bool = False) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return hex(value) if hexadecimal else str(value)
        case bytes():
            return f'"{"0x" if hexadecimal else ""}{value.hex()}"'
        case list():
            return "[" + ", ".join(_toml(item, hexadecimal=hexadecimal) for item in value) + "]"
        case dict():
            return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
        case _:
            escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
            return f'"{escaped}"'
