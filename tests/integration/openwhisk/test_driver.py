"""The OpenWhisk driver against a platform with bad days: throttling, lost connections, queues, deaths, nonsense."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cloister.adapters.http.answer import Answer
from cloister.adapters.http.client import AsyncHttpClient
from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.base.limits import MIB
from cloister.platforms.openwhisk import driver, rest
from cloister.platforms.openwhisk.driver import OpenWhiskPlatform
from cloister.platforms.openwhisk.settings import OpenWhiskSettings
from cloister.platforms.port import Gone, Ready
from cloister.testing.gateway import MODEL, problem_code, sealed
from cloister.testing.logs import MemoryLog
from cloister.testing.openwhisk_server import AUTH, FakeOpenWhisk, Fault
from cloister.testing.payload_server import PayloadServer

INFER = f"/v1/models/{MODEL}/infer"
INVOKE = "/api/v1/namespaces/_/actions/"


class Bench:
    """One platform, one driver, one instance that is ready."""

    def __init__(self) -> None:
        self.cloud = FakeOpenWhisk()
        self.payloads = PayloadServer()
        self.client = AsyncHttpClient()
        self.platform: OpenWhiskPlatform
        self.address = ""

    def settings(self, **changes: Any) -> OpenWhiskSettings:
        values = {
            "api": self.cloud.address,
            "auth": AUTH,
            "image": "example/cloister:1",
            "deployment": "d",
            "poll_s": 60.0,
        }
        return OpenWhiskSettings(**{**values, **changes})

    async def open(self, *, store: bool = False, **changes: Any) -> None:
        if store:
            changes["payloads"] = self.payloads.url
        self.platform = OpenWhiskPlatform(self.settings(**changes), MemoryLog())
        await self.platform.start("i-1", "g")
        ready = await asyncio.wait_for(anext(self.platform.events()), 60)
        assert isinstance(ready, Ready), ready
        self.address = ready.address

    async def infer(self, content: bytes | None = None) -> Answer:
        return await self.client.request("POST", self.address, INFER, content=content or sealed(), deadline_s=60)

    async def code(self, content: bytes | None = None) -> str:
        return problem_code(await self.infer(content))

    def invocations(self) -> int:
        return sum(method == "POST" for method, _ in self.cloud.calls)


def run(body: Callable[[Bench], Awaitable[None]], **changes: Any) -> None:
    async def whole() -> None:
        bench = Bench()
        await bench.cloud.open()
        await bench.payloads.server.start()
        try:
            await bench.open(**changes)
            await body(bench)
        finally:
            if hasattr(bench, "platform"):
                await bench.platform.close()
            await bench.client.close()
            await bench.payloads.server.close()
            await bench.cloud.close()

    asyncio.run(asyncio.wait_for(whole(), 110))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "BACKOFF_S", 0.01)
    monkeypatch.setattr(rest, "FIRST_POLL_S", 0.01)
    monkeypatch.setattr(driver, "RETRY_S", 0.01)


def answers(request: bytes, answer: Answer) -> None:
    assert answer.status == 200, answer.body
    assert answer.body[4:36] == hashlib.sha256(request).digest()


def test_what_a_gateway_asks_each_second_costs_no_activation() -> None:
    async def body(bench: Bench) -> None:
        assert bench.invocations() == 1, "the first one started the container"
        for _ in range(5):
            status = await bench.client.request("GET", bench.address, "/v1/status")
            assert json.loads(status.body)["concurrency"] == 4
            for path in ("/readyz", "/healthz"):
                assert (await bench.client.request("GET", bench.address, path)).status == 200
        assert (await bench.client.request("GET", bench.address, "/metrics")).status == 404
        assert bench.invocations() == 1
        request = sealed()
        answers(request, await bench.infer(request))
        status = await bench.client.request("GET", bench.address, "/v1/status")
        assert json.loads(status.body)["models"] == [str(MODEL)], "the answer brought the newest status along"
        assert bench.invocations() == 2

    run(body)


def test_an_action_is_made_as_configured() -> None:
    async def body(bench: Bench) -> None:
        document = bench.cloud.actions["d-i-1"].document
        assert document["exec"] == {"kind": "blackbox", "image": "example/cloister:1", "code": "", "binary": False}
        assert document["limits"] == {"memory": 640, "timeout": 30_000, "logs": 10, "concurrency": 3}
        assert document["parameters"] == [
            {"key": "CLOISTER_MAX_RESULT", "value": "2097152", "init": True},
            {"key": "CLOISTER_X", "value": "y", "init": True},
        ]
        assert {"key": "provide-api-key", "value": False} in document["annotations"]
        assert all(pair["key"] != "web-export" for pair in document["annotations"])

    run(body, memory_mb=640, timeout_s=30.0, concurrency=3, carries=2 * MIB, parameters={"CLOISTER_X": "y"})


def test_an_invocation_that_is_queued_is_polled_for() -> None:
    async def body(bench: Bench) -> None:
        bench.cloud.faults = [
            Fault("POST", INVOKE, queued=True),
            Fault("GET", "/api/v1/namespaces/_/activations/", status=404, times=3),
            Fault("GET", "/api/v1/namespaces/_/activations/", status=503),
            Fault("GET", "/api/v1/namespaces/_/activations/", cut=True),
        ]
        request = sealed()
        answers(request, await bench.infer(request))

    run(body)


def test_throttling_is_told_with_a_time_and_is_not_the_instances_fault() -> None:
    async def body(bench: Bench) -> None:
        bench.cloud.rate = 2
        await bench.infer()
        throttled = await bench.infer()
        assert (throttled.status, problem_code(throttled)) == (503, "platform-throttled")
        assert throttled.headers.get("retry-after") == "5"
        assert b"Too many requests in the last minute" in throttled.body
        assert (await bench.client.request("GET", bench.address, "/readyz")).status == 200
        bench.cloud.faults = [Fault("POST", INVOKE, status=429, headers=(("retry-after", "7"),))]
        assert (await bench.infer()).headers.get("retry-after") == "7"
        bench.cloud.next_minute()
        assert (await bench.infer()).status == 200

    run(body)


def test_calls_that_may_be_repeated_are() -> None:
    async def body(bench: Bench) -> None:
        for faults in (
            [Fault("PUT", status=500), Fault("PUT", status=409), Fault("PUT", cut=True)],
            [Fault("PUT", cut=True, late=True)],
            [Fault("GET", status=503), Fault("GET", cut=True)],
        ):
            bench.cloud.faults = faults
            name = f"i-{len(bench.cloud.actions) + 1}"
            await bench.platform.start(name, "g")
            assert isinstance(await anext(bench.platform.events()), Ready)
            assert any(there.instance == name for there in await bench.platform.running())
        bench.cloud.faults = [Fault("DELETE", status=502), Fault("DELETE", cut=True, late=True)]
        await bench.platform.stop_all()
        assert not bench.cloud.actions

    run(body)


def test_each_bad_answer_has_a_code_and_the_next_request_is_served() -> None:
    def told(status: str, result: object) -> bytes:
        return json.dumps({"response": {"status": status, "result": result}}).encode()

    cases = (
        (Fault("POST", INVOKE, cut=True), "activation-lost"),
        (Fault("POST", INVOKE, cut=True, late=True), "activation-lost"),
        (Fault("POST", INVOKE, status=500), "platform-unavailable"),
        (Fault("POST", INVOKE, status=503), "platform-unavailable"),
        (Fault("POST", INVOKE, status=401), "platform-refused"),
        (Fault("POST", INVOKE, status=404), "instance-missing"),
        (Fault("POST", INVOKE, status=413), "body-too-large"),
        (Fault("POST", INVOKE, body=b"<html>"), "platform-unavailable"),
        (Fault("POST", INVOKE, body=b'{"response": 1}'), "platform-unavailable"),
        (Fault("POST", INVOKE, status=202, body=b'{"activationId": "../x"}'), "platform-unavailable"),
        (Fault("POST", INVOKE, body=told("success", {})), "activation-failed"),
        (Fault("POST", INVOKE, body=told("success", [])), "activation-failed"),
        (Fault("POST", INVOKE, body=told("success", {"status": 200, "body": "*"})), "activation-failed"),
        (Fault("POST", INVOKE, body=told("success", {"status": 200, "body": 1})), "activation-failed"),
        (Fault("POST", INVOKE, body=told("success", {"status": 700, "body": ""})), "activation-failed"),
        (Fault("POST", INVOKE, body=told("success", {"status": 200, "body_ref": "x"})), "activation-failed"),
        (Fault("POST", INVOKE, status=502, body=told("application error", {"error": "x"})), "activation-failed"),
        (Fault("POST", INVOKE, status=502, body=told("action developer error", {"error": "x"})), "activation-failed"),
        (Fault("POST", INVOKE, status=500, body=told("whisk internal error", {})), "activation-failed"),
    )

    async def body(bench: Bench) -> None:
        for fault, code in cases:
            bench.cloud.faults = [fault]
            before = bench.invocations()
            assert await bench.code() == code, fault
            assert bench.invocations() == before + 1, "an invocation is never repeated"
            assert (await bench.client.request("GET", bench.address, "/readyz")).status == 200
            assert (await bench.infer()).status == 200

    run(body)


def test_headers_of_a_result_cannot_break_out() -> None:
    async def body(bench: Bench) -> None:
        headers = {"content-type": "a\r\nx-evil: 1", "set-cookie": "a=b", "cache-control": "no-store"}
        result = {"status": 200, "headers": headers, "body": base64.b64encode(b"x").decode()}
        record = {"response": {"status": "success", "result": result}}
        bench.cloud.faults = [Fault("POST", INVOKE, body=json.dumps(record).encode())]
        answer = await bench.infer()
        assert answer.body == b"x"
        assert "cache-control" in answer.headers
        assert not {"x-evil", "set-cookie", "content-type"} & {name for name, _ in answer.headers}

    run(body)


def test_an_application_error_is_the_runtimes_own_answer() -> None:
    async def body(bench: Bench) -> None:
        refused = await bench.infer(b"nonsense")
        assert (refused.status, problem_code(refused)) == (400, "envelope-malformed")

    run(body)


def test_a_probe_goes_on_when_the_gateway_has_no_patience() -> None:
    async def body(bench: Bench) -> None:
        bench.cloud.faults = [Fault("POST", INVOKE, status=503)]
        await bench.infer()
        bench.cloud.destroy_containers("d-i-1")
        before = bench.invocations()
        with pytest.raises(Unavailable, match="deadline-exceeded"):
            await bench.client.request("GET", bench.address, "/readyz", deadline_s=0.001)
        assert (await bench.client.request("GET", bench.address, "/readyz", deadline_s=30)).status == 200
        assert bench.invocations() == before + 1

    run(body)


def test_a_container_that_is_gone_is_replaced_by_the_platform() -> None:
    async def body(bench: Bench) -> None:
        for _ in range(2):
            bench.cloud.destroy_containers("d-i-1")
            request = sealed()
            answers(request, await bench.infer(request))
        assert bench.cloud.started == 3

    run(body)


def test_requests_under_way_end_before_the_action_is_deleted() -> None:
    async def body(bench: Bench) -> None:
        request = sealed()
        under_way = asyncio.ensure_future(bench.infer(request))
        while bench.cloud.actions["d-i-1"].containers[0].busy == 0:  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0)
        await bench.platform.stop("i-1")
        answers(request, await under_way)
        assert isinstance(await anext(bench.platform.events()), Gone)
        assert not bench.cloud.actions

    run(body, parameters={"CLOISTER_DELAY_MS": "300"})


def test_large_bodies_go_by_the_store_and_leave_nothing_there() -> None:
    async def body(bench: Bench) -> None:
        request = sealed(size=3 * MIB)
        answers(request, await bench.infer(request))
        assert bench.payloads.largest > 3 * MIB
        assert not bench.payloads.objects
        bench.payloads.away = True
        assert await bench.code(request) == "payload-store-unavailable"
        bench.payloads.away = False
        small = sealed()
        answers(small, await bench.infer(small))

    run(body, store=True)


def test_large_answers_go_by_the_store_too() -> None:
    async def body(bench: Bench) -> None:
        bench.cloud.destroy_containers("d-i-1")
        bench.cloud.command = (*bench.cloud.command, "--answer-bytes", str(2 * MIB))
        for size in (4096, 2 * MIB):
            request = sealed(size=size)
            answer = await bench.infer(request)
            answers(request, answer)
            assert len(answer.body) > 2 * MIB
        assert not bench.payloads.objects

    run(body, store=True)


def test_without_a_store_what_is_too_large_is_refused_with_a_hint() -> None:
    async def body(bench: Bench) -> None:
        answer = await bench.infer(sealed(size=MIB))
        assert (answer.status, problem_code(answer)) == (413, "body-too-large")
        assert b"payload store" in answer.body
        bench.cloud.destroy_containers("d-i-1")
        bench.cloud.command = (*bench.cloud.command, "--answer-bytes", str(2 * MIB))
        assert await bench.code() == "result-too-large"

    run(body)


def test_a_start_that_fails_is_reported_with_its_cause_and_leaves_no_action() -> None:
    async def body(bench: Bench) -> None:
        platform = OpenWhiskPlatform(
            bench.settings(deployment="e", parameters={"CLOISTER_FAIL": "no keys for you"}),
            MemoryLog(),
        )
        await platform.start("i-9", "g")
        gone = await anext(platform.events())
        assert isinstance(gone, Gone)
        assert "no keys for you" in gone.reason
        assert list(bench.cloud.actions) == ["d-i-1"]
        bench.cloud.faults = [Fault("PUT", status=400, error="action memory size 9 MB exceeds allowed threshold")]
        with pytest.raises(Unavailable, match="exceeds allowed threshold"):
            await platform.start("i-10", "g")
        assert not await platform.running()
        await platform.close()

    run(body)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"memory_mb": 64}, "memory_mb"),
        ({"memory_mb": 8192}, "memory_mb"),
        ({"timeout_s": 301.0}, "timeout_s"),
        ({"concurrency": 65}, "concurrency"),
        ({"auth": "a:b"}, "401"),
        ({"api": "http://127.0.0.1:1"}, "connect-failed"),
    ],
)
def test_a_configuration_the_platform_cannot_serve_is_refused_at_the_start(changes: dict[str, Any], error: str) -> None:
    async def body(bench: Bench) -> None:
        platform = OpenWhiskPlatform(bench.settings(**changes), MemoryLog())
        with pytest.raises((InvalidInput, Refused, Unavailable), match=error):
            await platform.open()
        await platform.close()

    run(body)


def test_actions_of_others_are_left_alone() -> None:
    async def body(bench: Bench) -> None:
        other = OpenWhiskPlatform(bench.settings(deployment="d-i"), MemoryLog())
        await other.open()
        assert not await other.running(), "d-i-1 begins like an action of the deployment d-i, and is none"
        for count in range(250):
            bench.cloud.actions[f"a{count}"] = bench.cloud.actions["d-i-1"]
        assert [there.instance for there in await bench.platform.running()] == ["i-1"]
        await other.stop_all()
        await other.close()
        assert "d-i-1" in bench.cloud.actions
        for count in range(250):
            del bench.cloud.actions[f"a{count}"]

    run(body)


def test_errors_are_of_the_four_families() -> None:
    async def body(bench: Bench) -> None:
        for status in (400, 402, 404, 408, 418, 500, 599):
            bench.cloud.faults = [Fault("GET", "/api/v1/namespaces/_/actions", status=status, times=4)]
            with pytest.raises(CloisterError) as caught:
                await bench.platform.running()
            assert caught.value.code in ("platform-limit", "platform-unavailable")

    run(body)
