"""Atheris targets: every parser of the wire and of the log.

Run: ``python -P tests/fuzz/fuzz_wire.py TARGET [-max_total_time=60]``; without a target it lists them. Any bytes give a
value or one of the four families. What stands behind a signature or a seal is fuzzed behind it too: who may sign may
be hostile. What is read is written again, and must be the same bytes: there is one encoding of each value.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import atheris
import numpy as np

with atheris.instrument_imports(include=["cloister.wire", "cloister.log", "cloister.base", "cloister.crypto"]):
    from cloister.base.errors import CloisterError, InvalidInput
    from cloister.base.ids import ModelId
    from cloister.base.limits import CHUNK_SIZE
    from cloister.base.secret import SecretBytes
    from cloister.crypto import hpke
    from cloister.crypto.box import seal_once
    from cloister.crypto.digest import Context, derive
    from cloister.crypto.hpke import HpkePrivateKey
    from cloister.crypto.sign import SigningKey
    from cloister.log import custody as custody_entries
    from cloister.log import entry, merkle, receipt
    from cloister.wire import (
        bhttp,
        calls,
        cbor,
        checkpoint,
        cose,
        custody,
        envelope,
        log_keys,
        manifest,
        oip,
        padding,
        presence,
        provisioning,
        records,
        recovery,
        statements,
    )

KEY = SigningKey.from_seed(SecretBytes(b"k" * 32))
HPKE = HpkePrivateKey.from_secret(SecretBytes(b"h" * 96))
SECRET = SecretBytes(b"s" * 32)
RECORD = custody.CustodyRecord(
    b"n" * 32,
    b"s" * 16,
    2,
    tuple(
        custody.Holder(name, bytes(32), bytes(hpke.OVERHEAD + 32))
        for name in sorted((custody.custodian_id(HPKE.public_key), b"o" * 32))
    ),
    0,
    custody.Code("sgx", b"m" * 32, bytes(32)),
    b"box",
)
SESSION = provisioning.Session(b"i" * 16, SECRET, 600)
VECTORS = Path(__file__).parents[2] / "vectors"


def same(decode: Callable[[bytes], Any], encode: Callable[[Any], bytes] | None = None) -> Callable[[bytes], None]:
    """A value that is written as it was read, or InvalidInput."""

    def one(data: bytes) -> None:
        with contextlib.suppress(InvalidInput):
            value = decode(data)
            if encode is not None:
                assert encode(value) == data

    return one


def signed(context: Context, verify: Callable[[bytes, bytes], object]) -> Callable[[bytes], None]:
    """Bytes that somebody signed who may, and bytes in place of the whole."""

    def one(data: bytes) -> None:
        with contextlib.suppress(CloisterError):
            verify(data, KEY.public_key)
        with contextlib.suppress(InvalidInput):
            verify(cose.sign1(KEY, context, data), KEY.public_key)

    return one


def all_of(*runs: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Each of them on the same bytes."""

    def one(data: bytes) -> None:
        for run in runs:
            run(data)

    return one


def statement(data: bytes) -> None:
    """Statement and query, before their signature is looked at and behind a good one."""
    for peek, verify, context in (
        (statements.peek_statement, statements.verify_statement, Context.STATEMENT),
        (statements.peek_query, statements.verify_query, Context.QUERY),
    ):
        with contextlib.suppress(InvalidInput):
            peek(data)
        signed(context, verify)(data)


def sealed_call(data: bytes) -> None:
    """A call as it arrives, and one that any stranger can make: sealed to the public call key."""
    sealed = b"" if len(data) > 1 << 16 else data
    with contextlib.suppress(CloisterError):
        calls.open_call(data, keyservice=b"n" * 32, keys_by_epoch={b"e" * 16: HPKE})
    for inner in (sealed, padding.pad(sealed)):
        box = seal_to_call_key(inner)
        outer = cbor.encode({"ks": b"n" * 32, "epoch": b"e" * 16, "sealed": box})
        with contextlib.suppress(InvalidInput):
            calls.open_call(outer, keyservice=b"n" * 32, keys_by_epoch={b"e" * 16: HPKE})


def seal_to_call_key(data: bytes) -> bytes:
    """As any stranger can: the call key is public."""
    return hpke.seal(HPKE.public_key, data, Context.KEYSERVICE_CALL, b"n" * 32, b"e" * 16)


def reply(data: bytes) -> None:
    """A reply, and what a hostile KeyService says inside one."""
    pending = calls.PendingCall(b"call", SECRET)
    with contextlib.suppress(CloisterError):
        calls.open_reply(pending, data)
    import hashlib

    key = derive(Context.KEYSERVICE_REPLY, SECRET.reveal(), bytes(32), hashlib.sha256(b"call").digest())
    with contextlib.suppress(CloisterError):
        result = calls.open_reply(pending, bytes(32) + seal_once(key, padding.pad(data), b""))
        with contextlib.suppress(InvalidInput):
            provisioning.Release.read(result)
        with contextlib.suppress(CloisterError):
            receipt.check_statement_receipt(result, b"statement", log_keys.LogKeys(KEY.public_key))


def custodians(data: bytes) -> None:
    """What lies on a disk in the clear, what asks custodians, and what they answer."""
    same(custody.CustodyRecord.decode, lambda found: found.encoded)(data)
    same(recovery.Offer.decode, lambda found: found.encode())(data)
    same(recovery.Answer.decode, lambda found: found.encode())(data)
    same(custody_entries.CustodySet.decode, lambda found: found.encode())(data)
    same(custody_entries.Recovery.decode, lambda found: found.encode())(data)
    with contextlib.suppress(CloisterError):
        custody.open_share(custody.CustodyRecord.decode(data), HPKE)
    with contextlib.suppress(CloisterError):
        recovery.open_answer(recovery.Answer.decode(data), RECORD, bytes(64), HPKE)


def session_call(data: bytes) -> None:
    """A session call, and what a runtime says inside one."""
    with contextlib.suppress(CloisterError):
        provisioning.open_session_call(provisioning.parse_session_call(data), SESSION)
    key = derive(Context.SESSION_CALL, SECRET.reveal(), (1).to_bytes(8, "big"))
    box = seal_once(key, padding.pad(data), SESSION.id)
    call = provisioning.parse_session_call(cbor.encode({"session": SESSION.id, "seq": 1, "box": box}))
    with contextlib.suppress(InvalidInput):
        value = provisioning.open_session_call(call, SESSION)
        with contextlib.suppress(InvalidInput):
            provisioning.ReleaseRequest.read(value)


def request(data: bytes) -> None:
    """Header in its short and its long way, prefix, and the lengths of frames."""
    same(envelope.RequestHeader.decode, lambda header: header.encode())(data)
    with contextlib.suppress(InvalidInput):
        found = envelope.RequestPrefix.parse(data)
        if found is not None:
            assert found.encode() == data[: found.length]
    with contextlib.suppress(InvalidInput):
        assert envelope.plaintext_length(data) <= len(data)


def frames(data: bytes) -> None:
    """Frames in one piece and in two give the same plaintext, or the same refusal."""
    cut = data[0] if data else 0

    def opened(pieces: Iterable[bytes]) -> tuple[list[bytes], str]:
        from cloister.crypto.stream import ChunkOpener

        reader = envelope.FrameReader(ChunkOpener(b"c" * 32, b"associated"))
        found: list[bytes] = []
        try:
            for piece in pieces:
                found += reader.feed(piece)
            reader.close()
        except CloisterError as error:
            return found, error.code
        return found, ""

    assert opened([data[1:]]) == opened([data[1 : 1 + cut], data[1 + cut :]])


def inner(data: bytes) -> None:
    """The HTTP message inside: request, response, and the content of a stream in one piece and in two."""
    for parse in (bhttp.parse_request, bhttp.parse_response):
        with contextlib.suppress(InvalidInput):
            parse(data)
    cut = data[0] if data else 0

    def parts(pieces: Iterable[bytes]) -> list[bytes] | None:
        content = bhttp.StreamContent(CHUNK_SIZE)
        found: list[bytes] = []
        try:
            for piece in pieces:
                found += content.feed(piece)
            content.close()
        except InvalidInput:
            return None
        return found

    assert parts([data]) == parts([data[:cut], data[cut:]])


def stream_records(data: bytes) -> None:
    """Records in one piece and in two."""
    cut = data[0] if data else 0

    def found(pieces: Iterable[bytes]) -> tuple[list[tuple[int, bytes]], str]:
        reader = records.RecordReader(1 << 16)
        out: list[tuple[int, bytes]] = []
        try:
            for piece in pieces:
                out += [(record.header_length, bytes(record.body)) for record in reader.feed(piece)]
            reader.close()
        except CloisterError as error:
            return out, error.code
        return out, ""

    assert found([data]) == found([data[:cut], data[cut:]])


def inference(data: bytes) -> None:
    """JSON alone, and JSON before tensors; memory is bounded by what came, whatever shapes it claims."""
    view = memoryview(data)
    for decode in (oip.decode_request, oip.decode_response):
        for length in (None, data[0] if data else 0, len(data), len(data) // 2):
            with contextlib.suppress(InvalidInput):
                found = decode(view, length)
                tensors = found.inputs if isinstance(found, oip.InferRequest) else found.outputs
                for tensor in tensors:
                    assert tensor.data.size <= 8 * len(data) + 8


def model_manifest(data: bytes) -> None:
    """Manifest and description."""
    with contextlib.suppress(CloisterError):
        manifest.Manifest.verify(data, KEY.public_key)
    for verify in (manifest.Manifest.parse, lambda found: manifest.Manifest.verify(found, KEY.public_key)):
        with contextlib.suppress(InvalidInput):
            verify(cose.sign1(KEY, Context.MANIFEST, data))
    same(manifest.Description.decode, lambda found: found.encode())(data)


def notes(data: bytes) -> None:
    """What passes between a KeyService and witnesses."""
    with contextlib.suppress(CloisterError):
        note = checkpoint.SignedNote.parse(data)
        assert data.startswith(note.checkpoint.text)
        note.verify(KEY.public_key)
    same(checkpoint.AddCheckpoint.decode, lambda found: found.encode())(data)
    with contextlib.suppress(CloisterError):
        checkpoint.parse_cosignatures(data, checkpoint.Checkpoint(b"n" * 32, 3, b"r" * 32), [KEY.public_key])
    with contextlib.suppress(InvalidInput):
        value = cbor.decode(data, limit=8192, what="x")
        if isinstance(value, list):
            checkpoint.read_cosignatures(value)
    with contextlib.suppress(CloisterError):
        found = log_keys.FollowLogKeys.decode(data)
        assert found.encode() == data
    for item in (data, cose.sign1(KEY, Context.LOG_KEY_CERTIFICATE, data)):
        with contextlib.suppress(CloisterError):
            keys = log_keys.LogKeys(KEY.public_key).then(item)
            assert log_keys.LogKeys.read(keys.items()) == keys


def log(data: bytes) -> None:
    """Entries and what is in them, receipts, proofs."""
    kinds = (entry.Entry, entry.Genesis, entry.ReleaseRecord, entry.ServiceKeyEpoch)
    for kind in (*kinds, entry.BundleRecord, entry.HandOverRecord):
        same(kind.decode, lambda found: found.encode())(data)
    signed_receipt(data)
    hashes = [data[at : at + 32] for at in range(3, len(data), 32)]
    first, second, index = (data + b"\0\0\0")[:3]
    with contextlib.suppress(CloisterError):
        merkle.verify_inclusion(b"l" * 32, index, second, hashes, b"r" * 32)
    with contextlib.suppress(CloisterError):
        merkle.verify_consistency(first, b"a" * 32, second, b"b" * 32, hashes)


def signed_receipt(data: bytes) -> None:
    """Behind a good signature a proof may still be wrong."""
    for item in (data, cose.sign1(KEY, Context.KEYSERVICE_RECEIPT, data)):
        with contextlib.suppress(CloisterError):
            receipt.verify_receipt(item, log_keys.LogKeys(KEY.public_key))


def status(data: bytes) -> None:
    """The KeyService's description, and its signed status."""
    with contextlib.suppress(InvalidInput):
        calls.Description.decode(data)
    for item in (data, cose.sign1(KEY, Context.KEYSERVICE_STATUS, data)):
        with contextlib.suppress(CloisterError):
            calls.verify_status(item, DESCRIPTION, b"o" * 32)


def padded(data: bytes) -> None:
    """What comes off goes on again."""
    with contextlib.suppress(InvalidInput):
        assert padding.pad(padding.unpad(data, what="x")) == data


def any_cbor(data: bytes) -> None:
    """One encoding of each value."""
    with contextlib.suppress(InvalidInput):
        assert cbor.encode(cbor.decode(data, limit=1 << 20, what="x")) == data


DESCRIPTION = calls.Description(
    keyservice=calls.keyservice_id(KEY.public_key),
    epoch=b"e" * 16,
    call_key=HPKE.public_key,
    log_keys=log_keys.LogKeys(KEY.public_key),
    configuration=b"c",
    bundle_digest=bytes(32),
    evidence=calls.WireEvidence("simulation", b"body", {}),
)


def vectors(name: str, *fields: str) -> Iterator[bytes]:
    """From the specification's vectors, and the payload of what is signed there."""
    for case in json.loads((VECTORS / f"{name}.json").read_text())["cases"]:
        for field in fields:
            if isinstance(case.get(field), str):
                data = bytes.fromhex(case[field])
                yield data
                with contextlib.suppress(InvalidInput):
                    yield cose.peek1(data, limit=1 << 20, what="a vector")


def inferences() -> Iterator[bytes]:
    """JSON alone, and with tensors."""
    tensors = (oip.tensor("x", np.ones((2, 3), np.float32)), oip.tensor("s", np.array(["a", "bc"])))
    length, parts = oip.encode_request(oip.InferRequest(tensors, ("y",)))
    yield bytes([min(length, 255)]) + b"".join(map(bytes, parts))
    yield b'{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,2.5]}],"outputs":[{"name":"y"}]}'
    yield b'{"model_name":"m","outputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["abc"]}]}'


def messages() -> Iterator[bytes]:
    """Binary HTTP."""
    fields = ((oip.HEADER_LENGTH_FIELD, "12"),)
    yield bhttp.request_head("POST", "/v2/models/m/infer", fields, 3) + b"abc" + bytes(40)
    yield bhttp.request_head("POST", "/v2/models/m/infer_stream", (), None)
    yield bhttp.stream_part(b"abc") + bhttp.stream_part(b"d") + bhttp.STREAM_END


@dataclass(frozen=True)
class Target:
    """What to run, and where to start."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


ENTRY = entry.Entry("statement", 1_800_000_000, bytes(32), b"body").encode()
MODEL = ModelId(b"o" * 32, "m")
RELEASE = provisioning.ReleaseRequest(b"u" * 32, MODEL, "request-key", b"k" * 32)
TARGETS = {
    "cbor": Target(any_cbor, tuple(vectors("cbor", "data"))),
    "statements": Target(statement, tuple(vectors("statements", "data"))),
    "calls": Target(
        sealed_call,
        (*vectors("calls", "call"), cbor.encode({"secret": b"s" * 32, "kind": "query", "body": b"b", "keys": []})),
    ),
    "replies": Target(reply, (cbor.encode({"ok": {"answer": 1}}), *vectors("calls", "reply"))),
    "sessions": Target(
        session_call,
        (cbor.encode(cbor.plain(RELEASE.fields())), provisioning.seal_session_call(SESSION, 3, RELEASE.fields())),
    ),
    "attest-request": Target(
        same(provisioning.AttestRequest.decode, lambda found: found.encode()), tuple(vectors("attestation", "data"))
    ),
    "endorsement": Target(
        signed(Context.SERVICE_KEY, provisioning.ServiceKeyEndorsement.verify),
        (
            cose.peek1(
                provisioning.ServiceKeyEndorsement(b"n" * 32, MODEL, None, b"p" * 32, 1, HPKE.public_key, 1, 2).sign(
                    KEY
                ),
                limit=8192,
                what="x",
            ),
        ),
    ),
    "custodians": Target(
        custodians,
        (
            RECORD.encoded,
            recovery.Answer(RECORD.holders[0].custodian, bytes(hpke.OVERHEAD + 32)).encode(),
            custody_entries.CustodySet(b"s" * 16, 2, (bytes(32), b"o" * 32), b"r" * 32).encode(),
            custody_entries.Recovery(b"s" * 16, (bytes(32),), "sgx", {"mrenclave": b"m" * 32}, bytes(32)).encode(),
            recovery.Offer(RECORD, HPKE.public_key, b"c", bytes(32), calls.WireEvidence("sgx", b"e", {})).encode(),
        ),
    ),
    "status": Target(status, (DESCRIPTION.encode(),)),
    "envelope": Target(request, tuple(vectors("envelope", "request", "response"))),
    "frames": Target(frames, (b"\x05" + envelope.frame_head(0, last=True) + bytes(16),)),
    "bhttp": Target(inner, tuple(messages())),
    "records": Target(stream_records, (bytes(records.encode_record(2, [b"{}abc"])) * 2,)),
    "oip": Target(inference, tuple(inferences())),
    "manifest": Target(model_manifest, tuple(vectors("model", "manifest", "description"))),
    "checkpoints": Target(
        notes,
        (
            checkpoint.Checkpoint(calls.keyservice_id(KEY.public_key), 3, b"r" * 32).sign(KEY),
            *vectors("witness", "request", "note"),
        ),
    ),
    "log": Target(log, (ENTRY, b"\x01\x05\x02" + bytes(96))),
    "presence": Target(same(presence.Presence.decode, lambda found: found.encode()), ()),
    "padding": Target(padded, (padding.pad(b"abc"), padding.pad(bytes(400)))),
}


def main() -> None:
    """The first argument names the target; the others are libFuzzer's."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"which of {', '.join(TARGETS)}?")
    target = TARGETS[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory() as corpus:
        for index, seed in enumerate(target.seeds):
            target.run(seed)
            Path(corpus, f"seed-{index}").write_bytes(seed)
        atheris.Setup([*sys.argv, "-max_len=65536", corpus], target.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
