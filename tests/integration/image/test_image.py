"""The images on a real container engine: what is in them, and that OpenWhisk actions serve."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator

import numpy as np
import pytest

from cloister import Client
from cloister.client.identity import create_identity
from cloister.testing.action import Invoker
from cloister.testing.container_cloud import ContainerCloud
from cloister.testing.containers import STRICT, Engine, RunningContainer
from cloister.testing.models import tflite
from cloister.testing.models.small import sum_difference
from cloister.testing.openwhisk_cloud import Beside

A = np.array([[1.0, 2.0, 3.0]], np.float32)


def inside(engine: Engine, image: str, program: str) -> str:
    """What a Python program prints in the image."""
    options = ("--rm", "--network", "none", *STRICT, "--entrypoint", "python3")
    return engine.call("run", *options, image, "-IBS", "-c", program).stdout


def test_it_runs_as_nobody_on_a_read_only_file_system(engine: Engine, either: str) -> None:
    program = """
import os
try:
    open("/opt/cloister/x", "w")
except OSError as error:
    print(os.getuid(), os.getgid(), error.strerror)
"""
    assert inside(engine, either, program) == "10001 10001 Read-only file system\n"


def test_nothing_in_it_can_be_changed_by_its_user(engine: Engine, either: str) -> None:
    program = """
import os
for folder, folders, files in os.walk("/opt"):
    for name in folders + files:
        status = os.lstat(os.path.join(folder, name))
        assert status.st_uid == 0 and not status.st_mode & 0o022, (folder, name)
print("good")
"""
    assert inside(engine, either, program) == "good\n"


def test_control_plane_client_and_fakes_are_left_out(engine: Engine, image: str) -> None:
    program = "import os; print(' '.join(sorted(os.listdir('/opt/cloister/lib/cloister'))))"
    found = set(inside(engine, image, program).split())
    assert not found & {"client", "control", "platforms", "testing"}
    assert {"keyservice", "runtime"} <= found
    for command in ("gateway", "demo", "identity"):
        done = engine.call("run", "--rm", "--network", "none", *STRICT, image, command, check=False)
        assert done.returncode == 2
        assert "for other commands" in done.stderr


def test_the_gateway_image_has_no_keys_engines_or_fakes(engine: Engine, gateway_image: str) -> None:
    program = "import os; print(' '.join(sorted(os.listdir('/opt/cloister/lib/cloister'))))"
    found = set(inside(engine, gateway_image, program).split())
    assert not found & {"access", "client", "engines", "keyservice", "runtime", "testing"}
    assert {"control", "platforms", "witness"} <= found
    for command in ("keyservice", "runtime", "openwhisk-action", "demo"):
        done = engine.call("run", "--rm", "--network", "none", *STRICT, gateway_image, command, check=False)
        assert done.returncode == 2
        assert "for other commands" in done.stderr


def test_there_is_no_shell_and_no_package_manager(engine: Engine, either: str) -> None:
    commands = "sh bash dash busybox apt-get dpkg pip curl"
    found = inside(engine, either, f"import shutil; print(*filter(shutil.which, {commands.split()}))")
    if "dpkg" in found:
        pytest.skip("this base brings its own; the default base has none")
    assert found == "\n"


def test_its_bill_of_materials_lists_what_is_in_it(engine: Engine, either: str) -> None:
    told = json.loads(inside(engine, either, "print(open('/opt/cloister/sbom.cdx.json').read())"))
    assert (told["bomFormat"], told["specVersion"]) == ("CycloneDX", "1.6")
    listed = {(part["name"], part["version"]) for part in told["components"]}
    program = """
import sys; sys.path.insert(0, "/opt/cloister/lib")
from importlib.metadata import distributions
print([(d.metadata["Name"].lower().replace("_", "-").replace(".", "-"), d.version) for d in distributions()])
"""
    assert listed == set(map(tuple, eval(inside(engine, either, program))))
    names = {name for name, _ in listed}
    assert {"cryptography", "httptools"} <= names
    assert not {"httpx", "onnx", "rich", "simpy"} & names


def test_only_the_services_have_engines(engine: Engine, image: str, gateway_image: str) -> None:
    for name, wanted in ((image, True), (gateway_image, False)):
        told = json.loads(inside(engine, name, "print(open('/opt/cloister/sbom.cdx.json').read())"))
        assert ({"numpy", "onnxruntime"} <= {part["name"] for part in told["components"]}) is wanted


def test_both_engines_compute_in_it(engine: Engine, image: str) -> None:
    """With what was left out of their distributions."""
    models = {"onnx": sum_difference(), "litert": tflite.sum_difference()}
    program = f"""
import base64, sys; sys.path.insert(0, "/opt/cloister/lib")
import numpy as np
from cloister.engines.port import ModelParts
from cloister.engines.registry import engine
for name, model in { ({name: b64encode(model).decode() for name, model in models.items()})!r}.items():
    a = np.array([[1, 2, 3]], np.float32)
    print(name, engine(name).load(ModelParts(base64.b64decode(model))).run({{"a": a, "b": a}})["sum"].tolist())
"""
    assert inside(engine, image, program) == "onnx [[2.0, 4.0, 6.0]]\nlitert [[2.0, 4.0, 6.0]]\n"


@pytest.fixture
def action(engine: Engine, image: str) -> Iterator[Invoker]:
    invoker = Invoker(engine.start(image))
    yield invoker
    invoker.close()
    invoker.container.kill()


def test_its_health_check_needs_nothing_but_itself(engine: Engine, image: str, action: Invoker) -> None:
    action.wait()
    container = action.container
    assert isinstance(container, RunningContainer)
    command = container.inspect("Config.Healthcheck.Test")[1:]
    assert engine.call("exec", container.id, *command).returncode == 0
    unhealthy = engine.call("exec", container.id, *command, "--address", "http://127.0.0.1:1", check=False)
    assert unhealthy.returncode == 1
    assert container.stop() == 0


@pytest.fixture(scope="module")
def cloud(engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerCloud]:
    beside = Beside()
    folder = tmp_path_factory.mktemp("containers") / "state"
    cloud = ContainerCloud(folder, engine, image, memory_mb=256)
    beside.run(cloud.platform.open())
    try:
        cloud.start()
        yield cloud
    finally:
        cloud.stop()
        beside.run(cloud.platform.close())
        beside.close()
        cloud.remove_network()


@pytest.fixture(scope="module")
def bob(cloud: ContainerCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
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


def check(bob: Client) -> None:
    outputs = bob.infer("sums", {"a": A, "b": A})
    assert np.array_equal(outputs["sum"], A + A)


def test_containers_serve_a_sealed_request(bob: Client, cloud: ContainerCloud) -> None:
    """KeyService and action in containers, believed by their measurement, which is the image's."""
    outputs = bob.infer("sums", {"a": A, "b": A})
    assert np.array_equal(outputs["sum"], A + A)
    assert outputs.provenance.measurement == cloud.measurement()
    started = cloud.platform.started
    for _ in range(5):
        check(bob)
    assert cloud.platform.started == started


def test_a_killed_action_and_a_killed_keyservice_lose_no_request(bob: Client, cloud: ContainerCloud) -> None:
    check(bob)
    containers = [place.container for action in cloud.platform.actions.values() for place in action.containers]
    for container in containers:
        assert isinstance(container, RunningContainer)
        container.engine.call("kill", container.id)
    check(bob)
    cloud.restart_keyservice()
    check(bob)
    assert bob.whoami()["id"] == bob.account.identity.id


def test_the_action_interface_holds_in_the_image(cloud: ContainerCloud, bob: Client) -> None:
    """The start of a container by hand; ``make test-image`` also runs the whole contract on the image."""
    assert cloud.keyservice is not None
    invoker = Invoker(cloud.start_action())
    try:
        invoker.wait()
        assert invoker.init(cloud.action_environment(cloud.keyservice.address)) == (200, {"ok": True})
        status, answer = invoker.run({"method": "GET", "path": "/readyz", "status": True})
        assert (status, answer["status"], answer["runtime"]["tee"]) == (200, 200, "insecure-simulation")
    finally:
        invoker.close()
        invoker.container.kill()
