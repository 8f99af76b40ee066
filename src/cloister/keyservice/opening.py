"""What a KeyService is started with: its measured configuration, its TEE, its operator's trust bundle."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cloister.attest.bundle import TrustBundle, open_bundle
from cloister.attest.types import Attester, Sealer
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import KIB, MAX_BUNDLE
from cloister.crypto.sign import SigningKey
from cloister.keyservice.settings import Settings
from cloister.wire.custody import Code


@dataclass(frozen=True, slots=True)
class Tee:
    """Where it runs: evidence, sealing, and what the evidence says of the code.

    :param sealer: ``None`` where the TEE has no key that survives a restart: a replica's root secret is in memory only.
    """

    attester: Attester
    sealer: Sealer | None
    measurement: bytes

    def code(self, settings: Settings) -> Code:
        """What a recovery record names it by (clause 13.24.4)."""
        return Code(self.attester.tee.value, self.measurement, settings.measured().digest)


def read_settings(path: Path | None) -> Settings:
    """The configuration file, TOML.

    :raises InvalidInput: ``configuration-malformed``.
    """
    if path is None:
        return Settings()
    try:
        with path.open("rb") as file:
            return Settings.read(tomllib.loads(file.read(64 * KIB).decode()))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput("configuration-malformed", f"{path} is not readable as TOML: {error}") from error


def simulated_tee(key_file: Path, settings: Settings, clock: Clock) -> Tee:
    """The simulated TEE, measured over the installed code; the key file is the "platform".

    :param key_file: 64 hexadecimal digits, the seed of an Ed25519 key.
    :raises InvalidInput: ``simulation-key-malformed``. :raises Unavailable: ``installation-unreadable``.
    """
    from cloister.adapters.tee.simulation import (
        SimulatedAttester,
        SimulatedSealer,
        measure_installation,
        read_platform_seed,
    )

    seed = read_platform_seed(key_file)
    key, measurement, digest = SigningKey.from_seed(seed), measure_installation(), settings.measured().digest
    attester = SimulatedAttester(key, clock, configuration_digest=digest, measurement=measurement)
    return Tee(attester, SimulatedSealer(seed, measurement=measurement, configuration_digest=digest), measurement)


def hardware_tee(settings: Settings) -> Tee:
    """The TEE of this machine, whichever it is; never simulation. One of several replicas needs no sealing key.

    :raises Unavailable: ``evidence-unavailable``, ``sealing-unavailable``.
    :raises Refused: ``tee-ambiguous``. :raises Tampered: ``evidence-device-lied``.
    """
    from cloister.adapters.tee.open import open_tee

    found = open_tee(settings.measured().digest, sealing_needed=not settings.replicas)
    return Tee(found.attester, found.sealer, found.measurement)


def offered_bundle(path: Path | None, settings: Settings) -> Callable[[], bytes] | None:
    """The operator's trust bundle file, read anew each time; ``None`` where none is configured.

    :raises InvalidInput: ``bundle-missing`` when the configuration names a bundle root and there is no file;
        ``bundle-unexpected`` the other way round.
    """
    if not settings.bundle_root:
        if path is not None:
            raise InvalidInput(
                "bundle-unexpected",
                "a trust bundle was given, but the configuration names no bundle_root",
                hint="Add bundle_root to the KeyService's configuration; it is measured.",
            )
        return None
    if path is None:
        raise InvalidInput("bundle-missing", "the configuration names a bundle_root; say --bundle FILE")

    def read() -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(MAX_BUNDLE + 1)
        except OSError as error:
            raise Unavailable("bundle-unreadable", f"{path} cannot be read: {error.strerror}") from error

    return read


def trust_bundle(offered: Callable[[], bytes], settings: Settings, clock: Clock) -> Callable[[], TrustBundle]:
    """What is offered, believed; for one that has no log yet."""
    return lambda: open_bundle(offered(), settings.bundle_root, settings.bundle_version, clock.now())
