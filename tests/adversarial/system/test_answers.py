"""S3 and S6 against real processes: an attacker on every wire swaps, cuts, replays and repeats what passes."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from cloister.adapters.tee.simulation import measure_installation
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered
from cloister.client.inference import SealedInference, open_inference, seal_inference
from cloister.testing.malformed import code_in_reply
from cloister.wire import bhttp, envelope
from cloister.wire.statements import SERVICE_KEY, RevokeGrant

pytestmark = pytest.mark.xdist_group("claims")
MODES = ("request-key", "service-key")


def sealed(world: Any, who: Any, model: Any, seed: int = 1) -> SealedInference:
    return seal_inference(who.keys.key(model), who.account.identity, {"x": world.row(seed)}, (), who.clock.now())


@pytest.fixture(params=MODES)
def model(world: Any, request: pytest.FixtureRequest) -> Any:
    """One model for each way of sealing; the attacker sees both."""
    name = f"answers-{request.param}"
    target = world.owner.own_model(name)
    if not world.user.account.keyring.request_key(str(target)):
        world.offer(name, world.user, mode=request.param)
    return target


def test_s3_only_the_whole_answer_to_this_very_request_opens(world: Any, model: Any) -> None:
    one, two = sealed(world, world.user, model), sealed(world, world.user, model, 2)
    answer, other = (bytes(world.scene.send(world.scene.gateway, request).body) for request in (one, two))
    right = open_inference(one, answer, None)
    np.testing.assert_allclose(right["y"], world.row() @ world.weights, rtol=1e-3)
    for end in range(len(answer)):
        with pytest.raises((Tampered, InvalidInput)):
            open_inference(one, answer[:end], None)
    for at in range(0, len(answer), 7):
        changed = bytearray(answer)
        changed[at] ^= 1 << at % 8
        with pytest.raises((Tampered, InvalidInput)):
            open_inference(one, changed, None)
    for bad in (other, answer + b"\0", answer[:36] + other[36:], other[:36] + answer[36:], bytes(one.data)):
        with pytest.raises((Tampered, InvalidInput)):
            open_inference(one, bad, None)


def test_s3_an_answer_says_which_model_code_and_policies_it_comes_from(
    world: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = world.user.infer(model, {"x": world.row()})
    policy = world.scene.cloud.runtime_policy().digest
    assert found.provenance.measurement == measure_installation()
    assert found.provenance.owner_policy == found.provenance.user_policy == policy
    assert found.provenance.model_digest == world.owner.account.keyring.model_keys(str(model))[-1].manifest_digest
    assert found.provenance.warnings == ("insecure-simulation",)
    request = sealed(world, world.user, model)
    answer = bytes(world.scene.send(world.scene.gateway, request).body)
    with pytest.raises(Tampered, match="model-other"):
        open_inference(request, answer, b"d" * 32)
    other = dataclasses.replace(world.user.keys.consented(model), manifest_digest=b"d" * 32)
    monkeypatch.setattr(world.user.keys, "consented", lambda _model: other)
    for ask in (lambda: world.user.infer(model, {"x": world.row()}), lambda: world.user.metadata(model)):
        with pytest.raises(Tampered, match="model-other"):
            ask()


def test_s3_a_consent_to_one_version_is_never_answered_by_another(world: Any) -> None:
    user, policy = world.scene.person("pins-a-version"), world.scene.cloud.runtime_policy()
    model = world.offer("pinned", user)
    first = world.owner.account.keyring.model_keys(str(model))[-1].manifest_digest
    user.consent(model, policy, manifest_digest=first)
    world.offer("pinned", version=2)
    assert user.infer(model, {"x": world.row()}).provenance.model_digest == first
    world.owner.retire("pinned", first)
    user.rotate_request_key(model)  # no lease is left
    with pytest.raises(Refused):
        user.infer(model, {"x": world.row()}, deadline_s=20)


@pytest.mark.parametrize("change", ["flip", "cut", "replay"])
def test_s3_what_the_network_does_to_answers_is_noticed_by_the_client(world: Any, model: Any, change: str) -> None:
    wire = world.scene.gateway_wire
    world.user.infer(model, {"x": world.row()})
    before: list[bytes] = []

    def tamper(data: bytes, way: str) -> bytes:
        if way == "up" or b"CLA1" not in data:
            return data
        match change:
            case "flip":
                return data[:-1] + bytes([data[-1] ^ 1])
            case "cut":
                head, _, body = data.partition(b"\r\n\r\n")
                shorter = body[: len(body) // 2]
                length = b"content-length: %d" % len(shorter)
                return re.sub(rb"(?i)content-length: \d+", length, head) + b"\r\n\r\n" + shorter
            case _:
                before.append(data)
                return before[0]

    wire.change = tamper
    try:
        if change == "replay":
            world.user.infer(model, {"x": world.row()})  # the attacker keeps this answer
        with pytest.raises((Tampered, InvalidInput)):
            world.user.infer(model, {"x": world.row(2)}, deadline_s=10)
    finally:
        wire.change = lambda data, _way: data
    world.check(model=model)


def captured(wire: Any, path: bytes) -> list[bytes]:
    """Bodies of the POSTs to a path, as they passed."""
    found = []
    for match in re.finditer(
        rb"POST " + re.escape(path) + rb" HTTP/1.1\r\n(.*?)\r\n\r\n", wire.recorded("up"), re.DOTALL
    ):
        length = re.search(rb"(?i)content-length: (\d+)", match[1])
        if length:
            found.append(wire.recorded("up")[match.end() : match.end() + int(length[1])])
    return found


def log_size(world: Any) -> int:
    return int(world.owner.account.ask("keyservice")["head"]["size"])


def test_s6_everything_said_to_the_keyservice_said_again_changes_nothing(world: Any) -> None:
    """Statements, queries, challenges, attestations and releases, as they passed on the wire."""
    scene, wire = world.scene, world.scene.keyservice_wire
    wire.forget()
    user = scene.person("is-replayed")
    model = world.offer("replayed", user)
    world.owner.account.say(RevokeGrant("replayed", user.account.identity.id))
    world.owner.grant("replayed", user.account.identity.id, scene.cloud.runtime_policy())
    scene.kill_instances()
    world.check(user, model)
    messages = {path: captured(wire, path) for path in (b"/v1/call", b"/v1/session", b"/v1/challenge", b"/v1/status")}
    assert len(messages[b"/v1/call"]) >= 6
    assert len(messages[b"/v1/session"]) >= 1
    scene.until(world.owner.whoami)
    before = log_size(world), repr(world.owner.access()), repr(user.models())
    for path, bodies in messages.items():
        for body in bodies:
            answer = scene.post(scene.keyservice, path.decode(), body)
            if path == b"/v1/session":
                assert (answer.status, code_in_reply(answer.body)) == (400, "call-refused")
            else:
                assert answer.status == 200  # sealed to whoever made the call, or fresh: no use to anybody else
                assert bytes(answer.body) not in wire.recorded("down")
    after = log_size(world), repr(world.owner.access()), repr(user.models())
    released = after[0] - before[0]
    assert before[1:] == after[1:]
    assert released <= 4, "only renewals of leases, by the running instance"
    world.check(user, model)


def test_s6_a_request_sent_again_is_refused_and_elsewhere_gains_nothing(world: Any, model: Any) -> None:
    scene = world.scene
    request = sealed(world, world.user, model)
    first = bytes(scene.send(scene.gateway, request).body)
    assert open_inference(request, first, None)
    for address in (scene.gateway, scene.instances()[0].address):
        again = scene.send(address, request)
        assert again.status == 200
        with pytest.raises(InvalidInput, match="request-replayed"):
            open_inference(request, again.body, None)
    other = scene.runtime()
    elsewhere = bytes(scene.send(other.address, request).body)
    assert elsewhere[4:36] != first[4:36], "another nonce, so other keys"
    np.testing.assert_array_equal(
        open_inference(request, elsewhere, None)["y"], open_inference(request, first, None)["y"]
    )
    with pytest.raises((Tampered, InvalidInput)):
        open_inference(request, first[:36] + elsewhere[36:], None)
    other.stop()


def test_s6_a_request_does_not_outlive_its_time(world: Any) -> None:
    user = world.scene.person("is-late")
    model = world.offer("late", user)
    for away in (-121, 121):
        late = seal_inference(
            user.keys.key(model), user.account.identity, {"x": world.row()}, (), user.clock.now() + away
        )
        answer = world.scene.send(world.scene.gateway, late)
        assert (answer.status, code_in_reply(answer.body)) == (400, "request-refused")
    world.check(user, model)


def not_a_request(data: bytes) -> None:
    """:raises CloisterError: it is none."""
    prefix = envelope.RequestPrefix.parse(data)
    if prefix is not None:
        raise AssertionError("it is one")
    envelope.plaintext_length(data)


def test_s9_a_sealed_object_is_taken_nowhere_but_where_it_belongs(world: Any, model: Any) -> None:
    """Requests, answers, calls, replies, models' files, and evidence: each sent to every endpoint, opened as each."""
    scene = world.scene
    scene.keyservice_wire.forget()
    request = sealed(world, world.user, model)
    answer = bytes(scene.send(scene.gateway, request).body)
    scene.kill_instances()
    world.check(model=model)
    world.user.whoami()
    objects: dict[str, bytes] = {"request": bytes(request.data), "answer": answer}
    for path in (b"/v1/call", b"/v1/session"):
        objects |= {f"{path.decode()} {n}": body for n, body in enumerate(captured(scene.keyservice_wire, path)[:4])}
    objects["description"] = bytes(scene.http.request("GET", scene.keyservice, "/v1/description").body)
    objects["status"] = bytes(scene.post(scene.keyservice, "/v1/status", bytes(32)).body)
    objects["presence"] = bytes(scene.post(scene.instances()[0].address, "/v1/evidence", bytes(32)).body)
    objects["bundle"] = (scene.cloud.folder / "bundle.cbor").read_bytes()
    for path in (scene.cloud.store / model.owner.hex() / model.name).rglob("*"):
        if path.is_file():
            objects[f"file {path.name}"] = path.read_bytes()
    infer = f"/v1/models/{model}/infer"
    places = [
        (scene.gateway, infer),
        (scene.instances()[0].address, infer),
        (scene.instances()[0].address, "/v1/evidence"),
    ]
    places += [(scene.keyservice, f"/v1/{name}") for name in ("call", "session", "challenge", "status", "consistency")]
    before = log_size(world)
    for name, data in objects.items():
        for address, target in places:
            belongs = (name == "request" and target == infer) or target == name.partition(" ")[0]
            if belongs:
                continue
            got = scene.post(address, target, data)
            assert 400 <= got.status < 500, (name, target, got.status)
        if name != "answer":
            with pytest.raises(CloisterError):
                open_inference(request, data, None)
        with pytest.raises(CloisterError):
            bhttp.parse_response(data)
        with pytest.raises(CloisterError):
            not_a_request(data if name != "request" else data[4:])
    assert log_size(world) - before <= 4
    world.check(model=model)


def test_s9_a_signature_of_one_service_is_no_signature_of_another(world: Any, model: Any) -> None:
    """A thief with an identity of his own and all that passed by: other users' keys, models and modes in his name."""
    scene = world.scene
    world.check(model=model)  # there is an instance
    thief = scene.person("thief")
    mine = world.offer(f"thiefs-{model.name}", thief, mode=SERVICE_KEY)
    key = world.user.keys.key(model)
    for stolen in (
        dataclasses.replace(thief.keys.key(mine), model=model),
        dataclasses.replace(key, model=mine),
        dataclasses.replace(thief.keys.key(mine), key_id=key.key_id),
    ):
        request = seal_inference(stolen, thief.account.identity, {"x": world.row()}, (), thief.clock.now())
        answer = scene.send(scene.instances()[0].address, request)
        assert (answer.status, code_in_reply(answer.body)) == (400, "request-refused")
