"""Make a KeyService: its root secret, sealed to this code and this configuration, and the first entry of its log.

Prints what a trust bundle must name.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloister.base.errors import Tampered, Unavailable
from cloister.cli.keyservice import options
from cloister.cli.output import Output

if TYPE_CHECKING:
    from cloister.base.clock import Clock

SUMMARY: Final = "make a KeyService"
_PEER_S: Final = 5.0  # until a peer that does not answer counts as not running


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    options.add_state(parser)
    options.add_store(parser)
    options.add_tee(parser)
    parser.add_argument("--keep", action="store_true", help="a KeyService that is there already is kept and told")
    parser.add_argument(
        "--replica",
        type=int,
        default=0,
        metavar="N",
        help="with --keep: which of several this is; only 0 makes a KeyService, and only where no --peer answers",
    )
    options.add_peers(parser, "with --keep: where another replica answers; once for each, and itself may be among them")
    options.add_keyservice_id(parser)
    options.add_custodians(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    from cloister.keyservice.offline import ROOT_FILE, initialise, kept_root
    from cloister.keyservice.storage.place import store_place

    state: Path = args.state
    place = options.open_place(args)
    tee = place.tee
    if tee.sealer is None:
        raise Unavailable(
            "sealing-unavailable",
            f"{tee.attester.tee.value} has no sealing key to keep the root secret with",
            hint="`cloister keyservice run --new` makes a KeyService that lives as long as one of its replicas runs.",
        )
    store = store_place(state, args.store)
    there = store.exists(), (state / ROOT_FILE).exists()
    joins = {"replica": args.replica, "state": str(state), "made": False}
    if args.keep and not any(there) and (args.replica or args.keyservice or _answers(args.peer, place.clock)):
        out.result(joins, "it joins a replica when it runs")
        return 0
    # Of several, one with a root secret and no store has just joined, or lost its store: it catches up.
    if args.keep and (there[0] or (there[1] and args.peer)):
        try:
            root = kept_root(state, tee.sealer, store)
        except Tampered as error:
            if not args.peer or error.code != "unseal-failed":
                raise
            out.result(joins, "another build sealed the root secret that is here: it joins a replica when it runs")
            return 0
    else:
        root = initialise(state, tee, place.settings, place.clock, store, custodians=options.custodians(args))
    out.result(
        {
            "keyservice": root.id.hex(),
            "log_key": root.log_key.public_key.hex(),
            "state": str(state),
            "tee": tee.attester.tee.value,
            "measurement": tee.measurement.hex(),
            "configuration": place.settings.measured().digest.hex(),
            "rollback_protection": place.settings.rollback_protection,
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
