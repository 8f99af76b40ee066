"""Which trust bundle is in use: the newest that the log names, and until it names one, the operator's file (13.26.1).

The operator brings a newer one; none can be taken back. The log holds the file itself, so a replica, and one that
starts again, has what the one that led used, and an auditor sees what was signed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from cloister.adapters.logs import EventLog
from cloister.attest.bundle import TrustBundle, open_bundle
from cloister.base.errors import CloisterError, InvalidInput, Refused
from cloister.keyservice.ledger import Ledger
from cloister.keyservice.proposals import Proposal
from cloister.keyservice.state.state import State
from cloister.keyservice.vault import Vault
from cloister.log.entry import BUNDLE, BundleRecord


@final
class Bundles:
    """See the module. Thread-safe.

    :param offered: reads the operator's file anew.
    :param root: pinned key that must have signed it; :param minimum: the least version, by the measured configuration.
    """

    def __init__(
        self, ledger: Ledger, offered: Callable[[], bytes], *, root: bytes, minimum: int, events: EventLog
    ) -> None:
        """:raises CloisterError: what is wrong with the file; ``bundle-rollback``: the log names a newer one."""
        self._ledger = ledger
        self._offered = offered
        self._root = root
        self._minimum = minimum
        self._seen = 0  # of files, while the log names none
        self._events = events
        self._opened: tuple[bytes, TrustBundle] | None = None
        self._files: dict[bytes, bytes] = {}  # the two that were in use last
        self._trouble = ""
        self._offer(self.recorded())

    def recorded(self) -> BundleRecord | None:
        """What the log names."""
        with self._ledger.read() as (state, _):
            return state.bundle

    def file(self, digest: bytes) -> bytes:
        """One that was in use lately, as it was signed.

        :raises InvalidInput: ``not-found``.
        """
        found = self._files.get(digest)
        if found is None:
            raise InvalidInput("not-found", "that trust bundle is in use no more")
        return found

    def current(self) -> TrustBundle:
        """The one in use, if it is in force.

        :raises CloisterError: as ``attest.bundle.open_bundle``; ``bundle-unreadable``.
        """
        recorded, now = self.recorded(), self._ledger.now()
        data = self._offered() if recorded is None else recorded.bundle
        opened = self._opened
        if opened is not None and opened[0] == data and opened[1].issued_at <= now <= opened[1].expires_at:
            return opened[1]
        bundle = open_bundle(data, self._root, max(self._minimum, 0 if recorded else self._seen), now)
        before = self._opened
        self._opened, self._seen = (data, bundle), max(self._seen, bundle.version)
        self._files = {bundle.digest: data} | ({} if before is None else {before[1].digest: before[0]})
        return bundle

    def digest(self) -> bytes:
        """Of the one in use; raises as :meth:`current`."""
        return self.current().digest

    def record(self) -> None:
        """Look at the operator's file, and if it is newer than what the log names, write that it is used from now on.

        Of replicas, for the one that leads. A file that is refused is told of once, and changes nothing.

        :raises Unavailable: the log cannot be written, or is not confirmed.
        """
        recorded = self.recorded()
        try:
            data, bundle = self._offer(recorded)
        except CloisterError as error:
            if error.code != self._trouble:
                self._trouble = error.code
                self._events.event("bundle-refused", level="warning", code=error.code, family=error.family)
            return
        self._trouble = ""
        if recorded is not None and bundle.version <= recorded.version:
            return

        def propose(state: State, _vault: Vault, _now: float) -> Proposal | None:
            if state.bundle is not None and state.bundle.version >= bundle.version:
                return None
            return Proposal(BUNDLE, BundleRecord(bundle.version, bundle.digest, data).encode())

        if self._ledger.commit(propose) is not None:
            self._events.event("bundle", version=bundle.version)

    def _offer(self, recorded: BundleRecord | None) -> tuple[bytes, TrustBundle]:
        """The file, which is no step back from what the log names."""
        least = max(self._minimum, recorded.version if recorded else self._seen)
        data = self._offered()
        bundle = open_bundle(data, self._root, least, self._ledger.now())
        if recorded is not None and bundle.version == recorded.version and bundle.digest != recorded.digest:
            raise Refused(
                "bundle-rollback",
                f"the log names another trust bundle of version {bundle.version}",
                hint="Whoever signs bundles gives each its own version.",
            )
        return data, bundle
