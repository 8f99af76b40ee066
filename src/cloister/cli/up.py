"""Run a whole Cloister on this machine, for a trial: KeyService, gateway, and runtimes started on demand.

  cloister up [--state FOLDER] [--store URL] [--witnesses N [--replicas 3]]

It runs in a **simulated TEE, which protects nothing**: insecure-simulation stands in every verdict, log line and
response. Everything lies in one folder; stop it with Ctrl-C, start it again with the same command.
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

from cloister.adapters.modelstore.opened import check
from cloister.base.errors import Unavailable
from cloister.cli.output import Output
from cloister.runtime.isolation import Isolation
from cloister.testing.local_cloud import LocalCloud


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--state", type=Path, default=Path("cloister-state"), help="default: ./cloister-state")
    parser.add_argument(
        "--store", default="", metavar="URL", help="of encrypted models: s3://, gs:// or az:// (default: in the folder)"
    )
    parser.add_argument("--keyservice", default="127.0.0.1:7400", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--gateway", default="127.0.0.1:7401", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--isolation", choices=[level.value for level in Isolation], default=Isolation.SHARED.value)
    parser.add_argument("--concurrency", type=int, default=4, help="requests a runtime serves at once (%(default)s)")
    parser.add_argument("--memory-mb", type=int, default=2048, help="budget for models in a runtime (%(default)s)")
    parser.add_argument("--instances", type=int, default=2, help="runtimes at most (%(default)s)")
    parser.add_argument(
        "--witnesses",
        type=int,
        metavar="N",
        help="run N witnesses, so that the KeyService cannot be rolled back (default: as the folder has, else 0)",
    )
    parser.add_argument(
        "--replicas",
        type=int,
        metavar="N",
        help="run N replicas of the KeyService, 2 or 3, which need witnesses (default: as the folder has, else 1)",
    )
    parser.add_argument(
        "--keep-alive", type=float, default=60.0, metavar="S", help="stop an idle one after (%(default)s)"
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """Start, say where everything is, and wait."""
    if args.store:
        check(args.store)
    cloud = LocalCloud(
        args.state,
        keyservice_listen=args.keyservice,
        gateway_listen=args.gateway,
        store_url=args.store,
        isolation=Isolation(args.isolation),
        concurrency=args.concurrency,
        memory_mb=args.memory_mb,
        instances=args.instances,
        keep_alive_s=args.keep_alive,
        witnesses=args.witnesses,
        replicas=args.replicas,
    )
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    try:
        profile = cloud.start()
        out.result(
            {
                "keyservice": profile.keyservice,
                "gateway": profile.gateway,
                "home": str(cloud.home.resolve()),
                "policy": str(cloud.policy_file.resolve()),
                "witnesses": len(cloud.start_witnesses()),
                "tee": "insecure-simulation",
            },
            "Cloister is up, in an INSECURE SIMULATION of a TEE that protects nothing.\n"
            f"  KeyService      {profile.keyservice}\n"
            f"  gateway         {profile.gateway}\n"
            f"  runtime policy  {cloud.policy_file.resolve()}\n\n"
            f"In another terminal:\n  export CLOISTER_HOME={cloud.home.resolve()}\n  cloister identity new alice\n\n"
            "docs/tutorial goes on from here. Stop with Ctrl-C.",
        )
        while not done.wait(0.5):
            if ended := cloud.failed():
                raise Unavailable("service-ended", f"the {ended} ended", hint=f"See {cloud.folder / (ended + '.log')}.")
    finally:
        cloud.stop()
    return 0
