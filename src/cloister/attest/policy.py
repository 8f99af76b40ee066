"""Policies: named rules over claims, one encoding, one digest (spec/attestation.md, section 7).

A :class:`Rule` is for one TEE and holds a checked value for each of that TEE's fields (``policy_fields``); evidence
satisfies a :class:`Policy` if it satisfies one of its rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

from cloister.attest.policy_fields import FIELDS
from cloister.attest.policy_kinds import Digests, Field, LeftOut, Value, wrong
from cloister.attest.types import TeeType
from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_NAME, MAX_POLICY, MAX_POLICY_RULES
from cloister.crypto.digest import Context, digest
from cloister.wire import cbor

_VERSION: Final = 1
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")
_WHAT: Final = "the policy"


@dataclass(frozen=True, slots=True)
class Rule:
    """What evidence of one TEE must be. Made by :meth:`of`, which checks every field.

    :param values: field name to canonical value, in the order of the field table; read-only.
    """

    name: str
    tee: TeeType
    values: Mapping[str, Value]

    @classmethod
    def of(cls, name: str, tee: TeeType, plain: Mapping[str, object], *, where: str | None = None) -> Rule:
        """A rule from plain values (bytes, text, integers, booleans, lists, maps).

        :param where: how error messages name the place; ``rule.NAME`` by default.
        :raises InvalidInput: ``policy-name``, ``policy-unknown-field``, ``policy-field-missing``,
            ``policy-field-type``, ``policy-field-length``, ``policy-field-range``, ``policy-left-out``,
            ``policy-zero-measurement``, ``policy-too-long``; ``details["place"]`` says where.
        """
        place = where or f"rule.{name}"
        if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
            raise wrong("policy-name", place[:80], f"a rule's name is [a-z0-9][a-z0-9._-]*, at most {MAX_NAME} long")
        fields = FIELDS[tee]
        known = {field.name for field in fields}
        for key in plain:
            if key not in known:
                shown = str(key)[:MAX_NAME]
                raise wrong(
                    "policy-unknown-field",
                    f"{place}.{shown}",
                    f"is not a field of a rule for {tee}",
                    hint="docs/reference/policy.md lists the fields of each TEE.",
                )
        values: dict[str, Value] = {}
        for field in fields:
            value = _read(field, plain, f"{place}.{field.name}")
            if value is not None:
                values[field.name] = value
        _refuse_zeros(fields, values, place)
        return cls(name, tee, MappingProxyType(values))

    def plain(self) -> dict[str, object]:
        """All fields, as :meth:`of` reads them."""
        written: dict[str, object] = {}
        for field in FIELDS[self.tee]:
            value = self.values.get(field.name)
            if isinstance(value, LeftOut):
                written[field.name] = value.name
            elif value is not None:
                written[field.name] = field.kind.write(value)
        return written

    def open_fields(self) -> tuple[Field, ...]:
        """The checks that the rule leaves out or weakens by name, except those that a stronger one implies."""
        found = []
        for field in FIELDS[self.tee]:
            value = self.values.get(field.name)
            implied = field.implied_by is not None and not isinstance(self.values[field.implied_by], LeftOut)
            if (isinstance(value, LeftOut) and not implied) or value is True:
                found.append(field)
        return tuple(found)

    def __hash__(self) -> int:
        return hash((self.name, self.tee, tuple(self.values.items())))


def _read(field: Field, plain: Mapping[str, object], place: str) -> Value | None:
    if field.name not in plain:
        if field.optional:
            return None
        if field.default is not None:
            return field.kind.read(field.default, place)
        stronger = plain.get(field.implied_by) if field.implied_by else None
        if isinstance(stronger, list) and field.left_out:
            return LeftOut(field.left_out)
        hint = f"Say {field.name} = {field.left_out!r} to leave the check out." if field.left_out else None
        raise wrong("policy-field-missing", place, "is missing", hint=hint)
    raw = plain[field.name]
    if field.left_out is not None and raw == field.left_out:
        return LeftOut(field.left_out)
    if isinstance(raw, str) and raw.startswith("any-"):
        hint = f"It is {field.left_out!r} here." if field.left_out else "This check cannot be left out."
        raise wrong("policy-left-out", place, f"{raw[:MAX_NAME]!r} does not leave this check out", hint=hint)
    return field.kind.read(raw, place)


def _refuse_zeros(fields: tuple[Field, ...], values: Mapping[str, Value], place: str) -> None:
    """A measurement of zeros is what an unmeasured (debug) TEE reports; only a rule that allows debug may expect it."""
    if values["insecure_debug"] is True:
        return
    for field in fields:
        value = values.get(field.name)
        if isinstance(field.kind, Digests) and field.kind.nonzero and isinstance(value, tuple):
            for item in value:
                if isinstance(item, bytes) and not any(item):
                    raise wrong("policy-zero-measurement", f"{place}.{field.name}", "an entry is nothing but zeros")


@dataclass(frozen=True)
class Policy:
    """Rules of which one must accept the evidence; none accepts none.

    :param co_tenancy: whether whoever wrote the policy lets one process hold other owners' models too (claim S11).
    """

    rules: tuple[Rule, ...]
    co_tenancy: bool = False

    def __post_init__(self) -> None:
        """:raises InvalidInput: ``policy-too-long``, ``policy-name`` when two rules have one name,
        and the codes of ``wire.cbor.decode`` for more than can be read again."""
        if len(self.rules) > MAX_POLICY_RULES:
            raise InvalidInput("policy-too-long", f"policy: {len(self.rules)} rules; at most {MAX_POLICY_RULES}")
        if len({rule.name for rule in self.rules}) != len(self.rules):
            raise InvalidInput("policy-name", "policy: two rules have the same name")
        if len(self._encoded) > MAX_POLICY:
            raise InvalidInput(
                "policy-too-long", f"policy: {len(self._encoded)} bytes encoded; at most {MAX_POLICY} are accepted"
            )
        cbor.decode(self._encoded, limit=MAX_POLICY, what=_WHAT)  # what cannot be read again is not written

    @cached_property
    def _encoded(self) -> bytes:
        return cbor.encode(self.plain())

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 under the context of policies: the name by which grants and consents refer to it."""
        return digest(Context.POLICY, self._encoded)

    def plain(self) -> dict[str, object]:
        """As :meth:`decode` finds it inside CBOR; for embedding into another document."""
        return {
            "version": _VERSION,
            "co_tenancy": self.co_tenancy,
            "rules": [{"name": rule.name, "tee": rule.tee.value, "expect": rule.plain()} for rule in self.rules],
        }

    def encode(self) -> bytes:
        """The one encoding (clause 7.5)."""
        return self._encoded

    @classmethod
    def decode(cls, data: bytes) -> Policy:
        """Read an encoded policy.

        :raises InvalidInput: the codes of :meth:`Rule.of` and of ``wire.cbor``; ``policy-version``;
            ``policy-not-canonical`` for any other encoding than the one.
        """
        policy = cls.from_plain(cbor.decode(data, limit=MAX_POLICY, what=_WHAT))
        if policy.encode() != data:
            raise InvalidInput("policy-not-canonical", "policy: an allow-list is not sorted, or names an entry twice")
        return policy

    @classmethod
    def from_plain(cls, value: object) -> Policy:
        """Read what :meth:`plain` returned; the caller must compare encodings if it needs the one form."""
        fields = cbor.Fields(value, _WHAT)
        version = fields.integer("version")
        if version != _VERSION:
            raise InvalidInput("policy-version", f"policy: version {version}; only {_VERSION} is understood")
        co_tenancy = fields.boolean("co_tenancy")
        rules = []
        for item in fields.items("rules", limit=MAX_POLICY_RULES):
            entry = cbor.Fields(item, "a rule of the policy")
            name, tee = entry.text("name", limit=MAX_NAME), tee_type(entry.text("tee", limit=MAX_NAME), "rule")
            expect: dict[Any, Any] = entry.mapping("expect")
            entry.done()
            rules.append(Rule.of(name, tee, expect))
        fields.done()
        return cls(tuple(rules), co_tenancy)


def tee_type(value: object, where: str) -> TeeType:
    """The TEE of this name.

    :raises InvalidInput: ``policy-tee``.
    """
    for tee in TeeType:
        if tee.value == value:
            return tee
    raise wrong(
        "policy-tee", f"{where}.tee", f"{str(value)[:MAX_NAME]!r} is not a TEE", f"It is one of {', '.join(TeeType)}."
    )
