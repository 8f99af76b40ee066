"""What a model owner says: publish, grant, revoke, rotate, retire (spec/protocol.md, 6.5)."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path
from typing import Any

from cloister.adapters.modelstore.directory import DirectoryStore
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

    def publish(self, folder: Path, *, progress: Progress = quiet) -> dict[str, Any]:
        """Put a packing into the store and its key into the KeyService.

        :returns: the acknowledgement.
        :raises InvalidInput: ``model-other-owner``, ``model-key-unknown`` and the codes of packings.
        :raises CloisterError: whatever the KeyService answered; the packing then lies in the store, unused.
        """
        packing, key = self._own_packing(folder)
        check_packing(packing, progress)
        self._upload(packing, progress)
        manifest = packing.manifest
        body = PublishModel(manifest.model.name, manifest.version, packing.digest, key_commitment(key))
        return self.account.say(body, (key,), subject=self.owner)

    def rotate_model_key(self, name: str, source: Path, *, progress: Progress = quiet) -> dict[str, Any]:
        """Encrypt the newest version anew under a fresh key; the old manifest is retired.

        :param source: the model file, as it was packed before.
        """
        newest = self._newest(name)
        with tempfile.TemporaryDirectory(prefix="cloister-") as temporary:
            folder = Path(temporary) / "packing"
            packing = self.pack(source, folder, name=name, version=newest.version, progress=progress)
            self._upload(packing, progress)
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

    def _upload(self, packing: Packing, progress: Progress) -> None:
        """Files first, the manifest last; whole or not at all."""
        store = DirectoryStore(Path(self.profile.store))
        place = Place(packing.manifest.model, packing.digest)
        done, total = 0, packing.manifest.stored_size
        for name in (*(entry.name for entry in packing.manifest.files), MANIFEST_NAME):
            with (packing.folder / name).open("rb") as stream:
                store.write(place, name, iter(lambda stream=stream: stream.read(_PART), b""))  # type: ignore[misc]
            done = min(total, done + (packing.folder / name).stat().st_size)
            progress("upload", done, total)
        store.point(place)


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
