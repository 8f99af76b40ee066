"""Who makes room when there are too many connections."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cloister.adapters.http.crowd import Crowd, Waiting, group_of


@dataclass(eq=False)
class Member:
    address: str
    waiting: Waiting = Waiting.IDLE
    since: float = 0.0


def crowd(*members: Member) -> Crowd[Member]:
    found = Crowd[Member]()
    for member in members:
        found.add(member)
        found.add(member)
    return found


def test_it_counts_and_forgets() -> None:
    one, other = Member("a"), Member("b")
    found = crowd(one, other)
    assert (len(found), set(found)) == (2, {one, other})
    for _ in range(2):
        found.discard(one)
    found.discard(Member("b"))
    assert list(found) == [other]
    assert Crowd[Member]().makes_room("a") is None


def test_whoever_holds_most_makes_room_with_what_is_idle_longest() -> None:
    idle, longer = Member("many", since=5.0), Member("many", since=3.0)
    found = crowd(Member("few"), idle, longer, Member("many", Waiting.HEAD, 1.0), Member("many", Waiting.SERVICE))
    assert found.makes_room("new") is longer
    found.discard(longer)
    assert found.makes_room("few") is idle
    found.discard(idle)
    partial = found.makes_room("many")
    assert partial is not None
    assert partial.waiting is Waiting.HEAD


def test_a_request_under_way_is_cut_only_where_its_address_holds_more_than_the_newcomer() -> None:
    slow = [Member("many", Waiting.CLIENT, float(number)) for number in range(3)]
    found = crowd(*slow)
    assert found.makes_room("new") is slow[0]
    assert found.makes_room("many") is None
    for _ in range(2):
        found.add(Member("new", Waiting.SERVICE))
    assert found.makes_room("new") is None


def test_an_answer_that_is_being_made_is_never_cut() -> None:
    assert crowd(*(Member("many", Waiting.SERVICE) for _ in range(9))).makes_room("new") is None


@pytest.mark.parametrize(
    ("peer", "group"),
    [
        (("192.0.2.7", 5), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::1", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        (("::ffff:192.0.2.7", 5, 0, 0), "192.0.2.7"),
        ("", ""),
        (None, ""),
        (b"/path", ""),
    ],
)
def test_groups(peer: object, group: str) -> None:
    assert group_of(peer) == group
