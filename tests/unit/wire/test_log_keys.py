"""Log keys that follow one another: what is taken for the present key, and for which part of the log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloister.base.errors import CloisterError
from cloister.base.limits import MAX_KEY_CERTIFICATE, MAX_ROOT_GENERATIONS
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context
from cloister.crypto.sign import SigningKey
from cloister.wire import cbor, cose
from cloister.wire.cbor import Fields
from cloister.wire.log_keys import KeyCertificate, LogKeys


def key(number: int) -> SigningKey:
    return SigningKey.from_seed(SecretBytes(bytes([number]) * 32))


FIRST = LogKeys(key(0).public_key)


def certificate(number: int = 1, **changed: Any) -> KeyCertificate:
    """For key ``number``, ten entries after the one before it."""
    made = KeyCertificate(FIRST.keyservice, number, key(number).public_key, 10 * number, bytes(32), 1000 + number)
    return replace(made, **changed)


def keys(count: int) -> LogKeys:
    found = FIRST
    for number in range(1, count):
        found = found.then(certificate(number).sign(key(number - 1)))
    return found


def code(call: Any) -> str:
    with pytest.raises(CloisterError) as caught:
        call()
    return caught.value.code


def test_the_id_stays_and_each_key_signs_for_its_own_part() -> None:
    found = keys(3)
    assert (found.keyservice, found.generation, found.begins) == (FIRST.keyservice, 2, 20)
    assert found.current == key(2).public_key
    for size, number in ((0, 0), (10, 0), (11, 1), (20, 1), (21, 2), (2**40, 2)):
        assert found.signer(size) == key(number).public_key
        found.require_signer(key(number).public_key, size)
        for other in {0, 1, 2} - {number}:
            assert code(lambda size=size, other=other: found.require_signer(key(other).public_key, size)) == (
                "log-key-retired"
            )


def test_what_is_read_is_what_was_written() -> None:
    for count in (1, 2, 5):
        found = keys(count)
        assert LogKeys.read(found.items()) == found
        assert LogKeys.take(Fields(found.fields(), "it"), found.keyservice) == found
    assert "log_keys" not in FIRST.fields()  # messages of a root that was never rotated are what they always were


def test_the_longest_chain_fits_its_limits() -> None:
    longest = keys(MAX_ROOT_GENERATIONS)
    assert code(lambda: longest.then(certificate(MAX_ROOT_GENERATIONS).sign(key(15)))) == "limit-reached"
    largest = certificate(15, size=2**62, time=2**62).sign(key(14))
    assert len(largest) <= MAX_KEY_CERTIFICATE
    assert code(lambda: LogKeys.read([*longest.items(), largest])) == "log-keys-malformed"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"keyservice": bytes(32)}, "log-keys-broken"),
        ({"generation": 3}, "log-keys-broken"),
        ({"generation": 1}, "log-keys-broken"),
        ({"key": key(1).public_key}, "log-keys-broken"),
        ({"key": key(0).public_key}, "log-keys-broken"),
        ({"size": 10}, "log-keys-broken"),
        ({"size": 9}, "log-keys-broken"),
        ({"time": 1000}, "log-keys-broken"),
        ({"generation": 0}, "field-range"),
        ({"size": 0}, "field-range"),
        ({"root": b""}, "field-range"),
        ({"key": b"k" * 31}, "field-range"),
    ],
)
def test_s9_a_certificate_fits_one_place_only(changed: dict[str, Any], expected: str) -> None:
    two = keys(2)
    two.then(certificate(2).sign(key(1)))
    assert code(lambda: two.then(certificate(2, **changed).sign(key(1)))) == expected


def test_s9_only_the_key_before_names_the_next() -> None:
    two = keys(2)
    for number in (0, 2, 3):
        assert code(lambda number=number: two.then(certificate(2).sign(key(number)))) == "signature-invalid"
    payload = cose.peek1(certificate(2).sign(key(1)), limit=512, what="it")
    for context in Context:
        if context is not Context.LOG_KEY_CERTIFICATE:
            signed = cose.sign1(key(1), context, payload)
            assert code(lambda signed=signed: two.then(signed)) == "signature-invalid"


def test_what_does_not_lead_from_the_id_to_the_present_key_is_refused() -> None:
    three, fields = keys(3), keys(3).fields()
    for items in (
        [],
        [b"k"],
        [three.first, 7],
        [three.first, bytes(MAX_KEY_CERTIFICATE + 1)],
        ["text"],
    ):
        assert code(lambda items=items: LogKeys.read(items)) == "log-keys-malformed"
    for items in ([three.first, three.encoded[1]], [three.first, *reversed(three.encoded)], [key(9).public_key]):
        bad = fields | {"log_keys": items}
        assert code(lambda bad=bad: LogKeys.take(Fields(bad, "it"), FIRST.keyservice)) in (
            "signature-invalid",
            "log-keys-malformed",
        )
    shorter = fields | {"log_keys": three.items()[:2]}
    assert code(lambda: LogKeys.take(Fields(shorter, "it"), FIRST.keyservice)) == "log-keys-malformed"
    assert code(lambda: LogKeys.take(Fields({"log_key": three.current}, "it"), FIRST.keyservice)) == "keyservice-id"
    assert code(lambda: LogKeys.take(Fields(fields, "it"), bytes(32))) == "keyservice-id"


def test_one_chain_continues_another_or_it_does_not() -> None:
    three, two = keys(3), keys(2)
    other = two.then(certificate(2, time=2000).sign(key(1)))
    assert three.continues(two)
    assert three.continues(three)
    assert not two.continues(three)
    assert not other.continues(three)
    assert not three.continues(other)
    assert len({cbor.encode(item.items()) for item in (two, three, other)}) == 3
    assert len({item.bound() for item in (two, three, other)}) == 3
