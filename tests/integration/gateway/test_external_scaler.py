"""KEDA's external scaler, called over gRPC as KEDA calls it; messages come from another codec than the scaler's."""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Callable
from contextlib import suppress

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.base.errors import InvalidInput, Unavailable
from cloister.control.gateway.keda import MAX_MESSAGE, read_metrics_request, read_scaled_object
from cloister.control.gateway.scaler import METRIC, SERVICE
from cloister.testing.gateway import MODEL, GatewayBench, sealed, toml

SCALER = 'listen = "127.0.0.1:0"'


def blob(number: int, content: bytes) -> bytes:
    """A length-delimited field; the tests' messages are short."""
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def about(**metadata: str) -> bytes:
    pairs = b"".join(blob(3, blob(1, k.encode()) + blob(2, v.encode())) for k, v in metadata.items())
    return blob(1, b"runtimes") + blob(2, b"ns") + pairs


def asked(metric: str = METRIC, **metadata: str) -> bytes:
    inner = about(**metadata)
    return blob(1, inner) + blob(2, metric.encode())


def metric_of(answer: bytes) -> tuple[str, int, float]:
    """Name, integer and double of the one metric in an answer."""
    assert answer[0] == 0x0A
    assert answer[1] == len(answer) - 2
    inner = answer[2:]
    length = inner[1]
    name, rest = inner[2 : 2 + length].decode(), inner[2 + length :]
    assert (inner[0], rest[0], rest[2]) == (0x0A, 0x10, 0x19)
    return name, rest[1], struct.unpack("<d", rest[3:])[0]


class Caller:
    """As KEDA is one."""

    def __init__(self, bench: GatewayBench) -> None:
        self.channel = grpc.aio.insecure_channel(bench.gateway.scaler.address)

    async def call(self, method: str, request: bytes) -> bytes:
        answer: bytes = await self.channel.unary_unary(f"/{SERVICE}/{method}")(request, timeout=10)
        return answer

    async def wanted(self, **metadata: str) -> int:
        name, whole, double = metric_of(await self.call("GetMetrics", asked(**metadata)))
        assert (name, float(whole)) == (METRIC, double)
        return whole

    async def refused(self, method: str, request: bytes) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, request)
        return caught.value.code(), caught.value.details() or ""


def test_the_first_request_makes_it_active_and_the_number_follows(scenario: Callable[..., None]) -> None:
    async def body(bench: GatewayBench) -> None:
        bench.cloud.comes_up = False
        caller = Caller(bench)
        stream = caller.channel.unary_stream(f"/{SERVICE}/StreamIsActive")(about())
        assert await stream.read() == b""  # false: at once, as KEDA expects
        assert await caller.call("IsActive", about()) == b""
        assert metric_of(await caller.call("GetMetricSpec", about())) == (METRIC, 1, 1.0)
        assert await caller.wanted() == 0
        request = asyncio.ensure_future(bench.send(sealed()))
        assert await asyncio.wait_for(stream.read(), 10) == b"\x08\x01"
        assert await caller.call("IsActive", about()) == b"\x08\x01"
        assert await caller.wanted(policy="gateway") == 1
        bench.cloud.let_up()
        assert (await request).status == 200
        assert await caller.wanted() == 1
        stream.cancel()
        await caller.channel.close()

    scenario(body, toml(scaler=SCALER))


def test_what_policies_would_decide_is_told_beside(scenario: Callable[..., None]) -> None:
    async def body(bench: GatewayBench) -> None:
        caller = Caller(bench)
        assert (await bench.send(sealed())).status == 200
        await bench.gateway.watch.tick()
        slo = await caller.wanted(policy="slo")  # two ticks in quick succession look like a high rate
        assert slo in (1, 2)
        assert await caller.wanted(policy="concurrency") in (0, 1)
        assert (await bench.get("/v1/status"))["wanted"]["slo"] == slo
        text = await bench.get("/metrics")
        assert 'cloister_gateway_wanted_instances{policy="gateway"} 1' in text
        assert f'cloister_gateway_wanted_instances{{policy="slo"}} {slo}' in text
        await caller.channel.close()

    scenario(body, toml(scaler=SCALER))


def test_nonsense_is_refused_and_said(scenario: Callable[..., None]) -> None:
    async def body(bench: GatewayBench) -> None:
        caller = Caller(bench)
        invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
        for method in ("IsActive", "GetMetricSpec"):
            code, text = await caller.refused(method, b"\x0a\x7f")
            assert (code, text.partition(":")[0]) == (invalid, "scaler-message")
            code, text = await caller.refused(method, about(policy="hope"))
            assert (code, text.partition(":")[0]) == (invalid, "scaler-policy")
            assert "'hope'" in text
        code, text = await caller.refused("GetMetrics", asked("pods"))
        assert (code, text.partition(":")[0]) == (missing, "scaler-metric")
        code, _ = await caller.refused("StreamMetricSpec", about())
        assert code is grpc.StatusCode.UNIMPLEMENTED  # which KEDA takes as: ask for them
        code, _ = await caller.refused("IsActive", bytes(2 * MAX_MESSAGE))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await caller.wanted() == 0  # and goes on
        await caller.channel.close()

    scenario(body, toml(scaler=SCALER))


def test_an_address_that_is_taken_is_told(scenario: Callable[..., None]) -> None:
    async def body(bench: GatewayBench) -> None:
        with pytest.raises(Unavailable) as caught:
            await bench.gateway.scaler.open(bench.gateway.scaler.address)
        assert caught.value.code == "listen-failed"

    scenario(body, toml(scaler=SCALER))


def test_an_installation_without_grpc_says_so(scenario: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(bench: GatewayBench) -> None:
        monkeypatch.setitem(sys.modules, "grpc", None)
        with pytest.raises(Unavailable) as caught:
            await bench.gateway.scaler.open("127.0.0.1:0")
        assert caught.value.code == "scaler-not-installed"

    scenario(body)


def test_a_bound_that_is_declared_is_counted(scenario: Callable[..., None]) -> None:
    async def body(bench: GatewayBench) -> None:
        assert (await bench.send(sealed())).status == 200
        bench.stand_ins()[0].delay_s = 0.3
        assert (await bench.send(sealed())).status == 200
        bench.stand_ins()[0].fail_with = InvalidInput("request-refused", "no")  # the caller's own fault: not counted
        assert (await bench.send(sealed())).status == 400
        await bench.until(lambda: bench.gateway.telemetry._slo.value(str(MODEL), "false") == 1)
        text = await bench.get("/metrics")
        assert f'cloister_gateway_slo_seconds{{model="{MODEL}"}} 0.25' in text
        assert f'cloister_gateway_slo_requests_total{{model="{MODEL}",met="true"}} 1' in text
        assert f'cloister_gateway_slo_requests_total{{model="{MODEL}",met="false"}} 1' in text
        await bench.gateway.watch.tick()
        await bench.gateway.watch.tick()
        text = await bench.get("/metrics")
        (instance,) = bench.gateway.dispatcher.snapshot.order
        assert f'cloister_gateway_instance_pressure_ratio{{instance="{instance}"}} 0' in text
        assert f'cloister_gateway_instance_churn_bytes{{instance="{instance}"}} 0' in text
        assert "cloister_gateway_predicted_p99_seconds{domain=" in text

    declared = toml(models=(), more={f'models."{MODEL}"': "memory_mb = 10\nslo_ms = 250"})
    scenario(body, declared)


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",  # a number that does not end
        b"\x08" + b"\xff" * 10 + b"\x01",  # or is too long
        b"\x00\x00",  # field 0
        b"\x0a\x05abc",  # text cut off
        b"\x0a\x01\xff",  # not UTF-8
        b"\x08\x01",  # a number for a name
        b"\x1a\x02\x08\x01",  # in the map
        b"\x0b",  # a group
        b"\x09abc",  # eight bytes, cut off
        bytes(MAX_MESSAGE + 1),
    ],
)
def test_malformed_messages_are_refused(data: bytes) -> None:
    for read in (read_scaled_object, read_metrics_request):
        if read is read_metrics_request and data in (b"\x0a\x01\xff", b"\x1a\x02\x08\x01"):
            continue  # there, field 1 is a message, and field 3 unknown
        with pytest.raises(InvalidInput) as caught:
            read(data)
        assert caught.value.code == "scaler-message"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    for read in (read_scaled_object, read_metrics_request):
        with suppress(InvalidInput):  # and nothing but that
            read(data)


def test_what_a_later_version_adds_is_skipped() -> None:
    later = about(policy="slo") + b"\x50\x07" + b"\x5d" + bytes(4) + b"\x61" + bytes(8) + blob(13, b"more")
    found = read_scaled_object(later)
    assert (found.name, found.namespace, found.metadata) == ("runtimes", "ns", {"policy": "slo"})
