"""Malformed requests of every kind, from a seed: what S8 says is refused, on the ports where it arrives.

Some are wrong outside the envelope, as anybody in the network can make them; others are sealed by a user in good
standing and wrong inside it. Each is to be refused with a stable code, and to change nothing for anybody else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cloister.base.ids import ModelId
from cloister.client.client import Client
from cloister.client.inference import SealedInference, begin, seal_http, seal_inference
from cloister.wire import bhttp, calls, cbor, envelope, oip
from cloister.wire.envelope import OutgoingRequest

RUNTIME: Final = "runtime"  # or a gateway before it
KEYSERVICE: Final = "keyservice"
JSON_TYPE: Final = ("content-type", "application/json")


@dataclass(frozen=True, slots=True)
class Malformed:
    """One of them.

    :param service: ``runtime`` or ``keyservice``. :param sealed: set when the answer comes sealed, to open it.
    """

    kind: str
    service: str
    target: str
    data: bytes
    sealed: SealedInference | None = None


class Forge:
    """Makes them.

    :param client: a user who may use ``model``, whose single input is ``x``: FP32, [-1, columns].
    """

    def __init__(self, client: Client, model: ModelId, columns: int, seed: int) -> None:
        self.client = client
        self.model = model
        self.columns = columns
        self.rng = np.random.default_rng(seed)
        self.target = f"/v1/models/{model}/infer"
        self.answered: SealedInference | None = None  # to be replayed

    def stream(self, count: int) -> Iterator[Malformed]:
        """``count`` of them, all kinds equally often."""
        makers = [*OUTSIDE.items(), *INSIDE.items(), *TO_KEYSERVICE.items()]
        for number in range(count):
            kind, make = makers[number % len(makers)]
            yield make(self, kind)

    # --- parts ---

    def good(self) -> SealedInference:
        """What is right until somebody changes it."""
        x = self.rng.random((1, self.columns), dtype=np.float32)
        key = self.client.keys.key(self.model)
        return seal_inference(key, self.client.account.identity, {"x": x}, (), self.client.clock.now())

    def begun(self) -> OutgoingRequest:
        """An envelope."""
        return begin(self.client.keys.key(self.model), self.client.account.identity, self.client.clock.now())

    def noise(self, longest: int) -> bytes:
        """Random bytes."""
        return self.rng.bytes(int(self.rng.integers(0, longest + 1)))

    def below(self, limit: int) -> int:
        """A random number."""
        return int(self.rng.integers(0, limit))

    def outside(self, kind: str, data: bytes, target: str | None = None) -> Malformed:
        """As it is."""
        return Malformed(kind, RUNTIME, target or self.target, data)

    def inside(
        self, kind: str, content: bytes, *, path: str | None = None, fields: Any = (), method: str = "POST"
    ) -> Malformed:
        """Sealed by the user."""
        key = self.client.keys.key(self.model)
        sealed = seal_http(
            key,
            self.client.account.identity,
            self.client.clock.now(),
            method=method,
            path=path or f"/v2/models/{self.model.name}/infer",
            fields=fields,
            content=[content],
        )
        return Malformed(kind, RUNTIME, self.target, bytes(sealed.data), sealed)

    def raw_inside(self, kind: str, message: bytes) -> Malformed:
        """Any plaintext, sealed by the user."""
        outgoing = self.begun()
        data = outgoing.seal(bytearray(outgoing.signature + message))
        return Malformed(kind, RUNTIME, self.target, bytes(data), SealedInference(data, outgoing, self.model))

    def inference(self, kind: str, value: Any, tail: bytes = b"", length: str | None = None) -> Malformed:
        """Any JSON as an inference, with bytes after it."""
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        said = length if length is not None else str(len(text))
        fields = ((oip.HEADER_LENGTH_FIELD, said),) if tail or length is not None else (JSON_TYPE,)
        return self.inside(kind, text + tail, fields=fields)

    def tensor(self, **changes: Any) -> dict[str, Any]:
        """An inference with one changed tensor."""
        good = {"name": "x", "datatype": "FP32", "shape": [1, self.columns], "data": [0.5] * self.columns}
        return {"inputs": [good | changes]}


def _flip(forge: Forge, kind: str) -> Malformed:
    data = bytearray(forge.good().data)
    data[forge.below(len(data))] ^= 1 << forge.below(8)
    return forge.outside(kind, bytes(data))


def _cut(forge: Forge, kind: str) -> Malformed:
    data = bytes(forge.good().data)
    return forge.outside(kind, data[: forge.below(len(data))])


def _header(forge: Forge, kind: str, header: bytes) -> Malformed:
    frames = bytes(forge.good().data)[-600:]
    return forge.outside(kind, b"CLQ1" + len(header).to_bytes(2, "big") + header + frames)


def _hostile_cbor(forge: Forge) -> bytes:
    choices = (
        b"\x9b" + b"\xff" * 8,  # an array of 2^64 items
        b"\xbb" + b"\xff" * 8,
        b"\x5b\x7f" + b"\xff" * 7,
        b"\x81" * 4000 + b"\x00",
        b"\xa1\x61a" * 1000 + b"\x00",
        b"\xbf\xff",
        b"\xc0\x00",
        b"\xfb\x7f\xf8" + bytes(6),  # a NaN
        b"\xa2\x61a\x00\x61a\x00",
        b"\xf7",
        b"\x1b" + b"\xff" * 8,
        b"\x62\xff\xfe",
        forge.noise(300),
    )
    return choices[forge.below(len(choices))]


def _fields(forge: Forge, **changes: Any) -> bytes:
    header = cbor.decode(
        forge.begun().prefix[6 : 6 + int.from_bytes(forge.begun().prefix[4:6], "big")], limit=4096, what="own"
    )
    return cbor.encode({name: value for name, value in (header | changes).items() if value is not None})


def _wrong_field(forge: Forge, kind: str) -> Malformed:
    changes: tuple[dict[str, Any], ...] = (
        {"suite": 2},
        {"suite": "1"},
        {"mode": "no-key"},
        {"mode": 7},
        {"user": b""},
        {"user": b"u" * 33},
        {"key": None},
        {"nonce": b"n" * 31},
        {"iat": -1},
        {"iat": 2**62},
        {"iat": "now"},
        {"more": 1},
        {"model": "../../etc/passwd"},
        {"model": "a" * 5000},
    )
    return _header(forge, kind, _fields(forge, **changes[forge.below(len(changes))]))


def _wrong_key(forge: Forge, kind: str) -> Malformed:
    data = bytes(forge.good().data)
    prefix = envelope.RequestPrefix.parse(data)
    if prefix is None:
        raise AssertionError
    header = _fields(forge, key=forge.rng.bytes(32))
    return forge.outside(kind, b"CLQ1" + len(header).to_bytes(2, "big") + header + data[6 + len(prefix.header_bytes) :])


def _stranger(forge: Forge, kind: str) -> Malformed:
    header = _fields(forge, user=forge.rng.bytes(32), key=forge.rng.bytes(32))
    return forge.outside(
        kind, b"CLQ1" + len(header).to_bytes(2, "big") + header + envelope.frame_head(64, last=True) + bytes(80)
    )


def _frames(forge: Forge, kind: str) -> Malformed:
    data = bytearray(forge.good().data)
    prefix = envelope.RequestPrefix.parse(data)
    if prefix is None:
        raise AssertionError
    lies = (0, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x80100001, 0x00100000, forge.below(1 << 32))
    at = prefix.length
    data[at : at + 4] = lies[forge.below(len(lies))].to_bytes(4, "big")
    return forge.outside(kind, bytes(data))


def _replay(forge: Forge, kind: str) -> Malformed:
    """Answered already, by whoever the client's profile leads to."""
    if forge.answered is None:
        forge.answered = forge.good()
        forge.client.exchange(forge.answered, 60.0)
    return Malformed(kind, RUNTIME, forge.target, bytes(forge.answered.data), forge.answered)


def _stale(forge: Forge, kind: str) -> Malformed:
    away = (-100_000, -200, 200, 100_000)[forge.below(4)]
    key, now = forge.client.keys.key(forge.model), forge.client.clock.now() + away
    x = np.zeros((1, forge.columns), np.float32)
    return forge.outside(kind, bytes(seal_inference(key, forge.client.account.identity, {"x": x}, (), now).data))


OUTSIDE: Final[dict[str, Callable[[Forge, str], Malformed]]] = {
    "a flipped bit": _flip,
    "truncated": _cut,
    "bytes after the end": lambda f, k: f.outside(k, bytes(f.good().data) + f.noise(40) + b"x"),
    "noise": lambda f, k: f.outside(k, f.noise(3000)),
    "unknown version": lambda f, k: f.outside(k, b"CLQ2" + bytes(f.good().data)[4:]),
    "hostile CBOR in the header": lambda f, k: _header(f, k, _hostile_cbor(f)),
    "a header's length that lies": lambda f, k: f.outside(k, b"CLQ1" + f.rng.bytes(2) + bytes(f.good().data)[6:]),
    "wrong fields in the header": _wrong_field,
    "a wrong key id": _wrong_key,
    "a stranger": _stranger,
    "frame lengths that lie": _frames,
    "a replay": _replay,
    "a stale request": _stale,
    "another model's path": lambda f, k: f.outside(
        k, bytes(f.good().data), f"/v1/models/{f.model.owner.hex()}/other/infer"
    ),
    "a malformed path": lambda f, k: f.outside(
        k,
        bytes(f.good().data),
        ("/v1/models/x/infer", "/v1/models/%2e%2e/infer", f"{f.target}/../..", "/v1/models//infer")[f.below(4)],
    ),
}


def _shape(forge: Forge, kind: str) -> Malformed:
    shapes: tuple[Any, ...] = (
        [1, -forge.columns],
        [2**62, 2**62],
        [2**31, forge.columns],
        [float("nan"), forge.columns],
        ["1", forge.columns],
        [1.5, forge.columns],
        [True, forge.columns],
        [],
        [1] * 100,
        None,
        {"0": 1},
        [10**30],
        [1, forge.columns + 1],
        [0, forge.columns],
    )
    return forge.inference(kind, forge.tensor(shape=shapes[forge.below(len(shapes))]))


def _bomb(forge: Forge, kind: str) -> Malformed:
    """A little that claims to be a lot."""
    rows = (2**20, 2**30, 2**40, 2**62)[forge.below(4)]
    size = rows * forge.columns * 4
    entry = {"name": "x", "datatype": "FP32", "shape": [rows, forge.columns]}
    if forge.below(2):
        return forge.inference(kind, {"inputs": [entry | {"data": [0] * 10}]})
    return forge.inference(kind, {"inputs": [entry | {"parameters": {"binary_data_size": size}}]}, bytes(64))


def _values(forge: Forge, kind: str) -> Malformed:
    values: tuple[Any, ...] = (
        ["a"] * forge.columns,
        [10**400] * forge.columns,
        [None] * forge.columns,
        [[0.5] * forge.columns] * 3,
        "data",
        [0.5] * (forge.columns - 1),
        [[[[[[[[[[0]]]]]]]]]],
        {"0": 0.5},
    )
    return forge.inference(kind, forge.tensor(data=values[forge.below(len(values))]))


def _texts(forge: Forge, kind: str) -> Malformed:
    texts = (
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe{}",
        b'{"inputs":NaN}',
        b'{"inputs":[{"name":"x","shape":[1,Infinity],"datatype":"FP32","data":[]}]}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"inputs":[' + b"{}," * 5000 + b"{}]}",
        b'{"id":"' + b"a" * 100_000 + b'"}',
        b'{"inputs":[{"name":"x","shape":[' + b"9" * 5000 + b'],"datatype":"FP32","data":[]}]}',
        b'{"inputs":[{"name":"x","name":"y"}]}',
        b"\x1f\x8b\x08" + forge.noise(500),
        forge.noise(500),
    )
    return forge.inference(kind, texts[forge.below(len(texts))])


INSIDE: Final[dict[str, Callable[[Forge, str], Malformed]]] = {
    "shapes that are none": _shape,
    "sizes that are a bomb": _bomb,
    "values of other types": _values,
    "JSON that is none": _texts,
    "unknown datatype": lambda f, k: f.inference(k, f.tensor(datatype=("FP33", "", 7, "BYTES", "INT64")[f.below(5)])),
    "unknown and missing inputs": lambda f, k: f.inference(
        k, ({"inputs": []}, {}, f.tensor(name="z"), {"inputs": f.tensor()["inputs"] * 2}, {"inputs": "x"})[f.below(5)]
    ),
    "unknown outputs": lambda f, k: f.inference(
        k, f.tensor() | {"outputs": ([{"name": "z"}], [{}], "y", [{"name": "y"}] * 2, [1] * 100)[f.below(5)]}
    ),
    "a tensor's size that lies": lambda f, k: f.inference(
        k,
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [1, f.columns],
                    "parameters": {"binary_data_size": f.below(2**40)},
                }
            ]
        },
        bytes(16),
    ),
    "a JSON length that lies": lambda f, k: f.inference(
        k, f.tensor(), b"xx", ("0", "-1", "99999999", "9" * 40, "1e3", "", "0x10")[f.below(7)]
    ),
    "no binary HTTP": lambda f, k: f.raw_inside(k, f.noise(400)),
    "binary HTTP, then rubbish": lambda f, k: f.raw_inside(
        k, bhttp.request_head("POST", f"/v2/models/{f.model.name}/infer", (), f.below(2**20)) + f.noise(100)
    ),
    "another path inside": lambda f, k: f.inside(
        k,
        b"{}",
        path=(
            "/v2/models/other/infer",
            "/",
            "/v2/models/../../metrics",
            "/v2/models//infer",
            f"/v2/models/{f.model.name}/train",
        )[f.below(5)],
    ),
    "another method inside": lambda f, k: f.inside(k, b"", method=("DELETE", "PUT", "TRACE", "GET")[f.below(4)]),
}


def _keyservice(kind: str, target: str, data: bytes) -> Malformed:
    return Malformed(kind, KEYSERVICE, target, data)


def _sealed_call(forge: Forge, kind: str) -> Malformed:
    """Sealed as anybody can, rubbish inside: the answer comes sealed, to whoever sent it."""
    description = forge.client.account.link.attested().description
    call_kind = (calls.STATEMENT, calls.QUERY, calls.ATTEST)[forge.below(3)]
    body = (_hostile_cbor(forge), forge.noise(2000), forge.client.account.identity.id)[forge.below(3)]
    return _keyservice(kind, "/v1/call", calls.seal_call(description, call_kind, body).data)


def _other_keyservice(forge: Forge, kind: str) -> Malformed:
    description = forge.client.account.link.attested().description
    outer: dict[str, Any] = {"ks": description.keyservice, "epoch": description.epoch, "sealed": forge.noise(3000)}
    changes: tuple[dict[str, Any], ...] = ({"ks": forge.rng.bytes(32)}, {"epoch": forge.rng.bytes(16)}, {"more": 1}, {})
    outer |= changes[forge.below(4)]
    return _keyservice(kind, "/v1/call", cbor.encode(outer))


TO_KEYSERVICE: Final[dict[str, Callable[[Forge, str], Malformed]]] = {
    "noise as a call": lambda f, k: _keyservice(k, "/v1/call", f.noise(5000)),
    "hostile CBOR as a call": lambda f, k: _keyservice(k, "/v1/call", _hostile_cbor(f)),
    "a call for somebody else": _other_keyservice,
    "a call with rubbish inside": _sealed_call,
    "too large a call": lambda f, k: _keyservice(k, "/v1/call", bytes(300_000 + f.below(9))),
    "hostile CBOR as a session call": lambda f, k: _keyservice(k, "/v1/session", _hostile_cbor(f)),
    "a session nobody has": lambda f, k: _keyservice(
        k, "/v1/session", cbor.encode({"session": f.rng.bytes(16), "seq": 1 + f.below(2**40), "box": f.noise(600)})
    ),
    "a nonce of another length": lambda f, k: _keyservice(k, "/v1/status", bytes((0, 31, 33, 5000)[f.below(4)])),
    "a proof of what is not": lambda f, k: _keyservice(
        k,
        "/v1/consistency",
        (cbor.encode({"first": 2**40, "second": 1}), _hostile_cbor(f)[:64], f.noise(64))[f.below(3)],
    ),
    "a path that is none": lambda f, k: _keyservice(
        k, ("/v1/calls", "/..", "/v1/../metrics", "/v1/call/")[f.below(4)], f.noise(20)
    ),
}


def code_inside(forged: Malformed, answer: bytes) -> str:
    """The code of a refusal that came sealed; ``ok`` for an answer."""
    if forged.sealed is None:
        raise AssertionError
    response = bhttp.parse_response(forged.sealed.outgoing.open_response(answer))
    if response.status == 200:
        return "ok"
    return str(json.loads(bytes(response.content))["type"]).removeprefix("urn:cloister:error:")


def code_in_reply(answer: bytes) -> str:
    """The stable code of a problem; ``sealed`` for what is not one."""
    try:
        return str(json.loads(answer)["type"]).removeprefix("urn:cloister:error:")
    except (ValueError, KeyError, TypeError):
        return "sealed"
