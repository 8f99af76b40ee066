"""What an operator sees of a local cloud and may do to it: metrics by stage, starts, instances, ending them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient

_SAMPLE: Final = re.compile(r"cloister_stage_seconds_(sum|count)\{([^}]*)\} ([0-9.e+-]+)")
_LABEL: Final = re.compile(r'(stage|path)="([^"]*)"')
_START: Final = re.compile(r"cloister_gateway_instance_start_seconds_(sum|count)(?:\{\})? ([0-9.e+-]+)")
_PATH: Final = re.compile(r'cloister_gateway_request_seconds_(sum|count)\{path="(cold|warm|hot)"\} ([0-9.e+-]+)')
_POLL_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Operator:
    """The operator of one gateway.

    :param folder: of the cloud, in which the gateway keeps its records of instances.
    """

    folder: Path
    gateway: str

    def records(self) -> list[Path]:
        """One file for each instance that is there."""
        return sorted((self.folder / "gateway" / "instances").glob("*.json"))

    def processes(self) -> list[int]:
        """Process ids of the instances."""
        out = []
        for record in self.records():
            with contextlib.suppress(OSError, ValueError, KeyError):
                out.append(int(json.loads(record.read_text())["pid"]))
        return out

    def status(self) -> dict[str, Any]:
        """The gateway's status page."""
        http = HttpClient(SystemClock())
        try:
            found: dict[str, Any] = json.loads(bytes(http.request("GET", self.gateway, "/v1/status").checked().body))
        finally:
            http.close()
        return found

    def metrics(self) -> str:
        """The gateway's metrics, as Prometheus gets them."""
        http = HttpClient(SystemClock())
        try:
            return bytes(http.request("GET", self.gateway, "/metrics").checked().body).decode()
        finally:
            http.close()

    def starts(self) -> tuple[float, int]:
        """Seconds from the command to readiness, summed over all starts, and how many there were."""
        found = dict(_START.findall(self.metrics()))
        return float(found.get("sum", 0)), int(float(found.get("count", 0)))

    def paths(self) -> dict[str, tuple[int, float]]:
        """Cold, warm, hot to the number of requests, and the mean milliseconds from their arrival at the gateway."""
        found: dict[str, dict[str, float]] = {"cold": {}, "warm": {}, "hot": {}}
        for kind, path, value in _PATH.findall(self.metrics()):
            found[path][kind] = float(value)
        return {
            path: (int(values.get("count", 0)), 1000 * values.get("sum", 0.0) / max(1.0, values.get("count", 0.0)))
            for path, values in found.items()
        }

    def stages(self) -> dict[tuple[str, str], float]:
        """(stage, path) to mean milliseconds: of the instances that run now, and of all starts."""
        http = HttpClient(SystemClock())
        sums: dict[tuple[str, str], float] = {}
        counts: dict[tuple[str, str], float] = {}
        try:
            for record in self.records():
                origin = f"unix:{json.loads(record.read_text())['socket']}"
                text = bytes(http.request("GET", origin, "/metrics").checked().body).decode()
                for kind, labels, value in _SAMPLE.findall(text):
                    found = dict(_LABEL.findall(labels))
                    total = sums if kind == "sum" else counts
                    key = (found["stage"], found["path"])
                    total[key] = total.get(key, 0.0) + float(value)
        finally:
            http.close()
        means = {key: 1000 * value / counts[key] for key, value in sums.items() if counts.get(key)}
        seconds, count = self.starts()
        if count:
            means["sandbox_start", "cold"] = max(0.0, 1000 * seconds / count - means.get(("runtime_init", "cold"), 0.0))
        return means

    def stop_instances(self) -> None:
        """End every runtime, and wait until it is gone."""
        records = self.records()
        for process in self.processes():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGTERM)
        while any(record.exists() for record in records):
            time.sleep(_POLL_S)
