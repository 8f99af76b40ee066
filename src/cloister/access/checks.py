"""The checks before a release, in order, each with whose rule it is (spec/protocol.md, clause 7.7; claims S4, S5).

``decide`` and the dry run for an explained denial walk the same list, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from cloister.access.records import Facts, Identity, Model, ModelVersion
from cloister.attest.steps import Verdict
from cloister.base.ids import ModelId
from cloister.base.limits import REQUEST_FRESHNESS_S
from cloister.wire.statements import REQUEST_KEY, Validity


class Party(StrEnum):
    """Whose rule a check is."""

    OWNER = "owner"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Check:
    """One check. ``expected`` and ``actual`` are for whoever set the rule, and for nobody else (S10)."""

    name: str
    whose: Party
    verdict: Verdict
    code: str
    expected: str = ""
    actual: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a runtime asks for; in a dry run mode and key may be left open.

    :param key_id: commitment of the request key, or id of the service key.
    """

    user: bytes
    model: ModelId
    mode: str | None = None
    key_id: bytes | None = None


def _check(whose: Party, name: str, code: str, *, passed: bool, expected: str, actual: str) -> Check:
    return Check(name, whose, Verdict.PASS if passed else Verdict.FAIL, "ok" if passed else code, expected, actual)


def _skip(whose: Party, name: str) -> Check:
    return Check(name, whose, Verdict.SKIP, "not-reached")


def examine(asked: Asked, facts: Facts, now: float) -> tuple[Check, ...]:
    """Every check that needs no evidence, for both parties; one that cannot be made is SKIP, which never passes."""
    return (*_owner(asked, facts, now), *_user(asked, facts, now))


def _owner(asked: Asked, facts: Facts, now: float) -> Iterator[Check]:
    party = Party.OWNER
    yield _identity(party, facts.owner, asked.model.owner)
    yield _model(facts.model, asked.model)
    grant = facts.grant
    right = grant is not None and (grant.user, grant.model) == (asked.user, asked.model)
    actual = "present" if right else "none"
    yield _check(party, "grant", "grant-missing", passed=right, expected="a grant to this user", actual=actual)
    if grant is None or not right:
        yield _skip(party, "grant-validity")
    else:
        yield _validity(party, "grant-validity", "grant-not-valid", grant.validity, now)
    yield _published(asked, facts)


def _user(asked: Asked, facts: Facts, now: float) -> Iterator[Check]:
    party = Party.USER
    yield _identity(party, facts.user, asked.user)
    consent = facts.consent
    right = consent is not None and (consent.user, consent.model) == (asked.user, asked.model)
    actual = "present" if right else "none"
    yield _check(party, "consent", "consent-missing", passed=right, expected="a consent to this model", actual=actual)
    if consent is None or not right:
        yield from (_skip(party, name) for name in ("consent-validity", "mode", "key"))
        return
    yield _validity(party, "consent-validity", "consent-not-valid", consent.validity, now)
    if asked.mode is not None:
        equal = asked.mode == consent.mode
        yield _check(party, "mode", "mode-not-consented", passed=equal, expected=consent.mode, actual=asked.mode)
    if asked.key_id is not None:
        found = key_entry(facts, asked.key_id, now) is not None
        actual = f"{asked.key_id.hex()[:16]}..."
        yield _check(party, "key", "key-not-current", passed=found, expected="a key in use", actual=actual)


def _identity(party: Party, identity: Identity | None, wanted: bytes) -> Check:
    name = f"{party.value}-identity"
    if identity is None or identity.id != wanted:
        return _check(party, name, f"{party.value}-unknown", passed=False, expected="registered", actual="unknown")
    good, actual = not identity.disabled, _word("disabled", bad=identity.disabled)
    return _check(party, name, f"{party.value}-disabled", passed=good, expected="enabled", actual=actual)


def _model(model: Model | None, wanted: ModelId) -> Check:
    party = Party.OWNER
    if model is None or model.id != wanted:
        return _check(party, "model", "model-unknown", passed=False, expected="published", actual="unknown")
    good, actual = not model.retired, _word("retired", bad=model.retired)
    return _check(party, "model", "model-retired", passed=good, expected="published", actual=actual)


def _published(asked: Asked, facts: Facts) -> Check:
    """The version that the consent means, or the newest while there is no consent, is published and not retired."""
    version = chosen_version(facts)
    named = facts.consent.manifest_digest if facts.consent else None
    expected = f"manifest {named.hex()}" if named else "any version"
    party = Party.OWNER
    if facts.model is None or facts.model.id != asked.model:
        return _skip(party, "version")
    if version is None:
        return _check(party, "version", "version-unknown", passed=False, expected=expected, actual="not published")
    good, actual = not version.retired, _word("retired", bad=version.retired)
    return _check(party, "version", "version-retired", passed=good, expected=expected, actual=actual)


def _validity(party: Party, name: str, code: str, validity: Validity, now: float) -> Check:
    expected = f"from {validity.not_before} until {validity.not_after}"
    return _check(party, name, code, passed=validity.holds(now), expected=expected, actual=f"{now:.0f}")


def _word(word: str, *, bad: bool) -> str:
    return word if bad else "in order"


def chosen_version(facts: Facts) -> ModelVersion | None:
    """The version that the consent means: the manifest it names, or the newest one."""
    if facts.model is None:
        return None
    named = facts.consent.manifest_digest if facts.consent else None
    return facts.model.newest() if named is None else facts.model.find(named)


def key_entry(facts: Facts, key_id: bytes, now: float) -> int | None:
    """The log entry beside which the key of this id arrived, if that key is in use under the consent now."""
    consent = facts.consent
    if consent is None:
        return None
    if consent.mode == REQUEST_KEY:
        if key_id == consent.key_commitment:
            return consent.key_entry
        previous = consent.previous
        if previous is not None and key_id == previous.commitment and now < previous.until:
            return previous.key_entry
        return None
    wanted = (consent.model, consent.manifest_digest, consent.policy_digest)
    for key in facts.service_keys:
        in_use = now < key.not_after + REQUEST_FRESHNESS_S
        if key.key_id == key_id and in_use and (key.model, key.manifest_digest, key.policy_digest) == wanted:
            return key.key_entry
    return None
