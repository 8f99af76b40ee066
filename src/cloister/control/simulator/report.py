"""Tables, plots and an HTML report of what a run showed. matplotlib is imported only when a plot is asked for."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np

from cloister.base.errors import Unavailable
from cloister.control.simulator.result import Result
from cloister.control.simulator.world import Record

COLUMNS: Final = (
    ("requests", "requests", "{:d}"),
    ("lost", "lost", "{:d}"),
    ("mean ms", "mean_ms", "{:.1f}"),
    ("p50 ms", "p50_ms", "{:.1f}"),
    ("p95 ms", "p95_ms", "{:.1f}"),
    ("p99 ms", "p99_ms", "{:.1f}"),
    ("cold", "cold", "{:d}"),
    ("warm", "warm", "{:d}"),
    ("hot", "hot", "{:d}"),
    ("GB-s", "gb_seconds", "{:.0f}"),
    ("instances", "instances_max", "{:d}"),
    ("in time", "slo_attainment", "{:.2%}"),
)
PATH_COLOURS: Final = {"cold": "#4477aa", "warm": "#ddaa33", "hot": "#bb5566"}  # told apart by the colour-blind too


def table(rows: Sequence[tuple[str, Result]]) -> str:
    """Results side by side, as text; the first column names the run."""
    cells = [["", *(title for title, _, _ in COLUMNS)]]
    cells += [[name, *(form.format(getattr(result, key)) for _, key, form in COLUMNS)] for name, result in rows]
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
    lines = []
    for row in cells:
        first, rest = row[0].ljust(widths[0]), (cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def _pyplot() -> Any:
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise Unavailable(
            "plots-not-installed", "plots need matplotlib", hint="Install the extra: pip install cloister[plots]"
        ) from error
    return plt


def _style(number: int) -> dict[str, Any]:
    """Lines that lie on each other stay apart: each later one is thinner and broken differently."""
    dashes: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (3, 2)), (0, (1, 1)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1)))
    return {"linestyle": dashes[number % len(dashes)], "linewidth": max(1.0, 3.0 - 0.4 * number)}


def latency_cdf(runs: Sequence[tuple[str, Record]]) -> Any:
    """Distribution of latency, one line a run; beside it the tail, where policies differ."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for number, (name, record) in enumerate(runs):
        latencies = np.sort(np.asarray(record.latencies))
        if not len(latencies):
            continue
        keep = np.unique(
            np.concatenate(
                [
                    np.linspace(0, len(latencies) - 1, 2000).astype(int),
                    np.arange(max(0, len(latencies) - 1000), len(latencies)),
                ]
            )
        )
        left.plot(latencies[keep], (keep + 1) / len(latencies), label=name, **_style(number))
        right.plot(latencies[keep], 1.0 - keep / len(latencies), **_style(number))
    left.set(xscale="log", xlabel="latency, ms", ylabel="share of requests", ylim=(0, 1.01), title="Latency")
    right.set(xscale="log", yscale="log", xlabel="latency, ms", ylabel="share that is slower", title="Its tail")
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
    figure.legend(loc="outside lower center", ncols=6)
    return figure


def instances_over_time(runs: Sequence[tuple[str, Record]]) -> Any:
    """Instances and waiting requests over time."""
    plt = _pyplot()
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained", height_ratios=(2, 1))
    for number, (name, record) in enumerate(runs):
        at = [moment.at for moment in record.timeline]
        top.step(at, [m.instances for m in record.timeline], label=name, where="post", **_style(number))
        bottom.step(at, [m.waiting for m in record.timeline], where="post", **_style(number))
    top.set(ylabel="instances", title="Instances and queue", ylim=(0, None))
    bottom.set(xlabel="time, s", ylabel="waiting", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3)
    for axes in (top, bottom):
        axes.grid(visible=True, alpha=0.3)
    return figure


def shares(runs: Sequence[tuple[str, Record]]) -> Any:
    """Cold, warm and hot shares; cost beside them."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 0.6 * len(runs) + 2), layout="constrained")
    names = [name for name, _ in runs]
    left_edge = np.zeros(len(runs))
    for path in next(iter(runs))[1].paths:
        part = np.array([100 * record.paths[path] / max(1, sum(record.paths.values())) for _, record in runs])
        left.barh(names, part, left=left_edge, label=path.value, color=PATH_COLOURS[path.value])
        left_edge += part
    left.set(xlabel="share of requests, %", title="Cold, warm, hot", xlim=(0, 100))
    figure.legend(loc="outside lower center", ncols=3)
    right.barh(names, [record.gb_seconds for _, record in runs], color="#228833")
    right.set(xlabel="GB-seconds", title="Cost")
    for axes in (left, right):
        axes.invert_yaxis()
    return figure


def attainment(runs: Sequence[tuple[str, Record]]) -> Any:
    """Share answered in time, by when the request came."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for number, (name, record) in enumerate(runs):
        arrived, good = np.asarray(record.arrived), np.asarray(record.latencies) <= np.asarray(record.slo)
        if not len(arrived):
            continue
        edges = np.linspace(arrived.min(), max(arrived.max(), arrived.min() + 1), 61)
        counts, _ = np.histogram(arrived, edges)
        kept, _ = np.histogram(arrived[good], edges)
        seen = counts > 0
        axes.plot(edges[:-1][seen], 100 * kept[seen] / counts[seen], label=name, **_style(number))
    axes.set(xlabel="time, s", ylabel="in time, %", title="Answered within the bound", ylim=(-2, 102))
    axes.grid(visible=True, alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


PLOTS: Final = {
    "latency": latency_cdf,
    "instances": instances_over_time,
    "shares": shares,
    "attainment": attainment,
}


def save_plots(record: Record, directory: Path, title: str) -> list[Path]:
    """One PNG for each plot of one run; returns their paths.

    :raises Unavailable: ``plots-not-installed``.
    """
    return compare_plots([(title, record)], directory)


def compare_plots(runs: Sequence[tuple[str, Record]], directory: Path) -> list[Path]:
    """The same plots with several runs in each."""
    plt = _pyplot()
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in PLOTS.items():
        figure = draw(runs)
        paths.append(directory / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
        plt.close(figure)
    return paths


def html_report(record: Record, result: Result, title: str, origin: str) -> str:
    """One page that stands alone; without matplotlib it has no plots and says so."""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(form.format(getattr(result, key)))}</td></tr>"
        for name, key, form in COLUMNS
    )
    try:
        plt = _pyplot()
    except Unavailable as error:
        plots = f"<p>{escape(str(error))}</p>"
    else:
        images = []
        for name, draw in PLOTS.items():
            figure, buffer = draw([(title, record)]), BytesIO()
            figure.savefig(buffer, format="png", dpi=110)
            plt.close(figure)
            data = base64.b64encode(buffer.getvalue()).decode("ascii")
            images.append(f'<img alt="{name}" src="data:image/png;base64,{data}">')
        plots = "".join(images)
    style = "body{font-family:sans-serif;max-width:60em;margin:2em auto}th{text-align:left;padding-right:2em}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{style}img{{max-width:100%}}</style><h1>{escape(title)}</h1><table>{rows}</table>{plots}"
        f"<h2>Costs</h2><p>{escape(origin)}</p></html>\n"
    )
