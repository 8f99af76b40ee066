"""The action interface as the platform describes it (apache/openwhisk: docs/actions-new.md, "Action Interface"), test
for test what its own suite for action containers asks (BasicActionRunnerTests), as far as an action without user code
can be asked; and how the platform reads answers (ActivationResult.scala)."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cloister.adapters.clock import SystemClock
from cloister.testing.action import SENTINEL, STAND_IN, ActionProcess, Invoker
from cloister.testing.gateway import MODEL, sealed

Start = Callable[[], tuple[Invoker, dict[str, str]]]
STATUS = {"method": "GET", "path": "/v1/status"}
INFER = f"/v1/models/{MODEL}/infer"


def ready(start: Start) -> Invoker:
    invoker, environment = start()
    status, answer = invoker.init(environment)
    assert (status, answer.get("error")) == (200, None)
    return invoker


def body_of(result: dict[str, Any]) -> Any:
    return json.loads(b64decode(result["body"]))


def check_streams(invoker: Invoker, activations: int) -> tuple[str, str]:
    """As ``checkStreams``: each stream has one end marker for each activation, on a line of its own."""
    streams = invoker.container.output()
    for text in streams:
        assert text.count(SENTINEL) == activations
        assert sum(line == SENTINEL for line in text.splitlines()) == activations
        assert not activations or text.endswith(SENTINEL + "\n")
    return streams


def test_it_is_initialised_and_run_many_times(start: Start) -> None:
    invoker = ready(start)
    for count in range(1, 4):
        status, result = invoker.run(STATUS, namespace="n", action_name="/n/a", activation_id="a" * 32, deadline=4e12)
        assert (status, result["status"]) == (200, 200)
        assert body_of(result)["ready"] is True
        check_streams(invoker, count)


def test_it_is_initialised_without_content_when_the_environment_says_everything() -> None:
    process = ActionProcess(STAND_IN)
    invoker = Invoker(process)
    try:
        invoker.wait()
        status, _ = invoker.post("/init", {})
        assert status == 200
        assert invoker.run({})[0] == 200
    finally:
        invoker.close()
        process.kill()


def test_a_second_init_is_refused_in_the_platforms_words(start: Start) -> None:
    invoker, environment = start()
    assert invoker.init(environment)[0] == 200
    status, answer = invoker.init(environment)
    assert status != 200
    assert answer == {"error": "Cannot initialize the action more than once."}
    out, err = check_streams(invoker, 0)
    assert "Cannot initialize the action more than once." in out + err
    assert invoker.run(STATUS)[0] == 200, "the first initialisation still counts"


def test_run_before_init_is_an_error_object(start: Start) -> None:
    invoker, _ = start()
    status, answer = invoker.run(STATUS)
    assert status != 200
    assert list(answer) == ["error"]


def test_a_failed_init_is_told_and_not_repeated(start: Start) -> None:
    invoker, environment = start()
    broken = {**environment, "CLOISTER_BUNDLE": "base64:AAAA", "CLOISTER_FAIL": "no such luck"}
    status, answer = invoker.init(broken)
    assert status == 502
    assert list(answer) == ["error"]
    assert isinstance(answer["error"], str)
    assert "[" in answer["error"], "with the stable code"
    assert invoker.run(STATUS)[0] != 200
    assert invoker.init(environment)[0] == 403


def test_malformed_initialisations_are_errors(start: Start) -> None:
    for body in (b"{", b'{"value":{"env":{"A":1}}}'):
        invoker, _ = start()
        status, answer = invoker.post("/init", body)
        assert status != 200
        assert list(answer) == ["error"]
        invoker.close()
        assert invoker.container.stop() == 0


def test_malformed_runs_are_errors_and_the_container_lives(start: Start) -> None:
    invoker = ready(start)
    bodies = (b"", b"[]", b"{", b'{"value":[]}', b"[" * 100_000, b'{"value":{"path":1}}', b'{"value":{"body":"*"}}')
    for body in bodies:
        _, answer = invoker.post("/run", body)
        assert list(answer) == ["error"]
    for value in (
        {"method": "BREW"}, {"path": "x"}, {"path": "/ x"}, {"body_ref": "../../etc/passwd"}, {"content_type": 1},
        {"body": "", "body_ref": "0" * 32}, {"body_ref": "0" * 32},
        {"__ow_method": "post", "__ow_path": INFER, "__ow_body": "not base64"},
    ):  # fmt: skip
        status, answer = invoker.run(value)
        assert status == 200, "an application error: anything else makes the platform destroy the container"
        assert list(answer) == ["error"]
    check_streams(invoker, len(bodies) + 8)
    assert invoker.run(STATUS)[1]["status"] == 200


def test_an_application_error_has_status_200_and_an_error_object(start: Start) -> None:
    invoker = ready(start)
    value = {"method": "POST", "path": INFER, "body": b64encode(b"nonsense").decode()}
    status, answer = invoker.run(value)
    assert status == 200
    assert list(answer) == ["error"]
    assert answer["error"]["status"] == 400
    assert body_of(answer["error"])["type"].startswith("urn:cloister:error:")


def test_a_raw_web_action_answers_http(start: Start) -> None:
    invoker = ready(start)
    web = {"__ow_method": "get", "__ow_headers": {"accept": "*/*"}, "__ow_query": "", "__ow_body": ""}
    status, answer = invoker.run({**web, "__ow_path": "/readyz"})
    assert (status, answer["statusCode"]) == (200, 200)
    assert answer["headers"]["content-type"] == "application/json"
    assert json.loads(answer["body"]) == {"ready": True}
    for path in ("/v1/status", "/metrics"):
        assert invoker.run({**web, "__ow_path": path})[1]["error"]["statusCode"] == 404, "for operators only"
    nonsense = {"__ow_method": "post", "__ow_path": INFER, "__ow_headers": {}, "__ow_body": "AAAA"}
    status, answer = invoker.run(nonsense)
    assert status == 200
    error = answer["error"]  # the platform answers its client with what is in here (docs/webactions.md)
    assert error["statusCode"] == 400
    assert error["headers"]["content-type"] == "application/problem+json"
    assert error["body"]["status"] == 400


def test_large_inputs_pass(start: Start) -> None:
    """The suite's own size: 1,048,561 characters beside an activation that does not look at them."""
    invoker = ready(start)
    status, answer = invoker.run({**STATUS, "arg": "a" * 1_048_561})
    assert (status, answer["status"]) == (200, 200)


def test_unicode_passes(start: Start) -> None:
    invoker = ready(start)
    assert invoker.run({**STATUS, "delimiter": "❄ ☃ ❄"})[1]["status"] == 200
    assert list(invoker.run({"path": "/❄"})[1]) == ["error"]


def test_status_comes_along_when_asked_for(start: Start) -> None:
    invoker = ready(start)
    _, answer = invoker.run({"method": "GET", "path": "/readyz", "status": True})
    assert answer["runtime"]["memory_mb"]["budget"] == 2048


def test_activations_overlap_and_each_ends_its_log(start: Start) -> None:
    invoker = ready(start)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: invoker.run(STATUS)[1]["status"], range(40)))
    assert found == [200] * 40
    check_streams(invoker, 40)


def test_a_sealed_request_goes_through_as_it_is() -> None:
    process = ActionProcess(STAND_IN)
    invoker = Invoker(process)
    try:
        invoker.wait()
        invoker.init({"CLOISTER_DELAY_MS": "200"})
        request = sealed()
        text = b64encode(request).decode()
        with ThreadPoolExecutor(2) as pool:
            direct = pool.submit(invoker.run, {"method": "POST", "path": INFER, "body": text})
            raw = pool.submit(
                invoker.run,
                {"__ow_method": "post", "__ow_path": INFER, "__ow_headers": {"content-length": "9"}, "__ow_body": text},
            )
        assert b64decode(direct.result()[1]["body"])[:4] == b"CLA1"
        answer = raw.result()[1]
        assert b64decode(answer["body"])[:4] == b"CLA1"
        assert answer["headers"]["content-type"] == "application/vnd.cloister.response"
        status = json.loads(b64decode(invoker.run({**STATUS})[1]["body"]))
        assert status["models"] == [str(MODEL)]
    finally:
        invoker.close()
        process.kill()


def test_the_deadline_is_told_before_the_container_is_destroyed() -> None:
    process = ActionProcess(STAND_IN)
    invoker = Invoker(process)
    try:
        invoker.wait()
        invoker.init({"CLOISTER_DELAY_MS": "60000"})
        value = {"method": "POST", "path": INFER, "body": b64encode(sealed()).decode()}
        now = SystemClock().now()
        for deadline in (int((now + 1) * 1000), str(int(now * 1000)), 1):
            status, answer = invoker.run(value, deadline=deadline)
            assert status == 200
            assert "activation-deadline" in b64decode(answer["error"]["body"]).decode()
    finally:
        invoker.close()
        process.kill()


def test_sigterm_finishes_what_is_under_way() -> None:
    process = ActionProcess(STAND_IN)
    invoker = Invoker(process)
    invoker.wait()
    invoker.init({"CLOISTER_DELAY_MS": "300"})
    value = {"method": "POST", "path": INFER, "body": b64encode(sealed()).decode()}
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(invoker.run, value)
        while not invoker.run({"status": True})[1]["runtime"]["in_flight"]:
            pass
        assert process.stop() == 0
        assert under_way.result()[1]["status"] == 200
    invoker.close()
