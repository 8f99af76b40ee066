"""What only the operator asks, over a Unix socket in the state directory and never the network (protocol.md, 13.25.3).

A running KeyService holds its store alone, so it writes its backups itself. Whoever opens the socket is whoever owns
the disk: he gets what lies there already, sealed, and how the service stands, which its metrics say too.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Final, final

from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.adapters.http.workers import Workers
from cloister.adapters.logs import EventLog
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.limits import BACKUP_S, CONTROL_CONNECTIONS, KIB
from cloister.keyservice.anchors.majority import MajorityAnchor
from cloister.keyservice.backup.writing import BackupHistory, backup_pieces, sealed_root
from cloister.keyservice.standing import Standing
from cloister.keyservice.telemetry import observe_backup

CONTROL_FILE: Final = "control"
_JSON: Final = (("content-type", "application/json"),)
_BINARY: Final = (("content-type", "application/octet-stream"),)


class ControlPath(StrEnum):
    """What may be asked."""

    STATUS = "/status"
    BACKUP = "/backup"
    KEPT = "/backup/kept"


@final
class Control:
    """The operator's socket; all methods belong to one event loop.

    :param backup: a backup's pieces, each read when it is asked for.
    :param standing: how the service stands; it may wait for the disk.
    """

    def __init__(
        self,
        *,
        backup: Callable[[], Iterator[bytes]],
        standing: Standing,
        history: BackupHistory,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self._backup = backup
        self._standing = standing
        self._history = history
        self._clock = clock
        self._log = log
        self._running = False
        self._workers = Workers(2, CONTROL_CONNECTIONS, name="control")
        limits = ServerLimits(max_body=KIB, max_connections=CONTROL_CONNECTIONS)
        self._server = HttpServer(self._answer, log=log, limits=limits)

    async def start(self, path: Path) -> None:
        """Listen. Where the file system has no sockets the service goes on without, and says so."""
        try:
            await self._server.start(path=path)
        except Unavailable as error:
            self._log.event("control-failed", level="warning", code=error.code, path=str(path))

    async def start_on(self, host: str, port: int) -> None:
        """Listen on this machine's loopback instead, for TEEs whose Unix sockets nobody outside reaches.

        :raises InvalidInput: ``argument``: others than this machine would reach it.
        :raises Unavailable: ``listen-failed``.
        """
        try:
            own = ip_address(host).is_loopback
        except ValueError:
            own = False
        if not own:
            raise InvalidInput(
                "argument",
                f"--control takes an address of the loopback, not {host}",
                hint="127.0.0.1 or [::1]: whoever reaches it may take backups, encrypted as they are.",
            )
        await self._server.start(host, port)

    @property
    def address(self) -> str:
        """Where it listens; empty where it does not."""
        return self._server.address

    async def stop(self) -> None:
        """Cut what is under way: a backup that is not whole is none."""
        await self._server.close()
        await self._workers.close()

    async def _answer(self, request: Request) -> Response:
        match request.method, request.path:
            case "GET", ControlPath.STATUS:
                fields = await self._workers.run(self._stands)
                return Response(200, _JSON, json.dumps(fields).encode())
            case "GET", ControlPath.BACKUP:
                return await self._begin(request)
            case "POST", ControlPath.KEPT:
                self._history.note(int(self._clock.now()), _entries(bytes(await request.body(KIB))))
                return Response(200, _JSON, b"{}")
            case _:
                raise InvalidInput("not-found", "there is nothing here")

    def _stands(self) -> Mapping[str, object]:
        return {**self._standing.fields(), "backup": self._history.fields(self._clock.now())}

    async def _begin(self, request: Request) -> Response:
        if self._running:
            raise Unavailable("backup-running", "a backup is being written already", retry_after=10.0)
        self._running = True
        request.on_finish(self._ended)
        pieces = self._backup()
        first = await self._workers.run(next, pieces, b"")  # what is wrong at once is an answer of its own
        self._log.event("backup-began")
        return Response(200, _BINARY, self._rest(first, pieces))

    def _ended(self) -> None:
        self._running = False

    async def _rest(self, piece: bytes, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        until, count = self._clock.monotonic() + BACKUP_S, 0
        while piece:
            yield piece
            count += len(piece)
            if self._clock.monotonic() > until:
                raise Unavailable("deadline-exceeded", "the backup is fetched too slowly")
            try:
                piece = await self._workers.run(next, pieces, b"")
            except CloisterError as error:  # the stream ends before its end, which whoever reads it notices
                self._log.event("backup-failed", level="warning", code=error.code)
                raise
        self._log.event("backup-sent", count=count)


def _entries(body: bytes) -> int:
    try:
        found = json.loads(body)["entries"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    if type(found) is not int or not 0 <= found < 2**63:
        raise InvalidInput("field-type", "a kept backup says how many entries it has")
    return found


def make_control(state: Path, standing: Standing, *, root_file: Path, events: EventLog) -> Control:
    """The operator's socket of a KeyService that runs on this directory."""
    history, assembled, clock = BackupHistory(state), standing.assembled, standing.clock
    root, anchor = assembled.root, assembled.anchor
    observe_backup(assembled.telemetry.registry, history, clock)

    def backup() -> Iterator[bytes]:
        return backup_pieces(
            assembled.ledger,
            log_keys=root.log_keys,
            head=anchor.seen() if isinstance(anchor, MajorityAnchor) else anchor.confirmed(),
            root=sealed_root(root_file),
        )

    return Control(backup=backup, standing=standing, history=history, clock=clock, log=events)
