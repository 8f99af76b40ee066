"""Make, run and look at a KeyService.

    cloister keyservice init   --state DIR [--simulation-key FILE] [--configuration FILE] [--keep [--replica N]]
    cloister keyservice join   --state DIR --from URL [--keyservice ID] [the options of `run`]
    cloister keyservice run    --state DIR [--simulation-key FILE] [--configuration FILE] [--bundle FILE]
    cloister keyservice status --state DIR | --address URL

`init` makes the root secret, sealed to this code and this configuration, and prints what a trust bundle must name.
`join` gets the root secret from a running one of the same code and configuration, after mutual attestation.
`run` serves until it is told to stop (SIGTERM finishes what is under way). `status` asks a running one.
"""

from __future__ import annotations

import argparse
import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.ids import ID_LENGTH
from cloister.cli.output import Output

if TYPE_CHECKING:
    import ssl

    from cloister.base.clock import Clock
    from cloister.keyservice.app import Tee
    from cloister.keyservice.settings import Settings

DEFAULT_LISTEN: Final = "127.0.0.1:8440"
_PEER_S: Final = 5.0  # until a peer that does not answer counts as not running


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("action", choices=("init", "join", "run", "status"), help="what to do")
    parser.add_argument("--state", type=Path, metavar="DIR", help="where root secret and store are")
    parser.add_argument("--keep", action="store_true", help="init: a KeyService that is there already is kept and told")
    parser.add_argument(
        "--replica",
        type=int,
        default=0,
        metavar="N",
        help="init --keep: which of several this is; only 0 makes a KeyService, and only where no --peer answers",
    )
    parser.add_argument("--listen", default=DEFAULT_LISTEN, metavar="HOST:PORT", help=f"default {DEFAULT_LISTEN}")
    parser.add_argument(
        "--simulation-key",
        type=Path,
        metavar="FILE",
        help="run in the simulated TEE of this key; default: the TEE of this machine",
    )
    parser.add_argument("--configuration", type=Path, metavar="FILE", help="TOML; everything in it is measured")
    parser.add_argument("--bundle", type=Path, metavar="FILE", help="the trust bundle in use")
    parser.add_argument(
        "--collateral",
        metavar="SOURCE",
        help="for runtimes' evidence: a folder, a bundle file or `vendors`; default: what they bring along",
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="speak TLS with this certificate chain, PEM")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="and its key, PEM, not encrypted")
    parser.add_argument(
        "--witness",
        action="append",
        default=[],
        metavar="URL",
        help="run: where a witness of the configuration answers; once for each",
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="URL",
        help="run, init: where another replica answers; once for each, and itself may be among them",
    )
    parser.add_argument(
        "--from",
        dest="giver",
        action="append",
        default=[],
        metavar="URL",
        help="join: one that runs; may repeat",
    )
    parser.add_argument(
        "--keyservice", metavar="ID", help="join, run, init: the only KeyService to join, in hexadecimal"
    )
    parser.add_argument(
        "--new",
        action="store_true",
        help="run: where the TEE has no sealing key and no peer answers, make a new KeyService, as `init` does",
    )
    parser.add_argument("--address", metavar="URL", help="of a running KeyService, for status")


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    match args.action:
        case "init":
            return _init(args, out)
        case "join":
            return _join(args, out)
        case "run":
            return _run(args, out)
        case _:
            return _status(args, out)


def _need(args: argparse.Namespace, name: str) -> Any:
    value = getattr(args, name)
    if value is None:
        raise InvalidInput("argument", f"`cloister keyservice {args.action}` needs --{name.replace('_', '-')}")
    return value


def _tee(args: argparse.Namespace, settings: Settings, clock: Clock) -> Tee:
    from cloister.keyservice.app import hardware_tee, simulated_tee

    return simulated_tee(args.simulation_key, settings, clock) if args.simulation_key else hardware_tee(settings)


def _tls(args: argparse.Namespace) -> ssl.SSLContext | None:
    if args.tls_cert is None and args.tls_key is None:
        return None
    from cloister.adapters.http.tls import server_context

    return server_context(_need(args, "tls_cert"), _need(args, "tls_key"))


def _init(args: argparse.Namespace, out: Output) -> int:
    from cloister.adapters.clock import SystemClock
    from cloister.keyservice.app import ROOT_FILE, STORE_FILE, initialise, read_settings
    from cloister.keyservice.root import open_root

    state: Path = _need(args, "state")
    settings, clock = read_settings(args.configuration), SystemClock()
    tee = _tee(args, settings, clock)
    if tee.sealer is None:
        raise Unavailable(
            "sealing-unavailable",
            f"{tee.attester.tee.value} has no sealing key to keep the root secret with",
            hint="`cloister keyservice run --new` makes a KeyService that lives as long as one of its replicas runs.",
        )
    there = (state / STORE_FILE).exists(), (state / ROOT_FILE).exists()
    if args.keep and not any(there) and (args.replica or args.keyservice or _answers(args.peer, clock)):
        out.result({"replica": args.replica, "state": str(state), "made": False}, "it joins a replica when it runs")
        return 0
    # Of several, one with a root secret and no store has just joined, or lost its store: it catches up.
    if args.keep and (there[0] or (there[1] and args.peer)):
        root = open_root(state / ROOT_FILE, tee.sealer)
    else:
        root = initialise(state, tee, settings, clock)
    out.result(
        {
            "keyservice": root.id.hex(),
            "log_key": root.log_key.public_key.hex(),
            "state": str(state),
            "tee": tee.attester.tee.value,
            "measurement": tee.measurement.hex(),
            "configuration": settings.measured().digest.hex(),
            "rollback_protection": settings.rollback_protection,
        }
    )
    return 0


def _answers(peers: Sequence[str], clock: Clock) -> bool:
    """Whether some KeyService runs at one of the addresses; which, is for those that join to verify."""
    from cloister.adapters.http.blocking import HttpClient
    from cloister.adapters.keyservice import MAX_DESCRIPTION
    from cloister.base.errors import CloisterError

    client = HttpClient(clock)
    try:
        for address in peers:
            with suppress(CloisterError):
                answer = client.request(
                    "GET", address, "/v1/description", deadline_s=_PEER_S, max_answer=MAX_DESCRIPTION
                )
                if answer.status == 200:
                    return True
    finally:
        client.close()
    return False


def _join(args: argparse.Namespace, out: Output) -> int:
    from cloister.adapters.clock import SystemClock
    from cloister.adapters.collateral.configured import open_collateral
    from cloister.adapters.http.blocking import HttpClient
    from cloister.adapters.keyservice import HttpTransport
    from cloister.adapters.tee.endorsing import EndorsingAttester
    from cloister.keyservice.app import read_settings, trust_bundle
    from cloister.keyservice.joining import Joining, join

    state: Path = _need(args, "state")
    settings, clock = read_settings(args.configuration), SystemClock()
    tee = _tee(args, settings, clock)
    if tee.sealer is None:
        raise InvalidInput(
            "argument",
            f"{tee.attester.tee.value} has no sealing key to keep the root secret with",
            hint="`cloister keyservice run --peer URL` joins at every start.",
        )
    collateral = open_collateral(args.collateral, settings.anchors(), clock)
    if args.collateral:
        tee = replace(tee, attester=EndorsingAttester(tee.attester, collateral))
    bundle = trust_bundle(args.bundle, settings, clock)
    if bundle is None:
        raise InvalidInput("bundle-missing", "replicas judge each other by the trust bundle; say --bundle FILE")
    client = HttpClient(clock)
    try:
        givers = [HttpTransport(client, address) for address in args.giver]
        root = join(state, tee, settings, Joining(givers, bundle, collateral, _id(args.keyservice)), clock)
    finally:
        client.close()
    out.result({"keyservice": root.id.hex(), "log_key": root.log_key.public_key.hex(), "state": str(state)})
    return 0


def _id(text: str | None) -> bytes | None:
    try:
        found = None if text is None else bytes.fromhex(text)
    except ValueError:
        found = b""
    if found is not None and len(found) != ID_LENGTH:
        raise InvalidInput("argument", f"--keyservice takes {2 * ID_LENGTH} hexadecimal digits")
    return found


def _run(args: argparse.Namespace, out: Output) -> int:
    from cloister.adapters.clock import SystemClock
    from cloister.adapters.collateral.configured import open_collateral
    from cloister.adapters.http.blocking import HttpClient
    from cloister.adapters.keyservice import HttpTransport
    from cloister.adapters.logs import JsonLog
    from cloister.adapters.process import raise_file_limit
    from cloister.adapters.process import run as run_loop
    from cloister.adapters.tee.endorsing import EndorsingAttester
    from cloister.keyservice.app import read_settings, serve, trust_bundle
    from cloister.keyservice.joining import Joining, find_root

    state: Path = _need(args, "state")
    host, port = _listen(args.listen)
    settings, clock = read_settings(args.configuration), SystemClock()
    tee = _tee(args, settings, clock)
    cache = state / "collateral" if state.is_dir() else None
    collateral = open_collateral(args.collateral, settings.anchors(), clock, cache=cache)
    if args.collateral:  # clients then need no source of their own
        tee = replace(tee, attester=EndorsingAttester(tee.attester, collateral))
    raise_file_limit()
    events = JsonLog(clock, service="keyservice")
    bundle = trust_bundle(args.bundle, settings, clock)
    client = HttpClient(clock)
    try:
        givers = [HttpTransport(client, address) for address in args.peer]
        joining = Joining(givers, bundle, collateral, _id(args.keyservice)) if givers and bundle else None
        root = find_root(state, tee, settings, joining, clock=clock, events=events, new=args.new)
    finally:
        client.close()
    run_loop(
        serve(
            state,
            root,
            tee,
            settings,
            host=host,
            port=port,
            clock=clock,
            collateral=collateral,
            bundle=bundle,
            events=events,
            witnesses=args.witness,
            peers=args.peer,
            tls=_tls(args),
            ready=lambda address: out.result({"address": address}, f"The KeyService answers on {address}"),
        )
    )
    return 0


def _status(args: argparse.Namespace, out: Output) -> int:
    """What a running KeyService says, its signature checked under the key it says; no evidence is believed here."""
    from cloister.adapters.clock import SystemClock
    from cloister.adapters.http.blocking import HttpClient
    from cloister.adapters.keyservice import MAX_DESCRIPTION
    from cloister.base.limits import KIB, MAX_STATUS
    from cloister.wire.calls import Description, verify_status

    address = args.address
    if address is None:
        try:
            address = (_need(args, "state") / "address").read_text(encoding="ascii").strip()
        except OSError as error:
            raise Unavailable("keyservice-not-running", "no KeyService is running on this state directory") from error
    client = HttpClient(SystemClock())
    try:
        answer = client.request("GET", address, "/v1/description", max_answer=MAX_DESCRIPTION).checked()
        description = Description.decode(bytes(answer.body))
        nonce = secrets.token_bytes(32)
        answer = client.request("POST", address, "/v1/status", content=nonce, max_answer=MAX_STATUS).checked()
        head = verify_status(bytes(answer.body), description, nonce)
        answer = client.request("GET", address, "/v1/replica/role", max_answer=4 * KIB).checked()
        role = json.loads(bytes(answer.body))["role"]
    finally:
        client.close()
    out.result(
        {
            "keyservice": description.keyservice.hex(),
            "address": address,
            "tee": description.evidence.tee,
            "epoch": description.epoch.hex(),
            "entries": head.size,
            "root": head.root.hex(),
            "time": head.time,
            "cosigned": {item.key.hex(): item.time for item in head.cosignatures},
            "role": role,
            "attested": False,
        }
    )
    return 0


def _listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidInput("argument", "--listen takes HOST:PORT")
    return host.strip("[]"), int(port)
