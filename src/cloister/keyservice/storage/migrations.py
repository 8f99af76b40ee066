"""How a store's schema came about: an ordered list, the same for SQLite and PostgreSQL (spec/protocol.md, 13.22.1).

Each step is applied whole, in one transaction with the new version's number, or not at all. A number, once in use,
never means anything else: what changes the schema is a further step at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister import __version__
from cloister.base.errors import Refused, Tampered


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between databases.

    :param inside: before every table's name: the namespace and a dot, or nothing.
    """

    integer: str
    blob: str
    strict: str = ""
    inside: str = ""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step.

    :param version: of the schema, after it. :param statements: with the fields of :class:`Dialect`, in braces.
    """

    version: int
    statements: tuple[str, ...]

    def sql(self, dialect: Dialect) -> list[str]:
        """Its statements for one database."""
        names = {"integer": dialect.integer, "blob": dialect.blob, "strict": dialect.strict, "inside": dialect.inside}
        return [statement.format(**names) for statement in self.statements]


def _table(name: str) -> str:
    return f"CREATE TABLE {{inside}}{name} (idx {{integer}} PRIMARY KEY, record {{blob}} NOT NULL){{strict}}"


MIGRATIONS: Final = (
    Migration(1, (_table("entries"), _table("secrets"), _table("head"))),
    Migration(2, (_table("blocks"), _table("snapshots"))),
)
NEWEST: Final = MIGRATIONS[-1].version


def pending(found: int) -> tuple[Migration, ...]:
    """What brings a store of this version to the newest one; 0 is an empty one.

    :raises Refused: ``store-newer``: a newer Cloister wrote it. :raises Tampered: ``store-corrupt``.
    """
    if found > NEWEST:
        raise Refused(
            "store-newer",
            f"the store has schema version {found}; Cloister {__version__} understands versions 1 to {NEWEST}",
            hint="A newer Cloister opened this store. Run that one, or a newer one, on it.",
        )
    if found < 0:
        raise Tampered("store-corrupt", f"the store has schema version {found}, which never was")
    return tuple(step for step in MIGRATIONS if step.version > found)
