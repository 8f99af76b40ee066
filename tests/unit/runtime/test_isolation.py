"""Who may be in the room together."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import Any

import pytest

from cloister.base.errors import Unavailable
from cloister.base.ids import ModelId
from cloister.runtime.isolation import MAX_WAITING, PATIENCE_S, TURN_S, Isolation, Rooms, Visit
from cloister.testing.clock import FakeClock

ANNA, BERT = b"a" * 32, b"b" * 32
OWN, OTHER = ModelId(b"1" * 32, "m"), ModelId(b"2" * 32, "m")


class Later(Executor):
    """Runs what was submitted when told to."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.waiting.append(lambda: fn(*args, **kwargs))
        return Future()

    def go(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


class House:
    def __init__(self, level: Isolation, *, co_tenancy: bool = True) -> None:
        self.forgotten = 0
        self.inside_at_forget: list[int] = []
        self.later = Later()
        self.clock = FakeClock()
        self.rooms = Rooms(level, co_tenancy=co_tenancy, forget=self.forget, executor=self.later, clock=self.clock)

    def forget(self) -> None:
        self.forgotten += 1
        self.inside_at_forget.append(self.rooms.inside)

    def enter(self, user: bytes, model: ModelId, *, cohabits: bool = False) -> Visit:
        visit = self.rooms.try_enter(user, model)
        assert visit is not None
        assert self.rooms.confirm(visit, co_tenancy=cohabits)
        return visit


def test_shared_takes_many_users_of_one_owner() -> None:
    house = House(Isolation.SHARED)
    house.enter(ANNA, OWN)
    house.enter(BERT, OWN)
    house.enter(BERT, ModelId(OWN.owner, "another"))
    assert house.rooms.try_enter(ANNA, OTHER) is None
    assert house.rooms.inside == 3


def test_another_owner_waits_until_all_have_left_and_everything_is_forgotten() -> None:
    house = House(Isolation.SHARED)
    first, second = house.enter(ANNA, OWN), house.enter(BERT, OWN)
    coming = house.rooms.enter(ANNA, OTHER)
    house.rooms.leave(first)
    house.later.go()
    assert not coming.done()
    house.rooms.leave(second)
    assert not coming.done()
    assert house.rooms.try_enter(ANNA, OWN) is None, "nobody enters while it is being forgotten"
    house.later.go()
    assert coming.done()
    assert (house.forgotten, house.inside_at_forget) == (1, [0])


def test_owners_meet_only_where_every_policy_allows_it_and_that_is_known() -> None:
    house = House(Isolation.SHARED)
    own = house.enter(ANNA, OWN, cohabits=True)
    assert house.rooms.try_enter(BERT, OTHER) is None, "nothing is known of the newcomer's policies yet"
    coming = house.rooms.enter(BERT, OTHER)
    house.rooms.leave(own)
    house.later.go()
    other = coming.result(0)
    assert house.rooms.confirm(other, co_tenancy=True)
    assert house.rooms.try_enter(ANNA, OWN) is not None, "now both are known to allow it"
    # a policy that changed its mind is noticed at the next use
    assert not house.rooms.confirm(other, co_tenancy=False)


def test_a_runtime_that_takes_one_owner_only_never_mixes() -> None:
    house = House(Isolation.SHARED, co_tenancy=False)
    visit = house.enter(ANNA, OWN, cohabits=True)
    house.rooms.leave(visit)
    coming = house.rooms.enter(BERT, OTHER)
    house.later.go()
    house.rooms.confirm(coming.result(0), co_tenancy=True)
    assert house.rooms.try_enter(ANNA, OWN) is None


def test_per_user_forgets_between_users() -> None:
    house = House(Isolation.PER_USER)
    visit = house.enter(ANNA, OWN)
    house.enter(ANNA, OWN)
    assert house.rooms.try_enter(BERT, OWN) is None
    house.rooms.leave(visit)
    assert house.rooms.try_enter(ANNA, OWN) is not None
    assert house.forgotten == 0


def test_strict_takes_one_and_forgets_after_each() -> None:
    house = House(Isolation.STRICT)
    for count in range(1, 4):
        visit = house.enter(ANNA, OWN)
        coming = house.rooms.enter(ANNA, OWN)
        assert not coming.done()
        assert coming.cancel()
        house.rooms.leave(visit)
        assert house.rooms.try_enter(ANNA, OWN) is None
        house.later.go()
        assert house.forgotten == count


def test_first_come_first_served_and_nobody_is_starved_by_the_room() -> None:
    house = House(Isolation.SHARED)
    staying = house.enter(ANNA, OWN)
    coming = house.rooms.enter(BERT, OTHER)
    assert house.rooms.try_enter(ANNA, OWN) is not None, "for one turn the room goes on"
    house.clock.advance(TURN_S + 0.01)
    assert house.rooms.try_enter(ANNA, OWN) is None, "then it empties"
    assert not house.rooms.overdue
    house.clock.advance(PATIENCE_S)
    assert house.rooms.overdue
    house.rooms.leave(staying)
    house.rooms.leave(staying)  # again is harmless
    assert house.rooms.inside == 1
    del coming


def test_who_has_gone_is_not_let_in() -> None:
    house = House(Isolation.SHARED)
    visit = house.enter(ANNA, OWN)
    gone, coming = house.rooms.enter(BERT, OTHER), house.rooms.enter(ANNA, OTHER)
    assert gone.cancel()
    house.rooms.leave(visit)
    house.later.go()
    assert coming.done()
    assert house.rooms.inside == 1


def test_the_queue_is_bounded_and_closing_ends_it() -> None:
    house = House(Isolation.STRICT)
    house.enter(ANNA, OWN)
    waiting = [house.rooms.enter(BERT, OWN) for _ in range(MAX_WAITING)]
    with pytest.raises(Unavailable, match="room-queue-full"):
        house.rooms.enter(BERT, OWN)
    house.rooms.close()
    assert all(isinstance(future.exception(0), Unavailable) for future in waiting)
    assert house.rooms.try_enter(ANNA, OWN) is None


def test_what_could_not_be_forgotten_lets_nobody_in() -> None:
    house = House(Isolation.STRICT)

    def fail() -> None:
        raise Unavailable("stuck", "a model does not go")

    house.rooms._forget = fail
    visit = house.enter(ANNA, OWN)
    coming = house.rooms.enter(BERT, OWN)
    house.rooms.leave(visit)
    house.later.go()
    assert isinstance(coming.exception(0), Unavailable)
