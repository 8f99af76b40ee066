"""The security claims, tried against a runtime: S1 to S3, S5, S6, S8 to S11 (spec/threat-model.md)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cloister.base.errors import CloisterError, InvalidInput, Tampered, Unavailable
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.log.merkle import MerkleTree, leaf_hash
from cloister.runtime.isolation import Isolation
from cloister.testing.clock import FakeClock
from cloister.testing.models import small
from cloister.testing.runtime import Reply, RuntimeBench, User, error_code, image, open_reply
from cloister.wire import bhttp, envelope
from cloister.wire.manifest import Manifest

MATRIX = image(5, (16, 16))
X = image(6, (2, 16))


def make(clock: FakeClock | None = None, **options: Any) -> tuple[RuntimeBench, User]:
    bench = RuntimeBench(clock, **options)
    return bench, bench.user(bench.publish("matrix", small.matrix(MATRIX)))


async def outer_error(bench: RuntimeBench, user: User, data: bytes | bytearray) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        await bench.send(user.model, data)
    return caught.value


def sealed_request(user: User) -> tuple[Any, bytearray]:
    return user.seal(lambda signature: user.infer_message({"x": X}, signature=signature))


def test_s1_s2_nothing_that_passes_by_holds_plaintext_or_keys() -> None:
    bench, user = make()
    marked = np.frombuffer(b"THE-USERS-SECRET" * 8, np.float32).reshape(2, 16)
    weights = MATRIX.tobytes()

    async def scenario() -> None:
        outgoing, data = user.seal(lambda s: user.infer_message({"x": marked}, signature=s))
        response = bytes(await bench.send(user.model, data))
        assert open_reply(outgoing, response).status == 200
        stored = b"".join(bench.store.files.values())
        seen = b"".join([bytes(data), response, stored, repr(bench.log.events).encode()])
        seen += bench.runtime.registry.exposition() + repr(bench.runtime.status()).encode()
        assert user.request_key is not None
        for secret in (b"THE-USERS-SECRET", weights[:64], weights[512:600], user.request_key.reveal()):
            assert secret not in seen
            assert secret.hex().encode() not in seen

    bench.run(scenario)


def test_s2_a_model_swapped_changed_or_rolled_back_in_the_store_is_refused() -> None:
    bench, user = make()
    newer = bench.publish("matrix", small.matrix(MATRIX * 2), version=2)
    good = dict(bench.store.files)
    manifest = bench.store.files[user_place(bench, user).path("manifest")]

    async def refused_with(code: str) -> None:
        bench.runtime.leases.forget()
        reply = await bench.ask(user, {"x": X})
        assert error_code(reply) == code
        bench.store.files = dict(good)
        assert not bench.runtime.models.resident()

    async def scenario() -> None:
        place = user_place(bench, user)
        bench.store.files[place.path("manifest")] = good[newer.place.path("manifest")]
        await refused_with("manifest-digest")
        for entry in Manifest.parse(manifest).files:
            name = place.path(entry.name)
            if entry.name in ("description", "graph.onnx", "weights.plain.bin", "weights.shared.bin"):
                continue
            changed = bytearray(good[name])
            changed[len(changed) // 2] ^= 1
            bench.store.files[name] = bytes(changed)
            await refused_with("model-chunk")
            bench.store.files[name] = good[newer.place.path(entry.name)]
            await refused_with("model-chunk")
            bench.store.files[name] = good[name][:-1]
            await refused_with("model-file-short")
        np.testing.assert_allclose((await bench.infer(user, {"x": X}))["y"], X @ MATRIX, rtol=1e-4)

    bench.run(scenario)


def user_place(bench: RuntimeBench, user: User) -> Any:
    return next(
        bench.keyservice._permissions[request].release.manifest_digest and _place(bench, request)
        for request in bench.keyservice._permissions
        if request == user.request
    )


def _place(bench: RuntimeBench, request: Any) -> Any:
    from cloister.adapters.modelstore.port import Place

    return Place(request.model, bench.keyservice._permissions[request].release.manifest_digest)


def test_s2_a_second_content_under_the_same_key_does_not_pass_the_root() -> None:
    """Whoever knows the model key can make chunks that open; the owner's root tells them apart (model-format 3.3)."""
    bench, user = make()
    forged = bench.publish("matrix", small.matrix(MATRIX * 3))
    place = user_place(bench, user)
    release = bench.keyservice._permissions[user.request].release
    manifest = Manifest.parse(bench.store.files[place.path("manifest")])
    other = Manifest.parse(bench.store.files[forged.place.path("manifest")])
    from cloister.wire.manifest import CHUNK, FileCipher

    for entry in manifest.files:
        if not entry.name.startswith("weights"):
            continue
        source = FileCipher.of(forged.key, other, other.file(entry.name))
        target = FileCipher.of(release.model_key, manifest, entry)
        stored = bench.store.files[forged.place.path(entry.name)]
        out = bytearray(entry.size)
        parts = []
        for index in range(entry.chunks):
            start, length = entry.chunk_range(index)
            piece = memoryview(out)[index * CHUNK : index * CHUNK + length - 16]
            source.open_into(index, stored[start : start + length], piece)
            parts.append(target.seal(index, bytes(piece)))
        bench.store.files[place.path(entry.name)] = b"".join(parts)

    async def scenario() -> None:
        reply = await bench.ask(user, {"x": X})
        assert error_code(reply) in ("model-root", "engine-known-answer")
        assert not bench.runtime.models.resident()

    bench.run(scenario)


def test_s3_a_response_opens_for_its_own_request_only_and_whole_only() -> None:
    bench, user = make()

    async def scenario() -> None:
        one, data_one = sealed_request(user)
        two, data_two = sealed_request(user)
        answer_one, answer_two = [bytes(await bench.send(user.model, d)) for d in (data_one, data_two)]
        assert open_reply(one, answer_one).status == open_reply(two, answer_two).status == 200
        with pytest.raises(Tampered):
            open_reply(one, answer_two)
        for bad in (answer_one[:-1], answer_one[:40], answer_one + b"\x00", b""):
            with pytest.raises((Tampered, InvalidInput)):
                open_reply(one, bad)
        for at in (4, 36, 40, len(answer_one) - 1):
            changed = bytearray(answer_one)
            changed[at] ^= 1
            with pytest.raises((Tampered, InvalidInput)):
                open_reply(one, changed)

    bench.run(scenario)


def test_s3_the_same_request_to_two_instances_gives_unrelated_responses() -> None:
    bench, user = make()

    async def scenario() -> None:
        outgoing, data = sealed_request(user)
        first = bytes(await bench.send(user.model, data))
        bench.runtime.sealed._replay = type(bench.runtime.sealed._replay)(bench.clock)  # as another instance has it
        second = bytes(await bench.send(user.model, data))
        assert first[4:36] != second[4:36]
        assert first[40:100] != second[40:100]
        assert (
            open_reply(outgoing, first).outputs()["y"].tolist() == open_reply(outgoing, second).outputs()["y"].tolist()
        )

    bench.run(scenario)


def test_s5_a_host_that_stops_or_turns_back_the_clock_gains_no_time_beyond_the_count() -> None:
    clock = FakeClock()
    bench, user = make(clock)

    async def scenario() -> None:
        await bench.infer(user, {"x": X})
        bench.keyservice.deny(user.request)
        clock.set(clock.now() - 60)  # the wall clock back: leases do not look at it
        clock.advance(61)
        assert error_code(await outer_error(bench, user, sealed_request(user)[1])) == "request-refused"

    bench.run(scenario)


def test_s6_a_replayed_or_stale_request_is_refused() -> None:
    clock = FakeClock()
    bench, user = make(clock)

    async def scenario() -> None:
        outgoing, data = sealed_request(user)
        assert open_reply(outgoing, await bench.send(user.model, data)).status == 200
        again = open_reply(outgoing, await bench.send(user.model, data))
        assert (again.status, error_code(again)) == (400, "request-replayed")
        _, late = sealed_request(user)
        clock.advance(121)
        assert error_code(await outer_error(bench, user, late)) == "request-refused"

    bench.run(scenario)


def test_s8_s10_whatever_is_wrong_before_authentication_looks_the_same() -> None:
    bench, user = make()
    service = bench.user(bench.publish("matrix", small.matrix(MATRIX), version=2), service=True)

    async def scenario() -> None:
        await bench.infer(user, {"x": X})
        await bench.infer(service, {"x": X})
        errors: set[str] = set()
        for who in (user, service):
            _, data = sealed_request(who)
            for at in (0, 4, 5, 8, 60, 150, 200, len(data) - 1, len(data) // 2):
                changed = bytearray(data)
                changed[at] ^= 0x55
                errors.add(repr(await outer_error(bench, who, changed)))
            for cut in (0, 3, 5, 100, 300, len(data) - 1):
                errors.add(repr(await outer_error(bench, who, data[:cut])))
            errors.add(repr(await outer_error(bench, who, data + b"\x00")))
        stranger = replace(user, request=replace(user.request, user=b"s" * 32))
        errors.add(repr(await outer_error(bench, user, sealed_request(stranger)[1])))
        other_key = replace(user, request_key=SecretBytes(b"x" * 32))
        errors.add(repr(await outer_error(bench, user, sealed_request(other_key)[1])))
        assert errors == {repr(InvalidInput("request-refused", "the request was refused"))}
        assert bench.runtime.rooms.inside == 0
        await bench.infer(user, {"x": X})

    bench.run(scenario)


def test_s9_nothing_made_for_one_thing_passes_for_another() -> None:
    bench, user = make()
    other = bench.user(bench.publish("second", small.matrix(MATRIX)), identity=user.identity)
    service = bench.user(bench.publish("third", small.matrix(MATRIX)), service=True)

    async def scenario() -> None:
        _, data = sealed_request(user)
        # to another model's route; with another model's header; a response as a request
        assert error_code(await outer_error(bench, other, data)) == "request-refused"
        prefix = envelope.RequestPrefix.parse(data)
        assert prefix is not None
        moved = replace(prefix.header, model=other.model, key_id=other.request.key_id).encode()
        forged = envelope.RequestPrefix(prefix.header, moved, b"").encode() + bytes(data[prefix.length :])
        assert error_code(await outer_error(bench, other, forged)) == "request-refused"
        outgoing, data = sealed_request(user)
        response = bytes(await bench.send(user.model, data))
        assert error_code(await outer_error(bench, user, outgoing.prefix + response[36:])) == "request-refused"
        # somebody else's signature in service-key mode
        thief = replace(service, identity=SigningKey.generate())
        assert error_code(await outer_error(bench, service, sealed_request(thief)[1])) == "request-refused"
        # the path inside names another model than the header
        outgoing, data = user.seal(lambda s: user.infer_message({"x": X}, signature=s, path="/v2/models/second/infer"))
        assert error_code(open_reply(outgoing, await bench.send(user.model, data))) == "model-other"

    bench.run(scenario)


def test_s10_sizes_are_buckets() -> None:
    bench, user = make()

    async def scenario() -> None:
        sizes = set()
        for rows in range(1, 9):
            outgoing, data = user.seal(lambda s, n=rows: user.infer_message({"x": image(n, (n, 16))}, signature=s))
            sizes.add(len(await bench.send(user.model, data)))
            del outgoing
        assert len(sizes) <= 4

    bench.run(scenario)


@pytest.mark.parametrize("co_tenancy", [False, True])
def test_s11_models_of_two_owners_meet_only_when_every_policy_allows_it(co_tenancy: bool) -> None:
    bench, user = make()
    bench.user(bench.publish("matrix", small.matrix(MATRIX)))
    first = bench.user(bench.publish("mine", small.matrix(MATRIX)), co_tenancy=co_tenancy)
    second = bench.user(
        bench.publish("theirs", small.matrix(MATRIX), owner=SigningKey.generate()), co_tenancy=co_tenancy
    )
    met = 0

    async def scenario() -> None:
        nonlocal met
        for _ in range(3):
            for who in (first, second):
                await bench.infer(who, {"x": X})
                met = max(met, len({place.model.owner for place in bench.runtime.models.resident()}))
        await asyncio.gather(*(bench.infer(who, {"x": X}) for who in (first, second) * 4))

    bench.run(scenario)
    assert met == (2 if co_tenancy else 1)
    assert bool(bench.runtime.rooms.switches > 3) is not co_tenancy
    del user


@pytest.mark.parametrize(("level", "asked"), [(Isolation.SHARED, 1), (Isolation.PER_USER, 1), (Isolation.STRICT, 3)])
def test_s11_isolation_levels(level: Isolation, asked: int) -> None:
    bench = RuntimeBench(isolation=level, concurrency=1)
    published = bench.publish("matrix", small.matrix(MATRIX))
    anna, bert = bench.user(published), bench.user(published)

    async def scenario() -> None:
        for _ in range(3):
            await bench.infer(anna, {"x": X})
        assert bench.keyservice.counts.by_request[anna.request] == asked
        await bench.infer(bert, {"x": X})
        keys = {request.user for request in bench.runtime.leases._leases}
        if level is Isolation.SHARED:
            assert keys == {anna.request.user, bert.request.user}
        else:
            assert anna.request.user not in keys, "it forgot before the next user"
        await asyncio.gather(*(bench.infer(who, {"x": X}) for who in (anna, bert) * 3))

    bench.run(scenario)
    if level is Isolation.STRICT:
        assert bench.keyservice.counts.by_request[anna.request] == 6


def test_s8_the_keyservices_evidence_is_checked_before_anything_is_sent() -> None:
    bench, user = make()
    bench.keyservice.log_key = SigningKey.generate()  # the evidence is over another key now? it is made anew
    honest = bench.keyservice.describe()
    bench.keyservice.describe = lambda: replace(honest, epoch=b"e" * 16)  # type: ignore[method-assign]

    async def scenario() -> None:
        assert error_code(await outer_error(bench, user, sealed_request(user)[1])) == "request-refused"
        assert bench.keyservice.counts.attests == 0

    bench.run(scenario)


def test_s7_a_keyservice_that_went_back_is_refused() -> None:
    clock = FakeClock()
    bench, user = make(clock)

    async def scenario() -> None:
        await bench.infer(user, {"x": X})
        assert bench.keyservice.head().size > 1
        bench.keyservice._tree = MerkleTree([leaf_hash(b"genesis")])
        clock.advance(61)
        assert error_code(await outer_error(bench, user, sealed_request(user)[1])) == "request-refused"

    bench.run(scenario)


def test_an_unsealed_refusal_from_the_network_revokes_nothing() -> None:
    clock = FakeClock()
    bench, user = make(clock)

    async def scenario() -> None:
        await bench.infer(user, {"x": X})
        real = bench.keyservice.post

        def post(path: str, body: bytes, *, limit: int) -> bytes:
            if path == "/v1/session":
                raise InvalidInput("release-refused", "says the network")
            return real(path, body, limit=limit)

        bench.keyservice.post = post  # type: ignore[method-assign]
        clock.advance(31)
        for _ in range(20):  # while the renewal fails, and right after it
            await bench.infer(user, {"x": X})
            await asyncio.sleep(0.005)
        clock.advance(2)
        await bench.infer(user, {"x": X})
        clock.advance(40)
        with pytest.raises(Unavailable):
            await bench.infer(user, {"x": X})

    bench.run(scenario)


def test_a_wrong_http_message_inside_is_told_inside() -> None:
    bench, user = make()

    async def ask(message: bytes) -> Reply:
        outgoing, data = user.seal(lambda signature: signature + message)
        return open_reply(outgoing, await bench.send(user.model, data))

    async def scenario() -> None:
        head = bhttp.request_head("POST", "/v2/models/matrix/infer", (), 3)
        for message in (b"", b"\x00", b"\xff" * 50, head, head + b"xyz\x00", head + b"{}{\x00", head + b"xyz\x01"):
            assert (await ask(message)).status == 400

    bench.run(scenario)
