"""The measured configuration of a service: one deterministic CBOR map, one digest (spec/attestation.md, clause 9.4).

A service digests its configuration into its report data; whoever appraises it is handed the configuration itself, and
recomputes the digest. So a genuine build that was started with other roots, flags or limits looks different.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cloister.attest.types import ClaimValue, Configuration
from cloister.base.errors import InvalidInput
from cloister.base.limits import MAX_CONFIGURATION, MAX_CONFIGURATION_ENTRIES
from cloister.crypto.digest import Context, digest
from cloister.wire import cbor

ISOLATION_LEVELS: Final = ("shared", "per-user", "strict")

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MAX_INT: Final = 2**63 - 1


def configure(values: Mapping[str, ClaimValue]) -> Configuration:
    """The configuration of these values.

    :param values: names ``[a-z][a-z0-9_]*`` to int, str, bytes, bool or tuple of str.
    :raises InvalidInput: ``configuration-malformed`` for a name or value of another form, ``configuration-too-long``.
    """
    frozen = {name: _value(name, value) for name, value in sorted(values.items(), key=lambda item: str(item[0]))}
    if len(frozen) > MAX_CONFIGURATION_ENTRIES:
        raise InvalidInput(
            "configuration-too-long",
            f"the configuration has {len(frozen)} entries; at most {MAX_CONFIGURATION_ENTRIES} are accepted",
        )
    if frozen.get("isolation", "strict") not in ISOLATION_LEVELS:
        raise InvalidInput(
            "configuration-malformed",
            f"configuration: isolation is {frozen['isolation']!r}",
            hint=f"It is one of {', '.join(ISOLATION_LEVELS)}.",
        )
    encoded = cbor.encode(cbor.plain(frozen))
    if len(encoded) > MAX_CONFIGURATION:
        raise InvalidInput(
            "configuration-too-long",
            f"the configuration has {len(encoded)} bytes; at most {MAX_CONFIGURATION} are accepted",
        )
    return Configuration(
        encoded=encoded, digest=digest(Context.CONFIGURATION, encoded), values=MappingProxyType(frozen)
    )


def decode_configuration(data: bytes) -> Configuration:
    """Read a configuration; the digest is over exactly these bytes, of which one form only is accepted.

    :raises InvalidInput: ``configuration-malformed``, ``configuration-too-long`` and the codes of ``wire.cbor.decode``.
    """
    value = cbor.decode(data, limit=MAX_CONFIGURATION, what="the configuration")
    if not isinstance(value, dict):
        raise InvalidInput("configuration-malformed", "the configuration is not a map")
    return configure({name: tuple(item) if isinstance(item, list) else item for name, item in value.items()})


def _value(name: object, value: object) -> ClaimValue:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        shown = repr(name)[:80]
        raise InvalidInput(
            "configuration-malformed", f"configuration: {shown} is not a name of the form [a-z][a-z0-9_]*"
        )
    if type(value) is int and not -_MAX_INT <= value <= _MAX_INT:
        raise InvalidInput("configuration-malformed", f"configuration: {name!r} is an integer beyond 63 bits")
    if isinstance(value, tuple) and all(type(item) is str for item in value):
        return value
    if isinstance(value, (bool, int, str, bytes)) and type(value) in (bool, int, str, bytes):
        return value
    raise InvalidInput(
        "configuration-malformed",
        f"configuration: {name!r} is {type(value).__name__}; int, str, bytes, bool or a list of str is accepted",
    )
