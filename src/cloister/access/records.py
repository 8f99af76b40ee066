"""What the KeyService's state says about identities, models, grants, consents and service keys. Frozen values.

``*_entry`` is the index of the log entry beside which the secret key material arrived; it is how secrets are named.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.base.ids import ModelId
from cloister.wire.statements import Validity


@dataclass(frozen=True, slots=True)
class Identity:
    """One identity.

    :param sequence: of the newest statement signed by the present key; ``recovery_sequence`` by the recovery key.
    :param past_keys: keys that this identity had before; never accepted again.
    """

    id: bytes
    public_key: bytes
    recovery_key: bytes
    sequence: int
    registered_at: int
    recovery_sequence: int = 0
    disabled: bool = False
    past_keys: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One published manifest and its key's commitment."""

    version: int
    manifest_digest: bytes
    key_commitment: bytes
    key_entry: int
    published_at: int
    retired: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """A model's versions in the order of their publication; ``retired`` is for good."""

    id: ModelId
    versions: tuple[ModelVersion, ...]
    retired: bool = False

    def find(self, manifest_digest: bytes) -> ModelVersion | None:
        """The version with this manifest, retired or not."""
        return next((v for v in self.versions if v.manifest_digest == manifest_digest), None)

    def newest(self) -> ModelVersion | None:
        """The newest version that is not retired."""
        return next((v for v in reversed(self.versions) if not v.retired), None)


@dataclass(frozen=True, slots=True)
class GrantRecord:
    """A grant in force, as the owner stated it in log entry ``entry``."""

    model: ModelId
    user: bytes
    policy_digest: bytes
    validity: Validity
    quota: int
    entry: int


@dataclass(frozen=True, slots=True)
class PreviousKey:
    """A request key that was rotated away; still released until ``until``, so that no request under way is lost."""

    commitment: bytes
    key_entry: int
    until: int


@dataclass(frozen=True, slots=True)
class ConsentRecord:
    """A consent in force, as the user stated it in log entry ``entry``."""

    user: bytes
    model: ModelId
    policy_digest: bytes
    manifest_digest: bytes | None
    mode: str
    key_commitment: bytes
    key_entry: int
    validity: Validity
    entry: int
    previous: PreviousKey | None = None


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """One epoch of a service key; users seal to it from ``not_before`` to ``not_after``."""

    model: ModelId
    manifest_digest: bytes | None
    policy_digest: bytes
    epoch: int
    key_id: bytes
    not_before: int
    not_after: int
    key_entry: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the state says about one user and one model.

    :param service_keys: those for the consent's model, versions and policy.
    """

    owner: Identity | None
    user: Identity | None
    model: Model | None
    grant: GrantRecord | None
    consent: ConsentRecord | None
    service_keys: tuple[ServiceKey, ...] = ()
