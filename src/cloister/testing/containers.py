"""Containers of a real engine, for tests of the image: podman or docker, found and asked, never assumed.

Every container runs as OpenWhisk starts one (core/invoker, DockerContainer.scala: memory without swap, few files and
processes), and stricter: read-only, without capabilities, as the image's own user.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloister.base.errors import Unavailable

# Hosts whose own limits are lower than the engine's defaults cannot raise them: name what OpenWhisk names anyway.
LIMITS: Final = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
STRICT: Final = (*LIMITS, "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
CANDIDATES: Final = (("docker",), ("podman", "--runtime", "runc"), ("podman",))
_TIMEOUT_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Engine:
    """A container engine's command line."""

    command: tuple[str, ...]

    @classmethod
    def find(cls, image: str) -> Engine:
        """The first engine that can run ``image``.

        :raises Unavailable: ``no-container-engine``, with what each one said.
        """
        reasons = []
        for command in CANDIDATES:
            if shutil.which(command[0]) is None:
                reasons.append(f"{command[0]} is not installed")
                continue
            engine = cls(command)
            done = engine.call("run", "--rm", *STRICT, image, "version", check=False)
            if done.returncode == 0:
                return engine
            said = (done.stderr.strip().splitlines() or [""])[-1]
            reasons.append(f"{' '.join(command)}: {said}")
        raise Unavailable("no-container-engine", "; ".join(reasons))

    def call(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One command of the engine.

        :raises Unavailable: ``container-engine-failed``.
        """
        done = subprocess.run(  # noqa: S603
            [*self.command, *words], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
        if check and done.returncode != 0:
            raise Unavailable("container-engine-failed", f"{self.command[0]} {words[0]}: {done.stderr.strip()[-600:]}")
        return done

    def compose(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One command of ``docker compose``, or of podman-compose, which is a Python package.

        :raises Unavailable: ``container-engine-failed``; ``no-compose`` where it is not there.
        """
        environment = dict(os.environ)
        with tempfile.TemporaryDirectory() as folder:
            command = [self.command[0], "compose"]
            if self.command[0] == "podman":
                if importlib.util.find_spec("podman_compose") is None:
                    raise Unavailable(
                        "no-compose", "podman-compose is not installed: uv sync --inexact --group compose"
                    )
                command = [sys.executable, "-m", "podman_compose"]
                settings = Path(folder) / "containers.conf"
                settings.write_text(f'[engine]\nruntime = "{self.command[-1]}"\n' if len(self.command) > 1 else "")
                environment["CONTAINERS_CONF"] = str(settings)
            done = subprocess.run(  # noqa: S603
                [*command, *words], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, env=environment
            )
        if done.returncode != 0:
            raise Unavailable("container-engine-failed", f"compose {words[-1]}: {done.stderr.strip()[-600:]}")
        return done

    def measurement(self, image: str) -> bytes:
        """What runtimes and KeyServices of an image measure in simulation."""
        told = self.call("run", "--rm", "--network", "none", *STRICT, image, "version", "--json").stdout
        return bytes.fromhex(json.loads(told)["insecure-simulation-measurement"])

    def start(self, image: str, words: Sequence[str] = (), options: Sequence[str] = ()) -> RunningContainer:
        """A container in the background."""
        done = self.call("run", "--detach", *STRICT, *options, image, *words)
        return RunningContainer(self, done.stdout.split()[-1])


class RunningContainer:
    """``cloister.testing.action.Container`` of an engine; its service is on port 8080."""

    def __init__(self, engine: Engine, identifier: str) -> None:
        self.engine = engine
        self.id = identifier
        networks = self.inspect("NetworkSettings")
        named = [network["IPAddress"] for network in (networks["Networks"] or {}).values()]
        self.ip: str = networks.get("IPAddress") or next(filter(None, named), "")

    @property
    def address(self) -> str:
        """See the port."""
        return f"http://{self.ip}:8080"

    def inspect(self, part: str) -> Any:
        """One part of what the engine knows of it."""
        return json.loads(self.engine.call("inspect", "--format", f"{{{{json .{part}}}}}", self.id).stdout)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return bool(self.inspect("State.Running"))

    def output(self) -> tuple[str, str]:
        """See the port."""
        done = self.engine.call("logs", self.id)
        return done.stdout, done.stderr

    def restarted(self) -> RunningContainer:
        """Start it again after it ended; it may have another address then."""
        self.engine.call("start", self.id)
        return RunningContainer(self.engine, self.id)

    def stop(self) -> int:
        """See the port."""
        self.engine.call("stop", "--time", "30", self.id)
        status = int(self.inspect("State.ExitCode"))
        self.kill()
        return status

    def kill(self) -> None:
        """End and remove it, whatever it does."""
        self.engine.call("rm", "--force", "--volumes", self.id, check=False)
