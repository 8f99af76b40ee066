"""Where a store in PostgreSQL is, as an operator writes it.

    postgresql://user@host:5432/database?schema=replica0
    postgresql://user@/database?schema=replica0&host=/run/postgresql

Options: ``schema`` (the namespace; needed), ``host`` (the folder of a Unix socket), ``sslmode`` (``verify-full``, as
by default over TCP, or ``disable``), ``sslrootcert`` (a file of certificates to trust instead of the system's) and
``password_file``. A password stands in that file or in ``PGPASSWORD``; in a URL it is refused, for those are seen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import KIB
from cloister.base.secret import SecretBytes

SCHEMES: Final = ("postgresql", "postgres")
VERIFY_FULL: Final = "verify-full"
DISABLE: Final = "disable"
_PORT: Final = 5432
_OPTIONS: Final = ("schema", "host", "sslmode", "sslrootcert", "password_file")
_SCHEMA: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")  # nothing that needs care between quotes; PostgreSQL's own length
_RESERVED: Final = ("public", "information_schema")
_MAX_PASSWORD: Final = 4 * KIB


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """One namespace of one database.

    :param host: empty for a Unix socket. :param socket: the socket's path, or empty.
    :param tls: whether the server must prove its name; :param roots: to whom, instead of the system's roots.
    """

    user: str
    database: str
    schema: str
    host: str
    port: int
    socket: str
    tls: bool
    roots: Path | None
    password_file: Path | None

    @property
    def name(self) -> str:
        """For messages: what is public of it."""
        where = f"{self.host}:{self.port}" if self.host else self.socket
        return f"{self.schema!r} of database {self.database!r} on {where}"

    def password(self, environment: Mapping[str, str] | None = None) -> SecretBytes | None:
        """Read anew for each connection, so that it can be changed; ``None``: there is none.

        :raises Unavailable: ``store-password``.
        """
        if self.password_file is None:
            found = (os.environ if environment is None else environment).get("PGPASSWORD")
            return SecretBytes(found.encode()) if found else None
        try:
            with self.password_file.open("rb") as file:
                data = file.read(_MAX_PASSWORD + 1)
        except OSError as error:
            raise Unavailable(
                "store-password", f"the database's password cannot be read: {self.password_file}: {error.strerror}"
            ) from error
        password = data.removesuffix(b"\n").removesuffix(b"\r")
        if not password or len(data) > _MAX_PASSWORD:
            raise Unavailable("store-password", f"{self.password_file} holds no password of the database")
        return SecretBytes(password)


def parse_url(text: str) -> PostgresUrl:
    """:raises InvalidInput: ``store-url``; the text is never in the message, for it may hold a password."""
    try:
        parts = urlsplit(text)
        port = parts.port or _PORT
    except ValueError as error:
        raise _malformed("cannot be read") from error
    if parts.scheme not in SCHEMES:
        raise _malformed("does not begin with postgresql://")
    if parts.password is not None:
        raise _malformed("holds a password; say password_file=FILE, or PGPASSWORD in the environment")
    options = _options(parts)
    user, database = unquote(parts.username or ""), unquote(parts.path.removeprefix("/"))
    if not user or not database or "/" in database or not (user + database).isprintable():
        raise _malformed("names no user or no database: postgresql://USER@HOST/DATABASE?schema=NAME")
    schema = options.get("schema", "")
    if not _SCHEMA.fullmatch(schema) or schema in _RESERVED or schema.startswith("pg_"):
        raise _malformed(
            "needs schema=NAME, of small letters, digits and _: this replica's namespace, and nobody else's"
        )
    host, folder = parts.hostname or "", options.get("host", "")
    if bool(host) is bool(folder) or (folder and not folder.startswith("/")):
        raise _malformed("names a host, or with host=/FOLDER the folder of a Unix socket; one of them")
    mode = options.get("sslmode", VERIFY_FULL if host else DISABLE)
    if mode not in (VERIFY_FULL, DISABLE) or (mode == VERIFY_FULL and not host):
        raise _malformed(f"takes sslmode={VERIFY_FULL} or {DISABLE}; a Unix socket has no TLS")
    roots = options.get("sslrootcert")
    if roots and mode == DISABLE:
        raise _malformed(f"names sslrootcert beside sslmode={DISABLE}")
    return PostgresUrl(
        user=user,
        database=database,
        schema=schema,
        host=host,
        port=port,
        socket=f"{folder}/.s.PGSQL.{port}" if folder else "",
        tls=mode == VERIFY_FULL,
        roots=Path(roots) if roots else None,
        password_file=Path(options["password_file"]) if "password_file" in options else None,
    )


def _options(parts: SplitResult) -> dict[str, str]:
    if parts.fragment:
        raise _malformed("has a fragment (#...)")
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), max_num_fields=16)
    except ValueError as error:
        raise _malformed("has options that cannot be read") from error
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in _OPTIONS:
            raise _malformed(f"takes {', '.join(_OPTIONS)} as options, and no other")
        if name in found or not value or not value.isprintable():
            raise _malformed(f"says {name} twice, or nothing by it")
        found[name] = value
    return found


def _malformed(what: str) -> InvalidInput:
    return InvalidInput(
        "store-url",
        f"the store's URL {what}",
        hint="For example postgresql://keyservice@db.example/cloister?schema=replica0&password_file=/run/secrets/db",
    )
