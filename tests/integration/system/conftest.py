"""One scene for all tests of a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloister.testing.scene import Scene, raised


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with raised(tmp_path_factory.mktemp("system"), keyservice_settings={"lease_s": 3}) as scene:
        yield scene
