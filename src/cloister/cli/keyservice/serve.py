"""Serve until it is told to stop; SIGTERM finishes what is under way."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.cli.keyservice import options
from cloister.cli.listen import parse_listen
from cloister.cli.output import Output

if TYPE_CHECKING:
    from cloister.adapters.logs import EventLog
    from cloister.attest.types import CollateralSource
    from cloister.keyservice.custody.upkeep import Custodians
    from cloister.keyservice.limiting.rates import Rates
    from cloister.keyservice.opening import Tee
    from cloister.keyservice.root import Root
    from cloister.keyservice.storage.place import StorePlace

SUMMARY: Final = "serve until it is told to stop"
DEFAULT_LISTEN: Final = "127.0.0.1:8440"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_serving(parser)
    options.add_keyservice_id(parser)
    parser.add_argument(
        "--new",
        action="store_true",
        help="where the TEE has no sealing key and no peer answers, make a new KeyService, as `init` does",
    )


def add_serving(parser: argparse.ArgumentParser) -> None:
    """What serving takes."""
    options.add_state(parser)
    options.add_store(parser)
    parser.add_argument("--listen", default=DEFAULT_LISTEN, metavar="HOST:PORT", help=f"default {DEFAULT_LISTEN}")
    options.add_tee(parser)
    options.add_trust(parser)
    options.add_tls(parser)
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
    options.add_custodians(parser)
    parser.add_argument(
        "--reshare", action="store_true", help="make new shares for the custodians, though none are due"
    )


@dataclass(frozen=True, slots=True)
class Serving:
    """What the options of :func:`add_serving` name."""

    state: Path
    store: StorePlace
    place: options.Place
    collateral: CollateralSource
    events: EventLog
    offered: Callable[[], bytes] | None
    custodians: Custodians
    rates: Rates

    @property
    def tee(self) -> Tee:
        """Where it runs."""
        return self.place.tee

    def run(self, args: argparse.Namespace, out: Output, root: Root) -> None:
        """Until it is told to stop."""
        from cloister.adapters.process import raise_file_limit
        from cloister.adapters.process import run as run_loop
        from cloister.keyservice.app import serve

        host, port = parse_listen(args.listen)
        raise_file_limit()
        run_loop(
            serve(
                self.state,
                root,
                self.tee,
                self.place.settings,
                host=host,
                port=port,
                clock=self.place.clock,
                collateral=self.collateral,
                bundle=self.offered,
                events=self.events,
                witnesses=args.witness,
                peers=args.peer,
                control_on=parse_listen(args.control) if args.control else None,
                rates=self.rates,
                store=self.store,
                tls=options.tls(args),
                custodians=self.custodians,
                ready=lambda address: out.result({"address": address}, f"The KeyService answers on {address}"),
            )
        )


def open_serving(args: argparse.Namespace) -> Serving:
    """:raises CloisterError: whatever is wrong with what the options name."""
    from cloister.adapters.collateral.configured import open_collateral
    from cloister.adapters.logs import JsonLog
    from cloister.adapters.tee.endorsing import EndorsingAttester
    from cloister.keyservice.limiting.rates import read_rates
    from cloister.keyservice.opening import offered_bundle
    from cloister.keyservice.storage.place import store_place

    parse_listen(args.listen)
    state, rates, place = args.state, read_rates(args.limits), options.open_place(args)
    cache = state / "collateral" if state.is_dir() else None
    collateral = open_collateral(args.collateral, place.settings.anchors(), place.clock, cache=cache)
    if args.collateral:  # clients then need no source of their own
        place = replace(place, tee=replace(place.tee, attester=EndorsingAttester(place.tee.attester, collateral)))
    offered = offered_bundle(args.bundle, place.settings)
    events = JsonLog(place.clock, service="keyservice")
    return Serving(
        state=state,
        store=store_place(state, args.store),
        place=place,
        collateral=collateral,
        events=events,
        offered=offered,
        custodians=options.custodians(args),
        rates=rates,
    )


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    from cloister.adapters.http.blocking import HttpClient
    from cloister.adapters.keyservice import HttpTransport
    from cloister.keyservice.opening import trust_bundle
    from cloister.keyservice.replication.joining import Joining, find_root

    serving = open_serving(args)
    settings, clock = serving.place.settings, serving.place.clock
    client = HttpClient(clock)
    try:
        givers = [HttpTransport(client, address) for address in args.peer]
        expected = options.keyservice_id(args.keyservice)
        joining = None
        if givers and serving.offered:
            believed = trust_bundle(serving.offered, settings, clock)
            joining = Joining(givers, believed, serving.collateral, expected)
        root = find_root(
            serving.state,
            serving.tee,
            settings,
            joining,
            clock=clock,
            events=serving.events,
            new=args.new,
            store=serving.store,
            custodians=serving.custodians,
        )
    finally:
        client.close()
    serving.run(args, out, root)
    return 0
