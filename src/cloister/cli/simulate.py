"""Replay arrivals on a simulated fleet, under the same policies that the gateway runs.

The workload is a CSV file with the header time_s,model[,user], or an Azure Functions trace (2019 or 2021). Costs come
from a profile (docs/reference/profile.md); without --profile, from the one shipped with Cloister.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from shutil import get_terminal_size

from cloister.base.errors import InvalidInput
from cloister.cli.output import Output
from cloister.control.policies import BALANCERS, PACKERS, SCALERS, balancer, packer, scaler
from cloister.control.simulator.profile import read_profile
from cloister.control.simulator.report import html_report, save_plots, table
from cloister.control.simulator.result import summarise
from cloister.control.simulator.workload import read_workload
from cloister.control.simulator.world import World


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``cloister simulate``."""
    parser.add_argument("--policy", choices=PACKERS, default="adaptive", help="packing policy (default: adaptive)")
    parser.add_argument("--balancer", choices=BALANCERS, default="tee-aware", help="default: tee-aware")
    parser.add_argument("--scaler", choices=SCALERS, default="keep-alive", help="default: keep-alive")
    parser.add_argument("--workload", type=Path, required=True, metavar="FILE.csv", help="arrivals to replay")
    parser.add_argument("--profile", type=Path, metavar="FILE.json", help="costs (default: the shipped profile)")
    parser.add_argument("--instances", type=int, metavar="N", help="most instances at a time")
    parser.add_argument("--memory-mb", type=float, metavar="N", help="memory of one instance, in MB")
    parser.add_argument("--slo-ms", type=float, metavar="N", help="bound of latency, for the scaler and the attainment")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random durations (default: 0)")
    parser.add_argument(
        "--cost-weight", type=float, default=0.5, metavar="W", help="adaptive: 0 latency alone, 1 cost alone"
    )
    parser.add_argument("--keyless", type=int, default=0, metavar="N", help="attested instances without keys to keep")
    parser.add_argument(
        "--queue", type=int, metavar="N", help="most requests that wait; more are lost (default: no bound)"
    )
    parser.add_argument(
        "--deadline-ms", type=float, metavar="N", help="a request that waited so long is lost (default: none)"
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="save plots there (needs the `plots` extra)")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a report (plots too, if installed)")


def run(args: argparse.Namespace, out: Output) -> int:
    """Simulate, print, and save what was asked for."""
    if not 0.0 <= args.cost_weight <= 1.0:
        raise InvalidInput("option-value", "--cost-weight must be between 0 and 1")
    if args.seed < 0 or args.keyless < 0:
        raise InvalidInput("option-value", "--seed and --keyless must not be negative")
    if args.queue is not None and args.queue < 0:
        raise InvalidInput("option-value", "--queue must not be negative")
    if args.deadline_ms is not None and not args.deadline_ms > 0:
        raise InvalidInput("option-value", "--deadline-ms must be above 0")
    if args.report is not None and (args.report.is_dir() or not args.report.parent.is_dir()):
        raise InvalidInput("file-unwritable", f"cannot write {args.report}: it is a directory, or in none that exists")
    profile = read_profile(args.profile)
    profile = profile.with_caps(instances=args.instances, memory_mb=args.memory_mb, slo_ms=args.slo_ms)
    arrivals = read_workload(args.workload, seed=args.seed)
    world = World(
        profile,
        packer(args.policy, cost_weight=args.cost_weight),
        balancer(args.balancer),
        scaler(args.scaler, slo_ms=profile.slo_ms, window_s=profile.keep_alive_s),
        seed=args.seed,
        keyless=args.keyless,
        queue=args.queue,
        deadline_s=None if args.deadline_ms is None else args.deadline_ms / 1000,
    )
    record = world.run(arrivals)
    result = summarise(record)
    title = f"{args.policy}, {args.balancer}, {args.scaler} on {args.workload.name}"
    out.result(result.as_json(), table([(args.policy, result)], width=get_terminal_size((120, 24)).columns))
    try:
        if args.plots is not None:
            for path in save_plots(record, args.plots, args.policy):
                out.line(f"plot: {path}")
        if args.report is not None:
            args.report.write_text(html_report(record, result, title, profile.origin), encoding="utf-8")
            out.line(f"report: {args.report}")
    except OSError as error:
        raise InvalidInput("file-unwritable", f"cannot write {error.filename}: {error.strerror}") from error
    return 0
