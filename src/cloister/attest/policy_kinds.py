"""The kinds of expectation that a policy's fields have: how each is read, written, checked, observed and put in words.

One field of a policy is one value of one kind. A value arrives *plain*, as CBOR has it (bytes, text, integers, lists,
maps), and is checked here once; TOML differs from plain only in that bytes are hexadecimal text.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from cloister.attest.types import Claims, ClaimValue, Configuration
from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_POLICY_ENTRIES

CONFIGURATION_DIGEST: Final = "configuration-digest"  # in an allow-list of a launch-time field: our configuration

_MAX_INT: Final = 2**63 - 1
_SHOWN: Final = 6  # entries of an allow-list that a message shows


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A check that the policy's author left out, by the check's own name for that (clause 7.2)."""

    name: str


Value = LeftOut | bool | int | str | tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one check, in words for whoever set the rule."""

    passed: bool
    expected: str
    actual: str


@dataclass(frozen=True, slots=True)
class Subject:
    """What is appraised. Without a configuration, whatever asks for one fails.

    :param named: fields that the rule has; for expectations about all others.
    """

    claims: Claims
    configuration: Configuration | None
    now: float
    named: Collection[str] = ()

    def get(self, reference: str) -> ClaimValue | None:
        """The claim a field refers to, or ``None`` if it is absent.

        ``measurements.NAME``, ``specific.NAME``, ``specific.NAME:BIT``, ``configuration.digest``,
        ``configuration.NAME``, or the name of an attribute of :class:`Claims`.
        """
        place, _, name = reference.partition(".")
        if place == "measurements":
            return self.claims.measurements.get(name)
        if place == "specific":
            name, _, bit = name.partition(":")
            value = self.claims.specific.get(name)
            if bit:
                return bool(value >> int(bit) & 1) if type(value) is int else None
            return value
        if place == "configuration":
            if self.configuration is None:
                return None
            return self.configuration.digest if name == "digest" else self.configuration.values.get(name)
        found: ClaimValue = getattr(self.claims, place)
        return found


def show(value: object) -> str:
    """A claim or an expectation, for people."""
    match value:
        case None:
            return "absent"
        case bytes():
            if value and not any(value):
                return f"{len(value)} zero bytes"
            return value.hex() or "empty"
        case bool():
            return "true" if value else "false"
        case tuple() | list():
            shown = ", ".join(show(item) for item in value[:_SHOWN]) or "none"
            return shown + (f" and {len(value) - _SHOWN} more" if len(value) > _SHOWN else "")
        case _:
            return str(value)[:200]


class Kind(ABC):
    """One kind of expectation. ``read`` raises InvalidInput; the rest is total on what ``read`` returned."""

    @abstractmethod
    def read(self, plain: object, where: str) -> Value:
        """Check a plain value and return it in canonical form."""

    def write(self, value: Value) -> object:
        """Back to plain."""
        return value

    def from_toml(self, raw: object, where: str) -> object:
        """What TOML has, as plain."""
        return raw

    @abstractmethod
    def check(self, value: Value, field: Field, subject: Subject) -> Outcome:
        """Compare claim and expectation."""

    @abstractmethod
    def observe(self, field: Field, subject: Subject) -> object:
        """The narrowest plain value that accepts what is seen; ``None`` where nothing is seen."""

    @abstractmethod
    def words(self, value: Value, field: Field) -> str:
        """One sentence."""


def wrong(code: str, where: str, message: str, hint: str | None = None) -> InvalidInput:
    """An error in a policy, with its place."""
    return InvalidInput(code, f"policy: {where}: {message}", hint=hint, details={"place": where})


def items(plain: object, where: str) -> list[Any]:
    if not isinstance(plain, list):
        raise wrong("policy-field-type", where, f"is {kind_name(plain)}, not a list")
    if len(plain) > MAX_POLICY_ENTRIES:
        raise wrong("policy-too-long", where, f"has {len(plain)} entries; at most {MAX_POLICY_ENTRIES} are accepted")
    return plain


def kind_name(value: object) -> str:
    names = {bool: "true or false", int: "an integer", str: "text", bytes: "bytes", list: "a list", dict: "a table"}
    return names.get(type(value), type(value).__name__)


def one_of(field: Field, values: tuple[Any, ...]) -> str:
    """A sentence that names every value: whoever reads it decides by it."""
    named = ["the digest of its configuration" if value == CONFIGURATION_DIGEST else show(value) for value in values]
    if not named:
        return f"{field.label} has no value that is accepted."
    if len(named) == 1:
        return f"{field.label} must be {named[0]}."
    return f"{field.label} must be one of {', '.join(named)}."


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a rule.

    :param reference: the claim, see :meth:`Subject.get`.
    :param code: of the refusal when the check fails.
    :param label: what the claim is, at the start of a sentence.
    :param left_out: the text that leaves the check out; ``None`` where it cannot be.
    :param risk: what leaving it out (or allowing it) opens, for people.
    :param default: plain value when the field is absent; ``None`` when it must be there.
    :param implied_by: a field that says more: when that one is an allow-list, this one may be absent.
    :param optional: absent means that nothing is expected beyond what another field says.
    """

    name: str
    kind: Kind
    reference: str
    code: str
    label: str
    left_out: str | None = None
    risk: str = ""
    default: object = None
    implied_by: str | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Digests(Kind):
    """Allow-list of byte strings of one length.

    :param nonzero: an entry of zeros only is an error unless the rule allows debug (a claim nobody measured).
    :param configuration: the entry ``configuration-digest`` stands for the digest of the appraised configuration,
        followed by zeros up to the length.
    """

    length: int
    nonzero: bool = False
    configuration: bool = False

    def read(self, plain: object, where: str) -> Value:
        found: set[bytes | str] = set()
        for index, item in enumerate(items(plain, where)):
            place = f"{where}[{index}]"
            if self.configuration and item == CONFIGURATION_DIGEST:
                found.add(item)
            elif not isinstance(item, bytes):
                raise wrong("policy-field-type", place, f"is {kind_name(item)}, not bytes")
            elif len(item) != self.length:
                raise wrong("policy-field-length", place, f"has {len(item)} bytes, not {self.length}")
            else:
                found.add(item)
        return tuple(sorted(found, key=lambda item: (isinstance(item, str), item)))

    def write(self, value: Value) -> object:
        return list(value) if isinstance(value, tuple) else value

    def from_toml(self, raw: object, where: str) -> object:
        plain: list[object] = []
        for index, item in enumerate(items(raw, where)):
            if isinstance(item, str) and not (self.configuration and item == CONFIGURATION_DIGEST):
                if not re.fullmatch(r"(?:[0-9A-Fa-f]{2})*", item):
                    raise wrong("policy-field-type", f"{where}[{index}]", "is not hexadecimal text")
                plain.append(bytes.fromhex(item))
            else:
                plain.append(item)
        return plain

    def check(self, value: Value, field: Field, subject: Subject) -> Outcome:
        actual = subject.get(field.reference)
        accepted = []
        for item in value if isinstance(value, tuple) else ():
            if isinstance(item, bytes):
                accepted.append(item)
            elif subject.configuration is not None:
                accepted.append(subject.configuration.digest.ljust(self.length, b"\x00"))
        passed = isinstance(actual, bytes) and len(actual) == self.length and actual in accepted
        return Outcome(passed, f"one of {show(tuple(accepted))}", show(actual))

    def observe(self, field: Field, subject: Subject) -> object:
        actual = subject.get(field.reference)
        return [actual] if isinstance(actual, bytes) and len(actual) == self.length else None

    def words(self, value: Value, field: Field) -> str:
        return one_of(field, value if isinstance(value, tuple) else ())


@dataclass(frozen=True, slots=True)
class Texts(Kind):
    """Allow-list of texts. With ``each`` the claim is a list of which every member must be in it."""

    choices: Collection[str] | None = None
    each: bool = False

    def read(self, plain: object, where: str) -> Value:
        for index, item in enumerate(found := items(plain, where)):
            place = f"{where}[{index}]"
            if not isinstance(item, str):
                raise wrong("policy-field-type", place, f"is {kind_name(item)}, not text")
            if len(item) > 128 or not item.isprintable():
                raise wrong("policy-field-range", place, "is longer than 128 characters, or not printable")
            if self.choices is not None and item not in self.choices:
                raise wrong(
                    "policy-field-range", place, f"is {item!r}", hint=f"It is one of {', '.join(self.choices)}."
                )
        return tuple(sorted(set(found)))

    def write(self, value: Value) -> object:
        return list(value) if isinstance(value, tuple) else value

    def check(self, value: Value, field: Field, subject: Subject) -> Outcome:
        actual = subject.get(field.reference)
        accepted = value if isinstance(value, tuple) else ()
        if self.each:
            passed = isinstance(actual, tuple) and all(item in accepted for item in actual)
            return Outcome(passed, f"nothing but {show(accepted)}", show(actual))
        return Outcome(isinstance(actual, str) and actual in accepted, f"one of {show(accepted)}", show(actual))

    def observe(self, field: Field, subject: Subject) -> object:
        actual = subject.get(field.reference)
        if self.each:
            return list(actual) if isinstance(actual, tuple) else None
        return [actual] if isinstance(actual, str) else None

    def words(self, value: Value, field: Field) -> str:
        accepted = value if isinstance(value, tuple) else ()
        if not self.each:
            return one_of(field, accepted)
        return f"{field.label}: only {', '.join(accepted)}." if accepted else f"{field.label}: none may."


@dataclass(frozen=True, slots=True)
class Numbers(Kind):
    """Allow-list of integers."""

    high: int = _MAX_INT

    def read(self, plain: object, where: str) -> Value:
        return tuple(sorted({integer(item, f"{where}[{i}]", self.high) for i, item in enumerate(items(plain, where))}))

    def write(self, value: Value) -> object:
        return list(value) if isinstance(value, tuple) else value

    def check(self, value: Value, field: Field, subject: Subject) -> Outcome:
        actual = subject.get(field.reference)
        accepted = value if isinstance(value, tuple) else ()
        return Outcome(type(actual) is int and actual in accepted, f"one of {show(accepted)}", show(actual))

    def observe(self, field: Field, subject: Subject) -> object:
        actual = subject.get(field.reference)
        return [actual] if type(actual) is int and 0 <= actual <= self.high else None

    def words(self, value: Value, field: Field) -> str:
        return one_of(field, value if isinstance(value, tuple) else ())


def integer(plain: object, where: str, high: int) -> int:
    if type(plain) is not int:
        raise wrong("policy-field-type", where, f"is {kind_name(plain)}, not an integer")
    if not 0 <= plain <= high:
        raise wrong("policy-field-range", where, f"is {plain}, not within 0..{high}")
    return plain


@dataclass(frozen=True, slots=True)
class Minimum(Kind):
    """A number below which the claim must not be."""

    high: int = 2**32 - 1

    def read(self, plain: object, where: str) -> Value:
        return integer(plain, where, self.high)

    def check(self, value: Value, field: Field, subject: Subject) -> Outcome:
        actual = subject.get(field.reference)
        passed = type(actual) is int and isinstance(value, int) and actual >= value
        return Outcome(passed, f"at least {value}", show(actual))

    def observe(self, field: Field, subject: Subject) -> object:
        actual = subject.get(field.reference)
        return actual if type(actual) is int else None

    def words(self, value: Value, field: Field) -> str:
        return f"{field.label} must be at least {value}."


@dataclass(frozen=True, slots=True)
class MaximumAge(Kind):
    """Seconds that may have passed since the time in the claim, which counts ``scale`` to the second."""

    scale: int = 1

    def read(self, plain: object, where: str) -> Value:
        return integer(plain, where, 2**31)

    def check(self, value: Value, field: Field, subject: Subject) -> Outcome:
        made = subject.get(field.reference)
        if type(made) is not int or not isinstance(value, int):
            return Outcome(False, f"at most {value} s", "absent")
        age = subject.now - made / self.scale
        return Outcome(age <= value, f"at most {value} s", f"{age:.0f} s")

    def observe(self, field: Field, subject: Subject) -> object:
        return 300

    def words(self, value: Value, field: Field) -> str:
        return f"{field.label} must be at most {value} seconds."


@dataclass(frozen=True, slots=True)
class Allowance(Kind):
    """Whether something insecure or unusual is accepted: without it, every named claim must be there and ``good``.

    :param bad: references of claims to the value that is not accepted.
    """

    bad: tuple[tuple[str, bool], ...]

    def read(self, plain: object, where: str) -> Value:
        if type(plain) is not bool:
            raise wrong("policy-field-type", where, f"is {kind_name(plain)}, not true or false")
        return plain

    def check(self, value: Value, field: Field, subject: Subject) -> Outcome:
        seen = [(reference, subject.get(reference), bad) for reference, bad in self.bad]
        expected = "; ".join(f"{_short(reference)} {show(not bad)}" for reference, _, bad in seen)
        actual = "; ".join(f"{_short(reference)} {show(claim)}" for reference, claim, _ in seen)
        if value is True:
            return Outcome(True, f"{expected}, or allowed", actual)
        return Outcome(all(claim is (not bad) for _, claim, bad in seen), expected, actual)

    def observe(self, field: Field, subject: Subject) -> object:
        return not all(subject.get(reference) is (not bad) for reference, bad in self.bad)

    def words(self, value: Value, field: Field) -> str:
        return f"{field.label} is {'accepted' if value is True else 'refused'}."


def _short(reference: str) -> str:
    return reference.removeprefix("specific.").replace(":", " bit ")
