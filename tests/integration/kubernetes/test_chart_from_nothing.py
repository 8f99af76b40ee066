"""docs/how-to/kubernetes.md, steps 3 to 7, with the containers that the chart renders as processes of this machine.

Witnesses first, then the KeyService's first replica, the trust bundle, the other replicas, and a runtime attesting to
one that follows. Only what a cluster resolves is put in here: mounts, names, and the addresses behind them.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.base.errors import CloisterError

helm = pytest.importorskip("helm_python", reason="no Helm: uv sync --inexact --group deploy")
yaml = pytest.importorskip("yaml", reason="no YAML: uv sync --inexact --group deploy")

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "cloister"]
Object = dict[str, Any]


def cloister(*words: str) -> Object:
    """A command, and the object that it prints."""
    done = subprocess.run([*COMMAND, *words, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: Object = json.loads(done.stdout)
    return found


class Cluster:
    """Runs containers of rendered StatefulSets and Deployments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.http = HttpClient(SystemClock())
        self.processes = ExitStack()
        self._ports: dict[str, int] = {}
        (folder / "trust").mkdir()
        (folder / "simulation").mkdir()

    def render(self, values: Object) -> None:
        """As `helm install`, or `upgrade`."""
        with helm.Chart.load(ROOT / "deploy" / "helm" / "cloister") as chart:
            texts = chart.render(values, name="cloister", namespace="ml")
        found = [
            one for name, text in texts.items() if name.endswith(".yaml") for one in yaml.safe_load_all(text) if one
        ]
        self.objects = {(one["kind"], one["metadata"]["name"]): one for one in found}
        for (kind, name), one in self.objects.items():
            if kind == "ConfigMap":
                place = self.folder / name
                place.mkdir(exist_ok=True)
                for file, text in one["data"].items():
                    (place / file).write_text(text)

    def address(self, pod: str) -> str:
        """Of a pod that listens on 8080."""
        if pod not in self._ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._ports[pod] = probe.getsockname()[1]
        return f"http://127.0.0.1:{self._ports[pod]}"

    def words(self, kind: str, name: str, number: int, container: str) -> list[str]:
        """The arguments of one container of one pod, with what a cluster resolves."""
        spec = self.objects[kind, name]["spec"]["template"]["spec"]
        (found,) = [one for one in (*spec.get("initContainers", ()), *spec["containers"]) if one["name"] == container]
        pod = f"{name}-{number}"
        resolved = {
            "$(REPLICA)": str(number),
            "$(NAME)": pod,
            "0.0.0.0:8080": self.address(pod).removeprefix("http://"),
        }
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        for mount in found["volumeMounts"]:
            volume = volumes.get(mount["name"], {})
            place = self.folder / volume.get("configMap", {}).get("name", mount["name"])
            if mount["name"] in ("trust", "simulation"):
                place = self.folder / mount["name"]
            if mount["name"] == "state":
                place = self.folder / f"state-{pod}"
                place.mkdir(exist_ok=True)
            resolved[f"={mount['mountPath']}/"] = f"={place}/"
        words = []
        for word in found["args"]:
            for there, here in resolved.items():
                word = word.replace(there, here)  # noqa: PLW2901
            word = re.sub(r"http://([a-z-]+-[0-9])\.[a-z.-]+:8080", lambda m: self.address(m[1]), word)  # noqa: PLW2901
            words.append(word.replace("http://cloister-keyservice.ml.svc:8080", self.address("cloister-keyservice-1")))
        return words

    def start(self, kind: str, name: str, number: int, container: str) -> None:
        """A container, until its liveness probe succeeds."""
        pod = f"{name}-{number}"
        with (self.folder / f"{pod}.log").open("wb") as log:
            words = self.words(kind, name, number, container)
            process = self.processes.enter_context(
                subprocess.Popen([*COMMAND, *words], stdout=log, stderr=log, env=dict(os.environ))
            )
        self.processes.callback(process.terminate)
        self.until(pod, "/healthz", process)

    def until(self, pod: str, path: str, process: subprocess.Popen[bytes] | None = None) -> None:
        """A probe succeeds."""
        end = time.monotonic() + 60
        while True:
            try:
                if self.http.request("GET", self.address(pod), path, deadline_s=2).status == 200:
                    return
            except CloisterError:
                pass
            told = (self.folder / f"{pod}.log").read_text()
            assert process is None or process.poll() is None, told
            assert time.monotonic() < end, told
            time.sleep(0.05)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(tmp_path)
    with found.processes:
        yield found
    found.http.close()


def test_from_nothing_to_an_attested_runtime(cluster: Cluster) -> None:
    folder, witness, keyservice = cluster.folder, "cloister-witness", "cloister-keyservice"
    root = cloister("bundle", "key", "--output", str(folder / "root.key"))["bundle_root"]
    platform = cloister("bundle", "key", "--output", str(folder / "simulation" / "simulation.key"))["bundle_root"]
    image = {"repository": "registry.example/cloister", "tag": "0.1.0"}
    values: Object = {
        "image": image,
        "controlImage": image,
        "tee": {"insecure-simulation": {"keySecret": "cloister-simulation"}},
        "trust": {"bundleConfigMap": "cloister-bundle", "bundleRoot": root},
    }
    cluster.render({**values, "keyservice": {"enabled": False}})
    keys = [cloister(*cluster.words("StatefulSet", witness, number, "init"))["witness"] for number in range(3)]
    for number in range(3):
        cluster.start("StatefulSet", witness, number, "witness")

    configuration = {
        "bundle_root": root,
        "bundle_version": 1,
        "simulation_keys": [platform],
        "rollback_protection": "witnesses",
        "witnesses": keys,
        "witness_threshold": 2,
        "replicas": 3,
    }
    values["keyservice"] = {"tee": "insecure-simulation", "configuration": configuration}
    cluster.render(values)
    made = cloister(*cluster.words("StatefulSet", keyservice, 0, "init"))
    for number in range(3):
        state = str(folder / f"state-{witness}-{number}" / "witness")
        cloister("witness", "add", "--state", state, "--log-key", made["log_key"])

    page = (ROOT / "docs" / "how-to" / "kubernetes.md").read_text()
    (policy,) = re.findall(r"```toml\n *(version = 1\n.*?)```", page, re.DOTALL)
    for name in ("measurement", "configuration"):
        policy = policy.replace(f'{name} = ["…"]', f'{name} = ["{made[name]}"]')
    (folder / "policy.toml").write_text(policy)
    named = [word for key in keys for word in ("--witness", key)]
    cloister(
        *("bundle", "sign", "--root-key", str(folder / "root.key"), "--policy", str(folder / "policy.toml")),
        *("--name", "our cluster", "--days", "90", *named, "--witness-threshold", "2"),
        *("--insecure-simulation-key", platform, "--output", str(folder / "trust" / "bundle.cbor")),
    )

    for number in range(3):
        if number:
            told = cloister(*cluster.words("StatefulSet", keyservice, number, "init"))
            assert told["made"] is False
        cluster.start("StatefulSet", keyservice, number, "keyservice")
    values["keyservice"]["id"] = made["keyservice"]
    values["store"] = {"url": "http://models.models.svc/store"}
    values["pools"] = {"default": {"tee": "insecure-simulation"}}
    cluster.render(values)
    assert cloister(*cluster.words("StatefulSet", keyservice, 0, "init"))["keyservice"] == made["keyservice"]
    cluster.start("Deployment", "cloister-runtime-default", 0, "runtime")
    cluster.until("cloister-runtime-default-0", "/readyz")  # it attested to a replica, and witnesses confirmed
    trust = ["--bundle", str(folder / "trust" / "bundle.cbor"), "--bundle-root", root]
    cloister("verify", "--url", cluster.address(f"{keyservice}-2"), *trust)
