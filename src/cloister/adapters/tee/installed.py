"""The code that is installed, read for the simulated measurement (spec/attestation.md, clause 6.3).

``importlib.metadata`` would do for the distributions, with 13 ms for its own imports and 15 ms for parsing e-mail
headers of which two matter: more than reading and hashing everything takes (7 ms).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

_REQUIREMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA: Final = re.compile(r"extra\s*==")
_SEPARATORS: Final = re.compile(r"[-_.]+")
_SUFFIX: Final = ".dist-info"
_CACHE: Final = "__pycache__"
_READ: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Distribution:
    """One installed distribution.

    :param record: SHA-256 of its list of files, ``RECORD``, which holds the digest of each.
    """

    version: str
    record: bytes


def files(root: str) -> Iterator[tuple[str, bytes]]:
    """(path relative to ``root``, SHA-256) of every file below it, links followed, without interpreter caches.

    :raises OSError: something cannot be read, or a link leads in a circle.
    """
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(f"{root}/{folder}") as entries:
            for entry in entries:
                if not entry.is_dir():
                    yield folder + entry.name, sha256(_read(entry.path)).digest()
                elif entry.name != _CACHE:
                    folders.append(f"{folder}{entry.name}/")


def distributions(names: Iterable[str], path: Iterable[str] | None = None) -> dict[str, Distribution | None]:
    """The distributions of these names and all that they require (without extras), by normalised name.

    :param path: where to look, by default where the interpreter imports from; the first that has a name counts, as for
        imports.
    :raises OSError: something cannot be read, or code comes from an archive, whose distributions are not looked for.
    """
    places = _places(sys.path if path is None else path)
    found: dict[str, Distribution | None] = {}
    waiting = list(names)
    while waiting:
        name = _normalised(waiting.pop())
        if name in found:
            continue
        place = places.get(name)
        if place is None:
            found[name] = None
            continue
        version, requirements = _metadata(_read(f"{place}/METADATA"))
        try:
            record = _read(f"{place}/RECORD")
        except FileNotFoundError:
            record = b""
        found[name] = Distribution(version, sha256(record).digest())
        waiting += requirements
    return found


def _places(path: Iterable[str]) -> dict[str, str]:
    """Normalised name to ``.dist-info`` folder."""
    places: dict[str, str] = {}
    for folder in path:
        try:
            names = os.listdir(folder or ".")  # noqa: PTH208  # a Path per name would cost more than all the rest
        except FileNotFoundError:
            continue
        for name in sorted(names):
            if name.endswith(_SUFFIX):
                places.setdefault(_normalised(name.removesuffix(_SUFFIX).partition("-")[0]), f"{folder or '.'}/{name}")
    return places


def _metadata(data: bytes) -> tuple[str, list[str]]:
    """(version, names of what is required without an extra), from the header of a METADATA file."""
    head = re.split(rb"\r?\n\r?\n", data, maxsplit=1)[0].decode("utf-8")
    version, requirements = "", []
    for line in re.sub(r"\r?\n[ \t]", " ", head).splitlines():
        field, _, value = line.partition(":")
        name = field.lower()
        if name == "version":
            version = value.strip()
        elif name == "requires-dist":
            required = _REQUIREMENT.match(value.strip())
            if required and not _EXTRA.search(value):
                requirements.append(required[0])
    return version, requirements


def _normalised(name: str) -> str:
    return _SEPARATORS.sub("-", name).lower()


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, _READ):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)
