"""How owner, user and runtime reach the KeyService: attest first, then talk (spec/protocol.md, section 5).

Shared by the client and the runtime, so that there is one place that decides whether a KeyService is believed.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Protocol

from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.http.problem import from_response
from cloister.attest.appraise import appraise
from cloister.attest.bundle import TrustBundle, open_bundle
from cloister.attest.configuration import decode_configuration
from cloister.attest.steps import Steps
from cloister.attest.types import Appraisal, Collateral, CollateralSource, Configuration, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.base.limits import (
    MAX_BUNDLE,
    MAX_CALL,
    MAX_COLLATERAL,
    MAX_EVIDENCE,
    MAX_LEAVES,
    MAX_LOG_KEYS,
    MAX_STATUS,
)
from cloister.base.secret import SecretBytes
from cloister.log.export import MAX_HEADER_RECORD, ExportHeader
from cloister.log.merkle import HASH_LENGTH, MAX_PROOF, MerkleTree, verify_consistency
from cloister.log.receipt import read_proof
from cloister.log.witness import require_quorum
from cloister.wire import calls, cbor
from cloister.wire.calls import Description, LogHead, WireEvidence
from cloister.wire.cbor import Fields
from cloister.wire.log_keys import LogKeys

BUNDLE_PATH: Final = "/v1/bundle"
MAX_DESCRIPTION: Final = MAX_EVIDENCE + MAX_COLLATERAL + MAX_LOG_KEYS + 16384
MAX_REPLY: Final = 4 * MAX_CALL
UNCONFIRMED: Final = "keyservice-unconfirmed"
# What a KeyService of several replicas says, or the way to it, while another one takes over.
_TAKE_OVER: Final = frozenset({
    "bad-gateway-answer", "call-epoch-gone", "keyservice-closing", "keyservice-leader-away", "keyservice-no-leader",
    "keyservice-rolled-back", "keyservice-unreachable", "keyservice-superseded", "shutting-down", UNCONFIRMED,
    "challenge-malformed", "status-not-fresh",  # when another one answers the second of two questions
    "keyservice-bundle-differs",
})  # fmt: skip
# What no KeyService says that runs alone: worth waiting for before it was attested.
_SEVERAL: Final = frozenset({"keyservice-leader-away", "keyservice-no-leader"})
# The epoch ended between two exchanges, or another replica answered the second one: attesting anew helps.
_EPOCH_ENDED: Final = frozenset({"call-epoch-gone", "status-not-fresh"})
_TAKE_OVER_S: Final = 20.0  # how long one is waited for
_TAKE_OVER_PAUSE_S: Final = 0.5
NO_ROLLBACK_PROTECTION: Final = "none"
WITNESSES: Final = "witnesses"
_MAX_PROOF_REPLY: Final = 4096


class Transport(Protocol):
    """Port: one HTTP exchange with the KeyService. Errors are ours; nothing but bytes is interpreted."""

    def get(self, path: str, *, limit: int) -> bytes:
        """:raises Unavailable: ``keyservice-unreachable`` or what the service answered."""

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        """As :meth:`get`; the body is sent once: what may have arrived is not sent again."""


class HttpTransport:
    """:class:`Transport` over HTTP.

    :param origin: ``http://host:port``, ``https://host`` or ``unix:/path``; of several replicas all, separated by
        commas: the next one is asked when one cannot be reached, or knows of none that leads.
    """

    def __init__(self, client: HttpClient, origin: str) -> None:
        self._client = client
        self._origins = [item.strip() for item in origin.split(",")]
        self._at = 0

    def get(self, path: str, *, limit: int) -> bytes:
        """See the port."""
        return self._exchange("GET", path, b"", limit)

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        """See the port."""
        return self._exchange("POST", path, body, limit)

    def _exchange(self, method: str, path: str, body: bytes, limit: int) -> bytes:
        for left in reversed(range(len(self._origins))):
            at = self._at
            origin = self._origins[at]
            try:
                answer = self._client.request(method, origin, path, content=body, max_answer=limit)
            except Unavailable as error:
                self._at = (at + 1) % len(self._origins)
                if left and (method == "GET" or error.code == "connect-failed"):  # nothing was sent
                    continue
                raise Unavailable(
                    "keyservice-unreachable",
                    f"the KeyService at {origin} cannot be reached: {error.message}",
                    retry_after=error.retry_after or 1.0,
                    hint="Is it running, and is the address right?",
                ) from error
            if answer.status == 200:
                return bytes(answer.body)
            refusal = from_response(answer.status, answer.headers, answer.body)
            if refusal.code in ("keyservice-no-leader", "keyservice-leader-away", "keyservice-closing"):
                self._at = (at + 1) % len(self._origins)
            raise refusal
        raise AssertionError


class HeadMemory(Protocol):
    """Port: remembers the newest log head seen of a KeyService, over restarts where there is a disk (claim S7), and
    its log keys (clause 13.27.5).
    """

    def newest(self, keyservice: bytes) -> LogHead | None: ...

    def remember(self, keyservice: bytes, head: LogHead) -> None: ...

    def log_keys(self, keyservice: bytes) -> LogKeys | None: ...

    def remember_log_keys(self, keys: LogKeys) -> None: ...


class VolatileHeads:
    """A :class:`HeadMemory` for a process without a disk."""

    def __init__(self) -> None:
        self._heads: dict[bytes, LogHead] = {}
        self._log_keys: dict[bytes, LogKeys] = {}

    def newest(self, keyservice: bytes) -> LogHead | None:
        """The newest head, if any was seen."""
        return self._heads.get(keyservice)

    def remember(self, keyservice: bytes, head: LogHead) -> None:
        """Keep this head."""
        self._heads[keyservice] = head

    def log_keys(self, keyservice: bytes) -> LogKeys | None:
        """The log keys, if any were seen."""
        return self._log_keys.get(keyservice)

    def remember_log_keys(self, keys: LogKeys) -> None:
        """Keep these."""
        self._log_keys[keys.keyservice] = keys


@dataclass(frozen=True, slots=True)
class AttestedKeyService:
    """A KeyService whose evidence was verified and appraised; only :func:`believe` makes one."""

    description: Description
    appraisal: Appraisal


class Attested(Protocol):
    """What a KeyService says of itself: a description, or what asks custodians for their shares."""

    @property
    def evidence(self) -> WireEvidence: ...

    @property
    def configuration(self) -> bytes: ...

    @property
    def bundle_digest(self) -> bytes: ...

    def report_data(self) -> bytes: ...


def believe(
    description: Description, *, bundle: TrustBundle, collateral: Collateral, now: float, steps: Steps | None = None
) -> AttestedKeyService:
    """Decide whether this KeyService is the one that the bundle means (clauses 5.2, 5.4); raises as :func:`judge`."""
    appraisal = judge(description, bundle=bundle, collateral=collateral, now=now, steps=steps)
    return AttestedKeyService(description, appraisal)


def judge(
    said: Attested, *, bundle: TrustBundle, collateral: Collateral, now: float, steps: Steps | None = None
) -> Appraisal:
    """Whether the bundle means such a KeyService, whatever it says its evidence for.

    :raises Refused: ``keyservice-bundle-differs``, ``keyservice-rollback-unsafe``, ``bundle-expired`` and the codes of
        verification and appraisal.
    :raises InvalidInput: malformed evidence or configuration.
    :raises Tampered: a signature does not verify.
    """
    if not bundle.issued_at <= now + 60 or now >= bundle.expires_at:
        raise Refused("bundle-expired", "the trust bundle is not in force", hint="Get the newest one from its author.")
    try:
        tee = TeeType(said.evidence.tee)
    except ValueError as error:
        raise InvalidInput("evidence-unknown-tee", "the KeyService's evidence names no TEE known here") from error
    configuration = decode_configuration(said.configuration)
    evidence = Evidence(tee, said.evidence.body, said.evidence.endorsements)
    verified = verify(evidence, collateral, bundle.anchors(), now, steps)
    bundle.check_collateral(verified.claims)
    appraisal = appraise(
        verified, configuration=configuration, report_data=said.report_data(), policy=bundle.keyservice, now=now
    )
    check_bundle_in_use(said.bundle_digest, bundle)
    check_rollback_protection(configuration, bundle)
    return appraisal


def check_bundle_in_use(digest: bytes, bundle: TrustBundle) -> None:
    """:raises Refused: ``keyservice-bundle-differs`` unless what was attested is the digest of our bundle."""
    if digest != bundle.digest:
        raise Refused(
            "keyservice-bundle-differs",
            "the KeyService runs under another trust bundle than ours",
            hint="One of the two is older: get the newest bundle from its author.",
        )


def check_rollback_protection(configuration: Configuration, bundle: TrustBundle) -> None:
    """:raises Refused: ``keyservice-rollback-unsafe`` unless it has protection, or the bundle accepts none (S7)."""
    protection = configuration.values.get("rollback_protection", NO_ROLLBACK_PROTECTION)
    if protection != WITNESSES and (protection != NO_ROLLBACK_PROTECTION or not bundle.accept_rollback_unsafe):
        raise Refused(
            "keyservice-rollback-unsafe",
            "the KeyService has no protection from rollback, and the trust bundle does not accept that",
        )
    if protection != WITNESSES and bundle.witnesses:
        raise Refused(
            "keyservice-rollback-unsafe", "the trust bundle names witnesses, and the KeyService works without any"
        )


_HISTORY_HINT: Final = "Its database was restored or replaced. Do not use it; tell whoever runs it, and the auditor."


def check_head(seen: LogHead | None, head: LogHead, floor: LogHead | None = None) -> None:
    """Refuse a log that went back or forked, as far as two heads show it without a proof (clause 5.3).

    :param seen: the newest head that is known.
    :param floor: the newest head that was known when ``head`` was asked for: answers to concurrent calls arrive in any
        order, but none may be behind what was seen before its question. By default what is known now.
    :raises Tampered: ``keyservice-rolled-back``, ``keyservice-forked``.
    """
    floor = seen if floor is None else floor
    hint = _HISTORY_HINT
    if floor is not None and head.size < floor.size:
        raise Tampered(
            "keyservice-rolled-back",
            f"the KeyService's log has {head.size} entries, but had {floor.size} before",
            hint=hint,
        )
    if any(known is not None and head.size == known.size and head.root != known.root for known in (seen, floor)):
        raise Tampered("keyservice-forked", f"the KeyService's log has two histories of {head.size} entries", hint=hint)


def check_log_keys(known: LogKeys | None, keys: LogKeys) -> None:
    """Refuse a KeyService that signs with a retired key, or with another one than follows those known (13.27.5).

    :raises Tampered: ``keyservice-rolled-back``, ``keyservice-forked``.
    """
    if known is None or keys.continues(known):
        return
    if known.continues(keys):
        raise Tampered(
            "keyservice-rolled-back",
            f"the KeyService uses its log key {keys.generation}, which was retired: it has rotated its root "
            f"{known.generation} times",
            hint=_HISTORY_HINT,
        )
    raise Tampered("keyservice-forked", "the KeyService's log key has two successors", hint=_HISTORY_HINT)


def fetch_log(transport: Transport) -> tuple[ExportHeader, bytes]:
    """The log's signed head and all its leaves, which make its root; whose log it is, is the caller's to know.

    :raises Tampered: ``log-root``, ``log-head``, ``signature-invalid``. :raises Unavailable: it does not answer.
    """
    data = transport.get("/v1/checkpoint", limit=MAX_HEADER_RECORD)
    header = ExportHeader.read(cbor.decode(data, limit=MAX_HEADER_RECORD, what="the checkpoint"))
    leaves = bytearray()
    while (have := len(leaves) // HASH_LENGTH) < header.head.size:
        count = min(MAX_LEAVES, header.head.size - have)
        asked = cbor.encode({"first": have, "count": count})
        reply = transport.post("/v1/leaves", asked, limit=count * HASH_LENGTH + 64)
        fields = Fields(cbor.decode(reply, limit=count * HASH_LENGTH + 64, what="the leaves"), "the leaves")
        part = fields.blob("leaves", exactly=count * HASH_LENGTH)
        fields.done()
        leaves += part
    tree = MerkleTree(bytes(leaves[at : at + HASH_LENGTH]) for at in range(0, len(leaves), HASH_LENGTH))
    if tree.root() != header.head.root:
        raise Tampered("log-root", "the leaves do not make the root that the log signed")
    return header, bytes(leaves)


class KeyServiceLink:
    """A connection to one KeyService, attested before its first call and again whenever its epoch ends. Thread-safe.

    :param bundle: the trust bundle that whoever uses this was given; a newer one of the same root that the KeyService
        shows goes before it (clause 13.26.2).
    """

    def __init__(
        self,
        transport: Transport,
        *,
        bundle: Callable[[], TrustBundle],
        collateral: CollateralSource,
        clock: Clock,
        heads: HeadMemory,
    ) -> None:
        self._transport = transport
        self._given = bundle
        self._newer: TrustBundle | None = None
        self._collateral = collateral
        self._clock = clock
        self._heads = heads
        self._attested: AttestedKeyService | None = None
        self._unconfirmed: Unavailable | None = None
        self._replicated = False
        self._lock = threading.Lock()
        self._heads_lock = threading.Lock()

    def bundle(self) -> TrustBundle:
        """The trust bundle by which the KeyService is judged: the newest one that is known here.

        :raises CloisterError: what is wrong with the one that was given, while no newer one is known.
        """
        newer = self._newer
        try:
            given = self._given()
        except Refused:  # it expired
            if newer is None:
                raise
            return newer
        return given if newer is None or newer.version <= given.version else newer

    def _agreed(self, description: Description) -> TrustBundle:
        """Ours, or the newer one under which the KeyService says it runs.

        :raises Unavailable: ``call-epoch-gone``: it took a newer one meanwhile; it cannot be reached.
        """
        ours = self.bundle()
        if description.bundle_digest == ours.digest:
            return ours
        with contextlib.suppress(InvalidInput, Refused, Tampered):  # it has none, or not a newer one
            data = self._transport.get(BUNDLE_PATH, limit=MAX_BUNDLE)
            theirs = open_bundle(data, ours.root, ours.version, self._clock.now())
            if theirs.replaces(ours):
                if theirs.digest == description.bundle_digest:
                    return theirs
                raise Unavailable("call-epoch-gone", "the KeyService took a newer trust bundle meanwhile")
        return ours

    def attested(self) -> AttestedKeyService:
        """The KeyService, attested now if it was not yet.

        :raises Unavailable: it cannot be reached. Otherwise raises as :func:`believe` and :func:`check_head`.
        """
        with self._lock:
            if self._attested is None or self._clock.now() >= self._attested.appraisal.expires_at:
                self._attested = self._attest()
            return self._attested

    def settled(self) -> AttestedKeyService:
        """As :meth:`attested`; where one of several replicas takes over, this waits for it."""
        until = self._clock.monotonic() + _TAKE_OVER_S
        for attempt in count(1):
            try:
                return self.attested()
            except CloisterError as error:
                if not self._ended(error, attempt) and not self._takes_over(error, until, attempt):
                    raise
        raise AssertionError

    def forget(self) -> None:
        """Attest again before the next call."""
        with self._lock:
            self._attested = None

    def _attest(self) -> AttestedKeyService:
        description = Description.decode(self._transport.get("/v1/description", limit=MAX_DESCRIPTION))
        evidence = description.evidence
        try:
            source = Evidence(TeeType(evidence.tee), evidence.body, evidence.endorsements)
        except ValueError as error:
            raise InvalidInput("evidence-unknown-tee", "the KeyService's evidence names no TEE known here") from error
        bundle = self._agreed(description)
        attested = believe(
            description, bundle=bundle, collateral=self._collateral.collateral(source), now=self._clock.now()
        )
        self._newer = bundle
        with self._heads_lock:
            check_log_keys(self._heads.log_keys(description.keyservice), description.log_keys)
        self._unconfirmed = None
        replicas = attested.appraisal.configuration.values.get("replicas", 0)
        self._replicated = type(replicas) is int and replicas > 1
        try:
            self._check_status(description)
        except Unavailable as error:
            if error.code != UNCONFIRMED:
                raise
            self._unconfirmed = error  # good enough to ask, not to say or release anything (clause 13.12)
        return attested

    def _check_status(self, description: Description) -> None:
        nonce, floor = secrets.token_bytes(32), self.newest(description.keyservice)
        status = self._transport.post("/v1/status", nonce, limit=MAX_STATUS)
        self.saw(description.keyservice, calls.verify_status(status, description, nonce), floor=floor)
        self._saw_log_keys(description.log_keys)

    def _saw_log_keys(self, keys: LogKeys) -> None:
        """Remember those of a KeyService that was attested, and whose head was confirmed as the bundle demands."""
        with self._heads_lock:
            known = self._heads.log_keys(keys.keyservice)
            check_log_keys(known, keys)
            if keys != known:
                self._heads.remember_log_keys(keys)

    def _confirmed(self) -> AttestedKeyService:
        """The KeyService, its head confirmed by witnesses where the bundle demands it."""
        attested = self.attested()
        with self._lock:
            if self._unconfirmed is not None:
                self._check_status(attested.description)
                self._unconfirmed = None
        return attested

    def newest(self, keyservice: bytes) -> LogHead | None:
        """The newest head seen; take it before a call, to judge the head that comes back."""
        with self._heads_lock:
            return self._heads.newest(keyservice)

    def saw(self, keyservice: bytes, head: LogHead, *, floor: LogHead | None = None) -> None:
        """Note a head that arrived with a reply: not gone back, not forked, co-signed as the bundle demands, and
        continuing the newest one seen, which the KeyService proves (clauses 5.3, 13.3, 13.12).

        :raises Tampered: as :func:`check_head`; ``cosignature-invalid``.
        :raises Unavailable: ``keyservice-unconfirmed``; the proof cannot be had.
        """
        with self._heads_lock:
            seen = self._heads.newest(keyservice)
            check_head(seen, head, floor)
        bundle = self.bundle()
        if bundle.witnesses:
            require_quorum(
                keyservice,
                head,
                witnesses=bundle.witnesses,
                threshold=bundle.witness_threshold,
                now=self._clock.now(),
            )
        while True:
            if seen is not None:
                self._prove(*((seen, head) if seen.size <= head.size else (head, seen)))
            with self._heads_lock:
                newest = self._heads.newest(keyservice)
                if newest == seen:
                    if seen is None or head.size > seen.size:
                        self._heads.remember(keyservice, head)
                    return
                seen = newest
                check_head(seen, head, floor or head)

    def _prove(self, older: LogHead, newer: LogHead) -> None:
        """:raises Tampered: ``keyservice-forked``."""
        if older.size in (0, newer.size):
            return None
        until = self._clock.monotonic() + _TAKE_OVER_S
        for attempt in count(1):
            try:
                return self._proven(older, newer)
            except Unavailable:
                raise
            except CloisterError as error:
                if self._replicated and self._waits(until, attempt):
                    continue  # one that leads no more and has not noticed lacks entries, or has others (13.21.1)
                raise Tampered(
                    "keyservice-forked",
                    f"the KeyService does not show that its log of {newer.size} entries continues the one of "
                    f"{older.size} that was seen before",
                    hint=_HISTORY_HINT,
                ) from error
        raise AssertionError

    def _proven(self, older: LogHead, newer: LogHead) -> None:
        asked = cbor.encode({"first": older.size, "second": newer.size})
        reply = self.exchange("/v1/consistency", asked, limit=_MAX_PROOF_REPLY)
        fields = Fields(cbor.decode(reply, limit=_MAX_PROOF_REPLY, what="the proof"), "the proof")
        proof = read_proof(fields.items("proof", limit=MAX_PROOF))
        fields.done()
        verify_consistency(older.size, older.root, newer.size, newer.root, proof)

    def call(self, kind: str, body: Callable[[AttestedKeyService], bytes], keys: tuple[SecretBytes, ...] = ()) -> Any:
        """One sealed call; attests again, once, when the epoch ended meanwhile, and as often as it takes while one of
        several replicas takes over.

        :param body: makes the body for the KeyService it goes to, and is called again after a new attestation.
        :raises CloisterError: whatever the KeyService answered.
        """
        until = self._clock.monotonic() + _TAKE_OVER_S
        for attempt in count(1):
            try:
                attested = self.attested() if kind == calls.QUERY else self._confirmed()
                pending = calls.seal_call(attested.description, kind, body(attested), keys)
                reply = self._transport.post("/v1/call", pending.data, limit=MAX_REPLY)
                return calls.open_reply(pending, reply)
            except CloisterError as error:
                if not self._ended(error, attempt) and not self._takes_over(error, until, attempt):
                    raise
                self.forget()
        raise AssertionError

    @staticmethod
    def _ended(error: CloisterError, attempt: int) -> bool:
        return attempt == 1 and error.code in _EPOCH_ENDED

    def waiting(self) -> Callable[[CloisterError], bool]:
        """From now on: whether, after this error in a reply, it is worth while to ask again; waits a little."""
        until, attempts = self._clock.monotonic() + _TAKE_OVER_S, count(1)
        return lambda error: self._takes_over(error, until, next(attempts))

    def _takes_over(self, error: CloisterError, until: float, attempt: int) -> bool:
        """Whether it is worth while to ask again: there are replicas, and time; waits a little.

        One that leads no more and has not noticed shows an older head for some seconds; if it lasts it is an attack.
        """
        several = self._replicated or error.code in _SEVERAL
        return several and error.code in _TAKE_OVER and self._waits(until, attempt)

    def _waits(self, until: float, attempt: int) -> bool:
        """Wait a little, if there is time."""
        if self._clock.monotonic() >= until or attempt * _TAKE_OVER_PAUSE_S >= _TAKE_OVER_S:
            return False
        time.sleep(_TAKE_OVER_PAUSE_S)
        return True

    def export(self) -> tuple[ExportHeader, bytes]:
        """The log's signed head, believed and remembered as every head, and all its leaves (clause 13.13).

        :raises Tampered: ``log-root``: the leaves are not those of the head; otherwise as :meth:`saw`.
        """
        attested = self.attested()
        floor = self.newest(attested.description.keyservice)
        header, leaves = fetch_log(self._transport)
        if header.log_keys != attested.description.log_keys:  # its root may have been rotated since it was attested
            self.forget()
            attested = self.attested()
        if header.log_keys != attested.description.log_keys:
            raise Tampered("log-head", "the checkpoint is of another KeyService than the one that was attested")
        self.saw(header.keyservice, header.head, floor=floor)
        return header, leaves

    def exchange(self, path: str, body: bytes, *, limit: int) -> bytes:
        """A plain exchange: challenges and session calls, which are protected by themselves. Sent again while one of
        several replicas takes over: what was accepted before is refused then, and nothing else follows from it.
        """
        until = self._clock.monotonic() + _TAKE_OVER_S
        for attempt in count(1):
            try:
                return self._transport.post(path, body, limit=limit)
            except Unavailable as error:
                if not self._takes_over(error, until, attempt):
                    raise
        raise AssertionError
