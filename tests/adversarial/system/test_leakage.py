"""S10 against real processes: sizes in buckets, one refusal, and nothing in logs, metrics and status pages."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from cloister.base.errors import CloisterError
from cloister.client.inference import open_inference, seal_inference
from cloister.crypto import hpke
from cloister.testing.malformed import OUTSIDE, Forge
from cloister.wire import cbor, envelope, padding
from cloister.wire.statements import SERVICE_KEY, DefinePolicy

pytestmark = pytest.mark.xdist_group("claims")
COLUMNS = 64


def plain_length(data: bytes, prefix: int) -> int:
    """Of the plaintext in the frames, which anybody can count."""
    return envelope.plaintext_length(memoryview(data)[prefix:])


@pytest.mark.parametrize("mode", ["request-key", SERVICE_KEY])
def test_s10_a_hundred_sizes_are_few_on_the_wire(world: Any, mode: str) -> None:
    model = world.offer(f"sizes-{mode}", world.user, mode=mode)
    key = world.user.keys.key(model)
    signature = envelope.signature_length(mode)
    up: dict[int, set[int]] = defaultdict(set)
    down: dict[int, set[int]] = defaultdict(set)
    sizes = [1 + 3 * n for n in range(100)]
    for rows in sizes:
        x = world.row(rows, rows)
        request = seal_inference(key, world.user.account.identity, {"x": x}, (), world.user.clock.now())
        answer = bytes(world.scene.send(world.scene.gateway, request).body)
        np.testing.assert_allclose(open_inference(request, answer, None)["y"], x @ world.weights, rtol=1e-3)
        prefix = envelope.RequestPrefix.parse(request.data)
        assert prefix is not None
        for seen, plain in (
            (up, plain_length(request.data, prefix.length) - signature),
            (down, plain_length(answer, envelope.RESPONSE_PREFIX)),
        ):
            assert padding.bucket(plain) == plain, "what is seen is a bucket"
            seen[plain].add(rows)
    for seen in (up, down):
        assert len(seen) < 60, "eight an octave, and more sizes than those"
        widest = max(max(rows) - min(rows) for rows in seen.values())
        assert widest >= 9
        for plain, rows in seen.items():  # no bucket is wider than an eighth: what is known is the bucket, no more
            assert plain <= max(256, 1.125 * (min(rows) * COLUMNS * 4 + 900)), (plain, rows)


def test_s10_calls_to_the_keyservice_are_buckets_both_ways(world: Any) -> None:
    wire = world.scene.keyservice_wire
    wire.forget()
    for length in range(60):
        with pytest.raises(CloisterError):
            world.user.account.ask("why", {"model": f"{'ab' * 32}/{'n' * (length + 1)}", "user": b"u" * 31})
        world.user.whoami()
    calls = requests(wire.recorded("up"), b"/v1/call")
    assert len(calls) >= 120
    lengths = set()
    for call in calls:
        sealed = cbor.decode(call, limit=1 << 20, what="a call")["sealed"]
        plain = len(sealed) - hpke.OVERHEAD
        assert padding.bucket(plain) == plain
        lengths.add(plain)
    assert len(lengths) <= 5
    for reply in replies(wire.recorded("down")):
        public = reply[:1] in (b"\xa7", b"\x84") or reply.startswith(b"\xa1\x65proof")  # descriptions, statuses, proofs
        if len(reply) in (0, 32 + 16) or public:
            continue
        assert padding.bucket(len(reply) - 48) == len(reply) - 48


def requests(data: bytes, path: bytes) -> list[bytes]:
    found = []
    for match in re.finditer(rb"POST " + path + rb" HTTP/1.1\r\n(.*?)\r\n\r\n", data, re.DOTALL):
        length = re.search(rb"(?i)content-length: (\d+)", match[1])
        assert length
        found.append(data[match.end() : match.end() + int(length[1])])
    return found


def replies(data: bytes) -> list[bytes]:
    found, at = [], 0
    pattern = re.compile(rb"HTTP/1.1 200 OK\r\n(.*?)\r\n\r\n", re.DOTALL)
    while match := pattern.search(data, at):
        length = re.search(rb"(?i)content-length: (\d+)", match[1])
        at = match.end() + (int(length[1]) if length else 0)
        found.append(data[match.end() : at])
    return found


def test_s8_s10_whatever_fails_before_authentication_gets_the_same_bytes(world: Any) -> None:
    runtime = world.scene.runtime()
    client = world.scene.at(world.user, runtime.address)
    world.check(client)
    forge = Forge(client, world.model, COLUMNS, seed=8)
    seen: dict[tuple[int, bytes, tuple[str, ...]], set[str]] = defaultdict(set)
    for _ in range(12):
        for kind, make in OUTSIDE.items():
            if kind in ("a replay", "a malformed path"):  # the one is authentic, and told inside; the other no secret
                continue
            forged = make(forge, kind)
            answer = world.scene.post(runtime.address, forged.target, forged.data)
            headers = tuple(sorted(name.lower() for name, _ in answer.headers.items))
            seen[answer.status, bytes(answer.body), headers].add(kind)
    assert len(seen) == 1, {key[:2]: kinds for key, kinds in seen.items()}
    ((status, body, _),) = seen
    assert status == 400
    assert b"request-refused" in body
    runtime.stop()


def test_s10_the_keyservices_refusals_before_authentication_are_the_same_bytes(world: Any) -> None:
    forge = Forge(world.user, world.model, COLUMNS, seed=9)
    seen = set()
    description = world.user.account.link.attested().description
    for size in (0, 1, 50, 400, 1300, 5000):
        for data in (
            forge.noise(size),
            cbor.encode({"ks": description.keyservice, "epoch": description.epoch, "sealed": forge.noise(size)}),
            cbor.encode({"session": forge.rng.bytes(16), "seq": 1, "box": forge.noise(size)}),
        ):
            for path in ("/v1/call", "/v1/session"):
                answer = world.scene.post(world.scene.keyservice, path, data)
                seen.add((answer.status, bytes(answer.body)))
    assert len(seen) == 1
    assert b"call-refused" in next(iter(seen))[1]


def test_s10_logs_metrics_and_status_have_no_exact_sizes_names_or_keys(world: Any) -> None:
    scene = world.scene
    rows = 173  # 44,288 bytes of input, 44,288 of output
    world.user.infer(world.model, {"x": world.row(3, rows)})
    world.user.account.say(DefinePolicy(scene.cloud.runtime_policy().encode()))
    held = scene.held()
    key = world.user.keys.key(world.model)
    assert key.secret is not None
    told = {where: data for where, data in held.items() if where in ("logs", "pages", "folder gateway")}
    assert sum(map(len, told.values())) > 1000
    for where, data in told.items():
        for exact in (rows * COLUMNS * 4, world.weights.nbytes):
            assert not re.search(rb"(?<![0-9.])%d(?![0-9])" % exact, data), (where, exact)
        for secret in (key.secret.reveal(), key.key_id):
            assert secret.hex().encode() not in data, where
        assert b"traceback" not in data.lower(), where
    # Metrics and status pages are for operators: models by their public id, users not at all.
    user = world.user.account.identity.id.hex().encode()
    assert user not in told["pages"]
