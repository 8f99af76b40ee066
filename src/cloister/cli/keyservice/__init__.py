"""Make, run and look at a KeyService.

    cloister keyservice init         --state DIR [--simulation-key FILE] [--configuration FILE] [--store URL]
    cloister keyservice run          --state DIR [the options of `init`] [--bundle FILE] [--witness URL] [--peer URL]
    cloister keyservice status       --state DIR | --address URL
    cloister keyservice join         --state DIR --from URL [--keyservice ID]
    cloister keyservice measure      [--simulation-key FILE] [--configuration FILE]
    cloister keyservice backup       --state DIR --out FILE
    cloister keyservice restore      --state DIR --from FILE [--not-before-head HEAD] [--witness URL]
    cloister keyservice recover      --state DIR --bundle FILE [--configuration FILE] [--listen HOST:PORT]
    cloister keyservice rotate-root  --state DIR [--simulation-key FILE] [--configuration FILE] [--witness URL]

`init` makes the root secret, sealed to this code and this configuration, and prints what a trust bundle must name.
`run` serves until it is told to stop (SIGTERM finishes what is under way), `status` asks one that runs. `join` gets
the root secret from a running one after mutual attestation: as its replica, or as a successor that the trust bundle
names; `measure` prints how a bundle names this build. `backup` and `restore` copy its store; `recover` brings one back
whose machines are lost, with the shares of its custodians. `rotate-root` gives one that is stopped another root, and
with it a new log key, under the same id. docs/how-to/keyservice.md says which of these you need.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

from cloister.cli.keyservice import backup, init, join, measure, recover, restore, rotate_root, serve, status
from cloister.cli.output import Output

ACTIONS: Final = {
    "init": init,
    "run": serve,
    "status": status,
    "join": join,
    "measure": measure,
    "backup": backup,
    "restore": restore,
    "recover": recover,
    "rotate-root": rotate_root,
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Each action's options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object")
    for name, module in ACTIONS.items():
        module.configure(
            actions.add_parser(name, parents=[common], help=module.SUMMARY, description=(module.__doc__ or "").strip())
        )


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    action: Callable[[argparse.Namespace, Output], int] = ACTIONS[args.action].run
    return action(args, out)
