"""Serve until it is told to stop; SIGTERM finishes what is under way."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.base.errors import InvalidInput
from cloister.cli.keyservice import options
from cloister.cli.listen import parse_listen
from cloister.cli.output import Output

if TYPE_CHECKING:
    import ssl

SUMMARY: Final = "serve until it is told to stop"
DEFAULT_LISTEN: Final = "127.0.0.1:8440"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    options.add_state(parser)
    options.add_store(parser)
    parser.add_argument("--listen", default=DEFAULT_LISTEN, metavar="HOST:PORT", help=f"default {DEFAULT_LISTEN}")
    options.add_tee(parser)
    options.add_trust(parser)
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="speak TLS with this certificate chain, PEM")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="and its key, PEM, not encrypted")
    parser.add_argument(
        "--witness",
        action="append",
        default=[],
        metavar="URL",
        help="where a witness of the configuration answers; once for each",
    )
    parser.add_argument(
        "--limits", type=Path, metavar="FILE", help="TOML: how much it lets through; not measured (how-to/limits.md)"
    )
    parser.add_argument(
        "--control",
        metavar="HOST:PORT",
        help="where `backup` and `status` ask, on the loopback; default: the socket `control` in --state",
    )
    options.add_peers(parser, "where another replica answers; once for each, and itself may be among them")
    options.add_keyservice_id(parser)
    parser.add_argument(
        "--new",
        action="store_true",
        help="where the TEE has no sealing key and no peer answers, make a new KeyService, as `init` does",
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    from cloister.adapters.collateral.configured import open_collateral
    from cloister.adapters.http.blocking import HttpClient
    from cloister.adapters.keyservice import HttpTransport
    from cloister.adapters.logs import JsonLog
    from cloister.adapters.process import raise_file_limit
    from cloister.adapters.process import run as run_loop
    from cloister.adapters.tee.endorsing import EndorsingAttester
    from cloister.keyservice.app import offered_bundle, serve, trust_bundle
    from cloister.keyservice.limiting.rates import read_rates
    from cloister.keyservice.replication.joining import Joining, find_root
    from cloister.keyservice.storage.place import store_place

    state: Path = args.state
    store = store_place(state, args.store)
    host, port = parse_listen(args.listen)
    rates = read_rates(args.limits)
    place = options.open_place(args)
    settings, tee, clock = place.settings, place.tee, place.clock
    cache = state / "collateral" if state.is_dir() else None
    collateral = open_collateral(args.collateral, settings.anchors(), clock, cache=cache)
    if args.collateral:  # clients then need no source of their own
        tee = replace(tee, attester=EndorsingAttester(tee.attester, collateral))
    raise_file_limit()
    events = JsonLog(clock, service="keyservice")
    offered = offered_bundle(args.bundle, settings)
    client = HttpClient(clock)
    try:
        givers = [HttpTransport(client, address) for address in args.peer]
        expected = options.keyservice_id(args.keyservice)
        joining = None
        if givers and offered:
            joining = Joining(givers, trust_bundle(offered, settings, clock), collateral, expected)
        root = find_root(state, tee, settings, joining, clock=clock, events=events, new=args.new, store=store)
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
            bundle=offered,
            events=events,
            witnesses=args.witness,
            peers=args.peer,
            control_on=parse_listen(args.control) if args.control else None,
            rates=rates,
            store=store,
            tls=_tls(args),
            ready=lambda address: out.result({"address": address}, f"The KeyService answers on {address}"),
        )
    )
    return 0


def _tls(args: argparse.Namespace) -> ssl.SSLContext | None:
    if args.tls_cert is None and args.tls_key is None:
        return None
    if args.tls_cert is None or args.tls_key is None:
        raise InvalidInput("argument", "`cloister keyservice run` needs both --tls-cert and --tls-key")
    from cloister.adapters.http.tls import server_context

    return server_context(args.tls_cert, args.tls_key)
