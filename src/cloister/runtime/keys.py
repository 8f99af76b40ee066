"""The runtime's session with the KeyService (spec/protocol.md, section 7).

``adapters.keyservice`` decides whether the KeyService is believed; here the runtime proves itself once, and then one
symmetric round trip gives a release. Many releases run at once, one attestation at a time.
"""

from __future__ import annotations

import threading
from typing import Final

from cloister.adapters.keyservice import MAX_REPLY, AttestedKeyService, KeyServiceLink
from cloister.attest.types import Attester, Configuration
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.base.limits import MAX_COLLATERAL
from cloister.crypto.digest import same
from cloister.crypto.hpke import HpkePrivateKey
from cloister.runtime.stages import Stage, Timings
from cloister.wire.calls import ATTEST, WireEvidence
from cloister.wire.provisioning import (
    AttestRequest,
    Release,
    ReleaseRequest,
    Session,
    accept_session,
    open_session_reply,
    seal_session_call,
)

_RENEW_BEFORE_S: Final = 10.0  # of a session's life left: attest before a call would fail
# What a KeyService says, unsealed, when it does not know the session: it ended, or another replica answers.
_GONE: Final = frozenset({"call-refused", "call-epoch-gone", "session-unknown"})
_UNREACHABLE: Final = "keyservice-unreachable"
_ATTEMPTS: Final = 3
_MAX_CHALLENGE: Final = 128
_MAX_EVIDENCE_FILES: Final = 16


class RuntimeSession:
    """Obtains keys. Safe for many threads.

    :param keyservice: id of the only KeyService that is spoken to; ``None``: whichever the trust bundle means.
    """

    def __init__(
        self,
        link: KeyServiceLink,
        attester: Attester,
        configuration: Configuration,
        *,
        clock: Clock,
        keyservice: bytes | None = None,
    ) -> None:
        self._link = link
        self._attester = attester
        self._configuration = configuration
        self._clock = clock
        self._keyservice = keyservice
        self._lock = threading.Lock()
        self._attesting = threading.Lock()
        self._session: Session | None = None
        self._ends = 0.0
        self._sequence = 0
        self.attests = 0

    @property
    def ready(self) -> bool:
        """Whether a session is open."""
        return self._session is not None and self._clock.monotonic() < self._ends

    def release(self, request: ReleaseRequest, timings: Timings) -> Release:
        """Ask for the keys of one pair.

        :raises Refused: ``release-refused``: a rule says no, and the KeyService tells a runtime no more (clause 7.9).
        :raises Unavailable: the KeyService is away.
        :raises Tampered: evidence, status, reply or log head are not genuine.
        """
        attempt, again = 0, self._link.waiting()
        while attempt < _ATTEMPTS:
            session, sequence, keyservice = self._next(timings)
            call = seal_session_call(session, sequence, request.fields())
            floor = self._link.newest(keyservice)
            with timings.stage(Stage.KEY_FETCH):
                try:
                    reply = self._link.exchange("/v1/session", call, limit=MAX_REPLY)
                except CloisterError as error:
                    attempt += 1
                    if error.code in _GONE and attempt < _ATTEMPTS:
                        self._drop(session)
                        continue
                    if error.code == _UNREACHABLE and attempt == 1:
                        continue  # a kept connection may have died; the next call is another one, sealed anew
                    raise _away(error) from error
                try:
                    result = open_session_reply(session, call, reply)
                except Unavailable as error:
                    if not again(error):
                        raise
                    self._drop(session)  # another replica of the KeyService takes over, and knows no session
                    continue
            release = Release.read(result)
            self._link.saw(keyservice, release.head, floor=floor)
            return release
        raise _unstable()

    def connect(self, timings: Timings) -> None:
        """Open a session now, for example at start; raises as :meth:`release`."""
        self._ensure(timings)

    # --- inside ---

    def _next(self, timings: Timings) -> tuple[Session, int, bytes]:
        for _ in range(_ATTEMPTS):
            keyservice = self._ensure(timings)
            with self._lock:
                if self._session is not None:
                    self._sequence += 1
                    return self._session, self._sequence, keyservice
        raise _unstable()

    def _drop(self, session: Session) -> None:
        with self._lock:
            if self._session is session:
                self._session = None

    def _ensure(self, timings: Timings) -> bytes:
        if not self.ready:
            with self._attesting:  # whoever comes second finds the session of the first
                if not self.ready:
                    with timings.stage(Stage.ATTEST):
                        self._open()
        return self._link.settled().description.keyservice

    def _open(self) -> None:
        begun = self._clock.monotonic()
        key = HpkePrivateKey.generate()
        made: list[AttestRequest] = []

        def body(attested: AttestedKeyService) -> bytes:
            if self._keyservice is not None and not same(attested.description.keyservice, self._keyservice):
                raise Refused("keyservice-other", "this is another KeyService than the one configured")
            made[:] = [self._request(key)]
            return made[0].encode()

        result = self._link.call(ATTEST, body)
        session = accept_session(result, made[0], key)
        with self._lock:
            self._session, self._sequence = session, 0
            self._ends = begun + max(1.0, session.lifetime - _RENEW_BEFORE_S)
            self.attests += 1

    def _request(self, key: HpkePrivateKey) -> AttestRequest:
        challenge = self._link.exchange("/v1/challenge", b"", limit=_MAX_CHALLENGE)
        bundle, configuration = self._link.bundle().digest, self._configuration.encoded

        def request(evidence: WireEvidence) -> AttestRequest:
            return AttestRequest(key.public_key, challenge, configuration, bundle, evidence)

        evidence = self._attester.evidence(request(WireEvidence("", b"", {})).report_data())
        files = evidence.endorsements
        if len(files) > _MAX_EVIDENCE_FILES or sum(map(len, files.values())) > MAX_COLLATERAL:
            raise InvalidInput("evidence-too-long", "the TEE's own evidence is larger than the protocol allows")
        return request(WireEvidence(evidence.tee.value, evidence.body, dict(files)))


def _away(error: CloisterError) -> Unavailable:
    """What arrives unsealed is the network's word: it can keep keys away, and revoke nothing."""
    retry = error.retry_after if isinstance(error, Unavailable) else None
    return Unavailable(
        "keyservice-unavailable", f"the KeyService gives no answer: {error.code}", retry_after=retry or 1.0
    )


def _unstable() -> Unavailable:
    return Unavailable("keyservice-unavailable", "no session with the KeyService lasts", retry_after=1.0)
