"""Pressure on secure memory, read from what the platform has; the share of time lost is what a balancer avoids.

:func:`read_pressure` gives the raw figures that a runtime reports of itself. A source answers one question: since the
last reading, what share of the time (0 to below 1) was lost to memory? Files that are not there make a source
unavailable, never zero: "no pressure" and "cannot see" are different answers.

* :class:`EpcPressure`: SGX enclave page cache through the misc cgroup (``misc.current``, ``misc.max`` or the root's
  ``misc.capacity``, ``misc.events``; lines of ``sgx_epc <bytes>``).
* :class:`PsiPressure`: pressure stall information, ``/proc/pressure/memory`` or a cgroup's ``memory.pressure``.
* :class:`FaultPressure`: major page faults, ``pgmajfault`` in ``/proc/vmstat`` or a cgroup's ``memory.stat``.
* :class:`ChurnPressure`: the runtime's own counter of bytes fetched and decrypted again; there on every platform.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from cloister.base.errors import Unavailable

EPC: Final = "sgx_epc"
MOST: Final = 0.99  # a share of one would mean that nothing ever ends
MAX_FILE: Final = 64 * 1024  # these files have a few hundred bytes, vmstat a few thousand

_PSI: Final = re.compile(r"^some avg10=([0-9.]+)", re.MULTILINE)
_FAULTS: Final = re.compile(r"^pgmajfault ([0-9]+)", re.MULTILINE)


def read_pressure(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> dict[str, float]:
    """What can be read: ``memory_some_avg10`` (percent of time stalled), ``major_faults``, ``sgx_epc`` (bytes)."""
    found: dict[str, float] = {}
    if match := _PSI.search(_read(proc / "pressure" / "memory")):
        found["memory_some_avg10"] = float(match[1])
    if match := _FAULTS.search(_read(proc / "vmstat")):
        found["major_faults"] = float(match[1])
    for line in _read(cgroup / "misc.current").splitlines():
        name, _, value = line.partition(" ")
        if name == "sgx_epc" and value.isdigit():
            found["sgx_epc"] = float(value)
    return found


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE).decode("ascii", "replace")
    except OSError:
        return ""


class PressureSource(Protocol):
    """Port."""

    def read(self, now: float) -> float:
        """Share of time lost since the last call, 0 to below 1; 0 at the first.

        :param now: seconds on a monotonic clock.
        :raises Unavailable: ``pressure-unavailable``: this platform does not have the signal, or not in this form.
        """


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable("pressure-unavailable", f"cannot read {path}: {error}") from error


def _count(text: str, path: Path) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise Unavailable("pressure-unavailable", f"{path}: {text!r} is not a count")
    return int(text)


def _pairs(path: Path) -> dict[str, str]:
    return {parts[0]: parts[1] for line in _text(path).splitlines() if len(parts := line.split()) == 2}


def _named(path: Path, name: str) -> str:
    try:
        return _pairs(path)[name]
    except KeyError:
        raise Unavailable("pressure-unavailable", f"{path} has no {name}") from None


class _Rate:
    """A counter that only grows, as growth per second; 0 at the first reading and after a restart of the counter."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def of(self, value: float, now: float) -> float:
        last, self._last = self._last, (value, now)
        if last is None or now <= last[1] or value < last[0]:
            return 0.0
        return (value - last[0]) / (now - last[1])


def _share(value: float) -> float:
    return min(MOST, max(0.0, value))


class EpcPressure:
    """SGX EPC of one cgroup.

    The kernel counts how often a limit was hit (``misc.events``), each time because pages had to go. One hit is taken
    to cost ``seconds_per_event``; how full it is counts only beyond ``full_at`` of the limit, where reclaim begins.
    """

    def __init__(
        self, cgroup: Path, *, capacity: Path | None = None, seconds_per_event: float = 1e-3, full_at: float = 0.9
    ) -> None:
        self._cgroup = cgroup
        self._capacity = capacity
        self._cost = seconds_per_event
        self._full_at = full_at
        self._rate = _Rate()

    def read(self, now: float) -> float:
        """See :class:`PressureSource`."""
        used = _count(_named(self._cgroup / "misc.current", EPC), self._cgroup / "misc.current")
        limit = self._limit()
        events = _pairs(self._cgroup / "misc.events").get(f"{EPC}.max", "0")
        stalled = self._rate.of(_count(events, self._cgroup / "misc.events"), now) * self._cost
        full = (used / limit - self._full_at) / (1.0 - self._full_at) if limit else 1.0
        return _share(max(stalled, full * 0.5))

    def _limit(self) -> int:
        path = self._cgroup / "misc.max"
        text = _named(path, EPC)
        if text == "max":
            if self._capacity is None:
                raise Unavailable("pressure-unavailable", f"{path} sets no limit and no misc.capacity was given")
            path = self._capacity
            text = _named(path, EPC)
        return _count(text, path)


class PsiPressure:
    """Pressure stall information: the time in which some task waited for memory, from the running total."""

    def __init__(self, path: Path = Path("/proc/pressure/memory")) -> None:
        self._path = path
        self._rate = _Rate()

    def read(self, now: float) -> float:
        """See :class:`PressureSource`."""
        for line in _text(self._path).splitlines():
            kind, *fields = line.split()[:8] or [""]
            if kind == "some":
                for field in fields:
                    name, _, value = field.partition("=")
                    if name == "total":
                        return _share(self._rate.of(_count(value, self._path) / 1e6, now))
        raise Unavailable("pressure-unavailable", f"{self._path} has no `some ... total=` line")


class FaultPressure:
    """Major page faults, each taken to cost ``seconds_per_fault`` (a read from the swap device)."""

    def __init__(self, path: Path = Path("/proc/vmstat"), *, seconds_per_fault: float = 1e-4) -> None:
        self._path = path
        self._cost = seconds_per_fault
        self._rate = _Rate()

    def read(self, now: float) -> float:
        """See :class:`PressureSource`."""
        return _share(self._rate.of(_count(_named(self._path, "pgmajfault"), self._path), now) * self._cost)


class ChurnPressure:
    """The runtime's own counter: bytes of models fetched and decrypted again after they had been pushed out.

    :param counter: the running total of such bytes, as the runtime reports it.
    :param bytes_per_second: how fast this runtime fetches and decrypts (from its stage costs).
    """

    def __init__(self, counter: Callable[[], int], *, bytes_per_second: float) -> None:
        self._counter = counter
        self._speed = bytes_per_second
        self._rate = _Rate()

    def read(self, now: float) -> float:
        """See :class:`PressureSource`."""
        return _share(self._rate.of(self._counter(), now) / self._speed)


class WorstPressure:
    """The largest of several sources; those this platform lacks are left out, and :attr:`missing` says which.

    :param always: a source that every platform has, as :class:`ChurnPressure`; its failure is a failure.
    """

    def __init__(self, always: PressureSource, sources: Mapping[str, PressureSource]) -> None:
        self._always = always
        self._sources = dict(sources)
        self.missing: tuple[str, ...] = ()

    def read(self, now: float) -> float:
        """See :class:`PressureSource`."""
        worst, missing = self._always.read(now), []
        for name, source in self._sources.items():
            try:
                worst = max(worst, source.read(now))
            except Unavailable:
                missing.append(name)
        self.missing = tuple(missing)
        return worst
