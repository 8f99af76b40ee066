"""Sealing under a key that the hardware derives for this code on this machine (spec/attestation.md, 11.6, 11.7).

SGX gives one by EGETKEY, which Gramine shows as ``keys/_sgx_mrenclave``; the SEV-SNP firmware derives one over guest
policy and measurement (``/dev/sev-guest``). TDX and Nitro have none: a secret that must survive a restart there comes
from replicas or from outside.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path
from typing import Final, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.adapters.tee.files import DeviceFiles, OsDeviceFiles
from cloister.adapters.tee.gramine import FOLDER as GRAMINE_FOLDER
from cloister.adapters.tee.nitro import Ioctl
from cloister.attest.types import Sealer, TeeType
from cloister.base.errors import Tampered, Unavailable
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context, derive

WITHOUT_SEALING: Final = (TeeType.TDX, TeeType.NITRO)
SEV_GUEST: Final = Path("/dev/sev-guest")
GRAMINE_KEY: Final = "keys/_sgx_mrenclave"
_SGX_KEY_LENGTH: Final = 16
_VERSION: Final = b"\x01"
_NONCE: Final = 12

# struct snp_guest_request_ioctl, struct snp_derived_key_req (include/uapi/linux/sev-guest.h)
_REQUEST: Final = struct.Struct("=B7xQQQ")
_DERIVE: Final = struct.Struct("=IIQIIQ")
SNP_GET_DERIVED_KEY: Final = (3 << 30) | (_REQUEST.size << 16) | (ord("S") << 8) | 1
_MESSAGE_VERSION: Final = 1
_MIX_POLICY_AND_MEASUREMENT: Final = (1 << 0) | (1 << 3)  # GUEST_FIELD_SELECT
_ANSWER_LENGTH: Final = 64
_KEY_AT: Final = 32


@final
class HardwareSealer:
    """``cloister.attest.types.Sealer``: AES-256-GCM under a key of this platform, code and configuration.

    :param secret: what the hardware gave.
    """

    def __init__(self, tee: TeeType, secret: SecretBytes, configuration_digest: bytes) -> None:
        key = derive(Context.TEE_SEALING, secret.reveal(), tee.value.encode(), configuration_digest)
        self._aead = AESGCM(key)

    def seal(self, plaintext: bytes) -> bytes:
        """Version byte, nonce, ciphertext with tag: 29 bytes more than the plaintext."""
        nonce = os.urandom(_NONCE)
        return _VERSION + nonce + self._aead.encrypt(nonce, plaintext, Context.TEE_SEALING.encode())

    def unseal(self, data: bytes) -> bytes:
        """What was sealed.

        :raises Tampered: ``unseal-failed`` when it was sealed elsewhere, by other code, or changed.
        """
        nonce, sealed = data[1 : 1 + _NONCE], data[1 + _NONCE :]
        try:
            if data[:1] != _VERSION or len(nonce) != _NONCE:
                raise InvalidTag
            return self._aead.decrypt(nonce, sealed, Context.TEE_SEALING.encode())
        except InvalidTag as error:
            raise Tampered(
                "unseal-failed",
                "the sealed data was changed, or sealed by other code, another configuration or another platform",
            ) from error


def open_sealer(
    tee: TeeType, configuration_digest: bytes, *, privilege_level: int = 0, root: Path = Path("/")
) -> Sealer:
    """The sealer of this machine's TEE.

    :param privilege_level: the VMPL that this process runs at (SEV-SNP).
    :param root: where the machine's file system is; another one only to try this out.
    :raises Unavailable: ``sealing-unavailable`` where the TEE has no sealing key, or does not give it.
    """
    if tee is TeeType.SGX:
        return gramine_sealer(configuration_digest, OsDeviceFiles(root / GRAMINE_FOLDER.relative_to("/")))
    if tee is TeeType.SEV_SNP:
        device = root / SEV_GUEST.relative_to("/")
        return snp_sealer(configuration_digest, privilege_level=privilege_level, device=device)
    raise Unavailable(
        "sealing-unavailable",
        f"{tee.value} has no key that survives a restart",
        hint="Keep what must survive a restart elsewhere: on SGX or SEV-SNP, or with a replica that keeps running.",
    )


def gramine_sealer(configuration_digest: bytes, files: DeviceFiles | None = None) -> HardwareSealer:
    """Under the key of this MRENCLAVE on this machine.

    :raises Unavailable: ``sealing-unavailable``.
    """
    device = OsDeviceFiles(GRAMINE_FOLDER) if files is None else files
    try:
        key = device.read(GRAMINE_KEY, limit=_SGX_KEY_LENGTH)
    except (Unavailable, Tampered) as error:
        raise Unavailable("sealing-unavailable", f"Gramine does not give its sealing key: {error.message}") from error
    if len(key) != _SGX_KEY_LENGTH or not any(key):
        raise Unavailable("sealing-unavailable", "Gramine's sealing key is not set")
    return HardwareSealer(TeeType.SGX, SecretBytes(key), configuration_digest)


def snp_sealer(
    configuration_digest: bytes,
    *,
    privilege_level: int = 0,
    device: Path = SEV_GUEST,
    ioctl: Ioctl = fcntl.ioctl,
) -> HardwareSealer:
    """Under a key that the firmware derives from the chip's key, the guest policy and the launch measurement.

    :raises Unavailable: ``sealing-unavailable``.
    """
    question = ctypes.create_string_buffer(
        _DERIVE.pack(0, 0, _MIX_POLICY_AND_MEASUREMENT, privilege_level, 0, 0), _DERIVE.size
    )
    answer = ctypes.create_string_buffer(_ANSWER_LENGTH)
    argument = bytearray(
        _REQUEST.pack(_MESSAGE_VERSION, ctypes.addressof(question), ctypes.addressof(answer), (1 << 64) - 1)
    )
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            ioctl(descriptor, SNP_GET_DERIVED_KEY, argument)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unavailable("sealing-unavailable", f"{device} does not give a key: {error.strerror}") from error
    status, key = int.from_bytes(answer.raw[:4], "little"), answer.raw[_KEY_AT:]
    ctypes.memset(answer, 0, _ANSWER_LENGTH)
    if status != 0 or not any(key):
        raise Unavailable("sealing-unavailable", f"the firmware refuses to derive a key: status {status:#x}")
    return HardwareSealer(TeeType.SEV_SNP, SecretBytes(key), configuration_digest)
