"""How custodians give their shares to a KeyService that is brought back (spec/protocol.md, 13.24.6).

The enclave makes an :class:`Offer`, which holds the recovery record and evidence over a fresh key; each custodian
judges it as any caller judges a KeyService, and seals his share to that key.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.base.errors import InvalidInput
from cloister.base.limits import (
    MAX_CONFIGURATION,
    MAX_CUSTODIANS,
    MAX_CUSTODY_RECORD,
    MAX_RECOVERY_ANSWER,
    MAX_RECOVERY_OFFER,
)
from cloister.base.secret import KEY_LENGTH, SecretBytes
from cloister.crypto import hpke
from cloister.crypto.digest import Context, digest, report_data
from cloister.wire import cbor
from cloister.wire.calls import WireEvidence
from cloister.wire.cbor import Fields
from cloister.wire.custody import CustodyRecord, check_share

OFFER_PATH = "/v1/recovery"
SHARE_PATH = "/v1/recovery/share"


@dataclass(frozen=True, slots=True)
class Offer:
    """What an enclave that asks for shares says of itself; ``evidence`` is over :meth:`report_data`.

    :param session_key: ephemeral HPKE public key to which shares are sealed.
    :param configuration: encoded measured configuration of the enclave.
    :param answered: custodians whose shares it has; nobody vouches for that.
    """

    record: CustodyRecord
    session_key: bytes
    configuration: bytes
    bundle_digest: bytes
    evidence: WireEvidence
    answered: tuple[bytes, ...] = ()

    def report_data(self) -> bytes:
        """The 64 bytes that the evidence must be over (clause 13.24.6)."""
        return recovery_report_data(self.record, self.session_key, self.configuration, self.bundle_digest)

    def encode(self) -> bytes:
        """Deterministic CBOR."""
        return cbor.encode(
            {
                "record": self.record.encoded,
                "session_key": self.session_key,
                "configuration": self.configuration,
                "bundle": self.bundle_digest,
                "evidence": self.evidence.fields(),
                "answered": list(self.answered),
            }
        )

    @staticmethod
    def decode(data: bytes) -> Offer:
        """:raises InvalidInput: anything malformed."""
        what = "what asks for shares"
        fields = Fields(cbor.decode(data, limit=MAX_RECOVERY_OFFER, what=what), what)
        offer = Offer(
            record=CustodyRecord.decode(fields.blob("record", limit=MAX_CUSTODY_RECORD)),
            session_key=fields.blob("session_key", exactly=hpke.PUBLIC_LENGTH),
            configuration=fields.blob("configuration", limit=MAX_CONFIGURATION),
            bundle_digest=fields.blob("bundle", exactly=32),
            evidence=WireEvidence.read(fields.mapping("evidence")),
            answered=tuple(fields.items("answered", limit=MAX_CUSTODIANS)),
        )
        fields.done()
        if any(type(item) is not bytes or len(item) != 32 for item in offer.answered):
            raise InvalidInput("field-type", f"{what} names a custodian by something else than 32 bytes")
        return offer


def recovery_report_data(
    record: CustodyRecord, session_key: bytes, configuration: bytes, bundle_digest: bytes
) -> bytes:
    """Clause 13.24.6."""
    configured = digest(Context.CONFIGURATION, configuration)
    return report_data(
        Context.RECOVERY_EVIDENCE,
        record.keyservice,
        record.set,
        record.digest,
        session_key,
        configured,
        bundle_digest,
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """One custodian's share, sealed to the enclave that the evidence is of."""

    custodian: bytes
    sealed: bytes

    def encode(self) -> bytes:
        """Deterministic CBOR."""
        return cbor.encode({"custodian": self.custodian, "sealed": self.sealed})

    @staticmethod
    def decode(data: bytes) -> Answer:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(cbor.decode(data, limit=MAX_RECOVERY_ANSWER, what="the answer"), "the answer")
        answer = Answer(fields.blob("custodian", exactly=32), fields.blob("sealed", exactly=hpke.OVERHEAD + KEY_LENGTH))
        fields.done()
        return answer


def seal_answer(offer: Offer, custodian: bytes, share: SecretBytes) -> Answer:
    """For this enclave only; whoever calls this has judged its evidence."""
    bound = offer.report_data()
    return Answer(custodian, hpke.seal(offer.session_key, share.reveal(), Context.RECOVERY_SHARE, bound, custodian))


def open_answer(answer: Answer, record: CustodyRecord, bound: bytes, key: hpke.HpkePrivateKey) -> SecretBytes:
    """The share.

    :param bound: report data of the offer that was answered.
    :raises Refused: ``custodian-unknown``.
    :raises Tampered: ``hpke-open``: for another enclave, set or custodian; ``custody-share``: a wrong share.
    """
    record.number(answer.custodian)
    what = f"the answer of custodian {answer.custodian.hex()}"
    share = key.open(answer.sealed, Context.RECOVERY_SHARE, bound, answer.custodian, what=what)
    return check_share(record, answer.custodian, share)
