"""What a model owner says: publish, grant, revoke, rotate, retire (spec/protocol.md, 6.5)."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cloister.adapters.clock import SystemClock
from cloister.adapters.modelstore.opened import open_for_publishing
from cloister.adapters.modelstore.patience import Patience
from cloister.adapters.modelstore.port import Place
from cloister.attest.policy import Policy
from cloister.base.errors import InvalidInput
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.client.account import Account
from cloister.client.identity import Identity
from cloister.client.keyring import Keyring, ModelKey
from cloister.client.packing import Packing, Progress, check_packing, open_packing, pack_model, quiet
from cloister.client.profile import Profile
from cloister.wire.manifest import MANIFEST_NAME
from cloister.wire.statements import (
    Delegate,
    DisableIdentity,
    Grant,
    PublishModel,
    RetireModel,
    RevokeGrant,
    RotateModelKey,
    Validity,
    key_commitment,
)

_PART = 1 << 20


class Ownership:
    """Mixed into the client: everything an owner does."""

    profile: Profile
    account: Account
    owner: bytes
    """For whom it is said: this identity, or one that delegated to it."""

    def register(self) -> bool:
        """Make this identity known to the KeyService; ``False`` when it was already."""
        return self.account.register()

    def own_model(self, name: str) -> ModelId:
        """The id of a model of this owner."""
        return ModelId(self.owner, name)

    def pack(
        self,
        source: Path,
        folder: Path,
        *,
        name: str,
        version: int | None = None,
        tuned: bool = True,
        progress: Progress = quiet,
    ) -> Packing:
        """Pack a model file under a fresh key, which is kept before the packing is complete.

        :raises InvalidInput: see ``client.packing.pack_model``.
        """
        account = self.account
        return pack_own(
            account.identity,
            account.keyring,
            source,
            folder,
            model=self.own_model(name),
            version=version,
            tuned=tuned,
            progress=progress,
        )

    def publish(self, folder: Path, *, store: str | None = None, progress: Progress = quiet) -> dict[str, Any]:
        """Put a packing into the store and its key into the KeyService. Interrupted, it may be said again.

        :param store: instead of the profile's: a directory, or ``s3://``, ``gs://``, ``az://``.
        :returns: the acknowledgement.
        :raises InvalidInput: ``model-other-owner``, ``model-key-unknown`` and the codes of packings and stores.
        :raises CloisterError: whatever the KeyService answered; the packing then lies in the store, unused.
        """
        packing, key = self._own_packing(folder)
        check_packing(packing, progress)
        self._upload(packing, store, progress)
        manifest = packing.manifest
        body = PublishModel(manifest.model.name, manifest.version, packing.digest, key_commitment(key))
        return self.account.say(body, (key,), subject=self.owner)

    def rotate_model_key(
        self, name: str, source: Path, *, store: str | None = None, progress: Progress = quiet
    ) -> dict[str, Any]:
        """Encrypt the newest version anew under a fresh key; the old manifest is retired.

        :param source: the model file, as it was packed before. :param store: as in :meth:`publish`.
        """
        newest = self._newest(name)
        with tempfile.TemporaryDirectory(prefix="cloister-") as temporary:
            folder = Path(temporary) / "packing"
            packing = self.pack(source, folder, name=name, version=newest.version, progress=progress)
            self._upload(packing, store, progress)
            packing, key = self._own_packing(folder)
            body = RotateModelKey(name, newest.version, packing.digest, key_commitment(key))
            return self.account.say(body, (key,), subject=self.owner)

    def retire(self, name: str, manifest_digest: bytes = b"") -> dict[str, Any]:
        """No release any more of one manifest, or of the whole model."""
        return self.account.say(RetireModel(name, manifest_digest), subject=self.owner)

    def grant(
        self, name: str, user: bytes, policy: Policy, *, validity: Validity | None = None, quota: int = 0
    ) -> dict[str, Any]:
        """Let a user use a model on runtimes that satisfy a policy.

        :param quota: requests a lease (60 s) may serve; 0 = no limit of one's own.
        """
        body = Grant(name, user, self.account.define_policy(policy, subject=self.owner), validity or Validity(), quota)
        return self.account.say(body, subject=self.owner)

    def revoke(self, name: str, user: bytes) -> dict[str, Any]:
        """Take a grant back; running instances stop within the lease."""
        return self.account.say(RevokeGrant(name, user), subject=self.owner)

    def delegate(self, delegate: bytes, not_after: int) -> dict[str, Any]:
        """Let another identity speak for this one until a time."""
        return self.account.say(Delegate(delegate, not_after))

    def disable_identity(self) -> dict[str, Any]:
        """For good: this identity says nothing more, and its grants and consents end."""
        return self.account.say(DisableIdentity())

    def _newest(self, name: str) -> ModelKey:
        keys = self.account.keyring.model_keys(str(self.own_model(name)))
        if not keys:
            raise InvalidInput("model-key-unknown", f"this identity has packed no model {name!r} here")
        return keys[-1]

    def _own_packing(self, folder: Path) -> tuple[Packing, SecretBytes]:
        packing = open_packing(folder, self.account.identity.key.public_key)
        if packing.manifest.model.owner != self.owner:
            raise InvalidInput("model-other-owner", f"{folder} was packed by another identity")
        for key in self.account.keyring.model_keys(str(packing.manifest.model)):
            if key.manifest_digest == packing.digest:
                return packing, key.key
        raise InvalidInput(
            "model-key-unknown",
            f"the key of {folder} is not in this identity's keyring",
            hint="Pack it again, or publish from the machine where it was packed.",
        )

    def _upload(self, packing: Packing, where: str | None, progress: Progress) -> None:
        """Files first, then the manifest, the hint last; each whole or not at all."""
        store = open_for_publishing(where or self.profile.store, Patience(SystemClock()))
        place = Place(packing.manifest.model, packing.digest)
        done, total = 0, packing.manifest.stored_size

        def told(count: int) -> None:
            nonlocal done
            done = min(total, done + count)
            progress("upload", done, total)

        for name in (*(entry.name for entry in packing.manifest.files), MANIFEST_NAME):
            store.write(place, name, _parts(packing.folder / name, told))
        store.point(place)


def _parts(path: Path, told: Callable[[int], None]) -> Iterator[bytes]:
    """A file piece by piece.

    :raises InvalidInput: ``file-unreadable``.
    """
    try:
        with path.open("rb") as stream:
            while part := stream.read(_PART):
                yield part
                told(len(part))
    except OSError as error:
        raise InvalidInput("file-unreadable", f"cannot read {path}: {error.strerror}") from error


def pack_own(
    identity: Identity,
    keyring: Keyring,
    source: Path,
    folder: Path,
    *,
    model: ModelId,
    version: int | None = None,
    tuned: bool = True,
    progress: Progress = quiet,
) -> Packing:
    """Pack a model file under a fresh key, which goes into the keyring; talks to nobody.

    :param version: one above the newest that was packed here, when None.
    """
    key = SecretBytes(secrets.token_bytes(32))
    if version is None:
        keys = keyring.model_keys(str(model))
        version = keys[-1].version + 1 if keys else 1
    packing = pack_model(
        source, folder, model=model, version=version, key=key, owner=identity.key, tuned=tuned, progress=progress
    )
    keyring.put_model_key(str(model), ModelKey(packing.digest, version, key))
    return packing
