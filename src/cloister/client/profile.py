"""Where the services are, and which trust bundle to believe: one TOML file in the client's folder.

keyservice = "http://127.0.0.1:7400"
gateway = "http://127.0.0.1:7401"
store = "/var/lib/cloister/store"       # where packed models are put: a directory, s3://, gs:// or az://
bundle = "bundle.cbor"                  # path, from this file's folder
bundle_root = "<64 hex digits>"         # the pinned key that signs trust bundles
bundle_version = 1                      # the least version to accept; grows by itself
collateral = "vendors"                  # optional: for the KeyService's evidence: a folder, a bundle file, a PCCS's
                                        # address, `vendors`; by default, what the KeyService sends along
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cloister.attest.bundle import TrustBundle, open_bundle
from cloister.base.errors import InvalidInput
from cloister.base.ids import parse_id
from cloister.base.limits import MAX_BUNDLE
from cloister.client.files import read_public, write_private

FILE: Final = "config.toml"
_TEXTS: Final = ("keyservice", "gateway", "store", "bundle", "bundle_root")


@dataclass(frozen=True, slots=True)
class Profile:
    """The client's settings; ``home`` is the folder they are in."""

    home: Path
    keyservice: str
    gateway: str
    store: str
    bundle: str
    bundle_root: bytes
    bundle_version: int = 1
    collateral: str = ""

    def open_bundle(self, now: float) -> TrustBundle:
        """The trust bundle, verified under the pinned root.

        :raises InvalidInput, Refused, Tampered: as ``attest.bundle.open_bundle``; ``file-unreadable``.
        """
        data = read_public(self.home / self.bundle, limit=MAX_BUNDLE, what="the trust bundle")
        bundle = open_bundle(data, self.bundle_root, self.bundle_version, now)
        if bundle.version > self.bundle_version:
            save_profile(replace(self, bundle_version=bundle.version))
        return bundle


def default_home(environment: Mapping[str, str] | None = None) -> Path:
    """``CLOISTER_HOME``, or ``~/.cloister``."""
    given = (os.environ if environment is None else environment).get("CLOISTER_HOME")
    return Path(given).expanduser() if given else Path.home() / ".cloister"


def load_profile(home: Path) -> Profile:
    """:raises InvalidInput: ``profile-missing``, ``profile-malformed``."""
    path = home / FILE
    if not path.exists():
        raise InvalidInput(
            "profile-missing",
            f"there is no {path}",
            hint="`cloister up` makes one for a local trial; otherwise get it from whoever runs the services.",
        )
    try:
        values = tomllib.loads(read_public(path, limit=65536, what="the profile").decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput("profile-malformed", f"{path} is not TOML: {error}") from error
    unknown = sorted(set(values) - {*_TEXTS, "bundle_version", "collateral"})
    if unknown:
        raise InvalidInput("profile-malformed", f"{path}: {unknown[0]!r} is unknown")
    for name in _TEXTS:
        if not isinstance(values.get(name), str):
            raise InvalidInput("profile-malformed", f"{path}: {name} is missing or not text")
    version = values.get("bundle_version", 1)
    if type(version) is not int or version < 1:
        raise InvalidInput("profile-malformed", f"{path}: bundle_version is not a number from 1")
    if not isinstance(collateral := values.get("collateral", ""), str):
        raise InvalidInput("profile-malformed", f"{path}: collateral is not text")
    return Profile(
        home=home,
        keyservice=values["keyservice"],
        gateway=values["gateway"],
        store=values["store"],
        bundle=values["bundle"],
        bundle_root=parse_id(values["bundle_root"], what=f"{path}: bundle_root"),
        bundle_version=version,
        collateral=collateral,
    )


def save_profile(profile: Profile) -> None:
    """Write it, atomically.

    :raises Unavailable: ``file-not-written``.
    """
    texts = {name: getattr(profile, name) for name in _TEXTS} | {"bundle_root": profile.bundle_root.hex()}
    texts |= {"collateral": profile.collateral} if profile.collateral else {}
    lines = [f"{name} = {_quoted(value)}" for name, value in texts.items()]
    lines.append(f"bundle_version = {profile.bundle_version}")
    write_private(profile.home / FILE, ("\n".join(lines) + "\n").encode())


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
