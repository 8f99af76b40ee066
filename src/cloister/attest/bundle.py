"""The trust bundle: a signed, versioned file of whom to believe (spec/attestation.md, section 10).

Clients and runtimes pin the key that signs it (the bundle root, kept offline) and a minimum version; everything else
about a KeyService that may change (its code, its configuration, witnesses, successors) changes with a new bundle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from cloister.attest import claim_names
from cloister.attest.anchors import TrustAnchors, production_anchors
from cloister.attest.policy import Policy, Rule
from cloister.attest.policy_kinds import LeftOut
from cloister.attest.types import Claims, TeeType
from cloister.base.errors import InvalidInput, Refused
from cloister.base.limits import CLOCK_SKEW_S, MAX_BUNDLE, MAX_BUNDLE_ENTRIES, MAX_NAME, MAX_POLICY
from cloister.crypto.digest import DIGEST_LENGTH, Context, digest
from cloister.crypto.sign import PUBLIC_KEY_LENGTH, SigningKey
from cloister.wire import cbor, cose

_FORMAT: Final = 1
_WHAT: Final = "the trust bundle"
_MAX_TIME: Final = 2**40
_CODE_FIELDS: Final = ("mrenclave", "mrsigner", "mrtd", "measurement", "pcr0")
_MEASUREMENT_LENGTHS: Final = (32, 48)


@dataclass(frozen=True, slots=True, order=True)
class Successor:
    """Code and configuration to which a KeyService may hand its root secret (clause 10.9).

    :param measurement: :func:`cloister.attest.code.code_name` of it, 32 or 48 bytes.
    :param configuration: digest of its configuration, 32 bytes.
    """

    measurement: bytes
    configuration: bytes


@dataclass(frozen=True)
class TrustBundle:
    """Whom to believe. Sets (keys, successors) are kept sorted.

    :param root: Ed25519 public key of the signer, 32 bytes.
    :param version: grows with every bundle of the same root.
    :param issued_at: Unix time; :param expires_at: after which nobody accepts it.
    :param keyservice: policy that a KeyService's evidence must satisfy.
    :param accept_simulation: whether ``insecure-simulation`` evidence is accepted *instead of* any vendor's.
    :param simulation_keys: the keys that may sign it, 32 bytes each.
    :param accept_rollback_unsafe: whether a KeyService without protection from rollback is accepted (claim S7).
    :param minimum_tcb_evaluation_data_number: Intel collateral older than this is refused everywhere.
    :param witnesses: Ed25519 public keys that co-sign log heads; :param witness_threshold: how many must.
    :raises InvalidInput: ``bundle-malformed`` for values that contradict each other or bound nothing.
    """

    root: bytes
    version: int
    name: str
    issued_at: int
    expires_at: int
    keyservice: Policy
    accept_simulation: bool = False
    simulation_keys: tuple[bytes, ...] = ()
    accept_rollback_unsafe: bool = False
    minimum_tcb_evaluation_data_number: int = 0
    witnesses: tuple[bytes, ...] = ()
    witness_threshold: int = 0
    successors: tuple[Successor, ...] = field(default=())

    def __post_init__(self) -> None:
        """Sort the sets, and refuse what would bound nothing."""
        for name in ("simulation_keys", "witnesses", "successors"):
            found = getattr(self, name)
            if len(found) > MAX_BUNDLE_ENTRIES or len(set(found)) != len(found):
                raise _malformed(f"{name} has an entry twice, or more than {MAX_BUNDLE_ENTRIES}")
            object.__setattr__(self, name, tuple(sorted(found)))
        if any(len(key) != PUBLIC_KEY_LENGTH for key in (self.root, *self.simulation_keys, *self.witnesses)):
            raise _malformed(f"a public key has not {PUBLIC_KEY_LENGTH} bytes")
        if not 0 < self.version <= _MAX_TIME or not 0 <= self.minimum_tcb_evaluation_data_number <= _MAX_TIME:
            raise _malformed("a number is out of its range")
        if not 0 <= self.issued_at < self.expires_at <= _MAX_TIME:
            raise _malformed("it expires before it was issued")
        if not self.name or len(self.name) > MAX_NAME or not self.name.isprintable():
            raise _malformed(f"its name is empty, longer than {MAX_NAME} characters, or not printable")
        if bool(self.witnesses) is not bool(self.witness_threshold) or self.witness_threshold > len(self.witnesses):
            raise _malformed(f"{self.witness_threshold} of {len(self.witnesses)} witnesses")
        for successor in self.successors:
            if len(successor.measurement) not in _MEASUREMENT_LENGTHS or len(successor.configuration) != DIGEST_LENGTH:
                raise _malformed("a successor is a measurement of 32 or 48 bytes and a digest of 32 bytes")
        self._check_simulation()
        for rule in self.keyservice.rules:
            _check_closed(rule)

    def _check_simulation(self) -> None:
        """Simulation or production, never both (clause 10.5)."""
        if self.accept_simulation is not bool(self.simulation_keys):
            raise _malformed("accept_simulation and simulation_keys contradict each other")
        for rule in self.keyservice.rules:
            if (rule.tee is TeeType.SIMULATION) is not self.accept_simulation:
                raise _malformed(
                    f"rule {rule.name!r} is for {rule.tee}, but the bundle "
                    + ("accepts simulation only" if self.accept_simulation else "does not accept simulation")
                )

    @cached_property
    def payload(self) -> bytes:
        """Deterministic CBOR of everything; what is signed."""
        return cbor.encode(
            {
                "format": _FORMAT,
                "root": self.root,
                "version": self.version,
                "name": self.name,
                "issued_at": self.issued_at,
                "expires_at": self.expires_at,
                "keyservice": self.keyservice.encode(),
                "accept_simulation": self.accept_simulation,
                "simulation_keys": list(self.simulation_keys),
                "accept_rollback_unsafe": self.accept_rollback_unsafe,
                "minimum_tcb_evaluation_data_number": self.minimum_tcb_evaluation_data_number,
                "witnesses": list(self.witnesses),
                "witness_threshold": self.witness_threshold,
                "successors": [[item.measurement, item.configuration] for item in self.successors],
            }
        )

    @cached_property
    def digest(self) -> bytes:
        """What evidence is bound to: SHA-256 over the payload under the context of trust bundles."""
        return digest(Context.BUNDLE, self.payload)

    def names(self, measurement: bytes, configuration: bytes) -> bool:
        """Whether this code with this configuration, the two as one pair, is a successor (clause 10.9)."""
        return Successor(measurement, configuration) in self.successors

    def replaces(self, older: TrustBundle) -> bool:
        """Whether one who held the older one may take this one from a KeyService, unasked (clause 10.10)."""
        return (
            self.root == older.root
            and self.version > older.version
            and self.accept_simulation is older.accept_simulation
            and self.accept_rollback_unsafe <= older.accept_rollback_unsafe
            and bool(self.witnesses) >= bool(older.witnesses)
        )

    def anchors(self) -> TrustAnchors:
        """The roots under which evidence is verified: the vendors', or the simulation keys alone."""
        if self.accept_simulation:
            return TrustAnchors(simulation_keys=self.simulation_keys)
        return production_anchors()

    def check_collateral(self, claims: Claims) -> None:
        """Refuse claims that rest on older collateral than this bundle knows of (clause 8.3).

        :raises Refused: ``collateral-too-old``.
        """
        if claims.tee not in (TeeType.SGX, TeeType.TDX):
            return
        number = claims.specific.get(claim_names.TCB_EVALUATION_DATA_NUMBER)
        if type(number) is not int or number < self.minimum_tcb_evaluation_data_number:
            raise Refused(
                "collateral-too-old",
                f"TCB evaluation data number {number!r} is below the trust bundle's "
                f"{self.minimum_tcb_evaluation_data_number}",
                hint="Fetch the collateral again.",
            )

    def sign(self, key: SigningKey) -> bytes:
        """The bundle file.

        :raises InvalidInput: ``bundle-malformed`` when ``key`` is not the root, or the file is too long.
        """
        if key.public_key != self.root:
            raise _malformed("it names another root than the key that is to sign it")
        data = cose.sign1(key, Context.BUNDLE, self.payload)
        if len(data) > MAX_BUNDLE:
            raise _malformed(f"{len(data)} bytes; at most {MAX_BUNDLE} are accepted")
        return data


def open_bundle(data: bytes, root_public_key: bytes, minimum_version: int, now: float) -> TrustBundle:
    """Read and believe a bundle file.

    :param root_public_key: the pinned bundle root, 32 bytes.
    :param minimum_version: pinned, or the highest version seen before; whichever is higher.
    :raises InvalidInput: ``bundle-malformed`` and the codes of ``wire.cose``, ``wire.cbor`` and policies.
    :raises Tampered: ``signature-invalid``: not signed by this root.
    :raises Refused: ``bundle-rollback``, ``bundle-expired``, ``bundle-not-yet-valid``.
    """
    payload = cose.verify1(data, Context.BUNDLE, root_public_key, limit=MAX_BUNDLE, what=_WHAT)
    bundle = _decode(payload)
    if bundle.root != root_public_key:
        raise _malformed("it names another root than the key that signed it")
    if bundle.version < minimum_version:
        raise Refused(
            "bundle-rollback",
            f"the trust bundle is of version {bundle.version}; at least {minimum_version} is known to exist",
            hint="Get the current trust bundle.",
        )
    if now > bundle.expires_at:
        raise Refused("bundle-expired", f"the trust bundle expired at {bundle.expires_at}", hint="Get a newer one.")
    if now < bundle.issued_at - CLOCK_SKEW_S:
        raise Refused("bundle-not-yet-valid", f"the trust bundle is of {bundle.issued_at}, later than now: {now:.0f}")
    return bundle


def _decode(payload: bytes) -> TrustBundle:
    fields = cbor.Fields(cbor.decode(payload, limit=MAX_BUNDLE, what=_WHAT), _WHAT)
    if fields.integer("format") != _FORMAT:
        raise InvalidInput("bundle-malformed", f"{_WHAT} is of a format that this version does not understand")
    bundle = TrustBundle(
        root=fields.blob("root", exactly=PUBLIC_KEY_LENGTH),
        version=fields.integer("version"),
        name=fields.text("name", limit=MAX_NAME),
        issued_at=fields.integer("issued_at"),
        expires_at=fields.integer("expires_at"),
        keyservice=Policy.decode(fields.blob("keyservice", limit=MAX_POLICY)),
        accept_simulation=fields.boolean("accept_simulation"),
        simulation_keys=_blobs(fields, "simulation_keys"),
        accept_rollback_unsafe=fields.boolean("accept_rollback_unsafe"),
        minimum_tcb_evaluation_data_number=fields.integer("minimum_tcb_evaluation_data_number"),
        witnesses=_blobs(fields, "witnesses"),
        witness_threshold=fields.integer("witness_threshold"),
        successors=tuple(_successor(item) for item in fields.items("successors", limit=MAX_BUNDLE_ENTRIES)),
    )
    fields.done()
    if bundle.payload != payload:
        raise _malformed("a list in it is not sorted")
    return bundle


def _blobs(fields: cbor.Fields, name: str) -> tuple[bytes, ...]:
    found = fields.items(name, limit=MAX_BUNDLE_ENTRIES)
    if any(type(item) is not bytes for item in found):
        raise _malformed(f"{name} holds something else than bytes")
    return tuple(found)


def _successor(item: Any) -> Successor:
    match item:
        case [bytes(measurement), bytes(configuration)]:
            return Successor(measurement, configuration)
        case _:
            raise _malformed("a successor is not a pair of byte strings")


def _check_closed(rule: Rule) -> None:
    """A KeyService is named by its code **and** its configuration (clause 10.4)."""
    if isinstance(rule.values["configuration"], LeftOut):
        raise _malformed(
            f"rule {rule.name!r} accepts any configuration: a genuine KeyService under an operator's own roots"
        )
    identities = [rule.values[name] for name in _CODE_FIELDS if name in rule.values]
    if all(isinstance(value, LeftOut) for value in identities):
        raise _malformed(f"rule {rule.name!r} accepts any code")


def _malformed(message: str) -> InvalidInput:
    return InvalidInput("bundle-malformed", f"trust bundle: {message}")
