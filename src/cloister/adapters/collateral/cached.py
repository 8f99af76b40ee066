"""A cache before another source: fewer questions, and none while the service is away (spec/attestation.md, 8.2, 8.3).

What is kept is collateral, never a verdict. Everything is checked when it comes and again when it is taken out, so a
poisoned entry is found and dropped. Numbers that only grow never go back: an expired entry still says what they were,
and the process remembers the highest of each, also while somebody puts older files back into the folder.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cloister.adapters.collateral.bundle import Entry, read_bounded, write_atomically
from cloister.adapters.collateral.check import Checked, check_collateral, check_subject
from cloister.adapters.collateral.subject import Subject, subject_of
from cloister.attest.anchors import TrustAnchors
from cloister.attest.types import Collateral, CollateralSource, Evidence, TeeType
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.base.limits import COLLATERAL_REFRESH_S, MAX_COLLATERAL, MAX_COLLATERAL_ENTRIES
from cloister.wire import cbor

_OVERHEAD: Final = 4096  # of the encoding around the files


class CacheStore(Protocol):
    """Where entries are kept. Losing one is no harm."""

    def load(self, subject: str) -> Entry | None: ...

    def save(self, entry: Entry) -> None: ...

    def drop(self, subject: str) -> None: ...


class MemoryStore:
    """Entries for as long as the process lives; the ones used longest ago go first."""

    def __init__(self, most: int = MAX_COLLATERAL_ENTRIES) -> None:
        self._most = most
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def load(self, subject: str) -> Entry | None:
        """The entry, if it is there."""
        if subject in self._entries:
            self._entries.move_to_end(subject)
        return self._entries.get(subject)

    def save(self, entry: Entry) -> None:
        """Keep it."""
        self._entries[entry.subject] = entry
        self._entries.move_to_end(entry.subject)
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)

    def drop(self, subject: str) -> None:
        """Forget it."""
        self._entries.pop(subject, None)


class DirectoryStore:
    """One file for each platform, written atomically; several processes may share it."""

    def __init__(self, folder: Path) -> None:
        """:raises Unavailable: ``collateral-unwritable`` when the folder cannot be made."""
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable("collateral-unwritable", f"{folder} cannot be made: {error.strerror}") from error

    def path(self, subject: str) -> Path:
        """Where the entry of this platform is."""
        return self._folder / f"{hashlib.sha256(subject.encode()).hexdigest()[:40]}.cbor"

    def load(self, subject: str) -> Entry | None:
        """The entry, if it is there and is one; a file that is none is removed."""
        path = self.path(subject)
        if not path.exists():
            return None
        try:
            limit = MAX_COLLATERAL + _OVERHEAD
            entry = Entry.decode(cbor.decode(read_bounded(path, limit), limit=limit, what="a cache entry"))
        except InvalidInput:
            self.drop(subject)
            return None
        except Unavailable:
            return None
        if entry.subject != subject:  # somebody moved files around
            self.drop(subject)
            return None
        return entry

    def save(self, entry: Entry) -> None:
        """Keep it; a full disk is no failure of the caller's."""
        try:
            write_atomically(self.path(entry.subject), cbor.encode(entry.encode()))
        except Unavailable:
            return

    def drop(self, subject: str) -> None:
        """Forget it."""
        try:
            self.path(subject).unlink(missing_ok=True)
        except OSError:
            return


@dataclass(frozen=True, slots=True)
class _Kept:
    entry: Entry
    checked: Checked | None  # None: it has run out, and only its numbers count
    numbers: Checked


class CachedCollateral:
    """``CollateralSource`` with a memory.

    :param refresh: after this many seconds the service is asked again, although the entry is still valid.
    """

    def __init__(
        self,
        source: CollateralSource,
        store: CacheStore,
        anchors: TrustAnchors,
        clock: Clock,
        *,
        refresh: float = COLLATERAL_REFRESH_S,
    ) -> None:
        self._source = source
        self._store = store
        self._anchors = anchors
        self._clock = clock
        self._refresh = refresh
        self._lock = threading.Lock()
        self._highest: dict[str, int] = {}  # only what vendors signed gets in here: a few names for each model of CPU
        self._seen: OrderedDict[str, Mapping[str, int]] = OrderedDict()  # by subject, newest last

    def collateral(self, evidence: Evidence) -> Collateral:
        """From the cache while it is fresh; else from the source; else from the cache while it is valid.

        :raises Unavailable: ``collateral-unavailable`` when the source is away and nothing valid is kept.
        :raises Refused: ``collateral-rolled-back``, or what is wrong with what the source gave, with nothing kept.
        :raises Tampered: likewise.
        :raises InvalidInput: likewise.
        """
        subject = subject_of(evidence)
        if subject is None:
            return self._source.collateral(evidence)
        now = self._clock.now()
        with self._lock:
            kept = self._load(subject, evidence.tee, now)
        if kept is not None and kept.checked is not None and 0 <= now - kept.entry.fetched_at < self._refresh:
            return kept.entry.collateral
        try:
            fresh = self._source.collateral(evidence)
            checked = check_collateral(evidence.tee, fresh, self._anchors, now)
            check_subject(subject, fresh)
            with self._lock:
                if kept is not None:
                    _check_forward(kept.numbers.numbers, checked)
                _check_forward(self._seen.get(subject.key, {}), checked)
                # on whatever platform it was seen: a list that one has shown hides nothing from another
                _check_forward({name: self._highest.get(name, -1) for name in checked.numbers}, checked)
                self._saw(subject, checked)
        except CloisterError:
            if kept is not None and kept.checked is not None:
                return kept.entry.collateral
            raise
        with self._lock:
            self._store.save(Entry(subject.key, int(now), fresh))
        return fresh

    def _load(self, subject: Subject, tee: TeeType, now: float) -> _Kept | None:
        entry = self._store.load(subject.key)
        if entry is None:
            return None
        try:
            check_subject(subject, entry.collateral)
            then = check_collateral(tee, entry.collateral, self._anchors, float(entry.fetched_at))
        except CloisterError:
            self._store.drop(subject.key)  # it was never good: poisoned
            return None
        try:
            _check_forward(self._seen.get(subject.key, {}), then)
        except Refused:
            self._store.drop(subject.key)  # somebody put an older one back
            return None
        self._saw(subject, then)
        try:
            return _Kept(entry, check_collateral(tee, entry.collateral, self._anchors, now), then)
        except CloisterError:
            return _Kept(entry, None, then)

    def _saw(self, subject: Subject, checked: Checked) -> None:
        for name, number in checked.numbers.items():
            self._highest[name] = max(number, self._highest.get(name, -1))
        self._seen[subject.key] = checked.numbers
        self._seen.move_to_end(subject.key)
        while len(self._seen) > MAX_COLLATERAL_ENTRIES:
            self._seen.popitem(last=False)


def _check_forward(before: Mapping[str, int], after: Checked) -> None:
    for name, number in before.items():
        if after.numbers.get(name, -1) < number:
            raise Refused(
                "collateral-rolled-back",
                f"{name} went back from {number} to {after.numbers.get(name, 'none')}",
                hint="The service, or somebody before it, answers with old collateral.",
            )
