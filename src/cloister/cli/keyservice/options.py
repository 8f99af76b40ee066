"""Options that several actions of ``cloister keyservice`` take, and what they give."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.ids import ID_LENGTH
from cloister.base.limits import KIB, MAX_CUSTODIAN_KEY, MAX_STANDING
from cloister.cli.files import read_file

if TYPE_CHECKING:
    import ssl

    from cloister.adapters.http.blocking import BlockingAnswer, HttpClient
    from cloister.base.clock import Clock
    from cloister.keyservice.custody.upkeep import Custodians
    from cloister.keyservice.opening import Tee
    from cloister.keyservice.settings import Settings


def add_state(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """``--state``."""
    parser.add_argument(
        "--state", type=Path, required=required, metavar="DIR", help="where root secret, store and address are"
    )


def add_store(parser: argparse.ArgumentParser) -> None:
    """``--store``."""
    parser.add_argument(
        "--store",
        metavar="URL",
        help="a namespace of a PostgreSQL database for the records, postgresql://USER@HOST/DATABASE?schema=NAME; "
        "default: a file in --state",
    )


def add_tee(parser: argparse.ArgumentParser) -> None:
    """Where it runs, and its measured configuration."""
    parser.add_argument(
        "--simulation-key",
        type=Path,
        metavar="FILE",
        help="run in the simulated TEE of this key; default: the TEE of this machine",
    )
    parser.add_argument("--configuration", type=Path, metavar="FILE", help="TOML; everything in it is measured")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Whom to believe."""
    parser.add_argument("--bundle", type=Path, metavar="FILE", help="the trust bundle in use")
    parser.add_argument(
        "--collateral",
        metavar="SOURCE",
        help="for evidence of others: a folder, a bundle file or `vendors`; default: what they bring along",
    )


def add_keyservice_id(
    parser: argparse.ArgumentParser, what: str = "the only KeyService to join, in hexadecimal"
) -> None:
    """``--keyservice``."""
    parser.add_argument("--keyservice", metavar="ID", help=what)


def add_custodians(parser: argparse.ArgumentParser) -> None:
    """``--custodian``."""
    parser.add_argument(
        "--custodian",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="public key of a custodian of the configuration; once for each",
    )


def custodians(args: argparse.Namespace) -> Custodians:
    """Their public keys.

    :raises InvalidInput: ``custodian-key-malformed``, ``file-unreadable``, ``file-too-long``.
    """
    from cloister.keyservice.custody.upkeep import Custodians
    from cloister.wire.custody import custodian_id, read_public_key

    keys = [read_public_key(read_file(path, limit=MAX_CUSTODIAN_KEY, what="the public key")) for path in args.custodian]
    return Custodians({custodian_id(key): key for key in keys}, renew=getattr(args, "reshare", False))


def add_tls(parser: argparse.ArgumentParser) -> None:
    """``--tls-cert``, ``--tls-key``."""
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="speak TLS with this certificate chain, PEM")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="and its key, PEM, not encrypted")


def tls(args: argparse.Namespace) -> ssl.SSLContext | None:
    """What :func:`add_tls` names.

    :raises InvalidInput: ``argument``.
    """
    if args.tls_cert is None and args.tls_key is None:
        return None
    if args.tls_cert is None or args.tls_key is None:
        raise InvalidInput("argument", f"`cloister keyservice {args.action}` needs both --tls-cert and --tls-key")
    from cloister.adapters.http.tls import server_context

    return server_context(args.tls_cert, args.tls_key)


def add_peers(parser: argparse.ArgumentParser, what: str) -> None:
    """``--peer``."""
    parser.add_argument("--peer", action="append", default=[], metavar="URL", help=what)


@dataclass(frozen=True, slots=True)
class Place:
    """Where it runs: the measured configuration, the TEE, the clock."""

    settings: Settings
    tee: Tee
    clock: Clock


def open_place(args: argparse.Namespace) -> Place:
    """What :func:`add_tee` names.

    :raises CloisterError: as ``keyservice.opening.read_settings``, ``simulated_tee`` and ``hardware_tee``.
    """
    from cloister.adapters.clock import SystemClock
    from cloister.keyservice.opening import hardware_tee, read_settings, simulated_tee

    settings, clock = read_settings(args.configuration), SystemClock()
    key = args.simulation_key
    return Place(settings, simulated_tee(key, settings, clock) if key else hardware_tee(settings), clock)


@dataclass(frozen=True, slots=True)
class PlaceIfAny:
    """As :class:`Place`, where there may be no TEE."""

    settings: Settings
    tee: Tee | None
    clock: Clock


def open_place_if_any(args: argparse.Namespace) -> PlaceIfAny:
    """As :func:`open_place`, for what can be done in part on a machine without a TEE."""
    from cloister.adapters.clock import SystemClock
    from cloister.keyservice.opening import read_settings

    try:
        place = open_place(args)
    except Unavailable:
        return PlaceIfAny(read_settings(args.configuration), None, SystemClock())
    return PlaceIfAny(place.settings, place.tee, place.clock)


def add_control(parser: argparse.ArgumentParser) -> None:
    """``--control``."""
    parser.add_argument(
        "--control", metavar="URL", help="where it was told to listen for this; default: the socket in --state"
    )


def control_origin(args: argparse.Namespace) -> str:
    """Where one that runs tells its operator."""
    from cloister.keyservice.control import CONTROL_FILE

    return str(args.control or f"unix:{(args.state / CONTROL_FILE).absolute()}")


def control_answers(client: HttpClient, origin: str) -> bool:
    """Whether a KeyService that runs answers there."""
    from cloister.keyservice.control import ControlPath

    if origin.startswith("unix:") and not Path(origin.removeprefix("unix:")).is_socket():
        return False
    try:
        client.request("GET", origin, ControlPath.STATUS, max_answer=MAX_STANDING).checked()
    except Unavailable as error:
        if error.code != "connect-failed":
            raise
        return False  # its process was killed, and left the socket behind
    return True


def problem_of(answer: BlockingAnswer) -> CloisterError:
    """The error that an answer tells of which is no success."""
    from cloister.adapters.http.problem import from_response

    return from_response(answer.status, answer.headers, answer.read(64 * KIB))


def keyservice_id(text: str | None) -> bytes | None:
    """What :func:`add_keyservice_id` names.

    :raises InvalidInput: ``argument``.
    """
    try:
        found = None if text is None else bytes.fromhex(text)
    except ValueError:
        found = b""
    if found is not None and len(found) != ID_LENGTH:
        raise InvalidInput("argument", f"--keyservice takes {2 * ID_LENGTH} hexadecimal digits")
    return found
