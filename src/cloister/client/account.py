"""An identity at a KeyService: says statements and asks queries (spec/protocol.md, section 6)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from cloister.adapters.keyservice import UNCONFIRMED, AttestedKeyService, KeyServiceLink
from cloister.attest.policy import Policy
from cloister.base.clock import Clock
from cloister.base.errors import Refused, Unavailable
from cloister.base.secret import SecretBytes
from cloister.client.identity import Identity
from cloister.client.keyring import Keyring
from cloister.crypto.sign import SigningKey
from cloister.log.receipt import check_statement_receipt
from cloister.wire import calls
from cloister.wire.statements import Body, DefinePolicy, Query, Register, Statement, sign_query, sign_statement

LIFETIME_S: Final = 300
LIMITED: Final = "rate-limited"
_CONFIRM_ATTEMPTS: Final = 5
_LIMITED_S: Final = 60.0  # a statement lives for 300 s


class Account:
    """What one identity can say. Thread-safe.

    :ivar confirmed_s: at the last query, how many seconds ago witnesses confirmed the KeyService's log; -1 for not
        since its start; ``None`` where it has no witnesses.
    :ivar pause: how it waits, in seconds.
    """

    def __init__(self, identity: Identity, keyring: Keyring, link: KeyServiceLink, clock: Clock) -> None:
        self.identity = identity
        self.keyring = keyring
        self.link = link
        self.clock = clock
        self.confirmed_s: int | None = None
        self.pause: Callable[[float], None] = time.sleep

    def say(
        self,
        body: Body,
        keys: tuple[SecretBytes, ...] = (),
        *,
        subject: bytes | None = None,
        signer: SigningKey | None = None,
        sequence: int | None = None,
    ) -> dict[str, Any]:
        """Make one statement; returns its acknowledgement after it is durable and its receipt was checked. Its
        ``pending`` says until when the statement waits for a second person, changing nothing; 0: it has effect (6.8).

        :param subject: for whom, when another identity delegated to this one.
        :param signer: the recovery key, where that one speaks.
        :raises CloisterError: whatever the KeyService answered. After ``Unavailable`` ``no-answer`` the statement may
            have been applied: say it again, the KeyService applies the later one.
        """
        description = self.link.settled().description
        number = sequence or self.keyring.next_sequence(description.keyservice, self.clock.now())
        sent = b""

        def signed(attested: AttestedKeyService) -> bytes:
            nonlocal sent, description
            before, description = description, attested.description  # its log key may be another one by now (13.27)
            if sent and attested.description.keyservice == before.keyservice:
                return sent  # the very same bytes: acknowledged again, and never applied twice (clause 13.10)
            statement = Statement(
                keyservice=attested.description.keyservice,
                issuer=self.identity.id,
                subject=subject or self.identity.id,
                sequence=number,
                issued_at=int(self.clock.now()),
                lifetime=LIFETIME_S,
                body=body,
            )
            sent = sign_statement(statement, signer or self.identity.key)
            return sent

        acknowledged = self._patiently(lambda: self.link.call(calls.STATEMENT, signed, keys))
        receipt = check_statement_receipt(acknowledged, sent, description.log_keys)
        self.link.saw(description.keyservice, receipt.head)
        return acknowledged

    def _patiently(self, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Again, a few times, while what was said is written and not confirmed by witnesses yet; and as often as it
        takes within a minute where the KeyService says that it is too much, and when it is not any more (5.7).
        """
        left, until = _CONFIRM_ATTEMPTS, self.clock.monotonic() + _LIMITED_S
        while True:
            try:
                return call()
            except Unavailable as error:
                pause = error.retry_after or 1.0
                if error.code == LIMITED and error.retry_after is not None:
                    if self.clock.monotonic() + pause > until:
                        raise
                else:
                    left -= 1
                    if error.code != UNCONFIRMED or "written" not in error.details or not left:
                        raise
                self.pause(pause)

    def ask(self, kind: str, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask one query; its result is described in spec/protocol.md, 6.7.

        :raises CloisterError: whatever the KeyService answered.
        """

        def signed(attested: AttestedKeyService) -> bytes:
            query = Query(
                keyservice=attested.description.keyservice,
                issuer=self.identity.id,
                nonce=secrets.token_bytes(16),
                issued_at=int(self.clock.now()),
                lifetime=LIFETIME_S,
                kind=kind,
                about=about or {},
            )
            return sign_query(query, self.identity.key)

        result = self._patiently(lambda: self.link.call(calls.QUERY, signed))
        self.confirmed_s = result.pop("confirmed", None)
        return result

    def every(self, kind: str, about: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """All items of a query that is answered in pages."""
        items: list[dict[str, Any]] = []
        asked = dict(about or {})
        while True:
            page = self.ask(kind, asked)
            items += page["items"]
            if page["next"] in ("", -1):
                return items
            asked["after"] = page["next"]

    def register(self) -> bool:
        """Make the identity known; ``False`` when it was already.

        :raises Refused: the codes of ``register``.
        """
        try:
            self.say(Register(self.identity.key.public_key, self.identity.recovery_public_key()))
        except Refused as error:
            if error.code != "identity-known":
                raise
            return False
        return True

    def define_policy(self, policy: Policy, *, subject: bytes | None = None) -> bytes:
        """Make a policy known, unless it is; returns its digest."""
        try:
            self.ask("policy", {"digest": policy.digest, "subject": subject or self.identity.id})
        except Refused as error:
            if error.code != "policy-unknown":
                raise
            self.say(DefinePolicy(policy.encode()), subject=subject)
        return policy.digest
