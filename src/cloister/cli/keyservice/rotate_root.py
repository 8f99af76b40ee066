"""Give a KeyService that does not run another root: a new log key, store key and replication key, under the same id.

Of several replicas all are stopped, the one with the longest log is rotated and started, and the others join it with
empty directories. What else to do then stands in docs/how-to/rotate-keys.md.
"""

from __future__ import annotations

import argparse
from typing import Final

from cloister.base.errors import Unavailable
from cloister.cli.keyservice import options
from cloister.cli.output import Output

SUMMARY: Final = "replace root secret and log key; the id stays"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    options.add_state(parser)
    options.add_store(parser)
    options.add_tee(parser)
    parser.add_argument(
        "--witness",
        action="append",
        default=[],
        metavar="URL",
        help="where a witness of the configuration answers; once for each: the store must be what they confirmed",
    )
    options.add_custodians(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    from cloister.adapters.http.blocking import HttpClient
    from cloister.adapters.witness import HttpWitness
    from cloister.keyservice.offline import rotate
    from cloister.keyservice.storage.place import store_place

    store, custodians = store_place(args.state, args.store), options.custodians(args)
    place = options.open_place(args)
    if place.tee.sealer is None:
        raise Unavailable(
            "sealing-unavailable",
            f"{place.tee.attester.tee.value} has no sealing key: its root is in memory only, and cannot be rotated",
        )
    client = HttpClient(place.clock)
    try:
        witnesses = [HttpWitness(client, address) for address in args.witness]
        root = rotate(
            args.state,
            place.tee,
            place.settings,
            clock=place.clock,
            witnesses=witnesses,
            store=store,
            custodians=custodians,
        )
    finally:
        client.close()
    out.result(
        {
            "keyservice": root.id.hex(),
            "generation": root.generation,
            "log_key": root.log_key.public_key.hex(),
            "entry": root.log_keys.begins,
            "state": str(args.state),
        },
        f"KeyService {root.id.hex()} has root {root.generation} from log entry {root.log_keys.begins} on; its log key "
        f"is {root.log_key.public_key.hex()}",
    )
    return 0
