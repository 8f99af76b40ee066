"""S1, S2, S7: the root secret goes to nothing but the same code with the same configuration in the same kind of TEE."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.attest.bundle import TrustBundle
from cloister.attest.code import same_code
from cloister.attest.types import Claims, TeeType
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.base.secret import SecretBytes
from cloister.crypto.hpke import HpkePrivateKey
from cloister.crypto.sign import SigningKey
from cloister.keyservice.offline import ROOT_FILE
from cloister.keyservice.opening import Tee
from cloister.keyservice.replication.handover import (
    CHALLENGE_PATH,
    HANDOVER_PATH,
    LEADER_CHALLENGE_PATH,
    LEADER_HANDOVER_PATH,
    Joiner,
)
from cloister.keyservice.replication.joining import Joining, find_root, join
from cloister.keyservice.root import Root, decode_root, open_root, root_of
from cloister.testing.clock import FakeClock
from cloister.testing.collateral import NoCollateral
from cloister.testing.embedded import EmbeddedKeyService, attest_request
from cloister.testing.logs import MemoryLog
from cloister.testing.tee import SimulatedTee
from cloister.testing.witness import LocalWitness, local_witnesses, witnessed
from cloister.wire import calls
from cloister.wire.calls import Description, WireEvidence
from cloister.wire.handover import HandoverRequest, handover_report_data, open_sealed_root
from cloister.wire.log_keys import LogKeys

SECRET = SecretBytes(b"r" * 32)
ROOT = root_of(SECRET)


class World:
    """A KeyService that has three replicas, and what a fourth process needs to ask it for its root secret."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.bundle_key = SigningKey.generate()
        self.platform = SimulatedTee("runtime", clock=self.clock)
        self.witnesses: list[LocalWitness] = local_witnesses(folder, self.clock, ROOT.log_key.public_key, 3)
        self.running: list[EmbeddedKeyService] = []
        self.ks = self.start()
        assert self.ks.bundle is not None
        self.bundle = self.ks.bundle

    def start(self, **changes: Any) -> EmbeddedKeyService:
        values: dict[str, Any] = {"clock": self.clock, "runtime_tee": self.platform, "bundle_key": self.bundle_key}
        values |= {"replicas": 3, "peers": [Away()], **witnessed(self.witnesses, 2), **changes}
        self.running.append(EmbeddedKeyService(**values))
        return self.running[-1]

    def joiner(self, **changes: Any) -> SimulatedTee:
        """The same code and configuration, on a platform of its own that the bundle knows."""
        return replace(self.ks.tee, **changes)

    def receive(
        self, tee: SimulatedTee | None = None, giver: Any = None, bundle: TrustBundle | None = None, **more: Any
    ) -> Root:
        tee = tee or self.joiner()
        asking = Joiner(tee.attester(), tee.configuration, bundle or self.bundle, NoCollateral(), self.clock, **more)
        return asking.receive(giver or self.ks)

    def request(self, tee: SimulatedTee | None = None, **changes: Any) -> tuple[HandoverRequest, HpkePrivateKey]:
        """What a joiner sends; ``changes`` are made after the evidence was obtained."""
        tee, key = tee or self.joiner(), HpkePrivateKey.generate()
        challenge = self.ks.post(CHALLENGE_PATH, b"", limit=128)
        configuration, bundle = tee.configuration.encoded, self.bundle.digest
        bound = handover_report_data(self.ks.id, key.public_key, challenge, configuration, bundle)
        evidence = tee.attester().evidence(bound)
        wire = WireEvidence(evidence.tee.value, evidence.body, {})
        return replace(HandoverRequest(key.public_key, challenge, configuration, bundle, wire), **changes), key

    def ask(self, request: HandoverRequest, kind: str = calls.HANDOVER, path: str = HANDOVER_PATH) -> dict[str, Any]:
        description = Description.decode(self.ks.service.description())
        call = calls.seal_call(description, kind, request.encode())
        return calls.open_reply(call, self.ks.post(path, call.data, limit=2**20))


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


# --- it works ---


def test_s7_the_same_code_and_configuration_gets_the_root_secret(world: World, tmp_path: Path) -> None:
    assert world.receive().secret == SECRET
    assert world.receive(expected=ROOT.id).id == ROOT.id
    tee = world.joiner()
    own = Tee(tee.attester(), tee.sealer(), tee.measurement)
    joining = Joining([world.ks], lambda: world.bundle, NoCollateral(), ROOT.id)
    assert join(tmp_path / "state", own, world.ks.settings, joining, world.clock).id == ROOT.id
    assert open_root(tmp_path / "state" / ROOT_FILE, tee.sealer()).secret == SECRET
    refused("state-exists", lambda: join(tmp_path / "state", own, world.ks.settings, joining, world.clock))
    assert isinstance(world.ks.events, MemoryLog)
    assert "handed-over" in [name for name, *_ in world.ks.events.events]


def test_s7_without_a_sealing_key_it_is_asked_for_at_every_start(world: World, tmp_path: Path) -> None:
    tee = world.joiner()
    own, log = Tee(tee.attester(), None, tee.measurement), MemoryLog()
    joining = Joining([Away(), world.ks], lambda: world.bundle, NoCollateral())
    for _ in range(2):
        found = find_root(tmp_path / "state", own, world.ks.settings, joining, clock=world.clock, events=log)
        assert found.secret == SECRET
    assert not (tmp_path / "state" / ROOT_FILE).exists()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        world.clock.advance(seconds)

    alone = Joining([Away()], lambda: world.bundle, NoCollateral())
    with pytest.raises(Unavailable, match="keyservice-unreachable"):
        find_root(
            tmp_path / "state", own, world.ks.settings, alone, clock=world.clock, events=log, sleep=sleep, patience_s=5
        )
    assert waits == [1.0] * 5
    with pytest.raises(Unavailable, match="sealing-unavailable"):
        find_root(tmp_path / "state", own, world.ks.settings, None, clock=world.clock, events=log)


def test_s7_a_new_one_is_made_only_where_nothing_is_and_nobody_answers(world: World, tmp_path: Path) -> None:
    tee = world.joiner()
    own, log, settings = Tee(tee.attester(), None, tee.measurement), MemoryLog(), world.ks.settings
    away, here = (Joining([giver], lambda: world.bundle, NoCollateral()) for giver in (Away(), world.ks))

    def find(joining: Joining, patience_s: float = 0.0) -> Root:
        return find_root(
            tmp_path / "s", own, settings, joining, clock=world.clock, events=log, new=True, patience_s=patience_s
        )

    assert find(here).id == ROOT.id  # somebody answers
    made = find(away)
    assert made.id != ROOT.id
    with pytest.raises(Unavailable):  # its log is there: another root secret would not open it
        find(away)
    sealing = Tee(tee.attester(), tee.sealer(), tee.measurement)
    with pytest.raises(InvalidInput, match="argument"):
        find_root(tmp_path / "t", sealing, settings, away, clock=world.clock, events=log, new=True)


class Away:
    """Nobody there."""

    origin = "http://away"

    def get(self, path: str, *, limit: int) -> bytes:
        raise Unavailable("keyservice-unreachable", f"{path} {limit}")

    post = get  # type: ignore[assignment]

    def exchange(self, request: bytes) -> bytes:
        raise Unavailable("replica-away", f"{len(request)}")


# --- whoever is something else gets nothing ---


@pytest.mark.parametrize("other", ["code", "configuration", "platform", "debug"])
def test_s1_s2_s7_another_measurement_configuration_platform_or_debug_gets_nothing(world: World, other: str) -> None:
    changes: dict[str, Any] = {
        "code": {"name": "other code"},
        "configuration": {"values": world.ks.tee.values | {"replicas": 2}},
        "platform": {"key": SigningKey.generate()},
        "debug": {"debug": True},
    }[other]
    tee = world.joiner(**changes)
    request, _ = world.request(tee)
    code = {
        "code": "measurement-not-allowed",
        "configuration": "replica-other",
        "platform": "simulation-refused",
        "debug": "debug-not-allowed",
    }[other]
    refused(code, lambda: world.ask(request))
    # and it does not help that it says to be configured as it should be
    if other == "configuration":
        request, _ = world.request(tee, configuration=world.ks.tee.configuration.encoded)
        refused("report-data-mismatch", lambda: world.ask(request))
        lied = SimulatedTee("keyservice", values=tee.values, key=world.platform.key, clock=world.clock)
        challenge, key = world.ks.post(CHALLENGE_PATH, b"", limit=128), HpkePrivateKey.generate()
        right = world.ks.tee.configuration.encoded
        bound = handover_report_data(world.ks.id, key.public_key, challenge, right, world.bundle.digest)
        wire = WireEvidence(TeeType.SIMULATION.value, lied.attester().evidence(bound).body, {})
        forged = HandoverRequest(key.public_key, challenge, right, world.bundle.digest, wire)
        refused("configuration-mismatch", lambda: world.ask(forged))
    with pytest.raises(CloisterError):
        world.receive(tee)


def test_s7_a_bundle_that_accepts_more_builds_still_hands_over_to_the_very_same_one_only(world: World) -> None:
    """Clients may believe two builds of a KeyService while it is upgraded; its secret stays in one."""
    other = world.joiner(name="newer code")
    rules = (world.ks.tee.rule("present"), other.rule("next"))
    wide = replace(world.bundle, keyservice=replace(world.bundle.keyservice, rules=rules))
    world.ks.bundle = world.bundle = wide
    world.ks.restart()
    assert world.receive().id == ROOT.id
    request, _ = world.request(other)
    refused("replica-other", lambda: world.ask(request))
    refused("replica-other", lambda: world.receive(other))


def test_s7_hardware_hands_nothing_to_a_simulation_nor_to_another_kind_of_tee() -> None:
    def claims(tee: TeeType, debug: bool = False, **measurements: bytes) -> Claims:
        return Claims(tee, measurements, b"", debug, "UpToDate", (), 0, b"", {}, configuration_digest=b"")

    sgx = claims(TeeType.SGX, mrenclave=b"m" * 32, mrsigner=b"s" * 32)
    assert same_code(sgx, sgx)
    nitro = claims(TeeType.NITRO, pcr0=b"0", pcr1=b"1", pcr2=b"2", pcr3=b"role", pcr4=b"instance")
    assert same_code(nitro, claims(TeeType.NITRO, pcr0=b"0", pcr1=b"1", pcr2=b"2", pcr3=b"x", pcr4=b"y"))
    tdx = claims(TeeType.TDX, mrtd=b"t", rtmr0=b"0", rtmr1=b"1", rtmr2=b"2", rtmr3=b"3")
    for own, other in (
        (sgx, claims(TeeType.SIMULATION, measurement=b"m" * 48)),
        (sgx, claims(TeeType.SEV_SNP, measurement=b"m" * 48)),
        (sgx, claims(TeeType.SGX, mrenclave=b"m" * 32, mrsigner=b"S" * 32)),
        (sgx, claims(TeeType.SGX, mrenclave=b"m" * 32)),
        (sgx, claims(TeeType.SGX, debug=True, mrenclave=b"m" * 32, mrsigner=b"s" * 32)),
        (nitro, claims(TeeType.NITRO, pcr0=b"0", pcr1=b"1", pcr2=b"!")),
        (tdx, claims(TeeType.TDX, mrtd=b"t", rtmr0=b"0", rtmr1=b"1", rtmr2=b"!", rtmr3=b"3")),
        (claims(TeeType.SGX), claims(TeeType.SGX)),
    ):
        assert not same_code(own, other)


def test_s7_a_keyservice_without_replicas_hands_over_to_none(world: World) -> None:
    """Not even to what it is itself; and one without a bundle, by which it would judge, to nobody."""
    alone = world.start(replicas=0, peers=(), seed=b"a" * 32)
    bundle = alone.bundle
    assert bundle is not None
    refused("replica-other", lambda: world.receive(alone.tee, alone, bundle))
    world.ks, world.bundle = alone, bundle
    request, _ = world.request(alone.tee)
    refused("replica-other", lambda: world.ask(request))
    untold = EmbeddedKeyService(clock=world.clock, runtime_tee=world.platform)
    world.running.append(untold)
    for path in (CHALLENGE_PATH, HANDOVER_PATH, LEADER_CHALLENGE_PATH, LEADER_HANDOVER_PATH):
        refused("replicas-none", lambda path=path: untold.post(path, b"", limit=128))  # type: ignore[misc]


# --- replays and confusion ---


def test_s6_s7_a_recorded_request_is_answered_once_and_only_for_its_sender(world: World) -> None:
    request, key = world.request()
    result = world.ask(request)
    assert decode_root(open_sealed_root(result, request, world.ks.id, key)).secret == SECRET
    refused("challenge-redeemed", lambda: world.ask(request))
    with pytest.raises(Tampered):
        open_sealed_root(result, request, world.ks.id, HpkePrivateKey.generate())
    with pytest.raises(Tampered):  # bound to the KeyService that was asked
        open_sealed_root(result, request, bytes(32), key)
    late, _ = world.request()
    world.clock.advance(61)
    refused("challenge-expired", lambda: world.ask(late))


def test_s7_evidence_for_one_key_does_not_serve_another(world: World) -> None:
    mine, _ = world.request()
    for changes in (
        {"session_key": HpkePrivateKey.generate().public_key},
        {"challenge": world.ks.post(CHALLENGE_PATH, b"", limit=128)},
    ):
        refused("report-data-mismatch", lambda changes=changes: world.ask(replace(mine, **changes)))  # type: ignore[misc]
    refused("keyservice-bundle-differs", lambda: world.ask(replace(mine, bundle_digest=bytes(32))))
    refused("challenge-malformed", lambda: world.ask(replace(mine, challenge=secrets.token_bytes(56))), InvalidInput)


def test_s9_what_was_made_to_join_is_no_runtime_and_the_other_way_round(world: World) -> None:
    """A hand-over is asked for at its own place; evidence of a runtime's attestation is none of a joiner."""
    request, _ = world.request()
    refused("call-unknown", lambda: world.ask(request, path="/v1/call"), InvalidInput)
    refused("call-refused", lambda: world.ask(request, kind=calls.ATTEST), InvalidInput)
    runtime, _ = attest_request(world.ks.tee, world.ks.post(CHALLENGE_PATH, b"", limit=128))
    given = replace(request, session_key=runtime.session_key, challenge=runtime.challenge, evidence=runtime.evidence)
    refused("report-data-mismatch", lambda: world.ask(given))
    # nor is a challenge to a runtime one for a joiner
    given = replace(request, challenge=world.ks.service.challenge())
    refused("challenge-malformed", lambda: world.ask(given), InvalidInput)


# --- a giver that is none ---


class InBetween:
    """The network between joiner and giver."""

    def __init__(self, giver: Any, **answers: bytes) -> None:
        self.giver = giver
        self.answers = answers

    def get(self, path: str, *, limit: int) -> bytes:
        return self.answers.get("description") or bytes(self.giver.get(path, limit=limit))

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        kind = "challenge" if path == CHALLENGE_PATH else "handover"
        return self.answers.get(kind) or bytes(self.giver.post(path, body, limit=limit))


def test_s1_s2_s7_a_giver_that_is_no_keyservice_is_not_believed(world: World) -> None:
    """Were it, the replica's secrets would be the attacker's."""
    forger = SigningKey.generate()
    genuine = Description.decode(world.ks.service.description())
    key = HpkePrivateKey.generate()
    for forged in (
        replace(genuine, log_keys=LogKeys(forger.public_key), keyservice=calls.keyservice_id(forger.public_key)),
        replace(genuine, call_key=key.public_key),
    ):
        giver = InBetween(world.ks, description=forged.encode())
        refused("report-data-mismatch", lambda giver=giver: world.receive(giver=giver))  # type: ignore[misc]
    other = world.start(code="other code", seed=b"o" * 32)
    with pytest.raises(Refused):
        world.receive(giver=other)


def test_s7_the_joiner_can_name_the_keyservice_it_means(world: World) -> None:
    """A genuine one of the same code and configuration, with another root secret, is believed unless one is named."""
    other = world.start(seed=b"o" * 32)
    assert world.receive(giver=other).id == other.id
    refused("keyservice-other", lambda: world.receive(giver=other, expected=world.ks.id))


def test_s7_s9_a_rotated_root_is_handed_over_with_all_that_leads_to_it(world: World, tmp_path: Path) -> None:
    """What reads old entries comes along; a root of another generation than the one that was attested is refused."""
    world.ks.rotate(tmp_path)
    got = world.receive(expected=ROOT.id)
    assert (got.id, got.generation, got.encode()) == (ROOT.id, 1, world.ks.root.encode())
    assert got.entry_keys == ((world.ks.root.log_keys.begins, ROOT.store_key),)
    genuine = world.ks.root
    for other in (ROOT, genuine.rotated(100, bytes(32), 2**33), ROOT.rotated(genuine.log_keys.begins, bytes(32), 1)):
        world.ks.service._giver()._root = other
        refused("handover-other", world.receive, Tampered)


def test_s7_the_network_changes_nothing_of_what_is_handed_over(world: World) -> None:
    with pytest.raises(CloisterError):
        world.receive(giver=InBetween(world.ks, challenge=secrets.token_bytes(56)))
    description = Description.decode(world.ks.service.description())
    sealed = calls.seal_reply(SecretBytes(bytes(32)), hashlib.sha256(b"").digest(), {"sealed": bytes(64)})
    refused("box-open", lambda: world.receive(giver=InBetween(world.ks, handover=sealed)), Tampered)
    assert description.keyservice == ROOT.id


# --- configuration ---


@pytest.mark.parametrize("values", [{"replicas": 1}, {"replicas": 4}, {"replicas": -1}])
def test_s8_replicas_need_witnesses_a_bundle_and_a_sensible_number(world: World, values: dict[str, int]) -> None:
    settings = world.ks.settings
    refused("configuration-malformed", lambda: replace(settings, **values), InvalidInput)  # type: ignore[arg-type]
    alone = {"rollback_protection": "none", "witnesses": (), "witness_threshold": 0}
    refused("configuration-malformed", lambda: replace(settings, **alone), InvalidInput)  # type: ignore[arg-type]
    refused("configuration-malformed", lambda: replace(settings, bundle_root=b""), InvalidInput)
