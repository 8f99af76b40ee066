"""Loading a model: straight into the engine's memory, checked before the first answer, nothing left on failure."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from cloister.base.errors import CloisterError, Refused, Tampered, Unavailable
from cloister.base.limits import MIB
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.engines.buffers import BufferPool
from cloister.engines.cpu import Cpu, this_cpu
from cloister.engines.optimise import pack_onnx
from cloister.engines.package import INDEX_FILE, Package
from cloister.runtime.loader import Loader
from cloister.runtime.stages import Stage, Timings
from cloister.testing.models import small
from cloister.testing.modelstore import MemoryStore
from cloister.testing.published import Published, publish
from cloister.wire.calls import LogHead
from cloister.wire.provisioning import Release

OWNER = SigningKey.generate()
CONVNET = small.small_convnet()


def release_of(published: Published, *, version: int = 1, key: SecretBytes | None = None) -> Release:
    return Release(
        manifest_digest=published.place.digest,
        version=version,
        model_key=key or published.key,
        key=SecretBytes(b"k" * 32),
        user_key=b"u" * 32,
        lease_s=60,
        lease_requests=100_000,
        owner_policy=b"o" * 32,
        user_policy=b"u" * 32,
        co_tenancy=False,
        head=LogHead(1, b"h" * 32, 0),
    )


class Bench:
    def __init__(self, model: bytes = CONVNET, cpu: Cpu | None = None, index: bytes | None = None) -> None:
        self.store = MemoryStore()
        packed = pack_onnx(model)
        files = {name: data for name, data in packed.files.items() if name != INDEX_FILE}
        self.published = publish(self.store, OWNER, "m", files, index or packed.files[INDEX_FILE])
        self.readers = ThreadPoolExecutor(4)
        self.pool = BufferPool(1 << 28)
        self.loader = Loader(
            self.store,
            readers=self.readers,
            pool=self.pool,
            cpu=lambda: cpu or this_cpu(),
            threads=1,
            engines=frozenset({"onnx"}),
        )

    def load(self, release: Release | None = None) -> tuple[Any, Timings]:
        timings = Timings()
        release = release or release_of(self.published)
        plan = self.loader.plan(self.published.place, release, timings)
        return self.loader.load(plan, release, timings), timings


@pytest.fixture
def bench() -> Any:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield make
    for one in made:
        one.readers.shutdown()


def test_a_loaded_model_answers_and_its_stages_are_timed(bench: Any) -> None:
    made = bench()
    model, timings = made.load()
    model.confirmed()
    model.confirmed()
    x = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    assert model.session.run({"input": x})["output"].shape == (1, 10)
    assert set(timings.seconds) == {Stage.MODEL_FETCH, Stage.MODEL_DECRYPT, Stage.ENGINE_INIT}
    model.close()
    again, _ = made.load()
    again.confirmed()
    again.close()


def test_weights_that_the_engine_copied_are_given_back_when_they_were_checked(bench: Any) -> None:
    side = 1024
    made = bench(model=small.matrix(np.random.default_rng(1).random((side, side), np.float32)))
    size = 4 * side * side
    timings, release = Timings(), release_of(made.published)
    plan = made.loader.plan(made.published.place, release, timings)
    assert not plan.variant.lent
    assert plan.peak > 3 * size, "ours, the engine's copy, and the one it reorders"
    assert plan.memory < 1.2 * size + 2 * MIB
    model = made.loader.load(plan, release, timings)
    settled = threading.Event()
    model.when_settled(settled.set)
    model.confirmed()
    assert settled.wait(30), "without anybody asking"
    assert not model._spare
    assert made.pool.idle_bytes == 0
    model.when_settled(settled.clear)
    assert not settled.is_set()
    model.close()


def test_another_cpu_gets_the_plain_graph(bench: Any) -> None:
    made = bench(cpu=Cpu("another", frozenset()))
    plan = made.loader.plan(made.published.place, release_of(made.published), Timings())
    assert plan.variant.tuned_for is None
    model, _ = made.load()
    model.confirmed()
    model.close()


def test_a_known_answer_that_differs_gives_way_to_the_plain_graph_or_refuses(bench: Any) -> None:
    packed = pack_onnx(CONVNET)
    index = packed.files[INDEX_FILE]
    package = Package.parse(index)
    assert package.known is not None
    from dataclasses import replace

    from cloister.engines.known_answer import Expected

    wrong = {name: Expected(e.shape, bytes(len(e.values))) for name, e in package.known.outputs.items()}
    lying = replace(package, known=replace(package.known, outputs=wrong)).encode()
    made = bench(index=lying)
    first, _ = made.load()
    with pytest.raises(Unavailable, match="engine-known-answer"):
        first.confirmed()
    first.close()
    plan = made.loader.plan(made.published.place, release_of(made.published), Timings())
    assert plan.variant.tuned_for is None, "the plain one is tried next"
    second, _ = made.load()
    with pytest.raises(Unavailable, match="engine-known-answer"):
        second.confirmed()
    second.close()


def test_nothing_is_left_when_a_load_fails(bench: Any) -> None:
    made = bench()
    for release in (
        release_of(made.published, key=SecretBytes(b"x" * 32)),
        release_of(made.published, version=2),
    ):
        with pytest.raises(Tampered):
            made.load(release)
    good = dict(made.store.files)
    for name in list(good):
        if name.endswith(".bin"):
            made.store.files[name] = good[name][: len(good[name]) // 2]
    with pytest.raises(CloisterError):
        made.load()
    made.store.files = good
    made.store.away = True
    with pytest.raises(Unavailable):
        made.load()
    made.store.away = False
    model, _ = made.load()
    model.confirmed()
    model.close()


def test_an_engine_that_is_not_measured_is_refused(bench: Any) -> None:
    made = bench()
    made.loader._engines = frozenset({"litert"})
    with pytest.raises(Refused, match="engine-not-allowed"):
        made.load()


def test_what_a_hint_fetched_is_not_fetched_again_and_not_believed(bench: Any) -> None:
    made = bench()
    place, release = made.published.place, release_of(made.published)
    made.loader.hint(place.model)
    read = made.store.reads
    made.loader.hint(place.model)
    made.loader.plan(place, release, Timings())
    assert made.store.reads == read
    made.loader.plan(place, release, Timings())
    assert made.store.reads > read
    made.loader._ahead.clear()
    good = made.store.files[place.path("manifest")]
    made.store.files[place.path("manifest")] = good[:-1] + bytes([good[-1] ^ 1])
    made.loader.hint(place.model)
    made.store.files[place.path("manifest")] = good
    with pytest.raises(Tampered, match="manifest-digest"):
        made.loader.plan(place, release, Timings())
    made.loader.plan(place, release, Timings())
    made.store.away = True
    made.loader._ahead.clear()
    made.loader.hint(place.model)


def test_reading_ahead_needs_no_key(bench: Any) -> None:
    made = bench()
    made.loader.read_ahead(made.published.place)
    assert made.store.reads > 100_000
