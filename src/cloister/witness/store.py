"""What a witness keeps: one small file a log, replaced whole or not at all, on the disk before anything is signed.

A file is SHA-256 of the rest, then CBOR: the log's key, its newest co-signed head, that head's note, and proofs of
forks. A crash at any point leaves the file as it was or as it was to become, for the new content lies on the disk
under another name before it takes the old one's place.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol, final

from cloister.base.errors import InvalidInput, Refused, Tampered, Unavailable
from cloister.base.limits import (
    KIB,
    MAX_CHECKPOINT,
    MAX_KEPT_CONFLICTS,
    MAX_LOG_KEYS,
    MAX_ROOT_GENERATIONS,
    MAX_WITNESSED_LOGS,
)
from cloister.crypto.digest import same
from cloister.log.witness import Witnessed
from cloister.wire import cbor
from cloister.wire.cbor import Fields
from cloister.wire.log_keys import LogKeys

LOCK_FILE: Final = "lock"
LOGS: Final = "logs"
_SUFFIX: Final = ".log"
NOTHING: Final = Witnessed()  # seen of a log
_WHAT: Final = "the witness's record"
_LIMIT: Final = (MAX_KEPT_CONFLICTS + 2) * MAX_CHECKPOINT + 2 * MAX_LOG_KEYS


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one log.

    :param log_keys: from the first one, which it was told, to the only one whose checkpoints are co-signed.
    :param note: the checkpoint that was co-signed last, as it was signed by the log; empty before the first.
    :param conflicts: checkpoints signed by the log that contradict one co-signed here, each with that one before it.
    :param rivals: certificates by one of its log keys for another successor than the one that is followed.
    """

    log_keys: LogKeys
    newest: Witnessed = NOTHING
    note: bytes = b""
    conflicts: tuple[bytes, ...] = ()
    rivals: tuple[bytes, ...] = ()

    @property
    def log_key(self) -> bytes:
        """The present log key."""
        return self.log_keys.current

    @property
    def keyservice(self) -> bytes:
        """Whose log it is."""
        return self.log_keys.keyservice

    def with_rival(self, certificate: bytes) -> Record:
        """The same, with proof that a log key named two successors; unchanged when it is known, or enough are."""
        if certificate in self.rivals or len(self.rivals) + 1 > MAX_ROOT_GENERATIONS:
            return self
        return replace(self, rivals=(*self.rivals, certificate))

    def with_conflict(self, note: bytes) -> Record:
        """The same, with proof of a fork; unchanged when it is known, or enough are."""
        if note in self.conflicts or len(self.conflicts) + 2 > MAX_KEPT_CONFLICTS:
            return self
        return replace(self, conflicts=(*self.conflicts, self.note, note))

    def encode(self) -> bytes:
        """The file's content."""
        content = self.log_keys.fields() | {
            "size": self.newest.size,
            "root": self.newest.root,
            "time": self.newest.time,
            "note": self.note,
            "conflicts": list(self.conflicts),
        }
        if self.rivals:
            content["rivals"] = list(self.rivals)
        data = cbor.encode(content)
        return hashlib.sha256(data).digest() + data

    @staticmethod
    def decode(data: bytes) -> Record:
        """:raises Tampered: ``witness-store-corrupt``."""
        if not same(hashlib.sha256(data[32:]).digest(), data[:32]):
            raise _corrupt("does not have its checksum")
        try:
            fields = Fields(cbor.decode(data[32:], limit=_LIMIT, what=_WHAT), _WHAT)
            newest = Witnessed(fields.integer("size"), fields.blob("root", exactly=32), fields.integer("time"))
            conflicts = tuple(fields.items("conflicts", limit=MAX_KEPT_CONFLICTS))
            note = fields.blob("note", limit=MAX_CHECKPOINT)
            rivals = tuple(fields.items("rivals", limit=MAX_ROOT_GENERATIONS)) if fields.has("rivals") else ()
            record = Record(LogKeys.take(fields), newest, note, conflicts, rivals)
            fields.done()
        except (InvalidInput, Tampered) as error:
            raise _corrupt("is malformed") from error
        if not all(type(item) is bytes for item in (*conflicts, *rivals)):
            raise _corrupt("is malformed")
        return record


class Disk(Protocol):
    """Port: the four writes of which a crash may fall between any two. Real: :class:`OsDisk`."""

    def write(self, path: Path, data: bytes) -> None:
        """Make or replace a file's content, not yet durable."""

    def sync(self, path: Path) -> None:
        """Wait until a file or folder is on the disk."""

    def rename(self, old: Path, new: Path) -> None:
        """Replace ``new`` by ``old``."""

    def link(self, old: Path, new: Path) -> None:
        """Give ``old`` a further name. :raises FileExistsError: the name is taken."""


class OsDisk:
    """The operating system's."""

    def write(self, path: Path, data: bytes) -> None:
        """See the port."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)

    def sync(self, path: Path) -> None:
        """See the port."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """See the port."""
        old.replace(new)

    def link(self, old: Path, new: Path) -> None:
        """See the port."""
        os.link(old, new)


@final
class WitnessStore:
    """Records in a folder. Whoever changes one holds :meth:`exclusive`; adding a log needs no lock."""

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        """:raises Unavailable: ``witness-store-missing``: never made, or lost: then the witness must be retired."""
        self._folder = folder
        self._logs = folder / LOGS
        self._disk = disk or OsDisk()
        if not self._logs.is_dir():
            raise Unavailable(
                "witness-store-missing",
                f"{self._logs} is not there",
                hint="A new witness begins with `cloister witness init`. One whose store was lost must be retired: "
                "it could co-sign another history than the one it saw.",
            )

    @staticmethod
    def make(folder: Path) -> None:
        """:raises Unavailable: ``witness-store-failed``."""
        try:
            (folder / LOGS).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _failed("made", error) from error

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """No other process co-signs from this folder meanwhile.

        :raises Unavailable: ``witness-running``.
        """
        descriptor = os.open(self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Unavailable("witness-running", f"another process is the witness of {self._folder}") from error
            yield
        finally:
            os.close(descriptor)

    def add(self, log_key: bytes) -> Record:
        """Begin to witness a log.

        :param log_key: its first one; later ones are followed by themselves (13.27.7).
        :raises Refused: ``witness-log-known``, ``limit-reached``. :raises Unavailable: ``witness-store-failed``.
        """
        if len(self.logs()) >= MAX_WITNESSED_LOGS:
            raise Refused("limit-reached", f"a witness keeps at most {MAX_WITNESSED_LOGS} logs")
        record = Record(LogKeys(log_key))
        path = self._path(record.keyservice)
        temporary = path.with_suffix(f".{secrets.token_hex(8)}")
        try:
            self._disk.write(temporary, record.encode())
            self._disk.sync(temporary)
            self._disk.link(temporary, path)
            self._disk.sync(self._logs)
        except FileExistsError as error:
            raise Refused("witness-log-known", "this log is witnessed here already; it is not begun anew") from error
        except OSError as error:
            raise _failed("written", error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        return record

    def read(self, keyservice: bytes) -> Record | None:
        """What is known of a KeyService's log; ``None`` for one that was not added.

        :raises Tampered: ``witness-store-corrupt``. :raises Unavailable: ``witness-store-failed``.
        """
        try:
            with self._path(keyservice).open("rb") as file:
                data = file.read(_LIMIT + KIB)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed("read", error) from error
        record = Record.decode(data)
        if record.keyservice != keyservice:
            raise _corrupt("is of another log")
        return record

    def replace(self, before: Record, after: Record) -> None:
        """Durable on return. After an error the disk holds one of the two.

        :raises Tampered: ``witness-went-back``: a fault of ours, which stops here. :raises Unavailable:
            ``witness-store-failed``.
        """
        back = after.newest.size < before.newest.size or after.newest.time < before.newest.time
        if back or not after.log_keys.continues(before.log_keys):
            raise Tampered("witness-went-back", "a witness never goes back in size, time or log keys")
        path = self._path(after.keyservice)
        temporary = path.with_suffix(".new")
        try:
            self._disk.write(temporary, after.encode())
            self._disk.sync(temporary)
            self._disk.rename(temporary, path)
            self._disk.sync(self._logs)
        except OSError as error:
            raise _failed("written", error) from error

    def logs(self) -> list[bytes]:
        """The KeyServices whose logs are witnessed."""
        try:
            return sorted(bytes.fromhex(path.stem) for path in self._logs.glob(f"*{_SUFFIX}"))
        except (OSError, ValueError) as error:
            raise _corrupt("has a name that is none") from error

    def _path(self, keyservice: bytes) -> Path:
        return self._logs / (keyservice.hex() + _SUFFIX)


def _corrupt(what: str) -> Tampered:
    return Tampered(
        "witness-store-corrupt",
        f"{_WHAT} {what}",
        hint="Somebody changed it, or the disk fails. Do not restore an older one: retire this witness.",
    )


def _failed(what: str, error: OSError) -> Unavailable:
    return Unavailable("witness-store-failed", f"{_WHAT} cannot be {what}: {error.strerror}", retry_after=5.0)
