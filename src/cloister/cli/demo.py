"""The main job on real data, in two minutes: serve encrypted models, and show what the cloud tries in vain.

  cloister demo [--json] [--keep FOLDER]

It runs in a **simulated TEE, which protects nothing**; everything else is real: processes, encryption, attestation of
the code that is installed, 569 patients. Exit status 1 when a line fails. Needs pip install 'cloister[demo]'.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from cloister.cli.output import Output
from cloister.testing.demonstration.refusals import try_everything
from cloister.testing.demonstration.report import Line, Report
from cloister.testing.demonstration.search import search
from cloister.testing.demonstration.serving import STAGES, Secrets, serve_patients, serve_vision
from cloister.testing.demonstration.stage import raised


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this folder and leave it there")
    parser.add_argument("--patients-only", action="store_true", help="leave out the three vision models")


def run(args: argparse.Namespace, out: Output) -> int:
    """All acts; the report at the end."""
    started = time.perf_counter()
    report = Report(say=lambda line: out.line(_line(line)))
    progress = _progress(out)
    place = nullcontext(str(args.keep)) if args.keep else tempfile.TemporaryDirectory(prefix="cloister-demo-")
    out.line("Cloister, in an INSECURE SIMULATION of a TEE. Everything else is real.\n")
    with place as folder, raised(Path(folder) / "cloud") as stage:
        secrets = Secrets([], [], [])
        progress("patients: training, packing, publishing, inferring")
        patients = serve_patients(stage, report, secrets)
        secrets.weights.append(patients.onnx)
        if not args.patients_only:
            serve_vision(stage, report, secrets, progress)
        progress("refusals")
        try_everything(stage, report, patients)
        progress("searching what the cloud held")
        search(stage, report, secrets)
        progress("stopping")
    report.facts["seconds"] = round(time.perf_counter() - started, 1)
    if not out.as_json:
        _table(report)
    verdict = "every line holds" if report.holds else "NOT every line holds"
    out.result(report.as_json(), f"\n{verdict}; {report.facts['seconds']} s. Nothing is left running.")
    return 0 if report.holds else 1


def _line(line: Line) -> str:
    code = f" [{line.code}]" if line.code else ""
    return f"  {'ok  ' if line.holds else 'FAIL'}  {line.claim}: {line.found}{code}"


def _progress(out: Output) -> Callable[[str], None]:
    def show(what: str) -> None:
        if not out.as_json and sys.stderr.isatty():
            print(f"  ... {what}", file=sys.stderr, flush=True)

    return show


def _table(report: Report) -> None:
    if not report.latencies:
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(128, Console().width))
    table = Table(title="latency, milliseconds at the user", title_justify="left", box=SIMPLE)
    for name in ("model", "cold", "warm", "hot", "raw engine", "hot / raw"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for item in report.latencies:
        row = (item.cold_ms, item.warm_ms, item.hot_ms, item.raw_ms)
        table.add_row(item.model, *(f"{value:.1f}" for value in row), f"{item.hot_ms / item.raw_ms:.2f}")
    console.print()
    console.print(table)
    stages = Table(
        title="by stage, milliseconds (cold = new instance, warm = new model, hot = all there)",
        title_justify="left",
        box=SIMPLE,
    )
    stages.add_column("stage", no_wrap=True)
    for item in report.latencies:
        for path in item.stages:
            stages.add_column(f"{item.model}\n{path}" if path == "cold" else f"\n{path}", justify="right", no_wrap=True)
    for name in STAGES:
        cells = [values.get(name) for item in report.latencies for values in item.stages.values()]
        stages.add_row(name, *("" if value is None else f"{value:.1f}" for value in cells))
    console.print(stages)
