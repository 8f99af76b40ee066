"""Fair order: nobody is lost, and nobody waits for more than one request of each other user."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloister.control.line import Line
from cloister.control.snapshot import Request

USERS = st.sampled_from(["a", "b", "c", "d"])


def _requests(users: list[str]) -> list[Request]:
    return [Request(f"r{n}", "m", user, float(n)) for n, user in enumerate(users)]


def _drain(line: Line) -> list[Request]:
    out = []
    while line:
        request = line.head()[1]
        line.remove(request)
        assert request not in line
        out.append(request)
    return out


@given(st.lists(USERS, max_size=40))
def test_every_request_comes_out_once_and_in_order_within_its_user(users: list[str]) -> None:
    line = Line()
    requests = _requests(users)
    for n, request in enumerate(requests):
        line.add(n, request, first=False)
    assert len(line) == len(requests)
    out = _drain(line)
    assert sorted(r.id for r in out) == sorted(r.id for r in requests)
    for user in set(users):
        assert [r for r in out if r.user == user] == [r for r in requests if r.user == user]


@given(st.lists(USERS, max_size=40))
def test_between_two_requests_of_one_user_no_waiting_user_is_passed_over(users: list[str]) -> None:
    line = Line()
    for n, request in enumerate(_requests(users)):
        line.add(n, request, first=False)
    out = [r.user for r in _drain(line)]
    for start, user in enumerate(out):
        following = next((i for i in range(start + 1, len(out)) if out[i] == user), None)
        if following is not None:
            waiting = set(out[following:]) - {user}
            assert waiting <= set(out[start:following])


@given(st.lists(USERS, min_size=1, max_size=20), st.data())
def test_whoever_leaves_is_not_served(users: list[str], data: st.DataObject) -> None:
    line = Line()
    requests = _requests(users)
    for n, request in enumerate(requests):
        line.add(n, request, first=False)
    gone = data.draw(st.sets(st.sampled_from(requests)))
    for request in sorted(gone, key=lambda r: r.id):
        line.remove(request)
    assert set(_drain(line)) == set(requests) - gone


def test_one_that_lost_its_instance_goes_first() -> None:
    line = Line()
    a, b, c = _requests(["a", "b", "a"])
    line.add(1, a, first=False)
    line.add(2, b, first=False)
    line.add(-3, c, first=True)
    assert _drain(line) == [c, a, b]
