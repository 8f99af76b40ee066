"""A real PostgreSQL server for tests: started, stopped, killed, paused, and looked into as its administrator.

Debian's package (``postgresql``) is enough; no cluster of the system is touched. The server refuses to run as root, so
root starts it as another account.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote, urlencode

from cloister.base.errors import Unavailable

DATABASE: Final = "cloister"
ROLE: Final = "keyservice"
_ACCOUNTS: Final = ("postgres", "nobody")  # as which root starts it
_STARTS_WITHIN_S: Final = 60.0
_STOPS_WITHIN_S: Final = 30.0


def find_server() -> Path | None:
    """Where the newest server's programs are, as Debian puts them or on the path; ``None``: there is none."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    found.sort(key=lambda path: [int(part) for part in re.findall(r"\d+", path.parent.name)])
    on_path = shutil.which("postgres")
    if not found and on_path is not None:
        found.append(Path(on_path).resolve().parent)
    return found[-1] if found and (found[-1] / "initdb").exists() else None


class PostgresServer:
    """One server with one database, and a role that owns it; a context manager that starts it.

    :param settings: lines of its configuration beyond the defaults, which are PostgreSQL's but for its size.
    :param data: where its database lies, which must be empty; default: in a temporary folder.
    :ivar port: on 127.0.0.1, the same as long as this object lives; the role needs a password there.
    :ivar folder: with the Unix socket, the log and the role's password in a file; no password is asked on the socket.
    """

    def __init__(self, *, settings: Mapping[str, str] | None = None, data: Path | None = None) -> None:
        """:raises Unavailable: ``service-not-started``: no server is installed, or it cannot make its database."""
        programs = find_server()
        if programs is None:
            raise Unavailable("service-not-started", "there is no PostgreSQL server here; Debian has it: postgresql")
        self._programs = programs
        self._account = _account()
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="cloister-postgres-"))
        self.data = data or self.folder / "data"
        self.port = _free_port()
        self.password_file = self.folder / "password"
        self.password_file.write_text(secrets.token_hex(16) + "\n", encoding="ascii")
        self.folder.chmod(0o755)
        self._own(self.folder)
        self._own(self.password_file)
        if data is not None:
            self._own(data)
        try:
            self._make(dict(settings or {}))
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _make(self, settings: dict[str, str]) -> None:
        command = ["--pgdata", str(self.data), "--username", "postgres", "--encoding", "UTF8", "--locale", "C"]
        command += ["--auth-local", "trust", "--auth-host", "scram-sha-256", "--no-sync", "--no-instructions"]
        done = self._run("initdb", *command, "--pwfile", str(self.password_file))
        if done.returncode:
            raise Unavailable("service-not-started", f"initdb: {done.stderr[-500:]}")
        given = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "shared_buffers": "16MB",
            "max_connections": "60",
            "log_line_prefix": "%m [%p] ",
            **settings,
        }
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in given.items())
        self.start()
        password = self.password_file.read_text(encoding="ascii").strip()
        self.sql(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{password}'", database="postgres")
        self.sql(f"CREATE DATABASE {DATABASE} OWNER {ROLE}", database="postgres")

    def _own(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def __enter__(self) -> PostgresServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what a test does to it ---

    def start(self) -> None:
        """Start it, and wait until it answers; recovers by itself after :meth:`kill`.

        :raises Unavailable: ``service-not-started`` with what it said.
        """
        with (self.folder / "log").open("ab") as log:
            command = [str(self._programs / "postgres"), "-D", str(self.data)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._identity())  # noqa: S603
        until = time.monotonic() + _STARTS_WITHIN_S
        while self._run("pg_isready", "-q", "-h", str(self.folder), "-p", str(self.port)).returncode:
            if self._process.poll() is not None or time.monotonic() > until:
                said = self.log[-1000:]
                self.kill()
                raise Unavailable("service-not-started", f"PostgreSQL: {said}")
            time.sleep(0.02)

    def stop(self) -> None:
        """An orderly restart's first half: sessions are ended, everything is written."""
        self._end(signal.SIGINT)

    def restart(self) -> None:
        """As an administrator does."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """``kill -9`` of every process it has, at once: what was not flushed to the disk's cache is lost."""
        process = self._process
        if process is None:
            return
        pids = self._pids(stop=True)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(_STOPS_WITHIN_S)
        until = time.monotonic() + _STOPS_WITHIN_S
        while any(_alive(pid) for pid in pids) and time.monotonic() < until:  # they hold its shared memory so long
            time.sleep(0.005)
        self._process = None

    def pause(self) -> None:
        """Every process stands still; connections stay open."""
        self._pids(stop=True)

    def resume(self) -> None:
        """Goes on after :meth:`pause`."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End it, and remove everything."""
        self.resume()
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.data, ignore_errors=True)

    def sql(self, statement: str, *, database: str = DATABASE, parameters: Sequence[Any] = ()) -> list[list[Any]]:
        """What its administrator gets for one statement, by the Unix socket; parameters are ``:p0``, ``:p1``, ..."""
        from pg8000.native import Connection

        named = {f"p{number}": value for number, value in enumerate(parameters)}
        with socket.socket(socket.AF_UNIX) as link:  # ours, for the library leaves it open when it is refused
            link.settimeout(_STARTS_WITHIN_S)
            link.connect(str(self.folder / f".s.PGSQL.{self.port}"))
            connection = Connection("postgres", sock=link, ssl_context=False, database=database)
            return list(connection.run(statement, **named) or [])

    def setting(self, name: str, value: str | None) -> None:
        """Change a setting while it runs, for sessions that are open too; ``None``: back to the default."""
        self.sql(f"ALTER SYSTEM SET {name} = '{value}'" if value is not None else f"ALTER SYSTEM RESET {name}")
        before = self.sql("SELECT pg_conf_load_time(), pg_reload_conf()")[0][0]
        # Once a new session has it, every older one was told, and takes it before its next statement.
        until = time.monotonic() + _STARTS_WITHIN_S
        while self.sql("SELECT pg_conf_load_time()")[0][0] == before and time.monotonic() < until:
            time.sleep(0.005)

    def speak_tls(self, certificate: Path, key: Path) -> None:
        """New sessions may use TLS, with this certificate (PEM). ``setting("ssl", "off")`` ends that."""
        for name, path in (("server.crt", certificate), ("server.key", key)):
            (self.data / name).write_bytes(path.read_bytes())
            (self.data / name).chmod(0o600)
            self._own(self.data / name)
        self.setting("ssl", "on")

    def end_sessions(self) -> None:
        """Cut every session of the role, as an administrator does."""
        self.sql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = :p0", parameters=[ROLE])

    def url(self, schema: str, *, port: int | None = None, by_socket: bool = False, **options: str) -> str:
        """How a KeyService names its namespace here; ``port``: of something in between on 127.0.0.1."""
        given = {"schema": schema, **({"host": str(self.folder)} if by_socket else {}), **options}
        if not by_socket:
            given = {"sslmode": "disable", "password_file": str(self.password_file), **given}
        where = f":{self.port}" if by_socket else f"127.0.0.1:{port or self.port}"
        return f"postgresql://{ROLE}@{where}/{DATABASE}?{urlencode(given, quote_via=quote, safe='/')}"

    @property
    def runs(self) -> bool:
        """Whether its first process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it said so far."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    # --- processes ---

    def _pids(self, *, stop: bool = False) -> list[int]:
        """The server's own and its children's; with ``stop`` each was sent SIGSTOP, so that none is added."""
        if self._process is None:
            return []
        found = [self._process.pid]
        while True:
            if stop:
                for pid in found:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP)
            more = [self._process.pid, *_children(self._process.pid)]
            if set(more) <= set(found):
                return found
            found = more

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process = process
            self.kill()

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self._programs / program), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, **self._identity())  # noqa: S603

    def _identity(self) -> dict[str, Any]:
        """As whom, and where: a folder that this account may enter."""
        environment = {**os.environ, "LC_ALL": "C"}
        if self._account is None:
            return {"cwd": self.folder, "env": environment}
        uid, gid = self._account.pw_uid, self._account.pw_gid
        return {"cwd": self.folder, "env": environment, "user": uid, "group": gid, "extra_groups": []}


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def _children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state parent ...; a name may hold anything but ends with the last parenthesis
            if int(status.read_text(encoding="latin-1").rpartition(")")[2].split()[1]) == parent:
                found.append(int(status.parent.name))
    return found


def _account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise Unavailable("service-not-started", "PostgreSQL does not run as root, and there is no other account")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
