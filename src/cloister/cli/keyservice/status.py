"""What a running KeyService says, its signature checked under the key it says; no evidence is believed here."""

from __future__ import annotations

import argparse
import json
import secrets
from typing import Final

from cloister.base.errors import InvalidInput, Unavailable
from cloister.cli.keyservice import options
from cloister.cli.output import Output

SUMMARY: Final = "ask one that runs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    options.add_state(parser, required=False)
    parser.add_argument("--address", metavar="URL", help="of a running KeyService; default: what --state says")


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    from cloister.adapters.clock import SystemClock
    from cloister.adapters.http.blocking import HttpClient
    from cloister.adapters.keyservice import MAX_DESCRIPTION
    from cloister.base.limits import KIB, MAX_STATUS
    from cloister.wire.calls import Description, verify_status

    address = args.address or _address(args)
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


def _address(args: argparse.Namespace) -> str:
    if args.state is None:
        raise InvalidInput("argument", "`cloister keyservice status` needs --state or --address")
    try:
        found: str = (args.state / "address").read_text(encoding="ascii").strip()
    except OSError as error:
        raise Unavailable("keyservice-not-running", "no KeyService is running on this state directory") from error
    return found
