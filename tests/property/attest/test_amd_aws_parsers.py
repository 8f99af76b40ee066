"""Any bytes give a value or an error of the four families; the CBOR reader agrees with cbor2 on what it accepts."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attest import nitro, snp, x509
from cloister.attest.nitro import cbor
from cloister.attest.nitro.parse import NitroDocument
from cloister.attest.snp.certificates import CERT_TABLE, Signer, cert_table
from cloister.attest.snp.parse import REPORT_SIZE, SnpReport
from cloister.attest.types import Collateral, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, InvalidInput
from cloister.testing.evidence_nitro import NOW, NitroAuthority
from cloister.testing.evidence_snp import Case, SnpAuthority, build_cert_table, build_report


@cache
def amd() -> tuple[SnpAuthority, Case]:
    authority = SnpAuthority.create()
    return authority, authority.evidence(crl=authority.crl("Milan"))


@cache
def aws() -> tuple[NitroAuthority, Evidence]:
    authority = NitroAuthority.create()
    return authority, authority.evidence()


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[int, int, bytes]]:
    """Up to four replacements: at a place (in thousandths of the length), so many bytes, by these."""
    one = st.tuples(st.integers(0, 1000), st.integers(0, 8), st.binary(max_size=8))
    return draw(st.lists(one, min_size=1, max_size=4))


def apply(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for place, size, new in changes:
        at = place * len(data) // 1000
        data = data[:at] + new + data[at + size :]
    return data


@given(st.one_of(st.binary(max_size=1300), st.binary(min_size=REPORT_SIZE, max_size=REPORT_SIZE)))
def test_any_bytes_as_a_report(body: bytes) -> None:
    try:
        assert isinstance(snp.parse(body), SnpReport)
    except InvalidInput:
        assert True


@given(st.sampled_from([2, 3, 4, 5]), edits())
def test_a_changed_report(version: int, changes: list[tuple[int, int, bytes]]) -> None:
    body = apply(build_report("Milan", version=version), changes)
    try:
        report = snp.parse(body)
    except InvalidInput:
        return
    assert report.signed == body[: len(report.signed)]
    assert 2 <= report.version <= 5


@given(st.sampled_from(["body", "vek.der", "ask_ark.pem", "crl.der"]), edits())
@settings(max_examples=300)
def test_changed_evidence_or_collateral_of_snp(where: str, changes: list[tuple[int, int, bytes]]) -> None:
    authority, (evidence, collateral) = amd()
    if where == "body":
        evidence = replace(evidence, body=apply(evidence.body, changes))
    else:
        collateral = Collateral({**collateral.files, where: apply(collateral.files[where], changes)})
    whole = amd()[1]
    try:
        found = verify(evidence, collateral, authority.anchors("Milan"), NOW)
    except CloisterError:
        return
    assert found == verify(*whole, authority.anchors("Milan"), NOW)


@given(st.binary(max_size=4096))
def test_any_bytes_as_collateral(data: bytes) -> None:
    for load in (x509.load_certificate, x509.load_pem_chain, x509.load_crl):
        try:
            load(data, "this")
        except CloisterError:
            continue


@given(st.one_of(st.binary(max_size=2000), edits()))
def test_any_bytes_as_a_certificate_table(data: bytes | list[tuple[int, int, bytes]]) -> None:
    authority, (evidence, collateral) = amd()
    if isinstance(data, list):
        data = apply(build_cert_table({"vcek": collateral.files["vek.der"], "ark": b"a", "ask": b"b"}), data)
    try:
        table = cert_table(data)
    except InvalidInput:
        table = {}
    assert set(table) <= {"ark", "ask", "crl", *(signer.label for signer in Signer)}
    try:
        verify(replace(evidence, endorsements={CERT_TABLE: data}), Collateral(), authority.anchors("Milan"), NOW)
    except CloisterError:
        return


@given(st.binary(max_size=6000))
def test_any_bytes_as_a_document(body: bytes) -> None:
    try:
        assert isinstance(nitro.parse(body), NitroDocument)
    except InvalidInput:
        assert True


@given(edits(), st.booleans())
@settings(max_examples=300)
def test_a_changed_document(changes: list[tuple[int, int, bytes]], sign: bool) -> None:
    """Changed as it is, or its payload changed and signed again."""
    authority, genuine = aws()
    if sign:
        evidence = authority.evidence(apply(cbor2.loads(genuine.body)[2], changes))
    else:
        evidence = Evidence(TeeType.NITRO, apply(genuine.body, changes))
    try:
        found = verify(evidence, Collateral(), authority.anchors(), NOW)
    except CloisterError:
        return
    assert set(found.claims.measurements) >= {"pcr0", "pcr1", "pcr2"}
    if not sign:
        assert found.claims == verify(genuine, Collateral(), authority.anchors(), NOW).claims


SCALARS = st.one_of(st.integers(-(2**64), 2**64 - 1), st.binary(max_size=40), st.text(max_size=20), st.none())
KEYS = st.one_of(st.integers(-(2**64), 2**64 - 1), st.text(max_size=10))
VALUES = st.one_of(
    SCALARS,
    st.lists(st.one_of(SCALARS, st.lists(SCALARS, max_size=3)), max_size=8),
    st.dictionaries(KEYS, st.one_of(SCALARS, st.dictionaries(KEYS, SCALARS, max_size=3)), max_size=8),
)


@given(VALUES)
def test_the_reader_reads_what_cbor2_writes(value: object) -> None:
    data = cbor2.dumps(value)
    assert cbor.read(data, what="this") == value
    assert cbor.read(data, what="this", open_map=True) == value
    for length in range(len(data)):
        try:
            cbor.read(data[:length], what="this")
        except InvalidInput:
            continue
        raise AssertionError(length)


@given(st.one_of(st.binary(max_size=60), VALUES.map(cbor2.dumps)), edits())
def test_what_the_reader_accepts_cbor2_reads_alike(data: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    data = apply(data, changes)
    for open_map in (False, True):
        try:
            value = cbor.read(data, what="this", open_map=open_map)
        except InvalidInput:
            continue
        assert cbor2.loads(data, allow_duplicate_keys=False, allow_indefinite=open_map) == value
