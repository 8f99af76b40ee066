"""Whoever saves, restores and rotates copies of a KeyService at random gets one history acknowledged, and none lost."""

from __future__ import annotations

import random  # noqa: TID251  # a seeded choice of steps, nothing secret
from dataclasses import dataclass, replace
from pathlib import Path

from cloister.base.errors import CloisterError
from cloister.base.secret import SecretBytes
from cloister.keyservice.offline import ROOT_FILE
from cloister.keyservice.root import Root, keep_root, root_of
from cloister.keyservice.rotation import rotate_root
from cloister.log.receipt import verify_receipt
from cloister.testing.clock import FakeClock
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import Person
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.testing.tee import SimulatedTee
from cloister.testing.witness import local_witnesses, witnessed
from cloister.wire.log_keys import LogKeys

FIRST = root_of(SecretBytes(b"r" * 32))
SEEDS, STEPS = 12, 40
# What it says when witnesses hold it for a copy, or would not have its rotation.
SAFE = {"keyservice-superseded", "keyservice-unconfirmed"}


@dataclass(frozen=True)
class Image:
    """What lies on a disk: records, and the sealed root beside them."""

    disk: MemoryDisk
    root: Root


class Machine:
    """One instance runs at a time; the attacker holds every image there ever was."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.clock = FakeClock()
        self.platform = SimulatedTee("runtime", clock=self.clock)
        self.witnesses = local_witnesses(folder, self.clock, FIRST.log_key.public_key, 3)
        self.ks = self.start(Image(MemoryDisk(), FIRST))
        self.images = [self.image()]
        self.acknowledged: dict[int, bytes] = {}
        self.longest = LogKeys(FIRST.log_keys.first)
        self.rotations = 0

    def start(self, image: Image) -> EmbeddedKeyService:
        return EmbeddedKeyService(
            clock=self.clock,
            disk=image.disk,
            root=image.root,
            runtime_tee=self.platform,
            **witnessed(self.witnesses, 2),
        )

    def image(self) -> Image:
        return Image(self.ks.disk.copy(), self.ks.root)

    def say(self) -> None:
        try:
            result = self.ks.say(Person(self.ks.id, self.clock).register())
        except CloisterError as error:
            if error.code not in SAFE:
                raise
            return
        keys = self.ks.root.log_keys
        receipt = verify_receipt(result["receipt"], keys)
        ledger = self.ks.assembled.ledger
        assert receipt.index > max(self.acknowledged, default=0)
        for index, leaf in self.acknowledged.items():
            assert ledger.leaf(index) == leaf
        self.acknowledged[receipt.index] = receipt.leaf
        assert keys.continues(self.longest)
        self.longest = keys

    def save(self) -> None:
        self.images.append(self.image())

    def restore(self) -> None:
        image = self.random.choice(self.images[-4:])
        self.ks.close()
        self.ks = self.start(replace(image, disk=image.disk.copy()))

    def rotate(self) -> None:
        image = self.image()
        self.ks.close()
        path = self.folder / f"{self.random.getrandbits(64):x}-{ROOT_FILE}"
        keep_root(path, image.root, self.ks.tee.sealer())
        try:
            root = rotate_root(
                path,
                self.ks.tee.sealer(),
                self.ks.settings,
                lambda: MemoryRows(image.disk),
                clock=self.clock,
                witnesses=self.witnesses,
            )
            self.rotations += 1
        except CloisterError as error:
            if error.code not in SAFE | {"limit-reached"}:
                raise
            root = image.root
        image.disk.locked = False
        self.ks = self.start(Image(image.disk, root))
        if self.random.random() < 0.5:
            self.save()

    def step(self) -> None:
        self.clock.advance(12)
        chosen = self.random.choices((self.say, self.save, self.restore, self.rotate), (8, 2, 1, 3))[0]
        chosen()


def test_s7_copies_rotated_at_random_never_acknowledge_two_histories(tmp_path: Path) -> None:
    """A fork that was tried leaves witnesses behind for good, so many of these end early; some get far."""
    acknowledged = generations = 0
    for seed in range(SEEDS):
        machine = Machine(tmp_path / str(seed), seed)
        for _ in range(STEPS):
            machine.step()
        machine.ks.close()
        acknowledged += len(machine.acknowledged)
        generations += machine.longest.generation
    assert acknowledged > 3 * SEEDS
    assert generations > SEEDS
