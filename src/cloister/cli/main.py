"""The ``cloister`` command: finds the sub-command, runs it, and turns errors into one clear paragraph.

Exit status: 0 done, 1 refused or failed, 2 unusable arguments, 130 interrupted. A sub-command is a module with
``SUMMARY``, ``configure(parser)`` and ``run(args) -> int``; it is imported only when it is the one that runs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from cloister import __version__
from cloister.base.errors import CloisterError, Unavailable
from cloister.cli.output import Output, show_error

# command -> (module, one line for `cloister --help`)
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "up": ("cloister.cli.up", "run everything on this machine, in a simulated TEE"),
    "demo": ("cloister.cli.demo", "the main job on real data, and what the cloud tries in vain"),
    "identity": ("cloister.cli.identity", "make, show, rotate the keys with which an owner or user speaks"),
    "model": ("cloister.cli.model", "pack, publish, list, rotate and retire models"),
    "grant": ("cloister.cli.grant", "let a user use one of your models"),
    "revoke": ("cloister.cli.revoke", "take back a grant or a consent"),
    "approvals": ("cloister.cli.approvals", "statements that need two persons: what waits, approve, decline"),
    "consent": ("cloister.cli.consent", "let attested runtimes see your requests to a model"),
    "access": ("cloister.cli.access", "who may use what, why not, and what happened"),
    "infer": ("cloister.cli.infer", "run a model on your data, encrypted end to end"),
    "proxy": ("cloister.cli.proxy", "let unchanged clients use models through the sealed path"),
    "verify": ("cloister.cli.verify", "verify evidence of a TEE and appraise it under a policy"),
    "policy": ("cloister.cli.policy", "explain an attestation policy, or write a first one from evidence"),
    "bundle": ("cloister.cli.bundle", "make, sign and show a trust bundle: which KeyService is believed"),
    "keyservice": ("cloister.cli.keyservice", "make, run and look at a KeyService"),
    "log": ("cloister.cli.log", "export a KeyService's log, check it offline, see who could read what"),
    "witness": ("cloister.cli.witness", "see that logs of KeyServices only grow, and co-sign their heads"),
    "custodian": ("cloister.cli.custodian", "hold a key that brings a KeyService back when its machines are lost"),
    "runtime": ("cloister.cli.runtime", "run a runtime, which answers sealed requests"),
    "openwhisk-action": ("cloister.cli.openwhisk_action", "run a runtime as an OpenWhisk Docker action"),
    "gateway": ("cloister.cli.gateway", "take sealed requests to runtimes that it starts and stops as needed"),
    "collateral": ("cloister.cli.collateral", "what verification needs beside evidence, in one file"),
    "profile": ("cloister.cli.profile", "measure on this machine what simulations take their costs from"),
    "simulate": ("cloister.cli.simulate", "replay arrivals on a simulated fleet: latency, cost, service levels"),
    "health": ("cloister.cli.health", "ask a service whether it lives: for health checks"),
    "version": ("cloister.cli.version", "print the version, the engines and the simulated measurement"),
}


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:<{width}}{summary}" for name, (_, summary) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="cloister",
        description="Serve encrypted machine-learning models on infrastructure nobody has to trust.",
        epilog=f"commands:\n{lines}\n\n`cloister COMMAND --help` explains each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="cloister COMMAND [OPTIONS]",
    )
    parser.add_argument("--version", action="version", version=f"cloister {__version__}")
    parser.add_argument("command", choices=[*COMMANDS], metavar="COMMAND", help="what to do; see below")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    top = _parser()
    args = top.parse_args(words[:1] or ["--help"])
    try:
        module: ModuleType = importlib.import_module(COMMANDS[args.command][0])
    except ModuleNotFoundError as error:
        if error.name != COMMANDS[args.command][0]:
            raise
        print(
            f"error: this installation has no `cloister {args.command}`: it is an image for other commands",
            file=sys.stderr,
        )
        return 2
    parser = argparse.ArgumentParser(
        prog=f"cloister {args.command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    module.configure(parser)
    options = parser.parse_args(words[1:])
    try:
        return int(module.run(options, Output(as_json=options.json)))
    except CloisterError as error:
        show_error(error, as_json=options.json)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001  # never a traceback to a user
        show_error(_fault(error), as_json=options.json)
        return 1


def _fault(error: Exception) -> CloisterError:
    """What nobody foresaw: told by type and place, since a text may hold what was being worked on."""
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if isinstance(error.filename, str) else ""
        return Unavailable("system-error", f"{named}{error.strerror}")
    trace, where = error.__traceback__, ""
    while trace is not None:
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return Unavailable(
        "internal", f"a fault in Cloister: {type(error).__name__} at {where}", hint="Please report it with this line."
    )
