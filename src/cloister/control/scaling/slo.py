"""Scale to keep p99 latency under its bound, by prediction and by secure-memory pressure (S3ML, arXiv 2010.06212).

S3ML's formula is not public; this one is a queue's. Requests of a domain come at a rate λ (the larger of the short and
the long average, carried forward by the trend over the time a start takes) and each instance serves some at once, more
slowly the more there are and the more secure memory is under pressure. The smallest number of instances is taken for
which a request of the slowest model, waiting as long as one in a hundred does (Erlang C), still ends in time. Pressure
slows the predicted service, so it adds instances before a latency shows it. Scaling in waits until that smaller number
would have been enough for a whole cool-down.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from cloister.control.scaling.port import Bounds, Domain, Scale
from cloister.control.snapshot import Snapshot

SHORT_WINDOW_S = 5.0
TAIL = 0.01


def erlang_c(servers: int, load: float) -> float:
    """Probability that a request waits, with ``load`` = rate x service time < ``servers``."""
    if load >= servers:
        return 1.0
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    return blocked / (1.0 - (load / servers) * (1.0 - blocked))


@dataclass(frozen=True, slots=True)
class SloState:
    """Samples (time, seconds covered, arrivals); what was needed when, over the cool-down; when it was last busy."""

    samples: tuple[tuple[float, float, int], ...] = ()
    needed: tuple[tuple[float, int], ...] = ()
    last_busy: float | None = None


class Slo:
    """See the module. Times in seconds.

    :param target_s: bound of p99 for models that declare none.
    :param headroom: share of the bound that prediction may use up.
    """

    name = "slo"

    def __init__(
        self,
        *,
        bounds: Bounds = Bounds(),  # noqa: B008  # frozen
        target_s: float = 1.0,
        headroom: float = 0.8,
        cool_down_s: float = 60.0,
        zero_after_s: float = 60.0,
    ) -> None:
        self._bounds = bounds
        self._target_s = target_s
        self._headroom = headroom
        self._cool_down_s = cool_down_s
        self._zero_after_s = zero_after_s

    def initial(self) -> SloState:
        """Nothing seen."""
        return SloState()

    def _rate(self, samples: tuple[tuple[float, float, int], ...], domain: Domain, now: float) -> float:
        def over(since: float, until: float) -> float:
            chosen = [s for s in samples if since < s[0] <= until]
            covered = sum(s[1] for s in chosen)
            return sum(s[2] for s in chosen) / covered if covered else 0.0

        short = over(now - SHORT_WINDOW_S, now)
        before = over(now - 2 * SHORT_WINDOW_S, now - SHORT_WINDOW_S)
        ahead = short + max(0.0, short - before) / SHORT_WINDOW_S * domain.start_s
        return max(ahead, over(now - self._cool_down_s, now))

    def predicted_p99_s(self, snapshot: Snapshot, domain: Domain, count: int, rate: float, pressure: float) -> float:
        """p99 latency of ``count`` instances at ``rate`` requests a second; infinite when they cannot keep up."""
        fleet = snapshot.fleet
        speed = max(1e-3, 1.0 - pressure)
        best = float("inf")
        for together in range(1, fleet.concurrency + 1):  # an instance takes more at once when more come
            slower = fleet.slower(together) / speed
            servers, service = count * together, domain.service_s * slower
            spare = servers / service - rate if service > 0 else float("inf")
            if servers <= 0 or spare <= 0:
                continue
            waits = erlang_c(servers, rate * service)
            wait = log(waits / TAIL) / spare if waits > TAIL else 0.0
            best = min(best, domain.slowest_s * slower + wait)
        return best

    def expected_p99_s(self, snapshot: Snapshot, state: SloState, domain: Domain, now: float) -> float:
        """p99 latency to expect of the instances there are; ``state`` as the last decision left it."""
        rate = self._rate(state.samples, domain, now)
        return self.predicted_p99_s(snapshot, domain, len(domain.instances), rate, _pressure(snapshot, domain))

    def decide(self, snapshot: Snapshot, state: SloState, domain: Domain, now: float) -> tuple[Scale, SloState]:
        """Floor: what is needed now. Ceiling: the most that was needed during the cool-down."""
        since = now - max(self._cool_down_s, 2 * SHORT_WINDOW_S)
        samples = (*tuple(s for s in state.samples if s[0] > since), (now, domain.elapsed_s, domain.arrivals))
        busy = domain.arrivals > 0 or domain.concurrency > 0 or domain.queued > 0
        last_busy = now if busy else state.last_busy
        if last_busy is None or now - last_busy > self._zero_after_s:
            least = self._bounds.clip(0)
            return Scale(least, least), SloState(samples, (), last_busy)
        bound = (domain.slo_s or self._target_s) * self._headroom
        rate = self._rate(samples, domain, now) + domain.queued / max(bound, domain.start_s)
        pressure = _pressure(snapshot, domain)
        alone = domain.slowest_s / max(1e-3, 1.0 - pressure)
        bound = max(bound, alone * 1.1)  # a bound below the service itself cannot be bought; a short queue can
        most = min(self._bounds.most, snapshot.fleet.max_instances)
        low, high = 1, max(1, most)
        while low < high:
            middle = (low + high) // 2
            if self.predicted_p99_s(snapshot, domain, middle, rate, pressure) <= bound:
                high = middle
            else:
                low = middle + 1
        needed = (*tuple(n for n in state.needed if n[0] > now - self._cool_down_s), (now, low))
        ceiling = max(n for _, n in needed)
        return Scale(self._bounds.clip(low), self._bounds.clip(ceiling)), SloState(samples, needed, last_busy)


def _pressure(snapshot: Snapshot, domain: Domain) -> float:
    """Mean over the domain's instances."""
    instances = snapshot.instances.several(domain.instances)
    pressures = [there.pressure for there in instances]
    return sum(pressures) / len(pressures) if pressures else 0.0
