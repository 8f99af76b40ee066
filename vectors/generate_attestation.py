"""Writes vectors/attestation.json from spec/attestation.md alone: nothing of the package is imported."""

from __future__ import annotations

import sys
from typing import Any

from formats import Case, case, cbor, cose, fixed, h, main, public

NOW = 1_800_000_000


def configurations() -> list[Case]:
    values = {"isolation": "strict", "co_tenancy": False, "leases": 60, "bundle_root": b"r" * 32, "engines": ["onnx"]}
    good = cbor(values)
    return [
        case("configuration", "ok", kind="configuration", data=good, digest=h("configuration", good)),
        case("isolation of no level", "configuration-malformed", kind="configuration", data=cbor({"isolation": "no"})),
        case("name in capitals", "configuration-malformed", kind="configuration", data=cbor({"Isolation": "strict"})),
        case("nested", "configuration-malformed", kind="configuration", data=cbor({"a": {"b": 1}})),
        case("a list", "configuration-malformed", kind="configuration", data=cbor([])),
        case("trailing byte", "cbor-not-deterministic", kind="configuration", data=good + b"\x00"),
    ]


EXPECT: dict[str, Any] = {
    "measurement": [b"m" * 48],
    "minimum_security_version": 0,
    "maximum_age_s": "any-age",
    "configuration": [b"c" * 32],
    "isolation": ["per-user", "strict"],
    "insecure_debug": False,
}


def policy(tee: str = "insecure-simulation", **changes: Any) -> bytes:
    expect = {name: value for name, value in (EXPECT | changes).items() if value is not None}
    return cbor({"version": 1, "co_tenancy": False, "rules": [{"name": "lab", "tee": tee, "expect": expect}]})


def policies() -> list[Case]:
    def bad(name: str, code: str, **changes: Any) -> Case:
        return case(name, code, kind="policy", data=policy(**changes))

    return [
        case("policy", "ok", kind="policy", data=policy(), digest=h("policy", policy())),
        bad("a check is absent", "policy-field-missing", measurement=None),
        bad("a default is not written out", "policy-not-canonical", insecure_debug=None),
        bad("a list is not sorted", "policy-not-canonical", isolation=["strict", "per-user"]),
        bad("left out by another check's name", "policy-left-out", measurement="any-age"),
        bad("a field nobody knows", "policy-unknown-field", vmpl=[0]),
        bad("a measurement too short", "policy-field-length", measurement=[b"m" * 32]),
        bad("a measurement of zeros", "policy-zero-measurement", measurement=[bytes(48)]),
        bad("a TEE nobody knows", "policy-tee", tee="simulation"),
        case("another version", "policy-version", kind="policy", data=cbor({"version": 2})),
    ]


TOKEN: dict[str, Any] = {
    "warning": "insecure-simulation",
    "version": 1,
    "key": public("simulated-tee"),
    "measurement": b"m" * 48,
    "configuration_digest": b"c" * 32,
    "report_data": b"r" * 64,
    "issued_at": NOW,
    "debug": False,
    "security_version": 3,
}


def simulated(*, signer: str = "simulated-tee", context: str = "insecure-simulation-evidence", **changes: Any) -> bytes:
    return cose(signer, context, cbor(TOKEN | changes))


def evidence() -> list[Case]:
    def one(name: str, code: str, data: bytes, *, now: int = NOW + 5, key: bytes = TOKEN["key"]) -> Case:
        return case(name, code, kind="simulated-evidence", data=data, now=now, key=key)

    return [
        one("simulated evidence", "ok", simulated()),
        one("of a key that is not named", "simulation-refused", simulated(), key=public("another")),
        one("signed by another", "signature-invalid", simulated(signer="another")),
        one("signed for another purpose", "signature-invalid", simulated(context="statement")),
        one("without the warning", "simulation-unmarked", simulated(warning="production")),
        one("of another version", "simulation-version", simulated(version=2)),
        one("report data too short", "field-range", simulated(report_data=b"r" * 32)),
        one("a field nobody knows", "field-unknown", simulated(tcb="UpToDate")),
        one("expired", "simulation-expired", simulated(), now=NOW + 86_401),
        one("of the future", "simulation-not-yet-valid", simulated(), now=NOW - 61),
    ]


def bundle(*, signer: str = "bundle-root", **changes: Any) -> bytes:
    payload: dict[str, Any] = {
        "format": 1,
        "root": public("bundle-root"),
        "version": 7,
        "name": "laboratory",
        "issued_at": NOW,
        "expires_at": NOW + 1000,
        "keyservice": policy(),
        "accept_simulation": True,
        "simulation_keys": [TOKEN["key"]],
        "accept_rollback_unsafe": False,
        "minimum_tcb_evaluation_data_number": 17,
        "witnesses": sorted([public("witness-1"), public("witness-2")]),
        "witness_threshold": 2,
        "successors": [[b"n" * 48, fixed("successor")]],
    }
    return cose(signer, "trust-bundle", cbor(payload | changes))


def bundles() -> list[Case]:
    def one(name: str, code: str, data: bytes, *, minimum: int = 7, now: int = NOW, **values: Any) -> Case:
        root = public("bundle-root")
        return case(name, code, kind="trust-bundle", data=data, root=root, minimum=minimum, now=now, **values)

    malformed = "bundle-malformed"
    good = bundle()
    payload = good[4 + 5 :]  # array, protected header (4), empty map, head of the payload (3)
    length = int.from_bytes(good[7:9], "big")
    return [
        one("trust bundle", "ok", good, digest=h("trust-bundle", payload[:length])),
        one("an older version", "bundle-rollback", good, minimum=8),
        one("expired", "bundle-expired", good, now=NOW + 1001),
        one("of the future", "bundle-not-yet-valid", good, now=NOW - 61),
        one("signed by another", "signature-invalid", bundle(signer="another")),
        one("names another root", malformed, bundle(root=public("another"))),
        one("simulation without a key", malformed, bundle(simulation_keys=[])),
        one("a simulation key in production", malformed, bundle(accept_simulation=False)),
        one("any configuration", malformed, bundle(keyservice=policy(configuration="any-configuration"))),
        one("any code", malformed, bundle(keyservice=policy(measurement="any-measurement"))),
        one("more witnesses than there are", malformed, bundle(witness_threshold=3)),
        one("witnesses not sorted", malformed, bundle(witnesses=sorted([b"a" * 32, b"b" * 32], reverse=True))),
        one("a field nobody knows", "field-unknown", bundle(motto="trust me")),
    ]


def vectors_attestation(_old: Any) -> list[Case]:
    return [*configurations(), *policies(), *evidence(), *bundles()]


if __name__ == "__main__":
    sys.exit(main({"attestation": vectors_attestation}))
