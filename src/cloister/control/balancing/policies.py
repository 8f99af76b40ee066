"""Round-robin, least-outstanding, and S3ML's: by what secure-memory pressure does to the time a request will take."""

from __future__ import annotations

from cloister.control.snapshot import Instance, Request, Snapshot


class RoundRobin:
    """In turn, whatever they do."""

    name = "round-robin"

    def initial(self) -> int:
        """The first turn."""
        return 0

    def choose(
        self, snapshot: Snapshot, state: int, candidates: tuple[str, ...], request: Request, now: float
    ) -> tuple[str, int]:
        """The next in turn."""
        return candidates[state % len(candidates)], state + 1


class LeastOutstanding:
    """The one with the fewest unanswered requests; the oldest of those."""

    name = "least-outstanding"

    def initial(self) -> None:
        """Nothing to remember."""

    def choose(
        self, snapshot: Snapshot, state: None, candidates: tuple[str, ...], request: Request, now: float
    ) -> tuple[str, None]:
        """Fewest in flight."""
        if len(candidates) == 1:
            return candidates[0], state
        return min(candidates, key=lambda i: snapshot.instances[i].in_flight), state


class TeeAware:
    """The one where the request is expected to end first, given pressure on secure memory (S3ML, arXiv 2010.06212).

    An instance that loses the share p of its time to paging, or to loading again what was pushed out, works at 1 - p of
    its speed: the expected time is that of a request among those running there, divided by 1 - p.
    """

    name = "tee-aware"

    def initial(self) -> None:
        """Nothing to remember: the signal is smoothed where it is read."""

    def choose(
        self, snapshot: Snapshot, state: None, candidates: tuple[str, ...], request: Request, now: float
    ) -> tuple[str, None]:
        """Least expected time, then fewest in flight, then the oldest."""
        if len(candidates) == 1:
            return candidates[0], state

        def expected(name: str) -> tuple[float, int]:
            there: Instance = snapshot.instances[name]
            alone = snapshot.models[request.model].service_s * snapshot.fleet.slower(there.in_flight + 1)
            load = 0.0 if request.model in there.residents else snapshot.models[request.model].load_s
            return (alone + load) / max(1e-3, 1.0 - there.pressure), there.in_flight

        return min(candidates, key=expected), state
