"""How one KeyService hands its root secret to another of the same code and configuration (spec/protocol.md, 13.15).

The joiner attested the giver as any caller does (5.4), and sends its own evidence in a sealed call; the secret comes
back sealed to a key that this evidence is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloister.base.limits import MAX_CALL, MAX_CONFIGURATION, MAX_ROOT
from cloister.base.secret import SecretBytes
from cloister.crypto import hpke
from cloister.crypto.digest import Context, digest, report_data
from cloister.wire import cbor
from cloister.wire.calls import WireEvidence
from cloister.wire.cbor import Fields

_WHAT = "the hand-over request"


@dataclass(frozen=True, slots=True)
class HandoverRequest:
    """The joiner's evidence, over :meth:`report_data`.

    :param session_key: ephemeral HPKE public key to which the root secret is sealed.
    :param challenge: of the giver's, redeemed once.
    :param configuration: encoded measured configuration of the joiner.
    """

    session_key: bytes
    challenge: bytes
    configuration: bytes
    bundle_digest: bytes
    evidence: WireEvidence

    def report_data(self, keyservice: bytes) -> bytes:
        """The 64 bytes that the evidence must be over.

        :param keyservice: id of the KeyService whose secret is asked for.
        """
        return handover_report_data(
            keyservice, self.session_key, self.challenge, self.configuration, self.bundle_digest
        )

    def encode(self) -> bytes:
        """Deterministic CBOR, the body of a ``hand-over`` call."""
        return cbor.encode(
            {
                "session_key": self.session_key,
                "challenge": self.challenge,
                "configuration": self.configuration,
                "bundle": self.bundle_digest,
                "evidence": self.evidence.fields(),
            }
        )

    @staticmethod
    def decode(data: bytes) -> HandoverRequest:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(cbor.decode(data, limit=MAX_CALL, what=_WHAT), _WHAT)
        request = HandoverRequest(
            session_key=fields.blob("session_key", exactly=hpke.PUBLIC_LENGTH),
            challenge=fields.blob("challenge", limit=128),
            configuration=fields.blob("configuration", limit=MAX_CONFIGURATION),
            bundle_digest=fields.blob("bundle", exactly=32),
            evidence=WireEvidence.read(fields.mapping("evidence")),
        )
        fields.done()
        return request


def handover_report_data(
    keyservice: bytes, session_key: bytes, challenge: bytes, configuration: bytes, bundle_digest: bytes
) -> bytes:
    """Clause 13.15."""
    configured = digest(Context.CONFIGURATION, configuration)
    return report_data(Context.HANDOVER_EVIDENCE, keyservice, session_key, challenge, configured, bundle_digest)


def seal_root(request: HandoverRequest, keyservice: bytes, root: SecretBytes) -> dict[str, object]:
    """The giver's result: its root, encoded, for the attested key only."""
    bound = request.report_data(keyservice)
    return {"sealed": hpke.seal(request.session_key, root.reveal(), Context.HANDOVER, bound)}


def open_sealed_root(
    result: Mapping[str, Any], request: HandoverRequest, keyservice: bytes, key: hpke.HpkePrivateKey
) -> SecretBytes:
    """The joiner's side of :func:`seal_root`.

    :raises InvalidInput: anything malformed. :raises Tampered: ``hpke-open``.
    """
    fields = Fields(dict(result), "the hand-over")
    sealed = fields.blob("sealed", limit=hpke.OVERHEAD + MAX_ROOT)
    fields.done()
    bound = request.report_data(keyservice)
    return SecretBytes(key.open(sealed, Context.HANDOVER, bound, what="the hand-over"))
