"""What an auditor who reads the whole log can check without the KeyService (spec/protocol.md, clause 13.28). Pure.

The log is replayed from its first entry: every statement must have been signed by whoever says it and allowed by the
rules at its time, and every release of keys must stand under a grant and a consent that were in force. What stays
with the attested KeyService: that a runtime's evidence was genuine, and that the policies' other claims held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cloister.access.checks import Asked, chosen_version, examine
from cloister.attest.bundle import TrustBundle, open_bundle
from cloister.attest.code import code_name
from cloister.attest.configuration import decode_configuration
from cloister.attest.policy import Policy
from cloister.attest.steps import Verdict
from cloister.attest.types import TeeType
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered
from cloister.crypto.digest import Context, digest
from cloister.keyservice.state.rules import VerifiedStatement, authenticate, check_rules
from cloister.keyservice.state.state import State
from cloister.keyservice.state.transitions import apply
from cloister.log.entry import (
    BUNDLE,
    HAND_OVER,
    RELEASE,
    STATEMENT,
    BundleRecord,
    Entry,
    Genesis,
    HandOverRecord,
    ReleaseRecord,
)
from cloister.wire.statements import peek_statement

_SECOND: Final = 1  # an entry's time is in whole seconds; its statement's was judged within that second


@dataclass(frozen=True, slots=True)
class Finding:
    """One entry that should not be in the log, by the rules of this version.

    :param code: of the rule, or of the error.
    """

    index: int
    code: str
    what: str


@dataclass(frozen=True, slots=True)
class Audit:
    """A replayed log.

    :param statements: how many were checked; :param releases: likewise.
    """

    genesis: Genesis
    statements: int
    releases: int
    findings: tuple[Finding, ...]


def audit(entries: Iterable[tuple[int, Entry]], keyservice: bytes) -> Audit:
    """Replay a log.

    :param entries: all of them, in order.
    :param keyservice: id of the KeyService whose log it is.
    :raises InvalidInput: ``audit-incomplete`` unless they are all there, from the first.
    :raises Tampered: ``log-order``, ``store-other``: an entry that cannot stand where it stands.
    """
    state, statements, releases = State(), 0, 0
    findings: list[Finding] = []
    configurations: set[bytes] = set()
    for index, entry in entries:
        if index != state.size:
            raise InvalidInput(
                "audit-incomplete", f"entry {state.size} is not among them", hint="Export with --all, as an auditor."
            )
        if entry.kind == STATEMENT:
            statements += 1
            findings += _statement(state, index, entry)
        elif entry.kind == RELEASE:
            releases += 1
            findings += _release(state, index, entry)
        elif entry.kind == BUNDLE:
            findings += _bundle(state, index, entry)
        elif entry.kind == HAND_OVER:
            findings += _hand_over(state, index, entry, configurations)
        apply(state, entry)
        state.journal.keep()
        if index == 0 and state.genesis is not None:
            configurations.add(digest(Context.CONFIGURATION, state.genesis.configuration))
        if state.genesis is not None and state.genesis.keyservice != keyservice:
            raise Tampered("store-other", "the first entry says that this is the log of another KeyService")
    if state.genesis is None:
        raise InvalidInput("audit-incomplete", "there are no entries")
    return Audit(state.genesis, statements, releases, tuple(findings))


def _statement(state: State, index: int, entry: Entry) -> Iterator[Finding]:
    try:
        statement = peek_statement(entry.body)
        verified = authenticate(entry.body, state.identities.get(statement.issuer))
        _check_within_the_second(state, verified, entry.time)
    except CloisterError as error:
        yield Finding(index, error.code, f"a statement that the rules refuse: {error.message}")


def _check_within_the_second(state: State, verified: VerifiedStatement, time: int) -> None:
    try:
        check_rules(state, verified, time)
    except Refused as error:
        if error.code != "statement-from-the-future":
            raise
        check_rules(state, verified, time + _SECOND)


def _release(state: State, index: int, entry: Entry) -> Iterator[Finding]:
    record = ReleaseRecord.decode(entry.body)
    facts = state.facts(record.user, record.model)
    checks = examine(Asked(record.user, record.model, record.mode, record.key_id), facts, entry.time)
    open_ = [check for check in checks if check.verdict is not Verdict.PASS]
    for check in [check for check in open_ if check.verdict is Verdict.FAIL] or open_:
        yield Finding(index, check.code, f"keys were released, and {check.whose.value}: {check.name} is not in order")
    grant, consent, version = facts.grant, facts.consent, chosen_version(facts)
    if grant is None or consent is None or version is None:
        return  # said above
    if (version.manifest_digest, version.version) != (record.manifest_digest, record.version):
        yield Finding(index, "version-other", "keys were released for another version than the consent means")
    ends = min(grant.validity.not_after, consent.validity.not_after)
    if entry.time + record.lease_s > ends:
        yield Finding(index, "lease-over", "the lease ends after the grant or the consent")
    if grant.quota and record.lease_requests > grant.quota:
        yield Finding(index, "quota-exceeded", "the lease is for more requests than the grant allows")
    for whose, stated, named, rule in (
        ("owner", grant.policy_digest, record.owner_policy, record.owner_rule),
        ("user", consent.policy_digest, record.user_policy, record.user_rule),
    ):
        if stated != named:
            yield Finding(index, "policy-other", f"keys were released under another policy than the {whose}'s")
        else:
            yield from _policy(state, index, record, whose=whose, digest=named, name=rule)


def _bundle(state: State, index: int, entry: Entry) -> Iterator[Finding]:
    """Signed by the root that the first configuration pins, in force, and newer than the one before (13.26.1)."""
    record = BundleRecord.decode(entry.body)
    try:
        bundle = _opened(state, record, 1 if state.bundle is None else state.bundle.version + 1, entry.time)
    except CloisterError as error:
        yield Finding(index, error.code, f"a trust bundle that may not come into use: {error.message}")
        return
    if (bundle.version, bundle.digest) != (record.version, record.digest):
        yield Finding(index, "bundle-other", "an entry names another trust bundle than it holds")


def _hand_over(state: State, index: int, entry: Entry, configurations: set[bytes]) -> Iterator[Finding]:
    """By the bundle in use, to one of its successors or to a configuration that has the root secret (13.26.3)."""
    record = HandOverRecord.decode(entry.body)
    named = False
    if state.bundle is not None:
        if state.bundle.digest != record.bundle_digest:
            yield Finding(index, "bundle-other", "the root secret was handed over by another bundle than was in use")
        try:
            bundle = _opened(state, state.bundle, 1, entry.time)
            named = bundle.names(code_name(TeeType(record.tee), record.measurements), record.configuration_digest)
        except CloisterError as error:
            yield Finding(index, error.code, f"the root secret was handed over by a bundle that fails: {error.message}")
        except ValueError:
            yield Finding(index, "evidence-unknown-tee", f"the root secret was handed over to a TEE {record.tee!r}")
    if not named and record.configuration_digest not in configurations:
        yield Finding(index, "replica-other", "the root secret was handed over to one that no trust bundle names")
    configurations.add(record.configuration_digest)


def _opened(state: State, record: BundleRecord, least: int, time: int) -> TrustBundle:
    if state.genesis is None:
        raise InvalidInput("audit-incomplete", "the log does not begin with its first entry")
    pinned = decode_configuration(state.genesis.configuration).values.get("bundle_root")
    return open_bundle(record.bundle, pinned if isinstance(pinned, bytes) else b"", least, time)


def _policy(
    state: State, index: int, record: ReleaseRecord, *, whose: str, digest: bytes, name: str
) -> Iterator[Finding]:
    """The rule that accepted the runtime is in the policy, for this TEE, and lists the measurements that it bounds."""
    try:
        policy = Policy.decode(state.policies.get(digest) or b"")
    except CloisterError:
        yield Finding(index, "policy-unknown", f"the {whose}'s policy is one that this version cannot read")
        return
    rule = next((rule for rule in policy.rules if rule.name == name), None)
    if rule is None or rule.tee.value != record.tee:
        yield Finding(index, "rule-unknown", f"no rule {name!r} of the {whose}'s policy is for {record.tee}")
        return
    for measurement, value in record.measurements.items():
        allowed = rule.values.get(measurement)
        if not isinstance(allowed, tuple) or not all(type(item) is bytes for item in allowed):
            continue  # left out, or an expectation of another kind
        if value not in allowed:
            yield Finding(index, "measurement-other", f"{measurement} is not one that the {whose}'s policy allows")
