"""Seal an inference, open its answer (spec/protocol.md, sections 8 and 9). No I/O: both clients share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt

from cloister.adapters.http.problem import from_problem
from cloister.base.errors import CloisterError, InvalidInput, Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import MAX_REQUEST_BODY
from cloister.base.secret import SecretBytes
from cloister.client.identity import Identity
from cloister.crypto.stream import Buffer
from cloister.wire import bhttp, envelope, oip
from cloister.wire.envelope import OutgoingRequest

Array = npt.NDArray[Any]
MODEL_DIGEST_FIELD: Final = "cloister-model-digest"
MEASUREMENT_FIELD: Final = "cloister-measurement"
TEE_FIELD: Final = "cloister-tee"
OWNER_POLICY_FIELD: Final = "cloister-owner-policy"
USER_POLICY_FIELD: Final = "cloister-user-policy"
WARNING_FIELD: Final = "cloister-warning"
TIMING_FIELD: Final = "server-timing"


@dataclass(frozen=True, slots=True)
class SealingKey:
    """What seals requests to one model: the request key, or the service key that the KeyService endorsed.

    :param secret: request-key mode. :param service_key: HPKE public key, service-key mode. Exactly one is set.
    """

    model: ModelId
    key_id: bytes
    secret: SecretBytes | None = None
    service_key: bytes = b""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which code answered with which model, under whose rules (claim S3); authenticated with the answer.

    :param warnings: ``insecure-simulation`` where no TEE protects anything.
    :param timing_ms: stage name to milliseconds, as the runtime measured them.
    """

    model_digest: bytes
    measurement: bytes
    tee: str
    owner_policy: bytes
    user_policy: bytes
    warnings: tuple[str, ...]
    timing_ms: Mapping[str, float]


class Outputs(dict[str, Array]):
    """Output name to array, and where they come from."""

    def __init__(self, values: Mapping[str, Array], provenance: Provenance) -> None:
        super().__init__(values)
        self.provenance = provenance


@dataclass(frozen=True, slots=True)
class SealedInference:
    """A sealed request and what opens its answer."""

    data: bytearray
    outgoing: OutgoingRequest
    model: ModelId

    @property
    def target(self) -> str:
        """The path at the gateway or at an instance."""
        return f"/v1/models/{self.model.owner.hex()}/{self.model.name}/infer"


def begin(key: SealingKey, identity: Identity, now: float) -> OutgoingRequest:
    """A request with a fresh nonce."""
    if key.secret is not None:
        return envelope.new_request_with_key(
            request_key=key.secret, key_id=key.key_id, model=key.model, user=identity.id, issued_at=int(now)
        )
    return envelope.new_request_to_service(
        service_key=key.service_key,
        key_id=key.key_id,
        identity=identity.key,
        model=key.model,
        user=identity.id,
        issued_at=int(now),
    )


def seal_http(
    key: SealingKey,
    identity: Identity,
    now: float,
    *,
    method: str,
    path: str,
    fields: Sequence[bhttp.Field] = (),
    content: Sequence[Buffer] = (),
) -> SealedInference:
    """Seal any inner HTTP request.

    :raises InvalidInput: ``request-too-large``.
    """
    length = sum(memoryview(part).nbytes for part in content)
    if length > MAX_REQUEST_BODY:
        raise InvalidInput(
            "request-too-large",
            f"the request has {length} bytes; at most {MAX_REQUEST_BODY} are accepted",
            hint="Send fewer at once, or use infer_stream.",
        )
    outgoing = begin(key, identity, now)
    head = bhttp.request_head(method, path, fields, length)
    padding = bhttp.padding_after(len(head) + length)
    message = envelope.join([outgoing.signature, head, *content, padding])
    return SealedInference(outgoing.seal(message), outgoing, key.model)


def seal_inference(
    key: SealingKey,
    identity: Identity,
    inputs: Mapping[str, npt.ArrayLike],
    outputs: Sequence[str],
    now: float,
) -> SealedInference:
    """Seal one inference, its first tensor aligned for the runtime (clause 9.3).

    :raises InvalidInput: ``tensor-datatype``, ``request-too-large``.
    """
    request = oip.InferRequest(tuple(oip.tensor(name, value) for name, value in inputs.items()), tuple(outputs))
    path = f"/v2/models/{key.model.name}/infer"
    signature = envelope.signature_length("request-key" if key.secret is not None else "service-key")
    json_length, parts = oip.encode_request(request)
    # The JSON's length stands in a field before it, so the offset is found in two steps: its digits may change.
    for _ in range(3):
        fields = _fields(json_length)
        total = sum(memoryview(part).nbytes for part in parts)
        offset = signature + len(bhttp.request_head("POST", path, fields, total))
        again, parts = oip.encode_request(request, offset=offset)
        if again == json_length:
            break
        json_length = again
    return seal_http(key, identity, now, method="POST", path=path, fields=_fields(json_length), content=parts)


def _fields(json_length: int) -> list[bhttp.Field]:
    return [("content-type", "application/octet-stream"), (oip.HEADER_LENGTH_FIELD, str(json_length))]


def open_http(sealed: SealedInference, answer: Buffer) -> bhttp.Response:
    """The inner response; an error that travelled inside is raised.

    :raises Tampered: it is not the answer to this request, or was changed on the way.
    :raises CloisterError: what the runtime answered.
    """
    response = bhttp.parse_response(sealed.outgoing.open_response(answer))
    if response.status >= 300:
        raise inner_error(response)
    return response


def open_answer(
    sealed: SealedInference, answer: Buffer, expected_digest: bytes | None
) -> tuple[bhttp.Response, Provenance]:
    """The inner response, and where it comes from.

    :param expected_digest: the manifest that the consent names, if it names one.
    :raises Tampered: as :func:`open_http`, and ``model-other`` for another model than consented to.
    """
    response = open_http(sealed, answer)
    provenance = read_provenance(response.fields)
    if expected_digest is not None and provenance.model_digest != expected_digest:
        raise Tampered("model-other", "the answer comes from another version of the model than consented to")
    return response, provenance


def open_inference(sealed: SealedInference, answer: Buffer, expected_digest: bytes | None) -> Outputs:
    """The outputs; as :func:`open_answer`."""
    response, provenance = open_answer(sealed, answer, expected_digest)
    length = bhttp.field(response.fields, oip.HEADER_LENGTH_FIELD)
    decoded = oip.decode_response(response.content, _number(length) if length is not None else None)
    return Outputs({tensor.name: tensor.data for tensor in decoded.outputs}, provenance)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise InvalidInput("oip-malformed", f"{oip.HEADER_LENGTH_FIELD} is not a number")
    return int(text)


def read_provenance(fields: Sequence[bhttp.Field]) -> Provenance:
    """:raises InvalidInput: ``provenance-malformed``."""

    def digest(name: str) -> bytes:
        try:
            return bytes.fromhex(bhttp.field(fields, name) or "")
        except ValueError as error:
            raise InvalidInput("provenance-malformed", f"the response's field {name!r} is not hexadecimal") from error

    timing: dict[str, float] = {}
    for item in (bhttp.field(fields, TIMING_FIELD) or "").split(","):
        name, _, duration = item.strip().partition(";dur=")
        if name and duration.replace(".", "", 1).isdigit():
            timing[name] = float(duration)
    model_digest = digest(MODEL_DIGEST_FIELD)
    if len(model_digest) != 32:
        raise InvalidInput("provenance-malformed", "the response does not name its model")
    return Provenance(
        model_digest=model_digest,
        measurement=digest(MEASUREMENT_FIELD),
        tee=bhttp.field(fields, TEE_FIELD) or "",
        owner_policy=digest(OWNER_POLICY_FIELD),
        user_policy=digest(USER_POLICY_FIELD),
        warnings=tuple(filter(None, (bhttp.field(fields, WARNING_FIELD) or "").split(","))),
        timing_ms=timing,
    )


def inner_error(response: bhttp.Response) -> CloisterError:
    """The error of a problem+json inside the envelope."""
    return from_problem(response.content) or Unavailable(
        "runtime-answer-malformed", f"the runtime answered with status {response.status} and no reason"
    )
