"""A runtime's evidence for whoever asks (spec/protocol.md, clause 7.10)."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloister.attest.simulation.parse import parse
from cloister.attest.types import Evidence, TeeType
from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import PRESENCE_BURST, PRESENCE_INTERVAL_S
from cloister.runtime.presence import PresenceDesk
from cloister.testing.clock import FakeClock
from cloister.testing.tee import SimulatedTee
from cloister.wire.presence import Presence
from cloister.wire.provisioning import runtime_report_data

BUNDLE = b"b" * 32


class Slow:
    """An attester that waits until it is let go."""

    tee = TeeType.SIMULATION

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def evidence(self, report_data: bytes) -> Evidence:
        self.begun.set()
        assert self.go.wait(10)
        raise Unavailable("evidence-unavailable", "the device is away")


def desk(clock: FakeClock, executor: ThreadPoolExecutor, attester: object = None) -> PresenceDesk:
    tee = SimulatedTee("runtime", clock=clock)
    return PresenceDesk(
        attester or tee.attester(),  # type: ignore[arg-type]
        tee.configuration,
        bundle_digest=lambda: BUNDLE,
        executor=executor,
        clock=clock,
    )


def test_the_evidence_is_over_the_callers_nonce_and_no_other() -> None:
    clock = FakeClock()
    with ThreadPoolExecutor(1) as executor:
        here = desk(clock, executor)
        first = Presence.decode(asyncio.run(here.answer(b"1" * 32)))
        second = Presence.decode(asyncio.run(here.answer(b"2" * 32)))
    assert parse(first.evidence.body) != parse(second.evidence.body)
    assert first.bundle_digest == BUNDLE
    assert first.report_data(b"1" * 32) != first.report_data(b"2" * 32)
    for presence, nonce in ((first, b"1" * 32), (second, b"2" * 32)):
        assert presence.evidence.tee == "insecure-simulation"
        assert presence.report_data(nonce) in presence.evidence.body
    changed = Presence(first.configuration, b"c" * 32, first.evidence)
    assert changed.report_data(b"1" * 32) not in first.evidence.body


@pytest.mark.parametrize("nonce", [b"", b"n" * 31, b"n" * 33])
def test_a_nonce_has_32_bytes(nonce: bytes) -> None:
    with ThreadPoolExecutor(1) as executor:
        here = desk(FakeClock(), executor)
        with pytest.raises(InvalidInput, match="nonce-length"):
            asyncio.run(here.answer(nonce))


def test_quotes_are_few() -> None:
    clock = FakeClock()
    with ThreadPoolExecutor(1) as executor:
        here = desk(clock, executor)
        for _ in range(PRESENCE_BURST):
            asyncio.run(here.answer(b"n" * 32))
        with pytest.raises(Unavailable) as caught:
            asyncio.run(here.answer(b"n" * 32))
        assert caught.value.code == "evidence-busy"
        assert 0 < (caught.value.retry_after or 0) <= PRESENCE_INTERVAL_S
        clock.advance(PRESENCE_INTERVAL_S)
        asyncio.run(here.answer(b"n" * 32))
        with pytest.raises(Unavailable):
            asyncio.run(here.answer(b"n" * 32))
        clock.advance(10 * PRESENCE_BURST * PRESENCE_INTERVAL_S)
        for _ in range(PRESENCE_BURST):
            asyncio.run(here.answer(b"n" * 32))
        with pytest.raises(Unavailable):
            asyncio.run(here.answer(b"n" * 32))


def test_one_quote_at_a_time_and_a_failure_frees_the_place() -> None:
    slow = Slow()

    async def scenario(here: PresenceDesk) -> None:
        loop = asyncio.get_running_loop()
        first = asyncio.ensure_future(here.answer(b"1" * 32))
        assert await loop.run_in_executor(None, slow.begun.wait, 10)
        with pytest.raises(Unavailable, match="evidence-busy"):
            await here.answer(b"2" * 32)
        slow.go.set()
        with pytest.raises(Unavailable, match="evidence-unavailable"):
            await first
        with pytest.raises(Unavailable, match="evidence-unavailable"):
            await here.answer(b"3" * 32)

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario(desk(FakeClock(), executor, slow)))


def test_presence_opens_no_session() -> None:
    """S9: under one's own nonce, it is never over what provisioning demands, whatever the nonce is."""
    with ThreadPoolExecutor(1) as executor:
        presence = Presence.decode(asyncio.run(desk(FakeClock(), executor).answer(b"n" * 32)))
    for key in (b"n" * 32, b"n" * 1216):
        bound = runtime_report_data(key, b"n" * 32, presence.configuration, BUNDLE)
        assert bound not in presence.evidence.body


@pytest.mark.parametrize("at", range(0, 200, 7))
def test_a_changed_answer_is_malformed_or_another(at: int) -> None:
    with ThreadPoolExecutor(1) as executor:
        data = asyncio.run(desk(FakeClock(), executor).answer(b"n" * 32))
    good = Presence.decode(data)
    changed = bytearray(data)
    changed[at % len(data)] ^= 0x41
    with contextlib.suppress(InvalidInput):
        assert Presence.decode(bytes(changed)) != good
    with pytest.raises(InvalidInput):
        Presence.decode(data + b"\x00")
