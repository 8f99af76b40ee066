"""Scale by concurrency with a stable and a panic window, as Knative's pod autoscaler does.

Desired = average concurrency / (concurrency of an instance x target utilisation), averaged over the stable window. When
the average over the short panic window asks for ``panic_threshold`` times what is there, the short one counts, and
nothing is scaled in until a stable window has passed without panic. Defaults are Knative's documented ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from cloister.control.scaling.port import Bounds, Domain, Scale
from cloister.control.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class ConcurrencyState:
    """Samples (time, seconds covered, average concurrency), newest last; when panic was needed last; its peak."""

    samples: tuple[tuple[float, float, float], ...] = ()
    panic_at: float | None = None
    peak: int = 0
    last_busy: float | None = None


def _average(samples: tuple[tuple[float, float, float], ...], since: float) -> float:
    covered = weighted = 0.0
    for at, seconds, concurrency in reversed(samples):
        if at <= since:
            break
        covered += seconds
        weighted += seconds * concurrency
    return weighted / covered if covered else 0.0


class Concurrency:
    """See the module. Times in seconds."""

    name = "concurrency"

    def __init__(
        self,
        *,
        bounds: Bounds = Bounds(),  # noqa: B008  # frozen
        target_utilisation: float = 0.7,
        stable_window_s: float = 60.0,
        panic_window_s: float = 6.0,
        panic_threshold: float = 2.0,
        max_scale_in_rate: float = 2.0,
        zero_grace_s: float = 30.0,
    ) -> None:
        self._bounds = bounds
        self._target = target_utilisation
        self._stable_s = stable_window_s
        self._panic_s = panic_window_s
        self._threshold = panic_threshold
        self._in_rate = max_scale_in_rate
        self._grace_s = zero_grace_s

    def initial(self) -> ConcurrencyState:
        """No samples."""
        return ConcurrencyState()

    def decide(
        self, snapshot: Snapshot, state: ConcurrencyState, domain: Domain, now: float
    ) -> tuple[Scale, ConcurrencyState]:
        """The desired number, as floor and ceiling."""
        oldest = now - self._stable_s
        samples = (*tuple(s for s in state.samples if s[0] > oldest), (now, domain.elapsed_s, domain.concurrency))
        each = snapshot.fleet.concurrency * self._target
        have = len(domain.instances)
        stable = _average(samples, oldest)
        desired = ceil(stable / each)
        panic = ceil(_average(samples, now - self._panic_s) / each)
        panic_at, peak = state.panic_at, state.peak
        if panic >= self._threshold * max(1, have) or (panic_at is not None and panic > peak):
            panic_at = now
        if panic_at is not None and now - panic_at > self._stable_s:
            panic_at, peak = None, 0
        if panic_at is not None:
            peak = max(peak, panic, have)
            desired = max(desired, peak)
        busy = domain.concurrency > 0 or domain.arrivals > 0
        last_busy = now if busy else state.last_busy
        if desired == 0 and last_busy is not None and now - last_busy <= self._stable_s + self._grace_s:
            desired = min(1, have)
        if desired < have:
            desired = max(desired, int(have / self._in_rate))
        desired = self._bounds.clip(desired)
        return Scale(desired, desired), ConcurrencyState(samples, panic_at, peak, last_busy)
