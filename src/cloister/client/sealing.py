"""Which key seals a user's requests to a model: his own request key, or the service key his consent asks for."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from typing import Any, Final

from cloister.base.errors import Refused, Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.client.account import Account
from cloister.client.inference import SealingKey
from cloister.client.keyring import RequestKey
from cloister.wire.provisioning import ServiceKeyEndorsement
from cloister.wire.statements import ANY_VERSION, REQUEST_KEY, SERVICE_KEY, Consent, Validity, key_commitment

_EARLY_S: Final = 30  # a service key this close to its end is not used any more
_WAITING_S: Final = 10.0
_LATE_S: Final = 3600.0  # after its time a key that waited is forgotten, whatever the clocks of the two
_KEPT_S: Final = 300  # ask for a newer one this often, so that a rotation is followed well before the old one ends


class SealingKeys:
    """Finds and keeps sealing keys. Thread-safe."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._services: dict[str, tuple[ServiceKeyEndorsement, float]] = {}
        self._requests: dict[str, RequestKey] = {}
        self._waiting: dict[str, float] = {}  # when to ask again whether a second person has spoken
        self._lock = threading.Lock()

    def consented(self, model: ModelId) -> RequestKey:
        """What this user consented to.

        :raises Refused: ``consent-not-given``.
        """
        with self._lock:
            kept = self._requests.get(str(model))
            due = self._account.clock.monotonic() >= self._waiting.get(str(model), float("inf"))
        if kept is None or due:
            waiting = self._settle(model)
            kept = self._account.keyring.request_key(str(model))
            if kept is None and not waiting:
                raise Refused(
                    "consent-not-given",
                    f"this identity has not consented to the model {model.name!r} from here",
                    hint="Consent first: `cloister consent MODEL --policy FILE`.",
                )
            if kept is None:
                raise Refused(
                    "consent-not-given",
                    f"the consent to the model {model.name!r} waits for a second person: log entry {waiting[-1]}",
                    hint="One of the others says `cloister approvals approve ENTRY`.",
                )
            with self._lock:
                self._requests[str(model)] = kept
        return kept

    def _settle(self, model: ModelId) -> list[int]:
        """Use a key that waited, if a second person has said it too; which entries still wait."""
        keyring, name = self._account.keyring, str(model)
        waiting = keyring.waiting_entries(name)
        if waiting:
            for item in self._account.every("access"):
                if item["kind"] == "consent" and item["model"] == name and item["user"] == self._account.identity.id:
                    keyring.adopt_waiting_key(name, item["key_entry"])
            keyring.drop_waiting_keys(name, self._account.clock.now() - _LATE_S)
            waiting = keyring.waiting_entries(name)
        with self._lock:
            self._waiting.pop(name, None)
            if waiting:
                self._waiting[name] = self._account.clock.monotonic() + _WAITING_S
        return waiting

    def key(self, model: ModelId) -> SealingKey:
        """The key for the next request.

        :raises Refused: ``consent-not-given`` and what the KeyService says. :raises Tampered: ``service-key-other``.
        """
        consented = self.consented(model)
        if consented.mode == REQUEST_KEY:
            return SealingKey(model, key_commitment(consented.key), secret=consented.key)
        endorsement = self._service_key(model, consented)
        return SealingKey(model, endorsement.key_id, service_key=endorsement.public_key)

    def forget(self, model: ModelId) -> None:
        """Look again before the next request: after a rotation, or a refusal."""
        with self._lock:
            self._services.pop(str(model), None)
            self._requests.pop(str(model), None)

    def _service_key(self, model: ModelId, consented: RequestKey) -> ServiceKeyEndorsement:
        now = self._account.clock.now()
        with self._lock:
            kept = self._services.get(str(model))
        if kept is not None and now < kept[0].not_after - _EARLY_S and now < kept[1] + _KEPT_S:
            return kept[0]
        about: dict[str, object] = {"model": str(model), "policy": consented.policy_digest}
        about |= (
            {"versions": ANY_VERSION} if consented.manifest_digest is None else {"manifest": consented.manifest_digest}
        )
        answer = self._account.ask("service-key", about)
        description = self._account.link.settled().description
        active = [item["endorsement"] for item in answer["keys"] if item["phase"] == "active"]
        if not active:
            raise Unavailable("service-key-none", f"the KeyService has no service key for {model.name!r} in force")
        endorsement = ServiceKeyEndorsement.verify(active[0], description.log_key)
        same = (
            endorsement.keyservice == description.keyservice
            and endorsement.model == model
            and endorsement.policy_digest == consented.policy_digest
            and endorsement.manifest_digest == consented.manifest_digest
            and endorsement.not_before <= now + 60
            and now < endorsement.not_after
        )
        if not same:
            raise Tampered(
                "service-key-other",
                f"the service key for {model.name!r} is endorsed for something else than this user's consent",
            )
        with self._lock:
            self._services[str(model)] = (endorsement, now)
        return endorsement


def give_consent(
    account: Account,
    model: ModelId,
    *,
    policy_digest: bytes,
    manifest_digest: bytes | None,
    mode: str,
    validity: Validity,
) -> RequestKey:
    """Say the consent and keep its key. The policy must be defined already.

    :returns: what was consented to; its ``pending`` says until when it waits for a second person (clause 6.8).

    :raises CloisterError: whatever the KeyService answered.
    """
    key = SecretBytes(secrets.token_bytes(32))
    with_key = mode == REQUEST_KEY
    commitment = key_commitment(key) if with_key else b""
    consent = Consent(model, policy_digest, manifest_digest, mode, commitment, validity)
    acknowledged = account.say(consent, (key,) if with_key else ())
    mode = mode if with_key else SERVICE_KEY
    place = (acknowledged["entry"], acknowledged["pending"])
    kept = RequestKey(mode, policy_digest, manifest_digest, key, *place)
    keep_key(account, model, kept, acknowledged)
    return kept


def keep_key(account: Account, model: ModelId, key: RequestKey, acknowledged: Mapping[str, Any]) -> None:
    """A key that was consented to: in use from now on, or once a second person has said it too."""
    if acknowledged["pending"]:
        account.keyring.put_waiting_key(str(model), acknowledged["entry"], acknowledged["pending"], key)
    else:
        account.keyring.put_request_key(str(model), key)
