"""A runtime's evidence for whoever asks: what runs here, now (spec/protocol.md, clause 7.10).

It opens nothing: the context differs from that of provisioning (S9), and no key is bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.base.limits import MAX_COLLATERAL, MAX_CONFIGURATION, MAX_EVIDENCE
from cloister.crypto.digest import Context, digest, report_data
from cloister.wire import cbor
from cloister.wire.calls import WireEvidence
from cloister.wire.cbor import Fields

NONCE_LENGTH: Final = 32
MAX_PRESENCE: Final = MAX_EVIDENCE + MAX_COLLATERAL + MAX_CONFIGURATION + 1024


@dataclass(frozen=True, slots=True)
class Presence:
    """What a runtime says of itself; believed by nobody before ``evidence`` is verified.

    :param configuration: encoded measured configuration.
    :param bundle_digest: of the trust bundle in use, 32 bytes.
    """

    configuration: bytes
    bundle_digest: bytes
    evidence: WireEvidence

    def report_data(self, nonce: bytes) -> bytes:
        """The 64 bytes that the evidence must be over, for the caller's nonce."""
        return presence_report_data(nonce, self.configuration, self.bundle_digest)

    def encode(self) -> bytes:
        """Deterministic CBOR."""
        fields = {"configuration": self.configuration, "bundle": self.bundle_digest, "evidence": self.evidence.fields()}
        return cbor.encode(fields)

    @staticmethod
    def decode(data: bytes) -> Presence:
        """:raises InvalidInput: anything malformed."""
        what = "the runtime's answer"
        fields = Fields(cbor.decode(data, limit=MAX_PRESENCE, what=what), what)
        presence = Presence(
            fields.blob("configuration", limit=MAX_CONFIGURATION),
            fields.blob("bundle", exactly=32),
            WireEvidence.read(fields.mapping("evidence")),
        )
        fields.done()
        return presence


def presence_report_data(nonce: bytes, configuration: bytes, bundle_digest: bytes) -> bytes:
    """Clause 7.10."""
    configured = digest(Context.CONFIGURATION, configuration)
    return report_data(Context.RUNTIME_PRESENCE, nonce, configured, bundle_digest)
