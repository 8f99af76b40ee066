"""How a KeyService stands.

With --state: what one that runs there tells its operator, over the socket in its state directory. With --address: what
it tells everybody; its signature is checked under the key it says. No evidence is believed either way: `cloister
verify` does that.
"""

from __future__ import annotations

import argparse
import json
import secrets
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import MAX_STANDING, MIB
from cloister.cli.keyservice import options
from cloister.cli.keyservice.terminal import show_rows
from cloister.cli.output import Output

if TYPE_CHECKING:
    from cloister.adapters.http.blocking import HttpClient

SUMMARY: Final = "ask one that runs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    options.add_state(parser, required=False)
    options.add_control(parser)
    parser.add_argument("--address", metavar="URL", help="of a running KeyService, which others may operate")


def run(args: argparse.Namespace, out: Output) -> int:
    """Do it."""
    from cloister.adapters.clock import SystemClock
    from cloister.adapters.http.blocking import HttpClient

    client = HttpClient(SystemClock())
    try:
        if args.address:
            out.result(_asked(client, args.address))
            return 0
        found = _operated(args, client)
    finally:
        client.close()
    if out.as_json:
        out.result(found)
    else:
        show_rows(f"KeyService {found['keyservice']}", list(_rows(found)))
    return 0


def _asked(client: HttpClient, address: str) -> dict[str, object]:
    """What it tells everybody."""
    from cloister.adapters.keyservice import MAX_DESCRIPTION
    from cloister.base.limits import KIB, MAX_STATUS
    from cloister.crypto.digest import Context, digest
    from cloister.wire.calls import Description, verify_status

    answer = client.request("GET", address, "/v1/description", max_answer=MAX_DESCRIPTION).checked()
    description = Description.decode(bytes(answer.body))
    nonce = secrets.token_bytes(32)
    answer = client.request("POST", address, "/v1/status", content=nonce, max_answer=MAX_STATUS).checked()
    head = verify_status(bytes(answer.body), description, nonce)
    answer = client.request("GET", address, "/v1/replica/role", max_answer=4 * KIB).checked()
    return {
        "keyservice": description.keyservice.hex(),
        "address": address,
        "tee": description.evidence.tee,
        "epoch": description.epoch.hex(),
        "configuration": digest(Context.CONFIGURATION, description.configuration).hex(),
        "bundle": description.bundle_digest.hex(),
        "generation": description.log_keys.generation,
        "log_keys": [key.hex() for key in description.log_keys.all],
        "entries": head.size,
        "root": head.root.hex(),
        "time": head.time,
        "cosigned": {item.key.hex(): item.time for item in head.cosignatures},
        "role": json.loads(bytes(answer.body))["role"],
        "attested": False,
    }


def _operated(args: argparse.Namespace, client: HttpClient) -> dict[str, Any]:
    """What it tells its operator."""
    from cloister.keyservice.control import ControlPath

    if args.state is None and not args.control:
        raise InvalidInput("argument", "`cloister keyservice status` needs --state, --control or --address")
    origin = options.control_origin(args)
    if not options.control_answers(client, origin):
        there = args.state is None or args.state.is_dir()
        raise Unavailable(
            "keyservice-not-running",
            f"no KeyService is running on {args.state or origin}",
            hint="`cloister keyservice run` starts it." if there else "There is no such directory.",
        )
    answer = client.request("GET", origin, ControlPath.STATUS, max_answer=MAX_STANDING).checked()
    found: dict[str, Any] = json.loads(bytes(answer.body))
    return found


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str, bool | None]]:
    """Name, value and whether it is well; ``None`` for what somebody should look at."""
    yield "answers on", str(found["address"]), True
    yield "runs in", f"{found['tee']}, measurement {found['measurement'][:16]}...", not found["simulated"] or None
    yield "releases keys", "yes" if found["releases"] else "no", bool(found["releases"])
    yield from _role(found)
    yield "log", f"{found['entries']} entries", True
    yield "log key", f"{found['log_key']}, root {found['generation']}", True
    if found["head"]:
        yield "head", f"{found['head']['size']}:{found['head']['root']}", True
    yield from _confirmed(found)
    store = found["store"]
    size = "" if store["bytes"] is None else f", {store['bytes'] / MIB:.1f} MiB"
    yield "store", f"{store['kind']}, schema {store['schema']}{size}", True
    snapshot = found["snapshot"]
    scrub = f", {snapshot['unscrubbed']} older ones to be scrubbed" if snapshot["unscrubbed"] else ""
    yield "snapshot", f"a start reads {found['entries'] - snapshot['entries']} entries{scrub}", True
    custody = found["custody"]
    if custody is not None:
        text = f"{custody['threshold']} of {len(custody['custodians'])} bring it back, since entry {custody['entry']}"
        yield "custodians", text, bool(custody["recoverable"])
    if found["trouble"]:
        yield "last write", f"failed: {found['trouble']}", False
    backup = found["backup"]
    if backup is None:
        yield "backup", "none was made here", None
    else:
        newer = found["entries"] - backup["entries"]
        yield "backup", f"{_ago(backup['age_s'])} ago, {newer} entries since", True


def _role(found: Mapping[str, Any]) -> Iterator[tuple[str, str, bool | None]]:
    replica = found.get("replica")
    if replica is None:
        return
    text = f"{found['role']} of {replica['of']}"
    if found["role"] == "leader":
        yield "replica", f"{text}, {replica['heard']} are heard", replica["heard"] * 2 > replica["of"] or None
    elif replica["leader"]:
        behind = "not heard yet" if replica["behind"] is None else f"{replica['behind']} entries behind"
        yield "replica", f"{text}, follows {replica['leader']}, {behind}", True
    else:
        yield "replica", f"{text}: nobody is known to lead", False


def _confirmed(found: Mapping[str, Any]) -> Iterator[tuple[str, str, bool | None]]:
    confirmed = found.get("confirmed")
    if confirmed is None:
        yield "rollback", "rollback_protection is none: an old copy of the store is noticed by callers only", None
        return
    if confirmed["age_s"] is None:
        well: bool | None = found["role"] not in ("single", "leader") or None
        yield "confirmed", f"{confirmed['entries']} entries; not by this one since it started", well
    else:
        yield "confirmed", f"{confirmed['entries']} entries, {_ago(confirmed['age_s'])} ago", True
    for item in confirmed["witnesses"]:
        well = item["outcome"] in ("confirmed", "waiting", "not-asked")
        yield "witness", f"{item['address']}: {item['outcome']}", well


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
