"""Instances as child processes of this machine: the embedded default.

Each instance listens on a Unix socket of its own and is written down in ``instances/<id>.json`` before it is started; a
new driver on the same folder finds those that still run (same process id *and* start time, or by their socket when the
driver before was killed in between) and takes them over. Deaths are seen through pidfds, of adopted processes too.
A folder belongs to one driver at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from cloister.platforms.records import Book, Entry, start_time

HOST: Final = "localhost"
POLL_S: Final = 0.01  # how often a starting instance is asked; its socket appears after tens of milliseconds
SLOW_POLL_S: Final = 0.1  # once it has taken longer than a start should
PATIENCE_S: Final = 5.0
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
        self._book = Book(folder)
        self._command = tuple(command)
        self._environment = dict(os.environ if environment is None else environment)
        self._start_timeout_s = start_timeout_s
        self._stop_grace_s = stop_grace_s
        self._processes: dict[str, _Process] = {}
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opened = False

    async def open(self) -> None:
        """Make the folders and take over what still runs.

        :raises Unavailable: ``platform-in-use`` when another driver has this folder; ``platform-unavailable``.
        """
        if self._opened:
            return
        self._book.open()
        self._opened = True
        for entry in self._book.entries():
            self._adopt(entry)

    async def start(self, instance: str, group: str) -> None:
        """See the port."""
        await self.open()
        if instance in self._processes:
            return
        entry = None
        child = None
        try:
            socket = Path(tempfile.mkdtemp(prefix="cloister-")) / "s"  # short: a socket's path has at most 107 bytes
            entry = Entry(instance, group, socket)
            self._book.write(entry)
            child = self._launch(instance, socket)
            pidfd = os.pidfd_open(child.pid)
            self._book.write(Entry(instance, group, socket, child.pid, start_time(child.pid)))
        except OSError as error:
            if child is not None:
                child.kill()
                child.wait()
            if entry is not None:
                self._book.forget(entry.instance, entry.socket)
            raise Unavailable(
                "platform-unavailable", f"cannot start a runtime: {error.strerror}", retry_after=1.0
            ) from error
        self._watch(_Process(instance, group, child.pid, pidfd, socket, child))

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
        self._book.close()
        self._opened = False

    async def stop_all(self) -> None:
        """Stop every instance and wait until they are gone."""
        await self.open()
        processes = list(self._processes.values())
        for process in processes:
            await self.stop(process.instance)
        for process in processes:
            await process.gone.wait()

    def reconfigure(self, command: Sequence[str]) -> None:
        """Another command line, for instances started from now on."""
        self._command = tuple(command)

    # --- a process's life ---

    def _launch(self, instance: str, socket: Path) -> subprocess.Popen[bytes]:
        with self._book.log(instance).open("ab") as log:
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
        began = loop.time()
        while process.instance in self._processes and not process.stopping:
            if await _answers(process.socket) and process.instance in self._processes:
                process.ready = True
                self._events.put_nowait(Ready(process.instance, process.group, process.address, HOST))
                return
            waited = loop.time() - began
            if waited > self._start_timeout_s:
                if process.instance in self._processes:
                    _signal(process.pidfd, signal.SIGKILL)
                return
            await asyncio.sleep(POLL_S if waited < PATIENCE_S else SLOW_POLL_S)

    async def _kill_later(self, process: _Process) -> None:
        await asyncio.sleep(self._stop_grace_s)
        if process.instance in self._processes:
            _signal(process.pidfd, signal.SIGKILL)

    def _ended(self, process: _Process) -> None:
        asyncio.get_running_loop().remove_reader(process.pidfd)
        os.close(process.pidfd)
        self._processes.pop(process.instance, None)
        status = process.child.wait() if process.child is not None else _reap(process.pid)
        self._book.forget(process.instance, process.socket)
        asked = "stopped" if process.stopping else f"died; see {self._book.log(process.instance)}"
        process.gone.set()
        reason = asked if status in (None, 0) else f"{asked} (status {status})"
        self._events.put_nowait(Gone(process.instance, reason))

    def _adopt(self, entry: Entry) -> None:
        found = self._book.locate(entry)
        pidfd = -1
        if found is not None:
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(found.pid)
        if found is None or pidfd < 0 or start_time(found.pid) != found.started:  # gone, or its id is another's now
            if pidfd >= 0:
                os.close(pidfd)
            self._book.forget(entry.instance, entry.socket)
            return
        if found != entry:
            self._book.write(found)
        self._watch(_Process(found.instance, found.group, found.pid, pidfd, found.socket, None))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _signal(pidfd: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def _reap(pid: int) -> int | None:
    """Status of an adopted process, if it is a child of ours (of an earlier driver in this process)."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if found else None


async def _answers(socket: Path) -> bool:
    """Whether the instance says it is ready."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    try:
        writer.write(_READY)
        head = await asyncio.wait_for(reader.readline(), 5.0)
    except (OSError, ValueError, TimeoutError):
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return head.startswith(b"HTTP/1.1 200")
