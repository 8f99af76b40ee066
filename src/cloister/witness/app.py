"""Where a witness's ports meet their adapters."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.adapters.logs import EventLog
from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput, Refused, Unavailable
from cloister.base.secret import SecretBytes
from cloister.crypto.sign import SigningKey
from cloister.wire.checkpoint import check_name
from cloister.witness.server import WitnessServer
from cloister.witness.service import Witness
from cloister.witness.store import WitnessStore

KEY_FILE: Final = "witness.key"
NAME_FILE: Final = "name"
ADDRESS_FILE: Final = "address"
DRAIN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class WitnessIdentity:
    """Its key, and the label on its lines."""

    key: SigningKey
    name: str


def initialise(state: Path, name: str = "") -> WitnessIdentity:
    """A new witness in a directory: key, name, empty store.

    :raises Refused: ``state-exists``. :raises Unavailable: ``state-unwritable``, ``witness-store-failed``.
    :raises InvalidInput: ``witness-name``.
    """
    key = SigningKey.generate()
    name = check_name(name or f"witness.cloister.invalid/{key.public_key.hex()[:16]}")
    WitnessStore.make(state)
    try:
        descriptor = os.open(state / KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key.seed().reveal().hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        (state / NAME_FILE).write_text(name + "\n", encoding="utf-8")
    except FileExistsError as error:
        raise Refused("state-exists", f"{state} holds a witness already") from error
    except OSError as error:
        raise Unavailable("state-unwritable", f"{state} cannot be written: {error.strerror}") from error
    return WitnessIdentity(key, name)


def read_identity(state: Path) -> WitnessIdentity:
    """The witness of a directory.

    :raises InvalidInput: ``witness-key-malformed``. :raises Refused: ``file-exposed`` when others may read the key.
    """
    path = state / KEY_FILE
    try:
        if path.stat().st_mode & 0o077:
            raise Refused("file-exposed", f"others can read {path}", hint=f"Run: chmod 600 {path}")
        seed = SecretBytes.key(bytes.fromhex(path.read_text(encoding="ascii").strip()))
        name = (state / NAME_FILE).read_text(encoding="utf-8").strip()
    except (OSError, ValueError, InvalidInput) as error:
        raise InvalidInput(
            "witness-key-malformed", f"{state} does not hold a witness", hint="`cloister witness init` makes one."
        ) from error
    return WitnessIdentity(SigningKey.from_seed(seed), check_name(name))


async def serve(
    state: Path,
    *,
    host: str,
    port: int,
    clock: Clock,
    events: EventLog,
    ready: Callable[[str], None],
) -> None:
    """Run until SIGTERM or SIGINT. The address stands in the state directory while it listens.

    :raises Unavailable: ``witness-running``, ``witness-store-missing``, ``listen-failed``.
    """
    identity, store = read_identity(state), WitnessStore(state)
    witness = Witness(store, identity.key, identity.name, clock)
    witness.records()  # a store that cannot be read is told of now
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    with store.exclusive():
        server = WitnessServer(witness, log=events)
        try:
            await server.start(host, port)
            temporary = state / f"{ADDRESS_FILE}.new"
            temporary.write_text(server.address + "\n", encoding="ascii")
            temporary.replace(state / ADDRESS_FILE)
            events.event("started", address=server.address)
            ready(server.address)
            await stopping.wait()
        finally:
            with contextlib.suppress(OSError):
                (state / ADDRESS_FILE).unlink()
            cut = await server.stop(DRAIN_S)
            events.event("stopped", count=cut)
