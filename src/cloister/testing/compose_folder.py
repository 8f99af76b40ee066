"""The folder that deploy/compose/compose.yaml takes: a trial's keys, configurations, policy, and the clients' home.

.env                 variables of the compose file
etc/                 keyservice.toml and gateway.toml
trust/               the trust bundle, and the key of the simulated "platform"
store/               encrypted models
bundle-root.key      signs trust bundles; in no container
runtime-policy.toml  accepts exactly the runtimes of the compose file
home/                the clients' folder: CLOISTER_HOME
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.attest.policy_toml import format_policy
from cloister.keyservice.opening import read_settings
from cloister.testing.local_cloud import LocalCloud

KEYSERVICE_PORT: Final = 7400
GATEWAY_PORT: Final = 7401


@dataclass(frozen=True, slots=True)
class ComposeSettings:
    """Of one trial.

    :param measurement: of ``image``, as its build printed it. :param instances: as many as there are replicas.
    """

    image: str
    gateway_image: str
    measurement: bytes
    instances: int = 2
    concurrency: int = 4
    memory_mb: int = 1024
    keyservice_port: int = KEYSERVICE_PORT
    gateway_port: int = GATEWAY_PORT


class ComposeFolder(LocalCloud):
    """``LocalCloud`` that starts nothing itself."""

    def __init__(self, folder: Path, settings: ComposeSettings) -> None:
        super().__init__(
            folder.resolve(),
            instances=settings.instances,
            concurrency=settings.concurrency,
            memory_mb=settings.memory_mb,
        )
        self.settings = settings

    def measurement(self) -> bytes:
        """Of the image."""
        return self.settings.measurement

    def prepare(self) -> None:
        """Make everything; keys, configuration of the KeyService and models that are there already stay."""
        for name in ("etc", "trust", "store"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        keyservice = self.folder / "etc" / "keyservice.toml"
        if not keyservice.exists():
            lines = (
                "# Everything here is measured: changing it makes another KeyService, which no client believes.",
                f'bundle_root = "{self.root.public_key.hex()}"',
                "bundle_version = 1",
                f'simulation_keys = ["{self.platform_key.public_key.hex()}"]',
                'rollback_protection = "none"  # no witnesses: whoever has the volume can put an old copy in its place',
            )
            keyservice.write_text("\n".join(lines) + "\n")
        self._write_bundle(self.measurement(), read_settings(keyservice).measured().digest)
        trust = self.folder / "trust"
        for name in ("bundle.cbor", "simulation.key"):
            shutil.copyfile(self.folder / name, trust / name)
            (trust / name).chmod(0o644)  # the images' user reads it; a simulated platform's key protects nothing
        (self.folder / "etc" / "gateway.toml").write_text(self._gateway_configuration(""))
        self.policy_file.write_text(format_policy(self.runtime_policy()))
        (self.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in self.variables().items()))
        settings = self.settings
        self.write_profile(f"http://127.0.0.1:{settings.keyservice_port}", f"http://127.0.0.1:{settings.gateway_port}")

    def variables(self) -> dict[str, str]:
        """What the compose file takes."""
        settings = self.settings
        return {
            "CLOISTER_FOLDER": str(self.folder),
            "CLOISTER_IMAGE": settings.image,
            "CLOISTER_GATEWAY_IMAGE": settings.gateway_image,
            "CLOISTER_BUNDLE_ROOT": self.root.public_key.hex(),
            "CLOISTER_CONCURRENCY": str(settings.concurrency),
            "CLOISTER_MEMORY_MB": str(settings.memory_mb),
            "CLOISTER_KEYSERVICE_PORT": str(settings.keyservice_port),
            "CLOISTER_GATEWAY_PORT": str(settings.gateway_port),
        }

    def _gateway_configuration(self, keyservice: str) -> str:
        return static_gateway(super()._gateway_configuration(keyservice), self.store)


def static_gateway(local: str, store: Path) -> str:
    """A local gateway's configuration, made that of one before runtimes in containers, whose store is at /store."""
    rest = local[local.index("[store]") :].replace(str(store.resolve()), "/store")
    return f'[platform]\nkind = "static"\n\n[platform.static]\naddresses = ["http://runtime:8080"]\n\n{rest}'
