"""S2, S7, S8, S9: custodians bring back the KeyService that was lost, and nothing else gets anything out of them.

The cloud owns every disk, every copy of it, the network and the machine on which it is brought back (13.24).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.recovery import check_code, code_of
from cloister.attest.bundle import Successor, TrustBundle
from cloister.attest.types import TeeType
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.client.audit import describe
from cloister.crypto.digest import Context
from cloister.crypto.hpke import HpkePrivateKey, seal
from cloister.crypto.sign import SigningKey
from cloister.keyservice.custody.restoring import Restoring
from cloister.keyservice.custody.sets import make_record, open_record
from cloister.keyservice.custody.upkeep import Custodians
from cloister.keyservice.offline import ROOT_FILE
from cloister.keyservice.root import Root, open_root, root_of
from cloister.keyservice.settings import Settings
from cloister.keyservice.storage.port import HEAD, RECOVERY_ROW
from cloister.log.entry import Entry
from cloister.testing.clock import FakeClock
from cloister.testing.custody import AskingTransport, LocalCustodian, restoring
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.logs import MemoryLog
from cloister.testing.rows import MemoryDisk, MemoryRows
from cloister.testing.tee import SimulatedTee
from cloister.testing.witness import local_witnesses, witnessed
from cloister.wire.calls import WireEvidence
from cloister.wire.custody import CustodyRecord, custodian_id, open_share
from cloister.wire.provisioning import Release, ReleaseRequest
from cloister.wire.recovery import Answer, Offer, recovery_report_data, seal_answer
from cloister.wire.statements import (
    REQUEST_KEY,
    Consent,
    DefinePolicy,
    Grant,
    PublishModel,
    RevokeGrant,
    Validity,
    key_commitment,
)

MODEL_KEY, REQUEST = SecretBytes(b"M" * 32), SecretBytes(b"Q" * 32)
SEED = b"r" * 32
LOG_KEY = root_of(SecretBytes(SEED)).log_key.public_key


class World:
    """A KeyService with three witnesses and three custodians, two of each, on a machine that will be lost."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.witnesses = local_witnesses(folder, self.clock, LOG_KEY, 3)
        self.platform = SimulatedTee("runtime", clock=self.clock)
        self.bundle_key = SigningKey.generate()
        self.keys = sorted((HpkePrivateKey.generate() for _ in range(3)), key=lambda key: custodian_id(key.public_key))
        self.running: list[EmbeddedKeyService] = []
        self.ks = self.start()
        self.fresh = replace(self.ks.tee, key=SigningKey.generate())  # another machine, the same code and configuration
        assert self.ks.bundle is not None
        platforms = (self.platform.key.public_key, self.fresh.key.public_key)
        self.bundle = replace(self.ks.bundle, version=2, simulation_keys=platforms)
        self.custodians = [LocalCustodian(self.bundle, self.clock, key) for key in self.keys]
        self.owner, self.user = self.ks.person(), self.ks.person()
        self.model = ModelId(self.owner.id, "model")
        policy = self.platform.policy()
        for person in (self.owner, self.user):
            self.ks.say(person.statement(DefinePolicy(policy.encode())))
        self.ks.say(self.owner.statement(PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY))), MODEL_KEY)
        self.ks.say(self.owner.statement(Grant("model", self.user.id, policy.digest, Validity(), 0)))
        consent = Consent(self.model, policy.digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())
        self.ks.say(self.user.statement(consent), REQUEST)
        self.request = ReleaseRequest(self.user.id, self.model, REQUEST_KEY, key_commitment(REQUEST))

    def start(
        self, disk: MemoryDisk | None = None, keys: list[HpkePrivateKey] | None = None, **more: Any
    ) -> EmbeddedKeyService:
        values: dict[str, Any] = {"custodian_threshold": 2, **witnessed(self.witnesses, 2), **more}
        named = [key.public_key for key in (self.keys if keys is None else keys)]
        ks = EmbeddedKeyService(
            clock=self.clock,
            disk=disk,
            runtime_tee=self.platform,
            bundle_key=self.bundle_key,
            custodian_keys=named,
            **values,
        )
        self.running.append(ks)
        return ks

    def release(self, ks: EmbeddedKeyService) -> Release:
        return ks.attest(self.platform).release(self.request)

    def lose(self) -> MemoryDisk:
        """The machine is gone; a copy of its store is left."""
        self.ks.close()
        return self.ks.disk.copy()

    def record(self, disk: MemoryDisk | None = None) -> CustodyRecord:
        return CustodyRecord.decode((disk or self.ks.disk).tables[HEAD][RECOVERY_ROW])

    def attempt(self, disk: MemoryDisk, tee: SimulatedTee | None = None, **more: Any) -> Restoring:
        number = len(list(self.folder.glob("fresh*")))
        values: dict[str, Any] = {"settings": self.ks.settings, "bundle": self.bundle, **more}
        return restoring(
            self.folder / f"fresh{number}", MemoryRows(disk), tee or self.fresh, clock=self.clock, **values
        )

    def recover(self, disk: MemoryDisk, custodians: list[LocalCustodian] | None = None) -> Root:
        attempt = self.attempt(disk)
        transport = AskingTransport(attempt.asking)
        for custodian in (custodians or self.custodians)[:2]:
            custodian.answer(transport)
        root, _ = attempt.finish()
        disk.locked = False
        return root

    def offer(self, tee: SimulatedTee, record: CustodyRecord, **changes: Any) -> tuple[Offer, HpkePrivateKey]:
        """What hostile code in a TEE asks with: it judges nothing itself."""
        key = HpkePrivateKey.generate()
        bound = recovery_report_data(record, key.public_key, tee.configuration.encoded, self.bundle.digest)
        evidence = tee.attester().evidence(bound)
        wire = WireEvidence(evidence.tee.value, evidence.body, {})
        offer = Offer(record, key.public_key, tee.configuration.encoded, self.bundle.digest, wire)
        return replace(offer, **changes), key


class Fixed:
    """A transport that always makes this offer, and keeps what it is sent."""

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.posted: list[bytes] = []

    def get(self, path: str, *, limit: int) -> bytes:
        return self.offer.encode()[:limit]

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        self.posted.append(body)
        return b""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for ks in world.running:
        ks.close()


def refused(code: str, attempt: Callable[[], object], family: type[CloisterError] = Refused) -> None:
    with pytest.raises(family) as caught:
        attempt()
    assert caught.value.code == code


def kinds(ks: EmbeddedKeyService) -> list[str]:
    """Of the entries that everybody is shown, those about custodians."""
    found = [
        Entry.decode(data).kind
        for _, data, _ in ks.assembled.ledger.entries(ks.assembled.ledger.concerning(b"", 0, 1000))
    ]
    return [kind for kind in found if kind in ("custody", "recovery")]


# --- it works ---


@pytest.mark.parametrize("pair", list(itertools.permutations(range(3), 2)))
def test_s7_any_two_of_three_bring_it_back_on_another_machine(world: World, pair: tuple[int, int]) -> None:
    assert world.release(world.ks).key == REQUEST
    disk = world.lose()
    refused("unseal-failed", lambda: _unsealed_elsewhere(world), Tampered)
    root = world.recover(disk, [world.custodians[number] for number in pair])
    assert root.secret == SecretBytes(SEED)
    assert open_root(world.folder / "fresh0" / ROOT_FILE, world.fresh.sealer()).secret == root.secret
    back = world.start(disk)
    assert world.release(back).key == REQUEST  # and witnesses confirmed it
    assert back.ask(world.owner, "whoami")["confirmed"] == 0
    shown = [Entry.decode(item["entry"]) for item in back.ask(world.user, "keyservice-events")["items"]]
    recovered = [describe(0, entry) for entry in shown if entry.kind == "recovery"]
    assert [row["custodians"] for row in recovered] == [sorted(world.custodians[n].id.hex() for n in pair)]
    assert "brought back" in recovered[0]["what"]
    assert recovered[0]["configuration"] == world.ks.settings.measured().digest.hex()


def _unsealed_elsewhere(world: World) -> None:
    sealed = world.ks.tee.sealer().seal(b"root")
    world.fresh.sealer().unseal(sealed)


def test_s2_a_set_is_for_one_recovery(world: World) -> None:
    """What was put together once is replaced: the shares that were on their way open nothing any more."""
    before = world.record()
    disk = world.lose()
    world.recover(disk)
    back = world.start(disk)
    back.service.maintain()
    after = world.record(disk)
    assert after.set != before.set
    assert kinds(back) == ["custody", "recovery", "custody"]
    old = {custodian.id: open_share(before, custodian.key) for custodian in world.custodians[:2]}
    refused("recovery-record", lambda: open_record(after, old), Tampered)
    back.close()
    assert world.recover(disk.copy(), world.custodians[1:]).secret == SecretBytes(SEED)


def test_s7_everybody_sees_who_can_bring_it_back(world: World) -> None:
    for person in (world.owner, world.user):
        shown = [Entry.decode(item["entry"]) for item in world.ks.ask(person, "keyservice-events")["items"]]
        rows = [describe(0, entry) for entry in shown if entry.kind == "custody"]
        assert [(row["threshold"], row["custodians"]) for row in rows] == [
            (2, sorted(custodian.id.hex() for custodian in world.custodians))
        ]
        assert rows[0]["record"] == world.record().digest.hex()
    assert world.record().encoded not in b"".join(
        item["entry"] for item in world.ks.ask(world.owner, "keyservice-events")["items"]
    )


def test_s7_an_unchanged_start_makes_no_new_set(world: World) -> None:
    before = world.record()
    for _ in range(3):
        world.ks.restart()
        world.ks.service.maintain()
    assert world.record() == before
    assert kinds(world.ks) == ["custody"]


# --- fewer than k ---


def test_s2_one_custodian_and_every_disk_learn_nothing(world: World) -> None:
    """One share fits every recovery key: whatever is put beside it gives some secret, and none opens the root."""
    disk = world.lose()
    record = world.record(disk)
    share = open_share(record, world.keys[0])
    other = world.record(world.start().disk)
    foreign = open_share(other, world.keys[1])
    for beside in (share, foreign, SecretBytes(bytes(32)), SecretBytes(share.reveal()[::-1])):
        guess = {world.custodians[0].id: share, world.custodians[1].id: beside}
        refused("recovery-record", lambda guess=guess: open_record(record, guess), Tampered)
    secrets = (
        SEED,
        MODEL_KEY.reveal(),
        REQUEST.reveal(),
        share.reveal(),
        root_of(SecretBytes(SEED)).store_key.reveal(),
    )
    rows = [record for rows in disk.tables.values() for record in rows.values()]
    assert not [secret for secret in secrets for row in rows if secret in row]


def test_s7_one_custodian_who_answers_often_is_one(world: World) -> None:
    attempt = world.attempt(world.lose())
    transport = AskingTransport(attempt.asking)
    for _ in range(5):
        given = world.custodians[0].answer(transport)
        assert (given.answered, given.threshold) == (1, 2)
    assert not attempt.asking.enough
    with pytest.raises(AssertionError):
        attempt.finish()
    assert not (world.folder / "fresh0" / ROOT_FILE).exists()
    assert world.custodians[2].answer(transport).answered == 2
    assert attempt.finish()[0].secret == SecretBytes(SEED)


# --- the host brings it back in something else ---


@pytest.mark.parametrize("other", ["code", "configuration", "platform", "debug"])
def test_s2_s7_other_code_configuration_platform_or_debug_gets_no_share(world: World, other: str) -> None:
    settings = replace(world.ks.settings, lease_s=30) if other == "configuration" else world.ks.settings
    changes: dict[str, tuple[dict[str, Any], str]] = {
        "code": ({"name": "other code"}, "measurement-not-allowed"),
        "configuration": ({"values": settings.measured().values}, "configuration-not-allowed"),
        "platform": ({"key": SigningKey.generate()}, "simulation-refused"),
        "debug": ({"debug": True}, "debug-not-allowed"),
    }
    change, code = changes[other]
    tee = replace(world.fresh, **change)
    disk = world.lose()
    refused(
        code, lambda: world.attempt(disk.copy(), tee, settings=settings)
    )  # the enclave itself tells the operator, before anybody is called
    hostile = Fixed(world.offer(tee, world.record(disk))[0])
    refused(code, lambda: world.custodians[0].answer(hostile))  # and one that does not is told by custodians
    lied, _ = world.offer(tee, world.record(disk), configuration=world.fresh.configuration.encoded)
    with pytest.raises((Refused, Tampered)):
        world.custodians[0].answer(Fixed(lied))
    assert not hostile.posted


def test_s7_a_policy_that_allows_more_than_what_was_lost_does_not_make_it_a_successor(world: World) -> None:
    """Old, vulnerable builds satisfy yesterday's policies; and one configuration is as genuine as another."""
    disk = world.lose()
    for older in (True, False):
        settings = world.ks.settings if older else replace(world.ks.settings, lease_s=30)
        name = "the build before" if older else world.fresh.name
        tee = replace(world.fresh, name=name, values=settings.measured().values)
        rules = (world.fresh.rule("newest"), tee.rule("older"))
        world.bundle = replace(world.bundle, version=3, keyservice=replace(world.bundle.keyservice, rules=rules))
        custodian = LocalCustodian(world.bundle, world.clock, world.keys[0])
        hostile = Fixed(world.offer(tee, world.record(disk))[0])
        refused("recovery-code", partial(custodian.answer, hostile))
        refused("recovery-code", partial(world.attempt, disk.copy(), tee, settings=settings))
        assert not hostile.posted
        successor = Successor(tee.measurement, tee.configuration.digest)
        world.bundle = replace(world.bundle, version=4, successors=(successor,))
        custodian = replace(custodian, bundle=world.bundle)
        transport = AskingTransport(world.attempt(disk.copy(), tee, settings=settings).asking)
        assert custodian.answer(transport).answered == 1


def test_s9_evidence_for_another_purpose_gets_no_share(world: World) -> None:
    """The genuine KeyService's own evidence, over its call key, is for callers."""
    description = world.ks.service._epochs.current().description
    record = world.record()
    for key in (description.call_key, HpkePrivateKey.generate().public_key):
        offer = Offer(record, key, description.configuration, description.bundle_digest, description.evidence)
        with pytest.raises((Refused, Tampered)) as caught:
            world.custodians[0].answer(Fixed(offer))
        assert caught.value.code in ("report-data", "report-data-mismatch", "keyservice-bundle-differs")


def test_s7_the_network_puts_no_key_of_its_own_into_a_genuine_offer(world: World) -> None:
    attempt = world.attempt(world.lose())
    offer = Offer.decode(attempt.asking.offer())
    mine = HpkePrivateKey.generate()
    other = make_record(
        root_of(SecretBytes(b"o" * 32)),
        offer.record.code,
        custodians={custodian.id: custodian.key.public_key for custodian in world.custodians},
        threshold=2,
    )
    for changed in (
        replace(offer, session_key=mine.public_key),
        replace(offer, record=other),
        replace(offer, record=replace(offer.record, threshold=3)),
        replace(offer, record=replace(offer.record, holders=offer.record.holders[:2])),
    ):
        with pytest.raises((Refused, Tampered)) as caught:
            world.custodians[0].answer(Fixed(changed))
        assert caught.value.code == "report-data-mismatch"


def test_s7_a_genuine_enclave_with_a_record_of_the_hosts_making_gets_no_genuine_share(world: World) -> None:
    """The custodians in it, a threshold of one honest man, or another commitment: his share opens in none of them."""
    record = world.record(world.lose())
    alone = replace(record, holders=record.holders[:2], threshold=2)
    for changed in (alone, replace(record, threshold=3), replace(record, set=b"s" * 16)):
        offer, _ = world.offer(world.fresh, changed)
        fixed = Fixed(offer)
        refused("hpke-open", lambda fixed=fixed: world.custodians[0].answer(fixed), Tampered)
        assert not fixed.posted


# --- answers ---


def test_s9_an_answer_is_for_one_enclave(world: World) -> None:
    """Two genuine enclaves on copies of one disk: what was said to the one is nothing to the other."""
    disk = world.lose()
    first, second = (AskingTransport(world.attempt(disk.copy()).asking) for _ in range(2))
    for custodian in world.custodians:
        custodian.answer(first)
    for answer in first.posted:
        refused("hpke-open", lambda answer=answer: second.asking.accept(answer), Tampered)
    assert not second.asking.enough
    assert [Offer.decode(second.asking.offer()).answered, len(Offer.decode(first.asking.offer()).answered)] == [(), 2]


def test_s8_a_bad_share_is_refused_by_its_custodians_name_and_the_good_ones_stay(world: World) -> None:
    attempt = world.attempt(world.lose())
    transport = AskingTransport(attempt.asking)
    world.custodians[0].answer(transport)
    offer = Offer.decode(attempt.asking.offer())
    other_set = make_record(
        root_of(SecretBytes(SEED)),
        offer.record.code,
        custodians={custodian.id: custodian.key.public_key for custodian in world.custodians},
        threshold=2,
    )
    liar = world.custodians[1]
    bad = {
        "made up": SecretBytes(b"x" * 32),
        "of another": open_share(offer.record, world.keys[2]),
        "of another set": open_share(other_set, liar.key),
    }
    for share in bad.values():
        with pytest.raises(Tampered, match=liar.id.hex()) as caught:
            attempt.asking.accept(seal_answer(offer, liar.id, share).encode())
        assert caught.value.code == "custody-share"
    stranger = seal(offer.session_key, bytes(32), Context.RECOVERY_SHARE, offer.report_data(), bytes(32))
    refused("custodian-unknown", lambda: attempt.asking.accept(Answer(bytes(32), stranger).encode()))
    good = seal_answer(offer, liar.id, open_share(offer.record, liar.key)).encode()
    for at in range(0, len(good), 50):
        with pytest.raises(CloisterError):
            attempt.asking.accept(_changed(good, at))
    for length in (0, 1, len(good) // 2, len(good) - 1):
        with pytest.raises(InvalidInput):
            attempt.asking.accept(good[:length])
    with pytest.raises(Tampered):  # in the liar's name, but from somebody else's good share
        attempt.asking.accept(seal_answer(offer, liar.id, open_share(offer.record, world.keys[0])).encode())
    assert Offer.decode(attempt.asking.offer()).answered == (world.custodians[0].id,)
    world.custodians[2].answer(transport)
    assert attempt.finish()[0].secret == SecretBytes(SEED)


def _changed(data: bytes, at: int = -1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


# --- stores and records ---


def test_s7_a_record_of_another_keyservice_opens_nothing_here(world: World) -> None:
    """The same custodians serve two KeyServices; the host puts the record of one into the store of the other."""
    other = world.start(seed=b"o" * 32, witness_keys=(), witnesses=(), rollback_protection="none", witness_threshold=0)
    disk = world.lose()
    disk.tables[HEAD][RECOVERY_ROW] = make_record(
        root_of(SecretBytes(b"o" * 32)),
        world.record().code,
        custodians={custodian.id: custodian.key.public_key for custodian in world.custodians},
        threshold=2,
    ).encoded
    attempt = world.attempt(disk)
    transport = AskingTransport(attempt.asking)
    refused("keyservice-other", lambda: world.custodians[0].answer(transport, expected=world.ks.id))
    refused("keyservice-other", lambda: world.attempt(disk.copy(), expected=world.ks.id))
    for custodian in world.custodians[:2]:
        custodian.answer(transport, expected=other.id)
    with pytest.raises(Tampered) as caught:
        attempt.finish()
    assert caught.value.code == "store-record"
    assert not (world.folder / "fresh0" / ROOT_FILE).exists()


def test_s7_an_old_record_in_the_current_store_brings_nothing_back(world: World) -> None:
    """Custodians who were replaced do not bring it back behind the back of those who are named now."""
    old = world.record().encoded
    former, disk = world.custodians, world.lose()
    world.keys = sorted((HpkePrivateKey.generate() for _ in range(3)), key=lambda key: custodian_id(key.public_key))
    ks = world.start(disk)  # the same KeyService, configured with others
    ks.service.maintain()
    ks.close()
    world.fresh, world.ks = replace(ks.tee, key=world.fresh.key), ks
    policy = replace(world.bundle.keyservice, rules=(world.fresh.rule(),))
    successor = Successor(world.fresh.measurement, world.fresh.configuration.digest)
    world.bundle = replace(world.bundle, version=3, keyservice=policy, successors=(successor,))
    now = world.record(disk)
    assert {holder.custodian for holder in now.holders}.isdisjoint({custodian.id for custodian in former})
    tampered = disk.copy()
    tampered.tables[HEAD][RECOVERY_ROW] = old
    attempt = world.attempt(tampered)
    transport = AskingTransport(attempt.asking)
    for custodian in former[:2]:
        replace(custodian, bundle=world.bundle).answer(transport)
    refused("recovery-superseded", attempt.finish)
    assert not (world.folder / "fresh0" / ROOT_FILE).exists()
    for custodian in former:  # and with the store as it is they have nothing
        refused("custodian-unknown", partial(open_share, now, custodian.key))
    fresh = [LocalCustodian(world.bundle, world.clock, key) for key in world.keys]
    assert world.recover(disk.copy(), fresh).secret == SecretBytes(SEED)


def test_s7_a_store_that_was_rolled_back_is_brought_back_and_releases_nothing(world: World) -> None:
    old = world.ks.disk.copy()
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    world.lose()
    assert world.recover(old).secret == SecretBytes(SEED)
    back = world.start(old)
    for attempt in (
        lambda: world.release(back),
        lambda: back.say(world.owner.statement(RevokeGrant("model", world.user.id))),
    ):
        with pytest.raises(Unavailable) as caught:
            attempt()
        assert caught.value.code == "keyservice-superseded"
    with pytest.raises(Unavailable):
        back.service.maintain()  # nor does it make a new set
    assert "recovery" in kinds(back)


@pytest.mark.parametrize("table", ["entries", "secrets", "head"])
def test_s8_a_store_that_was_changed_is_not_brought_back(world: World, table: str) -> None:
    disk = world.lose()
    index = max(number for number in disk.tables[table] if (table, number) != (HEAD, RECOVERY_ROW))
    record = bytearray(disk.tables[table][index])
    record[-1] ^= 1
    disk.tables[table][index] = bytes(record)
    attempt = world.attempt(disk)
    transport = AskingTransport(attempt.asking)
    for custodian in world.custodians[:2]:
        custodian.answer(transport)
    with pytest.raises(Tampered) as caught:
        attempt.finish()
    assert caught.value.code.startswith("store-")
    assert not (world.folder / "fresh0" / ROOT_FILE).exists()


def test_s8_without_a_record_or_with_half_of_one_nobody_is_asked(world: World) -> None:
    disk = world.lose()
    whole = disk.tables[HEAD].pop(RECOVERY_ROW)
    refused("recovery-record-missing", lambda: world.attempt(disk.copy()), Unavailable)
    for length in (1, len(whole) // 2, len(whole) - 1):
        half = disk.copy()
        half.tables[HEAD][RECOVERY_ROW] = whole[:length]
        with pytest.raises(InvalidInput):
            world.attempt(half)


def test_s7_a_box_that_was_changed_is_told_apart_from_bad_shares(world: World) -> None:
    disk = world.lose()
    record = world.record(disk)
    disk.tables[HEAD][RECOVERY_ROW] = replace(record, box=_changed(record.box)).encoded
    attempt = world.attempt(disk)
    transport = AskingTransport(attempt.asking)
    for custodian in world.custodians[:2]:
        custodian.answer(transport)
    refused("recovery-record", attempt.finish, Tampered)


def test_s7_a_record_in_the_clear_that_was_changed_is_written_anew(world: World) -> None:
    before = world.record()
    for damage in (b"", replace(before, box=_changed(before.box)).encoded):
        if damage:
            world.ks.disk.tables[HEAD][RECOVERY_ROW] = damage
        else:
            del world.ks.disk.tables[HEAD][RECOVERY_ROW]
        world.ks.service.maintain()
        assert world.record() == before
    world.ks.close()
    del world.ks.disk.tables["secrets"][1]  # beside the entry
    world.ks = world.start(world.ks.disk)
    world.ks.service.maintain()
    assert world.record().set != before.set  # and where it is nowhere any more, shares are made anew


# --- refresh ---


def test_s7_shares_are_made_anew_when_asked_and_when_they_must_be(world: World) -> None:
    seen, events = [world.record().set], MemoryLog()

    def restarted(**more: Any) -> list[str]:
        world.ks.close()
        bundle = replace(world.bundle, version=world.bundle.version + len(seen))
        world.ks = world.start(world.ks.disk, events=events, bundle=bundle, **more)
        for _ in range(2):
            world.ks.service.maintain()
        seen.append(world.record().set)
        return [fields["reason"] for name, _, fields in events.events if name == "custody"]

    assert restarted(reshare=True) == ["asked"]
    assert restarted(code="the next build") == ["asked", "code"]
    assert restarted(code="the next build", lease_s=30) == ["asked", "code", "code"]
    assert restarted(code="the next build", lease_s=30, custodian_threshold=3)[-1] == "configuration"
    assert world.record().threshold == 3
    assert restarted(code="the next build", lease_s=30, custodian_threshold=3)[-1] == "configuration"
    assert len(set(seen)) == 5
    assert seen[-1] == seen[-2]


def test_s7_custodians_who_are_named_no_more_bring_nothing_back(world: World) -> None:
    world.ks.close()
    ks = world.start(world.ks.disk, keys=[], custodian_threshold=0)
    ks.service.maintain()
    assert RECOVERY_ROW not in ks.disk.tables[HEAD]
    rows = [describe(0, Entry.decode(item["entry"])) for item in ks.ask(world.owner, "keyservice-events")["items"]]
    assert [row["custodians"] for row in rows if row["kind"] == "custody"][-1] == []
    ks.service.maintain()
    assert kinds(ks) == ["custody", "custody"]
    ks.close()
    refused("recovery-record-missing", lambda: world.attempt(ks.disk.copy()), Unavailable)


def test_s7_a_replaced_record_is_destroyed(world: World) -> None:
    first = world.record().encoded
    world.ks.close()
    world.ks = world.start(world.ks.disk, reshare=True)
    world.ks.service.maintain()
    world.clock.advance(60)
    world.ks.service.maintain()
    with world.ks.assembled.ledger.read() as (state, _):
        assert sorted(entry for entry, place in state.secrets.items() if place.until and place.until > 2**40) == [
            state.custody.entry  # type: ignore[union-attr]
        ]
    assert 1 not in world.ks.disk.tables["secrets"]
    assert first not in world.ks.disk.tables[HEAD].values()


def test_s7_without_witnesses_no_set_is_made(world: World) -> None:
    """A set is an entry, and waits like any other."""
    before = world.record()
    world.ks.close()
    for witness in world.witnesses:
        witness.away = True
    ks = world.start(world.ks.disk, reshare=True)
    with pytest.raises(Unavailable):
        ks.service.maintain()
    assert world.record() == before
    for witness in world.witnesses:
        witness.away = False


# --- configuration ---


@pytest.mark.parametrize(("count", "threshold"), [(1, 0), (1, 2), (2, 1), (3, 1), (3, 4), (0, 1), (17, 2), (16, 17)])
def test_s8_impossible_custodians_are_no_configuration(count: int, threshold: int) -> None:
    ids = tuple(bytes([number]) * 32 for number in range(count))
    with pytest.raises(InvalidInput) as caught:
        Settings(bundle_root=bytes(32), custodians=ids, custodian_threshold=threshold)
    assert caught.value.code == "configuration-malformed"


def test_s8_custodians_are_named_once_by_32_bytes_and_with_a_bundle_root() -> None:
    one = bytes(32)
    for bad in (
        {"custodians": (one, one), "custodian_threshold": 2, "bundle_root": one},
        {"custodians": (one[:31],), "custodian_threshold": 1, "bundle_root": one},
        {"custodians": (one,), "custodian_threshold": 1},
    ):
        with pytest.raises(InvalidInput):
            Settings(**bad)  # type: ignore[arg-type]
    good = Settings(bundle_root=one, custodians=(one,), custodian_threshold=1)
    assert good.measured().digest != Settings(bundle_root=one).measured().digest  # an operator's own are seen
    other = Settings(bundle_root=one, custodians=(b"o" * 32,), custodian_threshold=1)
    assert good.measured().digest != other.measured().digest


def test_s8_public_keys_are_those_of_the_configuration(world: World) -> None:
    named = tuple(custodian.id for custodian in world.custodians)
    settings = Settings(bundle_root=bytes(32), custodians=named, custodian_threshold=2)
    for keys in (
        world.keys[:2],
        [*world.keys[:2], HpkePrivateKey.generate()],
        [*world.keys, HpkePrivateKey.generate()],
    ):
        given = Custodians({custodian_id(key.public_key): key.public_key for key in keys})
        refused("custodian-keys", partial(given.check, settings), InvalidInput)
        with pytest.raises(InvalidInput, match="custodian-keys"):
            world.start(MemoryDisk(), keys=keys, custodians=named)


def test_s9_code_is_named_as_bundles_name_it_and_never_in_debug_mode(world: World) -> None:
    evidence = world.ks.service._epochs.current().description.evidence
    assert evidence.tee == TeeType.SIMULATION.value
    transport = AskingTransport(world.attempt(world.lose()).asking)
    appraisal = transport.asking._appraisal
    claims = appraisal.claims
    digest = appraisal.configuration.digest
    assert code_of(claims, digest) == world.record().code
    refused(
        "recovery-code",
        lambda: check_code(world.record().code, replace(appraisal, claims=replace(claims, debug=True)), world.bundle),
    )


def test_s7_custodians_who_judged_by_an_older_bundle_than_the_log_names_bring_nothing_back(world: World) -> None:
    """Else the host chose the bundle, and with it which builds and platforms were good enough."""
    world.ks.close()
    newer = replace(world.bundle, version=3, simulation_keys=(world.platform.key.public_key,))
    world.ks = world.start(world.ks.disk, bundle=newer)
    world.ks.service.maintain()  # the log names it
    attempt = world.attempt(world.lose())
    transport = AskingTransport(attempt.asking)
    for custodian in world.custodians[:2]:
        custodian.answer(transport)  # who were not told of it
    refused("bundle-rollback", attempt.finish)
    assert not (world.folder / "fresh0" / ROOT_FILE).exists()


def test_s7_bundle_of_another_version_is_no_common_ground(world: World) -> None:
    older: TrustBundle = replace(world.bundle, version=1, name="older")
    transport = AskingTransport(world.attempt(world.lose()).asking)
    custodian = LocalCustodian(older, world.clock, world.keys[0])
    refused("keyservice-bundle-differs", lambda: custodian.answer(transport))
    assert not transport.posted
