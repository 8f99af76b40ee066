"""The cache: fresh, valid without its source, never rolled back, never poisoned; and the bundle file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.adapters.collateral.bundle import (
    Bundle,
    BundleCollateral,
    Entry,
    check_bundle,
    make_bundle,
    parse_bundle,
    write_atomically,
)
from cloister.adapters.collateral.cached import CachedCollateral, CacheStore, DirectoryStore, MemoryStore
from cloister.adapters.collateral.directory import DirectoryCollateral
from cloister.adapters.collateral.subject import subject_of
from cloister.attest.snp.certificates import Signer
from cloister.attest.types import Collateral, Evidence
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.limits import MAX_COLLATERAL
from cloister.testing.clock import FakeClock
from cloister.testing.collateral import MemoryCollateral
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_dcap_pki import DAY, NOW, key_of
from cloister.testing.evidence_snp import SnpAuthority
from cloister.wire import cbor


class Setting:
    """A source, a store and a cache between them."""

    def __init__(self, store: CacheStore) -> None:
        self.intel = SyntheticIntel.tdx(4)
        self.evidence = self.intel.evidence()
        subject = subject_of(self.evidence)
        assert subject is not None
        self.key = subject.key
        self.source = MemoryCollateral()
        self.source.put(self.evidence, self.intel.collateral())
        self.store = store
        self.clock = FakeClock(NOW)
        self.cache = CachedCollateral(self.source, store, self.intel.anchors(), self.clock, refresh=DAY)

    def get(self) -> Collateral:
        return self.cache.collateral(self.evidence)

    def publish(self, change: Callable[[SyntheticIntel], object]) -> Collateral:
        change(self.intel)
        collateral = self.intel.collateral()
        self.source.put(self.evidence, collateral)
        return collateral


@pytest.fixture(params=["memory", "disk"])
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> Setting:
    return Setting(MemoryStore() if request.param == "memory" else DirectoryStore(tmp_path / "cache"))


def test_it_asks_once_and_again_after_a_day(setting: Setting) -> None:
    for _ in range(3):
        setting.get()
    assert setting.source.asked == 1
    setting.clock.advance(DAY)
    setting.get()
    assert setting.source.asked == 2


def test_while_the_service_is_away_what_is_valid_is_used(setting: Setting) -> None:
    first = setting.get()
    setting.source.away = True
    setting.clock.advance(28 * DAY)
    assert setting.get() == first
    verify(setting.evidence, setting.get(), setting.intel.anchors(), setting.clock.now())


def test_what_has_run_out_is_not_used(setting: Setting) -> None:
    setting.get()
    setting.source.away = True
    setting.clock.advance(29 * DAY + 1)
    with pytest.raises(Unavailable, match="collateral-unavailable"):
        setting.get()


def test_with_nothing_kept_an_absent_service_is_unavailable(setting: Setting) -> None:
    setting.source.away = True
    with pytest.raises(Unavailable, match="collateral-unavailable"):
        setting.get()


def test_a_bad_answer_is_neither_kept_nor_used_in_the_place_of_a_good_one(setting: Setting) -> None:
    good = setting.get()
    setting.publish(lambda intel: setattr(intel, "tcb_info_signing_key", key_of("mallory")))
    setting.clock.advance(2 * DAY)
    assert setting.get() == good
    setting.store.drop(setting.key)
    with pytest.raises(CloisterError, match="tcb-info-forged"):
        setting.get()
    assert setting.store.load(setting.key) is None


@pytest.mark.parametrize("number", ["tcb-info", "qe-identity", "root-crl", "pck-crl"])
def test_numbers_never_go_back(setting: Setting, number: str) -> None:
    def raised(by: int) -> Callable[[SyntheticIntel], None]:
        def change(intel: SyntheticIntel) -> None:
            if number == "root-crl":
                intel.root_crl.number += by
            elif number == "pck-crl":
                intel.pck_crl.number += by
            else:
                document = intel.tcb_info if number == "tcb-info" else intel.qe_identity
                document["tcbEvaluationDataNumber"] += by

        return change

    setting.publish(raised(2))
    newer = setting.get()
    setting.publish(raised(-1))
    setting.clock.advance(2 * DAY)
    assert setting.get() == newer
    setting.intel.tcb_info["nextUpdate"] = setting.intel.qe_identity["nextUpdate"] = "2028-01-01T00:00:00Z"
    setting.intel.root_crl.next_update = setting.intel.pck_crl.next_update = NOW + 300 * DAY
    setting.publish(raised(0))
    setting.clock.advance(40 * DAY)  # the newer one has run out, and still says what its numbers were
    with pytest.raises(CloisterError, match="collateral-rolled-back"):
        setting.get()
    assert setting.publish(raised(1)) == setting.get()


def test_a_poisoned_entry_is_dropped_and_fetched_again(setting: Setting) -> None:
    good = setting.get()
    forged = SyntheticIntel.tdx(4)
    forged.root.key_name = "mallory"
    other = SyntheticIntel.tdx(4)
    other.platform.fmspc = bytes.fromhex("00906ea10000")
    other.tcb_info["fmspc"] = "00906EA10000"
    for poison in (forged.collateral(), other.collateral(), Collateral({"collateral.json": b"{}"}), Collateral()):
        setting.store.save(Entry(setting.key, NOW, poison))
        before = setting.source.asked
        assert setting.get() == good
        assert setting.source.asked == before + 1
        kept = setting.store.load(setting.key)
        assert kept is not None
        assert kept.collateral == good


def test_an_entry_from_the_future_is_asked_for_again(setting: Setting) -> None:
    setting.get()
    setting.store.save(Entry(setting.key, NOW + 5 * DAY, setting.intel.collateral()))
    setting.get()
    assert setting.source.asked == 2


def test_the_memory_is_bounded() -> None:
    store = MemoryStore(most=2)
    for name in ("sgx/a", "sgx/b", "sgx/c"):
        store.save(Entry(name, NOW, Collateral()))
        store.load("sgx/a")
    assert [store.load(name) is not None for name in ("sgx/a", "sgx/b", "sgx/c")] == [True, False, True]


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 10, cbor.encode({"subject": "sgx/x"}), bytes(10**6)])
def test_a_file_that_is_no_entry_is_removed(tmp_path: Path, content: bytes) -> None:
    setting = Setting(DirectoryStore(tmp_path))
    path = DirectoryStore(tmp_path).path(setting.key)
    path.write_bytes(content)
    assert setting.get() == setting.intel.collateral()
    assert path.read_bytes() != content


def test_a_file_of_another_platform_is_removed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    setting = Setting(store)
    entry = Entry("tdx/000000000000/platform", NOW, setting.intel.collateral())
    store.path(setting.key).write_bytes(cbor.encode(entry.encode()))
    assert store.load(setting.key) is None
    assert not store.path(setting.key).exists()


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    first, second = Setting(DirectoryStore(tmp_path)), Setting(DirectoryStore(tmp_path))
    second.source.away = True
    assert first.get() == second.get()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(Unavailable, match="collateral-unwritable"):
        write_atomically(tmp_path / "absent" / "file", b"new")


# --- bundle -----------------------------------------------------------------------------------------------------------


def _entry(intel: SyntheticIntel) -> Entry:
    subject = subject_of(intel.evidence())
    assert subject is not None
    return Entry(subject.key, NOW, intel.collateral())


SGX, TDX = SyntheticIntel.sgx(), SyntheticIntel.tdx(4)
BUNDLE = make_bundle([_entry(TDX), _entry(SGX)], SGX.anchors(), NOW)


def test_a_bundle_is_read_back_and_says_when_it_runs_out() -> None:
    assert parse_bundle(BUNDLE.encode()) == BUNDLE
    assert (BUNDLE.made_at, BUNDLE.expires_at) == (NOW, NOW + 29 * DAY)
    reports = check_bundle(BUNDLE, SGX.anchors(), NOW + DAY)
    assert [report.expires_at for report in reports] == [NOW + 29 * DAY] * 2
    reports = check_bundle(BUNDLE, SGX.anchors(), NOW + 30 * DAY)
    assert [report.problem.code if report.problem else "" for report in reports] == ["tcb-info-expired"] * 2


def test_a_bundle_is_made_of_genuine_entries_only() -> None:
    forged = SyntheticIntel.sgx()
    forged.tcb_info_signing_key = key_of("mallory")
    with pytest.raises(CloisterError, match="tcb-info-forged"):
        make_bundle([_entry(forged)], SGX.anchors(), NOW)
    for entries in ([], [_entry(SGX), _entry(SGX)]):
        with pytest.raises(InvalidInput, match="collateral-malformed"):
            make_bundle(entries, SGX.anchors(), NOW)


@pytest.mark.parametrize(
    ("subject", "code"),
    [
        ("sgx/00906ea10000/processor", "collateral-other-platform"),
        (f"sgx/{SGX.platform.fmspc.hex()}/" + "x", "collateral-other-platform"),
        ("sgx/no-hexadecimal/processor", "collateral-malformed"),
        ("sgx/00906EA10000/processor", "collateral-malformed"),
        ("sgx", "collateral-malformed"),
        ("sgx/a/b/c", "collateral-malformed"),
    ],
)
def test_genuine_collateral_under_another_name_is_not_bundled(subject: str, code: str) -> None:
    entry = Entry(subject, NOW, SGX.collateral())
    with pytest.raises(InvalidInput, match=code):
        make_bundle([entry], SGX.anchors(), NOW)
    (report,) = check_bundle(Bundle(NOW, NOW + DAY, (entry,)), SGX.anchors(), NOW)
    assert report.problem is not None
    assert report.problem.code == code


@pytest.mark.parametrize("signer", Signer)
def test_amd_collateral_under_its_own_name_is_bundled(signer: Signer) -> None:
    amd = SnpAuthority.create()
    for product in ("Milan", "Turin"):
        evidence, collateral = amd.evidence(product, signer)
        carried = replace(evidence, endorsements={"vek.der": collateral.files["vek.der"]})
        key = subject_of(carried)
        assert key is not None
        assert make_bundle([Entry(key.key, NOW, collateral)], amd.anchors(product), NOW)
        wrong = f"{key.key[:-2]}{'11' if key.key[-2:] == '00' else '00'}"
        with pytest.raises(InvalidInput, match=r"collateral-other-platform|collateral-malformed"):
            make_bundle([Entry(wrong, NOW, collateral)], amd.anchors(product), NOW)


def test_a_bundle_with_a_changed_byte_is_refused_or_fails_its_check() -> None:
    data = BUNDLE.encode()
    checked = check_bundle(BUNDLE, SGX.anchors(), NOW)
    for position in range(0, len(data), 97):
        changed = bytearray(data)
        changed[position] ^= 0x04
        try:
            bundle = parse_bundle(bytes(changed))
        except InvalidInput:
            continue
        for before, after in zip(checked, check_bundle(bundle, SGX.anchors(), NOW), strict=True):
            assert after.problem is not None or after.expires_at == before.expires_at


def test_the_bundle_of_another_format_is_refused() -> None:
    value = {"format": "other", "version": 1, "made_at": 0, "expires_at": 0, "entries": []}
    for change in ({}, {"format": "cloister-collateral"}, {"format": "cloister-collateral", "version": 2}):
        with pytest.raises(InvalidInput):
            parse_bundle(cbor.encode(value | change))


@pytest.mark.parametrize(
    "entry",
    [
        {"subject": "sgx/x", "fetched_at": 0, "files": {"evil.sh": b""}},
        {"subject": "martian/x", "fetched_at": 0, "files": {}},
        {"subject": "sgx/x", "fetched_at": 0, "files": {"collateral.json": "text"}},
        {"subject": "sgx/x", "fetched_at": 0, "files": {"collateral.json": bytes(MAX_COLLATERAL + 1)}},
        {"subject": "sgx/x", "fetched_at": 0, "files": {}, "more": 1},
    ],
)
def test_an_entry_that_does_not_belong_is_refused(entry: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        Entry.decode(entry)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_bundle(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        parse_bundle(data)


def test_a_bundle_file_that_is_absent_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="collateral-unavailable"):
        BundleCollateral.open(tmp_path / "absent")
    with pytest.raises(Unavailable, match="nothing for"):
        BundleCollateral(make_bundle([_entry(SGX)], SGX.anchors(), NOW)).collateral(TDX.evidence())


def test_a_directory_without_the_file_is_unavailable_and_an_oversized_one_invalid(tmp_path: Path) -> None:
    evidence: Evidence = SGX.evidence()
    with pytest.raises(Unavailable, match="collateral-unavailable"):
        DirectoryCollateral(tmp_path).collateral(evidence)
    (tmp_path / "collateral.json").write_bytes(bytes(MAX_COLLATERAL + 1))
    with pytest.raises(InvalidInput, match="collateral-malformed"):
        DirectoryCollateral(tmp_path).collateral(evidence)
