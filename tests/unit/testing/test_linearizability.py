"""The checker itself: histories known to be possible, known not to be, and agreement with trying every order."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.testing.linearizability import NotLinearizable, Operation, Undecided, require_linearizable
from cloister.testing.permissions import (
    Act,
    Consented,
    Denied,
    Granted,
    Released,
    Revoked,
    Saw,
    Standing,
    Withdrawn,
    step,
)

READY = Standing(1, 7, 0)  # granted with quota 1, consented with key 7


def op(act: Act, called: float, returned: float = math.inf, *, certain: bool = True) -> Operation[Act]:
    looks = isinstance(act, (Released, Denied, Saw))
    return Operation("somebody", act, called, returned, certain, looks)


POSSIBLE: dict[str, list[Operation[Act]]] = {
    "nothing at all": [],
    "one after the other": [op(Granted(2), 0, 1), op(Released(2, 7), 2, 3), op(Revoked(), 4, 5), op(Denied(7), 6, 7)],
    "a release beside a revocation, before it": [op(Revoked(), 0, 10), op(Released(1, 7), 1, 9)],
    "a release beside a revocation, after it": [op(Revoked(), 0, 10), op(Denied(7), 1, 2)],
    "beside it one way and then the other": [op(Revoked(), 0, 10), op(Released(1, 7), 1, 2), op(Denied(7), 3, 4)],
    "taken back twice, and the second time it mattered": [
        op(Revoked(), 0, 9),
        op(Revoked(), 0, 9),
        op(Granted(2), 1, 9),
        op(Released(2, 7), 2, 3),
        op(Denied(7), 4, 5),
        op(Denied(7), 6, 7),
    ],
    "answers in another order than calls": [op(Granted(2), 0, 9), op(Granted(3), 1, 8), op(Released(2, 7), 10, 11)],
    "two that touch": [op(Revoked(), 0, 1), op(Released(1, 7), 1, 2)],
    "lost, and it happened": [op(Revoked(), 0, certain=False), op(Denied(7), 5, 6)],
    "lost, and it happened much later": [
        op(Revoked(), 0, certain=False),
        op(Released(1, 7), 5, 6),
        op(Denied(7), 8, 9),
    ],
    "lost, and it never happened": [op(Revoked(), 0, certain=False), op(Released(1, 7), 5, 6)],
    "lost, and it happened in time": [
        op(Granted(2), 0, 4, certain=False),
        op(Released(2, 7), 3, 9),
        op(Revoked(), 5, 8),
        op(Denied(7), 10, 11),
    ],
    "the key before a rotation on the same terms": [op(Consented(8, 0), 0, 1), op(Released(1, 7), 2, 3)],
    "a look at what stands": [op(Saw(1, 0), 0, 1), op(Withdrawn(), 2, 3), op(Saw(1, None), 4, 5)],
}

IMPOSSIBLE: dict[str, list[Operation[Act]]] = {
    "released after an acknowledged revocation": [op(Revoked(), 0, 1), op(Released(1, 7), 2, 3)],
    "released after a consent was taken back": [op(Withdrawn(), 0, 1), op(Released(1, 7), 2, 3)],
    "released on an older grant": [op(Granted(2), 0, 1), op(Released(1, 7), 2, 3)],
    "released with a key whose terms ended": [op(Consented(8, 1), 0, 1), op(Released(1, 7), 2, 3)],
    "a lost update: denied though granted": [op(Revoked(), 0, 1), op(Granted(2), 2, 3), op(Denied(7), 4, 5)],
    "a lost update: one of two revocations undone by nobody": [
        op(Granted(2), 0, 1),
        op(Revoked(), 2, 3),
        op(Saw(2, 0), 4, 5),
    ],
    "there and back: what was seen is not seen any more": [
        op(Granted(2), 0, 9),
        op(Released(2, 7), 1, 2),
        op(Released(1, 7), 3, 4),
    ],
    "there and back over two readers": [op(Revoked(), 0, 9), op(Denied(7), 1, 3), op(Released(1, 7), 4, 5)],
    "two orders that contradict each other": [
        op(Granted(2), 0, 10),
        op(Granted(3), 0, 10),
        op(Released(2, 7), 1, 2),
        op(Released(3, 7), 3, 4),
        op(Released(2, 7), 5, 6),
    ],
    "from a grant that nobody gave": [op(Released(9, 7), 0, 1)],
    "lost, and happened twice": [
        op(Revoked(), 0, certain=False),
        op(Denied(7), 1, 2),
        op(Granted(2), 3, 4),
        op(Denied(7), 5, 6),
    ],
    "lost, and happened before it was asked": [op(Released(2, 7), 0, 1), op(Granted(2), 2, certain=False)],
    "lost, and happened after it could": [
        op(Revoked(), 0, 4, certain=False),
        op(Released(1, 7), 5, 6),
        op(Denied(7), 7, 8),
    ],
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_what_is_possible_passes(name: str) -> None:
    require_linearizable(POSSIBLE[name], READY, step)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_is_impossible_is_found(name: str) -> None:
    with pytest.raises(NotLinearizable):
        require_linearizable(IMPOSSIBLE[name], READY, step)


def test_the_report_says_where_every_order_ends() -> None:
    history = [op(Granted(2), 0, 1), op(Revoked(), 2, 3), op(Released(2, 7), 4, 5)]
    with pytest.raises(NotLinearizable) as caught:
        require_linearizable(history, READY, step)
    text = str(caught.value)
    assert "2 of 3 are explained" in text
    assert text.index("Revoked()") < text.index("none of") < text.index("Released(quota=2, key=7)")


def test_a_search_that_takes_too_long_is_given_up() -> None:
    wide = [op(Granted(number), 0, 100) for number in range(2, 22)]
    with pytest.raises(Undecided):
        require_linearizable([*wide, op(Released(1, 7), 200, 201)], READY, step, most=10_000)


def test_a_long_history_takes_no_more_steps_than_it_has_operations_some_times_over() -> None:
    history = []
    for number in range(5_000):  # five at once, and one in fifty lost
        quota = number + 2
        certain = number % 50 != 0
        history.append(op(Granted(quota), number, number + 5 if certain else number + 60, certain=certain))
        if certain:
            history.append(op(Released(quota, 7), number + 4.5, number + 5.5))
    assert require_linearizable(history, READY, step) < 40 * len(history)


# --- against trying everything ---

times = st.integers(0, 6)
asked = st.sampled_from([Released(1, 7), Released(2, 7), Released(3, 7), Denied(7)])
said = st.sampled_from([Granted(2), Granted(3), Revoked(), Revoked()])
acts = st.one_of(asked, said)


@st.composite
def histories(draw: st.DrawFn) -> list[Operation[Act]]:
    found = []
    for _ in range(draw(st.integers(2, 6))):
        first, second = sorted((draw(times), draw(times)))
        act = draw(acts)
        certain = not isinstance(act, (Granted, Revoked)) or draw(st.booleans())
        found.append(op(act, first, second if certain or draw(st.booleans()) else math.inf, certain=certain))
    return found


def by_trying(history: list[Operation[Act]]) -> bool:
    """The definition: some of the doubtful ones left out, an order that respects time, answers that the model gives."""
    doubtful = [each for each in history if not each.certain]
    for left_out in itertools.chain.from_iterable(
        itertools.combinations(doubtful, size) for size in range(len(doubtful) + 1)
    ):
        rest = [each for each in history if not any(each is other for other in left_out)]
        for order in itertools.permutations(rest):
            if any(later.returned < earlier.called for at, earlier in enumerate(order) for later in order[at + 1 :]):
                continue
            states = {READY}
            for each in order:
                states = {after for state in states for after in step(state, each.act, each.certain)}
            if states:
                return True
    return False


@settings(max_examples=400, deadline=None)
@given(histories())
def test_it_agrees_with_trying_every_order(history: list[Operation[Act]]) -> None:
    try:
        require_linearizable(history, READY, step)
        found = True
    except NotLinearizable:
        found = False
    assert found == by_trying(history)
