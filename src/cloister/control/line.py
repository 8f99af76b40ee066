"""A model's waiting requests, in an order that is fair to its users: one request of each user in turn.

Within a user, first come, first served. With one user it is a plain queue. Requests that lost their instance go ahead
of everybody: they have had their turn.
"""

from __future__ import annotations

from collections import OrderedDict

from cloister.control.snapshot import Request

Entry = tuple[int, Request]  # sequence number of its arrival, request


class Line:
    """Mutable; owned by one ledger. Every operation takes constant time."""

    __slots__ = ("_length", "_turns", "_urgent")

    def __init__(self) -> None:
        self._urgent: OrderedDict[str, Entry] = OrderedDict()
        self._turns: OrderedDict[str, OrderedDict[str, Entry]] = OrderedDict()  # whose turn is next comes first
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __contains__(self, request: Request) -> bool:
        return request.id in self._urgent or request.id in self._turns.get(request.user, ())

    def head(self) -> Entry:
        """Who is next; there must be one."""
        if self._urgent:
            return next(iter(self._urgent.values()))
        return next(iter(next(iter(self._turns.values())).values()))

    def add(self, sequence: int, request: Request, *, first: bool) -> None:
        """Join: behind one's own, or with ``first`` ahead of everybody."""
        if first:
            self._urgent[request.id] = (sequence, request)
            self._urgent.move_to_end(request.id, last=False)
        else:
            lane = self._turns.get(request.user)
            if lane is None:
                lane = self._turns[request.user] = OrderedDict()
            lane[request.id] = (sequence, request)
        self._length += 1

    def remove(self, request: Request) -> None:
        """Leave; if it was this request's turn, the next is another user's."""
        self._length -= 1
        if self._urgent.pop(request.id, None) is not None:
            return
        lane = self._turns[request.user]
        turn = next(iter(lane)) == request.id and next(iter(self._turns)) == request.user
        del lane[request.id]
        if not lane:
            del self._turns[request.user]
        elif turn:
            self._turns.move_to_end(request.user)
