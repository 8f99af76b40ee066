"""Run the gateway: sealed requests in, to runtimes that it starts and stops as needed.

  cloister gateway --config gateway.toml --state FOLDER --listen 127.0.0.1:7401

It sees ciphertext, user ids, model ids and sizes, and nothing else. The file is explained in
docs/reference/gateway-configuration.md; SIGHUP reads it again, SIGTERM finishes what is under way and ends.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cloister.cli.listen import parse_listen
from cloister.cli.output import Output


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="TOML; see the reference")
    parser.add_argument(
        "--state", type=Path, required=True, metavar="FOLDER", help="records and logs of instances; of one gateway"
    )
    parser.add_argument(
        "--listen", default="127.0.0.1:7401", metavar="ADDR", help="HOST:PORT or unix:PATH (%(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="check the file and end")


def run(args: argparse.Namespace, out: Output) -> int:
    """Serve until SIGTERM."""
    from cloister.adapters.clock import SystemClock
    from cloister.adapters.logs import JsonLog
    from cloister.adapters.process import raise_file_limit, tune_allocator
    from cloister.adapters.process import run as run_loop
    from cloister.control.gateway import configuration
    from cloister.control.gateway.app import serve

    listen = _listen(args.listen)
    if args.check:
        checked = configuration.read(args.config)
        out.result({"configuration": "good", "packer": checked.pool.packer, "models": len(checked.models)})
        return 0
    tune_allocator()
    raise_file_limit()
    clock = SystemClock()
    run_loop(
        serve(
            args.config,
            args.state,
            listen=listen,
            clock=clock,
            log=JsonLog(clock, service="gateway"),
            announce=lambda address: out.result({"address": address}, f"The gateway answers on {address}"),
        )
    )
    return 0


def _listen(text: str) -> tuple[str, int] | Path:
    if text.startswith("unix:"):
        return Path(text.removeprefix("unix:"))
    return parse_listen(text)
