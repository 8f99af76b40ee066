"""What an identity keeps beside its key: model keys, request keys, its last sequence number, log heads seen.

One file an identity, encrypted under a key derived from the identity's own, replaced atomically at each change. Several
processes of one user may use it at once: changes are made under a lock on the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.base.errors import Tampered
from cloister.base.secret import SecretBytes
from cloister.client.files import read_private, write_private
from cloister.client.identity import Identity
from cloister.crypto.digest import Context, derive
from cloister.wire.calls import LogHead
from cloister.wire.log_keys import LogKeys

FILE: Final = "keyring"


@dataclass(frozen=True, slots=True)
class ModelKey:
    """An owner's key to one version of his model."""

    manifest_digest: bytes
    version: int
    key: SecretBytes


@dataclass(frozen=True, slots=True)
class RequestKey:
    """A user's key to a model: what he consented to, and how.

    :param entry: where it was consented to, and :param pending: until when that waits for a second person, or 0.
    """

    mode: str
    policy_digest: bytes
    manifest_digest: bytes | None
    key: SecretBytes
    entry: int = field(default=-1, compare=False)
    pending: int = field(default=0, compare=False)

    def place(self) -> dict[str, int]:
        """Of a consent that was given just now: its log entry, and until when it waits for a second person, or 0."""
        return {"entry": self.entry, "pending": self.pending}


class Keyring:
    """The keys of one identity."""

    def __init__(self, identity: Identity) -> None:
        self._path = identity.folder / FILE
        self._lock_path = identity.folder / ".lock"
        self._key = derive(Context.KEYRING, identity.key.seed().reveal(), identity.id)
        self._id = identity.id

    # --- sequence numbers and heads ---

    def next_sequence(self, keyservice: bytes, now: float) -> int:
        """Above all earlier ones; from the time in ms, so that a lost file or a second machine does not repeat one."""
        with self._change() as state:
            sequences = state.setdefault("sequences", {})
            value = max(int(now * 1000), sequences.get(keyservice.hex(), 0) + 1)
            sequences[keyservice.hex()] = value
            return int(value)

    def newest(self, keyservice: bytes) -> LogHead | None:
        """The newest log head seen (``adapters.keyservice.HeadMemory``)."""
        entry = self._read().get("heads", {}).get(keyservice.hex())
        return LogHead(entry["size"], bytes.fromhex(entry["root"]), entry["time"]) if entry else None

    def remember(self, keyservice: bytes, head: LogHead) -> None:
        """Keep it."""
        with self._change() as state:
            entry = {"size": head.size, "root": head.root.hex(), "time": head.time}
            heads = state.setdefault("heads", {})
            if heads.get(keyservice.hex(), {"size": -1})["size"] < head.size:
                heads[keyservice.hex()] = entry

    def log_keys(self, keyservice: bytes) -> LogKeys | None:
        """The log keys seen (``adapters.keyservice.HeadMemory``)."""
        entry = self._read().get("log_keys", {}).get(keyservice.hex())
        return LogKeys.read([bytes.fromhex(item) for item in entry]) if entry else None

    def remember_log_keys(self, keys: LogKeys) -> None:
        """Keep them."""
        with self._change() as state:
            kept = state.setdefault("log_keys", {})
            if len(kept.get(keys.keyservice.hex(), ())) < len(keys.items()):
                kept[keys.keyservice.hex()] = [item.hex() for item in keys.items()]

    # --- an owner's model keys ---

    def put_model_key(self, model: str, key: ModelKey) -> None:
        """Keep the key of a version."""
        with self._change() as state:
            state.setdefault("models", {}).setdefault(model, {})[key.manifest_digest.hex()] = {
                "version": key.version,
                "key": key.key.reveal().hex(),
            }

    def model_keys(self, model: str) -> list[ModelKey]:
        """All versions, oldest first."""
        entries = self._read().get("models", {}).get(model, {})
        keys = [
            ModelKey(bytes.fromhex(digest), entry["version"], SecretBytes(bytes.fromhex(entry["key"])))
            for digest, entry in entries.items()
        ]
        return sorted(keys, key=lambda key: key.version)

    # --- a user's request keys ---

    def put_request_key(self, model: str, key: RequestKey) -> None:
        """Keep what was consented to."""
        with self._change() as state:
            state.setdefault("requests", {})[model] = _request_fields(key)

    def request_key(self, model: str) -> RequestKey | None:
        """The key in use."""
        entry = self._read().get("requests", {}).get(model)
        return None if entry is None else _request_key(entry)

    def put_waiting_key(self, model: str, entry: int, until: int, key: RequestKey) -> None:
        """Keep a key that is used once a second person has said it too: what waits in this log entry."""
        with self._change() as state:
            waiting = state.setdefault("waiting", {}).setdefault(model, {})
            waiting[str(entry)] = {"until": until, **_request_fields(key)}

    def waiting_entries(self, model: str) -> list[int]:
        """Log entries in which keys of this model wait."""
        return sorted(int(entry) for entry in self._read().get("waiting", {}).get(model, {}))

    def drop_waiting_keys(self, model: str, now: float) -> None:
        """Forget those that nobody can approve any more."""
        with self._change() as state:
            waiting = state.get("waiting", {}).get(model, {})
            for entry in [entry for entry, key in waiting.items() if key["until"] <= now]:
                del waiting[entry]

    def adopt_waiting_key(self, model: str, entry: int) -> None:
        """What waited in this entry is in force; what waited before it comes to nothing."""
        with self._change() as state:
            waiting = state.get("waiting", {}).get(model, {})
            if str(entry) in waiting:
                state.setdefault("requests", {})[model] = waiting[str(entry)]
            for other in [other for other in waiting if int(other) <= entry]:
                del waiting[other]

    def request_models(self) -> list[str]:
        """Models with a request key here."""
        return sorted(self._read().get("requests", {}))

    def drop_request_key(self, model: str) -> None:
        """Forget it."""
        with self._change() as state:
            state.get("requests", {}).pop(model, None)
            state.get("waiting", {}).pop(model, None)

    # --- the file ---

    @contextlib.contextmanager
    def _change(self) -> Iterator[dict[str, Any]]:
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            state = self._read()
            before = json.dumps(state, sort_keys=True)
            yield state
            if json.dumps(state, sort_keys=True) != before:
                self._write(state)
        finally:
            os.close(descriptor)

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        data = read_private(self._path)
        try:
            state: dict[str, Any] = json.loads(AESGCM(self._key).decrypt(data[:12], data[12:], self._id))
        except (InvalidTag, ValueError) as error:
            raise Tampered(
                "keyring-tampered",
                f"{self._path} was changed, or belongs to another identity",
                hint="Restore it from a backup. Statements can be made again; lost model keys mean packing again.",
            ) from error
        return state

    def rekeyed(self, identity: Identity) -> Keyring:
        """The same content under a rotated identity's key."""
        new = Keyring(identity)
        new._write(self._read())
        return new

    def _write(self, state: dict[str, Any]) -> None:
        nonce = os.urandom(12)
        plain = json.dumps(state, sort_keys=True).encode()
        write_private(self._path, nonce + AESGCM(self._key).encrypt(nonce, plain, self._id))


def _request_fields(key: RequestKey) -> dict[str, Any]:
    return {
        "mode": key.mode,
        "policy": key.policy_digest.hex(),
        "manifest": key.manifest_digest.hex() if key.manifest_digest else None,
        "key": key.key.reveal().hex(),
    }


def _request_key(entry: dict[str, Any]) -> RequestKey:
    manifest = bytes.fromhex(entry["manifest"]) if entry["manifest"] else None
    key = SecretBytes(bytes.fromhex(entry["key"]))
    return RequestKey(entry["mode"], bytes.fromhex(entry["policy"]), manifest, key)
