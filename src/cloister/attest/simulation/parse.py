"""Simulated evidence, bytes to a frozen value and back (spec/attestation.md, clause 6.1); nothing is believed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.attest.types import TeeType
from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_SIMULATED_EVIDENCE
from cloister.crypto.sign import PUBLIC_KEY_LENGTH
from cloister.wire import cbor, cose

WARNING: Final = TeeType.SIMULATION.value
MEASUREMENT_LENGTH: Final = 48
REPORT_DATA_LENGTH: Final = 64

_VERSION: Final = 1
_WHAT: Final = "simulated evidence"


@dataclass(frozen=True, slots=True)
class SimulatedToken:
    """What a simulated TEE says of itself.

    :param key: Ed25519 public key that is said to have signed it, 32 bytes.
    :param measurement: SHA-384 over the installed code, 48 bytes.
    :param configuration_digest: of the service's measured configuration, 32 bytes.
    :param report_data: 64 bytes.
    :param issued_at: Unix time, whole seconds.
    """

    key: bytes
    measurement: bytes
    configuration_digest: bytes
    report_data: bytes
    issued_at: int
    debug: bool = False
    security_version: int = 0

    def encode(self) -> bytes:
        """The payload that is signed, with the warning in it."""
        return cbor.encode(
            {
                "warning": WARNING,
                "version": _VERSION,
                "key": self.key,
                "measurement": self.measurement,
                "configuration_digest": self.configuration_digest,
                "report_data": self.report_data,
                "issued_at": self.issued_at,
                "debug": self.debug,
                "security_version": self.security_version,
            }
        )


def parse_payload(payload: bytes) -> SimulatedToken:
    """Read what is inside the signature.

    :raises InvalidInput: ``simulation-unmarked`` without the warning, ``simulation-version``, and the codes of
        ``wire.cbor``.
    """
    fields = cbor.Fields(cbor.decode(payload, limit=MAX_SIMULATED_EVIDENCE, what=_WHAT), _WHAT)
    if fields.text("warning", limit=64) != WARNING:
        raise InvalidInput("simulation-unmarked", f"{_WHAT} does not say {WARNING!r}")
    version = fields.integer("version")
    if version != _VERSION:
        raise InvalidInput("simulation-version", f"{_WHAT} is of version {version}; only {_VERSION} is understood")
    token = SimulatedToken(
        key=fields.blob("key", exactly=PUBLIC_KEY_LENGTH),
        measurement=fields.blob("measurement", exactly=MEASUREMENT_LENGTH),
        configuration_digest=fields.blob("configuration_digest", exactly=32),
        report_data=fields.blob("report_data", exactly=REPORT_DATA_LENGTH),
        issued_at=fields.integer("issued_at", high=2**40),
        debug=fields.boolean("debug"),
        security_version=fields.integer("security_version", high=2**32 - 1),
    )
    fields.done()
    return token


def parse(body: bytes) -> SimulatedToken:
    """What the evidence claims, **unverified**.

    :raises InvalidInput: the codes of :func:`parse_payload` and of ``wire.cose``.
    """
    return parse_payload(cose.peek1(body, limit=MAX_SIMULATED_EVIDENCE, what=_WHAT))
