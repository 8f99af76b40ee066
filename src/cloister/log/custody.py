"""Entries about custodians: who can bring the KeyService back, and that they did (spec/protocol.md, 13.24)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_CUSTODIANS, MAX_ENTRY
from cloister.wire import cbor
from cloister.wire.cbor import Fields
from cloister.wire.custody import SET_LENGTH, check_ids, check_threshold

_RECORD: Final = 32


@dataclass(frozen=True, slots=True)
class CustodySet:
    """Entry of kind ``custody``: who can bring the KeyService back from now on; nobody, where none is named.

    :param set: 16 random bytes, the same as in the record. :param record: its digest; empty where nobody is named.
    """

    set: bytes
    threshold: int
    custodians: tuple[bytes, ...]
    record: bytes

    def encode(self) -> bytes:
        """Deterministic CBOR."""
        custodians = list(self.custodians)
        return cbor.encode(
            {"set": self.set, "threshold": self.threshold, "custodians": custodians, "record": self.record}
        )

    @staticmethod
    def decode(data: bytes) -> CustodySet:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(cbor.decode(data, limit=MAX_ENTRY, what="the custody entry"), "the custody entry")
        made = CustodySet(
            fields.blob("set", exactly=SET_LENGTH),
            fields.integer("threshold"),
            check_ids(fields.items("custodians", limit=MAX_CUSTODIANS)),
            fields.blob("record", limit=_RECORD),
        )
        fields.done()
        if made.custodians:
            check_threshold(made.threshold, len(made.custodians))
        if len(made.record) != (_RECORD if made.custodians else 0) or (made.threshold and not made.custodians):
            raise InvalidInput("field-range", "the custody entry names custodians without a record, or the reverse")
        return made


@dataclass(frozen=True, slots=True)
class Recovery:
    """Entry of kind ``recovery``: custodians brought the KeyService back.

    :param set: of whose shares; :param custodians: who gave theirs.
    :param tee: where it was brought back to; :param measurements: by name; :param configuration: digest.
    """

    set: bytes
    custodians: tuple[bytes, ...]
    tee: str
    measurements: Mapping[str, bytes]
    configuration: bytes

    def encode(self) -> bytes:
        """Deterministic CBOR."""
        return cbor.encode(
            {
                "set": self.set,
                "custodians": list(self.custodians),
                "tee": self.tee,
                "measurements": dict(self.measurements),
                "configuration": self.configuration,
            }
        )

    @staticmethod
    def decode(data: bytes) -> Recovery:
        """:raises InvalidInput: anything malformed."""
        fields = Fields(cbor.decode(data, limit=MAX_ENTRY, what="the recovery entry"), "the recovery entry")
        measurements = fields.mapping("measurements")
        if not all(type(name) is str and type(value) is bytes for name, value in measurements.items()):
            raise InvalidInput("field-type", "the recovery's measurements are not a map of names to bytes")
        found = Recovery(
            fields.blob("set", exactly=SET_LENGTH),
            check_ids(fields.items("custodians", limit=MAX_CUSTODIANS)),
            fields.text("tee", limit=32),
            measurements,
            fields.blob("configuration", exactly=32),
        )
        fields.done()
        return found
