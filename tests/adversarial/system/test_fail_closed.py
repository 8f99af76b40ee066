"""S8 against real processes: what is missing, unknown, damaged or another's is refused at the start, with its code."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.adapters.clock import SystemClock
from cloister.attest.bundle import TrustBundle, open_bundle
from cloister.base.errors import CloisterError
from cloister.crypto.sign import SigningKey
from cloister.testing.local_cloud import COMMAND, LocalCloud

SOCKET = shutil.ignore_patterns("control")  # is no file that could be copied
pytestmark = pytest.mark.xdist_group("claims")


def run(arguments: list[str]) -> tuple[int, str]:
    """A command that must end by itself."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    return done.returncode, said


def bundle_of(cloud: LocalCloud) -> TrustBundle:
    data = (cloud.folder / "bundle.cbor").read_bytes()
    return open_bundle(data, cloud.root.public_key, 1, SystemClock().now())


def bundles(cloud: LocalCloud) -> dict[str, tuple[bytes, str]]:
    """Trust bundles that nobody may take, and the code of each."""
    good = bundle_of(cloud)
    data = good.sign(cloud.root)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    now, other = int(SystemClock().now()), SigningKey.generate()
    return {
        "empty": (b"", "cbor-malformed"),
        "cut": (data[:-1], "cbor-malformed"),
        "a flipped bit": (bytes(flipped), "signature-invalid"),
        "of another root": (dataclasses.replace(good, root=other.public_key).sign(other), "signature-invalid"),
        "ended": (
            dataclasses.replace(good, issued_at=now - 1000, expires_at=now - 10).sign(cloud.root),
            "bundle-expired",
        ),
        "not begun": (dataclasses.replace(good, issued_at=now + 9000).sign(cloud.root), "bundle-not-yet-valid"),
        "noise": (b"\xff" * 500, "cbor-malformed"),
        "too large": (bytes(200_000), "cbor-too-long"),
    }


def test_s8_a_runtime_with_a_bad_trust_bundle_does_not_start(world: Any, tmp_path: Path) -> None:
    cloud = world.scene.cloud
    command = cloud.runtime_command(world.scene.keyservice)
    at = command.index("--bundle") + 1
    for name, (data, code) in bundles(cloud).items():
        (tmp_path / "bundle").write_bytes(data)
        status, said = run(
            [*command[:at], str(tmp_path / "bundle"), *command[at + 1 :], "--listen", f"unix:{tmp_path}/s"]
        )
        assert status != 0
        assert f"[{code}]" in said, (name, said)
        assert not (tmp_path / "s").exists()


def test_s8_a_client_with_a_bad_trust_bundle_says_nothing_to_anybody(world: Any, tmp_path: Path) -> None:
    scene = world.scene
    for name, (data, _) in bundles(scene.cloud).items():
        (tmp_path / "bundle").write_bytes(data)
        client = scene.at(world.user, scene.gateway_wire.address)
        client.profile = dataclasses.replace(client.profile, bundle=str(tmp_path / "bundle"))
        fresh = type(client)(client.profile, client.account.identity)
        scene.keyservice_wire.forget()
        with pytest.raises(CloisterError):
            fresh.whoami()
        assert b"/v1/call" not in scene.keyservice_wire.recorded("up"), name
        fresh.close()


@pytest.mark.parametrize("damage", ["unknown setting", "wrong type", "not TOML", "another configuration"])
def test_s8_a_keyservice_with_another_configuration_does_not_open_its_state(
    world: Any, tmp_path: Path, damage: str
) -> None:
    cloud = world.scene.cloud
    shutil.copytree(cloud.folder / "keyservice", tmp_path / "state", ignore=SOCKET)
    text = (cloud.folder / "keyservice.toml").read_text()
    changed = {
        "unknown setting": text + "trust_everybody = true\n",
        "wrong type": text.replace("bundle_version = 1", 'bundle_version = "1"'),
        "not TOML": text + "= =\n",
        "another configuration": text.replace("lease_s = 3", "lease_s = 4"),
    }[damage]
    assert changed != text
    (tmp_path / "ks.toml").write_text(changed)
    status, said = run(
        [
            *(*COMMAND, "keyservice", "run", "--state", str(tmp_path / "state")),
            *("--simulation-key", str(cloud.folder / "simulation.key"), "--configuration", str(tmp_path / "ks.toml")),
            *("--bundle", str(cloud.folder / "bundle.cbor"), "--listen", "127.0.0.1:0"),
        ]
    )
    assert status != 0
    assert "[" in said, said


def test_s2_s8_a_disk_that_was_changed_anywhere_stops_the_keyservice(world: Any, tmp_path: Path) -> None:
    """Every page of the database and the sealed root, one byte each: it does not start, or nothing was in that byte."""
    cloud = world.scene.cloud
    running = cloud.folder / "keyservice"
    world.scene.restart_keyservice(meanwhile=lambda: shutil.copytree(running, tmp_path / "good", ignore=SOCKET))
    files = [path for path in (tmp_path / "good").rglob("*") if path.is_file() and path.stat().st_size > 64]
    generator = np.random.default_rng(6)
    refused = 0
    for path in files:
        for _ in range(3):
            state = tmp_path / "state"
            shutil.rmtree(state, ignore_errors=True)
            shutil.copytree(tmp_path / "good", state)
            target = state / path.relative_to(tmp_path / "good")
            data = bytearray(target.read_bytes())
            at = int(generator.integers(len(data) // 4, len(data)))
            for offset in range(at, min(len(data), at + 200)):
                data[offset] ^= 0x55
            target.write_bytes(bytes(data))
            done = subprocess.Popen(
                [
                    *(*COMMAND, "keyservice", "run", "--json", "--state", str(state)),
                    *("--simulation-key", str(cloud.folder / "simulation.key")),
                    *("--configuration", str(cloud.folder / "keyservice.toml")),
                    *("--bundle", str(cloud.folder / "bundle.cbor"), "--listen", "127.0.0.1:0"),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert done.stdout is not None
            said = done.stdout.readline()
            if said:  # it found nothing wrong: free space of a page
                done.kill()
                done.communicate()
                continue
            _, errors = done.communicate(timeout=30)
            assert done.returncode != 0
            assert b"Traceback" not in errors, errors
            assert b'"error": "' in errors, errors
            refused += 1
    assert refused >= 2
    world.check()
