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


def table(rows: Sequence[tuple[str, Result]], *, width: int | None = None) -> str:
    """Results side by side, as text; the first column names the run.

    :param width: of the terminal: columns that do not fit come below, with the names again.
    """
    names = ["", *(name for name, _ in rows)]
    first = max(map(len, names))
    blocks: list[list[list[str]]] = []
    used = 0
    for title, key, form in COLUMNS:
        column = [title, *(form.format(getattr(result, key)) for _, result in rows)]
        wide = max(map(len, column))
        if not blocks or (width is not None and used + 2 + wide > width):
            blocks.append([])
            used = first
        blocks[-1].append([cell.rjust(wide) for cell in column])
        used += 2 + wide
    return "\n\n".join(
        "\n".join("  ".join([name.ljust(first), *cells]).rstrip() for name, *cells in zip(names, *block, strict=True))
        for block in blocks
    )


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


def _style(number: int, count: int) -> dict[str, Any]:
    """Lines that lie on each other stay apart: each later one is thinner and broken differently."""
    dashes: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (3, 2)), (0, (1, 1)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1)))
    width = 1.8 if count == 1 else max(1.0, 3.0 - 0.4 * number)
    return {"linestyle": dashes[number % len(dashes)], "linewidth": width}


def _legend(figure: Any, columns: int) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


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
        style = _style(number, len(runs))
        left.plot(latencies[keep], 100 * (keep + 1) / len(latencies), label=name, **style)
        right.plot(latencies[keep], 100 * (1.0 - keep / len(latencies)), **style)
    left.set(xscale="log", xlabel="latency, ms", ylabel="requests answered by then, %", ylim=(0, 101), title="Latency")
    right.set(xscale="log", yscale="log", xlabel="latency, ms", ylabel="requests that are slower, %", title="Its tail")
    for share in (5, 1):
        right.axhline(share, color="0.6", linewidth=0.8)
        right.annotate(f"p{100 - share}", (1.0, share), xycoords=("axes fraction", "data"), va="bottom", ha="right")
    bounds = {bound for _, record in runs for bound in record.slo[:1]}
    longest = max((max(record.latencies) for _, record in runs if record.latencies), default=0.0)
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
        for bound in bounds:
            if bound <= 2 * longest:  # otherwise it would squeeze what there is to see
                axes.axvline(bound, color="0.4", linestyle=":", linewidth=1.2)
                axes.annotate("bound", (bound, 0.02), xycoords=("data", "axes fraction"), rotation=90, ha="right")
    right.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for axes in (left, right):
        few = np.ptp(np.log10(axes.get_xlim())) < 1  # fewer than two powers of ten: name what is between
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter((lambda value, _: f"{value:g}") if few else "")
    _legend(figure, 6)
    return figure


def instances_over_time(runs: Sequence[tuple[str, Record]]) -> Any:
    """Instances and waiting requests over time."""
    plt = _pyplot()
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(10, 5), sharex=True, layout="constrained", height_ratios=(2, 1))
    most = 0
    for number, (name, record) in enumerate(runs):
        at, style = [moment.at for moment in record.timeline], _style(number, len(runs))
        top.step(at, [m.instances for m in record.timeline], label=name, where="post", **style)
        bottom.step(at, [m.waiting for m in record.timeline], where="post", **style)
        most = max(most, *(m.waiting for m in record.timeline), 0)
    top.set(ylabel="instances", title="Instances and queue", ylim=(0, None))
    bottom.set(xlabel="time, s", ylabel="requests waiting", ylim=(0, max(1.0, 1.05 * most)))
    for axes in (top, bottom):
        axes.grid(visible=True, alpha=0.3)
        axes.yaxis.get_major_locator().set_params(integer=True)
    _legend(figure, 3)
    return figure


def shares(runs: Sequence[tuple[str, Record]]) -> Any:
    """Cold, warm and hot shares; cost beside them."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 0.5 * len(runs) + 2), sharey=True, layout="constrained")
    names = [name for name, _ in runs]
    left_edge = np.zeros(len(runs))
    for path in next(iter(runs))[1].paths:
        part = np.array([100 * record.paths[path] / max(1, sum(record.paths.values())) for _, record in runs])
        left.barh(names, part, left=left_edge, label=path.value, color=PATH_COLOURS[path.value])
        left_edge += part
    for number, (_, record) in enumerate(runs):
        counts = ", ".join(f"{count:,} {path.value}" for path, count in record.paths.items())
        left.annotate(counts, (2, number), va="center", fontsize=8, bbox={"facecolor": "white", "edgecolor": "none"})
    left.set(xlabel="share of requests, %", title="Cold, warm, hot", xlim=(0, 100))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    bars = right.barh(names, [record.gb_seconds for _, record in runs], color="#228833")
    right.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    right.set(xlabel="GB-seconds", title="Cost")
    right.margins(x=0.18)
    left.invert_yaxis()
    return figure


def attainment(runs: Sequence[tuple[str, Record]]) -> Any:
    """Share answered in time, by when the request came."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(10, 3.5), layout="constrained")
    for number, (name, record) in enumerate(runs):
        arrived, good = np.asarray(record.arrived), np.asarray(record.latencies) <= np.asarray(record.slo)
        if not len(arrived):
            continue
        edges = np.linspace(arrived.min(), max(arrived.max(), arrived.min() + 1), 61)
        counts, _ = np.histogram(arrived, edges)
        kept, _ = np.histogram(arrived[good], edges)
        seen = counts > 0
        marker = "o" if np.count_nonzero(seen) < 3 else ""
        share = 100 * kept[seen] / counts[seen]
        axes.plot(edges[:-1][seen], share, label=name, marker=marker, **_style(number, len(runs)))
    axes.set(
        xlabel="time of arrival, s", ylabel="answered in time, %", title="Answered within the bound", ylim=(-2, 102)
    )
    axes.grid(visible=True, alpha=0.3)
    _legend(figure, 3)
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
            figure, buffer = draw([(title.split(",", maxsplit=1)[0], record)]), BytesIO()
            figure.savefig(buffer, format="png", dpi=110)
            plt.close(figure)
            data = base64.b64encode(buffer.getvalue()).decode("ascii")
            images.append(f'<img alt="plot: {name}" src="data:image/png;base64,{data}">')
        plots = "".join(images)
    style = (
        "body{font-family:sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
        "th{text-align:left;font-weight:normal;padding-right:2em}td{text-align:right;font-variant-numeric:tabular-nums}"
        "tr:nth-child(even){background:#f2f2f2}td,th{padding:.2em .6em}table{border-collapse:collapse}"
        "img{max-width:100%;display:block;margin:1em 0}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{style}</style><h1>{escape(title)}</h1><table>{rows}</table>{plots}"
        f"<h2>Costs</h2><p>{escape(origin)}</p></html>\n"
    )
