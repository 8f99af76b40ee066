"""One runtime in this process, with the real engine, real wire formats and a fake KeyService."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.crypto.sign import SigningKey
from cloister.testing.clock import FakeClock
from cloister.testing.models import small
from cloister.testing.runtime import RuntimeBench, User, error_code, image, open_reply

MATRIX = image(5, (16, 16))
X = image(6, (2, 16))


def bench_with_matrix(**options: Any) -> tuple[RuntimeBench, User]:
    bench = RuntimeBench(**options)
    return bench, bench.user(bench.publish("matrix", small.matrix(MATRIX)))


@pytest.mark.parametrize("service", [False, True])
def test_an_encrypted_request_gets_the_raw_engines_answer(service: bool) -> None:
    bench = RuntimeBench()
    model = small.small_convnet()
    user = bench.user(bench.publish("conv", model), service=service)
    x = image(1, (3, 32, 32, 3))

    async def scenario() -> Any:
        first = await bench.ask(user, {"input": x[:1]})
        assert 'path;desc="cold"' in first.fields["server-timing"] or "warm" in first.fields["server-timing"]
        second = await bench.ask(user, {"input": x[1:2]})
        assert 'path;desc="hot"' in second.fields["server-timing"]
        assert second.fields["cloister-tee"] == second.fields["cloister-warning"] == "insecure-simulation"
        assert second.fields["cloister-measurement"] == (b"r" * 48).hex()
        return first.outputs(), second.outputs()

    found = bench.run(scenario)
    import onnxruntime

    raw = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for index, outputs in enumerate(found):
        (name, value), *_ = outputs.items()
        np.testing.assert_allclose(value, raw.run([name], {"input": x[index : index + 1]})[0], rtol=1e-4, atol=1e-6)
    assert bench.keyservice.counts.attests == 1
    assert bench.runtime.plaintexts.given_up == 0, "a view of a plaintext buffer was kept"


def test_many_at_once_load_once_and_ask_for_keys_once() -> None:
    bench, user = bench_with_matrix(concurrency=4)

    async def scenario() -> None:
        answers = await asyncio.gather(*(bench.infer(user, {"x": X + i}) for i in range(32)))
        for i, answer in enumerate(answers):
            np.testing.assert_allclose(answer["y"], (X + i) @ MATRIX, rtol=1e-4)

    bench.run(scenario)
    assert bench.keyservice.counts.releases == 1
    assert bench.keyservice.counts.attests == 1
    assert bench.runtime.metrics.churn_bytes == 0


def test_hot_requests_touch_neither_store_nor_keyservice() -> None:
    bench, user = bench_with_matrix()

    async def scenario() -> None:
        await bench.infer(user, {"x": X})
        reads, asked = bench.store.reads, bench.keyservice.counts.releases
        bench.store.away = bench.keyservice.away = True
        for _ in range(20):
            await bench.infer(user, {"x": X})
        assert (bench.store.reads, bench.keyservice.counts.releases) == (reads, asked)

    bench.run(scenario)


def test_the_protocols_other_endpoints() -> None:
    bench, user = bench_with_matrix()
    from cloister.wire import bhttp, envelope

    async def get(path: str, method: str = "GET") -> Any:
        head = bhttp.request_head(method, path, (), 0)
        outgoing, sealed = user.seal(lambda s: envelope.join([s, head, bhttp.padding_after(len(head))]))
        return open_reply(outgoing, await bench.send(user.model, sealed))

    async def scenario() -> None:
        assert b'"binary_tensor_data"' in (await get("/v2")).content
        assert (await get("/v2/health/live")).content == b'{"live":true}'
        assert (await get("/v2/health/ready")).content == b'{"ready":true}'
        assert (await get("/v2/models/matrix/ready")).content == b'{"name":"matrix","ready":true}'
        metadata = (await get("/v2/models/matrix/versions/1")).content
        assert b'"inputs":[{"name":"x","datatype":"FP32","shape":[-1,16]}]' in metadata
        for path, code in (
            ("/v2/models/other", "model-other"),
            ("/v2/models/matrix/versions/2", "model-other"),
            ("/v2/models/matrix/nothing", "endpoint-unknown"),
            ("/v3", "endpoint-unknown"),
            ("/v2/models/matrix/infer_stream", "endpoint-unknown"),
        ):
            reply = await get(path)
            assert (reply.status, error_code(reply)) == (400, code)

    bench.run(scenario)


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"z": X}, "input-missing"),
        ({"x": X, "z": X}, "input-unknown"),
        ({"x": X.astype(np.float64)}, "input-datatype"),
        ({"x": X[:, :15]}, "input-shape"),
        ({"x": X[0]}, "input-shape"),
        ({"x": X[:0]}, "input-shape"),
    ],
)
def test_inputs_are_checked_before_the_engine_sees_them(inputs: Any, code: str) -> None:
    bench, user = bench_with_matrix()

    async def scenario() -> None:
        reply = await bench.ask(user, inputs)
        assert (reply.status, error_code(reply)) == (400, code)
        await bench.infer(user, {"x": X})

    bench.run(scenario)


def test_a_second_version_and_a_second_model_are_served_beside_the_first() -> None:
    bench, user = bench_with_matrix()
    newer = bench.publish("matrix", small.matrix(MATRIX * 2), version=2)
    other = bench.publish("sum", small.sum_difference())
    user_of_newer, user_of_other = bench.user(newer), bench.user(other)

    async def scenario() -> None:
        old, new = await asyncio.gather(bench.infer(user, {"x": X}), bench.infer(user_of_newer, {"x": X}))
        np.testing.assert_allclose(2 * old["y"], new["y"], rtol=1e-5)
        a, b = image(1, (1, 3)), image(2, (1, 3))
        found = await bench.infer(user_of_other, {"a": a, "b": b})
        np.testing.assert_allclose(next(iter(found.values())), a + b, rtol=1e-6)
        assert len(bench.runtime.models.resident()) == 3

    bench.run(scenario)


def test_a_release_that_is_lost_on_a_dead_connection_is_asked_for_once_more() -> None:
    bench, user = bench_with_matrix()

    async def scenario() -> None:
        bench.keyservice.lost.append("/v1/session")
        np.testing.assert_allclose((await bench.infer(user, {"x": X}))["y"], X @ MATRIX, rtol=1e-4)
        assert bench.keyservice.counts.releases == 1
        bench.runtime.forget()
        bench.keyservice.lost.extend(["/v1/session"] * 2)
        with pytest.raises(CloisterError) as caught:
            await bench.infer(user, {"x": X})
        assert caught.value.code == "keyservice-unavailable"

    bench.run(scenario)


def test_the_keyservice_or_the_store_away_is_503_and_heals() -> None:
    bench, user = bench_with_matrix()

    async def scenario() -> None:
        for port in (bench.keyservice, bench.store):
            port.away = True
            with pytest.raises(Unavailable):
                await bench.infer(user, {"x": X})
            port.away = False
            bench.runtime.leases.forget()  # negative answers are believed for a second
        await bench.infer(user, {"x": X})

    bench.run(scenario)


def test_without_keys_there_is_one_outer_code() -> None:
    bench, user = bench_with_matrix()
    stranger = User(SigningKey.generate(), user.model, user.request, user.request_key, None, bench.clock)

    async def scenario() -> None:
        bench.keyservice.deny(user.request)
        with pytest.raises(InvalidInput) as caught:
            await bench.ask(stranger, {"x": X})
        assert str(caught.value) == "the request was refused [request-refused]"

    bench.run(scenario)


def test_sessions_and_epochs_end_without_losing_a_request() -> None:
    bench, user = bench_with_matrix()
    others = [bench.user(bench.publish("matrix", small.matrix(MATRIX), version=v)) for v in (2, 3)]

    async def scenario() -> None:
        await bench.infer(user, {"x": X})
        bench.keyservice.end_sessions()
        await bench.infer(others[0], {"x": X})
        bench.keyservice.new_epoch()
        bench.keyservice.end_sessions()
        await bench.infer(others[1], {"x": X})
        assert bench.keyservice.counts.attests == 3

    bench.run(scenario)


def test_a_revoked_user_is_stopped_within_the_lease() -> None:
    clock = FakeClock()
    bench = RuntimeBench(clock)
    user = bench.user(bench.publish("matrix", small.matrix(MATRIX)), lease_s=60)

    async def scenario() -> None:
        await bench.infer(user, {"x": X})
        bench.keyservice.deny(user.request)
        clock.advance(29)
        await bench.infer(user, {"x": X})  # the lease still runs: this is the stated bound
        clock.advance(31)
        with pytest.raises(InvalidInput, match="request-refused"):
            await bench.infer(user, {"x": X})

    bench.run(scenario)


def test_a_quota_holds_over_renewals_and_both_keys() -> None:
    clock = FakeClock()
    bench = RuntimeBench(clock)
    user = bench.user(bench.publish("matrix", small.matrix(MATRIX)), lease_requests=3)

    async def scenario() -> None:
        for _ in range(3):
            await bench.infer(user, {"x": X})
        reply = await bench.ask(user, {"x": X})
        assert (reply.status, error_code(reply)) == (503, "quota-exhausted")
        clock.advance(61)
        await bench.infer(user, {"x": X})

    bench.run(scenario)


def test_a_full_queue_says_when_to_come_again() -> None:
    bench, user = bench_with_matrix(concurrency=1, queue=0)

    async def scenario() -> None:
        await bench.infer(user, {"x": X})
        found = await asyncio.gather(*(bench.infer(user, {"x": X}) for _ in range(16)), return_exceptions=True)
        refusals = [error for error in found if isinstance(error, CloisterError)]
        assert len(refusals) < 16
        assert all(isinstance(error, Unavailable) and error.retry_after for error in refusals)
        await bench.infer(user, {"x": X})
        assert bench.runtime.rooms.inside == 0

    bench.run(scenario)


def test_package_of_a_model_names_its_engine() -> None:
    bench, user = bench_with_matrix(engines=("litert",))

    async def scenario() -> None:
        reply = await bench.ask(user, {"x": X})
        assert (reply.status, error_code(reply)) == (403, "engine-not-allowed")

    bench.run(scenario)
