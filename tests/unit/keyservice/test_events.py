"""Whom which entry concerns, with old blocks written down: the same answers as a plain list's."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from cloister.keyservice.state.events import PLACES, Concerned, Events
from cloister.keyservice.state.tables import Journal

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32
BLOCK = 4
parties = st.lists(st.sets(st.sampled_from([A, B, C])), max_size=40)


def filled(entries: list[set[bytes]]) -> tuple[Events, Journal, dict[bytes, list[int]]]:
    journal = Journal()
    events = Events(journal, BLOCK)
    plain: dict[bytes, list[int]] = {A: [], B: [], C: []}
    for index, concerned in enumerate(entries):
        for party in sorted(concerned):
            events.append(party, index)
            plain[party].append(index)
    return events, journal, plain


def stored(events: Events, count: int) -> dict[int, Concerned]:
    blocks: dict[int, Concerned] = {}
    for number in range(count):
        blocks[number] = {party: array(PLACES, packed) for party, packed in events.concerned(number).items()}
        events.give_up(number)
    return blocks


@given(parties, st.integers(0, 12), st.integers(0, 50), st.integers(1, 9))
def test_blocks_that_were_given_up_answer_as_before(
    entries: list[set[bytes]], given_up: int, least: int, limit: int
) -> None:
    events, _, plain = filled(entries)
    blocks = stored(events, min(given_up, len(entries) // BLOCK))
    again = Events(Journal(), BLOCK)
    complete = len(entries) // BLOCK
    packed = {party: Events.packed(numbers, complete) for party, numbers in events.parties().items()}
    rest = events.concerned(complete)
    blocks |= stored(events, complete) if not given_up else {}
    for party, indices in plain.items():
        assert events.after(party, least, limit, blocks.__getitem__) == [i for i in indices if i >= least][:limit]
        assert events.newest(party, limit, blocks.__getitem__) == indices[-limit:]
    again.restore(packed, complete, rest)
    for number in range(complete):
        blocks.setdefault(number, {p: array(PLACES, v) for p, v in events.concerned(number).items()})
    for party, indices in plain.items():
        assert again.after(party, 0, 99, blocks.__getitem__) == indices


@given(parties, parties)
def test_what_is_taken_back_was_never_there(kept: list[set[bytes]], lost: list[set[bytes]]) -> None:
    events, journal, plain = filled(kept)
    journal.keep()
    for index, concerned in enumerate(lost, len(kept)):
        for party in sorted(concerned):
            events.append(party, index)
    journal.rollback()
    for party, indices in plain.items():
        assert events.after(party, 0, 99, {}.__getitem__) == indices
    assert set(events.parties()) == {party for party, indices in plain.items() if indices}
