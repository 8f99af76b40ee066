"""How a runtime is started, and what of it is measured (spec/attestation.md, clause 9.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.attest.configuration import configure
from cloister.attest.types import Configuration
from cloister.base.errors import InvalidInput
from cloister.base.limits import MIB
from cloister.runtime.isolation import Isolation

ENGINES: Final = ("litert", "onnx")
_MAX_SLOTS: Final = 1024


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """Everything that changes what a runtime does with keys, models or requests.

    :param keyservice: id of the only KeyService it speaks to; empty for whichever the trust bundle means.
    :param bundle_root: pinned key of the trust bundle, and ``bundle_version`` the least version accepted.
    :param concurrency: requests computed at once; ``strict`` isolation allows one.
    :param memory_mb: MiB that resident models may take together.
    :param co_tenancy: whether models of several owners may be resident where all policies concerned allow it.
    :param threads: threads of one inference.
    :param queue: requests that may wait for a slot. :param deadline_s: and for how long.
    """

    bundle_root: bytes
    bundle_version: int = 1
    keyservice: bytes = b""
    isolation: Isolation = Isolation.SHARED
    concurrency: int = 4
    memory_mb: int = 2048
    co_tenancy: bool = True
    threads: int = 1
    queue: int = 64
    deadline_s: int = 30
    engines: tuple[str, ...] = ENGINES

    def __post_init__(self) -> None:
        """:raises InvalidInput: ``option-range``."""
        for name, value, low, high in (
            ("concurrency", self.concurrency, 1, _MAX_SLOTS),
            ("memory-mb", self.memory_mb, 1, 1 << 24),
            ("threads", self.threads, 1, _MAX_SLOTS),
            ("queue", self.queue, 0, 65536),
            ("deadline", self.deadline_s, 1, 3600),
            ("bundle-version", self.bundle_version, 1, 1 << 40),
        ):
            if not low <= value <= high:
                raise InvalidInput("option-range", f"--{name} is {value}; {low} to {high} are accepted")
        if self.isolation is Isolation.STRICT and self.concurrency != 1:
            raise InvalidInput("option-range", "strict isolation serves one request at a time: --concurrency 1")
        if len(self.bundle_root) != 32 or len(self.keyservice) not in (0, 32):
            raise InvalidInput("option-range", "--bundle-root and --keyservice-id are 64 hexadecimal digits")

    @property
    def memory_bytes(self) -> int:
        """The budget for models."""
        return self.memory_mb * MIB

    def measured(self) -> Configuration:
        """What evidence binds, and policies name by digest."""
        return configure(
            {
                "role": "runtime",
                "bundle_root": self.bundle_root,
                "bundle_version": self.bundle_version,
                "keyservice": self.keyservice,
                "isolation": self.isolation.value,
                "co_tenancy": self.co_tenancy,
                "concurrency": self.concurrency,
                "memory_mb": self.memory_mb,
                "threads": self.threads,
                "queue": self.queue,
                "deadline_s": self.deadline_s,
                "engines": tuple(sorted(self.engines)),
            }
        )
