"""When an instance gets no requests for a while: a circuit breaker, as values and rules. No clock, no I/O."""

from __future__ import annotations

from cloister.control.gateway.configuration import CircuitSettings


class Breaker:
    """Of one instance. Closed: gets requests. Open: gets none, and is probed after :meth:`wait_s`."""

    __slots__ = ("_failures", "_opened", "_settings", "is_open")

    def __init__(self, settings: CircuitSettings) -> None:
        self._settings = settings
        self._failures = 0
        self._opened = 0
        self.is_open = False

    @property
    def hopeless(self) -> bool:
        """Probed as often as the configuration says, in vain."""
        return self._opened > self._settings.probes

    def succeeded(self) -> None:
        """An answer came."""
        self._failures = self._opened = 0

    def failed(self, *, broken: bool) -> bool:
        """No answer came; True when the circuit opens by this.

        :param broken: the connection was refused or cut: once is enough.
        """
        self._failures += 1
        if self.is_open or not (broken or self._failures >= self._settings.failures):
            return False
        self._open()
        return True

    def probed(self, *, well: bool) -> None:
        """A probe was answered, or not. After a good one a single failure opens it again."""
        if well:
            self.is_open = False
            self._failures = self._settings.failures - 1
        else:
            self._open()

    def wait_s(self) -> float:
        """Until the next probe: doubles with each one in vain."""
        return min(self._settings.max_open_s, self._settings.open_s * float(2 ** min(self._opened - 1, 30)))

    def _open(self) -> None:
        self.is_open = True
        self._opened += 1
