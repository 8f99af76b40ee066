"""Measure on this machine what `cloister simulate --profile` takes its costs from; schema: docs/reference/profile.md.

  cloister profile --output profile.json [--model FILE.onnx ...]

Starts a whole Cloister in a simulated TEE, publishes the models encrypted, and sends them cold, warm and hot requests
through the gateway: stages, memory, and how much longer an inference takes when several run at once. Without --model:
the models of `cloister demo` (needs pip install 'cloister[demo]'). Nothing is left running.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from cloister.base.errors import InvalidInput
from cloister.cli.output import Output
from cloister.control.simulator.profile import parse_profile
from cloister.testing.demonstration.serving import PATIENTS, VISION
from cloister.testing.local_cloud import LocalCloud
from cloister.testing.models.patients import patient_model
from cloister.testing.models.vision import DemoModel
from cloister.testing.profiling import COLD_RUNS, HOT_RUNS, bench, measure_profile


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json", help="where to write the profile")
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a model's .onnx or .tflite file, named in the profile as the file without its ending; may be repeated",
    )
    parser.add_argument("--instances", type=int, default=16, metavar="N", help="bound to write down (%(default)s)")
    parser.add_argument("--memory-mb", type=int, default=2048, metavar="N", help="budget for models (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=4, metavar="N", help="requests at once (%(default)s)")
    parser.add_argument("--keep-alive", type=float, default=60.0, metavar="S", help="to write down (%(default)s)")
    parser.add_argument("--cold-runs", type=int, default=COLD_RUNS, metavar="N", help="cold starts each (%(default)s)")
    parser.add_argument("--hot-runs", type=int, default=HOT_RUNS, metavar="N", help="hot requests each (%(default)s)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Measure, check, write."""
    if min(args.instances, args.memory_mb, args.concurrency, args.cold_runs, args.hot_runs) < 1 or args.keep_alive <= 0:
        raise InvalidInput("option-value", "counts must be at least 1, and --keep-alive above 0")
    names = [path.stem for path in args.model]
    if len(set(names)) != len(names):
        raise InvalidInput("option-value", "two --model files have the same name")
    for path in args.model:
        if not path.is_file():
            raise InvalidInput("file-unreadable", f"there is no model file {path}")
    with tempfile.TemporaryDirectory(prefix="cloister-profile-") as folder:
        cloud = LocalCloud(
            Path(folder) / "cloud",
            concurrency=args.concurrency,
            memory_mb=args.memory_mb,
            instances=1,
            keep_alive_s=max(600.0, args.keep_alive),  # no instance may go by itself between two measurements
            packer="all-in-one",
        )
        with bench(cloud) as there:
            for source in args.model or _demonstrated(Path(folder), out):
                _say(out, f"{source.stem}: packing, publishing")
                there.publish(source.stem, source)
                names = [*names, source.stem] if source.stem not in names else names
            value = measure_profile(
                there,
                names,
                instances=args.instances,
                cold_runs=args.cold_runs,
                hot_runs=args.hot_runs,
                progress=lambda what: _say(out, what),
            )
    value["fleet"]["keep_alive_s"] = args.keep_alive
    data = json.dumps(value, indent=2) + "\n"
    parse_profile(data.encode())
    try:
        args.output.write_text(data, encoding="utf-8")
    except OSError as error:
        raise InvalidInput("file-unwritable", f"cannot write {args.output}: {error.strerror}") from error
    out.result(value, f"profile: {args.output}")
    return 0


def _demonstrated(folder: Path, out: Output) -> list[Path]:
    """The demonstration's models, as files."""
    files = []
    builders: dict[str, Callable[[], bytes]] = {PATIENTS: lambda: patient_model().onnx}
    builders |= {name: _onnx_of(build) for name, build in VISION.items()}
    for name, build in builders.items():
        _say(out, f"{name}: building")
        path = folder / f"{name}.onnx"
        path.write_bytes(build())
        files.append(path)
    return files


def _onnx_of(build: Callable[[], DemoModel]) -> Callable[[], bytes]:
    return lambda: build().onnx


def _say(out: Output, what: str) -> None:
    if not out.as_json and sys.stderr.isatty():
        print(f"  ... {what}", file=sys.stderr, flush=True)
