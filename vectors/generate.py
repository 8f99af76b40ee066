"""Writes vectors/*.json from the specification alone: nothing of the package is imported.

A second reading of spec/protocol.md and spec/model-format.md, over pyca/cryptography and cbor2. Run it as
``python vectors/generate.py``; ``--check`` compares with what is committed. HPKE is randomised: its ciphertexts are
kept as committed as long as they still open.
"""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Callable
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from formats import (
    Case,
    Recipient,
    V,
    bhttp_request,
    bucket,
    case,
    cbor,
    cose,
    fixed,
    flip,
    frames,
    h,
    h512,
    kdf,
    kept,
    main,
    pad,
    public,
    signer,
)

# --- the files ---


def vectors_cbor(_old: Any) -> list[Case]:
    good = cbor({"a": [1, -1, b"x", "t", True, False, None], "b": {}, "long": b"y" * 300})
    bad = "cbor-malformed"
    return [
        case("a map of everything in use", "ok", data=good),
        case("trailing byte", "cbor-not-deterministic", data=good + b"\x00"),
        case("cut short", bad, data=good[:-1]),
        case("empty", bad, data=b""),
        case("integer not in shortest form", "cbor-not-deterministic", data=bytes.fromhex("1801")),
        case("map keys unsorted", "cbor-not-deterministic", data=bytes.fromhex("a2616201616101")),
        case("duplicate keys", bad, data=bytes.fromhex("a2616101616102")),
        case("indefinite array", bad, data=bytes.fromhex("9f01ff")),
        case("tag", bad, data=bytes.fromhex("c101")),
        case("float", bad, data=bytes.fromhex("f93c00")),
        case("undefined", bad, data=bytes.fromhex("f7")),
        case("announces 2^60 bytes", bad, data=bytes.fromhex("5b1000000000000000")),
        case("announces 2^60 items", "cbor-too-deep", data=bytes.fromhex("9b1000000000000000")),
        case("nested too deep", "cbor-too-deep", data=b"\x81" * 20 + b"\x00"),
        case("key that is a byte string", bad, data=bytes.fromhex("a1416101")),
        case("integer of 64 bits", bad, data=bytes.fromhex("1bffffffffffffffff")),
        case("text that is not UTF-8", bad, data=bytes.fromhex("61ff")),
    ]


def vectors_primitives(_old: Any) -> list[Case]:
    buckets = (0, 1, 256, 257, 4095, 602412)
    return [
        case("H of nothing", "ok", kind="digest", context=V + "policy", parts=[], out=h("policy")),
        case("H", "ok", kind="digest", context=V + "policy", parts=["6162", "63"], out=h("policy", b"ab", b"c")),
        case(
            "H shifted", "ok", kind="digest", context=V + "policy", parts=["61", "6263"], out=h("policy", b"a", b"bc")
        ),
        case(
            "H512",
            "ok",
            kind="report-data",
            context=V + "runtime-evidence",
            parts=["61"],
            out=h512("runtime-evidence", b"a"),
        ),
        case(
            "KDF",
            "ok",
            kind="derive",
            context=V + "request-chunks",
            secret=fixed("secret"),
            parts=["61"],
            out=kdf("request-chunks", fixed("secret"), b"a"),
        ),
        case("identity id", "ok", kind="identity", public=public("alice"), out=h("identity-id", public("alice"))),
        case("keyservice id", "ok", kind="keyservice", public=public("log"), out=h("keyservice-id", public("log"))),
        *[case(f"bucket of {n}", "ok", kind="bucket", length=n, out_length=bucket(n)) for n in buckets],
    ]


def statement(kind: str, body: Case) -> bytes:
    issuer = h("identity-id", public("alice"))
    payload = {
        "ks": h("keyservice-id", public("log")),
        "issuer": issuer,
        "subject": issuer,
        "seq": 7,
        "iat": 1_800_000_000,
        "ttl": 600,
        "type": kind,
        "body": body,
    }
    return cose("alice", "statement", cbor(payload))


def vectors_statements(_old: Any) -> list[Case]:
    owner = h("identity-id", public("alice"))
    model = f"{owner.hex()}/diagnosis"
    d = fixed("digest")
    bob = fixed("bob")
    forever = {"not_before": 0, "not_after": 2**53}
    published = {"name": "diagnosis", "version": 3, "manifest": d, "key": fixed("commitment")}
    proof = signer("alice2").sign(h("identity-id", owner, (7).to_bytes(8, "big")))
    service = {"versions": "any-version-by-this-owner", "mode": "service-key", "key": b""}
    bodies: list[tuple[str, Case]] = [
        ("register", {"key": public("alice"), "recovery": public("recovery")}),
        ("rotate-identity", {"key": public("alice2"), "proof": proof}),
        ("disable-identity", {}),
        ("define-policy", {"policy": b"policy"}),
        ("publish-model", published),
        ("rotate-model-key", published),
        ("retire-model", {"name": "diagnosis", "one": True, "manifest": d}),
        ("retire-model", {"name": "diagnosis", "one": False, "manifest": b""}),
        ("grant", {"name": "diagnosis", "user": bob, "policy": d, "quota": 10} | forever),
        ("revoke-grant", {"name": "diagnosis", "user": bob}),
        ("consent", {"model": model, "policy": d, "manifest": d, "mode": "request-key", "key": fixed("c")} | forever),
        ("consent", {"model": model, "policy": d} | service | forever),
        ("revoke-consent", {"model": model}),
        ("rotate-request-key", {"model": model, "key": fixed("c2")}),
        ("delegate", {"delegate": bob, "not_after": 1_900_000_000}),
        ("require-approval", {"approvals": 2, "delegates": sorted([bob, fixed("carol")])}),
        ("require-approval", {"approvals": 1, "delegates": []}),
        ("approve", {"entry": 7, "statement": statement("revoke-consent", {"model": model})}),
        ("decline", {"entry": 7}),
    ]
    key = public("alice")
    good = statement("revoke-consent", {"model": model})
    as_query = cose("alice", "query", cbor2.loads(good)[2])
    unsorted = {"approvals": 2, "delegates": sorted([bob, fixed("carol")], reverse=True)}
    backwards = {"name": "d", "user": bob, "policy": d, "quota": 0, "not_before": 2, "not_after": 1}

    def refused(name: str, expect: str, kind: str, body: Case) -> Case:
        return case(name, expect, data=statement(kind, body), key=key)

    return [
        *[case(f"{kind} {i}", "ok", data=statement(kind, body), key=key) for i, (kind, body) in enumerate(bodies)],
        case("signature flipped", "signature-invalid", data=flip(good), key=key),
        case("another key", "signature-invalid", data=good, key=public("mallory")),
        case("signed as a query", "signature-invalid", data=as_query, key=key),
        refused("unknown type", "statement-unknown", "destroy", {}),
        refused("unknown field", "field-unknown", "revoke-consent", {"model": model, "x": 1}),
        refused("missing field", "field-missing", "revoke-consent", {}),
        refused("model of nobody", "id-malformed", "revoke-consent", {"model": "diagnosis"}),
        refused("name that climbs", "name-malformed", "revoke-consent", {"model": f"{owner.hex()}/.."}),
        refused("three persons", "field-range", "require-approval", {"approvals": 3, "delegates": [bob]}),
        refused("two persons and nobody", "field-range", "require-approval", {"approvals": 2, "delegates": []}),
        refused("one person and others", "field-range", "require-approval", {"approvals": 1, "delegates": [bob]}),
        refused("a person twice", "field-range", "require-approval", {"approvals": 2, "delegates": [bob, bob]}),
        refused("persons out of order", "field-range", "require-approval", unsorted),
        refused("validity that ends before it begins", "validity-empty", "grant", backwards),
    ]


def vectors_calls(old: Any) -> list[Case]:
    recipient = Recipient("call")
    ks, epoch, secret = h("keyservice-id", public("log")), fixed("epoch", 16), fixed("reply secret")
    inner = pad(cbor({"secret": secret, "kind": "query", "body": b"question", "keys": []}))
    sealed = recipient.seal(inner, "keyservice-call", (ks, epoch), kept(old, "call and reply"))
    call = cbor({"ks": ks, "epoch": epoch, "sealed": sealed})
    nonce = fixed("reply nonce")
    key = kdf("keyservice-reply", secret, nonce, hashlib.sha256(call).digest())

    def reply(value: Case) -> bytes:
        return nonce + AESGCM(key).encrypt(bytes(12), pad(cbor(value)), b"")

    refusal = {"family": "refused", "code": "grant-missing", "message": "m", "hint": "", "details": {"rule": "r"}}
    other = cbor({"ks": fixed("other"), "epoch": epoch, "sealed": sealed})
    moved = cbor({"ks": ks, "epoch": fixed("epoch 2", 16), "sealed": sealed})
    common: Case = {"ks": ks, "epochs": [epoch.hex()], "private": recipient.private, "secret": secret}
    later = common | {"epochs": [fixed("epoch 2", 16).hex()]}
    answer = reply({"ok": {"answer": 42}})
    refused = reply({"error": refusal | {"retry_ms": -1}})
    return [
        case("call and reply", "ok", sealed=sealed, call=call, reply=answer, **common),
        case("refusal inside the reply", "grant-missing", call=call, reply=refused, **common),
        case("reply flipped", "box-open", call=call, reply=flip(answer), **common),
        case("for another keyservice", "call-other-keyservice", call=other, **common),
        case("for an epoch that ended", "call-epoch-gone", call=moved, **common),
        case("moved to another epoch", "hpke-open", call=moved, **later),
    ]


def vectors_envelope(old: Any) -> list[Case]:
    owner = h("identity-id", public("alice"))
    request_key = fixed("request key")
    content_type = [(b"content-type", b"application/json")]
    message = bhttp_request(b"/v2/models/diagnosis/infer", content_type, b'{"inputs":[]}')

    def header(mode: str, key_id: bytes) -> bytes:
        return cbor(
            {
                "suite": 1,
                "mode": mode,
                "model": f"{owner.hex()}/diagnosis",
                "user": h("identity-id", public("bob")),
                "key": key_id,
                "nonce": fixed("nonce"),
                "iat": 1_800_000_000,
            }
        )

    def seal(head: bytes, sealed: bytes, secret: bytes, chunks: list[bytes]) -> list[bytes]:
        r = h("request-header", head, sealed)
        parts = frames(kdf("request-chunks", secret, r), (V + "request-chunks").encode() + r, chunks)
        return [b"CLQ1" + len(head).to_bytes(2, "big") + head + sealed, *parts]

    head = header("request-key", h("key-commitment", request_key))
    secret = kdf("request-content-secret", request_key, head)
    whole = b"".join(seal(head, b"", secret, [message]))
    prefix, one, two, three = seal(head, b"", secret, [message[:100], message[100:200], message[200:]])
    r, n = h("request-header", head, b""), fixed("response nonce")
    response_key, bound = kdf("response-chunks", secret, r, n), (V + "response-chunks").encode() + r + n
    answer = b"CLA1" + n + b"".join(frames(response_key, bound, [b"answer"]))

    recipient = Recipient("service")
    service_head = header("service-key", h("service-key-endorsement", recipient.public))
    content = fixed("content secret")
    sealed = recipient.seal(content, "request-seal", (service_head,), kept(old, "service key"))
    signature = signer("bob").sign(h("request-signature", h("request-header", service_head, sealed)))
    service = b"".join(seal(service_head, sealed, content, [signature + message]))

    common: Case = {"mode": "request-key", "request_key": request_key, "message": message}
    in_service: Case = {"mode": "service-key", "private": recipient.private, "message": message, "request": service}
    start = len(prefix)
    cleared = whole[:start] + bytes([whole[start] & 0x7F]) + whole[start + 1 :]
    oversized = whole[:start] + b"\x80\x10\x00\x01" + whole[start + 4 :]
    return [
        case("request key, one chunk", "ok", request=whole, response=answer, answer=b"answer", **common),
        case("request key, three chunks", "ok", request=prefix + one + two + three, **common),
        case("chunks reordered", "chunk-open", request=prefix + two + one + three, **common),
        case("chunk dropped", "chunk-open", request=prefix + one + three, **common),
        case("final chunk cut off", "envelope-truncated", request=prefix + one + two, **common),
        case("cut in the middle", "envelope-truncated", request=whole[:-1], **common),
        case("bytes after the final chunk", "envelope-trailing", request=whole + b"\x00", **common),
        case("final flag cleared", "envelope-truncated", request=cleared, **common),
        case("chunk beyond the limit", "chunk-too-long", request=oversized, **common),
        case("model id changed", "chunk-open", request=whole.replace(b"diagnosis", b"diagnosit", 1), **common),
        case("tag flipped", "chunk-open", request=flip(whole), **common),
        case("response flipped", "chunk-open", request=whole, response=flip(answer), answer=b"", **common),
        case("response cut", "envelope-truncated", request=whole, response=answer[:-1], answer=b"", **common),
        case("not ours", "envelope-malformed", request=b"GET / HTTP/1.1\r\n\r\n", **common),
        case("service key", "ok", user_key=public("bob"), sealed=sealed, **in_service),
        case("service key, another user", "signature-invalid", user_key=public("mallory"), **in_service),
    ]


def vectors_model(_old: Any) -> list[Case]:
    model = f"{h('identity-id', public('alice')).hex()}/diagnosis"
    salt, model_key = fixed("salt"), fixed("model key")
    chunk = 1 << 20

    def stored(name: str, plain: bytes, version: int = 1) -> bytes:
        size = len(plain).to_bytes(8, "big")
        key = kdf("model-file", model_key, model.encode(), version.to_bytes(8, "big"), salt, name.encode(), size)
        count = max(1, -(-len(plain) // chunk))
        out = b""
        for i in range(count):
            nonce = bytes(7) + i.to_bytes(4, "big") + bytes([i == count - 1])
            out += AESGCM(key).encrypt(nonce, plain[i * chunk : (i + 1) * chunk], (V + "model-chunk").encode())
        return out

    description = cbor({"v": 1, "sizes": {"graph.onnx": 7}, "package": b"index"})
    plain = len(description).to_bytes(4, "big") + description
    plain += bytes(4096 - len(plain))
    data = stored("description", plain)
    root = hashlib.sha256(hashlib.sha256(data).digest()).digest()
    payload = {
        "v": 1,
        "model": model,
        "version": 1,
        "salt": salt,
        "chunk": chunk,
        "files": [["description", len(plain), root]],
    }

    def signed(**changes: Any) -> bytes:
        return cose("alice", "model-manifest", cbor(payload | changes))

    common: Case = {"model_key": model_key, "owner": public("alice"), "manifest": signed()}
    unsorted = [["z", 1, root], ["description", len(plain), root]]
    climbing = [["../x", 1, root], ["description", len(plain), root]]
    return [
        case("one file", "ok", digest=h("model-manifest", signed()), file=data, plain=plain, **common),
        case("chunk flipped", "model-chunk", file=flip(data), **common),
        case("file of another version", "model-chunk", file=stored("description", plain, 2), **common),
        case("file of another name", "model-chunk", file=stored("graph.onnx", plain), **common),
        case("signed by another", "signature-invalid", **(common | {"owner": public("mallory")})),
        case("files unsorted", "manifest-files", **(common | {"manifest": signed(files=unsorted)})),
        case("path that climbs", "manifest-files", **(common | {"manifest": signed(files=climbing)})),
        case("no description", "manifest-files", **(common | {"manifest": signed(files=[])})),
    ]


def vectors_witness(_old: Any) -> list[Case]:
    """13.7 to 13.9: a checkpoint, its submission, co-signatures."""
    log, ks = public("log"), h("keyservice-id", public("log"))
    origin = (V + "keyservice-head/").encode() + ks.hex().encode()
    leaves = [hashlib.sha256(b"\x00" + bytes([n])).digest() for n in range(3)]
    node = [hashlib.sha256(b"\x01" + leaves[0] + leaves[1]).digest()]
    root3 = hashlib.sha256(b"\x01" + node[0] + leaves[2]).digest()

    def text_of(size: int, root: bytes, first: bytes = origin) -> bytes:
        return first + b"\n%d\n" % size + base64.b64encode(root) + b"\n"

    def line(name: bytes, kind: bytes, key: bytes, signature: bytes) -> bytes:
        key_id = hashlib.sha256(name + b"\n" + kind + key).digest()[:4]
        return "— ".encode() + name + b" " + base64.b64encode(key_id + signature) + b"\n"

    def note(size: int, root: bytes, label: str = "log") -> bytes:
        body = text_of(size, root)
        return body + b"\n" + line(origin, b"\x01", public(label), signer(label).sign(body))

    def cosigned(label: str, body: bytes, time: int) -> bytes:
        signature = signer(label).sign(b"cosignature/v1\ntime %d\n" % time + body)
        return line(f"witness.example/{label}".encode(), b"\x04", public(label), time.to_bytes(8, "big") + signature)

    def add(old: int, proof: list[bytes], signed: bytes) -> bytes:
        return b"old %d\n" % old + b"".join(base64.b64encode(p) + b"\n" for p in proof) + b"\n" + signed

    body3, time = text_of(3, root3), 1_800_000_000
    common: Case = {
        "log_key": log,
        "witnesses": [public("w1").hex(), public("w2").hex()],
        "known": [2, node[0].hex(), time],
        "now": time + 5,
    }
    grow = add(2, [leaves[2]], note(3, root3))
    answer = cosigned("w1", body3, time + 5)
    both = answer + cosigned("stranger", body3, time) + cosigned("w2", body3, time + 6)
    beyond = common | {"now": time - 100}
    extension = text_of(3, root3) + b"extension\n"
    extended = extension + b"\n" + line(origin, b"\x01", log, signer("log").sign(extension))
    return [
        case("growth", "ok", request=grow, witness_key=fixed("w1"), answer=answer, count=1, **common),
        case("time does not go back", "ok", request=grow, time=time, **beyond),
        case("the same head again", "ok", request=add(2, [], note(2, node[0])), **common),
        case("two witnesses and a stranger", "ok", request=grow, answer=both, count=2, **common),
        case("from another size", "witness-conflict", request=add(1, [leaves[1], leaves[2]], note(3, root3)), **common),
        case("smaller than known", "witness-conflict", request=add(1, [], note(1, leaves[0])), **common),
        case("same size, another root", "witness-conflict", request=add(2, [], note(2, root3)), **common),
        case("another history", "log-fork", request=add(2, [leaves[1]], note(3, root3)), **common),
        case("old above new", "checkpoint-malformed", request=add(4, [], note(3, root3)), **common),
        case("signed by another", "signature-invalid", request=add(2, [leaves[2]], note(3, root3, "w1")), **common),
        case("with an extension line", "checkpoint-malformed", request=add(2, [leaves[2]], extended), **common),
        case(
            "number with a zero before it", "checkpoint-malformed", request=grow.replace(b"old 2", b"old 02"), **common
        ),
        case(
            "answer flipped",
            "signature-invalid",
            request=grow,
            answer=cosigned("w1", body3[:-2] + b"x\n", time),
            **common,
        ),
    ]


def vectors_replicas(old: Any) -> list[Case]:
    """13.15 and 13.17: the root secret for one that joins, and an exchange between replicas."""
    root, joiner = fixed("root secret"), Recipient("joiner")
    log_seed = kdf("log-key", root)
    log = Ed25519PrivateKey.from_private_bytes(log_seed).public_key().public_bytes_raw()
    ks = h("keyservice-id", log)
    challenge, configuration, bundle = (
        fixed("challenge", 56),
        cbor({"replicas": 3, "role": "keyservice"}),
        fixed("bundle"),
    )
    configured = h("configuration", configuration)
    bound = h512("keyservice-handover-evidence", ks, joiner.public, challenge, configured, bundle)
    content = cbor({"context": b"cloister/v1/sealed-state", "version": 1, "root": root})
    sealed = joiner.seal(content, "keyservice-handover", (bound,), kept(old, "hand-over"))
    common: Case = {
        "kind": "hand-over",
        "private": joiner.private,
        "ks": ks,
        "challenge": challenge,
        "configuration": configuration,
        "bundle": bundle,
        "sealed": sealed,
    }

    key, nonce, answer_nonce = kdf("keyservice-replication-key", root), fixed("request nonce"), fixed("answer nonce")

    def box(derived: bytes, first: bytes, content: Case) -> bytes:
        return first + AESGCM(derived).encrypt(bytes(12), cbor(content), b"")

    def answered(request: bytes, content: Case) -> bytes:
        derived = kdf("keyservice-replica-reply", key, answer_nonce, hashlib.sha256(request).digest())
        return box(derived, answer_nonce, content)

    pull = {
        "kind": "pull",
        "replica": fixed("replica", 16),
        "term": fixed("term", 16),
        "size": 7,
        "link": fixed("link"),
        "wait_ms": 1000,
    }
    standing = {
        "replica": fixed("leader", 16),
        "term": fixed("term", 16),
        "able": True,
        "confirming": True,
        "size": 8,
        "head": {},
    }
    asking = kdf("keyservice-replica-request", key, nonce)
    request = box(asking, nonce, pull)
    rows = answered(request, {"standing": standing, "same": True, "rows": [[b"record", b""]]})
    exchange: Case = {"kind": "exchange", "root": root, "request": request}
    late = box(asking, nonce, pull | {"wait_ms": 1001})
    return [
        case("hand-over", "ok", report_data=bound, root=root, **common),
        case("hand-over of another keyservice", "hpke-open", **(common | {"ks": fixed("other")})),
        case("hand-over for another challenge", "hpke-open", **(common | {"challenge": fixed("other", 56)})),
        case("hand-over flipped", "hpke-open", **(common | {"sealed": flip(sealed)})),
        case("pull and rows", "ok", answer=rows, size=7, record=b"record", **exchange),
        case("pull flipped", "box-open", answer=rows, **(exchange | {"request": flip(request)})),
        case("rows flipped", "box-open", answer=flip(rows), **exchange),
        case("rows of another question", "box-open", answer=answered(b"other", {"same": True}), **exchange),
        case("the question sent back", "box-open", answer=request, **exchange),
        case("a wait beyond a second", "field-range", answer=rows, **(exchange | {"request": late})),
    ]


def vectors_log_keys(_old: Any) -> list[Case]:
    """13.27: log keys that follow one another, which part of the log each signs for, and what evidence is over."""
    ks, epoch, bundle, configuration = h("keyservice-id", public("log")), fixed("epoch", 16), fixed("bundle"), b"c"
    root = fixed("root of the tree")

    def certificate(signed_by: str, named: str, **changes: Any) -> bytes:
        made = {"ks": ks, "generation": 1, "key": public(named), "size": 10, "root": root, "time": 1_800_000_000}
        return cose(signed_by, "log-key-certificate", cbor(made | changes))

    first = certificate("log", "log-1")
    second = certificate("log-1", "log-2", generation=2, size=20)

    def over(*items: bytes) -> bytes:
        """Of a description with these log keys, whose last certificate names ``log-2``."""
        configured = h("configuration", configuration)
        return h512(
            "keyservice-evidence", epoch, fixed("call key"), public("log-2"), configured, bundle, h("log-keys", *items)
        )

    def chain(*items: bytes) -> list[str]:
        return [item.hex() for item in items]

    good = chain(public("log"), first, second)
    common: Case = {"ks": ks.hex(), "log_key": public("log-2").hex()}
    wrong = "signature-invalid"
    broken = "log-keys-broken"

    def after(name: str, last: bytes, expect: str = broken) -> Case:
        return case(name, expect, log_keys=chain(public("log"), first, last), **common)

    return [
        case(
            "two rotations",
            "ok",
            log_keys=good,
            signers=[[0, 0], [10, 0], [11, 1], [20, 1], [21, 2]],
            epoch=epoch,
            call_key=fixed("call key"),
            configuration=configuration,
            bundle=bundle,
            report_data=over(public("log"), first, second),
            **common,
        ),
        case("of another keyservice", "keyservice-id", log_keys=good, **(common | {"ks": fixed("other").hex()})),
        case("without the last", "log-keys-malformed", log_keys=good[:2], **common),
        case("a first key and nothing else", "log-keys-malformed", log_keys=good[:1], **common),
        case("without the one between", wrong, log_keys=[good[0], good[2]], **common),
        after("signed by the first key", certificate("log", "log-2", generation=2, size=20), wrong),
        after("for another purpose", cose("log-1", "keyservice-receipt", cbor({})), wrong),
        after("of another keyservice, by the right key", certificate("log-1", "log-2", ks=root, generation=2, size=20)),
        after("a generation left out", certificate("log-1", "log-2", generation=3, size=20)),
        after("the same generation again", certificate("log-1", "log-2", size=20)),
        after("not after the one before", certificate("log-1", "log-2", generation=2, size=10)),
        after("a time before", certificate("log-1", "log-2", generation=2, size=20, time=1)),
        after("an earlier key again", certificate("log-1", "log", generation=2, size=20)),
        after("generation 16", certificate("log-1", "log-2", generation=16, size=20), "field-range"),
    ]


FILES: dict[str, Callable[[Any], list[Case]]] = {
    "cbor": vectors_cbor,
    "primitives": vectors_primitives,
    "statements": vectors_statements,
    "calls": vectors_calls,
    "envelope": vectors_envelope,
    "model": vectors_model,
    "witness": vectors_witness,
    "replicas": vectors_replicas,
    "log_keys": vectors_log_keys,
}


if __name__ == "__main__":
    sys.exit(main(FILES))
