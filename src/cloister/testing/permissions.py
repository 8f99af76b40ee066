"""Grants, revocations, consents and releases by many at once: a recorded history, and what it must look like.

What concerns one model and one user is a register of its own: the grant (its quota is a number that no other one has),
and the consent with its key. A release shows both, so that an answer from an old state is no answer of the model's.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final, Protocol, final

from cloister.attest.policy import Policy
from cloister.base.errors import CloisterError, Refused, Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.log.entry import STATEMENT, Entry
from cloister.testing.linearizability import Operation, require_linearizable
from cloister.testing.people import Person
from cloister.wire.provisioning import Release, ReleaseRequest
from cloister.wire.statements import (
    REQUEST_KEY,
    Body,
    Consent,
    DefinePolicy,
    Delegate,
    Grant,
    PublishModel,
    RevokeConsent,
    RevokeGrant,
    Validity,
    key_commitment,
)

_AFTER_FAILURE_S: Final = 0.05

# --- what may happen to one (model, user) ---


@dataclass(frozen=True, slots=True)
class Granted:
    """A statement ``grant`` with this quota, which no other has."""

    quota: int


@dataclass(frozen=True, slots=True)
class Revoked:
    """A statement ``revoke-grant``."""


@dataclass(frozen=True, slots=True)
class Consented:
    """A statement ``consent`` with key number ``key``, under one of several policies."""

    key: int
    terms: int


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A statement ``revoke-consent``."""


@dataclass(frozen=True, slots=True)
class Released:
    """Keys left, under the grant of this quota; the request key was number ``key``."""

    quota: int
    key: int


@dataclass(frozen=True, slots=True)
class Denied:
    """``release-refused`` to whoever asked with this key."""

    key: int


@dataclass(frozen=True, slots=True)
class Saw:
    """What the query ``access`` told the owner: the quota of the grant, the terms of the consent."""

    quota: int | None
    terms: int | None


Act = Granted | Revoked | Consented | Withdrawn | Released | Denied | Saw


@dataclass(frozen=True, slots=True)
class Standing:
    """The register. ``previous``: a key that was rotated by a consent on the same terms, and may still be used."""

    quota: int | None = None
    key: int | None = None
    terms: int | None = None
    previous: int | None = None


def step(at: Standing, act: Act, certain: bool) -> tuple[Standing, ...]:  # noqa: ARG001  # ``Step``
    """``cloister.testing.linearizability.Step``: spec/protocol.md, 6.5 and 7.6."""
    match act:
        case Granted(quota):
            return (replace(at, quota=quota),)
        case Revoked():
            return (replace(at, quota=None),)
        case Consented(key, terms):
            return (Standing(at.quota, key, terms, at.key if at.terms == terms else None),)
        case Withdrawn():
            return (Standing(at.quota),)
        case Released(quota, key):
            return (at,) if quota == at.quota and key in (at.key, at.previous) else ()
        case Denied(key):
            return (at,) if at.quota is None or key != at.key else ()
        case Saw(quota, terms):
            return (at,) if (quota, terms) == (at.quota, at.terms if at.quota is not None else None) else ()


# --- the record ---


@final
class History:
    """Operations by what they concern; thread-safe. ``clock`` is one for all.

    :ivar errors: codes of calls that came to nothing, and how often.
    :ivar calls: of all that were answered or came to nothing: when, until when, and whether it was an answer.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.errors: dict[str, int] = defaultdict(int)
        self.calls: list[tuple[float, float, bool]] = []
        self._lock = threading.Lock()
        self._done: dict[int, list[Operation[Act]]] = defaultdict(list)
        self._lost: dict[tuple[int, str], list[Operation[Act]]] = defaultdict(list)

    def did(self, thing: int, who: str, act: Act, called: float, *, settles: bool = False) -> None:
        """It was answered just now.

        :param settles: it is a statement: what the same issuer said before cannot be applied after it (6.1).
        """
        now = self.clock()
        with self._lock:
            self.calls.append((called, now, True))
            looks = isinstance(act, (Released, Denied, Saw))
            self._done[thing].append(Operation(who, act, called, now, looks=looks))
            if settles:
                lost = self._lost[thing, who]
                lost[:] = [replace(each, returned=min(each.returned, now)) for each in lost]

    def lost(self, thing: int, who: str, act: Act, called: float, *, until: float = math.inf) -> None:
        """Nobody knows whether it happened, or will until then."""
        with self._lock:
            self._lost[thing, who].append(Operation(who, act, called, until, certain=False))

    def failed(self, error: Exception, called: float) -> None:
        """For the count; a refusal is an answer."""
        told = error if isinstance(error, CloisterError) else error.__cause__
        with self._lock:
            self.errors[getattr(told, "code", "internal")] += 1
            if not isinstance(told, Refused):
                self.calls.append((called, self.clock(), False))

    def of(self, thing: int) -> list[Operation[Act]]:
        """Everything about one thing."""
        with self._lock:
            lost = [each for (where, _), some in self._lost.items() if where == thing for each in some]
            return [*self._done[thing], *lost]

    def check(self, *, without: tuple[type, ...] = ()) -> int:
        """All of it, thing by thing; how many operations there were. Raises as :func:`require_linearizable`.

        :param without: answers that are not looked at.
        """
        things, number = {*self._done, *(thing for thing, _ in self._lost)}, 0
        for thing in things:
            some = [each for each in self.of(thing) if not isinstance(each.act, without)]
            require_linearizable(some, Standing(), step)
            number += len(some)
        return number

    def count(self, *kinds: type) -> int:
        """How many were answered of these kinds."""
        with self._lock:
            return sum(isinstance(each.act, kinds) for some in self._done.values() for each in some)


# --- those who act ---


class UnsaidError(Exception):
    """The KeyService said that it wrote nothing, and it was asked once; the cause is its answer."""


class Says(Protocol):
    """How a person reaches the KeyService."""

    def say(self, statement: bytes, keys: tuple[SecretBytes, ...]) -> dict[str, Any]:
        """A signed statement; its acknowledgement, whose receipt was checked. Raises what the KeyService answers.

        :raises UnsaidError: and whatever else is Unavailable may have been written, or be yet.
        """

    def ask(self, query: bytes) -> dict[str, Any]:
        """A signed query; its result."""

    def release(self, request: ReleaseRequest) -> Release:
        """As a runtime with a session."""


@final
class Storm:
    """Pairs of owner and user, each with a delegate, and runtimes that ask without pause.

    :param connect: a way to the KeyService, one for each thread.
    :param policies: which all accept the runtime; the first one is the owner's.
    :param reads: whether owners look at what stands as well.
    :param pause_s: of each of them between two calls, on the average.
    :ivar started: whether the scene is set. :ivar acknowledged: statements, with what was answered.
    """

    def __init__(
        self,
        people: Sequence[Person],
        connect: Callable[[], Says],
        policies: Sequence[bytes],
        *,
        history: History | None = None,
        pairs: int = 2,
        runtimes: int = 2,
        reads: bool = True,
        pause_s: float = 0.0,
    ) -> None:
        self.history = history or History()
        self._connect = connect
        self._policies = tuple(policies)
        self._runtimes = runtimes
        self._reads = reads
        self._pause = pause_s
        self._numbers = count(1)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.started = False
        self.faults: list[BaseException] = []
        self.acknowledged: list[tuple[bytes, dict[str, Any]]] = []
        self._pairs = [_Pair(number, people[4 * number : 4 * number + 4]) for number in range(pairs)]

    def begin(self, prepare: Says | None = None) -> None:
        """Set the scene, over this way if another is not sure to succeed, and let them go."""
        link = prepare or self._connect()
        for pair in self._pairs:
            pair.begin(self._policies, lambda statement, *keys: link.say(statement, keys))
        self.started = True
        acts: list[Callable[[], None]] = []
        for pair in self._pairs:
            acts += [self._owner(pair, who) for who in (pair.owner, pair.second_owner)]
            acts += [self._user(pair, who) for who in (pair.user, pair.second_user)]
            acts += [self._runtime(pair) for _ in range(self._runtimes)]
            acts += [self._reader(pair)] if self._reads else []
        for act in acts:
            thread = threading.Thread(target=self._run, args=(act,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def end(self, timeout_s: float = 60.0) -> History:
        """Stop all; what they did.

        :raises BaseException: a fault of one of them that is no answer of a KeyService.
        """
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout_s)
        if self.faults:
            raise self.faults[0]
        if any(thread.is_alive() for thread in self._threads):
            raise AssertionError
        return self.history

    def lost_and_repeated(self, link: Says) -> tuple[int, int]:
        """How many acknowledged statements are not in the log where they were acknowledged to be, or there twice.

        Asked of the KeyService by those whom they concern (query ``events``), with the proofs that it gives.
        """
        found: dict[bytes, list[int]] = defaultdict(list)
        for pair in self._pairs:
            for person in (pair.owner, pair.second_owner, pair.user, pair.second_user):
                after = 0
                while after >= 0:
                    page = link.ask(person.query("events", {"after": after}))
                    for item in page["items"]:
                        entry = Entry.decode(item["entry"])
                        if entry.kind == STATEMENT and item["index"] not in found[entry.body]:
                            found[entry.body].append(item["index"])
                    after = page["next"]
        lost = [done for statement, done in self.acknowledged if done["entry"] not in found[statement]]
        return len(lost), sum(len(indices) - 1 for indices in found.values() if len(indices) > 1)

    def _run(self, act: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                act()
            except BaseException as error:  # noqa: BLE001  # raised by ``end``
                self.faults.append(error)
                return
            if self._pause:
                self._stop.wait(self._pause * secrets.randbelow(200) / 100)

    def _owner(self, pair: _Pair, who: Person) -> Callable[[], None]:
        link = self._connect()

        def act() -> None:
            number = next(self._numbers)
            if secrets.randbelow(4):
                body: Body = Grant("model", pair.user.id, pair.policies[0], Validity(), number)
                self._say(link, pair, who, body, Granted(number))
            else:
                self._say(link, pair, who, RevokeGrant("model", pair.user.id), Revoked())

        return act

    def _user(self, pair: _Pair, who: Person) -> Callable[[], None]:
        link = self._connect()

        def act() -> None:
            if secrets.randbelow(4):
                number, terms = next(self._numbers), secrets.randbelow(len(pair.policies))
                key = pair.key(number)
                body = Consent(pair.model, pair.policies[terms], None, REQUEST_KEY, key_commitment(key), Validity())
                pair.asked = (*pair.asked[-3:], number)
                self._say(link, pair, who, body, Consented(number, terms), key)
            else:
                self._say(link, pair, who, RevokeConsent(pair.model), Withdrawn())

        return act

    def _say(self, link: Says, pair: _Pair, who: Person, body: Body, act: Act, *keys: SecretBytes) -> None:
        subject = pair.owner if who in (pair.owner, pair.second_owner) else pair.user
        statement = who.statement(body, subject=subject.id)
        called = self.history.clock()
        try:
            result = link.say(statement, keys)
        except Refused as error:  # it changed nothing (6.2), unless the network said it before we did
            self.history.failed(error, called)
            if error.code == "statement-replayed":
                self.history.lost(pair.number, who.id.hex()[:8], act, called, until=self.history.clock())
        except UnsaidError as error:
            self.history.failed(error, called)
            self._stop.wait(_AFTER_FAILURE_S)
        except CloisterError as error:
            self.history.failed(error, called)
            self.history.lost(pair.number, who.id.hex()[:8], act, called)
            self._stop.wait(_AFTER_FAILURE_S)
        else:
            self.history.did(pair.number, who.id.hex()[:8], act, called, settles=True)
            self.acknowledged.append((statement, result))

    def _runtime(self, pair: _Pair) -> Callable[[], None]:
        link, name = self._connect(), f"runtime-{next(self._numbers)}"

        def act() -> None:
            number = secrets.choice((*pair.asked, *pair.asked[-1:] * 4))
            request = ReleaseRequest(pair.user.id, pair.model, REQUEST_KEY, key_commitment(pair.key(number)))
            called = self.history.clock()
            try:
                release = link.release(request)
            except Refused as error:
                self.history.failed(error, called)
                if error.code == "release-refused":
                    self.history.did(pair.number, name, Denied(number), called)
            except Unavailable as error:  # nothing left; or nobody heard of it
                self.history.failed(error, called)
                self._stop.wait(_AFTER_FAILURE_S)
            else:
                if release.key != pair.key(number):
                    msg = "another key than the one asked for"
                    raise AssertionError(msg)
                self.history.did(pair.number, name, Released(release.lease_requests, number), called)

        return act

    def _reader(self, pair: _Pair) -> Callable[[], None]:
        link, name = self._connect(), f"reader-{next(self._numbers)}"

        def act() -> None:
            called = self.history.clock()
            try:
                items = link.ask(pair.owner.query("access"))["items"]
            except (Unavailable, Refused) as error:  # refused when the network asked before us
                self.history.failed(error, called)
                self._stop.wait(_AFTER_FAILURE_S)
                return
            grants = [item["quota"] for item in items if item["kind"] == "grant"]
            consents = [pair.policies.index(item["policy"]) for item in items if item["kind"] == "consent"]
            saw = Saw(grants[0] if grants else None, consents[0] if consents else None)
            self.history.did(pair.number, name, saw, called)

        return act


class _Pair:
    """One owner and one user, each with a delegate, and one model."""

    def __init__(self, number: int, people: Sequence[Person]) -> None:
        self.number = number
        self.owner, self.second_owner, self.user, self.second_user = people
        self.model = ModelId(self.owner.id, "model")
        self.policies: tuple[bytes, ...] = ()
        self.asked: tuple[int, ...] = (0,)
        self._seed = secrets.token_bytes(24)

    def key(self, number: int) -> SecretBytes:
        """The request key of this number."""
        return SecretBytes(self._seed + number.to_bytes(8, "big"))

    def begin(self, policies: Sequence[bytes], say: Callable[..., object]) -> None:
        """Identities, policies, the model; no grant and no consent."""
        for person in (self.owner, self.second_owner, self.user, self.second_user):
            say(person.register())
        until = int(self.owner.clock.now()) + 86_400
        for person, delegate in ((self.owner, self.second_owner), (self.user, self.second_user)):
            for policy in policies:
                say(person.statement(DefinePolicy(policy)))
            say(person.statement(Delegate(delegate.id, until)))
        key = SecretBytes(secrets.token_bytes(32))
        say(self.owner.statement(PublishModel("model", 1, secrets.token_bytes(32), key_commitment(key))), key)
        self.policies = tuple(Policy.decode(policy).digest for policy in policies)
