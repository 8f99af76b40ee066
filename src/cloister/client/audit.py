"""What a party takes out of the log for itself or an auditor, and how an entry reads (spec/protocol.md, 13.13)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any, Final

from cloister.base.errors import InvalidInput, Tampered
from cloister.base.ids import ModelId
from cloister.client.client import Client
from cloister.log.custody import CustodySet, Recovery
from cloister.log.entry import (
    BUNDLE,
    CUSTODY,
    HAND_OVER,
    RECOVERY,
    RELEASE,
    ROTATION,
    SERVICE_KEY_EPOCH,
    STATEMENT,
    BundleRecord,
    Entry,
    HandOverRecord,
    ReleaseRecord,
    ServiceKeyEpoch,
    entry_leaf,
)
from cloister.log.export import ExportHeader, OpenedEntry
from cloister.log.merkle import HASH_LENGTH, MerkleTree
from cloister.wire.statements import FOREVER, Approve, Body, Validity, peek_statement


def export_own(client: Client, *, leaves: bool) -> tuple[ExportHeader, bytes, list[OpenedEntry]]:
    """All entries that concern the client's identity or everybody, under one head that it believes.

    :param leaves: keep all leaves, rather than a proof for each entry.
    :raises Tampered: an entry that the KeyService shows is not in its log.
    """
    found = [*client.events(), *client.keyservice_events()]  # first: the head that follows holds them all
    events = sorted(found, key=itemgetter("index"))
    header, hashes = client.account.link.export()
    size = len(hashes) // HASH_LENGTH
    tree = MerkleTree() if leaves else MerkleTree(_leaf(hashes, index) for index in range(size))
    opened = []
    for item in events:
        index, encoded = item["index"], item["entry"]
        if index < size:  # otherwise not confirmed yet
            _require_leaf(hashes, index, encoded)
            opened.append(OpenedEntry(index, encoded, () if leaves else tree.inclusion(index)))
    return header, hashes if leaves else b"", opened


def export_all(client: Client) -> tuple[ExportHeader, bytes, Iterator[OpenedEntry]]:
    """The whole log with all leaves, for an auditor that the KeyService's configuration names; entries as they come.

    :raises Refused: ``not-auditor``. :raises Tampered: an entry is not the one in the log, or is kept back.
    """
    header, hashes = client.account.link.export()

    def opened() -> Iterator[OpenedEntry]:
        expected = 0
        for index, encoded in client.history():
            if index >= header.head.size:  # written meanwhile
                break
            _require_leaf(hashes, index, encoded)
            expected += 1
            yield OpenedEntry(index, encoded)
        if expected < header.head.size:
            raise Tampered("log-inclusion", f"the KeyService keeps entry {expected} of {header.head.size} back")

    return header, hashes, opened()


def _leaf(hashes: bytes, index: int) -> bytes:
    return hashes[index * HASH_LENGTH : (index + 1) * HASH_LENGTH]


def _require_leaf(hashes: bytes, index: int, encoded: bytes) -> None:
    if entry_leaf(encoded) != _leaf(hashes, index):
        raise Tampered("log-inclusion", f"the entry shown as {index} is not the one in the log")


def describe(index: int, entry: Entry) -> dict[str, Any]:
    """An entry for people and programs: ``index, time, kind, what`` and its own fields, bytes in hexadecimal.

    :raises InvalidInput: a malformed body.
    """
    row: dict[str, Any] = {"index": index, "time": entry.time, "kind": entry.kind}
    if entry.kind == STATEMENT:
        statement = peek_statement(entry.body)
        kind = _words(type(statement.body).__name__)
        row |= {"statement": kind, "issuer": statement.issuer.hex(), "subject": statement.subject.hex()}
        row |= _fields(statement.body)
        row["what"] = f"{_short(row['issuer'])} {kind}{_told(statement.body)}"
        if isinstance(statement.body, Approve):
            said = peek_statement(statement.body.statement)
            row["what"] += f": {_short(said.issuer.hex())} {_words(type(said.body).__name__)}{_told(said.body)}"
        return row
    if entry.kind == RELEASE:
        release = ReleaseRecord.decode(entry.body)
        row |= _fields(release)
        row["what"] = (
            f"keys released: a runtime ({release.tee}, {_code(release.measurements)}) could read requests of "
            f"{_short(row['user'])} to {release.model.name} v{release.version} for {release.lease_s} s, by the owner's "
            f"policy {_short(row['owner_policy'])} and the user's {_short(row['user_policy'])}"
        )
        return row
    if entry.kind == SERVICE_KEY_EPOCH:
        made = ServiceKeyEpoch.decode(entry.body)
        row |= _fields(made)
        row["what"] = f"service key {made.epoch} made for {made.model.name}, policy {_short(row['policy_digest'])}"
        return row
    if entry.kind == BUNDLE:
        named = BundleRecord.decode(entry.body)
        row |= {"version": named.version, "digest": named.digest.hex()}
        row["what"] = f"trust bundle {named.version} came into use ({_short(row['digest'])})"
        return row
    if entry.kind == HAND_OVER:
        given = HandOverRecord.decode(entry.body)
        row |= _fields(given)
        row["what"] = (
            f"root secret handed over to a KeyService ({given.tee}, {_code(given.measurements)}, configuration "
            f"{_short(row['configuration_digest'])}), by trust bundle {given.bundle_version}"
        )
        return row
    if entry.kind == ROTATION:
        row["what"] = "the KeyService's root was rotated: another log key signs from here on"
        return row
    if entry.kind == CUSTODY:
        custody = CustodySet.decode(entry.body)
        row |= _fields(custody)
        listed = ", ".join(map(_short, row["custodians"]))
        who = f"any {custody.threshold} of the custodians {listed} together" if listed else "no custodian"
        row["what"] = f"from here on {who} can bring the KeyService back"
        return row
    if entry.kind == RECOVERY:
        recovery = Recovery.decode(entry.body)
        row |= _fields(recovery)
        listed, code = ", ".join(map(_short, row["custodians"])), _code(recovery.measurements)
        row["what"] = f"the KeyService was brought back by custodians {listed} ({recovery.tee}, {code})"
        return row
    row["what"] = "the log began"
    return row


def readers(entries: Iterable[tuple[int, Entry]]) -> list[dict[str, Any]]:
    """Who could read what, when, by which policies, on which code: releases of keys that differ in time only are one.

    ``user, model, version, manifest, mode, tee, measurements, configuration, owner_policy, user_policy, releases,
    first, until``; bytes in hexadecimal, times in Unix seconds, ``until`` the end of the last lease.
    """
    found: dict[bytes, dict[str, Any]] = {}
    for _, entry in entries:
        if entry.kind != RELEASE:
            continue
        record = ReleaseRecord.decode(entry.body)
        until = entry.time + record.lease_s
        same_kind = replace(record, key_id=bytes(32), lease_s=1, lease_requests=1).encode()
        row = found.get(same_kind)
        if row is None:
            named = _fields(record)
            row = found[same_kind] = {
                **{name: named[name] for name in ("user", "model", "version", "mode", "tee", "measurements")},
                **{name: named[name] for name in ("owner_policy", "user_policy")},
                "manifest": record.manifest_digest.hex(),
                "configuration": record.configuration_digest.hex(),
                "releases": 0,
                "first": entry.time,
                "until": until,
            }
        row["releases"] += 1
        row["until"] = max(row["until"], until)
    return list(found.values())


def _code(measurements: Mapping[str, bytes]) -> str:
    return ", ".join(f"{name} {value.hex()[:16]}..." for name, value in sorted(measurements.items()))


_TOLD: Final = frozenset({
    "approvals", "delegate", "entry", "manifest_digest", "mode", "name", "policy_digest", "user", "version"
})  # fmt: skip


def _told(body: Body) -> str:
    parts = []
    for name, value in _fields(body).items():
        if name == "validity":
            parts.append(f"until {_until(value)}" if value["not_after"] < FOREVER else "for ever")
        elif name == "manifest_digest" and value is None:
            parts.append("any version of it")
        elif name == "model":
            owner, _, own_name = value.partition("/")
            parts.append(f"model {_short(owner)}/{own_name}")
        elif name == "delegates":
            parts.extend(f"delegate {_short(item)}" for item in value)
        elif name in _TOLD:
            parts.append(f"{name.removesuffix('_digest')} {_short(value) if len(str(value)) == 64 else value}")
    return f" ({', '.join(parts)})" if parts else ""


def _until(validity: dict[str, int]) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(validity["not_after"]))


def _fields(value: Any) -> dict[str, Any]:
    return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case ModelId():
            return str(value)
        case Validity():
            return {"not_before": value.not_before, "not_after": value.not_after}
        case tuple():
            return [_plain(item) for item in value]
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case tuple():
            return [_plain(item) for item in value]
        case None | bool() | int() | str():
            return value
        case _:
            raise InvalidInput("entry-unknown", f"an entry holds a {type(value).__name__}")


def _short(text: str) -> str:
    return f"{text[:12]}..."


def _words(name: str) -> str:
    return "".join("-" + letter.lower() if letter.isupper() else letter for letter in name).lstrip("-")
