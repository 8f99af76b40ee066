"""What an instance says of itself corrects what the dispatcher expected."""

from __future__ import annotations

from cloister.control import policies
from cloister.control.dispatch import Dispatcher, Send
from cloister.control.snapshot import Fleet, Instance, InstanceState, Model, Request, Stages


def _dispatcher() -> Dispatcher:
    fleet = Fleet(max_instances=4, memory_mb=100, concurrency=2)
    dispatcher = Dispatcher(
        fleet, policies.packer("adaptive"), policies.balancer("least-outstanding"), policies.scaler("keep-alive")
    )
    for name in ("a", "b"):
        dispatcher.add_model(Model(name, "owner", 10.0, Stages(sandbox_start=100, model_fetch=50, inference=5)))
    return dispatcher


def test_a_model_that_is_there_makes_the_next_request_hot() -> None:
    dispatcher = _dispatcher()
    dispatcher.discovered(0.0, Instance("i", "pool", InstanceState.READY, 2, 100.0))
    dispatcher.observed(1.0, "i", frozenset({"a", "unknown"}), concurrency=2, memory_mb=100.0)
    there = dispatcher.snapshot.instances["i"]
    assert set(there.residents) == {"a"}
    assert there.used_mb == 10.0
    assert there.owners == {"owner"}
    (send,) = dispatcher.arrive(2.0, Request("1", "a", "u", 2.0))
    assert isinstance(send, Send)
    assert send.path.value == "hot"


def test_a_model_that_is_not_there_is_forgotten_unless_it_is_in_use() -> None:
    dispatcher = _dispatcher()
    dispatcher.discovered(0.0, Instance("i", "pool", InstanceState.READY, 2, 100.0))
    dispatcher.arrive(1.0, Request("1", "a", "u", 1.0))
    dispatcher.observed(5.0, "i", frozenset(), concurrency=2, memory_mb=100.0)
    assert set(dispatcher.snapshot.instances["i"].residents) == {"a"}
    dispatcher.finished(6.0, "1", "i", 1.0)
    dispatcher.observed(7.0, "i", frozenset(), concurrency=2, memory_mb=100.0)
    assert not dispatcher.snapshot.instances["i"].residents
    assert dispatcher.snapshot.holders.get("a") is None


def test_more_slots_than_expected_are_used_at_once() -> None:
    dispatcher = _dispatcher()
    dispatcher.discovered(0.0, Instance("i", "pool", InstanceState.READY, 1, 100.0))
    dispatcher.arrive(1.0, Request("1", "a", "u", 1.0))
    waiting = dispatcher.arrive(1.0, Request("2", "a", "u", 1.0))
    assert not [c for c in waiting if isinstance(c, Send)]
    commands = dispatcher.observed(2.0, "i", frozenset({"a"}), concurrency=2, memory_mb=100.0)
    assert [c.request.id for c in commands if isinstance(c, Send)] == ["2"]
