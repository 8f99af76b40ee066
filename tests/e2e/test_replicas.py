"""A whole Cloister with three witnesses and three replicas: models are used while the replica that leads is killed."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.base.errors import InvalidInput, Refused, Unavailable
from cloister.client.client import Client
from cloister.client.identity import create_identity
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.models.small import sum_difference

NAMES = ("keyservice", "keyservice-2", "keyservice-3")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    cloud = LocalCloud(tmp_path_factory.mktemp("cloud") / "state", witnesses=3, replicas=3)
    try:
        cloud.start()
        yield cloud
    finally:
        cloud.stop()


def leader(cloud: LocalCloud) -> str:
    """Waits for one."""
    client = HttpClient(SystemClock())
    try:
        for _ in range(600):
            for name in NAMES:
                address = (cloud.folder / name / "address").read_text().strip()
                with contextlib.suppress(Unavailable):
                    answer = client.request("GET", address, "/v1/replica/role")
                    if json.loads(bytes(answer.body))["role"] == "leader":
                        return name
            time.sleep(0.1)
    finally:
        client.close()
    raise AssertionError


def test_a_model_is_published_used_and_revoked_over_a_change_of_leaders(cloud: LocalCloud, tmp_path: Path) -> None:
    create_identity(cloud.home, "alice")
    (tmp_path / "sums.onnx").write_bytes(sum_difference())
    one = np.ones((2, 3), np.float32)
    killed = leader(cloud)
    if killed == "keyservice":  # whose address everybody uses: another one leads after it comes back
        cloud.stop_service("keyservice", kill=True)
        killed = leader(cloud)
        cloud.start_keyservice()
    assert killed != "keyservice"
    with Client.open(cloud.home, "alice") as client:
        client.register()
        client.pack(tmp_path / "sums.onnx", tmp_path / "packed", name="sums", version=1, tuned=False)
        client.publish(tmp_path / "packed")
        policy = cloud.runtime_policy()
        client.grant("sums", client.account.identity.id, policy)
        model = client.own_model("sums")
        client.consent(model, policy)
        before = client.infer(model, {"a": one, "b": one})
        cloud.stop_service(killed, kill=True)
        after = client.infer(model, {"a": one, "b": one})
        assert np.array_equal(after["sum"], before["sum"])
        client.revoke("sums", client.account.identity.id)  # acknowledged by the next one that leads
        cloud.start_keyservice()
        assert leader(cloud) != killed
        assert not [item for item in client.account.ask("access")["items"] if item["kind"] == "grant"]


def test_the_number_of_replicas_is_measured_and_needs_witnesses(cloud: LocalCloud, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        LocalCloud(cloud.folder, replicas=1).prepare()
    assert caught.value.code == "state-of-another-kind"
    LocalCloud(cloud.folder).prepare()
    for more in ({"replicas": 3}, {"replicas": 4, "witnesses": 3}, {"replicas": 0, "witnesses": 3}):
        with pytest.raises(InvalidInput, match="argument"):
            LocalCloud(tmp_path / str(len(more)), **more).prepare()  # type: ignore[arg-type]
