"""How the people of ``cloister.testing.permissions`` reach a KeyService, and a network that does what it likes."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from typing import Any, Final, final

from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.keyservice import (
    AttestedKeyService,
    HeadMemory,
    HttpTransport,
    KeyServiceLink,
    Transport,
    VolatileHeads,
)
from cloister.attest.bundle import TrustBundle
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, Refused, Unavailable
from cloister.base.secret import SecretBytes
from cloister.log.receipt import check_statement_receipt
from cloister.runtime.keys import RuntimeSession
from cloister.runtime.stages import Timings
from cloister.testing.collateral import NoCollateral
from cloister.testing.permissions import UnsaidError
from cloister.testing.tee import SimulatedTee
from cloister.wire import calls
from cloister.wire.provisioning import Release, ReleaseRequest

_CONFIRM_ATTEMPTS: Final = 10
_CONFIRM_PAUSE_S: Final = 0.1
_UNWRITTEN: Final = frozenset({"keyservice-unconfirmed", "keyservice-superseded", "keyservice-busy"})


@final
class LinkCaller:
    """``Says`` as clients and runtimes do it: the KeyService is believed first, receipts and heads are checked.

    :param heads: what was seen before; shared, so that an older head than anybody's is noticed.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        bundle: TrustBundle,
        clock: Clock,
        tee: SimulatedTee,
        heads: HeadMemory | None = None,
    ) -> None:
        self._link = KeyServiceLink(
            transport, bundle=lambda: bundle, collateral=NoCollateral(), clock=clock, heads=heads or VolatileHeads()
        )
        self._pause = threading.Event()
        self._session = RuntimeSession(self._link, tee.attester(), tee.configuration, clock=clock)

    def say(self, statement: bytes, keys: tuple[SecretBytes, ...]) -> dict[str, Any]:
        """See the port. What is written and not confirmed is said again, to the byte, as clients do."""
        try:
            attested = self._link.settled()
        except Unavailable as error:
            raise UnsaidError from error
        # Of replicas a statement may have reached the one before the one that says that it did not write it.
        once = not attested.appraisal.configuration.values.get("replicas")
        description = attested.description
        result = self._until_confirmed(statement, keys, once=once)
        receipt = check_statement_receipt(result, statement, description.log_keys)
        self._link.saw(description.keyservice, receipt.head)
        return result

    def _until_confirmed(self, statement: bytes, keys: tuple[SecretBytes, ...], *, once: bool) -> dict[str, Any]:
        sent: list[bytes] = []

        def body(_: AttestedKeyService) -> bytes:
            sent.append(statement)
            return statement

        for left in reversed(range(_CONFIRM_ATTEMPTS)):
            try:
                result: dict[str, Any] = self._link.call(calls.STATEMENT, body, keys)
            except Unavailable as error:
                first = left == _CONFIRM_ATTEMPTS - 1
                if not sent or (once and first and _unwritten(error)):
                    raise UnsaidError from error
                if not left or "written" not in error.details:
                    raise
            except Refused as error:
                if once:
                    raise
                # Perhaps of the second time that it was said, or by one that is not believed: the first may count.
                raise Unavailable("keyservice-unavailable", f"refused, perhaps too late: {error.code}") from error
            else:
                return result
            self._pause.wait(_CONFIRM_PAUSE_S)
        raise AssertionError

    def ask(self, query: bytes) -> dict[str, Any]:
        """See the port."""
        result: dict[str, Any] = self._link.call(calls.QUERY, lambda _: query)
        return result

    def release(self, request: ReleaseRequest) -> Release:
        """See the port."""
        return self._session.release(request, Timings())


def _unwritten(error: Unavailable) -> bool:
    """What a KeyService that was asked once says of a statement that it did not write, and what the network does."""
    if getattr(error.__cause__, "code", "") == "connect-failed":
        return True
    return error.code in _UNWRITTEN and "written" not in error.details


@final
class HostileNetwork:
    """``Transport``: requests and answers are lost and late; requests arrive twice, in any order.

    :param odds: one exchange in so many is lost before it arrives, one after; one in so many is repeated.
    :param most_s: by which a repetition is late, and an exchange is delayed.
    """

    def __init__(self, transport: Transport, *, odds: int = 12, most_s: float = 0.05) -> None:
        self._transport = transport
        self._odds = odds
        self._most = most_s
        self._pause = threading.Event()

    def get(self, path: str, *, limit: int) -> bytes:
        """See the port."""
        return self._pass(lambda: self._transport.get(path, limit=limit))

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        """See the port."""
        return self._pass(lambda: self._transport.post(path, body, limit=limit))

    def _pass(self, exchange: Callable[[], bytes]) -> bytes:
        chance = secrets.randbelow(self._odds)
        self._wait()
        if chance == 0:
            raise _lost()
        if chance in (1, 2):
            threading.Thread(target=self._again, args=(exchange,), daemon=True).start()
        if chance == 2:
            self._wait()  # the repetition may be first
        answer = exchange()
        if chance == 3:
            raise _lost()
        self._wait()
        return answer

    def _again(self, exchange: Callable[[], bytes]) -> None:
        self._wait()
        try:
            exchange()
        except CloisterError:
            return

    def _wait(self) -> None:
        self._pause.wait(self._most * secrets.randbelow(1000) / 1000)


def _lost() -> Unavailable:
    return Unavailable("keyservice-unreachable", "the network lost it", retry_after=1.0)


@final
class OverHttp:
    """``Transport`` to wherever it answers now.

    :param origins: asked at each exchange: an address, or several separated by commas.
    """

    def __init__(self, client: HttpClient, origins: Callable[[], str]) -> None:
        self._client = client
        self._origins = origins
        self._transport = HttpTransport(client, origins())
        self._at = origins()

    def get(self, path: str, *, limit: int) -> bytes:
        """See the port."""
        return self._now().get(path, limit=limit)

    def post(self, path: str, body: bytes, *, limit: int) -> bytes:
        """See the port."""
        return self._now().post(path, body, limit=limit)

    def _now(self) -> HttpTransport:
        if self._at != self._origins():
            self._at = self._origins()
            self._transport = HttpTransport(self._client, self._at)
        return self._transport
