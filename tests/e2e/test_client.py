"""The SDK against the real thing: KeyService, gateway and runtimes as processes."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cloister import AsyncClient, Client
from cloister.base.errors import InvalidInput, Refused
from cloister.base.ids import ModelId
from cloister.client.explain import failure
from cloister.testing.local_cloud import LocalCloud
from cloister.wire.statements import SERVICE_KEY, DisableIdentity

A = np.array([[1.0, 2.0, 3.0]], np.float32)
B = np.array([[10.0, 20.0, 30.0]], np.float32)


def check(client: Client, model: ModelId | str) -> None:
    outputs = client.infer(model, {"a": A, "b": B})
    assert np.array_equal(outputs["sum"], A + B)
    assert np.array_equal(outputs["difference"], A - B)
    assert "insecure-simulation" in outputs.provenance.warnings
    assert len(outputs.provenance.measurement) == 48


def test_a_user_infers_by_name_and_by_id(bob: Client, model: ModelId) -> None:
    check(bob, "sums")
    check(bob, str(model))
    only = bob.infer(model, {"a": A, "b": B}, ["difference"])
    assert list(only) == ["difference"]


def test_metadata_says_what_to_send(bob: Client, model: ModelId) -> None:
    metadata = bob.metadata(model)
    assert {item["name"] for item in metadata["inputs"]} == {"a", "b"}


def test_wrong_inputs_are_told_sealed(bob: Client, model: ModelId) -> None:
    for inputs in ({"a": A}, {"a": A, "b": B, "c": A}, {"a": A.astype(np.int64), "b": B}, {"a": A[0], "b": B}):
        with pytest.raises(InvalidInput):
            bob.infer(model, inputs)
    check(bob, model)


def test_an_owner_sees_his_own_model_only_through_a_grant(alice: Client, model: ModelId, cloud: LocalCloud) -> None:
    with pytest.raises(Refused, match="consent-not-given"):
        alice.infer(model, {"a": A, "b": B})
    alice.consent(model, cloud.runtime_policy())
    with pytest.raises(Refused, match="grant-missing"):
        alice.infer(model, {"a": A, "b": B})


def test_a_rotated_request_key_loses_nothing(bob: Client, model: ModelId) -> None:
    stop = threading.Event()

    def keep_asking() -> int:
        count = 0
        while not stop.is_set():
            check(bob, model)
            count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(keep_asking)
        try:
            for _ in range(3):
                bob.rotate_request_key(model)
                check(bob, model)
        finally:
            stop.set()
        assert asking.result() > 0


def test_service_key_mode(bob: Client, model: ModelId, cloud: LocalCloud) -> None:
    policy = cloud.runtime_policy()
    bob.consent(model, policy, mode=SERVICE_KEY)
    try:
        check(bob, model)
        bob.revoke_consent(model)
        assert failure(bob.why(model)["checks"]) is not None
    finally:
        bob.consent(model, policy)
    check(bob, model)


def test_asyncio(bob: Client, model: ModelId) -> None:
    async def many() -> None:
        async with AsyncClient(Client(bob.profile, bob.account.identity)) as client:
            results = await asyncio.gather(*(client.infer(model, {"a": A * i, "b": B}) for i in range(12)))
            for i, outputs in enumerate(results):
                assert np.array_equal(outputs["sum"], A * i + B)

    asyncio.run(many())


def test_a_stream_of_inferences(bob: Client, model: ModelId) -> None:
    inputs = ({"a": A * i, "b": B} for i in range(50))
    count = 0
    for i, outputs in enumerate(bob.infer_stream(model, inputs)):
        assert np.array_equal(outputs["sum"], A * i + B)
        count += 1
    assert count == 50


def test_a_stream_tells_what_is_wrong_with_an_input(bob: Client, model: ModelId) -> None:
    answers = bob.infer_stream(model, [{"a": A, "b": B}, {"a": A}])
    assert np.array_equal(next(answers)["sum"], A + B)
    with pytest.raises(InvalidInput):
        next(answers)
    check(bob, model)


def test_a_stream_nobody_granted_says_why(alice: Client, bob: Client, model: ModelId, cloud: LocalCloud) -> None:
    policy = cloud.runtime_policy()
    alice.revoke("sums", bob.account.identity.id)
    try:
        bob.rotate_request_key(model)  # no instance has a lease of the new key
        with pytest.raises(Refused, match="refused-by-owner"):
            next(bob.infer_stream(model, [{"a": A, "b": B}]))
    finally:
        alice.grant("sums", bob.account.identity.id, policy)
    check(bob, model)


def test_the_log_tells_both_parties_what_happened(alice: Client, bob: Client, model: ModelId) -> None:
    check(bob, model)
    for client in (alice, bob):
        assert any(item["model"] == str(model) for item in client.access())
        assert len(client.events()) > 2


def test_the_keyservice_may_restart(cloud: LocalCloud, bob: Client, model: ModelId) -> None:
    check(bob, model)  # an instance is there, with keys that it may use for a while
    listen = cloud.keyservice_listen
    cloud.keyservice_listen = bob.profile.keyservice.removeprefix("http://")
    try:
        cloud.stop_service("keyservice", kill=True)
        check(bob, model)  # hot: no KeyService is asked
        cloud.start_keyservice()
    finally:
        cloud.keyservice_listen = listen
    assert bob.whoami()["id"] == bob.account.identity.id
    check(bob, model)


def test_a_delegate_offers_the_owners_models(alice: Client, bob: Client, model: ModelId, cloud: LocalCloud) -> None:
    assistant = Client(bob.profile, bob.account.identity, owner=alice.account.identity.id)
    try:
        with pytest.raises(Refused, match="not-delegated"):
            assistant.revoke("sums", bytes(32))
        alice.delegate(bob.account.identity.id, int(alice.clock.now()) + 600)
        assistant.grant("sums", bytes(32), cloud.runtime_policy())
        assert any(item.get("user") == bytes(32) for item in alice.access())
        assert any(item.get("user") == bytes(32) for item in assistant.access())
        with pytest.raises(Refused, match="delegate-limits"):
            assistant.account.say(DisableIdentity(), subject=alice.account.identity.id)
        alice.delegate(bob.account.identity.id, 0)
        with pytest.raises(Refused, match="not-delegated"):
            assistant.revoke("sums", bytes(32))
        alice.revoke("sums", bytes(32))
    finally:
        assistant.close()
