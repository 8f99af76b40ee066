"""The inner response: head, body, padding, sealed into one buffer (spec/protocol.md, sections 8 to 10)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cloister.adapters.http import problem
from cloister.attest.types import TeeType
from cloister.base.errors import CloisterError, InvalidInput
from cloister.base.limits import MAX_RESPONSE_BODY
from cloister.base.secret import SecretBytes
from cloister.crypto.stream import Buffer
from cloister.wire import bhttp, oip
from cloister.wire.bhttp import Field
from cloister.wire.envelope import (
    NONCE_LENGTH,
    RESPONSE_MAGIC,
    RESPONSE_PREFIX,
    response_sealer,
    seal_frames,
    sealed_length,
)
from cloister.wire.padding import bucket
from cloister.wire.provisioning import Release

Lend = Callable[[int], memoryview]
"""Memory of so many bytes that lives until the response was written."""

TIMING_FIELD: Final = "server-timing"


@dataclass(frozen=True, slots=True)
class RuntimeIdentity:
    """What this process is, as its evidence says; named in every response (S3)."""

    tee: TeeType
    measurement: bytes
    configuration_digest: bytes

    def fields(self, release: Release) -> tuple[Field, ...]:
        """Clause 9.4: which model, on which code, under which policies."""
        named = (
            ("cloister-model-digest", release.manifest_digest.hex()),
            ("cloister-measurement", self.measurement.hex()),
            ("cloister-configuration", self.configuration_digest.hex()),
            ("cloister-tee", str(self.tee)),
            ("cloister-owner-policy", release.owner_policy.hex()),
            ("cloister-user-policy", release.user_policy.hex()),
        )
        warning = (("cloister-warning", "insecure-simulation"),) if self.tee is TeeType.SIMULATION else ()
        return (*named, *warning)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint answers.

    :param parts: the body, in parts that are not joined before they are sealed.
    """

    status: int
    fields: tuple[Field, ...] = ()
    parts: Sequence[Buffer] = field(default=())


def problem_answer(error: CloisterError) -> Answer:
    """An error as problem+json, for inside the envelope: with its cause."""
    response = problem.to_response(error)
    content = response.content
    assert isinstance(content, bytes)  # noqa: S101  # problems are
    return Answer(response.status, tuple(response.headers), (content,))


def infer_answer(response: oip.InferResponse, *, binary: bool) -> Answer:
    """An inference's result."""
    length, parts = oip.encode_response(response, binary=binary)
    if len(parts) == 1:
        return Answer(200, (("content-type", "application/json"),), parts)
    return Answer(200, (("content-type", "application/octet-stream"), (oip.HEADER_LENGTH_FIELD, str(length))), parts)


def seal_answer(
    answer: Answer, fields: tuple[Field, ...], said: bytes, *, secret: SecretBytes, request_digest: bytes, lend: Lend
) -> memoryview:
    """The whole sealed response, in lent memory.

    :param said: further fields, encoded: what stays the same while a lease runs.
    :raises InvalidInput: ``response-too-large``.
    """
    views = [memoryview(part).cast("B") for part in answer.parts]
    length = sum(view.nbytes for view in views)
    if length > MAX_RESPONSE_BODY:
        raise InvalidInput("response-too-large", f"the answer has more than {MAX_RESPONSE_BODY} bytes")
    head = bhttp.response_head(answer.status, (*answer.fields, *fields), length, encoded=said)
    total = len(head) + length
    padded = bucket(total + 1)  # one byte for the empty trailer section
    message = b"".join((head, *views, bytes(padded - total)))
    nonce = secrets.token_bytes(NONCE_LENGTH)
    out = lend(RESPONSE_PREFIX + sealed_length(padded))
    out[: len(RESPONSE_MAGIC)] = RESPONSE_MAGIC
    out[len(RESPONSE_MAGIC) : RESPONSE_PREFIX] = nonce
    seal_frames(response_sealer(secret, request_digest, nonce), message, out[RESPONSE_PREFIX:])
    return out
