"""Owners and users for tests: an identity with its keys and its sequence, and a policy for simulated runtimes."""

from __future__ import annotations

import secrets
from typing import Any, final

from cloister.attest.policy import Policy, Rule
from cloister.attest.types import TeeType
from cloister.base.clock import Clock
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.wire.statements import (
    Body,
    Query,
    Register,
    Statement,
    identity_id,
    sign_query,
    sign_statement,
)


def simulation_policy(measurement: bytes, *, co_tenancy: bool = False, **fields: Any) -> Policy:
    """A policy with one rule, ``simulated``, that accepts this measurement; ``fields`` replace others of the rule."""
    plain: dict[str, Any] = {
        "measurement": [measurement],
        "minimum_security_version": "any-security-version",
        "maximum_age_s": "any-age",
        "configuration": "any-configuration",
        "isolation": "any-isolation",
    }
    return Policy((Rule.of("simulated", TeeType.SIMULATION, plain | fields),), co_tenancy)


@final
class Person:
    """An identity of one KeyService. Statements take the next sequence number unless told otherwise.

    :param keyservice: the KeyService's id.
    """

    def __init__(self, keyservice: bytes, clock: Clock, seed: bytes | None = None) -> None:
        seed = secrets.token_bytes(32) if seed is None else seed
        self.keyservice = keyservice
        self.clock = clock
        self.key = SigningKey.from_seed(SecretBytes(seed))
        self.recovery = SigningKey.from_seed(SecretBytes(bytes(byte ^ 0xFF for byte in seed)))
        self.id = identity_id(self.key.public_key)
        self.sequence = 0

    def statement(
        self,
        body: Body,
        *,
        subject: bytes | None = None,
        sequence: int | None = None,
        key: SigningKey | None = None,
        issued_at: int | None = None,
        lifetime: int = 600,
        issuer: bytes | None = None,
    ) -> bytes:
        """A signed statement."""
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        statement = Statement(
            keyservice=self.keyservice,
            issuer=issuer or self.id,
            subject=subject or self.id,
            sequence=sequence,
            issued_at=int(self.clock.now()) if issued_at is None else issued_at,
            lifetime=lifetime,
            body=body,
        )
        return sign_statement(statement, key or self.key)

    def register(self, **options: Any) -> bytes:
        """The statement with which the identity begins."""
        return self.statement(Register(self.key.public_key, self.recovery.public_key), **options)

    def query(self, kind: str, about: dict[str, Any] | None = None, **options: Any) -> bytes:
        """A signed query; ``options`` replace fields of it."""
        fields: dict[str, Any] = {
            "keyservice": self.keyservice,
            "issuer": self.id,
            "nonce": secrets.token_bytes(16),
            "issued_at": int(self.clock.now()),
            "lifetime": 60,
            "kind": kind,
            "about": about or {},
        }
        return sign_query(Query(**(fields | options)), self.key)
