"""S7 with witnesses: whoever owns disk and network of the KeyService gets no key and no acknowledgement out of an old
or forked log, whoever lies among the witnesses up to 2k - n - 1 of them (spec/protocol.md, 13.10 to 13.12).
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.adapters.keyservice import KeyServiceLink, VolatileHeads
from cloister.attest.bundle import TrustBundle
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.client.account import Account
from cloister.crypto.sign import SigningKey
from cloister.keyservice.root import root_of
from cloister.log.receipt import check_statement_receipt
from cloister.log.witness import require_quorum
from cloister.runtime.keys import RuntimeSession
from cloister.runtime.stages import Timings
from cloister.testing.clock import FakeClock
from cloister.testing.collateral import NoCollateral
from cloister.testing.embedded import EmbeddedKeyService
from cloister.testing.people import simulation_policy
from cloister.testing.rows import MemoryDisk
from cloister.testing.tee import SimulatedTee
from cloister.testing.witness import LocalWitness, local_witnesses, witnessed
from cloister.wire import calls
from cloister.wire.calls import Description, LogHead, verify_status
from cloister.wire.checkpoint import SignedNote
from cloister.wire.log_keys import LogKeys
from cloister.wire.provisioning import Release, ReleaseRequest
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
LOG_KEY = root_of(SecretBytes(b"r" * 32)).log_key.public_key
N, K = 3, 2


class World:
    """A KeyService with three witnesses of which two must sign; a grant and a consent; a release succeeds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.witnesses = local_witnesses(folder, self.clock, LOG_KEY, N)
        self.platform = SimulatedTee("runtime", clock=self.clock)
        self.running: list[EmbeddedKeyService] = []
        self.ks = self.start()
        self.owner, self.user = self.ks.person(), self.ks.person()
        self.model = ModelId(self.owner.id, "model")
        policy = self.platform.policy()
        for person in (self.owner, self.user):
            self.ks.say(person.statement(DefinePolicy(policy.encode())))
        published = PublishModel("model", 1, b"1" * 32, key_commitment(MODEL_KEY))
        self.ks.say(self.owner.statement(published), MODEL_KEY)
        self.grant = Grant("model", self.user.id, policy.digest, Validity(), 0)
        self.ks.say(self.owner.statement(self.grant))
        consent = Consent(self.model, policy.digest, None, REQUEST_KEY, key_commitment(REQUEST), Validity())
        self.ks.say(self.user.statement(consent), REQUEST)
        self.request = ReleaseRequest(self.user.id, self.model, REQUEST_KEY, key_commitment(REQUEST))

    def start(
        self, disk: MemoryDisk | None = None, witnesses: list[LocalWitness] | None = None, **more: Any
    ) -> EmbeddedKeyService:
        """An instance on this disk; its witnesses are reached as given."""
        settings = witnessed(self.witnesses, K) | ({} if witnesses is None else {"witnesses": witnesses}) | more
        ks = EmbeddedKeyService(clock=self.clock, disk=disk, runtime_tee=self.platform, **settings)
        self.running.append(ks)
        return ks

    def settled(self, ks: EmbeddedKeyService) -> EmbeddedKeyService:
        """After its first round, whatever came of it."""
        anchor = ks.assembled.ledger._anchor
        with anchor._changed:  # type: ignore[attr-defined]
            assert anchor._changed.wait_for(  # type: ignore[attr-defined]
                lambda: anchor.confirmed() or all(word != "waiting" for word in anchor.state().outcomes.values()), 30
            )
        return ks

    def release(self, ks: EmbeddedKeyService | None = None) -> Release:
        return (ks or self.ks).attest(self.platform).release(self.request)

    def nothing_leaves(self, ks: EmbeddedKeyService, code: str) -> None:
        """No key, no acknowledgement, no endorsement; queries are answered and say so."""
        before = len(ks.disk.tables["entries"])
        for attempt in (lambda: self.release(ks), lambda: ks.say(self.owner.statement(self.grant))):
            with pytest.raises(Unavailable) as caught:
                attempt()
            assert caught.value.code == code
            assert caught.value.retry_after
        assert len(ks.disk.tables["entries"]) <= before + 1  # shut after the first one that failed
        assert "confirmed" in ks.ask(self.owner, "whoami")

    def bundle(self, **changes: Any) -> TrustBundle:
        root = SigningKey.from_seed(SecretBytes(b"b" * 32))
        values: dict[str, Any] = {
            "root": root.public_key,
            "version": 1,
            "name": "test",
            "issued_at": 1,
            "expires_at": 2**38,
            "keyservice": simulation_policy(
                self.ks.tee.measurement, configuration=[self.ks.settings.measured().digest]
            ),
            "accept_simulation": True,
            "simulation_keys": (self.platform.key.public_key,),
            "witnesses": tuple(witness.key for witness in self.witnesses),
            "witness_threshold": K,
        }
        return TrustBundle(**values | changes)

    def link(self, transport: Any, heads: VolatileHeads | None = None, **changes: Any) -> KeyServiceLink:
        bundle = self.bundle(**changes)
        return KeyServiceLink(
            _Bound(transport, bundle),
            bundle=lambda: bundle,
            collateral=NoCollateral(),
            clock=self.clock,
            heads=heads or VolatileHeads(),
        )


class _Bound:
    """The same KeyService under a trust bundle: its evidence is made anew, over the bundle's digest."""

    def __init__(self, ks: Any, bundle: TrustBundle) -> None:
        self.ks = ks
        ks.assembled.service._epochs._bundle_digest = lambda: bundle.digest
        ks.assembled.service._epochs._epochs = (ks.assembled.service._epochs._begin(),)

    def get(self, path: str, *, limit: int) -> bytes:
        return bytes(self.ks.get(path, limit=limit))

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        return bytes(self.ks.post(path, body, limit=limit))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for witness in world.witnesses:
        if witness.hold is not None:
            witness.hold.set()
    for ks in world.running:
        ks.close()


def head(ks: EmbeddedKeyService) -> LogHead:
    nonce = secrets.token_bytes(32)
    return verify_status(ks.service.status(nonce), Description.decode(ks.service.description()), nonce)


def quorum(world: World, found: LogHead) -> None:
    keys = [witness.key for witness in world.witnesses]
    assert require_quorum(world.ks.id, found, witnesses=keys, threshold=K, now=world.clock.now())


# --- it works, and everything that leaves is confirmed ---


def test_s7_what_leaves_is_in_a_head_that_witnesses_signed(world: World) -> None:
    release = world.release()
    assert release.key == REQUEST
    quorum(world, release.head)
    statement = world.owner.statement(world.grant)
    receipt = check_statement_receipt(world.ks.say(statement), statement, LogKeys(LOG_KEY))
    assert receipt.head.size == receipt.index + 1
    quorum(world, receipt.head)
    quorum(world, head(world.ks))
    assert world.ks.ask(world.owner, "whoami")["confirmed"] == 0
    events = world.ks.ask(world.owner, "events")
    quorum(world, LogHead.read(events["head"]))


# --- rollback ---


def test_s7_an_old_database_releases_nothing(world: World) -> None:
    old = world.ks.disk.copy()
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    world.ks.close()
    restored = world.settled(world.start(old))
    world.nothing_leaves(restored, "keyservice-superseded")
    assert restored.service._anchor.state().open is False
    outcomes = list(restored.service._anchor.state().outcomes.values())
    assert outcomes.count("witness-conflict") >= K  # the one that the revocation did not wait for may know it or not
    assert set(outcomes) <= {"witness-conflict", "confirmed"}


def test_s7_an_old_database_with_a_recorded_network_releases_nothing(world: World) -> None:
    """Everything that witnesses ever answered is played back: no answer fits a head with a fresh salt."""
    old = world.ks.disk.copy()
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    world.ks.close()

    class Replay:
        def __init__(self, witness: LocalWitness) -> None:
            self.answers = {
                SignedNote.parse(body.partition(b"\n\n")[2]).checkpoint: answer
                for body, answer in witness.seen
                if isinstance(answer, bytes)
            }

        def add_checkpoint(self, body: bytes) -> bytes | int:
            asked = SignedNote.parse(body.partition(b"\n\n")[2]).checkpoint
            return self.answers.get(asked, next(reversed(self.answers.values())))

    replayed = world.start(old, witnesses=[Replay(witness) for witness in world.witnesses])  # type: ignore[misc]
    world.settled(replayed)
    assert replayed.service._anchor.confirmed()  # its old head was co-signed once: that much can be played back
    for attempt in (world.release, lambda ks: ks.say(world.owner.statement(world.grant))):
        with pytest.raises(Unavailable) as caught:
            attempt(replayed)
        assert caught.value.code == "keyservice-unconfirmed"
    outcomes = list(replayed.service._anchor.state().outcomes.values())
    assert outcomes.count("signature-invalid") >= K


def test_s7_a_caller_who_saw_nothing_notices_an_old_head_by_its_time(world: World) -> None:
    found = head(world.ks)
    world.clock.advance(119)
    quorum(world, found)
    world.clock.advance(3)
    with pytest.raises(Unavailable) as caught:
        quorum(world, found)
    assert caught.value.code == "keyservice-unconfirmed"


# --- forks: two instances on copies of one disk ---


def test_s7_of_two_live_instances_only_one_releases(world: World) -> None:
    twin = world.settled(world.start(world.ks.disk.copy()))  # its head is the true one: it is confirmed at first
    assert twin.ask(world.owner, "whoami")["confirmed"] >= 0
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    world.nothing_leaves(twin, "keyservice-superseded")
    world.ks.say(world.owner.statement(world.grant))  # the other goes on
    assert world.release().key == REQUEST
    assert any(witness.record(world.ks.id).conflicts for witness in world.witnesses)  # and the proof is kept


def test_s7_two_instances_race_and_no_entry_of_both_is_confirmed(world: World) -> None:
    """Both write at once, many times: whichever loses stays shut; all that was released is in one history."""
    twin = world.settled(world.start(world.ks.disk.copy()))
    heads: list[LogHead] = []
    errors: list[CloisterError] = []
    start = threading.Barrier(2)

    def many(ks: EmbeddedKeyService) -> None:
        session = ks.attest(world.platform)
        start.wait(30)
        for _ in range(10):
            try:
                heads.append(session.release(world.request).head)
            except Unavailable as error:
                errors.append(error)
                ks.service.maintain()

    threads = [threading.Thread(target=many, args=(ks,)) for ks in (world.ks, twin)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors
    for ks in (world.ks, twin):
        tree = ks.assembled.ledger._tree
        own = [found for found in heads if found.size <= tree.size and tree.root(found.size) == found.root]
        assert len(own) in (0, len(heads))  # all of one instance
    sizes = [found.size for found in heads]
    assert len(set(sizes)) == len(sizes)


def test_s7_a_split_network_confirms_one_side_at_most(world: World) -> None:
    """Each instance reaches other witnesses: the one with the majority goes on."""
    twin_disk = world.ks.disk.copy()
    first, second, third = world.witnesses
    twin = world.start(twin_disk, witnesses=[third, third])
    world.settled(twin)
    world.nothing_leaves(twin, "keyservice-unconfirmed")  # one key counts once, however many addresses it has
    assert world.release().key == REQUEST
    assert {item.key for item in world.release().head.cosignatures} <= {first.key, second.key, third.key}


# --- entries removed, reordered, swapped; a part hidden ---


@pytest.mark.parametrize("how", ["removed", "swapped", "reordered"])
def test_s7_a_changed_store_does_not_start(world: World, how: str) -> None:
    world.ks.close()
    entries = world.ks.disk.tables["entries"]
    last = max(entries)
    if how == "removed":
        del entries[last - 1]
    elif how == "swapped":
        entries[last - 1] = entries[last]
    else:
        entries[last - 1], entries[last] = entries[last], entries[last - 1]
    with pytest.raises(Tampered):
        world.start(world.ks.disk)


def test_s7_hiding_the_newest_part_from_a_caller_is_noticed(world: World) -> None:
    """The network shows a runtime and a client the log as it was, with all its genuine signatures."""
    heads = VolatileHeads()
    link = world.link(world.ks, heads)
    link.attested()
    old = head(world.ks)
    world.ks.say(world.owner.statement(world.grant))
    link.saw(world.ks.id, head(world.ks))
    with pytest.raises(Tampered) as caught:
        link.saw(world.ks.id, old)
    assert caught.value.code == "keyservice-rolled-back"


# --- callers ---


def test_s7_a_caller_demands_cosignatures_and_a_proof_of_growth(world: World) -> None:
    heads = VolatileHeads()
    link = world.link(world.ks, heads)
    account = Account(_identity(world), _Sequences(heads), link, world.clock)  # type: ignore[arg-type]
    account.register()
    seen = heads.newest(world.ks.id)
    assert seen is not None
    account.ask("whoami")
    assert account.confirmed_s == 0
    account.define_policy(world.platform.policy())
    later = heads.newest(world.ks.id)
    assert later is not None
    assert later.size == seen.size + 1
    # an unsigned head, one signed by strangers, one with a forged signature
    bare = replace(later, cosignatures=())
    strangers = tuple(replace(item, key=bytes([n]) * 32) for n, item in enumerate(later.cosignatures, 1))
    forged = tuple(replace(item, time=item.time + 1) for item in later.cosignatures)
    for cosignatures, code in ((bare.cosignatures, "keyservice-unconfirmed"), (strangers, "keyservice-unconfirmed")):
        with pytest.raises(Unavailable) as caught:
            link.saw(world.ks.id, replace(later, cosignatures=cosignatures))
        assert caught.value.code == code
    with pytest.raises(Tampered) as broken:
        link.saw(world.ks.id, replace(later, cosignatures=forged))
    assert broken.value.code == "cosignature-invalid"


def test_s7_a_larger_head_of_another_history_is_a_fork_also_when_witnesses_lie(world: World) -> None:
    """All witnesses are the attacker's: who saw an earlier head still notices, for the proof cannot be given."""
    heads = VolatileHeads()
    link = world.link(world.ks, heads)
    link.attested()
    disk = world.ks.disk.copy()
    world.ks.say(world.owner.statement(world.grant))
    link.saw(world.ks.id, head(world.ks))
    liars = local_witnesses(world.folder / "liars", world.clock, LOG_KEY, N)
    for liar, witness in zip(liars, world.witnesses, strict=True):
        liar.identity = witness.identity
        liar.restart()
    fork = world.settled(world.start(disk, witnesses=liars))
    for _ in range(3):
        fork.say(world.owner.statement(world.grant))
    with pytest.raises(Tampered) as caught:
        world.link(fork, heads).attested()
    assert caught.value.code == "keyservice-forked"


def test_s7_a_runtime_takes_no_keys_under_a_head_that_its_witnesses_did_not_sign(world: World) -> None:
    """The KeyService has witnesses, of somebody else's choice; the bundle that the runtime pins names others."""

    def session(**changes: Any) -> RuntimeSession:
        link = world.link(world.ks, **changes)
        tee = world.platform
        return RuntimeSession(link, tee.attester(), tee.configuration, clock=world.clock)

    assert session().release(world.request, Timings()).key == REQUEST
    others = local_witnesses(world.folder / "others", world.clock, LOG_KEY, 2)
    mixed = (world.witnesses[0].key, *(witness.key for witness in others))
    with pytest.raises(Unavailable) as caught:
        session(witnesses=mixed).release(world.request, Timings())
    assert caught.value.code == "keyservice-unconfirmed"


def test_s7_a_bundle_with_witnesses_refuses_a_keyservice_without(world: World) -> None:
    plain = EmbeddedKeyService(clock=world.clock, runtime_tee=world.platform)
    world.running.append(plain)
    policy = simulation_policy(plain.tee.measurement, configuration=[plain.settings.measured().digest])
    with pytest.raises(Refused) as caught:
        world.link(plain, keyservice=policy, accept_rollback_unsafe=True).attested()
    assert caught.value.code == "keyservice-rollback-unsafe"


def test_s7_while_witnesses_are_away_callers_ask_and_say_nothing(world: World) -> None:
    for witness in world.witnesses[:2]:
        witness.away = True
    with pytest.raises(Unavailable):
        world.release()
    world.clock.advance(200)
    heads = VolatileHeads()
    link = world.link(world.ks, heads)
    link.attested()
    assert heads.newest(world.ks.id) is None  # what nobody confirmed is not remembered
    query = world.owner.query("whoami", {})
    assert link.call(calls.QUERY, lambda _: query)["confirmed"] >= 200
    with pytest.raises(Unavailable) as caught:
        link.call(calls.STATEMENT, lambda _: world.owner.statement(world.grant))
    assert caught.value.code == "keyservice-unconfirmed"
    for witness in world.witnesses[:2]:
        witness.away = False
    world.ks.service.maintain()
    confirmed(world)
    assert link.call(calls.STATEMENT, lambda _: world.owner.statement(world.grant))["entry"]


def confirmed(world: World) -> None:
    """Wait until it is open again and its head is fresh."""
    anchor = world.ks.service._anchor
    with anchor._changed:  # type: ignore[attr-defined]
        assert anchor._changed.wait_for(lambda: anchor.state().open and anchor.state().age_s == 0, 30)  # type: ignore[attr-defined]


# --- witnesses that are away, slow, lie, equivocate, or were restored ---


def test_s7_one_of_three_witnesses_away_or_slow_changes_nothing(world: World) -> None:
    world.witnesses[0].away = True
    world.witnesses[1].hold = threading.Event()
    world.witnesses[1].hold.set()
    assert world.release().key == REQUEST
    world.witnesses[0].away = False
    world.ks.service.maintain()
    world.witnesses[1].hold.clear()  # it hangs
    for _ in range(3):
        found = world.release().head
        assert world.witnesses[1].key not in {item.key for item in found.cosignatures}
        quorum(world, found)
    world.witnesses[1].hold.set()


def test_s7_too_many_away_releases_nothing_until_they_are_back(world: World) -> None:
    for witness in world.witnesses[:2]:
        witness.away = True
    session = world.ks.attest(world.platform)
    entries = len(world.ks.disk.tables["entries"])
    for _ in range(5):
        with pytest.raises(Unavailable) as caught:
            session.release(world.request)
        assert caught.value.code == "keyservice-unconfirmed"
    assert len(world.ks.disk.tables["entries"]) == entries + 1  # only the first one was written
    for witness in world.witnesses:
        witness.away = False
    world.ks.service.maintain()
    confirmed(world)
    assert session.release(world.request).key == REQUEST


def test_s7_a_statement_that_was_not_confirmed_is_acknowledged_later_and_once(world: World) -> None:
    for witness in world.witnesses[:2]:
        witness.away = True
    statement = world.owner.statement(world.grant)
    with pytest.raises(Unavailable) as caught:
        world.ks.say(statement)
    assert caught.value.details == {"written": "yes"}
    with pytest.raises(Unavailable):
        world.ks.say(statement)
    for witness in world.witnesses:
        witness.away = False
    world.ks.service.maintain()
    confirmed(world)
    entries = len(world.ks.disk.tables["entries"])
    done = world.ks.say(statement)
    receipt = check_statement_receipt(done, statement, LogKeys(LOG_KEY))
    quorum(world, receipt.head)
    assert len(world.ks.disk.tables["entries"]) == entries  # it was not applied again
    with pytest.raises(Refused) as refused:
        world.ks.say(statement)
    assert refused.value.code == "statement-replayed" or "sequence" in refused.value.code


def test_s7_after_a_restart_nothing_leaves_before_witnesses_confirmed(world: World) -> None:
    for witness in world.witnesses:
        witness.away = True
    world.ks.close()
    world.ks.restart()
    world.settled(world.ks)
    world.nothing_leaves(world.ks, "keyservice-unconfirmed")
    assert world.ks.ask(world.owner, "whoami")["confirmed"] == -1
    assert head(world.ks).cosignatures == ()
    for witness in world.witnesses[:K]:
        witness.away = False
    world.ks.service.maintain()
    confirmed(world)
    assert world.release().key == REQUEST


def lie_signature(answer: bytes | int) -> bytes | int:
    if isinstance(answer, int):
        return answer
    middle = len(answer) // 2
    return answer[:middle] + (b"A" if answer[middle : middle + 1] != b"A" else b"B") + answer[middle + 1 :]


@pytest.mark.parametrize(
    "lie",
    [
        lie_signature,
        lambda _: b"",
        lambda _: b"\xff" * 9000,
        lambda _: 0,
        lambda _: 2**60,
        lambda _: "— w AAAA\n".encode(),
    ],
    ids=["signature", "empty", "noise", "size-0", "size-huge", "short-line"],
)
def test_s7_one_lying_witness_neither_confirms_nor_stops(world: World, lie: Any) -> None:
    world.witnesses[0].lie = lie
    found = world.release().head
    assert world.witnesses[0].key not in {item.key for item in found.cosignatures}
    quorum(world, found)
    for witness in world.witnesses[1:]:
        witness.lie = lie
    with pytest.raises(Unavailable):
        world.release()


def test_s7_one_compromised_witness_does_not_make_a_fork(world: World) -> None:
    """It signs for both sides; with 2 of 3 no dishonest witness is tolerated for forks, with 3 of 4 one is."""
    assert 2 * 3 - 4 - 1 == 1
    folder = world.folder / "four"
    witnesses = local_witnesses(folder, world.clock, LOG_KEY, 4)
    settings = witnessed(witnesses, 3)
    first = world.start(**settings)
    owner = first.person()
    disk = first.disk.copy()
    equivocator = LocalWitness(folder / "twin", world.clock)
    equivocator.store.add(LOG_KEY)
    equivocator.identity = witnesses[0].identity
    equivocator.restart()
    policy = world.platform.policy().encode()
    first.say(owner.statement(DefinePolicy(policy)))
    fork = world.settled(world.start(disk, **(settings | {"witnesses": [equivocator, *witnesses[1:]]})))
    with pytest.raises(Unavailable) as caught:
        fork.say(owner.statement(DefinePolicy(policy)))
    assert caught.value.code == "keyservice-superseded"


def test_s7_a_witness_restored_from_a_backup_counts_as_dishonest_and_is_outvoted(world: World) -> None:
    """Its old store lets it sign another history: the majority does not."""
    twin_disk = world.ks.disk.copy()
    (path,) = (world.witnesses[0].folder / "logs").glob("*.log")
    backup = path.read_bytes()
    world.ks.say(world.owner.statement(RevokeGrant("model", world.user.id)))
    size = world.ks.assembled.ledger.head().size
    for _ in range(200):  # two have signed, and the third may not have been asked yet
        if all(witness.record(world.ks.id).newest.size == size for witness in world.witnesses):
            break
        world.clock.advance(11)
        world.ks.service.maintain()
        threading.Event().wait(0.02)
    world.ks.close()
    path.write_bytes(backup)
    old = world.settled(world.start(twin_disk))
    world.nothing_leaves(old, "keyservice-superseded")
    assert "confirmed" in old.service._anchor.state().outcomes.values()


def test_s7_witnesses_far_ahead_in_time_do_not_make_everything_expire(world: World) -> None:
    now = world.clock.now()
    world.witnesses[0].clock = FakeClock(now + 10**8)
    world.witnesses[0].restart()
    world.release()
    assert world.ks.assembled.ledger.now() < now + 1000
    world.clock.set(now - 5000)  # the host turns the clock back; two honest witnesses do not
    assert world.ks.assembled.ledger.now() >= now


# --- configuration: measured, and never silently weaker ---


@pytest.mark.parametrize(
    "settings",
    [
        {"rollback_protection": "witnesses"},
        {"rollback_protection": "witnesses", "witness_keys": (b"a" * 32, b"b" * 32), "witness_threshold": 1},
        {"rollback_protection": "witnesses", "witness_keys": (b"a" * 32,) * 2, "witness_threshold": 2},
        {"rollback_protection": "witnesses", "witness_keys": (b"a" * 31,), "witness_threshold": 1},
        {"rollback_protection": "witnesses", "witness_keys": (b"a" * 32,), "witness_threshold": 2},
        {"rollback_protection": "none", "witness_keys": (b"a" * 32,), "witness_threshold": 1},
        {"rollback_protection": "none", "witnesses": [None]},
        {"rollback_protection": "witnesses", "witness_keys": (b"a" * 32,), "witness_threshold": 1, "witnesses": []},
    ],
)
def test_s7_a_configuration_that_protects_less_than_it_says_does_not_start(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        EmbeddedKeyService(**settings)
    assert caught.value.code in ("configuration-malformed", "witness-addresses")


class _Sequences:
    """As much of a keyring as an account needs."""

    def __init__(self, heads: VolatileHeads) -> None:
        self.heads = heads
        self.last = 0

    def next_sequence(self, keyservice: bytes, now: float) -> int:
        self.last += 1
        return self.last


def _identity(world: World) -> Any:
    person = world.ks.person(register=False)

    class Identity:
        id = person.id
        key = person.key

        def recovery_public_key(self) -> bytes:
            return person.recovery.public_key

    return Identity()
