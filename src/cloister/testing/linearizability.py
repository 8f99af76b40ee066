"""Was a concurrent history possible for something that does one thing at a time? (Herlihy and Wing, 1990.)

An operation took effect at one moment between its call and its return. The search is Wing and Gong's with Lowe's memory
of what was tried ("Testing for linearizability", 2017): an order of all operations in which each answer is the one that
the model gives. A history whose operations concern different things is checked thing by thing, which is what makes it
quick (Horn and Kroening, 2015).

Of an operation whose answer was lost nobody knows whether it happened: it may take effect at any moment after its call
(until ``returned``, where that is known), or never.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

Act = TypeVar("Act")
State = TypeVar("State", bound=Hashable)

MOST_STEPS: Final = 5_000_000  # some ten seconds to a minute; a history that needs more was recorded too wide
_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class Operation(Generic[Act]):
    """What was asked and what came of it.

    :param who: a name for reports.
    :param called: and ``returned``: seconds of one monotonic clock, before the request was sent and after the answer
        was there. Of a lost answer ``returned`` is the moment after which it cannot happen any more, or infinity.
    :param certain: whether there was an answer, so that it took effect between the two.
    :param looks: whether it changes nothing, whatever the state; such are tried first.
    """

    who: str
    act: Act
    called: float
    returned: float = math.inf
    certain: bool = True
    looks: bool = False


class NotLinearizable(AssertionError):
    """No order of the operations explains the answers; the text shows where every order ends."""


class Undecided(AssertionError):
    """The search was given up; record less at once."""


Step = Callable[[State, Act, bool], Iterable[State]]
"""``(state, act, certain)`` to the states after it: none if the answer is not the one that this state gives."""


def require_linearizable(
    operations: Sequence[Operation[Act]], initial: State, step: Step[State, Act], *, most: int = MOST_STEPS
) -> int:
    """One thing's history; how many steps the search took.

    :raises NotLinearizable: :raises Undecided: after ``most`` steps.
    """
    certain = sorted((each for each in operations if each.certain), key=lambda each: each.called)
    doubtful = sorted((each for each in operations if not each.certain), key=lambda each: each.called)
    search = _Search(certain, doubtful, step)
    stack: list[tuple[_Place[State], Iterator[_Place[State]]]] = []
    place = _Place(0, 0, 0, -math.inf, initial)
    tried = {place.key}
    furthest, steps = place, 0
    stack.append((place, search.following(place)))
    while stack:
        place, rest = stack[-1]
        if place.done == len(certain):
            return steps
        following = next(rest, None)
        if following is None:
            stack.pop()
            continue
        steps += 1
        if steps > most:
            raise Undecided(f"not decided after {most} steps, of {len(operations)} operations")
        if following.key in tried:
            continue
        tried.add(following.key)
        if following.count >= furthest.count:
            furthest = following
        stack.append((following, search.following(following)))
    raise NotLinearizable(search.report(furthest))


@dataclass(frozen=True, slots=True)
class _Place(Generic[State]):
    """Where one order has come to.

    :param done: the first so many of the certain operations are in it, and of those after them the ones whose bit is
        set in ``more``; ``maybe``: bits of the doubtful ones. :param latest: call among them.
    """

    done: int
    more: int
    maybe: int
    latest: float
    state: State

    @property
    def key(self) -> tuple[int, int, int, State]:
        """``latest`` follows from the rest."""
        return self.done, self.more, self.maybe, self.state

    @property
    def count(self) -> int:
        """How many operations the order has."""
        return self.done + self.more.bit_count()


class _Search(Generic[State, Act]):
    def __init__(
        self, certain: Sequence[Operation[Act]], doubtful: Sequence[Operation[Act]], step: Step[State, Act]
    ) -> None:
        self.certain = certain
        self.doubtful = doubtful
        self.step = step

    def following(self, place: _Place[State]) -> Iterator[_Place[State]]:
        """Every order that is one operation longer, those that must end first before the others."""
        open_, bound = self._open(place)
        longer: list[_Place[State]] = []
        for at in sorted(open_, key=lambda each: self.certain[each].returned):
            operation = self.certain[at]
            done, more = place.done, place.more | 1 << (at - place.done)
            while more & 1:
                done, more = done + 1, more >> 1
            latest = max(place.latest, operation.called)
            states = tuple(self.step(place.state, operation.act, True))
            longer += [_Place(done, more, place.maybe, latest, state) for state in states]
            if states and operation.looks and not self._ends(place, latest):
                yield longer[-1]  # the answer is the right one by now: nothing is lost by taking it first
                return
        yield from longer
        for at, operation in enumerate(self.doubtful):
            if operation.called > bound:
                break
            if place.maybe >> at & 1 or operation.returned < place.latest:
                continue
            latest = max(place.latest, operation.called)
            for state in self.step(place.state, operation.act, False):
                if state != place.state:  # what changes nothing need not have happened
                    yield _Place(place.done, place.more, place.maybe | 1 << at, latest, state)

    def _ends(self, place: _Place[State], latest: float) -> bool:
        """Whether a doubtful operation could be next, and no more after one that was called at ``latest``."""
        if latest == place.latest:
            return False
        return any(
            place.latest <= each.returned < latest and not place.maybe >> at & 1
            for at, each in enumerate(self.doubtful)
        )

    def _open(self, place: _Place[State]) -> tuple[list[int], float]:
        """Certain operations that are not in the order and may be next, and the first return among them."""
        found: list[int] = []
        bound = math.inf
        for at in range(place.done, len(self.certain)):
            operation = self.certain[at]
            if operation.called > bound:
                break
            if not place.more >> (at - place.done) & 1:
                found.append(at)
                bound = min(bound, operation.returned)
        return found, bound

    def report(self, place: _Place[State]) -> str:
        """What cannot be explained after the longest order that was found."""
        open_, _ = self._open(place)
        before = self.certain[max(0, place.done - _SHOWN) : place.done]
        stuck = [self.certain[at] for at in open_][:_SHOWN]
        maybe = [each for at, each in enumerate(self.doubtful) if not place.maybe >> at & 1]
        lines = [f"no order explains these answers; {place.count} of {len(self.certain)} are explained, up to"]
        lines += [f"  {_line(each)}" for each in before]
        lines += [f"then, in state {place.state}, none of"]
        lines += [f"  {_line(each)}" for each in stuck]
        lines += [f"whose answer was lost: {len(maybe)}"]
        lines += [f"  {_line(each)}" for each in maybe[:_SHOWN]]
        return "\n".join(lines)


def _line(operation: Operation[Act]) -> str:
    return f"{operation.called:12.6f} .. {operation.returned:12.6f}  {operation.who:12} {operation.act}"
