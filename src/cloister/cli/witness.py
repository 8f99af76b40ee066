"""Make, run and look at a witness, which sees that the logs of KeyServices only grow.

    cloister witness init --state DIR [--name NAME] [--keep]
    cloister witness add  --state DIR --log-key HEX
    cloister witness run  --state DIR [--listen HOST:PORT]
    cloister witness show --state DIR

`init` prints the public key, which a KeyService's configuration and trust bundles name. `add` tells it of a
KeyService's log (`cloister keyservice init` prints the key), also while it runs; log keys after a rotation it follows
by itself. `show` says what it co-signed last, and exits with 1 when it holds proof that a log was forked. Never
restore an older copy of DIR, and never run two: retire the witness.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Final

from cloister.base.errors import InvalidInput
from cloister.cli.listen import parse_listen
from cloister.cli.output import Output

DEFAULT_LISTEN: Final = "127.0.0.1:8450"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("action", choices=("init", "add", "run", "show"), help="what to do")
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="where key and store are")
    parser.add_argument("--name", default="", help="init: a label on its signature lines, like witness.example/w1")
    parser.add_argument("--keep", action="store_true", help="init: a witness that is there already is kept and told")
    parser.add_argument("--log-key", metavar="HEX", help="add: the first Ed25519 key that signed the log's heads")
    parser.add_argument("--listen", default=DEFAULT_LISTEN, metavar="HOST:PORT", help=f"run: default {DEFAULT_LISTEN}")


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    actions = {"init": _init, "add": _add, "run": _run, "show": _show}
    return actions[args.action](args, out)


def _init(args: argparse.Namespace, out: Output) -> int:
    from cloister.witness.app import KEY_FILE, initialise, read_identity

    kept = args.keep and (args.state / KEY_FILE).exists()
    identity = read_identity(args.state) if kept else initialise(args.state, args.name)
    out.result({"witness": identity.key.public_key.hex(), "name": identity.name, "state": str(args.state)})
    return 0


def _add(args: argparse.Namespace, out: Output) -> int:
    from cloister.witness.store import WitnessStore

    try:
        key = bytes.fromhex(args.log_key or "")
    except ValueError:
        key = b""
    if len(key) != 32:
        raise InvalidInput("argument", "`cloister witness add` needs --log-key, 64 hexadecimal digits")
    record = WitnessStore(args.state).add(key)
    out.result({"keyservice": record.keyservice.hex()}, f"witnessing the log of KeyService {record.keyservice.hex()}")
    return 0


def _run(args: argparse.Namespace, out: Output) -> int:
    from cloister.adapters.clock import SystemClock
    from cloister.adapters.logs import JsonLog
    from cloister.adapters.process import run as run_loop
    from cloister.witness.app import serve

    host, port = parse_listen(args.listen)
    clock = SystemClock()
    run_loop(
        serve(
            args.state,
            host=host,
            port=port,
            clock=clock,
            events=JsonLog(clock, service="witness"),
            ready=lambda address: out.result({"address": address}, f"The witness answers on {address}"),
        )
    )
    return 0


def _show(args: argparse.Namespace, out: Output) -> int:
    from cloister.adapters.clock import SystemClock
    from cloister.witness.app import read_identity
    from cloister.witness.service import Witness
    from cloister.witness.store import WitnessStore

    identity = read_identity(args.state)
    records = Witness(WitnessStore(args.state), identity.key, identity.name, SystemClock()).records()
    logs: list[dict[str, Any]] = [
        {
            "keyservice": record.keyservice.hex(),
            "size": record.newest.size,
            "root": record.newest.root.hex(),
            "time": record.newest.time,
            "generation": record.log_keys.generation,
            "log_key": record.log_key.hex(),
            "rivals": [certificate.hex() for certificate in record.rivals],
            "forks": [note.decode("utf-8", "replace") for note in record.conflicts],
        }
        for record in records
    ]
    lines = [f"witness {identity.key.public_key.hex()} ({identity.name})"]
    for log in logs:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(log["time"])) if log["time"] else "never"
        lines.append(f"  {log['keyservice']}  {log['size']} entries, co-signed {when}")
        if log["generation"]:
            lines.append(f"    its root was rotated {log['generation']} times; its log key is {log['log_key']}")
        if log["rivals"]:
            lines += ["    FORKED: a log key named another successor too, in", *log["rivals"]]
        lines += ["    FORKED: the log signed both of these", *log["forks"]] if log["forks"] else []
    out.result({"witness": identity.key.public_key.hex(), "name": identity.name, "logs": logs}, "\n".join(lines))
    return 1 if any(log["forks"] or log["rivals"] for log in logs) else 0
