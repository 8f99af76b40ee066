"""Loading a model: straight into the engine's memory, checked before the first answer, nothing left on failure."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from cloister.adapters.modelstore.port import Place
from cloister.base.errors import CloisterError, Refused, Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import MIB
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.engines.buffers import BufferPool
from cloister.engines.cpu import Cpu, this_cpu
from cloister.engines.optimise import pack_onnx
from cloister.engines.package import INDEX_FILE, Package
from cloister.runtime.ahead import KEEP_S, Ahead
from cloister.runtime.loader import Loader
from cloister.runtime.stages import Stage, Timings
from cloister.testing.clock import FakeClock
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


class FakeRoom:
    """A budget that says how much of it is taken."""

    def __init__(self) -> None:
        self.size = 1 << 28
        self.taken = 0

    def try_reserve(self, size: int) -> bool:
        if self.taken + size > self.size:
            return False
        self.taken += size
        return True

    def unreserve(self, size: int) -> None:
        self.taken -= size


class Bench:
    def __init__(self, model: bytes = CONVNET, cpu: Cpu | None = None, index: bytes | None = None) -> None:
        self.store = MemoryStore()
        packed = pack_onnx(model)
        files = {name: data for name, data in packed.files.items() if name != INDEX_FILE}
        self.published = publish(self.store, OWNER, "m", files, index or packed.files[INDEX_FILE])
        self.readers = ThreadPoolExecutor(4)
        self.pool = BufferPool(1 << 28)
        self.clock = FakeClock()
        self.room = FakeRoom()
        self.ahead = Ahead(self.store, readers=self.readers, pool=self.pool, clock=self.clock)
        self.ahead.room = self.room
        self.loader = Loader(
            self.store,
            readers=self.readers,
            pool=self.pool,
            cpu=lambda: cpu or this_cpu(),
            threads=1,
            engines=frozenset({"onnx"}),
            ahead=self.ahead,
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


def test_what_came_ahead_is_not_fetched_again(bench: Any) -> None:
    made = bench()
    assert made.ahead.fetch(made.published.place.model)
    assert not made.ahead.fetch(made.published.place.model), "once"
    held = made.room.taken
    assert held > 50_000
    read = made.store.reads
    model, _ = made.load()
    assert made.store.reads == read, "nothing was read again"
    model.confirmed()
    x = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    assert model.session.run({"input": x})["output"].shape == (1, 10)
    model.close()
    assert made.room.taken == held, "what it holds is the model's now"


def test_a_wrong_or_broken_hint_costs_time_only(bench: Any) -> None:
    made = bench()
    place = made.published.place
    other = Place(place.model, bytes(32))
    made.store.hints[place.model] = other
    made.store.files[other.path("manifest")] = made.store.files[place.path("manifest")]
    assert not made.ahead.fetch(place.model), "no release can name a manifest with another digest"
    made.store.hints[place.model] = place
    good = dict(made.store.files)
    for name in list(good):
        if name.endswith(".bin"):
            made.store.files[name] = good[name][:-1]
    assert not made.ahead.fetch(place.model), "a file is cut short; what came before is used"
    made.store.files = good
    model, _ = made.load()
    model.confirmed()
    model.close()
    made.ahead.sweep()
    made.store.away = True
    assert not made.ahead.fetch(place.model)


def test_forged_ciphertext_that_came_ahead_is_refused_as_ever(bench: Any) -> None:
    made = bench()
    place = made.published.place
    good = dict(made.store.files)
    for name in list(good):
        if name.endswith(".bin"):
            made.store.files[name] = bytes([good[name][0] ^ 1]) + good[name][1:]
    assert made.ahead.fetch(place.model)
    with pytest.raises(Tampered, match="model-chunk"):
        made.load()
    made.store.files = good
    model, _ = made.load()
    model.confirmed()
    model.close()


def test_a_root_that_the_owner_did_not_sign_is_found_in_what_came_ahead(bench: Any) -> None:
    """As somebody with the model's key, who is not its owner, could make it."""
    made = bench()
    place = made.published.place
    assert made.ahead.fetch(place.model)
    plan = made.loader.plan(place, release_of(made.published), Timings())
    assert plan.arrival is not None
    file = next(iter(plan.arrival.files.values()))
    file._digests[0] = bytes(32)
    model = made.loader.load(plan, release_of(made.published), Timings())
    with pytest.raises(Tampered, match="model-root"):
        model.confirmed()
    model.close()


def test_what_came_ahead_makes_way_and_is_not_kept_for_nothing(bench: Any) -> None:
    made = bench()
    model = made.published.place.model
    made.room.size = 1000
    assert not made.ahead.fetch(model), "there is no room"
    made.ahead.close()
    made = bench()
    model = made.published.place.model
    assert made.ahead.fetch(model)
    assert made.ahead.make_way()
    assert made.room.taken == 0
    assert not made.ahead.make_way()
    assert made.ahead.fetch(model)
    made.clock.advance(KEEP_S)
    made.ahead.sweep()
    assert made.room.taken == 0, "nobody came for it"
    assert made.ahead.fetch(model, keep=True)
    made.clock.advance(KEEP_S)
    made.ahead.sweep()
    assert made.room.taken > 0
    made.ahead.close()
    assert made.room.taken == 0
    assert not made.ahead.fetch(model, keep=True)
    assert not made.ahead.fetch(ModelId(b"o" * 32, "unknown"))


def test_a_load_takes_over_what_is_still_coming(bench: Any) -> None:
    made = bench(model=small.matrix(np.random.default_rng(1).random((1024, 1024), np.float32)))
    place = made.published.place
    reached, go = threading.Event(), threading.Event()
    read_into = made.store.read_into
    held = []

    def slow(place: Place, name: str, offset: int, out: memoryview) -> None:
        read_into(place, name, offset, out)
        held.append(offset)
        reached.set()
        go.wait(30)

    made.store.read_into = slow
    with ThreadPoolExecutor(2) as pool:
        fetching = pool.submit(made.ahead.fetch, place.model)
        assert reached.wait(30)
        loading = pool.submit(made.load)
        while place in made.ahead._arrivals:
            time.sleep(0.001)
        go.set()
        assert not fetching.result(30)
        model, _ = loading.result(30)
    assert len(held) < 10, "each chunk was read once"
    model.confirmed()
    model.close()
