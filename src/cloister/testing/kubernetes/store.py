"""Objects with versions, and their history for watches: what etcd and the API's watch cache are to each other."""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cloister.adapters.clock import SystemClock

Object = dict[str, Any]


class Refusal(Exception):
    """What the API answers instead of an object."""

    def __init__(self, code: int, reason: str, message: str, *, details: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }
        if details is not None:
            self.status["details"] = details


@dataclass(frozen=True, slots=True)
class Change:
    """One version: an object before and after it; None for not there."""

    version: int
    plural: str
    before: Object | None
    after: Object | None


class Store:
    """See the module. Everything in it belongs to one event loop; what it gives out are copies.

    :ivar born: by uid, the version that an object began with.
    :ivar version: of the newest change. :ivar oldest: changes up to here are forgotten.
    :ivar moved: set at the next change; then there is another one.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.version = 1000
        self.oldest = 0
        self.born: dict[str, int] = {}
        self.history: list[Change] = []
        self.listeners: list[Callable[[Change], None]] = []
        self._objects: dict[str, dict[str, Object]] = {}
        self._clock = SystemClock()
        self.moved = asyncio.Event()

    def get(self, plural: str, name: str) -> Object:
        """:raises Refusal: 404."""
        return copy.deepcopy(self._find(plural, name))

    def all_of(self, plural: str) -> list[Object]:
        """In the order of their names, as the API lists them."""
        return [copy.deepcopy(one) for _, one in sorted(self._objects.get(plural, {}).items())]

    def create(self, plural: str, value: Mapping[str, Any]) -> Object:
        """:raises Refusal: 409, there is one of this name."""
        one = copy.deepcopy(dict(value))
        meta = one.setdefault("metadata", {})
        name = meta["name"]
        if name in self._objects.get(plural, {}):
            raise Refusal(409, "AlreadyExists", f'{plural} "{name}" already exists')
        meta.update(
            namespace=self.namespace,
            uid=f"{secrets.token_hex(4)}-{secrets.token_hex(2)}-4000-8000-{secrets.token_hex(6)}",
            creationTimestamp=self.now(),
            generation=1,
        )
        self._objects.setdefault(plural, {})[name] = one
        self._record(plural, None, one)
        self.born[meta["uid"]] = self.version
        return copy.deepcopy(one)

    def change(self, plural: str, name: str, edit: Callable[[Object], None]) -> Object:
        """Change an object in place; an edit that changes nothing makes no version, as in the API.

        :raises Refusal: 404, and what the edit raises.
        """
        one = self._find(plural, name)
        edited = copy.deepcopy(one)
        edit(edited)
        if edited == one:
            return edited
        if edited.get("spec") != one.get("spec"):
            edited["metadata"]["generation"] = one["metadata"].get("generation", 1) + 1
        self._objects[plural][name] = edited
        self._record(plural, one, edited)
        return copy.deepcopy(edited)

    def remove(self, plural: str, name: str) -> Object:
        """The object is gone. :raises Refusal: 404."""
        one = self._find(plural, name)
        del self._objects[plural][name]
        last = copy.deepcopy(one)
        self._record(plural, one, None)
        last["metadata"]["resourceVersion"] = str(self.version)
        return last

    def compact(self) -> None:
        """Forget the history: whoever wants to go on from an older version has to list anew."""
        self.oldest = self.version
        self.history.clear()

    def now(self) -> str:
        """As the API writes times."""
        return datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _find(self, plural: str, name: str) -> Object:
        found = self._objects.get(plural, {}).get(name)
        if found is None:
            details = {"name": name, "kind": plural}
            raise Refusal(404, "NotFound", f'{plural} "{name}" not found', details=details)
        return found

    def _record(self, plural: str, before: Object | None, after: Object | None) -> None:
        self.version += 1
        if after is not None:
            after["metadata"]["resourceVersion"] = str(self.version)
        change = Change(self.version, plural, copy.deepcopy(before), copy.deepcopy(after))
        self.history.append(change)
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()
        for listener in tuple(self.listeners):
            listener(change)


def matches(selector: str, one: Object | None) -> bool:
    """Whether an object's labels match ``a=b,c``; nothing matches what is not there."""
    if one is None:
        return False
    labels = one["metadata"].get("labels") or {}
    for term in filter(None, selector.split(",")):
        name, equals, value = term.partition("=")
        if name not in labels or (equals and labels[name] != value.removeprefix("=")):
            return False
    return True


def merge(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged
