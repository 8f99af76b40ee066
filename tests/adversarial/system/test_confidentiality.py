"""S1 and S2 against real processes: who may read requests and models, and what everybody else gets to see."""

from __future__ import annotations

import base64
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cloister
from cloister.adapters.tee.simulation import measure_installation
from cloister.attest.policy import Policy
from cloister.base.errors import CloisterError, Refused
from cloister.client.inference import seal_inference
from cloister.runtime.isolation import Isolation
from cloister.testing.malformed import code_in_reply
from cloister.testing.models import small
from cloister.testing.people import simulation_policy

pytestmark = pytest.mark.xdist_group("claims")


def refused_at(world: Any, address: str, code: str, model: Any = None, who: Any = None) -> None:
    """A runtime that may not have the keys: outside it says nothing, the user learns from the KeyService why."""
    who, model = who or world.user, model or world.model
    sealed = seal_inference(who.keys.key(model), who.account.identity, {"x": world.row()}, (), who.clock.now())
    answer = world.scene.send(address, sealed)
    assert (answer.status, code_in_reply(answer.body)) == (400, "request-refused")
    client = world.scene.at(who, address)
    with pytest.raises(Refused) as caught:
        client.infer(model, {"x": world.row()}, deadline_s=20)
    assert caught.value.code == code


def patched(folder: Path) -> dict[str, str]:
    """The installed code but for one byte."""
    package = folder / "cloister"
    shutil.copytree(Path(cloister.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    target = package / "runtime" / "serve.py"
    target.write_bytes(target.read_bytes() + b"#")
    return {"PYTHONPATH": str(folder)}


def test_s1_s2_code_that_differs_by_a_byte_gets_no_key(world: Any, tmp_path: Path) -> None:
    runtime = world.scene.runtime(environment=patched(tmp_path), ready=False)
    refused_at(world, runtime.address, "measurement-not-allowed")
    runtime.stop()
    world.check()


def test_s1_s2_another_configuration_gets_no_key(world: Any) -> None:
    for change in ({"memory_mb": 999}, {"concurrency": 3}, {"isolation": Isolation.PER_USER}):
        cloud = dataclasses.replace(world.scene.cloud, processes={}, **change)
        runtime = world.scene.runtime(cloud=cloud)
        refused_at(world, runtime.address, "configuration-not-allowed")
        runtime.stop()


def test_s1_a_weaker_isolation_than_the_consent_demands_gets_no_key(world: Any) -> None:
    demanding = simulation_policy(measure_installation(), isolation=["per-user", "strict"])
    user, owner = world.scene.person("wants-to-be-alone"), world.owner
    owner.grant("model", user.account.identity.id, world.scene.cloud.runtime_policy())
    user.consent(world.model, demanding)
    refused_at(world, world.scene.gateway, "isolation-not-allowed", who=user)
    # The owner's policy names this configuration only: he has to allow the stronger one too, then it is served there.
    owner.grant("model", user.account.identity.id, demanding)
    cloud = dataclasses.replace(world.scene.cloud, processes={}, isolation=Isolation.PER_USER)
    runtime = world.scene.runtime(cloud=cloud)
    world.check(world.scene.at(user, runtime.address))
    runtime.stop()


def test_s1_a_runtime_of_a_platform_nobody_trusts_gets_no_session(world: Any, tmp_path: Path) -> None:
    """Genuine code, the simulated platform of somebody else: the KeyService verifies no evidence of it."""
    (tmp_path / "simulation.key").write_text("ab" * 32)
    command = world.scene.cloud.runtime_command(world.scene.keyservice_wire.address)
    at = command.index("--simulation-key")
    runtime = world.scene.runtime(arguments=(*command[at : at + 1], str(tmp_path / "simulation.key")), ready=False)
    sealed = seal_inference(
        world.user.keys.key(world.model), world.user.account.identity, {"x": world.row()}, (), world.user.clock.now()
    )
    answer = world.scene.send(runtime.address, sealed)
    assert answer.status in (400, 503)
    assert not world.scene.answers(runtime.address, "/readyz")
    runtime.stop()


def forms(secret: bytes) -> set[bytes]:
    """As it is, in hexadecimal, and in base64 whatever stands before it."""
    return {secret, secret.hex().encode(), *(base64.b64encode(bytes(n) + secret)[4:-4] for n in range(3))}


def test_s1_s2_s10_nothing_that_the_cloud_holds_has_a_plaintext_or_a_key(world: Any) -> None:
    scene = world.scene
    marked = np.frombuffer(b"WHAT-BOB-ASKED--" * 16, np.float32).reshape(1, 64).copy()
    model = world.offer("searched", world.user)
    output = world.user.infer(model, {"x": marked})["y"]
    with pytest.raises(CloisterError):
        world.user.infer(model, {"x": marked, "MY-DIAGNOSIS": marked})
    request_key = world.user.account.keyring.request_key(str(model)).key.reveal()
    model_key = world.owner.account.keyring.model_keys(str(model))[-1].key.reveal()
    secrets: dict[str, bytes] = {
        "input": marked.tobytes()[:16],
        "output": output.tobytes()[:16],
        "weights": world.weights.tobytes()[64:80],
        "the name of an input": b"MY-DIAGNOSIS",
        "request key": request_key,
        "model key": model_key,
        "owner's identity key": world.owner.account.identity.key.seed().reveal(),
        "user's identity key": world.user.account.identity.key.seed().reveal(),
    }
    held = scene.held()
    assert str(model).encode() in held["wire to users"], "the search finds what is there"
    assert len(held["folder store"]) > world.weights.nbytes
    for what, secret in secrets.items():
        for where, data in held.items():
            assert not any(form in data for form in forms(secret)), f"{what} in {where}"


def test_s2_a_hostile_store_can_withhold_and_nothing_else(world: Any) -> None:
    """Each file of a model changed, cut, emptied, lengthened, swapped; a strict runtime reads anew."""
    scene = world.scene
    cloud = dataclasses.replace(scene.cloud, processes={}, isolation=Isolation.STRICT)
    policy = cloud.runtime_policy()
    model = world.offer("stored", world.user, policy=policy)
    other = scene.offer(world.owner, "stored-other", small.matrix(world.weights * 2), world.user, policy=policy)
    base = scene.cloud.store / model.owner.hex()
    (folder,) = (entry for entry in (base / model.name).iterdir() if entry.is_dir())
    (elsewhere,) = (entry for entry in (base / other.name).iterdir() if entry.is_dir())
    runtime = scene.runtime(cloud=cloud)
    client = scene.at(world.user, runtime.address)
    world.check(client, model)
    codes: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        flipped = bytearray(good)
        flipped[len(good) // 2] ^= 1
        swapped = (elsewhere / path.name).read_bytes()
        for bad in (bytes(flipped), swapped, good[:-1], b"", good + b"x"):
            path.write_bytes(bad)
            try:
                world.check(client, model)
                codes.setdefault(path.name, []).append("right")
            except CloisterError as error:
                codes.setdefault(path.name, []).append(error.code)
            path.write_bytes(good)
    # A file for other CPUs is not read here; bytes after what the signed manifest says are not read either.
    read = {name: found for name, found in codes.items() if set(found) != {"right"}}
    assert len(read) >= 3, codes
    assert read["manifest"][0] == read["manifest"][1] == "manifest-digest"
    for name, found in read.items():
        assert "right" not in found[:4], (name, found)
        assert name == "manifest" or set(found[:2]) <= {"model-chunk", "model-root"}, (name, found)
    world.check(client, model)
    runtime.stop()


def test_s2_policies_that_accept_nothing_here_open_nothing(world: Any) -> None:
    nobody = Policy(simulation_policy(b"\x01" * 48).rules)
    user = world.scene.person("granted-for-nothing")
    world.owner.grant("model", user.account.identity.id, nobody)
    user.consent(world.model, world.scene.cloud.runtime_policy())
    refused_at(world, world.scene.gateway, "refused-by-owner", who=user)
