"""One whole Cloister for all end-to-end tests of a worker: real processes, the command's own code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloister.base.ids import ModelId
from cloister.client.client import Client
from cloister.client.identity import create_identity
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.models.small import sum_difference


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    cloud = LocalCloud(tmp_path_factory.mktemp("cloud") / "state", keep_alive_s=5.0)
    try:
        cloud.start()
        yield cloud
    finally:
        cloud.stop()


@pytest.fixture(scope="session")
def alice(cloud: LocalCloud) -> Iterator[Client]:
    yield from person(cloud, "alice")


@pytest.fixture(scope="session")
def bob(cloud: LocalCloud) -> Iterator[Client]:
    yield from person(cloud, "bob")


def person(cloud: LocalCloud, name: str) -> Iterator[Client]:
    create_identity(cloud.home, name)
    with Client.open(cloud.home, name) as client:
        client.register()
        yield client


@pytest.fixture(scope="session")
def model(cloud: LocalCloud, alice: Client, bob: Client, tmp_path_factory: pytest.TempPathFactory) -> ModelId:
    """A model with inputs ``a`` and ``b``, published, granted to bob and consented to."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "sums.onnx").write_bytes(sum_difference())
    alice.pack(folder / "sums.onnx", folder / "packed", name="sums", version=1)
    alice.publish(folder / "packed")
    policy = cloud.runtime_policy()
    alice.grant("sums", bob.account.identity.id, policy)
    target = alice.own_model("sums")
    bob.consent(target, policy)
    return target
