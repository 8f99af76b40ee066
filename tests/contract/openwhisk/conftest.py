"""Containers under test: the adapter before a stand-in, and the real action against a real KeyService."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from cloister.testing.action import ACTION, STAND_IN, ActionProcess, Container, Invoker
from cloister.testing.container_cloud import ContainerCloud
from cloister.testing.containers import Engine
from cloister.testing.local_cloud import LocalCloud

Start = Callable[[], tuple[Invoker, dict[str, str]]]


@pytest.fixture(scope="session")
def action_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalCloud, str]]:
    """A KeyService for real actions, and its address."""
    cloud = LocalCloud(tmp_path_factory.mktemp("actions") / "state")
    cloud.prepare()
    try:
        yield cloud, cloud.start_keyservice()
    finally:
        cloud.stop()


IMAGE = os.environ.get("CLOISTER_TEST_IMAGE", "")  # set by `make test-image`


@pytest.fixture(scope="session")
def image_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerCloud]:
    """A KeyService in a container, for actions in containers."""
    cloud = ContainerCloud(tmp_path_factory.mktemp("images") / "state", Engine.find(IMAGE), IMAGE)
    try:
        cloud.prepare()
        cloud.start_keyservice()
        yield cloud
    finally:
        cloud.stop()
        cloud.remove_network()


@pytest.fixture(params=["stand-in", "runtime", *(["image"] if IMAGE else [])])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts containers that listen; with the init parameters that each needs."""
    started: list[Invoker] = []

    def begin() -> tuple[Invoker, dict[str, str]]:
        environment: dict[str, str] = {}
        if request.param == "runtime":
            cloud, keyservice = request.getfixturevalue("action_cloud")
            environment = cloud.action_environment(keyservice)
        container: Container
        if request.param == "image":
            images: ContainerCloud = request.getfixturevalue("image_cloud")
            assert images.keyservice is not None
            environment = images.action_environment(images.keyservice.address)
            container = images.start_action()
        else:
            container = ActionProcess(STAND_IN if request.param == "stand-in" else ACTION)
        invoker = Invoker(container)
        started.append(invoker)
        invoker.wait()
        return invoker, environment

    yield begin
    for invoker in started:
        invoker.close()
        invoker.container.kill()
