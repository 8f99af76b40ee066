"""What a user says and asks: consent, what may I use, why not (spec/protocol.md, 6.5 and 6.7)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from cloister.attest.policy import Policy
from cloister.base.errors import InvalidInput
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.client.account import Account
from cloister.client.keyring import RequestKey
from cloister.client.sealing import SealingKeys, give_consent, keep_key
from cloister.crypto.sign import SigningKey
from cloister.wire.statements import (
    REQUEST_KEY,
    RevokeConsent,
    RotateIdentity,
    RotateRequestKey,
    Validity,
    key_commitment,
)


class Usage:
    """Mixed into the client: everything a user does but infer."""

    account: Account
    keys: SealingKeys
    owner: bytes

    def model_id(self, model: str | ModelId) -> ModelId:
        """A model's id from its id, its text, or its name where that is enough.

        :raises InvalidInput: ``model-ambiguous``, ``model-not-consented``, ``id-malformed``, ``name-malformed``.
        """
        if isinstance(model, ModelId):
            return model
        if "/" in model:
            return ModelId.parse(model)
        found = [ModelId.parse(text) for text in self.account.keyring.request_models() if text.endswith("/" + model)]
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidInput(
                "model-ambiguous",
                f"several models are called {model!r}",
                hint="Write OWNER/NAME, as `access list` shows.",
            )
        raise InvalidInput(
            "model-not-consented",
            f"this identity has consented to no model {model!r} from here",
            hint="`cloister access list` shows what was granted; `cloister consent OWNER/NAME --policy FILE` consents.",
        )

    def consent(
        self,
        model: str | ModelId,
        policy: Policy,
        *,
        manifest_digest: bytes | None = None,
        mode: str = REQUEST_KEY,
        validity: Validity | None = None,
    ) -> RequestKey:
        """Let runtimes that satisfy a policy see this user's requests to one model.

        :param manifest_digest: this version only; ``None`` for any version by this owner.
        :param mode: ``request-key`` or ``service-key``.
        """
        target = model if isinstance(model, ModelId) else ModelId.parse(model)
        digest = self.account.define_policy(policy)
        kept = give_consent(
            self.account,
            target,
            policy_digest=digest,
            manifest_digest=manifest_digest,
            mode=mode,
            validity=validity or Validity(),
        )
        self.keys.forget(target)
        return kept

    def revoke_consent(self, model: str | ModelId) -> dict[str, Any]:
        """Take the consent back; running instances stop within the lease."""
        target = self.model_id(model)
        acknowledged = self.account.say(RevokeConsent(target))
        self.account.keyring.drop_request_key(str(target))
        self.keys.forget(target)
        return acknowledged

    def rotate_request_key(self, model: str | ModelId) -> dict[str, Any]:
        """A new request key under the same consent; requests under way are answered."""
        target = self.model_id(model)
        old = self.keys.consented(target)
        key = SecretBytes(secrets.token_bytes(32))
        acknowledged = self.account.say(RotateRequestKey(target, key_commitment(key)), (key,))
        keep_key(self.account, target, RequestKey(old.mode, old.policy_digest, old.manifest_digest, key), acknowledged)
        self.keys.forget(target)
        return acknowledged

    def rotate_identity(self, new_key: SigningKey, signer: SigningKey | None = None) -> dict[str, Any]:
        """Replace this identity's key; signed by the current one, or by the recovery key.

        The caller keeps the new key (``client.identity.replace_key``) once this returned.
        """
        account = self.account
        keyservice = account.link.settled().description.keyservice
        sequence = account.keyring.next_sequence(keyservice, account.clock.now())
        body = RotateIdentity.prove(new_key, account.identity.id, sequence)
        return account.say(body, signer=signer, sequence=sequence)

    def whoami(self) -> dict[str, Any]:
        """This identity as the KeyService knows it."""
        return self.account.ask("whoami")

    def models(self) -> list[dict[str, Any]]:
        """Own models and granted ones: ``{relation, model, retired, versions}``."""
        return self._all("models")

    def access(self) -> list[dict[str, Any]]:
        """Grants and consents that concern this identity; see spec/protocol.md, appendix A."""
        return self._all("access")

    def events(self) -> list[dict[str, Any]]:
        """What happened: log entries that concern this identity, ``{index, entry, inclusion}``."""
        return self._all("events")

    def history(self) -> Iterator[tuple[int, bytes]]:
        """Every entry of the log, for an auditor: index and encoding, in order.

        :raises Refused: ``not-auditor``.
        """
        after = 0
        while True:
            page = self.account.ask("history", {"after": after})
            yield from enumerate(page["entries"], after)
            if page["next"] == -1:
                return
            after = page["next"]

    def keyservice_events(self) -> list[dict[str, Any]]:
        """What happened to the KeyService itself: trust bundles and hand-overs, ``{index, entry, inclusion}``."""
        return self._all("keyservice-events")

    def _all(self, kind: str) -> list[dict[str, Any]]:
        return self.account.every(kind, {"subject": self.owner})

    def why(self, model: str | ModelId, user: bytes | None = None) -> dict[str, Any]:
        """Dry run of a release: every check, with whose rule it is, and the last denial to a runtime."""
        target = self.model_id(model)
        about = {"model": str(target), "user": user or self.account.identity.id, "subject": self.owner}
        return self.account.ask("why", about)
