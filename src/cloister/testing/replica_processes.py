"""Three KeyServices and three witnesses as processes of their own, each replica on a platform of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final

import cloister
from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.tee.simulation import measure_installation
from cloister.attest.bundle import Successor, TrustBundle
from cloister.attest.policy import Policy
from cloister.base.errors import CloisterError, Unavailable
from cloister.client.profile import Profile
from cloister.crypto.sign import SigningKey
from cloister.keyservice.offline import initialise
from cloister.keyservice.opening import read_settings, simulated_tee
from cloister.keyservice.storage.place import store_place
from cloister.testing.people import simulation_policy
from cloister.testing.plenty import plenty_of_everything
from cloister.testing.tee import SimulatedTee
from cloister.testing.witness import WitnessProcess

PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Build:
    """Code and configuration of a KeyService.

    :param package: another folder with the package; ``None`` for the installed one.
    """

    configuration: Path
    package: Path | None = None

    @property
    def measurement(self) -> bytes:
        """Of the code, as the simulated TEE measures it."""
        return measure_installation(self.package and self.package / "cloister")

    @property
    def digest(self) -> bytes:
        """Of the configuration."""
        return read_settings(self.configuration).measured().digest

    @property
    def successor(self) -> Successor:
        """As a trust bundle names it."""
        return Successor(self.measurement, self.digest)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process run this code."""
        return dict(os.environ) | ({} if self.package is None else {"PYTHONPATH": str(self.package)})


@dataclass(slots=True)
class ReplicaProcess:
    """One of them: where it lies, what it runs, and where it answers, each time it runs."""

    folder: Path
    port: int
    build: Build
    process: subprocess.Popen[bytes] | None = None
    address: str = field(init=False)

    def __post_init__(self) -> None:
        self.address = f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it said to its operator."""
        return (self.folder / "log.jsonl").read_text(encoding="utf-8")

    def kill(self) -> None:
        """``kill -9``."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait(60)

    def stop(self) -> None:
        """SIGTERM, as an operator stops it."""
        process, self.process = self.process, None
        if process is not None:
            process.terminate()
            process.wait(60)


@final
class ReplicaProcesses:
    """Replica 0 made the KeyService; the others get its root secret from it when they start.

    :param settings: further lines of the measured configuration.
    :param stores: for each a database for its records, as ``--store`` takes it; by default files of their own.
    """

    def __init__(self, folder: Path, *, count: int = 3, settings: str = "", stores: Sequence[str] = ()) -> None:
        self.folder = folder
        self.stores = stores
        self.clock = SystemClock()
        self.http = HttpClient(self.clock)
        self.bundle_key = SigningKey.generate()
        self.platforms = [SigningKey.generate() for _ in range(count)]
        self.runtime = SimulatedTee("runtime", key=self.platforms[0], clock=self.clock)
        self.witnesses = [WitnessProcess(folder / f"w{number}") for number in range(3)]
        self.configuration, self.bundle = folder / "keyservice.toml", folder / "bundle.cbor"
        keys = [witness.key.public_key for witness in self.witnesses]
        simulation = [platform.public_key for platform in self.platforms]
        self.configuration.write_text(
            f'rollback_protection = "witnesses"\nwitnesses = {json.dumps([key.hex() for key in keys])}\n'
            f"witness_threshold = 2\nreplicas = {count}\n"
            f"simulation_keys = {json.dumps([key.hex() for key in simulation])}\n"
            f'bundle_root = "{self.bundle_key.public_key.hex()}"\n{settings}',
            encoding="utf-8",
        )
        self.settings = read_settings(self.configuration)
        self.limits = plenty_of_everything(folder)
        self.build = Build(self.configuration)
        self.bundle.write_bytes(self.sign(1, [self.build]))
        self.replicas = [
            ReplicaProcess(folder / f"ks{number}", port, self.build) for number, port in enumerate(_ports(count))
        ]
        for replica, platform in zip(self.replicas, self.platforms, strict=True):
            replica.folder.mkdir()
            (replica.folder / "platform.key").write_text(platform.seed().reveal().hex(), encoding="ascii")
        first = self.replicas[0].folder
        tee = simulated_tee(first / "platform.key", self.settings, self.clock)
        store = store_place(first / "state", stores[0] if stores else None)
        self.root = initialise(first / "state", tee, self.settings, self.clock, store)
        for witness in self.witnesses:
            witness.add(self.root.log_key.public_key)
            witness.start()

    def sign(self, version: int, accepted: Sequence[Build], successors: Sequence[Build] = ()) -> bytes:
        """A trust bundle of this version, whose policy accepts these builds; the file."""
        now = int(self.clock.now())
        rules = [
            replace(simulation_policy(build.measurement, configuration=[build.digest]).rules[0], name=f"build-{number}")
            for number, build in enumerate(accepted)
        ]
        bundle = TrustBundle(
            root=self.bundle_key.public_key,
            version=version,
            name="replicas",
            issued_at=now,
            expires_at=now + 86_400,
            keyservice=Policy(tuple(rules)),
            accept_simulation=True,
            simulation_keys=tuple(platform.public_key for platform in self.platforms),
            witnesses=tuple(witness.key.public_key for witness in self.witnesses),
            witness_threshold=2,
            successors=tuple(build.successor for build in successors),
        )
        return bundle.sign(self.bundle_key)

    def another_build(self, settings: str) -> Build:
        """The installed code with a byte more, and further lines of configuration."""
        folder = self.folder / "next"
        shutil.copytree(
            Path(cloister.__file__).parent, folder / "cloister", ignore=shutil.ignore_patterns("__pycache__")
        )
        target = folder / "cloister" / "keyservice" / "service.py"
        target.write_bytes(target.read_bytes() + b"#")
        configuration = folder / "keyservice.toml"
        configuration.write_text(self.configuration.read_text(encoding="utf-8") + settings, encoding="utf-8")
        return Build(configuration, folder)

    def start(self, number: int, *arguments: str) -> None:
        """Start one; it joins first if it has no root secret yet. :meth:`until` waits for what it does."""
        replica = self.replicas[number]
        command = [sys.executable, "-m", "cloister", "keyservice", "run", "--json"]
        command += ["--listen", f"127.0.0.1:{replica.port}", "--state", str(replica.folder / "state")]
        command += ["--simulation-key", str(replica.folder / "platform.key")]
        command += ["--configuration", str(replica.build.configuration), "--bundle", str(self.bundle)]
        command += ["--limits", str(self.limits)]
        command += ["--store", self.stores[number]] if self.stores else []
        command += [word for other in self.replicas for word in ("--peer", other.address)]
        command += [word for witness in self.witnesses for word in ("--witness", witness.address)]
        with (replica.folder / "log.jsonl").open("ab") as log:
            replica.process = subprocess.Popen(  # noqa: S603  # ourselves
                [*command, *arguments], stdout=subprocess.DEVNULL, stderr=log, env=replica.build.environment
            )

    def start_all(self) -> None:
        """Start all, and wait until one leads and the others have everything."""
        for number in range(len(self.replicas)):
            self.start(number)
        self.leader()

    def role(self, number: int) -> dict[str, Any]:
        """What it says of itself; ``{"role": "down"}`` when it says nothing."""
        try:
            answer = self.http.request("GET", self.replicas[number].address, "/v1/replica/role", deadline_s=5.0)
            found: dict[str, Any] = json.loads(bytes(answer.checked().body))
        except CloisterError:
            return {"role": "down"}
        return found

    def leader(self) -> int:
        """Waits until one leads and all others that run follow it and have everything; which one leads.

        :raises Unavailable: ``keyservice-not-started``, with what they say.
        """
        until = self.clock.monotonic() + PATIENCE_S
        while self.clock.monotonic() < until:
            roles = [self.role(number) for number, replica in enumerate(self.replicas) if replica.process]
            leaders = [number for number in range(len(self.replicas)) if self.role(number)["role"] == "leader"]
            good = [role for role in roles if role["role"] == "leader" or role.get("behind") == 0]
            if len(leaders) == 1 and len(good) == len(roles):
                return leaders[0]
            time.sleep(0.1)
        said = "\n".join(replica.log[-2000:] for replica in self.replicas if (replica.folder / "log.jsonl").exists())
        raise Unavailable("keyservice-not-started", f"no replica leads: {said}")

    def profile(self, home: Path, number: int) -> Profile:
        """A client's, who uses this replica's address."""
        return Profile(
            home=home,
            keyservice=self.replicas[number].address,
            gateway="http://127.0.0.1:9",
            store=str(home),
            bundle=str(self.bundle),
            bundle_root=self.bundle_key.public_key,
        )

    def close(self) -> None:
        """Kill everything."""
        self.http.close()
        for replica in self.replicas:
            replica.kill()
        for witness in self.witnesses:
            witness.kill()


def _ports(count: int) -> list[int]:
    """Free ones, which nobody is likely to take meanwhile."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
