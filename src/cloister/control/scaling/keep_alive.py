"""Keep every idle instance for a fixed time, as OpenWhisk does."""

from __future__ import annotations

from cloister.control.scaling.port import Bounds, Domain, Scale
from cloister.control.snapshot import Snapshot


class KeepAlive:
    """Instances idle for ``fleet.keep_alive_s`` go; none is started ahead of a request."""

    name = "keep-alive"

    def __init__(self, bounds: Bounds = Bounds()) -> None:  # noqa: B008  # frozen
        self._bounds = bounds

    def initial(self) -> None:
        """Nothing to remember: an instance knows when it was last used."""

    def decide(self, snapshot: Snapshot, state: None, domain: Domain, now: float) -> tuple[Scale, None]:
        """As many as were used lately."""
        oldest = now - snapshot.fleet.keep_alive_s
        wanted = 0
        for name in domain.instances:
            there = snapshot.instances[name]
            wanted += there.in_flight > 0 or max(there.last_used, there.expected_at, there.launched_at) > oldest
        return Scale(self._bounds.least, self._bounds.clip(wanted)), state
