"""Instances as child processes of this machine: the embedded default.

Each instance listens on a Unix socket of its own and is written down in ``instances/<id>.json``; a new driver on the
same folder finds those that still run (same process id *and* start time) and takes them over. Deaths are seen through
pidfds, of adopted processes too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cloister.base.errors import Unavailable
from cloister.platforms.port import Event, Gone, Ready, Running

HOST: Final = "localhost"
_POLL_S: Final = 0.01  # how often a starting instance is asked; its socket appears after tens of milliseconds
_READY: Final = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass(slots=True)
class _Process:
    instance: str
    group: str
    pid: int
    pidfd: int
    socket: Path
    child: subprocess.Popen[bytes] | None
    ready: bool = False
    stopping: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"


class LocalPlatform:
    """See the module.

    :param folder: for records, logs and, by its content, sockets. :param command: the runtime's command line;
        ``--listen unix:...`` is appended. :param start_timeout_s: until an instance must answer.
    :param stop_grace_s: after SIGTERM, until SIGKILL.
    """

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        start_timeout_s: float = 60.0,
        stop_grace_s: float = 20.0,
    ) -> None:
        self._records = folder / "instances"
        self._logs = folder / "logs"
        self._command = tuple(command)
        self._environment = dict(os.environ if environment is None else environment)
        self._start_timeout_s = start_timeout_s
        self._stop_grace_s = stop_grace_s
        self._processes: dict[str, _Process] = {}
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opened = False

    async def open(self) -> None:
        """Make the folders and take over what still runs."""
        if self._opened:
            return
        self._opened = True
        for folder in (self._records, self._logs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for record in sorted(self._records.glob("*.json")):
            self._adopt(record)

    async def start(self, instance: str, group: str) -> None:
        """See the port."""
        await self.open()
        if instance in self._processes:
            return
        socket = Path(tempfile.mkdtemp(prefix="cloister-")) / "s"  # short: a socket's path has at most 107 bytes
        try:
            child = self._launch(instance, socket)
            pidfd = os.pidfd_open(child.pid)
        except OSError as error:
            socket.parent.rmdir()
            raise Unavailable(
                "platform-unavailable", f"cannot start a runtime: {error.strerror}", retry_after=1.0
            ) from error
        process = _Process(instance, group, child.pid, pidfd, socket, child)
        record = {"pid": child.pid, "started": _start_time(child.pid), "group": group, "socket": str(socket)}
        (self._records / f"{instance}.json").write_text(json.dumps(record))
        self._watch(process)

    async def stop(self, instance: str) -> None:
        """See the port."""
        process = self._processes.get(instance)
        if process is None or process.stopping:
            return
        process.stopping = True
        _signal(process.pidfd, signal.SIGTERM)
        self._spawn(self._kill_later(process))

    async def running(self) -> tuple[Running, ...]:
        """See the port."""
        await self.open()
        return tuple(
            Running(p.instance, p.group, p.address, p.ready, HOST) for p in self._processes.values() if not p.stopping
        )

    async def events(self) -> AsyncIterator[Event]:
        """See the port."""
        while True:
            yield await self._events.get()

    async def close(self) -> None:
        """See the port."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        loop = asyncio.get_running_loop()
        for process in self._processes.values():
            loop.remove_reader(process.pidfd)
            os.close(process.pidfd)
            if process.child is not None:
                process.child.returncode = process.child.poll() or 0  # it goes on without us
        self._processes.clear()

    async def stop_all(self) -> None:
        """Stop every instance and wait until they are gone."""
        await self.open()
        processes = list(self._processes.values())
        for process in processes:
            await self.stop(process.instance)
        for process in processes:
            await process.gone.wait()

    # --- a process's life ---

    def _launch(self, instance: str, socket: Path) -> subprocess.Popen[bytes]:
        with (self._logs / f"{instance}.log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603  # the operator's own command
                [*self._command, "--listen", f"unix:{socket}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    def _watch(self, process: _Process) -> None:
        self._processes[process.instance] = process
        asyncio.get_running_loop().add_reader(process.pidfd, self._ended, process)
        self._spawn(self._wait_ready(process))

    async def _wait_ready(self, process: _Process) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._start_timeout_s
        while process.instance in self._processes and not process.stopping:
            if await _answers(process.socket):
                process.ready = True
                self._events.put_nowait(Ready(process.instance, process.group, process.address, HOST))
                return
            if loop.time() > end:
                _signal(process.pidfd, signal.SIGKILL)
                return
            await asyncio.sleep(_POLL_S)

    async def _kill_later(self, process: _Process) -> None:
        await asyncio.sleep(self._stop_grace_s)
        if process.instance in self._processes:
            _signal(process.pidfd, signal.SIGKILL)

    def _ended(self, process: _Process) -> None:
        asyncio.get_running_loop().remove_reader(process.pidfd)
        os.close(process.pidfd)
        self._processes.pop(process.instance, None)
        status = process.child.wait() if process.child is not None else None
        (self._records / f"{process.instance}.json").unlink(missing_ok=True)
        process.socket.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            process.socket.parent.rmdir()
        asked = "stopped" if process.stopping else f"died; see {self._logs / (process.instance + '.log')}"
        process.gone.set()
        reason = asked if status in (None, 0) else f"{asked} (status {status})"
        self._events.put_nowait(Gone(process.instance, reason))

    def _adopt(self, record: Path) -> None:
        try:
            entry = json.loads(record.read_text())
            pid, started = int(entry["pid"]), int(entry["started"])
            group, socket = str(entry["group"]), Path(entry["socket"])
            pidfd = os.pidfd_open(pid)
        except (OSError, ValueError, KeyError, TypeError):
            record.unlink(missing_ok=True)
            return
        if _start_time(pid) != started:  # the id was given to another process
            os.close(pidfd)
            record.unlink(missing_ok=True)
            return
        self._watch(_Process(record.stem, group, pid, pidfd, socket, None))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _signal(pidfd: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def _start_time(pid: int) -> int:
    """In clock ticks since boot: with the id, names a process for good. -1 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return -1


async def _answers(socket: Path) -> bool:
    """Whether the instance says it is ready."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    try:
        writer.write(_READY)
        head = await asyncio.wait_for(reader.readline(), 5.0)
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return head.startswith(b"HTTP/1.1 200")
