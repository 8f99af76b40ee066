"""A whole encrypted model from S3: published, found by the gateway, fetched and answered by a real runtime process.

Between them and the server lies a network that fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.modelstore.opened import open_store
from cloister.adapters.modelstore.patience import Patience
from cloister.base.errors import CloisterError, Refused, Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.client.client import Client
from cloister.client.identity import create_identity
from cloister.testing.faulty_proxy import Fault, FaultyProxy
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.models import small
from cloister.testing.s3_server import SECRET_KEY, S3Server

SIDE = 1536  # 9 MiB of weights: ten chunks, two parts of an upload
WEIGHTS = np.random.default_rng(1).random((SIDE, SIDE), np.float32)
X = np.random.default_rng(2).random((1, SIDE), np.float32)
BUCKET = "models"

pytestmark = pytest.mark.xdist_group("stores")


class Cloud:
    """A cloud whose models lie in S3, and an owner who is also the user."""

    def __init__(self, folder: Path, s3: S3Server, proxy: FaultyProxy) -> None:
        self.proxy = proxy
        self.cloud = LocalCloud(folder, store_url=s3.url(BUCKET, "prod/v1", address=proxy.address), keep_alive_s=600)
        self.cloud.start()
        create_identity(self.cloud.home, "both")
        self.client = Client.open(self.cloud.home, "both")
        self.client.register()

    def published(self, name: str) -> ModelId:
        source, packed = self.cloud.folder / f"{name}.onnx", self.cloud.folder / f"{name}-packed"
        source.write_bytes(small.matrix(WEIGHTS))
        self.client.pack(source, packed, name=name, version=1, tuned=False)
        self.client.publish(packed)
        policy = self.cloud.runtime_policy()
        self.client.grant(name, self.client.account.identity.id, policy)
        target = self.client.own_model(name)
        self.client.consent(target, policy)
        return target

    def answer(self, model: ModelId, deadline_s: float = 60.0) -> None:
        found = self.client.infer(model, {"x": X}, deadline_s=deadline_s)["y"]
        np.testing.assert_allclose(found, X @ WEIGHTS, rtol=2e-3)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server(BUCKET) as server:
        yield server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> Iterator[Cloud]:
    with FaultyProxy(s3.address) as proxy:
        made = Cloud(tmp_path_factory.mktemp("served"), s3, proxy)
        yield made
        made.client.close()
        made.cloud.stop()


@pytest.fixture(autouse=True)
def quiet(served: Cloud) -> Iterator[None]:
    served.proxy.heads.clear()
    yield
    served.proxy.rule = lambda _head, _number: None


def test_from_packing_to_answer(served: Cloud, s3: S3Server) -> None:
    model = served.published("from-s3")
    served.answer(model)
    assert not list(served.cloud.store.iterdir()), "nothing lies in the folder"
    client = HttpClient(SystemClock())
    listed = client.request("GET", s3.address, f"/{BUCKET}?list-type=2").checked().body.decode()
    client.close()
    assert f"prod/v1/{model}/latest" in listed
    plain = WEIGHTS[:16].tobytes()[:64]
    for log in served.cloud.log_files:
        assert SECRET_KEY not in log.read_text("utf-8", "replace")
        assert plain not in log.read_bytes()


def test_the_command_line_publishes_to_a_url(served: Cloud, s3: S3Server) -> None:
    source, packed = served.cloud.folder / "cli.onnx", served.cloud.folder / "cli-packed"
    source.write_bytes(small.matrix(WEIGHTS))
    served.client.pack(source, packed, name="cli", version=1, tuned=False)
    environment = {**os.environ, "CLOISTER_HOME": str(served.cloud.home)}
    command = [sys.executable, "-m", "cloister", "model", "publish", str(packed), "--as", "both", "--json"]

    def publish(url: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [*command, "--store", url], capture_output=True, text=True, env=environment, timeout=60, check=False
        )
        return done.returncode, json.loads(done.stdout or done.stderr)

    status, told = publish(s3.url("nobody-made-it"))
    assert status
    assert "store-misconfigured" in json.dumps(told)
    assert SECRET_KEY not in json.dumps(told)
    status, told = publish(s3.url(BUCKET, "elsewhere"))
    assert status == 0, told
    store = open_store(s3.url(BUCKET, "elsewhere"), HttpClient(SystemClock()), Patience(SystemClock()))
    assert store.latest(served.client.own_model("cli")) is not None


def test_through_cuts_and_refusals(served: Cloud) -> None:
    model = served.published("cut")

    def failing(head: str, number: int) -> Fault | None:
        if "range: bytes=" in head.lower() and number % 4 == 1:
            return Fault(cut_after=300_000)
        return Fault(status=503) if number % 4 == 3 else None

    served.proxy.rule = failing
    served.answer(model)
    assert len(served.proxy.heads) > 10


def test_wrong_bytes_are_noticed_and_said(served: Cloud) -> None:
    model = served.published("changed")

    def change(body: bytes) -> bytes:
        return body[:500_000] + bytes([body[500_000] ^ 1]) + body[500_001:] if len(body) > 500_001 else body

    served.proxy.rule = lambda _head, _number: Fault(body=change)
    with pytest.raises(Tampered, match="model-chunk"):
        served.answer(model, deadline_s=20)
    served.proxy.rule = lambda _head, _number: None
    served.answer(model)  # the store has mended itself, and nothing wrong was kept


def test_a_denied_store_is_no_secret_to_its_operator(served: Cloud) -> None:
    model = served.published("denied")
    served.proxy.rule = lambda head, _number: Fault(status=403, body=lambda _: head.encode())
    with pytest.raises((Unavailable, Refused)) as error:
        served.answer(model, deadline_s=5)
    assert isinstance(error.value, CloisterError)
    assert SECRET_KEY not in str(error.value)
