"""Ask a service whether it lives, or is ready: for containers' health checks, which need no shell and no curl then.

cloister health [--address http://127.0.0.1:8080] [--ready]
"""

from __future__ import annotations

import argparse
from typing import Final

from cloister.base.errors import Unavailable
from cloister.cli.output import Output

DEFAULT_ADDRESS: Final = "http://127.0.0.1:8080"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--address", default=DEFAULT_ADDRESS, metavar="URL", help="default: %(default)s")
    parser.add_argument("--ready", action="store_true", help="whether it takes requests, not only whether it lives")
    parser.add_argument("--timeout", type=float, default=2.0, metavar="S", help="default: %(default)s")


def run(args: argparse.Namespace, out: Output) -> int:
    """Ask; status 0 when the answer is yes."""
    from cloister.adapters.clock import SystemClock
    from cloister.adapters.http.blocking import HttpClient

    path = "/readyz" if args.ready else "/healthz"
    client = HttpClient(SystemClock())
    try:
        answer = client.request("GET", args.address, path, deadline_s=args.timeout, max_answer=65536).checked()
    finally:
        client.close()
    if answer.status != 200:
        raise Unavailable("not-healthy", f"{args.address}{path} answers {answer.status}")
    out.result({"address": args.address, "healthy": True})
    return 0
