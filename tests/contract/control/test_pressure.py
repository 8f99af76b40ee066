"""One contract for every pressure source, over fake trees that look like the kernel's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloister.adapters.pressure import (
    ChurnPressure,
    EpcPressure,
    FaultPressure,
    PressureSource,
    PsiPressure,
    WorstPressure,
)
from cloister.base.errors import Unavailable


@dataclass
class Rig:
    """A source, and how to make its platform lose time or lose the signal."""

    source: PressureSource
    lose: Callable[[float], None]  # total seconds lost so far
    remove: Callable[[], None]


def epc(tmp: Path) -> Rig:
    (tmp / "misc.max").write_text("sgx_epc 1000000\nsev 5\n")
    (tmp / "misc.current").write_text("sgx_epc 100000\nsev 0\n")

    def lose(seconds: float) -> None:
        (tmp / "misc.events").write_text(f"sgx_epc.max {int(seconds * 1000)}\n")

    return Rig(EpcPressure(tmp), lose, (tmp / "misc.current").unlink)


def psi(tmp: Path) -> Rig:
    path = tmp / "memory.pressure"

    def lose(seconds: float) -> None:
        path.write_text(
            f"some avg10=1.00 avg60=0.50 avg300=0.10 total={int(seconds * 1e6)}\n"
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
        )

    return Rig(PsiPressure(path), lose, path.unlink)


def faults(tmp: Path) -> Rig:
    path = tmp / "vmstat"

    def lose(seconds: float) -> None:
        path.write_text(f"pgfault 123\npgmajfault {int(seconds * 10_000)}\n")

    return Rig(FaultPressure(path), lose, path.unlink)


def churn(_tmp: Path) -> Rig:
    total = [0]

    def lose(seconds: float) -> None:
        total[0] = int(seconds * 1e9)

    def read() -> int:
        if total[0] < 0:
            raise Unavailable("pressure-unavailable", "the runtime is gone")
        return total[0]

    return Rig(ChurnPressure(read, bytes_per_second=1e9), lose, lambda: total.__setitem__(0, -1))


def worst(tmp: Path) -> Rig:
    inner = churn(tmp)
    absent = PsiPressure(tmp / "not-there")
    return Rig(WorstPressure(inner.source, {"psi": absent}), inner.lose, inner.remove)


@pytest.fixture(params=[epc, psi, faults, churn, worst])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    made: Rig = request.param(tmp_path)
    made.lose(0.0)
    return made


def test_the_first_reading_is_calm(rig: Rig) -> None:
    rig.lose(5.0)
    assert rig.source.read(100.0) == 0.0


def test_the_share_of_time_lost_is_read(rig: Rig) -> None:
    rig.source.read(100.0)
    rig.lose(1.0)
    assert rig.source.read(104.0) == pytest.approx(0.25)
    assert rig.source.read(108.0) == 0.0


def test_it_never_reaches_one(rig: Rig) -> None:
    rig.source.read(100.0)
    rig.lose(1000.0)
    assert 0.9 < rig.source.read(101.0) < 1.0


def test_a_counter_that_starts_again_or_a_clock_that_stands_still_is_calm(rig: Rig) -> None:
    rig.lose(9.0)
    rig.source.read(100.0)
    rig.lose(1.0)
    assert rig.source.read(101.0) == 0.0
    rig.lose(2.0)
    assert rig.source.read(101.0) == 0.0


def test_a_signal_that_is_not_there_is_unavailable_not_zero(rig: Rig) -> None:
    rig.remove()
    with pytest.raises(Unavailable, match="pressure-unavailable"):
        rig.source.read(100.0)


@pytest.mark.parametrize(
    "text", ["", "some avg10=0.00\n", "some total=soon\n", "full total=4\n", "\n\n", "some total=-4"]
)
def test_a_stall_file_of_another_form_is_unavailable(text: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_text(text)
    with pytest.raises(Unavailable):
        PsiPressure(tmp_path / "p").read(1.0)


def test_a_full_page_cache_presses_before_anything_was_evicted(tmp_path: Path) -> None:
    (tmp_path / "misc.max").write_text("sgx_epc max\n")
    (tmp_path / "capacity").write_text("sgx_epc 1000\n")
    (tmp_path / "misc.events").write_text("")
    readings = []
    for used in (500, 900, 950, 1000):
        (tmp_path / "misc.current").write_text(f"sgx_epc {used}\n")
        readings.append(EpcPressure(tmp_path, capacity=tmp_path / "capacity").read(1.0))
    assert readings[:2] == [0.0, 0.0]
    assert 0.0 < readings[2] < readings[3] < 1.0
    with pytest.raises(Unavailable, match=r"misc\.capacity"):
        EpcPressure(tmp_path).read(1.0)


def test_the_worst_source_counts_and_absent_ones_are_named(tmp_path: Path) -> None:
    calm, stalled = churn(tmp_path), psi(tmp_path)
    stalled.lose(0.0)
    source = WorstPressure(calm.source, {"psi": stalled.source, "epc": EpcPressure(tmp_path / "none")})
    source.read(0.0)
    stalled.lose(0.5)
    assert source.read(1.0) == pytest.approx(0.5)
    assert source.missing == ("epc",)
