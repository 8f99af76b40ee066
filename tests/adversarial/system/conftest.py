"""One cloud of real processes for all claims tried on one worker; the tests hold its network, store and host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from cloister.base.ids import ModelId
from cloister.client.client import Client
from cloister.testing.models import small
from cloister.testing.scene import Scene, raised

SIDE = 64
WEIGHTS = np.random.default_rng(77).random((SIDE, SIDE), np.float32)


@dataclass(frozen=True)
class World:
    """An owner, a user, a model that he may use; ``x @ WEIGHTS`` is right."""

    scene: Scene
    owner: Client
    user: Client
    model: ModelId
    weights: np.ndarray

    def row(self, seed: int = 1, rows: int = 1) -> np.ndarray:
        return np.random.default_rng(seed).random((rows, SIDE), np.float32)

    def check(self, client: Client | None = None, model: ModelId | None = None) -> None:
        x = self.row(5)
        found = (client or self.user).infer(model or self.model, {"x": x}, deadline_s=30)["y"]
        np.testing.assert_allclose(found, x @ self.weights, rtol=1e-3)

    def offer(self, name: str, *users: Client, **terms) -> ModelId:
        return self.scene.offer(self.owner, name, small.matrix(self.weights), *users, **terms)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with raised(tmp_path_factory.mktemp("claims"), keyservice_settings={"lease_s": 3}) as scene:
        yield scene


@pytest.fixture(scope="session")
def world(scene: Scene) -> World:
    owner, user = scene.person("owner"), scene.person("user")
    model = scene.offer(owner, "model", small.matrix(WEIGHTS), user)
    return World(scene, owner, user, model, WEIGHTS)
