"""A simulated TEE with everything that a test needs around it: keys, clock, evidence, anchors, policy, trust bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from cloister.adapters.tee.simulation import SimulatedAttester, SimulatedSealer
from cloister.attest.anchors import TrustAnchors
from cloister.attest.bundle import TrustBundle
from cloister.attest.configuration import ISOLATION_LEVELS, configure
from cloister.attest.policy import Policy, Rule
from cloister.attest.types import ClaimValue, Configuration, TeeType
from cloister.base.clock import Clock
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.testing.clock import FakeClock


@dataclass(frozen=True)
class SimulatedTee:
    """One code (``name``) with one configuration on one platform (``key``).

    :param name: stands for the code: another name is another measurement.
    :param values: of the measured configuration.
    """

    name: str = "code"
    values: Mapping[str, ClaimValue] = field(default_factory=lambda: {"isolation": "shared"})
    key: SigningKey = field(default_factory=SigningKey.generate)
    clock: Clock = field(default_factory=FakeClock)
    debug: bool = False

    @property
    def measurement(self) -> bytes:
        """SHA-384 of the name, 48 bytes."""
        return hashlib.sha384(self.name.encode()).digest()

    @property
    def configuration(self) -> Configuration:
        """The measured configuration."""
        return configure(self.values)

    def attester(self) -> SimulatedAttester:
        """Evidence of this code with this configuration."""
        return SimulatedAttester(
            self.key,
            self.clock,
            configuration_digest=self.configuration.digest,
            measurement=self.measurement,
            debug=self.debug,
        )

    def sealer(self) -> SimulatedSealer:
        """Sealing for this code with this configuration on this platform."""
        return SimulatedSealer(
            self.key.seed(), measurement=self.measurement, configuration_digest=self.configuration.digest
        )

    def anchors(self) -> TrustAnchors:
        """Accept evidence of this platform only."""
        return TrustAnchors(simulation_keys=(self.key.public_key,))

    def rule(self, name: str = "simulated") -> Rule:
        """A rule that accepts this code with this configuration, and nothing else."""
        return Rule.of(
            name,
            TeeType.SIMULATION,
            {
                "measurement": [self.measurement],
                "minimum_security_version": 0,
                "maximum_age_s": 3600,
                "configuration": [self.configuration.digest],
                "isolation": list(ISOLATION_LEVELS) if "isolation" in self.values else "any-isolation",
            },
        )

    def policy(self, *, co_tenancy: bool = False) -> Policy:
        """A policy of that rule alone."""
        return Policy((self.rule(),), co_tenancy)

    def bundle(self, root: SigningKey, *, version: int = 1, accept_rollback_unsafe: bool = True) -> TrustBundle:
        """A trust bundle that names this code as KeyService, in force for a day from now."""
        now = int(self.clock.now())
        return TrustBundle(
            root=root.public_key,
            version=version,
            name="test",
            issued_at=now,
            expires_at=now + 86_400,
            keyservice=self.policy(),
            accept_simulation=True,
            simulation_keys=(self.key.public_key,),
            accept_rollback_unsafe=accept_rollback_unsafe,
        )


def simulated_tee(name: str, seed: int = 1, **values: ClaimValue) -> SimulatedTee:
    """A simulated TEE that is the same at every run; ``values`` are those of its configuration.

    :param seed: of the platform's key, below 256.
    """
    key = SigningKey.from_seed(SecretBytes(bytes([seed]) * 32))
    return SimulatedTee(name, values or {"isolation": "shared"}, key)
