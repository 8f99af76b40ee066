"""The state as rows of CBOR, for snapshots (spec/protocol.md, 13.23.3). No I/O.

Written and read by the same code only: :func:`version` names it, and whoever reads a row trusts who wrote it. What a
table holds is said once, in :data:`TABLES` and :data:`INDEXES`; the rest follows from the types of its records.
"""

from __future__ import annotations

import sys
import types
import typing
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, get_args, get_origin, get_type_hints

from cloister.access.records import ConsentRecord, GrantRecord, Identity, Model, ServiceKey
from cloister.base.ids import ModelId
from cloister.crypto.digest import Context, digest
from cloister.keyservice.state.events import Events
from cloister.keyservice.state.persons import Waiting
from cloister.keyservice.state.state import CustodyState, SecretPlace, ServiceKeyName, State
from cloister.log.entry import BundleRecord, Genesis
from cloister.wire.log_keys import LogKeys
from cloister.wire.statements import Validity

TABLES: Final[Mapping[str, tuple[Any, Any]]] = {
    "identities": (bytes, Identity),
    "policies": (bytes, bytes),
    "models": (ModelId, Model),
    "grants": (tuple[ModelId, bytes], GrantRecord),
    "consents": (tuple[bytes, ModelId], ConsentRecord),
    "delegations": (tuple[bytes, bytes], int),
    "two_persons": (bytes, int),
    "proposed": (int, Waiting),
    "service_keys": (ServiceKeyName, tuple[ServiceKey, ...]),
    "secrets": (int, SecretPlace),
    "dying": (int, int),
}
INDEXES: Final[Mapping[str, tuple[Any, Any]]] = {
    "policies_of": (bytes, bytes),
    "waiting": (bytes, int),
}
# Indexes that a table makes: its name, and from one of its keys the index's key and member.
DERIVED: Final[Mapping[str, tuple[str, Callable[[Any], tuple[Any, Any]]]]] = {
    "models_of": ("models", lambda model: (model.owner, model)),
    "grants_by": ("grants", lambda key: (key[0].owner, key)),
    "grants_to": ("grants", lambda key: (key[1], key[0])),
    "consents_by": ("consents", lambda key: key),
    "consents_to": ("consents", lambda key: (key[1], key[0])),
    "delegates_of": ("delegations", lambda key: key),
    "delegated_to": ("delegations", lambda key: (key[1], key[0])),
}
VALUES: Final[Mapping[str, Any]] = {
    "size": int,
    "time": int,
    "genesis": Genesis | None,
    "bundle": BundleRecord | None,
    "log_keys": LogKeys | None,
    "custody": CustodyState | None,
}
_VERSION: Final = 1  # of everything here that types do not say
_MEMBERS: Final = 512  # of a set in one row
_PACKED: Final = 64 * 1024  # bytes of an event index in one row

Row = tuple[str, object, object]
"""Section, key and value, as CBOR takes them."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The state at one size, whatever happens to it later; taking it is all that the writer waits for.

    :param block: the first one that is not complete: what is in it is in ``concerned``.
    """

    values: Mapping[str, Any]
    tables: Mapping[str, Mapping[Any, Any]]
    indexes: Mapping[str, list[tuple[Any, tuple[Any, ...]]]]
    events: Mapping[bytes, array[int]]
    block: int
    concerned: Mapping[bytes, bytes]


def copy(state: State, block: int) -> Copy:
    """Of a state in which everything is durable.

    :param block: the number of the first block that is not complete.
    """
    if missing := set(vars(state)) ^ {*TABLES, *INDEXES, *DERIVED, *VALUES, "events", "journal"}:  # that is empty
        msg = f"the encoding of the state says nothing of {missing}"
        raise AssertionError(msg)
    return Copy(
        {name: getattr(state, name) for name in VALUES},
        {name: getattr(state, name).copied() for name in TABLES},
        {name: getattr(state, name).copied() for name in INDEXES},
        state.events.parties(),
        block,
        state.events.concerned(block),
    )


def rows(copy: Copy) -> Iterator[Row]:
    """All of it."""
    for name, kind in VALUES.items():
        yield name, None, _packer(kind)(copy.values[name])
    for name, (key_kind, kind) in TABLES.items():
        key_of, value_of = _packer(key_kind), _packer(kind)
        for key, value in copy.tables[name].items():
            yield name, key_of(key), value_of(value)
    for name, (key_kind, kind) in INDEXES.items():
        key_of, value_of = _packer(key_kind), _packer(kind)
        for key, members in copy.indexes[name]:
            for at in range(0, len(members), _MEMBERS):
                yield name, key_of(key), [value_of(member) for member in members[at : at + _MEMBERS]]
    for party, numbers in copy.events.items():
        packed = Events.packed(numbers, copy.block)
        for at in range(0, len(packed), _PACKED):
            yield "events", party, packed[at : at + _PACKED]
    for party, places in copy.concerned.items():
        yield "concerned", party, places


class Reader:
    """Builds a state from rows, in their order: those of one table make an index in its order.

    :param block: entries of a block.
    """

    def __init__(self, block: int) -> None:
        memory: dict[Any, Any] = {}
        self._state = State(block)
        self._block = block
        self._tables = {name: (_reader(key, memory), _reader(kind, memory)) for name, (key, kind) in TABLES.items()}
        self._made = [(table, getattr(self._state, index), member) for index, (table, member) in DERIVED.items()]
        self._indexes = {name: (_reader(key, memory), _reader(kind, memory)) for name, (key, kind) in INDEXES.items()}
        self._numbers: dict[bytes, bytes] = {}
        self._concerned: dict[bytes, bytes] = {}

    def take(self, section: str, key: Any, value: Any) -> None:
        """One row; whatever is wrong with it is raised as Python does."""
        if section in self._tables:
            key_of, value_of = self._tables[section]
            found = key_of(key)
            getattr(self._state, section).restore(found, value_of(value))
            for table, index, member in self._made:
                if table == section:
                    index.restore_one(*member(found))
        elif section in self._indexes:
            key_of, value_of = self._indexes[section]
            getattr(self._state, section).restore(key_of(key), [value_of(member) for member in value])
        elif section == "events":
            self._numbers[key] = self._numbers.get(key, b"") + value
        elif section == "concerned":
            self._concerned[key] = value
        else:
            setattr(self._state, section, _reader(VALUES[section], {})(value))

    def done(self) -> State:
        """The state."""
        state = self._state
        state.events.restore(self._numbers, state.size // self._block, self._concerned)
        return state


def version(code: bytes) -> bytes:
    """Names an encoding by all that its meaning hangs on: the records' fields and types, and the code's measurement.

    What an entry does to the state is code too, so that what other code made is never gone on from.
    """
    said: list[str] = [f"{_VERSION} {sys.byteorder}"]
    for name, (key, kind) in {**TABLES, **INDEXES}.items():
        said.append(f"{name}: {_shape(key)} {_shape(kind)}")
    said += [f"{name} of {table}" for name, (table, _) in DERIVED.items()]
    said += [f"{name}: {_shape(kind)}" for name, kind in VALUES.items()]
    return digest(Context.STATE_ENCODING, "\n".join(said).encode(), code)


# --- by type ---


def _members(kind: Any) -> list[tuple[str, Any]]:
    hints = get_type_hints(kind)
    return [(field.name, hints[field.name]) for field in fields(kind)]


def _optional(kind: Any) -> Any:
    """What ``kind`` is besides ``None``; ``None`` unless it is a union with it."""
    if get_origin(kind) not in (types.UnionType, typing.Union):
        return None
    (inner,) = (arm for arm in get_args(kind) if arm is not types.NoneType)
    return inner


def _shape(kind: Any) -> str:
    if kind in (int, bytes, str, bool):
        return str(kind.__name__)
    if inner := _optional(kind):
        return f"({_shape(inner)})?"
    if get_origin(kind) is tuple:
        return f"({', '.join('...' if part is ... else _shape(part) for part in get_args(kind))})"
    return f"{kind.__name__}({', '.join(f'{name}: {_shape(part)}' for name, part in _members(kind))})"


def _packer(kind: Any) -> Callable[[Any], object]:
    """From a value to what CBOR takes: records become lists of their fields."""
    if kind in (int, bytes, str, bool):
        return _same
    if inner := _optional(kind):
        pack = _packer(inner)
        return lambda value: None if value is None else pack(value)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if parts[-1] is ...:
            pack = _packer(parts[0])
            return lambda value: [pack(part) for part in value]
        packs = [_packer(part) for part in parts]
        return lambda value: [pack(part) for pack, part in zip(packs, value, strict=True)]
    named = [(name, _packer(part)) for name, part in _members(kind)]
    return lambda value: [pack(getattr(value, name)) for name, pack in named]


def _reader(kind: Any, memory: dict[Any, Any]) -> Callable[[Any], Any]:
    """The way back. Equal ids are one object, from ``memory``: there are few of them, in many records."""
    if kind in (int, str, bool):
        return _same
    if kind is bytes:
        return lambda value: memory.setdefault(value, value)
    if inner := _optional(kind):
        read = _reader(inner, memory)
        return lambda value: None if value is None else read(value)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if parts[-1] is ...:
            read = _reader(parts[0], memory)
            return lambda value: tuple([read(part) for part in value])
        reads = [_reader(part, memory) for part in parts]
        return lambda value: tuple([read(part) for read, part in zip(reads, value, strict=True)])
    if kind is ModelId:
        return lambda value: memory.get(name := tuple(value)) or memory.setdefault(name, ModelId(*name))
    if kind is Validity:
        return lambda value: memory.get(name := (Validity, *value)) or memory.setdefault(name, Validity(*value))
    members = [_reader(part, memory) for _, part in _members(kind)]
    return lambda value: kind(*[read(part) for read, part in zip(members, value, strict=True)])


def _same(value: Any) -> Any:
    return value
