"""The package reads the committed vectors as the specification says, and the vectors are fresh."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloister.base.errors import CloisterError
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context, derive, digest, report_data
from cloister.crypto.hpke import HpkePrivateKey
from cloister.crypto.sign import SigningKey
from cloister.keyservice.root import decode_root, root_of
from cloister.log import replication
from cloister.log.witness import Witnessed, judge
from cloister.wire import bhttp, calls, cbor, envelope, handover, manifest, padding, statements
from cloister.wire.cbor import Fields
from cloister.wire.checkpoint import AddCheckpoint, SignedNote, cosignature_line, parse_cosignatures
from cloister.wire.log_keys import LogKeys

VECTORS = Path(__file__).parents[3] / "vectors"
Case = dict[str, Any]


def cases(name: str) -> list[Any]:
    found = json.loads((VECTORS / f"{name}.json").read_text())["cases"]
    return [pytest.param(case, id=case["name"]) for case in found]


class Expect:
    """Runs the body and compares what is raised with what the vector expects."""

    def __init__(self, case: Case) -> None:
        self._expected = case["expect"]

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if error is None:
            assert self._expected == "ok", f"accepted, but must be refused with {self._expected}"
            return True
        if not isinstance(error, CloisterError):
            return False
        assert error.code == self._expected
        return True


def raw(case: Case, name: str) -> bytes:
    return bytes.fromhex(case[name])


def test_the_vectors_are_what_the_generator_writes() -> None:
    done = subprocess.run(
        [sys.executable, VECTORS / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", cases("cbor"))
def test_cbor(case: Case) -> None:
    with Expect(case):
        value = cbor.decode(raw(case, "data"), limit=4096, what="the vector")
        assert cbor.encode(value) == raw(case, "data")


@pytest.mark.parametrize("case", cases("primitives"))
def test_primitives(case: Case) -> None:
    parts = [bytes.fromhex(part) for part in case.get("parts", [])]
    match case["kind"]:
        case "digest":
            assert digest(Context(case["context"]), *parts).hex() == case["out"]
        case "report-data":
            assert report_data(Context(case["context"]), *parts).hex() == case["out"]
        case "derive":
            assert derive(Context(case["context"]), raw(case, "secret"), *parts).hex() == case["out"]
        case "identity":
            assert statements.identity_id(raw(case, "public")).hex() == case["out"]
        case "keyservice":
            assert calls.keyservice_id(raw(case, "public")).hex() == case["out"]
        case "bucket":
            assert padding.bucket(case["length"]) == case["out_length"]
        case other:
            pytest.fail(f"unknown kind {other}")


@pytest.mark.parametrize("case", cases("statements"))
def test_statements(case: Case) -> None:
    with Expect(case):
        statement = statements.verify_statement(raw(case, "data"), raw(case, "key"))
        assert statements.peek_statement(raw(case, "data")) == statement
        assert statement.sequence == 7


@pytest.mark.parametrize("case", cases("calls"))
def test_calls(case: Case) -> None:
    keys = {bytes.fromhex(e): HpkePrivateKey.from_secret(SecretBytes(raw(case, "private"))) for e in case["epochs"]}
    with Expect(case):
        call = calls.open_call(raw(case, "call"), keyservice=raw(case, "ks"), keys_by_epoch=keys)
        assert (call.kind, call.body) == ("query", b"question")
        pending = calls.PendingCall(raw(case, "call"), SecretBytes(raw(case, "secret")))
        assert calls.open_reply(pending, raw(case, "reply")) == {"answer": 42}


@pytest.mark.parametrize("case", cases("envelope"))
def test_envelope(case: Case) -> None:
    request = raw(case, "request")
    with Expect(case):
        prefix = envelope.RequestPrefix.parse(request)
        assert prefix is not None
        if case["mode"] == "request-key":
            secret = envelope.derive_content_secret(SecretBytes(raw(case, "request_key")), prefix.header_bytes)
        else:
            service_key = HpkePrivateKey.from_secret(SecretBytes(raw(case, "private")))
            secret = envelope.open_content_secret(service_key, prefix)
        frames = memoryview(request)[prefix.length :]
        out = bytearray(envelope.plaintext_length(frames))
        envelope.open_frames(envelope.request_opener(secret, prefix.digest), frames, memoryview(out))
        signed = envelope.signature_length(prefix.header.mode)
        if signed:
            envelope.verify_request_signature(prefix, bytes(out[:signed]), raw(case, "user_key"))
        assert out[signed:] == raw(case, "message")
        inner = bhttp.parse_request(out[signed:])
        assert (inner.method, inner.path) == ("POST", "/v2/models/diagnosis/infer")
        if "response" in case:
            outgoing = envelope.OutgoingRequest(b"", b"", prefix.digest, secret)
            assert outgoing.open_response(raw(case, "response")) == raw(case, "answer")


@pytest.mark.parametrize("case", cases("model"))
def test_model(case: Case) -> None:
    with Expect(case):
        signed = manifest.Manifest.verify(raw(case, "manifest"), raw(case, "owner"))
        entry = signed.file(manifest.DESCRIPTION)
        cipher = manifest.FileCipher.of(SecretBytes(raw(case, "model_key")), signed, entry)
        out = bytearray(entry.size)
        cipher.open_into(0, raw(case, "file"), memoryview(out))
        assert out == raw(case, "plain")
        assert manifest.manifest_digest(raw(case, "manifest")) == raw(case, "digest")
        description = manifest.Description.decode(bytes(out))
        assert (description.sizes, description.package) == ({"graph.onnx": 7}, b"index")
        assert description.encode() == bytes(out)


@pytest.mark.parametrize("case", cases("replicas"))
def test_replicas(case: Case) -> None:
    with Expect(case):
        if case["kind"] == "hand-over":
            key = HpkePrivateKey.from_secret(SecretBytes(raw(case, "private")))
            evidence = calls.WireEvidence("", b"", {})
            asked = handover.HandoverRequest(
                key.public_key, raw(case, "challenge"), raw(case, "configuration"), raw(case, "bundle"), evidence
            )
            root = decode_root(handover.open_sealed_root({"sealed": raw(case, "sealed")}, asked, raw(case, "ks"), key))
            assert root.secret.reveal() == raw(case, "root")
            assert asked.report_data(raw(case, "ks")) == raw(case, "report_data")
            assert root.id == raw(case, "ks")
        else:
            replication_key = root_of(SecretBytes(raw(case, "root"))).replication_key
            fields = replication.open_request(replication_key, raw(case, "request"))
            assert fields.text("kind", limit=16) == replication.PULL
            pull = replication.Pull.read(fields)
            answer = replication.open_answer(replication_key, raw(case, "request"), raw(case, "answer"))
            rows = replication.Rows.read(answer)
            assert (pull.size, rows.rows) == (case["size"], ((raw(case, "record"), b""),))
            assert rows.standing.leads
            assert rows.standing.term == pull.term


@pytest.mark.parametrize("case", cases("log_keys"))
def test_log_keys(case: Case) -> None:
    with Expect(case):
        items = [bytes.fromhex(item) for item in case["log_keys"]]
        fields = Fields({"log_key": raw(case, "log_key"), "log_keys": items}, "it")
        keys = LogKeys.take(fields, raw(case, "ks"))
        assert [[size, keys.all.index(keys.signer(size))] for size, _ in case["signers"]] == case["signers"]
        bound = calls.keyservice_report_data(
            epoch=raw(case, "epoch"),
            call_key=raw(case, "call_key"),
            log_keys=keys,
            configuration=raw(case, "configuration"),
            bundle_digest=raw(case, "bundle"),
        )
        assert bound == raw(case, "report_data")


@pytest.mark.parametrize("case", cases("witness"))
def test_witness(case: Case) -> None:
    known = Witnessed(case["known"][0], bytes.fromhex(case["known"][1]), case["known"][2])
    with Expect(case):
        request = AddCheckpoint.decode(raw(case, "request"))
        assert request.encode() == raw(case, "request")
        checkpoint = SignedNote.parse(request.note).verify(raw(case, "log_key"))
        after = judge(known, request, checkpoint, case["now"])
        assert after.time == case.get("time", case["now"])
        if "answer" in case:
            keys = [bytes.fromhex(key) for key in case["witnesses"]]
            found = parse_cosignatures(raw(case, "answer"), checkpoint, keys)
            assert len(found) == case["count"]
        if "witness_key" in case:
            made = checkpoint.cosign(SigningKey.from_seed(SecretBytes(raw(case, "witness_key"))), after.time)
            assert cosignature_line("witness.example/w1", made) == raw(case, "answer")
