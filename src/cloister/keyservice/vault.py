"""Model keys, request keys and service keys in the enclave's memory, each under the log entry it arrived beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from cloister.access.decide import KeyRelease
from cloister.base.errors import Refused, Tampered
from cloister.base.secret import KEY_LENGTH, SecretBytes
from cloister.crypto.digest import Context, digest, same
from cloister.crypto.hpke import PRIVATE_LENGTH, HpkePrivateKey
from cloister.keyservice.state.state import State
from cloister.wire.custody import record_digest
from cloister.wire.statements import key_commitment


@final
class Vault:
    """Secrets by entry. Only a :class:`KeyRelease` takes them out."""

    def __init__(self) -> None:
        self._secrets: dict[int, SecretBytes] = {}

    def fill(self, found: Mapping[int, SecretBytes], state: State, *, whole: bool) -> None:
        """Take over what the store holds, as far as the state still needs it.

        A secret that is to be destroyed at some time may be gone already; any other must be there.

        :param whole: whether that is asked for now; else :meth:`require` asks.
        :raises Tampered: ``secret-missing``, ``secret-other``.
        """
        for entry, place in state.secrets.items():
            secret = found.get(entry)
            if secret is None:
                if place.until is None and whole:
                    raise Tampered("secret-missing", f"the store lacks the key that arrived beside log entry {entry}")
                continue
            if not same(_name(secret), place.commitment):
                raise Tampered("secret-other", f"the key beside log entry {entry} is not the one committed to")
            self._secrets[entry] = secret

    def admit(self, entry: int, secret: SecretBytes, state: State) -> None:
        """A secret came from another replica beside this entry, which the state has; kept if it is needed.

        :raises Tampered: ``secret-other``.
        """
        place = state.secrets.get(entry)
        if place is None:
            return
        if not same(_name(secret), place.commitment):
            raise Tampered("secret-other", f"the key beside log entry {entry} is not the one committed to")
        self._secrets[entry] = secret

    def require(self, state: State) -> None:
        """:raises Tampered: ``secret-missing`` unless every secret in use is there."""
        for entry, place in state.secrets.items():
            if place.until is None and entry not in self._secrets:
                raise Tampered("secret-missing", f"the store lacks the key that arrived beside log entry {entry}")

    def put(self, entry: int, secret: SecretBytes) -> None:
        """A secret arrived beside this entry."""
        self._secrets[entry] = secret

    def forget_from(self, entry: int) -> None:
        """Take back the secrets of entries that were not written."""
        for index in [index for index in reversed(self._secrets) if index >= entry]:
            del self._secrets[index]

    def destroy(self, entry: int) -> None:
        """Forget one."""
        self._secrets.pop(entry, None)

    def release(self, decision: KeyRelease) -> tuple[SecretBytes, SecretBytes]:
        """Model key, and request key or service key: what was decided, and nothing else.

        :raises Refused: ``key-destroyed`` when its time is over.
        """
        model_key = self._secrets.get(decision.model_key_entry)
        key = self._secrets.get(decision.key_entry)
        if model_key is None or key is None:
            raise Refused("key-destroyed", "the key was destroyed, because its time was over")
        return model_key, key

    def holds(self, entry: int) -> bool:
        """Whether the secret that arrived beside this entry is there."""
        return entry in self._secrets

    def custody_record(self, entry: int) -> bytes:
        """The recovery record beside this entry, which is no secret; empty when it is gone."""
        found = self._secrets.get(entry)
        return b"" if found is None else found.reveal()

    def __len__(self) -> int:
        return len(self._secrets)


@final
class Doomed:
    """Secrets whose time is over, kept until no replica can replace the entries that ended it (clause 13.17.3)."""

    def __init__(self) -> None:
        self._size = 0
        self._entries: frozenset[int] = frozenset()

    def due(self, dead: tuple[int, ...], size: int, lasting: int) -> tuple[int, ...]:
        """Which of the dead ones to destroy.

        :param size: entries of the log, after which they are dead; :param lasting: of them cannot be replaced.
        """
        if lasting >= size:
            self._entries = frozenset()
            return dead
        if lasting < self._size:
            return ()
        now = tuple(entry for entry in dead if entry in self._entries)
        self._size, self._entries = size, frozenset(dead)
        return now


def _name(secret: SecretBytes) -> bytes:
    """Commitment of a 32-byte key, or id of a service key, or name of a recovery record."""
    if len(secret) == KEY_LENGTH:
        return key_commitment(secret)
    if len(secret) != PRIVATE_LENGTH:
        return record_digest(secret.reveal())
    return digest(Context.SERVICE_KEY, HpkePrivateKey.from_secret(secret).public_key)
