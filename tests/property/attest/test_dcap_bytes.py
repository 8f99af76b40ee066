"""Any bytes give a value or one of our errors; every flipped bit is refused, or changes nothing that is claimed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attest.anchors import TrustAnchors, production_anchors
from cloister.attest.dcap.collateral import parse_collateral
from cloister.attest.dcap.parse import parse
from cloister.attest.dcap.quote import SgxQuote, TdxQuote
from cloister.attest.types import Claims, Collateral, Evidence, TeeType
from cloister.attest.verify import verify
from cloister.base.errors import CloisterError, InvalidInput
from cloister.testing.evidence_dcap import SyntheticIntel
from cloister.testing.evidence_dcap_pki import NOW

MAKERS: dict[str, Callable[[], SyntheticIntel]] = {
    "sgx3": SyntheticIntel.sgx,
    "tdx4": lambda: SyntheticIntel.tdx(4),
    "tdx5": lambda: SyntheticIntel.tdx(5),
}


class Made:
    """A scenario, built once."""

    def __init__(self, intel: SyntheticIntel) -> None:
        self.tee, self.body, self.anchors = intel.tee, intel.quote(), intel.anchors()
        self.collateral = intel.collateral()
        self.claims = self.verify(self.body)

    def verify(self, body: bytes, collateral: Collateral | None = None) -> Claims:
        return verify(Evidence(self.tee, body), collateral or self.collateral, self.anchors, NOW).claims


@pytest.fixture(scope="module", params=MAKERS)
def made(request: pytest.FixtureRequest) -> Made:
    return Made(MAKERS[request.param]())


SEEDS = tuple(make().quote() for make in MAKERS.values())


def refused_or_same(attempt: Callable[[], Claims], claims: Claims) -> bool:
    """Whether it was refused; if not, the claims are identical."""
    try:
        changed = attempt()
    except CloisterError:
        return True
    assert changed == claims
    return False


@given(st.binary(max_size=6000))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    for head in (b"", SEEDS[0][:48], SEEDS[1][:48], SEEDS[2][:54]):
        with suppress(InvalidInput):
            assert isinstance(parse(head + data), SgxQuote | TdxQuote)


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=8)), max_size=4))
def test_a_mangled_quote_is_parsed_or_refused(seed: bytes, edits: list[tuple[int, bytes]]) -> None:
    body = bytearray(seed)
    for position, piece in edits:
        body[position : position + len(piece)] = piece
    with suppress(InvalidInput):
        parse(bytes(body))


@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_any_collateral_is_parsed_or_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        parse_collateral(data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = sorted(SyntheticIntel.sgx().collateral_parts())
_MADE = Made(SyntheticIntel.tdx(4))


@settings(max_examples=150)
@given(st.sampled_from(_FIELDS), _JSON)
def test_any_value_in_any_field_of_the_collateral_is_refused(name: str, value: object) -> None:
    fields = json.loads(_MADE.collateral.files["collateral.json"])
    fields[name] = value
    collateral = Collateral({"collateral.json": json.dumps(fields).encode()})
    refused_or_same(lambda: _MADE.verify(_MADE.body, collateral), _MADE.claims)


@settings(max_examples=150)
@given(st.sampled_from(("tcb_info", "qe_identity")), st.data())
def test_any_value_in_any_field_of_a_signed_document_gives_our_errors(part: str, data: st.DataObject) -> None:
    intel = SyntheticIntel.tdx(4)
    document = getattr(intel, part)
    document[data.draw(st.sampled_from(sorted(document)))] = data.draw(_JSON)
    with suppress(CloisterError):
        verify(intel.evidence(), intel.collateral(), intel.anchors(), NOW)


# Every bit takes minutes: `make test` takes one bit of every seventh byte, a stride that no structure shares;
# `make test-all` every bit of every byte.
EACH = pytest.mark.parametrize("stride", [7, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])


def _flips(body: bytes, start: int, stop: int, *, every_bit: bool) -> Iterator[tuple[int, bytes]]:
    for position in range(start, stop):
        for bit in range(8) if every_bit else (position % 8,):
            changed = bytearray(body)
            changed[position] ^= 1 << bit
            yield position, bytes(changed)


@EACH
def test_every_bit_of_the_header_is_signed(made: Made, stride: int) -> None:
    for position, body in [*_flips(made.body, 0, 48, every_bit=True)][::stride]:
        assert refused_or_same(lambda body=body: made.verify(body), made.claims), position  # type: ignore[misc]


@EACH
@pytest.mark.parametrize("kind", ["sgx3", "tdx5"])  # a recorded quote of version 4 has its own test below
def test_every_byte_of_the_signed_regions_is_refused_when_flipped(kind: str, stride: int) -> None:
    """A1: header and body, both signatures, attestation key, QE report, authentication data."""
    made = Made(MAKERS[kind]())
    quote = parse(made.body)
    end = made.body.index(b"-----BEGIN CERTIFICATE-----")
    assert end > len(quote.signed) + 64 + 64 + 384 + 64
    for position, body in [*_flips(made.body, 0, end, every_bit=stride == 1)][::stride]:
        assert refused_or_same(lambda body=body: made.verify(body), made.claims), position  # type: ignore[misc]


@EACH
def test_every_flip_in_the_certificates_is_refused_or_changes_nothing(made: Made, stride: int) -> None:
    """PEM text is not signed: white space, spare bits, most of a root that only stands for the pinned one."""
    start = made.body.index(b"-----BEGIN CERTIFICATE-----")
    every = stride == 1
    flips = list(_flips(made.body, start, len(made.body), every_bit=every))[:: 1 if every else 3 * stride]
    harmless = sum(not refused_or_same(lambda body=body: made.verify(body), made.claims) for _, body in flips)  # type: ignore[misc]
    assert harmless < len(flips) / 12


def test_a_quote_cut_anywhere_is_refused(made: Made) -> None:
    """A2."""
    for length in range(len(made.body)):
        with pytest.raises(InvalidInput):
            parse(made.body[:length])


@pytest.mark.parametrize("count", [1, 16, 70, 4096])
def test_zeros_behind_a_quote_change_nothing(made: Made, count: int) -> None:
    assert made.verify(made.body + bytes(count)) == made.claims
    with pytest.raises(InvalidInput):
        parse(made.body + bytes(count - 1) + b"\x01")


@EACH
def test_flips_in_the_collateral_are_refused_or_change_nothing(made: Made, stride: int) -> None:
    """Every 11th byte of the file; what verifies nevertheless (the letter case of hexadecimal, PEM) claims the same."""
    data = made.collateral.files["collateral.json"]
    for position in range(0, len(data), 11 * stride):
        changed = bytearray(data)
        changed[position] ^= 1 << (position % 7)
        collateral = Collateral({"collateral.json": bytes(changed)})
        refused_or_same(lambda collateral=collateral: made.verify(made.body, collateral), made.claims)  # type: ignore[misc]


@EACH
def test_every_flip_of_a_recorded_quote_is_refused_or_changes_nothing(evidence_dir: Path, stride: int) -> None:
    """The signed region of real evidence under the real root, and its 70 bytes of padding."""
    folder = evidence_dir / "tdx" / "v4-uptodate"
    now = json.loads((folder / "meta.json").read_text())["verify_at"]
    body = (folder / "quote.bin").read_bytes()
    collateral = Collateral({"collateral.json": (folder / "collateral.json").read_bytes()})
    anchors: TrustAnchors = production_anchors()

    def attempt(changed: bytes) -> Claims:
        return verify(Evidence(TeeType.TDX, changed), collateral, anchors, now).claims

    claims = attempt(body)
    end = body.index(b"-----BEGIN CERTIFICATE-----")
    for position, changed in [*_flips(body, 0, end, every_bit=stride == 1)][::stride]:
        assert refused_or_same(lambda changed=changed: attempt(changed), claims), position  # type: ignore[misc]
    for position, changed in [*_flips(body, len(body) - 70, len(body), every_bit=stride == 1)][::stride]:
        assert refused_or_same(lambda changed=changed: attempt(changed), claims), position  # type: ignore[misc]
