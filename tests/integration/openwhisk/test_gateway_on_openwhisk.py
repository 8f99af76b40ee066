"""End to end: client -> gateway -> OpenWhisk's REST API -> real action processes -> answer."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator

import numpy as np
import pytest

from cloister import Client
from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.client.identity import create_identity
from cloister.client.inference import open_inference, seal_inference
from cloister.testing.models.small import sum_difference
from cloister.testing.openwhisk_cloud import Beside, OpenWhiskCloud, real_actions
from cloister.testing.payload_server import PayloadServer

A = np.array([[1.0, 2.0, 3.0]], np.float32)
B = np.array([[10.0, 20.0, 30.0]], np.float32)


@pytest.fixture(scope="module")
def beside() -> Iterator[Beside]:
    loop = Beside()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def cloud(beside: Beside, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenWhiskCloud]:
    platform, payloads = real_actions(), PayloadServer()
    beside.run(platform.open())
    beside.run(payloads.server.start())
    cloud = OpenWhiskCloud(tmp_path_factory.mktemp("ow") / "state", platform, payloads=payloads.url)
    try:
        cloud.start()
        yield cloud
    finally:
        cloud.stop()
        left = dict(platform.actions)
        beside.run(payloads.server.close())
        beside.run(platform.close())
    assert not left, "a gateway that ends takes its actions along"


@pytest.fixture(scope="module")
def bob(cloud: OpenWhiskCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A user with consent for the model ``sums`` of alice."""
    for name in ("alice", "bob"):
        create_identity(cloud.home, name)
    folder = tmp_path_factory.mktemp("model")
    (folder / "sums.onnx").write_bytes(sum_difference())
    with Client.open(cloud.home, "alice") as alice, Client.open(cloud.home, "bob") as bob:
        alice.register()
        bob.register()
        alice.pack(folder / "sums.onnx", folder / "packed", name="sums", version=1)
        alice.publish(folder / "packed")
        policy = cloud.runtime_policy()
        alice.grant("sums", bob.account.identity.id, policy)
        bob.consent(alice.own_model("sums"), policy)
        yield bob


def check(bob: Client, rows: int = 1) -> None:
    a, b = np.repeat(A, rows, axis=0), np.repeat(B, rows, axis=0)
    outputs = bob.infer("sums", {"a": a, "b": b})
    assert np.array_equal(outputs["sum"], a + b)
    assert "insecure-simulation" in outputs.provenance.warnings


def test_a_request_is_served_by_an_action(bob: Client, cloud: OpenWhiskCloud) -> None:
    check(bob)
    assert len(cloud.platform.actions) == 1
    started = cloud.platform.started
    for _ in range(3):
        check(bob)
    assert cloud.platform.started == started, "hot: the same container"


def test_a_request_larger_than_the_platform_carries(bob: Client) -> None:
    check(bob, rows=150_000)


def test_a_destroyed_container_loses_no_request(bob: Client, cloud: OpenWhiskCloud, beside: Beside) -> None:
    check(bob)
    for name in cloud.platform.actions:
        beside.loop.call_soon_threadsafe(cloud.platform.destroy_containers, name)
    check(bob)


def test_the_same_action_as_a_raw_web_action(bob: Client, cloud: OpenWhiskCloud) -> None:
    """No JSON around the ciphertext: whoever has the action's URL posts sealed requests to it as to a gateway."""
    check(bob)
    (name, action), *_ = cloud.platform.actions.items()
    extra = [("web-export", True), ("raw-http", True), ("final", True), ("require-whisk-auth", "s3cret")]
    action.document["annotations"] += [{"key": key, "value": value} for key, value in extra]
    client = HttpClient(SystemClock())
    try:
        url = f"/api/v1/web/guest/default/{name}.http"
        assert client.request("GET", cloud.platform.address, url + "/readyz").status == 401
        headers = (("x-require-whisk-auth", "s3cret"), ("content-type", "application/vnd.cloister.request"))
        answer = client.request("GET", cloud.platform.address, url + "/readyz", headers=headers)
        assert (answer.status, answer.body) == (200, b'{"ready":true}')
        target = bob.model_id("sums")
        inputs = {"a": A, "b": B}
        sealed = seal_inference(bob.keys.key(target), bob.account.identity, inputs, (), SystemClock().now())
        where = cloud.platform.address
        answer = client.request("POST", where, url + sealed.target, headers=headers, content=sealed.data)
        outputs = open_inference(sealed, answer.checked().body, bob.keys.consented(target).manifest_digest)
        assert np.array_equal(outputs["sum"], A + B)
        refused = client.request("POST", where, url + sealed.target, headers=headers, content=b"nonsense")
        assert (refused.status, refused.headers.get("content-type")) == (400, "application/problem+json")
    finally:
        client.close()


def test_the_platform_sees_no_plaintext(bob: Client, cloud: OpenWhiskCloud) -> None:
    check(bob)
    bodies = [
        b64decode(result["body"])
        for result in (record["response"]["result"] for record in cloud.platform.activations.values())
        if {"status", "body"} <= result.keys()  # not those of the web route
    ]
    assert any(body[:4] == b"CLA1" for body in bodies)
    for body in bodies:
        for value in (A, B, A + B):
            assert value.tobytes() not in body
