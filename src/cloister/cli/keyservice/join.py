"""Get the root secret from a running KeyService, after mutual attestation.

It gives it to the same code and configuration, or to a successor that the trust bundle of both names.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Final

from cloister.base.errors import InvalidInput
from cloister.cli.keyservice import options
from cloister.cli.output import Output

SUMMARY: Final = "become a replica or successor of one that runs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    options.add_state(parser)
    options.add_tee(parser)
    options.add_trust(parser)
    parser.add_argument(
        "--from", dest="giver", action="append", default=[], metavar="URL", help="one that runs; may repeat"
    )
    options.add_keyservice_id(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    from cloister.adapters.collateral.configured import open_collateral
    from cloister.adapters.http.blocking import HttpClient
    from cloister.adapters.keyservice import HttpTransport
    from cloister.adapters.tee.endorsing import EndorsingAttester
    from cloister.keyservice.opening import offered_bundle, trust_bundle
    from cloister.keyservice.replication.joining import Joining, join

    state: Path = args.state
    place = options.open_place(args)
    settings, tee, clock = place.settings, place.tee, place.clock
    if tee.sealer is None:
        raise InvalidInput(
            "argument",
            f"{tee.attester.tee.value} has no sealing key to keep the root secret with",
            hint="`cloister keyservice run --peer URL` joins at every start.",
        )
    collateral = open_collateral(args.collateral, settings.anchors(), clock)
    if args.collateral:
        tee = replace(tee, attester=EndorsingAttester(tee.attester, collateral))
    offered = offered_bundle(args.bundle, settings)
    if offered is None:
        raise InvalidInput(
            "bundle-missing",
            "who may join is judged by a trust bundle, and the configuration names no bundle_root",
            hint="Add bundle_root to the KeyService's configuration, and say --bundle FILE.",
        )
    bundle = trust_bundle(offered, settings, clock)
    client = HttpClient(clock)
    try:
        givers = [HttpTransport(client, address) for address in args.giver]
        expected = options.keyservice_id(args.keyservice)
        root = join(state, tee, settings, Joining(givers, bundle, collateral, expected), clock)
    finally:
        client.close()
    out.result({"keyservice": root.id.hex(), "log_key": root.log_key.public_key.hex(), "state": str(state)})
    return 0
