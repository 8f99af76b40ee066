"""Policies by the names they have on the command line and in configuration."""

from __future__ import annotations

from typing import Any, Final

from cloister.base.errors import InvalidInput
from cloister.control.balancing.policies import LeastOutstanding, RoundRobin, TeeAware
from cloister.control.balancing.port import Balancer
from cloister.control.packing.adaptive import Adaptive
from cloister.control.packing.all_in_one import AllInOne
from cloister.control.packing.fnpacker import FnPacker
from cloister.control.packing.one_to_one import OneToOne
from cloister.control.packing.port import Packer
from cloister.control.scaling.concurrency import Concurrency
from cloister.control.scaling.keep_alive import KeepAlive
from cloister.control.scaling.port import Bounds, Scaler
from cloister.control.scaling.slo import Slo

PACKERS: Final = ("one-to-one", "all-in-one", "fnpacker", "adaptive")
BALANCERS: Final = ("round-robin", "least-outstanding", "tee-aware")
SCALERS: Final = ("keep-alive", "concurrency", "slo")


def _unknown(kind: str, name: str, known: tuple[str, ...]) -> InvalidInput:
    return InvalidInput("policy-unknown", f"no {kind} is called {name!r}", hint=f"There are: {', '.join(known)}.")


def packer(name: str, *, cost_weight: float = 0.5) -> Packer[Any]:
    """A packing policy; ``cost_weight`` is for ``adaptive`` alone.

    :raises InvalidInput: ``policy-unknown``.
    """
    match name:
        case "one-to-one":
            return OneToOne()
        case "all-in-one":
            return AllInOne()
        case "fnpacker":
            return FnPacker()
        case "adaptive":
            return Adaptive(cost_weight)
        case _:
            raise _unknown("packer", name, PACKERS)


def balancer(name: str) -> Balancer[Any]:
    """A balancing policy.

    :raises InvalidInput: ``policy-unknown``.
    """
    match name:
        case "round-robin":
            return RoundRobin()
        case "least-outstanding":
            return LeastOutstanding()
        case "tee-aware":
            return TeeAware()
        case _:
            raise _unknown("balancer", name, BALANCERS)


def scaler(name: str, *, bounds: Bounds | None = None, slo_ms: float = 1000.0, window_s: float = 60.0) -> Scaler[Any]:
    """A scaling policy; ``window_s`` is the stable window or the cool-down.

    :raises InvalidInput: ``policy-unknown``.
    """
    bounds = bounds or Bounds()
    match name:
        case "keep-alive":
            return KeepAlive(bounds)
        case "concurrency":
            return Concurrency(bounds=bounds, stable_window_s=window_s, panic_window_s=window_s / 10)
        case "slo":
            return Slo(bounds=bounds, target_s=slo_ms / 1000, cool_down_s=window_s, zero_after_s=window_s)
        case _:
            raise _unknown("scaler", name, SCALERS)
