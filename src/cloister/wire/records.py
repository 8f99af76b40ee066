"""Records in the content of a streamed message: several inferences over one sealed stream (spec/protocol.md, 9.5).

    record = u32 length of the rest || u32 length of the JSON part || u32 length of the body || body || zeros

The rest is padded to a bucket (section 10), so that a record's size tells as little as a message's. In a response a
JSON length of 0 marks a problem (problem+json): that one inference failed, and the stream goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

from cloister.base.errors import InvalidInput, Tampered
from cloister.base.limits import MAX_REQUEST_BODY
from cloister.crypto.stream import Buffer
from cloister.wire.envelope import join
from cloister.wire.padding import bucket

_LENGTH: Final = 4
_HEAD: Final = 8


@dataclass(frozen=True, slots=True)
class Record:
    """One inference, or its answer.

    :param header_length: of the JSON part; 0: the body is a problem.
    """

    header_length: int
    body: memoryview


def encode_record(header_length: int, parts: Sequence[Buffer]) -> bytearray:
    """A whole record."""
    size = sum(memoryview(part).nbytes for part in parts)
    rest = bucket(_HEAD + size)
    lengths = b"".join(value.to_bytes(4, "big") for value in (rest, header_length, size))
    return join([lengths, *parts, bytes(rest - _HEAD - size)])


@final
class RecordReader:
    """Cuts the content of a stream into records, in memory bounded by one record.

    :param limit: the longest body accepted.
    """

    def __init__(self, limit: int = MAX_REQUEST_BODY) -> None:
        self._limit = limit
        self._pending = bytearray()

    def feed(self, data: Buffer) -> Iterator[Record]:
        """The records that are now complete; each is the caller's to keep.

        :raises InvalidInput: ``record-malformed``.
        """
        self._pending += data
        while len(self._pending) >= _LENGTH:
            rest = int.from_bytes(self._pending[:_LENGTH], "big")
            if not bucket(_HEAD) <= rest <= bucket(_HEAD + self._limit):
                raise InvalidInput("record-malformed", f"a record has {rest} bytes; at most {self._limit} are accepted")
            if len(self._pending) < _LENGTH + rest:
                return
            whole = memoryview(bytes(self._pending[_LENGTH : _LENGTH + rest]))
            del self._pending[: _LENGTH + rest]
            yield _record(whole)

    def close(self) -> None:
        """:raises Tampered: ``stream-truncated`` in the middle of a record."""
        if self._pending:
            raise Tampered("stream-truncated", "the stream ended in the middle of a record")


def _record(whole: memoryview) -> Record:
    header_length, size = (int.from_bytes(whole[at : at + 4], "big") for at in (0, 4))
    if size > whole.nbytes - _HEAD or header_length > size or bucket(_HEAD + size) != whole.nbytes:
        raise InvalidInput("record-malformed", "a record's lengths contradict each other")
    rest = whole[_HEAD + size :]
    if rest.tobytes() != bytes(rest.nbytes):
        raise InvalidInput("record-malformed", "a record has padding that is not zero")
    return Record(header_length, whole[_HEAD : _HEAD + size])
