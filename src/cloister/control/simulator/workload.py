"""Arrivals: generated (Poisson, MMPP, interactive sessions, Zipf, bursts) or read (CSV, Azure Functions traces).

Generators are deterministic for a seed. A model's name decides its costs, through the profile.
"""

from __future__ import annotations

import csv
import heapq
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from cloister.base.errors import InvalidInput

MINUTES_A_DAY: Final = 1440
MAX_TIME_S: Final = 10 * 365 * 86400.0


class Arrival(NamedTuple):
    """One request to come."""

    time_s: float
    model: str
    user: str


def poisson(
    rate: float, duration_s: float, model: str, *, seed: int, user: str = "user", start_s: float = 0.0
) -> list[Arrival]:
    """Arrivals of one model at ``rate`` a second."""
    rng = np.random.default_rng(seed)
    count = int(rng.poisson(rate * duration_s))
    return [Arrival(start_s + float(t), model, user) for t in np.sort(rng.uniform(0.0, duration_s, count))]


def mmpp(
    rates: Sequence[float], mean_stay_s: float, duration_s: float, model: str, *, seed: int, user: str = "user"
) -> list[Arrival]:
    """Markov-modulated Poisson process: the rate jumps between ``rates``, staying ``mean_stay_s`` on average."""
    rng = np.random.default_rng(seed)
    out: list[Arrival] = []
    now, state = 0.0, 0
    while now < duration_s:
        stay = min(float(rng.exponential(mean_stay_s)), duration_s - now)
        count = int(rng.poisson(rates[state] * stay))
        out.extend(Arrival(now + float(t), model, user) for t in np.sort(rng.uniform(0.0, stay, count)))
        now += stay
        state = int(rng.choice([i for i in range(len(rates)) if i != state])) if len(rates) > 1 else 0
    return out


def sessions(
    models: Sequence[str], every_s: float, think_s: float, duration_s: float, *, seed: int, rounds: int = 1
) -> list[Arrival]:
    """Users who come every ``every_s`` on average and try ``models`` in turn, ``think_s`` on average apart."""
    rng = np.random.default_rng(seed)
    out: list[Arrival] = []
    begin, number = float(rng.exponential(every_s)), 0
    while begin < duration_s:
        at = begin
        for _ in range(rounds):
            for model in models:
                if at < duration_s:
                    out.append(Arrival(at, model, f"visitor-{number}"))
                at += float(rng.exponential(think_s))
        begin += float(rng.exponential(every_s))
        number += 1
    return sorted(out)


def zipf(
    rate: float, duration_s: float, count: int, *, seed: int, exponent: float = 1.1, prefix: str = "model"
) -> list[Arrival]:
    """Poisson arrivals over ``count`` models whose popularity falls as rank to the power of ``-exponent``."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, count + 1, dtype=float) ** -exponent
    number = int(rng.poisson(rate * duration_s))
    times = np.sort(rng.uniform(0.0, duration_s, number)).tolist()
    picks = rng.choice(count, size=number, p=weights / weights.sum()).tolist()
    names = [f"{prefix}-{n:05d}" for n in range(count)]
    return [Arrival(t, names[p], "user") for t, p in zip(times, picks, strict=True)]


def burst(
    quiet: float, loud: float, *, begin_s: float, length_s: float, duration_s: float, model: str, seed: int
) -> list[Arrival]:
    """A steady trickle with one burst in it (rates a second)."""
    calm = poisson(quiet, duration_s, model, seed=seed)
    storm = poisson(loud, length_s, model, seed=seed + 1, start_s=begin_s)
    return merge(calm, storm)


def merge(*parts: Iterable[Arrival]) -> list[Arrival]:
    """Several workloads at once."""
    return list(heapq.merge(*parts))


def steady_and_interactive(duration_s: float, *, seed: int, rate: float = 4.0, rare: int = 5) -> list[Arrival]:
    """The packer's own workload (after SeSeMI): two steady models, and visitors who try several rare ones in turn."""
    steady = (poisson(rate, duration_s, f"steady-{n}", seed=seed + n) for n in range(2))
    return merge(*steady, sessions([f"rare-{n}" for n in range(rare)], 45.0, 3.0, duration_s, seed=seed + 10))


def _bad(path: Path, line: int, message: str) -> InvalidInput:
    return InvalidInput("workload-malformed", f"{path}, line {line}: {message}")


def _time(text: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise _bad(path, line, f"{text!r} is not a time in seconds") from error
    if not 0.0 <= value <= MAX_TIME_S:
        raise _bad(path, line, f"a time must be between 0 and {MAX_TIME_S:g} s")
    return value


def read_workload(path: Path, *, seed: int = 0) -> list[Arrival]:
    """Arrivals from a CSV file, recognised by its header; sorted by time.

    * ``time_s,model[,user]``: as it says.
    * ``app,func,end_timestamp,duration``: the Azure Functions 2021 trace; a function is a model, an application its
      user, and a request starts ``duration`` before its end. The profile says what it costs here.
    * ``HashOwner,HashApp,HashFunction,Trigger,1,...,1440``: the 2019 trace, counts per minute; spread evenly at random.

    :raises InvalidInput: ``file-unreadable``, ``workload-malformed`` with the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = [name.strip() for name in next(rows, [])]
            if header[:2] == ["time_s", "model"]:
                arrivals = list(_plain(path, header, rows))
            elif header == ["app", "func", "end_timestamp", "duration"]:
                arrivals = list(_azure_2021(path, rows))
            elif header[:4] == ["HashOwner", "HashApp", "HashFunction", "Trigger"]:
                arrivals = list(_azure_2019(path, header, rows, seed))
            else:
                raise _bad(path, 1, "the header must be time_s,model[,user] or that of an Azure Functions trace")
    except OSError as error:
        raise InvalidInput("file-unreadable", f"cannot read the workload {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput("workload-malformed", f"{path} is not a CSV file in UTF-8: {error}") from error
    arrivals.sort(key=lambda a: a.time_s)
    return arrivals


def _plain(path: Path, header: list[str], rows: Iterator[list[str]]) -> Iterator[Arrival]:
    user_at = header.index("user") if "user" in header else None
    for line, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) != len(header):
            raise _bad(path, line, f"{len(row)} fields where the header has {len(header)}")
        if not row[1]:
            raise _bad(path, line, "no model")
        yield Arrival(_time(row[0], path, line), row[1], row[user_at] if user_at is not None else "user")


def _azure_2021(path: Path, rows: Iterator[list[str]]) -> Iterator[Arrival]:
    for line, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) != 4:
            raise _bad(path, line, "expected app,func,end_timestamp,duration")
        begin = _time(row[2], path, line) - _time(row[3], path, line)
        yield Arrival(max(0.0, begin), row[1], row[0])


def _azure_2019(path: Path, header: list[str], rows: Iterator[list[str]], seed: int) -> Iterator[Arrival]:
    rng = np.random.default_rng(seed)
    if len(header) > 4 + MINUTES_A_DAY:
        raise _bad(path, 1, f"more than {MINUTES_A_DAY} minutes")
    for line, row in enumerate(rows, 2):
        if not row:
            continue
        if len(row) != len(header):
            raise _bad(path, line, f"{len(row)} fields where the header has {len(header)}")
        for minute, text in enumerate(row[4:]):
            if not text.isdigit() or len(text) > 7:
                raise _bad(path, line, f"{text!r} is not a count")
            for second in sorted(rng.uniform(0.0, 60.0, int(text)).tolist()):
                yield Arrival(60.0 * minute + second, row[2], row[0])
