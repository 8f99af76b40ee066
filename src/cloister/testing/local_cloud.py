"""A whole Cloister on one machine, in a simulated TEE: KeyService, gateway, and runtimes as child processes.

What ``cloister up`` and the demonstration run. Everything lies in one folder:

    keyservice.toml  keyservice/     configuration and state of the KeyService
    gateway.toml     gateway/        the same of the gateway: records and logs of instances
    witness-1/ ...                   witnesses of the KeyService's log, where they are wanted
    keyservice-2/ ...                further replicas of the KeyService, likewise
    store/                           encrypted models
    bundle.cbor                      the trust bundle, signed by bundle-root.key
    runtime-policy.toml              accepts exactly the runtimes that this folder starts
    simulation.key  bundle-root.key  the software "platform" and the bundle's root: on one machine, for trials only
    home/                            the clients' folder: CLOISTER_HOME
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.tee.simulation import measure_installation
from cloister.attest.bundle import TrustBundle
from cloister.attest.configuration import ISOLATION_LEVELS
from cloister.attest.policy import Policy, Rule
from cloister.attest.policy_toml import format_policy
from cloister.attest.types import TeeType
from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.base.limits import MAX_REPLICAS
from cloister.base.secret import SecretBytes
from cloister.client.files import read_private, write_private
from cloister.client.profile import Profile, save_profile
from cloister.crypto.sign import SigningKey
from cloister.runtime.isolation import Isolation
from cloister.runtime.options import RuntimeOptions
from cloister.witness.app import initialise, read_identity

YEAR_S: Final = 365 * 86400
_MAX_AGE_S: Final = 7 * 86400  # of simulated evidence: a KeyService makes its own once an epoch
_POLL_S: Final = 0.02
COMMAND: Final = (sys.executable, "-m", "cloister")


@dataclass(slots=True)
class LocalCloud:
    """See the module.

    :param keyservice_listen: and ``gateway_listen``: ``HOST:PORT``; port 0 takes a free one.
    :param instances: how many runtimes at most. :param keep_alive_s: an idle one is stopped after this.
    :param witnesses: how many witnesses, of which more than half must co-sign; ``None``: as many as the folder has.
    :param replicas: of the KeyService, which need witnesses; ``None``: as many as the folder has.
    :param keyservice_settings: further settings of the KeyService, all of them measured.
    :param store_url: of a model store elsewhere, instead of the folder's.
    :param keyservice_address: what clients and runtimes use instead of the real one (a wiretap).
    """

    folder: Path
    keyservice_listen: str = "127.0.0.1:0"
    gateway_listen: str = "127.0.0.1:0"
    isolation: Isolation = Isolation.SHARED
    concurrency: int = 4
    memory_mb: int = 2048
    instances: int = 2
    keep_alive_s: float = 60.0
    packer: str = "adaptive"
    witnesses: int | None = None
    replicas: int | None = None
    keyservice_address: str = ""
    store_url: str = ""
    keyservice_settings: Mapping[str, int | list[str]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _ports: dict[str, str] = field(default_factory=dict)
    _listening: dict[str, str] = field(default_factory=dict)

    # --- what lies where ---

    @property
    def home(self) -> Path:
        """The clients' folder."""
        return self.folder / "home"

    @property
    def store(self) -> Path:
        """Encrypted models, unless they lie elsewhere."""
        return self.folder / "store"

    @property
    def store_name(self) -> str:
        """What services and clients are told of the model store."""
        return self.store_url or str(self.store.resolve())

    @property
    def policy_file(self) -> Path:
        """Accepts the runtimes of this folder."""
        return self.folder / "runtime-policy.toml"

    @property
    def log_files(self) -> list[Path]:
        """Everything that the services wrote for an operator."""
        return sorted(self.folder.glob("*.log")) + sorted(self.folder.glob("gateway/**/*.log"))

    def runtime_options(self) -> RuntimeOptions:
        """What the measured configuration of a runtime is made of."""
        return RuntimeOptions(
            bundle_root=self.root.public_key,
            isolation=self.isolation,
            concurrency=1 if self.isolation is Isolation.STRICT else self.concurrency,
            memory_mb=self.memory_mb,
        )

    @property
    def root(self) -> SigningKey:
        """The trust bundle's root."""
        return _key(self.folder / "bundle-root.key")

    @property
    def platform_key(self) -> SigningKey:
        """Signs simulated evidence."""
        return _key(self.folder / "simulation.key")

    def runtime_policy(self) -> Policy:
        """Accepts exactly this code with exactly this configuration."""
        options = self.runtime_options()
        return _policy("local-runtime", self.measurement(), options.measured().digest, (options.isolation.value,))

    def measurement(self) -> bytes:
        """Of the code that this cloud's services and runtimes run."""
        return measure_installation()

    # --- preparing ---

    def prepare(self) -> None:
        """Make everything that is not there yet.

        :raises Refused: ``state-of-another-build``: the folder was made by other code, which alone can open it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.store.mkdir(exist_ok=True)
        except OSError as error:
            raise Unavailable("state-unwritable", f"{self.folder} cannot be made: {error.strerror}") from error
        platform, root = self.platform_key.public_key, self.root.public_key
        configuration = self.folder / "keyservice.toml"
        self._prepare_witnesses(made=configuration.exists())
        self._prepare_replicas(made=configuration.exists())
        if not configuration.exists():
            lines = [
                "# Everything here is measured: changing it makes another KeyService, which no client believes.",
                f'bundle_root = "{root.hex()}"',
                "bundle_version = 1",
                f'simulation_keys = ["{platform.hex()}"]',
                *(f"{name} = {value}" for name, value in self.keyservice_settings.items()),
                *self._witness_settings(),
                *([f"replicas = {1 + len(self._replica_folders())}"] if self._replica_folders() else []),
            ]
            configuration.write_text("\n".join(lines) + "\n")
        bundle = self.folder / "bundle.cbor"
        if not bundle.exists():
            made = json.loads(self._run("keyservice", "init", *self._keyservice_arguments(), "--json"))
            for witness in self._witness_folders():
                self._run("witness", "add", "--state", str(witness), "--log-key", made["log_key"])
            self._write_bundle(bytes.fromhex(made["measurement"]), bytes.fromhex(made["configuration"]))
            (self.folder / "measurement").write_text(made["measurement"] + "\n")
        if (self.folder / "measurement").read_text().strip() != self.measurement().hex():
            raise Refused(
                "state-of-another-build",
                f"{self.folder} was made by another build of Cloister, and its KeyService's secrets are sealed to that",
                hint="Use the build that made it, or another --state folder. LIMITATIONS.md says more.",
            )
        self.policy_file.write_text(format_policy(self.runtime_policy()))

    def _write_bundle(self, measurement: bytes, configuration: bytes) -> None:
        now = int(SystemClock().now())
        bundle = TrustBundle(
            root=self.root.public_key,
            version=1,
            name="local trial",
            issued_at=now,
            expires_at=now + YEAR_S,
            keyservice=_policy("local-keyservice", measurement, configuration, None),
            accept_simulation=True,
            simulation_keys=(self.platform_key.public_key,),
            accept_rollback_unsafe=not self._witness_folders(),
            witnesses=tuple(self._witness_keys()),
            witness_threshold=self._witness_threshold,
        )
        (self.folder / "bundle.cbor").write_bytes(bundle.sign(self.root))

    # --- witnesses ---

    def _witness_folders(self) -> list[Path]:
        return sorted(self.folder.glob("witness-[0-9]*/"))

    def _witness_keys(self) -> list[bytes]:
        return [read_identity(folder).key.public_key for folder in self._witness_folders()]

    @property
    def _witness_threshold(self) -> int:
        count = len(self._witness_folders())
        return count // 2 + 1 if count else 0

    def _prepare_witnesses(self, *, made: bool) -> None:
        """:raises Refused: ``state-of-another-kind``: witnesses are measured, and cannot come or go."""
        there = len(self._witness_folders())
        if made and self.witnesses not in (None, there):
            raise Refused(
                "state-of-another-kind",
                f"{self.folder} was made with {there} witnesses, which its KeyService's evidence says",
                hint="Use that number, or another --state folder.",
            )
        if not made:
            for number in range(there, self.witnesses or 0):
                initialise(self.folder / f"witness-{number + 1}", f"localhost/witness-{number + 1}")

    def _witness_settings(self) -> list[str]:
        keys = [key.hex() for key in self._witness_keys()]
        if not keys:
            return []
        threshold = self._witness_threshold
        return [
            'rollback_protection = "witnesses"',
            f"witnesses = {json.dumps(keys)}",
            f"witness_threshold = {threshold}",
        ]

    def start_witnesses(self) -> list[str]:
        """Start those that do not run, where they were before; returns the addresses of all."""
        for folder in self._witness_folders():
            if folder.name not in self.processes:
                listen = f"127.0.0.1:{self._ports.get(folder.name, '0')}"
                arguments = ["witness", "run", "--state", str(folder), "--listen", listen]
                self._spawn(folder.name, arguments, folder / "address")
        addresses = {folder.name: self._wait(folder.name, folder / "address") for folder in self._witness_folders()}
        self._ports = {name: address.rpartition(":")[2] for name, address in addresses.items()}
        return list(addresses.values())

    # --- replicas ---

    def _replica_folders(self) -> list[Path]:
        """Of all but the first."""
        return sorted(self.folder.glob("keyservice-[0-9]*/"))

    def _prepare_replicas(self, *, made: bool) -> None:
        """:raises Refused: ``state-of-another-kind``: their number is measured. :raises InvalidInput: ``argument``."""
        there = 1 + len(self._replica_folders())
        if made and self.replicas not in (None, there):
            raise Refused(
                "state-of-another-kind",
                f"{self.folder} was made with {there} KeyService replicas, which its KeyService's evidence says",
                hint="Use that number, or another --state folder.",
            )
        wanted = 1 if self.replicas is None else self.replicas
        if not made and wanted != 1:
            if not 1 <= wanted <= MAX_REPLICAS:
                raise InvalidInput("argument", f"--replicas takes 1 to {MAX_REPLICAS}")
            if not self._witness_folders():
                raise InvalidInput("argument", "replicas need witnesses: say --witnesses 3")
            for number in range(2, wanted + 1):
                (self.folder / f"keyservice-{number}").mkdir(mode=0o700)

    def _start_replicas(self, arguments: list[str]) -> str:
        """Start those that do not run, and wait until one leads; returns the address of the first."""
        folders = [self.folder / "keyservice", *self._replica_folders()]
        for folder in folders:
            host, _, port = self.keyservice_listen.rpartition(":") if folder is folders[0] else ("127.0.0.1", "", "0")
            if folder.name not in self._listening:
                self._listening[folder.name] = f"{host}:{port if port != '0' else _free_port(host)}"
        peers = [word for folder in folders for word in ("--peer", f"http://{self._listening[folder.name]}")]
        for folder in folders:
            if folder.name not in self.processes:
                own = [*self._keyservice_arguments(folder.name), "--listen", self._listening[folder.name]]
                self._spawn(folder.name, ["keyservice", "run", *own, *arguments, *peers], folder / "address")
        addresses = [self._wait(folder.name, folder / "address") for folder in folders]
        self._wait_for_leader(addresses)
        return addresses[0]

    def _wait_for_leader(self, addresses: Sequence[str], timeout_s: float = 60.0) -> None:
        clock = SystemClock()
        client = HttpClient(clock)
        end = clock.monotonic() + timeout_s
        try:
            while clock.monotonic() < end:
                answers = [client.request("GET", address, "/v1/replica/role").checked() for address in addresses]
                said = [json.loads(bytes(answer.body)) for answer in answers]
                if all(one["role"] != "searching" and one["behind"] == 0 for one in said):
                    return  # one whose log is still empty could not take over
                time.sleep(_POLL_S)
        finally:
            client.close()
        raise Unavailable("service-not-started", "no replica of the KeyService leads", hint=f"See {self.folder}/*.log.")

    # --- running ---

    def start(self) -> Profile:
        """Prepare, start KeyService and gateway, and wait until both answer; returns the clients' profile.

        :raises Unavailable: ``service-not-started``, naming its log.
        """
        self.prepare()
        keyservice = self.start_keyservice()
        gateway = self.start_gateway(self.keyservice_address or keyservice)
        return self.write_profile(self.keyservice_address or keyservice, gateway)

    def start_keyservice(self) -> str:
        """Returns its address."""
        address = self.folder / "keyservice" / "address"
        arguments = ["--bundle", str(self.folder / "bundle.cbor")]
        for witness in self.start_witnesses():
            arguments += ["--witness", witness]
        if self._replica_folders():
            return self._start_replicas(arguments)
        own = [*self._keyservice_arguments(), "--listen", self.keyservice_listen]
        self._spawn("keyservice", ["keyservice", "run", *own, *arguments], address)
        return self._wait("keyservice", address)

    def rotate_root(self) -> dict[str, Any]:
        """Give the KeyService, which is stopped, another root; what the command says."""
        witnesses = [word for address in self.start_witnesses() for word in ("--witness", address)]
        said = self._run("keyservice", "rotate-root", *self._keyservice_arguments(), *witnesses, "--json")
        found: dict[str, Any] = json.loads(said)
        return found

    def start_gateway(self, keyservice: str) -> str:
        """Returns its address."""
        configuration = self.folder / "gateway.toml"
        configuration.write_text(self._gateway_configuration(keyservice))
        state = self.folder / "gateway"
        state.mkdir(exist_ok=True)
        address = state / "gateway.address"
        arguments = ["--config", str(configuration), "--state", str(state), "--listen", self.gateway_listen]
        self._spawn("gateway", ["gateway", *arguments], address)
        return self._wait("gateway", address)

    def write_profile(self, keyservice: str, gateway: str) -> Profile:
        """The clients' folder, pinned to the bundle's root."""
        self.home.mkdir(exist_ok=True, mode=0o700)
        profile = Profile(
            home=self.home,
            keyservice=keyservice,
            gateway=gateway,
            store=self.store_name,
            bundle=str((self.folder / "bundle.cbor").resolve()),
            bundle_root=self.root.public_key,
        )
        save_profile(profile)
        return profile

    def runtime_command(self, keyservice: str) -> list[str]:
        """The command line of a runtime, but for where it listens."""
        options = self.runtime_options()
        return [
            *(*COMMAND, "runtime"),
            *("--keyservice", keyservice),
            *("--bundle", str((self.folder / "bundle.cbor").resolve())),
            *("--bundle-root", options.bundle_root.hex()),
            *("--store", self.store_name),
            *("--simulation-key", str((self.folder / "simulation.key").resolve())),
            *("--isolation", options.isolation.value),
            *("--concurrency", str(options.concurrency)),
            *("--memory-mb", str(options.memory_mb)),
        ]

    def action_environment(self, keyservice: str) -> dict[str, str]:
        """The init parameters of an OpenWhisk action that runs what :meth:`runtime_command` runs."""
        words = self.runtime_command(keyservice)[len(COMMAND) + 1 :]
        pairs = zip(words[::2], words[1::2], strict=True)
        environment = {"CLOISTER_" + name[2:].replace("-", "_").upper(): value for name, value in pairs}
        for name in ("CLOISTER_BUNDLE", "CLOISTER_SIMULATION_KEY"):
            content = Path(environment[name]).read_bytes()
            environment[name] = "base64:" + b64encode(content).decode("ascii")
        return environment

    def stop(self) -> None:
        """Stop everything that was started here, gateway first, which stops its instances."""
        others = [folder.name for folder in (*self._replica_folders(), *self._witness_folders())]
        for name in ("gateway", "keyservice", *others):
            self.stop_service(name)

    def stop_service(self, name: str, *, kill: bool = False) -> None:
        """Stop one service: SIGTERM, and SIGKILL when it takes too long, or at once."""
        process = self.processes.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def failed(self) -> str | None:
        """The name of a service that ended by itself."""
        return next((name for name, process in self.processes.items() if process.poll() is not None), None)

    def _keyservice_arguments(self, name: str = "keyservice") -> list[str]:
        return [
            *("--state", str(self.folder / name)),
            *("--simulation-key", str(self.folder / "simulation.key")),
            *("--configuration", str(self.folder / "keyservice.toml")),
        ]

    def _gateway_configuration(self, keyservice: str) -> str:
        command = ", ".join(json.dumps(word) for word in self.runtime_command(keyservice))
        return "\n".join(
            [
                "[platform]",
                'kind = "local"',
                f"command = [{command}]",
                "",
                "[store]",
                f"url = {json.dumps(self.store_name)}",
                "",
                "[pool]",
                f'packer = "{self.packer}"',
                f"max_instances = {self.instances}",
                f"memory_mb = {self.memory_mb}",
                f"concurrency = {self.runtime_options().concurrency}",
                f"keep_alive_s = {self.keep_alive_s}",
                "",
            ]
        )

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise Unavailable("service-not-started", f"`cloister {arguments[0]} {arguments[1]}` failed: {done.stderr}")
        return done.stdout

    def _spawn(self, name: str, arguments: Sequence[str], address: Path) -> None:
        address.unlink(missing_ok=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(  # noqa: S603
                [*COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    def _wait(self, name: str, address: Path, timeout_s: float = 60.0) -> str:
        clock = SystemClock()
        client = HttpClient(clock)
        end = clock.monotonic() + timeout_s
        try:
            while clock.monotonic() < end and self.processes[name].poll() is None:
                if address.exists() and (origin := address.read_text("ascii").strip()):
                    try:
                        if client.request("GET", origin, "/healthz", deadline_s=5.0).status == 200:
                            return origin
                    except CloisterError:
                        pass
                time.sleep(_POLL_S)
        finally:
            client.close()
        log = self.folder / f"{name}.log"
        tail = log.read_text("utf-8", "replace").splitlines()[-1:] if log.exists() else []
        raise Unavailable("service-not-started", f"the {name} did not start: {' '.join(tail)}", hint=f"See {log}.")


def _free_port(host: str) -> int:
    """One that nobody is likely to take before it is listened on: replicas know each other's from the start."""
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


def _key(path: Path) -> SigningKey:
    """A key kept as 64 hexadecimal digits; made when it is not there."""
    if not path.exists():
        write_private(path, (SigningKey.generate().seed().reveal().hex() + "\n").encode())
    return SigningKey.from_seed(SecretBytes(bytes.fromhex(read_private(path).decode("ascii").strip())))


def _policy(name: str, measurement: bytes, configuration: bytes, isolation: tuple[str, ...] | None) -> Policy:
    rule = Rule.of(
        name,
        TeeType.SIMULATION,
        {
            "measurement": [measurement],
            "minimum_security_version": 0,
            "maximum_age_s": _MAX_AGE_S,
            "configuration": [configuration],
            "isolation": "any-isolation" if isolation is None else [i for i in ISOLATION_LEVELS if i in isolation],
        },
    )
    return Policy((rule,))
