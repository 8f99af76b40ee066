"""Many inferences over one sealed stream, both ways in bounded memory (spec/protocol.md, 8.6 and 9.5). No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, final

import numpy.typing as npt

from cloister.base.errors import InvalidInput, Tampered
from cloister.base.limits import CHUNK_SIZE, KIB
from cloister.client.identity import Identity
from cloister.client.inference import (
    Outputs,
    Provenance,
    SealingKey,
    begin,
    inner_error,
    read_provenance,
)
from cloister.crypto.stream import Buffer
from cloister.wire import bhttp, envelope, oip, records
from cloister.wire.envelope import RESPONSE_PREFIX, FrameReader

_PART: Final = CHUNK_SIZE - 8  # a part's own length takes up to eight bytes
_MAX_HEAD: Final = 64 * KIB


@final
class OutgoingStream:
    """Seals the requests of one stream and opens their answers; belongs to one call."""

    def __init__(self, key: SealingKey, identity: Identity, now: float, expected_digest: bytes | None) -> None:
        self._outgoing = begin(key, identity, now)
        self._sealer = self._outgoing.sealer()
        self._path = f"/v2/models/{key.model.name}/infer_stream"
        self._expected = expected_digest
        self.target = f"/v1/models/{key.model.owner.hex()}/{key.model.name}/stream"
        self._received = bytearray()
        self._frames: FrameReader | None = None
        self._head = bytearray()
        self._provenance: Provenance | None = None
        self._content = bhttp.StreamContent(CHUNK_SIZE)
        self._records = records.RecordReader()

    # --- sealing ---

    def head(self) -> bytes:
        """The first bytes of the request."""
        head = bhttp.request_head("POST", self._path, [("content-type", "application/octet-stream")], None)
        return self._outgoing.prefix + self._frame(self._outgoing.signature + head)

    def seal(self, inputs: Mapping[str, npt.ArrayLike]) -> bytes:
        """One inference.

        :raises InvalidInput: ``tensor-datatype``.
        """
        request = oip.InferRequest(tuple(oip.tensor(name, value) for name, value in inputs.items()))
        length, parts = oip.encode_request(request)
        record = memoryview(records.encode_record(length, parts))
        pieces = (record[at : at + _PART] for at in range(0, record.nbytes, _PART))
        return b"".join(self._frame(bhttp.stream_part(piece)) for piece in pieces)

    def end(self) -> bytes:
        """The last bytes of the request."""
        return self._frame(bhttp.STREAM_END, last=True)

    def _frame(self, part: Buffer, *, last: bool = False) -> bytes:
        return envelope.frame_head(memoryview(part).nbytes, last=last) + self._sealer.seal(part, last=last)

    # --- opening ---

    def feed(self, data: Buffer) -> Iterator[Outputs]:
        """The answers that are now complete, each after it authenticated.

        :raises CloisterError: what the runtime answered to one inference, or to the whole stream.
        :raises Tampered: not authentic, or ``model-other``.
        """
        if self._frames is None:
            self._received += data
            if len(self._received) < RESPONSE_PREFIX:
                return
            opener = self._outgoing.response_opener(bytes(self._received[:RESPONSE_PREFIX]))
            self._frames = FrameReader(opener)
            data = bytes(self._received[RESPONSE_PREFIX:])
        for plaintext in self._frames.feed(data):
            content: Buffer = plaintext
            if self._provenance is None:
                begun = self._begin(plaintext)
                if begun is None:
                    continue
                content = begun
            for part in self._content.feed(content):
                for record in self._records.feed(part):
                    yield self._outputs(record)

    def close(self) -> None:
        """The answer has ended.

        :raises Tampered: ``stream-truncated``: it was cut; never taken for a short answer.
        """
        if self._frames is None:
            raise Tampered("stream-truncated", "the stream ended before its answer began")
        self._frames.close()
        self._content.close()
        self._records.close()

    def _begin(self, plaintext: bytes) -> memoryview | None:
        self._head += plaintext
        try:
            response = bhttp.parse_response(bytes(self._head))
        except InvalidInput:
            if len(self._head) < _MAX_HEAD:
                return None
            raise
        if response.status >= 300:
            raise inner_error(response)
        if not response.streamed:
            raise InvalidInput("bhttp-malformed", "the runtime answers a stream with what is none")
        self._provenance = read_provenance(response.fields)
        if self._expected is not None and self._provenance.model_digest != self._expected:
            raise Tampered("model-other", "the answers come from another version of the model than consented to")
        return response.content

    def _outputs(self, record: records.Record) -> Outputs:
        assert self._provenance is not None  # noqa: S101  # content comes after the head
        if record.header_length == 0:
            raise inner_error(bhttp.Response(400, (), record.body))
        decoded = oip.decode_response(record.body, record.header_length)
        return Outputs({tensor.name: tensor.data for tensor in decoded.outputs}, self._provenance)
