"""Whether the trust bundle in use accepts this very replica: one that it does not accept does not lead (13.26.7).

Callers would refuse it, and while it led no other would serve them: after an upgrade, the builds that the newest bundle
does not name any more step aside by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from cloister.adapters.logs import EventLog
from cloister.attest.bundle import TrustBundle
from cloister.base.errors import CloisterError
from cloister.wire.calls import Description

_SAYS_NO: Final = "-not-allowed"  # ends the code of whatever a policy does not allow


@final
class Acceptance:
    """See the module.

    :param own: what this KeyService says of itself at present.
    :param bundle: the one in use.
    :param appraise: this evidence, under a bundle; raises what callers would.
    :ivar accepted: as it was found last.
    """

    def __init__(
        self,
        own: Callable[[], Description],
        bundle: Callable[[], TrustBundle],
        appraise: Callable[[TrustBundle], object],
        *,
        events: EventLog,
    ) -> None:
        self.accepted = True
        self._own = own
        self._bundle = bundle
        self._appraise = appraise
        self._events = events
        self._looked = (b"", b"")

    def look(self) -> None:
        """Judge anew, when evidence or bundle are others than the last time. Never raises: what cannot be judged now,
        because the bundle expired or collateral is away, changes nothing.
        """
        try:
            bundle = self._bundle()
        except CloisterError:
            return
        found = (self._own().epoch, bundle.digest)
        if found == self._looked:
            return
        try:
            self._appraise(bundle)
        except CloisterError as error:
            if not error.code.endswith(_SAYS_NO):
                return
            if self.accepted:
                self._events.event("not-accepted", level="warning", code=error.code, version=bundle.version)
            self.accepted = False
        else:
            self.accepted = True
        self._looked = found
