"""Collateral of many platforms in one file, for places without a network (spec/attestation.md, clauses 8.4 and 8.6).

The file needs no signature of its own: every part of it is signed by its vendor, and is verified again when it is used.
``expires_at`` is written for people; :func:`check_bundle` computes it from the parts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cloister.adapters.collateral.check import check_collateral, check_subject
from cloister.adapters.collateral.directory import FILES
from cloister.adapters.collateral.subject import VLEKS, AmdSubject, certificate_der, subject_named, subject_of
from cloister.attest import x509
from cloister.attest.anchors import TrustAnchors
from cloister.attest.snp.certificates import VEK_FILE, Signer
from cloister.attest.snp.parse import SnpReport
from cloister.attest.snp.parse import parse as parse_report
from cloister.attest.snp.verify import check_signature
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.limits import MAX_COLLATERAL, MAX_COLLATERAL_BUNDLE, MAX_COLLATERAL_ENTRIES
from cloister.wire import cbor

FORMAT: Final = "cloister-collateral"
VERSION: Final = 1
_MAX_SUBJECT: Final = 256
_MAX_TIME: Final = 2**40


@dataclass(frozen=True, slots=True)
class Entry:
    """One platform's collateral.

    :param subject: ``<tee>/...``, as ``subject_of(evidence).key`` gives it.
    :param fetched_at: Unix seconds.
    """

    subject: str
    fetched_at: int
    collateral: Collateral

    @property
    def tee(self) -> TeeType:
        """Which TEE it is for; the subject starts with it."""
        return TeeType(self.subject.split("/", 1)[0])

    def encode(self) -> dict[str, object]:
        """As it stands in a bundle or a cache."""
        return {"subject": self.subject, "fetched_at": self.fetched_at, "files": dict(self.collateral.files)}

    @classmethod
    def decode(cls, value: object) -> Entry:
        """:raises InvalidInput: ``collateral-malformed`` and the codes of ``wire.cbor.Fields``."""
        fields = cbor.Fields(value, "an entry of collateral")
        subject = fields.text("subject", limit=_MAX_SUBJECT)
        tee = next((kind for kind in TeeType if kind.value == subject.split("/", 1)[0]), None)
        if tee is None:
            raise InvalidInput("collateral-malformed", f"{subject[:64]!r} is not the name of a platform")
        fetched_at = fields.integer("fetched_at", high=_MAX_TIME)
        files = fields.mapping("files")
        fields.done()
        if not set(files) <= set(FILES[tee]) or not all(type(data) is bytes for data in files.values()):
            raise InvalidInput("collateral-malformed", f"{tee.value} collateral has files that do not belong to it")
        if sum(len(data) for data in files.values()) > MAX_COLLATERAL:
            raise InvalidInput("collateral-malformed", f"collateral has more than {MAX_COLLATERAL} bytes")
        return cls(subject, fetched_at, Collateral(MappingProxyType(dict(files))))


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle file holds. Subjects are distinct and in order."""

    made_at: int
    expires_at: int
    entries: tuple[Entry, ...]

    def encode(self) -> bytes:
        """The file."""
        return cbor.encode(
            {
                "format": FORMAT,
                "version": VERSION,
                "made_at": self.made_at,
                "expires_at": self.expires_at,
                "entries": [entry.encode() for entry in self.entries],
            }
        )


@dataclass(frozen=True, slots=True)
class EntryReport:
    """Of one entry: when it runs out, or why it will not do."""

    subject: str
    expires_at: float | None
    problem: CloisterError | None


def make_bundle(entries: Iterable[Entry], anchors: TrustAnchors, now: float) -> Bundle:
    """A bundle of entries that are all genuine and valid now.

    :raises InvalidInput: ``collateral-malformed`` for none, too many, or two of one platform.
    :raises CloisterError: what is wrong with an entry, as :func:`check_collateral` and :func:`check_subject` say it.
    """
    ordered = tuple(sorted(entries, key=lambda entry: entry.subject))
    if not ordered or len(ordered) > MAX_COLLATERAL_ENTRIES:
        raise InvalidInput("collateral-malformed", f"a bundle has 1 to {MAX_COLLATERAL_ENTRIES} entries")
    if len({entry.subject for entry in ordered}) != len(ordered):
        raise InvalidInput("collateral-malformed", "a bundle has one entry for each platform")
    ends = [_check(entry, anchors, now) for entry in ordered]
    return Bundle(int(now), int(min(ends)), ordered)


def _check(entry: Entry, anchors: TrustAnchors, now: float) -> float:
    """When it runs out. Genuine collateral under another platform's name would serve nobody."""
    expires = check_collateral(entry.tee, entry.collateral, anchors, now).expires_at
    vek = entry.collateral.files.get(VEK_FILE)
    check_subject(subject_named(entry.subject, None if vek is None else certificate_der(vek)), entry.collateral)
    return expires


def parse_bundle(data: bytes) -> Bundle:
    """Read a bundle file. Nothing in it is believed yet.

    :raises InvalidInput: ``collateral-malformed`` and the codes of ``wire.cbor``.
    """
    fields = cbor.Fields(cbor.decode(data, limit=MAX_COLLATERAL_BUNDLE, what="the collateral bundle"), "the bundle")
    if fields.text("format", limit=64) != FORMAT or fields.integer("version") != VERSION:
        raise InvalidInput("collateral-malformed", f"the file is not a {FORMAT} bundle of version {VERSION}")
    made_at = fields.integer("made_at", high=_MAX_TIME)
    expires_at = fields.integer("expires_at", high=_MAX_TIME)
    entries = tuple(Entry.decode(item) for item in fields.items("entries", limit=MAX_COLLATERAL_ENTRIES))
    fields.done()
    subjects = [entry.subject for entry in entries]
    if not subjects or any(a >= b for a, b in pairwise(subjects)):
        raise InvalidInput("collateral-malformed", "the bundle's entries are not distinct and in order")
    return Bundle(made_at, expires_at, entries)


def check_bundle(bundle: Bundle, anchors: TrustAnchors, now: float) -> tuple[EntryReport, ...]:
    """Verify every entry at a time; the caller decides what to do about one that will not do."""
    reports = []
    for entry in bundle.entries:
        try:
            reports.append(EntryReport(entry.subject, _check(entry, anchors, now), None))
        except CloisterError as error:
            reports.append(EntryReport(entry.subject, None, error))
    return tuple(reports)


def write_atomically(path: Path, data: bytes) -> None:
    """The whole new content, or the old one: never half of either.

    :raises Unavailable: ``collateral-unwritable``.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Unavailable("collateral-unwritable", f"{path} cannot be written: {error.strerror}") from error


def read_bounded(path: Path, limit: int) -> bytes:
    """A file of at most ``limit`` bytes.

    :raises Unavailable: ``collateral-unavailable``.
    :raises InvalidInput: ``collateral-malformed``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise Unavailable("collateral-unavailable", f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise InvalidInput("collateral-malformed", f"{path} has more than {limit} bytes")
    return data


class BundleCollateral:
    """``CollateralSource`` over a bundle file, which is read once."""

    def __init__(self, bundle: Bundle) -> None:
        self._entries: Mapping[str, Entry] = {entry.subject: entry for entry in bundle.entries}

    @classmethod
    def open(cls, path: Path) -> BundleCollateral:
        """:raises InvalidInput: as :func:`parse_bundle`. :raises Unavailable: ``collateral-unavailable``."""
        return cls(parse_bundle(read_bounded(path, MAX_COLLATERAL_BUNDLE)))

    def collateral(self, evidence: Evidence) -> Collateral:
        """The entry for the platform of this evidence.

        :raises Unavailable: ``collateral-unavailable`` when the bundle has none.
        """
        subject = subject_of(evidence)
        if subject is None:
            return Collateral()
        entry = self._entries.get(subject.key)
        if entry is None and isinstance(subject, AmdSubject) and subject.signer is Signer.VLEK and subject.vek is None:
            entry = self._signer_of(evidence)
        if entry is None:
            raise Unavailable(
                "collateral-unavailable",
                f"the bundle has nothing for {subject.key}",
                hint="Make a new one that includes this platform: `cloister collateral bundle`.",
            )
        return entry.collateral

    def _signer_of(self, evidence: Evidence) -> Entry | None:
        """A VLEK is named by its certificate; where that did not come along, it is the one whose key signed."""
        report = parse_report(evidence.body)
        vleks = (entry for key, entry in self._entries.items() if key.startswith(VLEKS))
        return next((entry for entry in vleks if _signed(report, entry)), None)


def _signed(report: SnpReport, entry: Entry) -> bool:
    """Only which entry to try: verification checks the signature again, under a chain that is AMD's."""
    try:
        vek = certificate_der(entry.collateral.files.get(VEK_FILE, b""))
        check_signature(report, x509.load_certificate(vek, VEK_FILE))
    except CloisterError:
        return False
    return True
