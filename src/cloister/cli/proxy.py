"""Let unchanged clients use models through the sealed path: they speak the Open Inference Protocol v2 to this machine.

    cloister proxy [--listen 127.0.0.1:8000 | --socket PATH] [--as NAME]

Point a client of Triton, KServe or any other OIP server at it, with the names of models that the identity consented to:

    curl http://127.0.0.1:8000/v2/models/diagnosis

Requests are sealed here and answers checked here, as `cloister infer` does. Who reaches the proxy speaks for the
identity: it listens to this machine only. Stop it with Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path
from typing import Final

from cloister.cli.account import add_account_options, home_of, passphrase
from cloister.cli.listen import parse_listen
from cloister.cli.output import Output

DEFAULT_LISTEN: Final = "127.0.0.1:8000"
_DRAIN_S: Final = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("--listen", default=DEFAULT_LISTEN, metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="a Unix socket instead, which only you may open")
    add_account_options(parser)


def run(args: argparse.Namespace, out: Output) -> int:
    """Serve until interrupted."""
    from cloister.adapters.clock import SystemClock
    from cloister.adapters.logs import JsonLog
    from cloister.adapters.process import run as run_loop
    from cloister.client.asynchronous import AsyncClient
    from cloister.client.client import Client
    from cloister.client.proxy import LocalProxy

    host, port = parse_listen(args.listen)
    sync = Client.open(home_of(args), args.identity, passphrase())

    async def serve() -> None:
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        async with AsyncClient(sync) as client:
            proxy = LocalProxy(client, log=JsonLog(SystemClock(), service="proxy"))
            await proxy.start(host, port, path=args.socket)
            out.result(
                {"address": proxy.address, "identity": sync.account.identity.id.hex()},
                f"{sync.account.identity.name} is served at {proxy.address}; stop with Ctrl-C",
            )
            await stopping.wait()
            await proxy.stop(_DRAIN_S)

    run_loop(serve())
    return 0
