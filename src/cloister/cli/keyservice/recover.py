"""Bring a KeyService back on a fresh machine, with the shares of its custodians.

DIR holds its store, restored from a backup or another disk, and no root. The command waits until as many custodians as
it takes have answered (`cloister custodian answer`), each on a machine of his own. Then it opens the store, writes into
the log that the KeyService was brought back, seals the root for this machine and ends: `cloister keyservice run` serves
from then on. Where the TEE has no sealing key it goes on to serve, which most of the options are for.

Code and configuration must be those of the KeyService that was lost, or a successor that the trust bundle names. A
store older than the newest one is refused by the witnesses afterwards.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from cloister.base.errors import InvalidInput, Unavailable
from cloister.cli.keyservice import options, serve
from cloister.cli.listen import parse_listen
from cloister.cli.output import Output

if TYPE_CHECKING:
    from cloister.keyservice.root import Root

SUMMARY: Final = "bring a KeyService back with its custodians"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    serve.add_serving(parser)
    options.add_keyservice_id(parser, "the only KeyService to bring back, in hexadecimal")


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    serving = serve.open_serving(args)
    root, entries = _recover(args, out, serving)
    result = {"keyservice": root.id.hex(), "entries": entries, "state": str(serving.state), "recovered": True}
    if serving.tee.sealer is not None:
        out.result(
            result,
            f"KeyService {root.id.hex()} is back, with {entries} entries: `cloister keyservice run` serves it",
        )
        return 0
    out.result(result, f"KeyService {root.id.hex()} is back, with {entries} entries, as long as this process lives")
    serving.run(args, out, root)
    return 0


def _recover(args: argparse.Namespace, out: Output, serving: serve.Serving) -> tuple[Root, int]:
    from cloister.adapters.process import run as run_loop
    from cloister.keyservice.custody.restoring import Restoring
    from cloister.keyservice.custody.server import gather
    from cloister.keyservice.opening import trust_bundle

    host, port = parse_listen(args.listen)
    if serving.offered is None:
        raise InvalidInput("bundle-missing", "custodians judge it by the trust bundle; say --bundle FILE")
    if not serving.store.exists():
        raise Unavailable("state-missing", f"{serving.store.name} is not there", hint="Restore it there first.")
    rows = serving.store.rows()
    try:
        restoring = Restoring(
            serving.state,
            rows,
            serving.tee,
            serving.place.settings,
            bundle=trust_bundle(serving.offered, serving.place.settings, serving.place.clock)(),
            collateral=serving.collateral,
            clock=serving.place.clock,
            events=serving.events,
            expected=options.keyservice_id(args.keyservice),
        )
        record = restoring.asking.record
        waiting = {
            "keyservice": record.keyservice.hex(),
            "threshold": record.threshold,
            "custodians": [holder.custodian.hex() for holder in record.holders],
        }
        enough = run_loop(
            gather(
                restoring.asking,
                host=host,
                port=port,
                events=serving.events,
                tls=options.tls(args),
                ready=lambda address: out.result(
                    {"address": address, **waiting},
                    f"Waits on {address} for {record.threshold} of {len(record.holders)} custodians of KeyService "
                    f"{record.keyservice.hex()}",
                ),
            )
        )
        if not enough:
            raise Unavailable("recovery-stopped", "it was stopped before enough custodians had answered")
        return restoring.finish()
    finally:
        rows.close()
