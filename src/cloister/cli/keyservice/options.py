"""Options that several actions of ``cloister keyservice`` take, and what they give."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.base.errors import InvalidInput
from cloister.base.ids import ID_LENGTH

if TYPE_CHECKING:
    from cloister.base.clock import Clock
    from cloister.keyservice.app import Tee
    from cloister.keyservice.settings import Settings


def add_state(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """``--state``."""
    parser.add_argument(
        "--state", type=Path, required=required, metavar="DIR", help="where root secret, store and address are"
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


def add_keyservice_id(parser: argparse.ArgumentParser) -> None:
    """``--keyservice``."""
    parser.add_argument("--keyservice", metavar="ID", help="the only KeyService to join, in hexadecimal")


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

    :raises CloisterError: as ``keyservice.app.read_settings``, ``simulated_tee`` and ``hardware_tee``.
    """
    from cloister.adapters.clock import SystemClock
    from cloister.keyservice.app import hardware_tee, read_settings, simulated_tee

    settings, clock = read_settings(args.configuration), SystemClock()
    key = args.simulation_key
    return Place(settings, simulated_tee(key, settings, clock) if key else hardware_tee(settings), clock)


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
