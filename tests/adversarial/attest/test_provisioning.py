"""A runtime's evidence at the real KeyService's attest call, on every TEE (NEGATIVE_CASES A1, A3, A4, A6, A8; S8, S9).

The attacker owns network, host and clock, has genuine machines of its own, and every message that was ever sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.adapters.collateral.bounded import BoundedCollateral
from cloister.adapters.collateral.cached import CachedCollateral, MemoryStore
from cloister.attest.configuration import configure
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.base.limits import CHALLENGE_LIFETIME_S, COLLATERAL_QUESTIONS
from cloister.crypto.hpke import HpkePrivateKey
from cloister.runtime.presence import PresenceDesk
from cloister.testing.clock import FakeClock
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_dcap_pki import NOW
from cloister.testing.hardware import (
    CONFIGURATION,
    TEES,
    HardwareKeyService,
    SyntheticVendors,
    endorsed,
    tdx_machine,
)
from cloister.testing.people import Person
from cloister.wire.calls import Description, WireEvidence
from cloister.wire.presence import Presence
from cloister.wire.provisioning import AttestRequest, accept_session, runtime_report_data

every_tee = pytest.mark.parametrize("tee", TEES, ids=lambda tee: tee.value)


@pytest.fixture(scope="module")
def vendors() -> SyntheticVendors:
    return SyntheticVendors()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture
def keyservice(vendors: SyntheticVendors, clock: FakeClock, tmp_path: Path) -> HardwareKeyService:
    return HardwareKeyService(vendors, clock, cache=tmp_path / "collateral")


def refused(keyservice: HardwareKeyService, request: AttestRequest) -> str:
    with pytest.raises(CloisterError) as caught:
        keyservice.call(request)
    assert isinstance(caught.value, InvalidInput | Refused | Tampered | Unavailable)
    return caught.value.code


# --- A4: the nonce ---


@every_tee
def test_a4_a_nonce_is_used_once(keyservice: HardwareKeyService, vendors: SyntheticVendors, tee: TeeType) -> None:
    """The whole message again; and new evidence of the same genuine machine over the used nonce."""
    attester = vendors.endorsed(tee)
    request, key = keyservice.request(attester)
    assert accept_session(keyservice.call(request), request, key).lifetime > 0
    assert refused(keyservice, request) == "challenge-redeemed"
    again, _ = keyservice.request(attester, request.challenge)
    assert refused(keyservice, again) == "challenge-redeemed"


@every_tee
def test_a4_a_nonce_of_another_time_or_service(
    keyservice: HardwareKeyService, vendors: SyntheticVendors, clock: FakeClock, tee: TeeType
) -> None:
    attester = vendors.endorsed(tee)
    other = HardwareKeyService(vendors, clock)
    assert refused(keyservice, keyservice.request(attester, other.service.challenge())[0]) == "challenge-malformed"
    for nonce in (b"", bytes(56), b"n" * 56, other.service.challenge()[:-1]):
        assert refused(keyservice, keyservice.request(attester, nonce)[0]) == "challenge-malformed"
    request, _ = keyservice.request(attester)
    clock.advance(CHALLENGE_LIFETIME_S)
    assert refused(keyservice, request) == "challenge-expired"


@every_tee
def test_a4_evidence_over_another_nonce(
    keyservice: HardwareKeyService, vendors: SyntheticVendors, tee: TeeType
) -> None:
    """A captured quote under a fresh challenge, and the right values in the wrong fields."""
    attester = vendors.endorsed(tee)
    captured, _ = keyservice.request(attester)
    fresh = keyservice.service.challenge()
    assert refused(keyservice, replace(captured, challenge=fresh)) == "report-data-mismatch"
    key = HpkePrivateKey.generate().public_key
    for bound in (
        runtime_report_data(fresh, key, CONFIGURATION, bytes(32)),
        runtime_report_data(key + fresh, b"", CONFIGURATION, bytes(32)),
        runtime_report_data(key, b"", CONFIGURATION, bytes(32)),
        fresh + bytes(8),
        bytes(64),
    ):
        evidence = attester.evidence(bound)
        wire = WireEvidence(tee.value, evidence.body, dict(evidence.endorsements))
        request = AttestRequest(key, fresh, CONFIGURATION, bytes(32), wire)
        assert refused(keyservice, request) == "report-data-mismatch"


# --- A8: the key, and everything else that the evidence binds ---


@every_tee
def test_a8_the_session_goes_to_the_attested_key_only(
    keyservice: HardwareKeyService, vendors: SyntheticVendors, tee: TeeType
) -> None:
    request, _ = keyservice.request(vendors.endorsed(tee))
    mine = HpkePrivateKey.generate()
    for forged in (
        replace(request, session_key=mine.public_key),
        replace(request, configuration=configure({"isolation": "shared"}).encoded),
        replace(request, bundle_digest=b"b" * 32),
    ):
        assert refused(keyservice, forged) == "report-data-mismatch"
    offer = keyservice.call(request)  # the failed attempts did not use the challenge up
    with pytest.raises(Tampered):
        accept_session(offer, request, mine)


# --- A6: one TEE's evidence as another's ---


@pytest.mark.parametrize("label", list(TeeType), ids=lambda tee: tee.value)
@pytest.mark.parametrize("tee", [*TEES, TeeType.SIMULATION], ids=lambda tee: tee.value)
def test_a6_evidence_under_another_label(
    keyservice: HardwareKeyService, vendors: SyntheticVendors, tee: TeeType, label: TeeType
) -> None:
    attester = vendors.endorsed(tee)
    request, _ = keyservice.request(attester)
    labelled = replace(request, evidence=replace(request.evidence, tee=label.value))
    if label is tee and tee is not TeeType.SIMULATION:
        keyservice.call(labelled)
    elif label is tee:
        assert refused(keyservice, labelled) == "simulation-refused"
    else:
        refused(keyservice, labelled)
    assert refused(keyservice, replace(request, evidence=replace(request.evidence, tee="sgx2"))) in {
        "evidence-unknown-tee",
        "challenge-redeemed",
    }


# --- S9: evidence made for something else ---


@every_tee
def test_s9_presence_opens_no_session(
    keyservice: HardwareKeyService, vendors: SyntheticVendors, clock: FakeClock, tee: TeeType
) -> None:
    """What a runtime says to anybody who asks, with the KeyService's challenge as the nonce."""
    challenge = keyservice.service.challenge()
    configuration = configure({"isolation": "strict"})
    with ThreadPoolExecutor(1) as executor:
        desk = PresenceDesk(
            vendors.endorsed(tee), configuration, bundle_digest=lambda: bytes(32), executor=executor, clock=clock
        )
        presence = Presence.decode(asyncio.run(desk.answer(challenge[:32])))
    key = HpkePrivateKey.generate().public_key
    request = AttestRequest(key, challenge, presence.configuration, bytes(32), presence.evidence)
    assert refused(keyservice, request) == "report-data-mismatch"


def test_s9_the_keyservices_own_evidence_opens_no_session(keyservice: HardwareKeyService) -> None:
    description = Description.decode(keyservice.service.description())
    for configuration in (description.configuration, CONFIGURATION):
        request = AttestRequest(
            description.call_key,
            keyservice.service.challenge(),
            configuration,
            description.bundle_digest,
            description.evidence,
        )
        assert refused(keyservice, request) == "report-data-mismatch"


# --- S8: whatever is wrong, it is refused, and nothing else happens ---


@every_tee
def test_s8_changed_evidence_is_refused(
    keyservice: HardwareKeyService, vendors: SyntheticVendors, tee: TeeType
) -> None:
    request, _ = keyservice.request(vendors.endorsed(tee))
    body = request.evidence.body
    signed = {TeeType.SGX: 432, TeeType.TDX: 48 + 6 + 648, TeeType.SEV_SNP: 0x2A0, TeeType.NITRO: len(body)}[tee]
    for at in range(0, signed, 23):
        changed = bytearray(body)
        changed[at] ^= 1 << at % 8
        refused(keyservice, replace(request, evidence=replace(request.evidence, body=bytes(changed))))
    for cut in range(0, len(body), 401):
        refused(keyservice, replace(request, evidence=replace(request.evidence, body=body[:cut])))
    for more in (b"\x01", b"\xff" * 16, b"\x01" * 4096):
        refused(keyservice, replace(request, evidence=replace(request.evidence, body=body + more)))
    keyservice.call(request)


@pytest.mark.parametrize("name", ["collateral.json", "vek.der", "ask_ark.pem", "crl.der", "auxblob", "../x", ""])
@every_tee
def test_s8_what_travels_along_is_believed_by_nobody(
    keyservice: HardwareKeyService, vendors: SyntheticVendors, tee: TeeType, name: str
) -> None:
    """Garbage under every name that means something: refused, or without any effect."""
    request, _ = keyservice.request(vendors.machine(tee)[0])
    genuine = dict(keyservice.request(vendors.endorsed(tee))[0].evidence.endorsements)
    for garbage in (b"", b"{}", b"\x30\x03\x02\x01\x00", b"-----BEGIN CERTIFICATE-----\n", b"x" * 60_000):
        files = genuine | {name: garbage}
        forged = replace(request, evidence=replace(request.evidence, endorsements=files))
        if name in genuine:
            refused(keyservice, forged)
            continue
        with contextlib.suppress(CloisterError):
            keyservice.call(forged)
            break  # without any effect; the challenge is used


# --- collateral and clock ---


def test_an_older_list_that_one_platform_showed_up_is_refused_from_every_other(
    vendors: SyntheticVendors, clock: FakeClock, tmp_path: Path
) -> None:
    """A revoked platform of a kind not seen before brings the list from before its revocation, which is still valid."""
    keyservice = HardwareKeyService(vendors, clock, cache=tmp_path / "collateral")
    honest, revoked = SyntheticIntel.tdx(5), SyntheticIntel.tdx(5)
    revoked.platform.fmspc = bytes.fromhex("00906ea10000")
    revoked.tcb_info["fmspc"] = "00906EA10000"
    older = revoked.collateral()
    honest.pck_crl.number = 2
    assert keyservice.attest(endorsed(tdx_machine(honest), honest.collateral())).lifetime > 0
    request, _ = keyservice.request(endorsed(tdx_machine(revoked), older))
    assert refused(keyservice, request) == "collateral-rolled-back"


def test_a_host_that_puts_an_older_file_back_into_the_cache_is_found_out(
    vendors: SyntheticVendors, clock: FakeClock, tmp_path: Path
) -> None:
    folder = tmp_path / "collateral"
    keyservice = HardwareKeyService(vendors, clock, cache=folder)
    intel = SyntheticIntel.tdx(5)
    older = intel.collateral()
    assert keyservice.attest(endorsed(tdx_machine(intel), older)).lifetime > 0
    before = {path: path.read_bytes() for path in folder.iterdir()}
    intel.pck_crl.number, intel.pck_crl.revoked = 2, (intel.pck.serial,)
    newer = intel.collateral()
    request, _ = keyservice.request(endorsed(tdx_machine(intel), newer))
    assert refused(keyservice, request) == "pck-revoked"
    for files in (before, {}):  # the old file back, or none at all
        for path in folder.iterdir():
            path.unlink()
        for path, data in files.items():
            path.write_bytes(data)
        request, _ = keyservice.request(endorsed(tdx_machine(intel), older))
        assert refused(keyservice, request) == "collateral-rolled-back"


def test_the_hosts_clock_brings_no_expired_collateral_back(
    keyservice: HardwareKeyService, vendors: SyntheticVendors, clock: FakeClock
) -> None:
    """The KeyService's time never runs behind its newest entry; what had expired then stays expired."""
    attester = vendors.endorsed(TeeType.TDX)
    assert keyservice.attest(attester).lifetime > 0
    clock.advance(400 * 86_400)
    person = Person(keyservice.id, clock)
    keyservice.say(person.register())
    clock.set(NOW)
    assert refused(keyservice, keyservice.request(attester)[0]).endswith("-expired")


# --- invented evidence shall not tie up the service ---


class Hanging:
    """A vendor that does not answer until it is let go."""

    def __init__(self) -> None:
        self.asked, self.go = threading.Semaphore(0), threading.Event()

    def collateral(self, evidence: Evidence) -> Collateral:
        self.asked.release()
        assert self.go.wait(30)
        raise Unavailable("collateral-unavailable", f"the vendor of {evidence.tee} is away")


def test_a_slow_vendor_holds_a_few_threads_and_not_the_service(vendors: SyntheticVendors, clock: FakeClock) -> None:
    hanging = Hanging()
    source = CachedCollateral(BoundedCollateral(hanging), MemoryStore(), vendors.anchors, clock)
    keyservice = HardwareKeyService(vendors, clock, collateral=source)
    machines = [vendors.machine(tee)[0] for tee in (TeeType.SGX, TeeType.TDX, TeeType.SEV_SNP)]
    with ThreadPoolExecutor(COLLATERAL_QUESTIONS) as callers:
        waiting = [
            callers.submit(refused, keyservice, keyservice.request(machines[index % 3])[0])
            for index in range(COLLATERAL_QUESTIONS)
        ]
        for _ in waiting:
            assert hanging.asked.acquire(timeout=30)
        for machine in machines:
            assert refused(keyservice, keyservice.request(machine)[0]) == "collateral-busy"
        assert keyservice.attest(vendors.machine(TeeType.NITRO)[0]).lifetime > 0, "others are served meanwhile"
        hanging.go.set()
        assert {future.result(30) for future in waiting} == {"collateral-unavailable"}
    assert refused(keyservice, keyservice.request(machines[0])[0]) == "collateral-unavailable"
