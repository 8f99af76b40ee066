"""A TEE that is none: evidence and sealing by software keys (spec/attestation.md, section 6).

What is real in it is the measurement: a digest over the code that is installed, so that every rule about measurements
can be tried, and a changed byte of code is refused, on a machine without a TEE.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import cloister
from cloister.adapters.tee.installed import distributions as installed_distributions
from cloister.adapters.tee.installed import files
from cloister.attest.simulation import SimulatedToken, produce
from cloister.attest.simulation.parse import MEASUREMENT_LENGTH, REPORT_DATA_LENGTH
from cloister.attest.types import Evidence, TeeType
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput, Tampered, Unavailable
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context, derive
from cloister.crypto.sign import SigningKey

# What KeyService and Runtime load, by distribution; what these require is measured with them.
TRUSTED_DISTRIBUTIONS: Final = (
    "cryptography",
    "cbor2",
    "dcap-qvl",
    "httptools",
    "uvloop",
    "numpy",
    "onnxruntime",
    "ai-edge-litert",
    "obstore",
    "pg8000",
    "pycryptodome",
)

_SEALED_VERSION: Final = b"\x01"
_NONCE: Final = 12


def measure_installation(package: Path | None = None, distributions: tuple[str, ...] = TRUSTED_DISTRIBUTIONS) -> bytes:
    """SHA-384 over the installed code (clause 6.3), 48 bytes.

    Every file below the package's folder counts by its relative path and content; every distribution of the trusted
    base, and each it requires, by name, version and the SHA-256 of its list of files (``RECORD``, which holds the
    digest of each), or as absent. Interpreter caches (``__pycache__``) do not count.

    :param package: the folder; by default that of the running ``cloister``.
    :raises Unavailable: ``installation-unreadable``.
    """
    root = Path(cloister.__file__).parent if package is None else package
    total = hashlib.sha384(b"cloister/v1/insecure-simulation-measurement\x00")
    try:
        for relative, digest in sorted(files(str(root))):
            _add(total, b"file", relative.encode(), digest)
        for name, found in sorted(installed_distributions(distributions).items()):
            if found is None:
                _add(total, b"absent", name.encode())
            else:
                _add(total, b"distribution", f"{name}=={found.version}".encode(), found.record)
    except (OSError, UnicodeError) as error:
        raise Unavailable("installation-unreadable", f"the installed code cannot be measured: {error}") from error
    return total.digest()


def _add(total: hashlib._Hash, *parts: bytes) -> None:
    for part in parts:
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)


def read_platform_seed(path: Path) -> SecretBytes:
    """The seed of the simulated platform's key, from a file with 64 hexadecimal digits.

    :raises InvalidInput: ``simulation-key-malformed``.
    """
    try:
        return SecretBytes.key(bytes.fromhex(path.read_text(encoding="ascii").strip()))
    except (OSError, ValueError, InvalidInput) as error:
        raise InvalidInput(
            "simulation-key-malformed",
            f"{path} does not hold a simulation key",
            hint="It is a file with 64 hexadecimal digits.",
        ) from error


@final
class SimulatedAttester:
    """``cloister.attest.types.Attester`` without a TEE.

    :param measurement: by default that of the installation, taken once, now.
    """

    def __init__(
        self,
        key: SigningKey,
        clock: Clock,
        *,
        configuration_digest: bytes,
        measurement: bytes | None = None,
        debug: bool = False,
        security_version: int = 0,
    ) -> None:
        self._key = key
        self._clock = clock
        self._configuration_digest = configuration_digest
        self._measurement = measure_installation() if measurement is None else measurement
        self._debug = debug
        self._security_version = security_version
        if len(self._measurement) != MEASUREMENT_LENGTH:
            raise InvalidInput("measurement-length", f"a simulated measurement has {MEASUREMENT_LENGTH} bytes")

    @property
    def tee(self) -> TeeType:
        """``insecure-simulation``."""
        return TeeType.SIMULATION

    @property
    def measurement(self) -> bytes:
        """What the evidence says of the code, 48 bytes."""
        return self._measurement

    @property
    def public_key(self) -> bytes:
        """What a trust bundle must name to accept this evidence, 32 bytes."""
        return self._key.public_key

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over exactly these 64 bytes.

        :raises InvalidInput: ``report-data-length``.
        """
        if len(report_data) != REPORT_DATA_LENGTH:
            raise InvalidInput(
                "report-data-length", f"report data has {REPORT_DATA_LENGTH} bytes, this has {len(report_data)}"
            )
        token = SimulatedToken(
            key=self._key.public_key,
            measurement=self._measurement,
            configuration_digest=self._configuration_digest,
            report_data=report_data,
            issued_at=int(self._clock.now()),
            debug=self._debug,
            security_version=self._security_version,
        )
        return produce(self._key, token)


@final
class SimulatedSealer:
    """``cloister.attest.types.Sealer`` under a software secret: AES-256-GCM, one key a measurement and configuration.

    :param secret: stands for the platform's sealing secret; 32 bytes.
    """

    def __init__(self, secret: SecretBytes, *, measurement: bytes, configuration_digest: bytes) -> None:
        key = derive(
            Context.SIMULATED_SEALING,
            SecretBytes.key(secret.reveal()).reveal(),
            measurement,
            configuration_digest,
        )
        self._aead = AESGCM(key)

    def seal(self, plaintext: bytes) -> bytes:
        """Version byte, nonce, ciphertext with tag: 29 bytes more than the plaintext."""
        nonce = os.urandom(_NONCE)
        return _SEALED_VERSION + nonce + self._aead.encrypt(nonce, plaintext, Context.SIMULATED_SEALING.encode())

    def unseal(self, data: bytes) -> bytes:
        """What was sealed.

        :raises Tampered: ``unseal-failed`` when it was sealed elsewhere, by other code, or changed.
        """
        nonce, sealed = data[1 : 1 + _NONCE], data[1 + _NONCE :]
        try:
            if data[:1] != _SEALED_VERSION or len(nonce) != _NONCE:
                raise InvalidTag
            return self._aead.decrypt(nonce, sealed, Context.SIMULATED_SEALING.encode())
        except InvalidTag as error:
            raise Tampered(
                "unseal-failed",
                "the sealed data was changed, or sealed by other code, another configuration or another platform",
            ) from error
