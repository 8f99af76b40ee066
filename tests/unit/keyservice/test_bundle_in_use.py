"""The trust bundle that a KeyService runs under (spec/protocol.md, 13.26.1; attestation.md, 10.2)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloister.attest.bundle import TrustBundle
from cloister.base.errors import CloisterError, InvalidInput, Refused
from cloister.client.audit import describe
from cloister.crypto.sign import SigningKey
from cloister.log.entry import BUNDLE, BundleRecord, Entry
from cloister.testing.clock import FakeClock
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.logs import MemoryLog
from cloister.wire.calls import Description


class World:
    """A KeyService alone, and the file that its operator offers."""

    def __init__(self) -> None:
        self.clock, self.root, self.log = FakeClock(), SigningKey.generate(), MemoryLog()
        self.ks = EmbeddedKeyService(clock=self.clock, bundle_key=self.root, events=self.log)

    def offer(self, version: int, **changes: object) -> TrustBundle:
        """The operator writes another file."""
        made = self.ks.tee.bundle(self.root, version=version)
        self.ks.bundle = TrustBundle(**{name: getattr(made, name) for name in made.__dataclass_fields__} | changes)
        return self.ks.bundle

    def attested(self) -> bytes:
        """The bundle's digest in the evidence."""
        return Description.decode(self.ks.service.description()).bundle_digest

    def named(self) -> list[int]:
        """Versions that the log names, in order."""
        with self.ks.assembled.ledger.read() as (state, _):
            size = state.size
        entries = [Entry.decode(data) for _, data, _ in self.ks.assembled.ledger.entries(list(range(size)))]
        return [BundleRecord.decode(entry.body).version for entry in entries if entry.kind == BUNDLE]


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.ks.close()


def refused(world: World) -> list[object]:
    return [fields["code"] for name, _, fields in world.log.events if name == "bundle-refused"]


def test_a_newer_file_is_entered_in_the_log_before_it_is_used(world: World) -> None:
    first, ks = world.attested(), world.ks
    ks.service.maintain()
    assert (world.named(), world.attested()) == ([1], first)
    second = world.offer(2)
    assert world.attested() == first
    ks.service.maintain()
    assert (world.named(), world.attested()) == ([1, 2], second.digest)
    assert ks.service.bundle() == second.sign(world.root)
    ks.service.maintain()
    assert world.named() == [1, 2]
    person = ks.person()  # an entry about everybody, though nobody is in it
    items = ks.ask(person, "keyservice-events")["items"]
    assert [describe(item["index"], Entry.decode(item["entry"]))["version"] for item in items] == [1, 2]


def test_whoever_owns_the_file_brings_no_older_one_back(world: World) -> None:
    newest = world.offer(4)
    world.ks.service.maintain()
    for version in (3, 1, 4):
        world.offer(version, name="another")
        for _ in range(3):
            world.ks.service.maintain()
        assert (world.named(), world.attested()) == ([4], newest.digest)
        with pytest.raises(Refused, match="bundle-rollback"):
            world.ks.restart()
        world.ks.bundle = newest
        world.ks.restart()
        assert world.attested() == newest.digest
    assert refused(world) == ["bundle-rollback"] * 3  # once by each process


def test_of_files_that_no_log_names_yet_none_is_older_than_the_last(world: World) -> None:
    """A follower whose log names none: nobody recorded one yet."""
    newest = world.offer(4)
    world.ks.restart()
    world.offer(3)
    for _ in range(3):
        world.ks.service._epochs.turn()
    assert world.attested() == newest.digest
    with pytest.raises(Refused, match="bundle-rollback"):
        world.ks.service._epochs._bundle_digest()


def test_a_file_that_is_wrong_changes_nothing(world: World) -> None:
    world.ks.service.maintain()
    first = world.attested()
    stranger = SigningKey.generate()
    for data, family in (
        (world.ks.tee.bundle(stranger, version=9).sign(stranger), CloisterError),
        (b"no bundle", InvalidInput),
        (world.offer(5, issued_at=1, expires_at=2).sign(world.root), Refused),
        (world.offer(5, issued_at=int(world.clock.now()) + 3600, expires_at=2**40).sign(world.root), Refused),
    ):
        bundles = world.ks.service._bundles
        assert bundles is not None
        bundles._offered = lambda data=data: data  # type: ignore[misc]
        world.ks.service.maintain()
        assert (world.named(), world.attested()) == ([1], first)
        with pytest.raises(family):
            bundles._offer(bundles.recorded())
    assert refused(world) == ["signature-invalid", "cbor-malformed", "bundle-expired", "bundle-not-yet-valid"]


def test_one_that_expired_ends_with_its_epoch_and_a_newer_one_goes_on(world: World) -> None:
    world.ks.service.maintain()
    first = world.attested()
    world.clock.advance(2 * 86_400)
    with pytest.raises(Refused, match="bundle-expired"):
        world.ks.service.maintain()
    assert world.attested() == first
    second = world.offer(2)
    world.ks.service.maintain()
    assert world.attested() == second.digest


def test_one_without_a_bundle_shows_none() -> None:
    ks = EmbeddedKeyService()
    with pytest.raises(InvalidInput, match="not-found"):
        ks.service.bundle()
    ks.close()
