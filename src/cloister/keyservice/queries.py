"""Queries and their results (spec/protocol.md, appendix A). Nothing about others than the asker is in any
but an auditor's.

Every ``about`` may hold ``subject``: an identity that delegated to the asker. Lists are paged: at most ``QUERY_PAGE``
items (``models``: half as many), and ``next``, which is the next page's ``after``, and at the end empty (text) or -1
(number).

``whoami``
    About nothing. ``id, key, recovery, sequence, recovery_sequence, registered_at, delegates, delegated_by, approvals,
    time``; the two lists are of ``{id, until}``; approvals: how many persons its statements need, 1 or 2.
``models``
    About ``after`` (text, optional). ``items`` of ``{relation, model, retired, versions}``, ``next``; relation is
    ``owner`` or ``granted``; versions are the newest 8, each ``{version, manifest, published_at, retired}``.
``access``
    About ``after`` (text, optional). ``items``, ``next``: grants by me and to me, ``{kind: grant, model, user, policy,
    not_before, not_after, quota, entry}``; consents by me, and by users whom I granted, ``{kind: consent, model, user,
    policy, not_before, not_after, mode, manifest or versions, entry, key_entry}``; key_entry: of its present key.
``events``
    About ``after`` (entry index, optional). ``items`` of ``{index, entry, inclusion}``, ``head``, ``next``; entry is
    the encoding, which opens the leaf; the proofs lead to ``head``.
``history``
    About ``after`` (entry index, optional). ``first, entries, next``: all entries in order, as many as fit, for the
    auditors that the measured configuration names (clause 13.28); who reads them compares them with the leaves.
``keyservice-events``
    As ``events``: the entries about the KeyService itself, which concern everybody who rests on it (13.26.9).
``why``
    About ``model, user``. ``checks`` of ``{name, whose, verdict, code, expected, actual}``, and ``denial``: empty, or
    of the last runtime that was refused ``{time, tee, checks}``. ``waiting``: statements of the asker that would change
    the answer and wait for a second person, ``{entry, until}``.
``pending``
    About nothing. ``items`` of ``{index, entry, inclusion, until}``: all statements of the asker that wait for a second
    person, and the ``head`` to which the proofs lead.
``service-key``
    About ``model, policy``, and ``manifest`` or ``versions``, as in the asker's consent. ``keys`` of ``{phase, key,
    endorsement}``; phase is ``pending``, ``active`` or ``stale``.
``policy``
    About ``digest``. ``policy``: the encoding of a policy that the asker defined.
``keyservice``
    About nothing. ``ks, configuration, head, time``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, final

from cloister.access.checks import Asked, Check, Party
from cloister.access.decide import explain, shown_to
from cloister.access.records import ConsentRecord, GrantRecord, Model
from cloister.base.errors import InvalidInput, Refused
from cloister.base.ids import ID_LENGTH, ModelId
from cloister.base.limits import KIB, MAX_LEAVES, QUERY_PAGE
from cloister.crypto.sign import SigningKey
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.service_keys import endorsed_keys
from cloister.keyservice.sessions import Denials
from cloister.keyservice.state.persons import about_consent, about_grant, about_model, waiting_of
from cloister.keyservice.state.state import EVERYBODY, State
from cloister.wire.cbor import Fields
from cloister.wire.statements import ANY_VERSION, SERVICE_KEY

Result = dict[str, object]

_VERSIONS_SHOWN: Final = 8
_PAGE_BYTES: Final = 512 * KIB  # of entries in one reply; entries are up to 80 KiB


@final
class Queries:
    """Answers, over one ledger; who asks was authenticated before."""

    def __init__(
        self,
        ledger: Ledger,
        denials: Denials,
        *,
        keyservice: bytes,
        log_key: SigningKey,
        configuration: bytes,
        service_key_epoch_s: int,
        entry: Callable[[], None],
        auditors: Collection[bytes] = (),
    ) -> None:
        """:param entry: called before a service key becomes an entry of the log."""
        self._ledger = ledger
        self._denials = denials
        self._keyservice = keyservice
        self._log_key = log_key
        self._configuration = configuration
        self._service_key_epoch_s = service_key_epoch_s
        self._entry = entry
        self._auditors = frozenset(auditors)
        self._answers: dict[str, Callable[[bytes, Fields], Result]] = {
            "whoami": self._whoami,
            "models": self._models,
            "access": self._access,
            "events": self._events,
            "history": self._history,
            "keyservice-events": lambda _me, about: self._events(EVERYBODY, about),
            "why": self._why,
            "service-key": self._service_key,
            "policy": self._policy,
            "pending": self._pending,
            "keyservice": self._describe,
        }

    def answer(self, asker: bytes, kind: str, about: Mapping[str, Any]) -> Result:
        """The result of one query.

        :raises InvalidInput: ``query-unknown``, ``field-...``. :raises Refused: ``not-delegated``, ``not-concerned``.
        """
        answer = self._answers.get(kind)
        if answer is None:
            raise InvalidInput("query-unknown", f"queries of kind {kind!r} are unknown to this version")
        fields = Fields(dict(about), f"the {kind} query")
        subject = fields.blob("subject", exactly=ID_LENGTH) if fields.has("subject") else asker
        with self._ledger.read() as (state, now):
            if not state.may_speak_for(asker, subject, now):
                raise Refused("not-delegated", "the subject has not delegated to this identity, or no longer does")
        return answer(subject, fields)

    def _whoami(self, me: bytes, about: Fields) -> Result:
        about.done()
        with self._ledger.read() as (state, now):
            identity = state.identities.get(me)
            if identity is None:
                raise Refused("identity-unknown", "this identity is not registered here")
            return {
                "id": identity.id,
                "key": identity.public_key,
                "recovery": identity.recovery_key,
                "sequence": identity.sequence,
                "recovery_sequence": identity.recovery_sequence,
                "registered_at": identity.registered_at,
                "delegates": [{"id": o, "until": _until(state, me, o)} for o in state.delegates_of.of(me)],
                "delegated_by": [
                    {"id": o, "until": _until(state, o, me)} for o in state.delegated_to.of(me)[:QUERY_PAGE]
                ],
                "approvals": 2 if me in state.two_persons else 1,
                "time": int(now),
            }

    def _models(self, me: bytes, about: Fields) -> Result:
        after = _after(about)
        with self._ledger.read() as (state, _):
            rows = {f"owner:{name}": ("owner", name) for name in state.models_of.of(me)}
            rows |= {f"granted:{name}": ("granted", name) for name in state.grants_to.of(me)}
            chosen, following = _page(rows, after, QUERY_PAGE // 2)
            items = [
                {"relation": relation, **_model(model)}
                for relation, name in (rows[key] for key in chosen)
                if (model := state.models.get(name)) is not None
            ]
        return {"items": items, "next": following}

    def _access(self, me: bytes, about: Fields) -> Result:
        after = _after(about)
        with self._ledger.read() as (state, _):
            rows = dict(_records(state, me))
            chosen, following = _page(rows, after)
        return {"items": [_record(rows[key]) for key in chosen], "next": following}

    def _events(self, me: bytes, about: Fields) -> Result:
        after = about.integer("after") if about.has("after") else 0
        about.done()
        indices = self._ledger.concerning(me, after, QUERY_PAGE + 1)
        following = indices[QUERY_PAGE] if len(indices) > QUERY_PAGE else -1
        items: list[Result] = []
        size = 0
        # Heads only grow: the proofs are made in one tree, whose head is read with them.
        found, head = self._ledger.entries_with_head(indices[:QUERY_PAGE])
        for index, data, inclusion in found:
            size += len(data)
            if size > _PAGE_BYTES:
                following = index
                break
            items.append({"index": index, "entry": data, "inclusion": list(inclusion)})
        return {"items": items, "head": head.fields(), "next": following}

    def _history(self, me: bytes, about: Fields) -> Result:
        first = about.integer("after") if about.has("after") else 0
        about.done()
        if me not in self._auditors:
            raise Refused(
                "not-auditor",
                "the whole log is opened to the auditors that the KeyService's measured configuration names",
                hint="What concerns you is in the query `events`.",
            )
        entries: list[bytes] = []
        size = 0
        for data in self._ledger.opened(first, MAX_LEAVES):
            size += len(data)
            if entries and size > _PAGE_BYTES:
                break
            entries.append(data)
        return {"first": first, "entries": entries, "next": first + len(entries) if entries else -1}

    def _why(self, me: bytes, about: Fields) -> Result:
        model = ModelId.parse(about.text("model", limit=200))
        user = about.blob("user", exactly=ID_LENGTH)
        about.done()
        if me not in (model.owner, user):
            raise Refused("not-concerned", "only the model's owner and the user are told why")
        party = Party.OWNER if me == model.owner else Party.USER
        with self._ledger.read() as (state, now):
            facts = state.facts(user, model)
            waiting = _waiting(state, me, model, user, now)
        checks = explain(Asked(user, model), facts, owner_report=None, user_report=None, now=now)
        if me == model.owner == user:
            shown, last = checks, self._denials.last(model, user)
            denied = last.checks if last else ()
        else:
            shown, last = shown_to(party, checks), self._denials.last(model, user)
            denied = shown_to(party, last.checks) if last else ()
        denial: Result = {}
        if last is not None:
            denial = {"time": last.time, "tee": last.tee, "checks": list(map(_check, denied))}
        return {"checks": list(map(_check, shown)), "denial": denial, "waiting": waiting}

    def _pending(self, me: bytes, about: Fields) -> Result:
        about.done()
        with self._ledger.read() as (state, now):
            waiting = {item.entry: item for item in waiting_of(state, me, now)}
        found, head = self._ledger.entries_with_head(list(waiting))
        items = [
            {"index": index, "entry": data, "inclusion": list(inclusion), "until": waiting[index].until}
            for index, data, inclusion in found
        ]
        return {"items": items, "head": head.fields()}

    def _service_key(self, me: bytes, about: Fields) -> Result:
        model = ModelId.parse(about.text("model", limit=200))
        policy = about.blob("policy", exactly=32)
        manifest = about.blob("manifest", exactly=32) if about.has("manifest") else None
        if manifest is None and about.text("versions", limit=32) != ANY_VERSION:
            raise InvalidInput("field-range", f"a query without a manifest says versions = {ANY_VERSION!r}")
        about.done()
        with self._ledger.read() as (state, now):
            consent = state.consents.get((me, model))
            valid = consent is not None and consent.validity.holds(now)
        if consent is None or not valid:
            raise Refused("consent-missing", "there is no consent to this model now", hint="Consent first.")
        if (consent.mode, consent.policy_digest, consent.manifest_digest) != (SERVICE_KEY, policy, manifest):
            raise Refused("consent-other", "the consent is to another mode, policy or manifest than the query")
        keys = endorsed_keys(
            self._ledger,
            consent,
            keyservice=self._keyservice,
            log_key=self._log_key,
            length=self._service_key_epoch_s,
            entry=self._entry,
        )
        return {"keys": keys}

    def _policy(self, me: bytes, about: Fields) -> Result:
        digest = about.blob("digest", exactly=32)
        about.done()
        with self._ledger.read() as (state, _):
            policy = state.policies.get(digest) if state.policies_of.has(me, digest) else None
        if policy is None:
            raise Refused("policy-unknown", "this identity has not defined that policy")
        return {"policy": policy}

    def _describe(self, _me: bytes, about: Fields) -> Result:
        about.done()
        head = self._ledger.shown_head()
        return {
            "ks": self._keyservice,
            "configuration": self._configuration,
            "head": head.fields(),
            "time": int(self._ledger.now()),
        }


def _until(state: State, subject: bytes, delegate: bytes) -> int:
    return state.delegations.get((subject, delegate)) or 0


def _after(about: Fields) -> str:
    after = about.text("after", limit=400) if about.has("after") else ""
    about.done()
    return after


def _page(rows: Mapping[str, object], after: str, size: int = QUERY_PAGE) -> tuple[list[str], str]:
    """The keys of one page in order, and the last of them if more follow."""
    rest = sorted(key for key in rows if key > after)
    chosen = rest[:size]
    return chosen, chosen[-1] if len(rest) > size else ""


def _model(model: Model) -> Result:
    return {
        "model": str(model.id),
        "retired": model.retired,
        "versions": [
            {
                "version": version.version,
                "manifest": version.manifest_digest,
                "published_at": version.published_at,
                "retired": version.retired,
            }
            for version in model.versions[-_VERSIONS_SHOWN:]
        ],
    }


def _records(state: State, me: bytes) -> Iterator[tuple[str, GrantRecord | ConsentRecord]]:
    """Grants by me and to me; consents by me, and to my models by users that I granted."""
    for key in state.grants_by.of(me):
        if (grant := state.grants.get(key)) is not None:
            yield f"grant:{grant.model}:{grant.user.hex()}", grant
        if (consent := state.consents.get((key[1], key[0]))) is not None:
            yield f"consent:{consent.model}:{consent.user.hex()}", consent
    for name in state.grants_to.of(me):
        if (grant := state.grants.get((name, me))) is not None:
            yield f"grant:{grant.model}:{grant.user.hex()}", grant
    for name in state.consents_by.of(me):
        if (consent := state.consents.get((me, name))) is not None:
            yield f"consent:{consent.model}:{consent.user.hex()}", consent


def _record(record: GrantRecord | ConsentRecord) -> Result:
    item: Result = {
        "model": str(record.model),
        "user": record.user,
        "policy": record.policy_digest,
        "not_before": record.validity.not_before,
        "not_after": record.validity.not_after,
        "entry": record.entry,
    }
    if isinstance(record, GrantRecord):
        return {"kind": "grant", "quota": record.quota, **item}
    named = record.manifest_digest
    which: Result = {"versions": ANY_VERSION} if named is None else {"manifest": named}
    return {"kind": "consent", "mode": record.mode, "key_entry": record.key_entry, **which, **item}


def _waiting(state: State, me: bytes, model: ModelId, user: bytes, now: float) -> list[Result]:
    """What of mine waits for a second person, and would change the answer."""
    mine: set[str] = set()
    if me == model.owner:
        mine |= {about_grant(model.name, user), about_model(model.name)}
    if me == user:
        mine.add(about_consent(model))
    return [{"entry": item.entry, "until": item.until} for item in waiting_of(state, me, now) if item.about in mine]


def _check(check: Check) -> Result:
    return {
        "name": check.name,
        "whose": check.whose.value,
        "verdict": check.verdict.value,
        "code": check.code,
        "expected": check.expected,
        "actual": check.actual,
    }
