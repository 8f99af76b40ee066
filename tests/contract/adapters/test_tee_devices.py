"""Attesters on real files, on fake kernels, and on devices that lie: every lie is noticed before evidence leaves."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cbor2
import pytest

from cloister.adapters.tee import open as opening
from cloister.adapters.tee.configfs_tsm import ConfigfsTsmAttester
from cloister.adapters.tee.detect import detect, look
from cloister.adapters.tee.files import DeviceFiles, OsDeviceFiles, read_number, read_text
from cloister.adapters.tee.gramine import GramineAttester
from cloister.adapters.tee.nitro import IOCTL_RAW, NitroAttester
from cloister.attest.snp.parse import parse as parse_report
from cloister.attest.types import Collateral, TeeType
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.testing.devices import NSM_REQUEST, FakeConfigfsTsm, FakeGramine, FakeNsm
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_nitro import NitroAuthority
from cloister.testing.evidence_snp import NOW, SnpAuthority, build_cert_table

DATA = bytes(range(64))


def sgx_quote(report_data: bytes) -> bytes:
    intel = SyntheticIntel.sgx()
    intel.report["report_data"] = report_data
    return intel.quote()


def tdx_quote(report_data: bytes, _level: int = 0) -> bytes:
    intel = SyntheticIntel.tdx(4)
    intel.report["report_data"] = report_data
    return intel.quote()


@pytest.fixture(scope="module")
def amd() -> SnpAuthority:
    return SnpAuthority.create()


@pytest.fixture(scope="module")
def aws() -> NitroAuthority:
    return NitroAuthority.create()


@pytest.fixture
def snp_report(amd: SnpAuthority) -> Callable[[bytes, int], bytes]:
    return lambda report_data, level: amd.evidence("Milan", report_data=report_data, vmpl=level)[0].body


def lied(attester: GramineAttester | ConfigfsTsmAttester | NitroAttester) -> str:
    with pytest.raises(Tampered, match="evidence-device-lied") as refusal:
        attester.evidence(DATA)
    return refusal.value.message


# --- files of this machine --------------------------------------------------------------------------------------------


def test_files_are_read_and_written_whole(tmp_path: Path) -> None:
    files = OsDeviceFiles(tmp_path)
    (tmp_path / "text").write_bytes(b"tdx_guest\n")
    (tmp_path / "number").write_bytes(b"17\n")
    (tmp_path / "blob").write_bytes(b"old")
    files.write("blob", b"new")
    assert (files.read("blob"), read_text(files, "text"), read_number(files, "number")) == (b"new", "tdx_guest", 17)
    files.make_directory("entry")
    assert files.exists("entry")
    files.remove_directory("entry")
    files.remove_directory("entry")
    assert not files.exists("entry")


@pytest.mark.parametrize("act", ["read", "write", "make"])
def test_files_that_are_not_there_are_unavailable(tmp_path: Path, act: str) -> None:
    files = OsDeviceFiles(tmp_path / "absent")
    with pytest.raises(Unavailable, match="evidence-unavailable"):
        {"read": files.read, "write": lambda path: files.write(path, b""), "make": files.make_directory}[act]("x")


def test_a_file_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(bytes(70_000))
    with pytest.raises(Tampered, match="evidence-device-lied"):
        OsDeviceFiles(tmp_path).read("long")
    with pytest.raises(Tampered, match="evidence-device-lied"):
        OsDeviceFiles(Path("/dev")).read("zero")


@pytest.mark.parametrize("content", [b"", b"-1", b"1.5", b"x", b"\xff", b"1\x002", b"9" * 30])
def test_a_number_that_is_none_is_a_lie(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "number").write_bytes(content)
    with pytest.raises(Tampered, match="evidence-device-lied"):
        read_number(OsDeviceFiles(tmp_path), "number")


def test_a_full_device_takes_nothing() -> None:
    with pytest.raises(Unavailable, match="evidence-unavailable"):
        OsDeviceFiles(Path("/dev")).write("full", b"x")


def test_a_short_write_is_a_lie(tmp_path: Path) -> None:
    """The kernel really takes a part only: files may have 32 bytes for the moment."""
    (tmp_path / "inblob").write_bytes(b"")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32, hard))
    try:
        with pytest.raises(Tampered, match="took 32 of 64 bytes"):
            OsDeviceFiles(tmp_path).write("inblob", DATA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- Gramine ----------------------------------------------------------------------------------------------------------


def serve_gramine(folder: Path, produce: Callable[[bytes], bytes]) -> threading.Thread:
    """Gramine's pseudo-files as pipes: whoever writes report data can read a quote over it."""
    (folder / "attestation_type").write_bytes(b"dcap")
    for name in ("user_report_data", "quote"):
        os.mkfifo(folder / name)

    def serve() -> None:
        report_data = (folder / "user_report_data").read_bytes()
        (folder / "quote").write_bytes(produce(report_data))

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_gramine_on_real_pipes(tmp_path: Path) -> None:
    folder = tmp_path / "dev" / "attestation"
    folder.mkdir(parents=True)
    thread = serve_gramine(folder, sgx_quote)
    attester = detect(root=tmp_path)
    evidence = attester.evidence(DATA)
    thread.join()
    intel = SyntheticIntel.sgx()
    assert attester.tee is TeeType.SGX
    assert verify(evidence, intel.collateral(), intel.anchors(), NOW).claims.report_data == DATA


def test_gramine_without_remote_attestation_is_unavailable() -> None:
    for kind in (b"none", b"epid", b""):
        with pytest.raises(Unavailable, match=r"dcap"):
            GramineAttester(FakeGramine(sgx_quote, attestation_type=kind))


GRAMINE_LIES: dict[str, Callable[[], FakeGramine]] = {
    "other report data": lambda: FakeGramine(lambda _data: sgx_quote(bytes(64))),
    "right data in the wrong place": lambda: FakeGramine(lambda data: sgx_quote(data[32:] + data[:32])),
    "nothing": lambda: FakeGramine(lambda _data: b""),
    "too much": lambda: FakeGramine(lambda _data: bytes(70_000)),
    "no quote": lambda: FakeGramine(lambda _data: b"quote"),
    "a TDX quote": lambda: FakeGramine(tdx_quote),
    "short write": lambda: FakeGramine(sgx_quote, taken=32),
}


@pytest.mark.parametrize("lie", GRAMINE_LIES)
def test_gramine_that_lies_is_noticed(lie: str) -> None:
    lied(GramineAttester(GRAMINE_LIES[lie]()))


def test_threads_do_not_get_each_others_quotes() -> None:
    device = FakeGramine(sgx_quote)
    attester = GramineAttester(device)
    found: dict[bytes, bytes] = {}

    def ask(data: bytes) -> None:
        found[data] = attester.evidence(data).body

    threads = [threading.Thread(target=ask, args=(bytes([n]) * 64,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8


# --- configfs-tsm -----------------------------------------------------------------------------------------------------


def test_tdx_and_its_report_directory(tmp_path: Path) -> None:
    device = FakeConfigfsTsm(tdx_quote)
    attester = ConfigfsTsmAttester(device)
    evidence = attester.evidence(DATA)
    intel = SyntheticIntel.tdx(4)
    assert attester.tee is TeeType.TDX
    assert verify(evidence, intel.collateral(), intel.anchors(), NOW).claims.report_data == DATA
    assert evidence.endorsements == {}
    assert device.made == 2
    assert not device.entries  # none is left behind


def test_snp_with_the_hosts_certificates(amd: SnpAuthority, snp_report: Callable[[bytes, int], bytes]) -> None:
    chain = amd.chain("Milan")
    intermediate, root = chain["ask_ark.pem"].split(b"-----END CERTIFICATE-----\n", 1)
    table = build_cert_table(
        {"vcek": chain["vek.der"], "ask": intermediate + b"-----END CERTIFICATE-----\n", "ark": root}
    )
    attester = ConfigfsTsmAttester(FakeConfigfsTsm(snp_report, provider=b"sev_guest\n", auxblob=table))
    evidence = attester.evidence(DATA)
    assert attester.tee is TeeType.SEV_SNP
    assert evidence.endorsements["auxblob"] == table
    assert verify(evidence, Collateral(), amd.anchors("Milan"), NOW).claims.report_data == DATA


@pytest.mark.parametrize("table", [b"", bytes(24), b"garbage", b"\xff" * 4096])
def test_a_certificate_table_that_is_none_is_left_out(snp_report: Callable[[bytes, int], bytes], table: bytes) -> None:
    attester = ConfigfsTsmAttester(FakeConfigfsTsm(snp_report, provider=b"sev_guest", auxblob=table))
    assert attester.evidence(DATA).endorsements == {}


def test_the_privilege_level_is_asked_for_and_looked_at(snp_report: Callable[[bytes, int], bytes]) -> None:
    device = FakeConfigfsTsm(snp_report, provider=b"sev_guest")
    assert ConfigfsTsmAttester(device, privilege_level=2).evidence(DATA)
    with pytest.raises(Unavailable, match="evidence-unavailable"):
        ConfigfsTsmAttester(FakeConfigfsTsm(snp_report, provider=b"sev_guest", floor=2), privilege_level=1).evidence(
            DATA
        )
    lying = FakeConfigfsTsm(lambda data, _level: snp_report(data, 0), provider=b"sev_guest")
    assert "privilege" in lied(ConfigfsTsmAttester(lying, privilege_level=2))
    for level in (-1, 4):
        with pytest.raises(InvalidInput, match="privilege-level"):
            ConfigfsTsmAttester(device, privilege_level=level)
    with pytest.raises(InvalidInput, match="privilege-level"):
        ConfigfsTsmAttester(FakeConfigfsTsm(tdx_quote), privilege_level=0)


@pytest.mark.parametrize("floor", [0, 1, 2, 3])
def test_a_kernel_below_another_asks_for_its_own_level(
    snp_report: Callable[[bytes, int], bytes], monkeypatch: pytest.MonkeyPatch, floor: int
) -> None:
    """Under a service module the kernel runs at VMPL 1 or more, and what it asks for unless told is refused."""
    device = FakeConfigfsTsm(snp_report, provider=b"sev_guest\n", floor=floor)
    attester = ConfigfsTsmAttester(device)
    assert parse_report(attester.evidence(DATA).body).vmpl == attester.privilege_level == floor
    assert not device.entries
    sealed_at: list[int] = []
    monkeypatch.setattr(opening, "detect", lambda **_: attester)
    monkeypatch.setattr(opening, "open_sealer", lambda *_, privilege_level, **__: sealed_at.append(privilege_level))
    opening.open_tee(bytes(32))
    assert sealed_at == [floor]


def test_a_kernel_at_a_level_that_there_is_not_is_noticed(snp_report: Callable[[bytes, int], bytes]) -> None:
    with pytest.raises(Tampered, match="evidence-device-lied"):
        ConfigfsTsmAttester(FakeConfigfsTsm(snp_report, provider=b"sev_guest", floor=4))


def test_a_tdx_guest_has_no_levels() -> None:
    device = FakeConfigfsTsm(tdx_quote)
    attester = ConfigfsTsmAttester(device)
    assert attester.evidence(DATA)
    assert attester.privilege_level == 0
    device.make_directory("entry")
    assert not device.exists("entry/privlevel_floor")


def _another_writer(device: FakeConfigfsTsm, name: str) -> None:
    device.entries[name].generation += 1


def _another_writer_of_data(device: FakeConfigfsTsm, name: str) -> None:
    device.entries[name].inblob = bytes(64)


def _another_provider(device: FakeConfigfsTsm, _name: str) -> None:
    device.provider = b"sev_guest"


CONFIGFS_LIES: dict[str, tuple[Callable[[], FakeConfigfsTsm], str]] = {
    "generation moved": (lambda: FakeConfigfsTsm(tdx_quote, interference=_another_writer), "generation"),
    "report data overwritten": (lambda: FakeConfigfsTsm(tdx_quote, interference=_another_writer_of_data), "other"),
    "provider changed": (lambda: FakeConfigfsTsm(tdx_quote, interference=_another_provider), "provider"),
    "short write": (lambda: FakeConfigfsTsm(tdx_quote, taken=63), "63 of 64"),
    "other report data": (lambda: FakeConfigfsTsm(lambda _data, _level: tdx_quote(bytes(64))), "other"),
    "nothing": (lambda: FakeConfigfsTsm(lambda _data, _level: b""), "no evidence"),
    "too much": (lambda: FakeConfigfsTsm(lambda _data, _level: bytes(70_000)), "more than"),
    "an SGX quote": (lambda: FakeConfigfsTsm(lambda data, _level: sgx_quote(data)), "other"),
    "quote cut short": (lambda: FakeConfigfsTsm(lambda data, _level: tdx_quote(data)[:1000]), "no evidence"),
}


@pytest.mark.parametrize("lie", CONFIGFS_LIES)
def test_a_kernel_that_lies_is_noticed(lie: str) -> None:
    make, word = CONFIGFS_LIES[lie]
    device = make()
    assert word in lied(ConfigfsTsmAttester(device))
    assert not device.entries


@pytest.mark.parametrize("provider", [b"", b"arm_cca_guest\n", b"tdx_guest2", b"TDX_GUEST"])
def test_an_unknown_provider_is_unavailable(provider: bytes) -> None:
    with pytest.raises(Unavailable, match="evidence-unavailable"):
        ConfigfsTsmAttester(FakeConfigfsTsm(tdx_quote, provider=provider))


@pytest.fixture
def tsm_pipes(tmp_path: Path) -> Iterator[Path]:
    """A report directory that was made beforehand, with pipes for its blobs and files for its attributes."""
    entry = tmp_path / "cloister"
    entry.mkdir()
    (entry / "provider").write_bytes(b"tdx_guest\n")
    (entry / "generation").write_bytes(b"4\n")
    os.mkfifo(entry / "inblob")
    os.mkfifo(entry / "outblob")

    def serve() -> None:
        report_data = (entry / "inblob").read_bytes()
        (entry / "generation").write_bytes(b"5\n")
        (entry / "outblob").write_bytes(tdx_quote(report_data))

    thread = threading.Thread(target=serve)
    thread.start()
    yield tmp_path
    thread.join()


def test_configfs_tsm_on_real_pipes(tsm_pipes: Path) -> None:
    attester = ConfigfsTsmAttester(OsDeviceFiles(tsm_pipes), entry="cloister")
    intel = SyntheticIntel.tdx(4)
    verified = verify(attester.evidence(DATA), intel.collateral(), intel.anchors(), NOW)
    assert verified.claims.report_data == DATA


# --- Nitro ------------------------------------------------------------------------------------------------------------


def nitro(aws: NitroAuthority, tmp_path: Path, **changes: object) -> NitroAttester:
    (tmp_path / "nsm").write_bytes(b"")
    fake = FakeNsm(lambda data: aws.evidence(aws.content(user_data=data)).body)
    for name, value in changes.items():
        setattr(fake, name, value)
    return NitroAttester(tmp_path / "nsm", ioctl=fake)


def test_nitro_over_the_kernels_structure(aws: NitroAuthority, tmp_path: Path) -> None:
    assert IOCTL_RAW == NSM_REQUEST == 0xC0200A00
    attester = nitro(aws, tmp_path)
    evidence = attester.evidence(DATA)
    assert attester.tee is TeeType.NITRO
    assert verify(evidence, Collateral(), aws.anchors(), NOW).claims.report_data == DATA


NITRO_LIES: dict[str, dict[str, object]] = {
    "no CBOR": {"answer": b"\xff\xff"},
    "no document": {"answer": cbor2.dumps({"Attestation": {}})},
    "document is text": {"answer": cbor2.dumps({"Attestation": {"document": "text"}})},
    "document is none": {"answer": cbor2.dumps({"Attestation": {"document": b"x"}})},
    "another answer": {"answer": cbor2.dumps("LockPCR")},
    "nothing": {"length": 0},
    "more than there is room": {"length": 0x3001},
    "cut short": {"length": 100},
}


@pytest.mark.parametrize("lie", NITRO_LIES)
def test_an_nsm_that_lies_is_noticed(aws: NitroAuthority, tmp_path: Path, lie: str) -> None:
    lied(nitro(aws, tmp_path, **NITRO_LIES[lie]))


def test_an_nsm_with_other_user_data_is_noticed(aws: NitroAuthority, tmp_path: Path) -> None:
    for other in (bytes(64), DATA[:63], None):
        lied(nitro(aws, tmp_path, produce=lambda _data, other=other: aws.evidence(aws.content(user_data=other)).body))
    lied(nitro(aws, tmp_path, produce=lambda data: aws.evidence(aws.content(user_data=None, nonce=data)).body))


def test_an_nsm_that_refuses_or_is_not_there_is_unavailable(aws: NitroAuthority, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="InputTooLarge"):
        nitro(aws, tmp_path, answer=cbor2.dumps({"Error": "InputTooLarge"})).evidence(DATA)
    with pytest.raises(Unavailable, match="evidence-unavailable"):
        NitroAttester(tmp_path / "absent").evidence(DATA)
    with pytest.raises(Unavailable, match="evidence-unavailable"):  # the real ioctl, on a file that is no device
        NitroAttester(tmp_path / "nsm").evidence(DATA)


# --- any of them ------------------------------------------------------------------------------------------------------


def test_report_data_of_another_length_is_invalid(aws: NitroAuthority, tmp_path: Path) -> None:
    attesters = (
        GramineAttester(FakeGramine(sgx_quote)),
        ConfigfsTsmAttester(FakeConfigfsTsm(tdx_quote)),
        nitro(aws, tmp_path),
    )
    for attester in attesters:
        for length in (0, 32, 63, 65):
            with pytest.raises(InvalidInput, match="report-data-length"):
                attester.evidence(bytes(length))


def test_without_a_tee_nothing_is_found(tmp_path: Path) -> None:
    assert look(tmp_path).names == ()
    with pytest.raises(Unavailable, match="no TEE was found"):
        detect(root=tmp_path)


def test_a_machine_that_claims_to_be_several_tees_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dev" / "attestation").mkdir(parents=True)
    (tmp_path / "dev" / "attestation" / "attestation_type").write_bytes(b"dcap")
    (tmp_path / "dev" / "nsm").write_bytes(b"")
    assert look(tmp_path).names == ("Gramine", "Nitro")
    with pytest.raises(Refused, match="tee-ambiguous"):
        detect(root=tmp_path)


def test_another_tee_than_the_configuration_says_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nsm").write_bytes(b"")
    assert detect(root=tmp_path, expected=TeeType.NITRO).tee is TeeType.NITRO
    with pytest.raises(Refused, match="tee-unexpected"):
        detect(root=tmp_path, expected=TeeType.SEV_SNP)


def test_a_directory_that_only_looks_like_configfs_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "sys" / "kernel" / "config" / "tsm" / "report").mkdir(parents=True)
    with pytest.raises(CloisterError, match="evidence-unavailable"):
        detect(root=tmp_path)


@pytest.mark.parametrize("device", [FakeGramine(sgx_quote), FakeConfigfsTsm(tdx_quote)])
def test_the_fakes_keep_the_contract_of_device_files(device: DeviceFiles, tmp_path: Path) -> None:
    for files in (device, OsDeviceFiles(tmp_path)):
        assert not files.exists("absent/file")
        with pytest.raises(Unavailable, match="evidence-unavailable"):
            files.read("absent/file")
        with pytest.raises(Unavailable, match="evidence-unavailable"):
            files.write("absent/file", b"x")


def test_the_error_of_the_kernel_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=os.strerror(errno.ENOENT)):
        OsDeviceFiles(tmp_path).read("absent")
