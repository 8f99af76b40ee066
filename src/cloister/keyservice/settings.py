"""What a KeyService is configured with; every field is measured (spec/protocol.md, 5.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from cloister.access.decide import LeaseBounds
from cloister.attest.anchors import TrustAnchors, production_anchors
from cloister.attest.configuration import configure
from cloister.attest.types import ClaimValue, Configuration
from cloister.base import limits
from cloister.base.errors import InvalidInput
from cloister.base.ids import ID_LENGTH
from cloister.wire.custody import check_threshold

NO_ROLLBACK_PROTECTION: Final = "none"
WITNESSES: Final = "witnesses"
PRODUCTION: Final = "production"
NO_ANCHORS: Final = "none"


@dataclass(frozen=True, slots=True)
class Settings:
    """The measured configuration.

    :param trust_anchors: ``production``: the vendors' pinned roots; ``none``: only the simulation keys.
    :param bundle_root: pinned key of the trust bundle whose digest is bound into the evidence; empty for none.
    :param bundle_version: the least version of it that is accepted.
    :param simulation_keys: Ed25519 public keys whose ``insecure-simulation`` evidence a runtime may bring.
    :param rollback_protection: ``none``: a single node, which says so in its evidence; ``witnesses`` (claim S7).
    :param witnesses: their Ed25519 public keys; ``witness_threshold`` of them, more than half, confirm every head.
    :param replicas: how many replicas share the root secret; 0: it runs alone.
    :param auditors: ids of identities to which the whole log is opened (clause 13.28); none by default.
    :param custodians: ids of those of whom ``custodian_threshold`` can bring the KeyService back (clause 13.24).
    :param epoch_s: one quote and one call key so long; ``epoch_grace_s``: the old call key so much longer.
    :param session_s: a runtime attests again after this.
    :param lease_s: longest lease; ``lease_requests``: most requests of one.
    :param service_key_epoch_s: a service key is used so long.
    """

    trust_anchors: str = NO_ANCHORS
    bundle_root: bytes = b""
    bundle_version: int = 0
    simulation_keys: tuple[bytes, ...] = ()
    rollback_protection: str = NO_ROLLBACK_PROTECTION
    epoch_s: int = limits.KEYSERVICE_EPOCH_S
    epoch_grace_s: int = limits.KEYSERVICE_EPOCH_GRACE_S
    session_s: int = limits.SESSION_LIFETIME_S
    lease_s: int = limits.LEASE_S
    lease_requests: int = limits.LEASE_REQUESTS
    service_key_epoch_s: int = limits.SERVICE_KEY_EPOCH_S
    witnesses: tuple[bytes, ...] = ()
    witness_threshold: int = 0
    replicas: int = 0
    auditors: tuple[bytes, ...] = ()
    custodians: tuple[bytes, ...] = ()
    custodian_threshold: int = 0

    def __post_init__(self) -> None:
        """:raises InvalidInput: ``configuration-malformed``."""
        if self.trust_anchors not in (PRODUCTION, NO_ANCHORS):
            raise _malformed("trust_anchors", f"is {PRODUCTION!r} or {NO_ANCHORS!r}")
        self._check_witnesses()
        self._check_replicas()
        self._check_auditors()
        self._check_custodians()
        if len(self.bundle_root) not in (0, 32):
            raise _malformed("bundle_root", "is no Ed25519 public key of 32 bytes")
        for key in self.simulation_keys:
            if len(key) != 32:
                raise _malformed("simulation_keys", "has an entry that is no Ed25519 public key of 32 bytes")
        bounds = {
            "bundle_version": (0, 2**40),
            "epoch_s": (10, 7 * 86400),
            "epoch_grace_s": (1, 86400),
            "session_s": (1, 86400),
            "lease_s": (1, limits.LEASE_S),
            "lease_requests": (1, limits.LEASE_REQUESTS),
            "service_key_epoch_s": (limits.CLOCK_SKEW_S, 30 * 86400),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise _malformed(name, f"is {getattr(self, name)}, not within {low}..{high}")
        if self.epoch_grace_s > self.epoch_s:
            raise _malformed("epoch_grace_s", "is longer than an epoch")

    def _check_witnesses(self) -> None:
        count = len(self.witnesses)
        if self.rollback_protection == NO_ROLLBACK_PROTECTION:
            if count or self.witness_threshold:
                raise _malformed("witnesses", f"are named, but rollback_protection is {NO_ROLLBACK_PROTECTION!r}")
            return
        if self.rollback_protection != WITNESSES:
            raise _malformed("rollback_protection", f"is {NO_ROLLBACK_PROTECTION!r} or {WITNESSES!r}")
        if not 1 <= count <= limits.MAX_WITNESSES or len(set(self.witnesses)) != count:
            raise _malformed("witnesses", f"are none, more than {limits.MAX_WITNESSES}, or one of them twice")
        if any(len(key) != 32 for key in self.witnesses):
            raise _malformed("witnesses", "has an entry that is no Ed25519 public key of 32 bytes")
        if not count < 2 * self.witness_threshold <= 2 * count:
            raise _malformed(
                "witness_threshold", f"is {self.witness_threshold}: more than half of the {count} witnesses must sign"
            )

    def _check_replicas(self) -> None:
        """Clause 13.14: without witnesses two would fork the log; without a bundle nothing says what may be one."""
        if self.replicas == 0:
            return
        if not 2 <= self.replicas <= limits.MAX_REPLICAS:
            raise _malformed("replicas", f"is {self.replicas}, not 0 or within 2..{limits.MAX_REPLICAS}")
        if self.rollback_protection != WITNESSES:
            raise _malformed("replicas", f"need rollback_protection = {WITNESSES!r}: nothing else tells forks apart")
        if not self.bundle_root:
            raise _malformed("replicas", "need a bundle_root: its trust bundle says which code may be one")

    def _check_auditors(self) -> None:
        count = len(self.auditors)
        if count > limits.MAX_AUDITORS or len(set(self.auditors)) != count:
            raise _malformed("auditors", f"are more than {limits.MAX_AUDITORS}, or one of them twice")
        if any(len(name) != ID_LENGTH for name in self.auditors):
            raise _malformed("auditors", f"has an entry that is no identity's id of {ID_LENGTH} bytes")

    def _check_custodians(self) -> None:
        """Clauses 13.24 and 13.24.2."""
        if not self.custodians and not self.custodian_threshold:
            return
        if any(len(each) != 32 for each in self.custodians) or len(set(self.custodians)) != len(self.custodians):
            raise _malformed("custodians", "has an entry that is no id of 32 bytes, or one twice")
        try:
            check_threshold(self.custodian_threshold, len(self.custodians))
        except InvalidInput as error:
            raise _malformed("custodian_threshold", f"does not fit: {error.message}") from error
        if not self.bundle_root:
            raise _malformed("custodians", "need a bundle_root: its trust bundle says which code may be brought back")

    @staticmethod
    def read(values: Mapping[str, Any]) -> Settings:
        """From a TOML table; keys in hexadecimal.

        :raises InvalidInput: ``configuration-malformed``.
        """
        known = {item.name for item in fields(Settings)}
        given: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise _malformed(name[:64], "is not a setting of the KeyService")
            if name in ("simulation_keys", "custodians", "witnesses", "auditors"):
                given[name] = _keys(name, value)
            elif name == "bundle_root":
                given[name] = _keys(name, [value])[0]
            elif type(value) is not (str if name in ("trust_anchors", "rollback_protection") else int):
                raise _malformed(name, f"is a {type(value).__name__}")
            else:
                given[name] = value
        return Settings(**given)

    def anchors(self) -> TrustAnchors:
        """The roots under which runtimes' evidence is verified."""
        anchors = production_anchors() if self.trust_anchors == PRODUCTION else TrustAnchors()
        return anchors.with_simulation(self.simulation_keys)

    def bounds(self) -> LeaseBounds:
        """The KeyService's own bounds on leases."""
        return LeaseBounds(self.lease_s, self.lease_requests)

    def measured(self) -> Configuration:
        """The configuration as it is digested into the evidence: the roots themselves, not their name."""
        anchors = self.anchors()
        values: dict[str, ClaimValue] = {
            "role": "keyservice",
            "bundle_root": self.bundle_root,
            "bundle_version": self.bundle_version,
            "intel_roots": tuple(sorted(hashlib.sha256(root).hexdigest() for root in anchors.intel_root_der)),
            "amd_roots": tuple(
                sorted(f"{name}:{pin.hex()}" for name, pins in anchors.amd_arks.items() for pin in pins)
            ),
            "nitro_roots": tuple(sorted(pin.hex() for pin in anchors.nitro_root)),
            "simulation_keys": tuple(sorted(key.hex() for key in self.simulation_keys)),
            "rollback_protection": self.rollback_protection,
            "witnesses": tuple(sorted(key.hex() for key in self.witnesses)),
            "witness_threshold": self.witness_threshold,
            "replicas": self.replicas,
            "auditors": tuple(sorted(name.hex() for name in self.auditors)),
            "custodians": tuple(sorted(key.hex() for key in self.custodians)),
            "custodian_threshold": self.custodian_threshold,
        }
        for name in ("epoch_s", "epoch_grace_s", "session_s", "lease_s", "lease_requests", "service_key_epoch_s"):
            values[name] = int(getattr(self, name))
        return configure(values)


def _keys(name: str, value: object) -> tuple[bytes, ...]:
    try:
        return tuple(bytes.fromhex(item) for item in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise _malformed(name, "is not a list of keys in hexadecimal") from error


def _malformed(name: str, what: str) -> InvalidInput:
    return InvalidInput("configuration-malformed", f"the KeyService's configuration: {name} {what}")
