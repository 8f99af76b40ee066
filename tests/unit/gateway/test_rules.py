"""Limits of users, circuits, costs, the catalogue: rules without processes."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cloister.base.errors import CloisterError, Unavailable
from cloister.base.ids import ModelId
from cloister.control.gateway.breaker import Breaker
from cloister.control.gateway.catalogue import ABSENT_S, Catalogue
from cloister.control.gateway.configuration import CircuitSettings, DiscoverySettings, ModelSettings
from cloister.control.gateway.costs import Costs, first_guess
from cloister.control.gateway.limits import UserLimits
from cloister.control.snapshot import Model, Stages
from cloister.crypto.sign import SigningKey
from cloister.testing.clock import FakeClock
from cloister.testing.gateway import MODEL
from cloister.testing.modelstore import MemoryStore
from cloister.testing.published import publish

A, B = b"a" * 32, b"b" * 32


def _code(call: Any, *arguments: Any) -> str:
    with pytest.raises(CloisterError) as caught:
        call(*arguments)
    return caught.value.code


def test_a_rate_refills_with_time() -> None:
    users = UserLimits(rate=2.0, burst=3, concurrency=0, users=10)
    for _ in range(3):
        users.enter(A, 0.0)
    assert _code(users.enter, A, 0.0) == "rate-limited"
    users.enter(B, 0.0)
    users.enter(A, 0.5)
    assert _code(users.enter, A, 0.5) == "rate-limited"
    with pytest.raises(Unavailable) as caught:
        users.enter(A, 0.75)
    assert caught.value.retry_after == pytest.approx(0.25)


def test_requests_at_a_time_are_given_back() -> None:
    users = UserLimits(rate=0, burst=1, concurrency=2, users=10)
    users.enter(A, 0.0)
    users.enter(A, 0.0)
    assert _code(users.enter, A, 0.0) == "user-concurrency"
    users.leave(A)
    users.enter(A, 0.0)


def test_the_table_is_bounded_and_keeps_whoever_is_at_work() -> None:
    users = UserLimits(rate=0, burst=1, concurrency=2, users=2)
    users.enter(A, 0.0)
    users.enter(B, 0.0)
    assert _code(users.enter, b"c" * 32, 0.0) == "too-many-users"
    users.leave(B)
    users.enter(b"c" * 32, 0.0)
    assert len(users) == 2
    users.leave(A)


SETTINGS = CircuitSettings(failures=3, open_s=0.1, max_open_s=0.5, probes=3, attempts=3)


def test_a_circuit_opens_after_failures_in_a_row() -> None:
    breaker = Breaker(SETTINGS)
    assert [breaker.failed(broken=False) for _ in range(2)] == [False, False]
    breaker.succeeded()
    assert [breaker.failed(broken=False) for _ in range(4)] == [False, False, True, False]
    assert breaker.is_open


def test_a_cut_connection_opens_it_at_once_and_one_failure_after_a_probe_again() -> None:
    breaker = Breaker(SETTINGS)
    assert breaker.failed(broken=True)
    breaker.probed(well=True)
    assert not breaker.is_open
    assert breaker.failed(broken=False)


def test_probes_in_vain_come_less_often_until_there_is_no_hope() -> None:
    breaker = Breaker(SETTINGS)
    breaker.failed(broken=True)
    waits = []
    while not breaker.hopeless:
        waits.append(breaker.wait_s())
        breaker.probed(well=False)
    assert waits == [0.1, 0.2, 0.4]
    assert breaker.wait_s() == 0.5


def test_costs_come_from_what_was_seen() -> None:
    costs = Costs()
    model = Model("m", "o", 10.0, first_guess(10.0))
    assert costs.applied(model) is model
    costs.started(0.4)
    costs.answered("m", 0.30, hot=False, loaded=True, slowdown=1.0)
    costs.answered("m", 0.10, hot=True, loaded=False, slowdown=2.0)
    assert costs.changed() == {"m"}
    assert costs.changed() == set()
    seen = costs.applied(model)
    assert (seen.start_s, seen.load_s, seen.service_s) == pytest.approx((0.4, 0.3, 0.05))
    for _ in range(60):
        costs.answered("m", 0.30, hot=False, loaded=True, slowdown=1.0)
    assert costs.applied(seen).load_s == pytest.approx(0.25, abs=0.01)


def test_waiting_for_somebody_elses_load_says_nothing_of_the_model() -> None:
    costs = Costs()
    costs.answered("m", 5.0, hot=False, loaded=False, slowdown=1.0)
    assert costs.changed() == set()


def _catalogue(store: Any, models: tuple[ModelSettings, ...] = (), **discovery: Any) -> Any:
    found: dict[str, Model] = {}
    settings = DiscoverySettings(**({"enabled": True, "max_models": 10} | discovery))
    clock = FakeClock()
    pool = ThreadPoolExecutor(1)
    catalogue = Catalogue(
        models, settings, store=store, executor=pool, clock=clock, found=lambda m: found.__setitem__(m.id, m)
    )
    return catalogue, found, clock, pool


def _ask(catalogue: Catalogue, model: ModelId, times: int = 1) -> list[Any]:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(_one(catalogue, model) for _ in range(times)))

    return asyncio.run(ask())


async def _one(catalogue: Catalogue, model: ModelId) -> Any:
    try:
        return await catalogue.find(model, str(model))
    except CloisterError as error:
        return error.code


def test_the_store_is_asked_once_however_many_ask() -> None:
    store = MemoryStore()
    place = publish(store, SigningKey.generate(), "m", {"weights": bytes(1000)}, b"index").place
    catalogue, found, _, pool = _catalogue(store)
    answers = _ask(catalogue, place.model, 20)
    assert len(set(map(id, answers))) == 1
    assert list(found) == [str(place.model)]
    read = store.reads
    _ask(catalogue, place.model)
    assert store.reads == read
    pool.shutdown()


def test_a_model_that_was_not_there_is_asked_for_again_a_little_later() -> None:
    store = MemoryStore()
    catalogue, _, clock, pool = _catalogue(store)
    owner = SigningKey.generate()
    published = publish(MemoryStore(), owner, "m", {"weights": bytes(10)}, b"index")
    assert _ask(catalogue, published.place.model) == ["model-not-found"]
    publish(store, owner, "m", {"weights": bytes(10)}, b"index")
    assert _ask(catalogue, published.place.model) == ["model-not-found"]
    clock.advance(ABSENT_S)
    assert isinstance(_ask(catalogue, published.place.model)[0], Model)
    pool.shutdown()


def test_without_discovery_only_configured_models_are_known() -> None:
    settings = ModelSettings(str(MODEL), 7.0, None, frozenset(), Stages(inference=3))
    store = MemoryStore()
    place = publish(store, SigningKey.generate(), "m", {"weights": bytes(10)}, b"index").place
    catalogue, _, _, pool = _catalogue(store, (settings,), enabled=False)
    assert _ask(catalogue, MODEL)[0].memory_mb == 7.0
    assert _ask(catalogue, place.model) == ["model-not-found"]
    pool.shutdown()


def test_a_hostile_manifest_is_a_model_that_is_not_there() -> None:
    store = MemoryStore()
    place = publish(store, SigningKey.generate(), "m", {"weights": bytes(10)}, b"index").place
    store.files[place.path("manifest")] = b"\xff" * 100
    catalogue, _, _, pool = _catalogue(store)
    assert _ask(catalogue, place.model) == ["model-not-found"]
    pool.shutdown()


def test_models_are_bounded() -> None:
    store = MemoryStore()
    owner = SigningKey.generate()
    places = [publish(store, owner, f"m{n}", {"weights": bytes(10)}, b"index").place for n in range(3)]
    catalogue, _, _, pool = _catalogue(store, max_models=2)
    assert [type(_ask(catalogue, place.model)[0]).__name__ for place in places[:2]] == ["Model", "Model"]
    assert _ask(catalogue, places[2].model) == ["too-many-models"]
    pool.shutdown()
