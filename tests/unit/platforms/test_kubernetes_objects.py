"""What pods and answers of the API are read as, whatever is in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.platforms.kubernetes.pods import Pod
from cloister.platforms.kubernetes.resources import MAX_TEXT, PODS, SCALE, SERVICES, Expired, Told

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
STATUS_KEYS = st.sampled_from(
    ["phase", "podIP", "conditions", "containerStatuses", "initContainerStatuses", "reason", "message"]
)


def pod(**status: Any) -> Pod:
    spec = {"nodeName": "node-1"}
    meta = {"name": "p", "uid": "u", "labels": {"cloister.dev/instance": "i-1"}}
    return Pod.read({"metadata": meta, "spec": spec, "status": status}, "runtime", 8080)


READY = {"type": "Ready", "status": "True"}
SCHEDULED = {"type": "PodScheduled", "status": "True"}


def test_a_ready_pod_has_an_address() -> None:
    one = pod(podIP="10.0.0.7", conditions=[READY])
    assert one.ready
    assert (one.address, one.host, one.instance) == ("http://10.0.0.7:8080", "node-1", "i-1")
    assert pod(podIP="fd00::7", conditions=[READY]).address == "http://[fd00::7]:8080"
    assert not pod(conditions=[READY]).ready, "no address yet"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({}, "its pod has no node"),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3"}]},
            "its pod has no node: Unschedulable: 0/3",
        ),
        ({"conditions": [SCHEDULED]}, "its containers are not started yet"),
        ({"conditions": [SCHEDULED], "containerStatuses": [{"name": "sidecar"}]}, "its pod has no container 'runtime'"),
        (
            {
                "conditions": [SCHEDULED],
                "containerStatuses": [{"name": "runtime", "state": {"waiting": {"reason": "ContainerCreating"}}}],
            },
            "its container waits: ContainerCreating",
        ),
        (
            {
                "conditions": [SCHEDULED],
                "initContainerStatuses": [{"name": "init", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}],
            },
            "its init container init cannot run: CrashLoopBackOff",
        ),
        (
            {"conditions": [SCHEDULED], "containerStatuses": [{"name": "runtime", "state": {"running": {}}}]},
            "readiness probe",
        ),
    ],
)
def test_a_pod_that_is_not_ready_says_why(status: dict[str, Any], words: str) -> None:
    one = pod(**status)
    assert words in one.waits
    assert not one.ended


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory"},
            "its pod ended: Evicted: The",
        ),
        ({"phase": "Succeeded"}, "its pod ended: Succeeded"),
        (
            {
                "containerStatuses": [
                    {"name": "runtime", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
                ]
            },
            "its container ended: exit code 137: OOMKilled",
        ),
        (
            {
                "containerStatuses": [
                    {
                        "name": "runtime",
                        "state": {"running": {}},
                        "lastState": {"terminated": {"exitCode": 1, "message": "usage\n\nerror: no bundle\n"}},
                    }
                ]
            },
            "its container ended: exit code 1: error: no bundle",
        ),
        (
            {"containerStatuses": [{"name": "runtime", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]},
            "its container cannot run: ImagePullBackOff",
        ),
    ],
)
def test_a_pod_that_ended_says_of_what(status: dict[str, Any], words: str) -> None:
    one = pod(**status, podIP="10.0.0.7", conditions=[READY])
    assert words in one.ended
    assert not one.ready


def test_another_container_that_ends_ends_nothing() -> None:
    state = {"terminated": {"exitCode": 1}}
    assert pod(podIP="10.0.0.7", conditions=[READY], containerStatuses=[{"name": "sidecar", "state": state}]).ready


@given(st.dictionaries(STATUS_KEYS, JSON), JSON, JSON)
def test_any_pod_is_read(status: dict[str, Any], meta: Any, spec: Any) -> None:
    Pod.read({"metadata": meta, "spec": spec, "status": status}, "runtime", 8080)


def told(code: int, message: str = "said", **details: Any) -> CloisterError | Expired:
    body = json.dumps({"kind": "Status", "message": message, "reason": "r", "code": code, "details": details})
    return Told.read(code, body.encode()).error("patch", SCALE, "ml", "pool")


def test_answers_are_of_the_four_families() -> None:
    assert isinstance(Told(410, "Expired", "").error("watch", PODS, "ml", ""), Expired)
    assert isinstance(told(410), Unavailable), "nothing to list anew"
    for code, family, name in (
        (400, InvalidInput, "platform-limit"),
        (401, Refused, "platform-refused"),
        (403, Refused, "platform-refused"),
        (404, InvalidInput, "platform-object-missing"),
        (409, Unavailable, "platform-unavailable"),
        (422, InvalidInput, "platform-limit"),
        (429, Unavailable, "platform-throttled"),
        (500, Unavailable, "platform-unavailable"),
        (504, Unavailable, "platform-unavailable"),
    ):
        error = told(code)
        assert isinstance(error, family)
        assert error.code == name
        assert "said" in error.message
    full = told(403, "pods is forbidden: exceeded quota: small")
    assert isinstance(full, Unavailable)
    assert full.code == "platform-full"


def test_when_to_come_again_is_in_the_header_or_the_status() -> None:
    assert Told.read(429, b"{}", "7").retry_after == 7
    assert Told.read(503, b'{"details": {"retryAfterSeconds": 3}}').retry_after == 3
    for header in ("-1", "1.5", "soon", "99999", "Wed, 21 Oct 2026 07:28:00 GMT"):
        assert Told.read(503, b"<html>", header).retry_after is None


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()), st.integers(400, 599))
def test_any_answer_is_told_shortly_and_on_one_line(body: bytes, code: int) -> None:
    error = Told.read(code, body).error("list", PODS, "ml", "")
    text = str(error)
    assert "\n" not in text
    assert len(text) < MAX_TEXT + 400


def test_paths_are_those_of_the_api() -> None:
    assert PODS.path("ml", "p") == "/api/v1/namespaces/ml/pods/p"
    assert PODS.path("ml") == "/api/v1/namespaces/ml/pods"
    assert SCALE.path("ml", "d") == "/apis/apps/v1/namespaces/ml/deployments/d/scale"
    assert SERVICES.path("ml") == "/apis/serving.knative.dev/v1/namespaces/ml/services"
