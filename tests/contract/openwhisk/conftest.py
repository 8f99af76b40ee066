"""Containers under test: the adapter before a stand-in, and the real action against a real KeyService."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cloister.testing.action import ACTION, STAND_IN, ActionProcess, Invoker
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


@pytest.fixture(params=["stand-in", "runtime"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts containers that listen; with the init parameters that each needs."""
    started: list[Invoker] = []

    def begin() -> tuple[Invoker, dict[str, str]]:
        environment: dict[str, str] = {}
        if request.param == "runtime":
            cloud, keyservice = request.getfixturevalue("action_cloud")
            environment = cloud.action_environment(keyservice)
        process = ActionProcess(STAND_IN if request.param == "stand-in" else ACTION)
        invoker = Invoker(process)
        started.append(invoker)
        invoker.wait()
        return invoker, environment

    yield begin
    for invoker in started:
        invoker.close()
        process = invoker.container
        assert isinstance(process, ActionProcess)
        if process.process.poll() is None:
            process.kill()
