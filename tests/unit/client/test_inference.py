"""Sealing an inference and opening its answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.base.errors import InvalidInput, Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.client.exchange import pause_before_next
from cloister.client.identity import Identity
from cloister.client.inference import (
    MEASUREMENT_FIELD,
    MODEL_DIGEST_FIELD,
    SealedInference,
    SealingKey,
    inner_error,
    open_inference,
    seal_inference,
)
from cloister.crypto.hpke import HpkePrivateKey
from cloister.crypto.sign import SigningKey
from cloister.runtime.messages import problem_answer
from cloister.wire import bhttp, envelope, oip
from cloister.wire.provisioning import ServiceKeyEndorsement
from cloister.wire.statements import identity_id, key_commitment

SIGNER = SigningKey.generate()
USER = Identity("bob", identity_id(SIGNER.public_key), SIGNER, Path())
MODEL = ModelId(bytes(32), "m")
REQUEST_KEY = SecretBytes(b"r" * 32)
SERVICE = HpkePrivateKey.generate()
DIGEST = b"d" * 32


def sealing_key(mode: str) -> SealingKey:
    if mode == "request-key":
        return SealingKey(MODEL, key_commitment(REQUEST_KEY), secret=REQUEST_KEY)
    endorsement = ServiceKeyEndorsement(b"k" * 32, MODEL, None, b"p" * 32, 1, SERVICE.public_key, 0, 1)
    return SealingKey(MODEL, endorsement.key_id, service_key=SERVICE.public_key)


def opened(sealed: SealedInference) -> tuple[envelope.RequestPrefix, bytearray]:
    """As a runtime would."""
    prefix = envelope.RequestPrefix.parse(sealed.data)
    assert prefix is not None
    if prefix.sealed:
        secret = envelope.open_content_secret(SERVICE, prefix)
    else:
        secret = envelope.derive_content_secret(REQUEST_KEY, prefix.header_bytes)
    frames = memoryview(sealed.data)[prefix.length :]
    out = bytearray(envelope.plaintext_length(frames))
    envelope.open_frames(envelope.request_opener(secret, prefix.digest), frames, memoryview(out))
    return prefix, out


def answer(sealed: SealedInference, outputs: dict[str, Any], status: int = 200, **fields: str) -> bytes:
    """As a runtime would."""
    prefix = envelope.RequestPrefix.parse(sealed.data)
    assert prefix is not None
    length, parts = oip.encode_response(
        oip.InferResponse("m", tuple(oip.tensor(n, a) for n, a in outputs.items())), binary=True
    )
    body = b"".join(map(bytes, parts))
    given = {MODEL_DIGEST_FIELD: DIGEST.hex(), MEASUREMENT_FIELD: "aa" * 48, oip.HEADER_LENGTH_FIELD: str(length)}
    head = bhttp.response_head(status, list((given | fields).items()), len(body))
    message = head + body + bhttp.padding_after(len(head) + len(body))
    nonce = bytes(32)
    frames = bytearray(envelope.sealed_length(len(message)))
    sealer = envelope.response_sealer(sealed.outgoing.secret, prefix.digest, nonce)
    envelope.seal_frames(sealer, message, memoryview(frames))
    return envelope.RESPONSE_MAGIC + nonce + bytes(frames)


@pytest.mark.parametrize("mode", ["request-key", "service-key"])
@given(name=st.text("abc_é", min_size=1, max_size=30), length=st.integers(1, 2000))
def test_a_tensor_arrives_where_an_engine_can_borrow_it(mode: str, name: str, length: int) -> None:
    x = np.arange(length, dtype=np.float32)
    sealed = seal_inference(sealing_key(mode), USER, {name: x}, (), 0.0)
    prefix, plain = opened(sealed)
    signed = envelope.signature_length(mode)
    if signed:
        envelope.verify_request_signature(prefix, bytes(plain[:signed]), SIGNER.public_key)
    request = bhttp.parse_request(memoryview(plain)[signed:])
    field = bhttp.field(request.fields, oip.HEADER_LENGTH_FIELD)
    assert field is not None
    decoded = oip.decode_request(request.content, int(field))
    assert np.array_equal(decoded.inputs[0].data, x)
    start = bytes(plain).index(x.tobytes()) if length > 8 else 0
    assert start % oip.ALIGNMENT == 0


def test_an_answer_opens_for_its_request_only() -> None:
    one, two = (seal_inference(sealing_key("request-key"), USER, {"x": np.zeros(3)}, (), 0.0) for _ in range(2))
    y = np.arange(4, dtype=np.int64)
    outputs = open_inference(one, answer(one, {"y": y}), DIGEST)
    assert np.array_equal(outputs["y"], y)
    assert outputs.provenance.model_digest == DIGEST
    with pytest.raises(Tampered, match="chunk-open"):
        open_inference(two, answer(one, {"y": y}), DIGEST)


def test_an_answer_of_another_version_than_consented_to_is_refused() -> None:
    sealed = seal_inference(sealing_key("request-key"), USER, {"x": np.zeros(3)}, (), 0.0)
    with pytest.raises(Tampered, match="model-other"):
        open_inference(sealed, answer(sealed, {"y": np.zeros(1)}), b"e" * 32)


def test_an_answer_that_names_no_model_is_refused() -> None:
    sealed = seal_inference(sealing_key("request-key"), USER, {"x": np.zeros(3)}, (), 0.0)
    with pytest.raises(InvalidInput, match="provenance-malformed"):
        open_inference(sealed, answer(sealed, {"y": np.zeros(1)}, **{MODEL_DIGEST_FIELD: ""}), None)


def test_a_truncated_answer_is_an_error() -> None:
    sealed = seal_inference(sealing_key("request-key"), USER, {"x": np.zeros(3)}, (), 0.0)
    data = answer(sealed, {"y": np.zeros(100)})
    for length in range(0, len(data), 37):
        with pytest.raises((InvalidInput, Tampered)):
            open_inference(sealed, data[:length], DIGEST)


def test_the_same_inference_twice_has_nothing_in_common() -> None:
    one, two = (seal_inference(sealing_key("request-key"), USER, {"x": np.zeros(500)}, (), 0.0) for _ in range(2))
    first, second = bytes(one.data), bytes(two.data)
    assert len(first) == len(second)
    tail = {first[i : i + 16] for i in range(400, len(first) - 16)}
    assert not any(second[i : i + 16] in tail for i in range(400, len(second) - 16))


def test_sizes_are_padded() -> None:
    sizes = {
        len(seal_inference(sealing_key("request-key"), USER, {"x": np.zeros(n)}, (), 0.0).data) for n in range(300, 330)
    }
    assert len(sizes) <= 3


def test_an_unknown_inner_error_is_still_ours() -> None:
    for body in (
        b"",
        b"{",
        b"[]",
        b'{"type":1}',
        b'{"type":"Not Kebab"}',
        b'{"type":"urn:cloister:error:a-b","details":3}',
    ):
        error = inner_error(bhttp.Response(500, (), memoryview(body)))
        assert error.code
    known = b'{"type":"urn:cloister:error:input-missing","title":"invalid-input","detail":"d","hint":"h"}'
    error = inner_error(bhttp.Response(400, (), memoryview(known)))
    assert (type(error), error.code, error.hint) == (InvalidInput, "input-missing", "h")


def test_when_to_come_again_is_told_inside_too() -> None:
    told = problem_answer(Unavailable("lease-ended", "the lease of these keys has ended", retry_after=0.0))
    error = inner_error(bhttp.Response(told.status, told.fields, memoryview(told.parts[0])))
    assert isinstance(error, Unavailable)
    assert (error.code, error.retry_after) == ("lease-ended", 0.0)
    assert 0 < pause_before_next(error, 0, 10.0) < 1


def test_only_what_is_safe_is_sent_again() -> None:
    assert pause_before_next(Unavailable("runtime-full", "m", retry_after=0.5), 0, 10.0) == 0.5
    assert pause_before_next(Unavailable("connect-failed", "m"), 3, 10.0) > 0
    with pytest.raises(Unavailable) as caught:
        pause_before_next(Unavailable("deadline-exceeded", "m"), 0, 0.0)
    assert "start" in (caught.value.hint or "")
    for error, left in (
        (Unavailable("model-not-found", "m"), 10.0),
        (Unavailable("x-y", "m", retry_after=5.0), 4.0),
        (Unavailable("quota-exhausted", "m", retry_after=5.0), 60.0),
    ):
        with pytest.raises(Unavailable):
            pause_before_next(error, 0, left)
