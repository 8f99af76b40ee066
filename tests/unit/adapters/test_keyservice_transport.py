"""How callers reach one of several replicas of a KeyService."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cloister.adapters.http.answer import Answer
from cloister.adapters.http.head import Headers
from cloister.adapters.keyservice import HttpTransport
from cloister.base.errors import CloisterError, Unavailable


class Network:
    """``HttpClient``: what each address answers; and who was asked."""

    def __init__(self, **answers: Unavailable | Answer) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def request(self, _method: str, origin: str, _path: str, **_: Any) -> Answer:
        self.asked.append(origin)
        answer = self.answers[origin]
        if isinstance(answer, Unavailable):
            raise answer
        return answer


GOOD = Answer(200, Headers(), b"good")
REFUSED = Unavailable("connect-failed", "nobody there")
CUT = Unavailable("no-answer", "gone")


def problem(code: str) -> Answer:
    body = {"type": f"urn:cloister:error:{code}", "title": "unavailable", "status": 503, "detail": "d"}
    return Answer(503, Headers([("content-type", "application/problem+json")]), json.dumps(body).encode())


def transport(network: Network, origins: str = "a, b,c") -> HttpTransport:
    return HttpTransport(network, origins)  # type: ignore[arg-type]


def test_one_that_nobody_listens_at_is_left_for_the_next_and_stays_left() -> None:
    network = Network(a=REFUSED, b=GOOD, c=GOOD)
    way = transport(network)
    assert [way.post("/p", b"", limit=9), way.get("/g", limit=9)] == [b"good", b"good"]
    assert network.asked == ["a", "b", "b"]


def test_what_may_have_arrived_is_not_sent_to_another_by_itself() -> None:
    network = Network(a=CUT, b=GOOD, c=GOOD)
    way = transport(network)
    with pytest.raises(Unavailable, match="keyservice-unreachable"):
        way.post("/p", b"statement", limit=9)
    assert network.asked == ["a"]
    assert way.post("/p", b"statement", limit=9) == b"good"  # whoever asks again knows that he may
    assert network.asked == ["a", "b"]
    network = Network(a=CUT, b=GOOD, c=GOOD)
    assert transport(network).get("/g", limit=9) == b"good"  # what changes nothing is asked again at once


@pytest.mark.parametrize("code", ["keyservice-no-leader", "keyservice-leader-away", "keyservice-closing"])
def test_one_that_knows_of_none_that_leads_is_left_after_its_answer(code: str) -> None:
    network = Network(a=problem(code), b=GOOD, c=GOOD)
    way = transport(network)
    with pytest.raises(CloisterError, match=code):
        way.post("/p", b"", limit=9)
    assert way.post("/p", b"", limit=9) == b"good"
    assert network.asked == ["a", "b"]


def test_with_one_address_or_none_that_answers_it_ends() -> None:
    for origins in ("a", "a,b,c"):
        network = Network(a=REFUSED, b=REFUSED, c=REFUSED)
        with pytest.raises(Unavailable, match="keyservice-unreachable"):
            transport(network, origins).post("/p", b"", limit=9)
        assert network.asked == origins.split(",")
    network = Network(a=problem("call-epoch-gone"), b=GOOD, c=GOOD)
    for _ in range(2):  # an answer that is about the call, not about who leads
        with pytest.raises(Unavailable, match="call-epoch-gone"):
            transport(network).post("/p", b"", limit=9)
    assert network.asked == ["a", "a"]
