"""How a replica reaches the others, and how whoever asked the wrong one is answered (spec/protocol.md, 13.21)."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import Final, final

from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.origin import parse_origin
from cloister.base.errors import InvalidInput, Refused, Unavailable
from cloister.base.limits import MAX_CALL, MAX_REPLICA_REPLY, REPLICA_DEADLINE_S
from cloister.keyservice.proposals import no_leader
from cloister.keyservice.replication.replica import Replica
from cloister.keyservice.root import write_new
from cloister.log.replication import REPLICA_ID_LENGTH

EXCHANGE_PATH: Final = "/v1/replica/exchange"
ROLE_PATH: Final = "/v1/replica/role"
IDENTITY_FILE: Final = "replica"
_FORWARDED: Final = "cloister-forwarded"
_MAX_ANSWER: Final = 5 * MAX_CALL  # a page of leaves, entries or a reply; the longest is four calls
_DEADLINE_S: Final = 30.0  # a statement waits for replicas and witnesses
_KEPT: Final = ("content-type", "cache-control", "retry-after")


@final
class HttpPeer:
    """A replica at an address: ``http://host:port``, ``https://host`` or ``unix:/path``."""

    def __init__(self, client: HttpClient, address: str) -> None:
        """:raises InvalidInput: a malformed address."""
        parse_origin(address)
        self._client = client
        self._address = address

    @property
    def origin(self) -> str:
        """Where callers reach it."""
        return self._address

    def exchange(self, request: bytes) -> bytes:
        """See the port. Asking twice changes nothing, so a connection that died is tried again.

        :raises Unavailable: ``replica-away``. :raises CloisterError: what it answers.
        """
        try:
            answer = self._client.request(
                "POST",
                self._address,
                EXCHANGE_PATH,
                content=request,
                max_answer=MAX_REPLICA_REPLY,
                deadline_s=REPLICA_DEADLINE_S,
                idempotent=True,
            )
        except Unavailable as error:
            raise Unavailable(
                "replica-away", f"the replica at {self._address} gives no answer: {error.code}"
            ) from error
        return bytes(answer.checked().body)


@final
class Forwarder:
    """Passes on what callers ask of a replica that does not lead. Belongs to one event loop.

    Calls are sealed to the one that leads, so this learns what any network does.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._client = AsyncHttpClient()

    async def forward(self, request: Request) -> Response:
        """The answer of the one that leads, once: not in circles.

        :raises Unavailable: ``keyservice-no-leader``; ``keyservice-leader-away``: it may have been done, or not.
        """
        leader = self._replica.leader
        if leader is None or request.headers.get(_FORWARDED):
            raise no_leader()
        body = bytes(await request.body(MAX_CALL))
        try:
            answer = await self._client.request(
                request.method,
                leader,
                request.path,
                headers=[(_FORWARDED, "1")],
                content=body,
                max_answer=_MAX_ANSWER,
                deadline_s=_DEADLINE_S,
                idempotent=False,
            )
        except Unavailable as error:
            raise Unavailable(
                "keyservice-leader-away",
                f"the replica of the KeyService that leads gives no answer: {error.code}",
                retry_after=1.0,
                hint="Ask again: another one takes over within seconds, and applies no statement twice.",
            ) from error
        kept = [(name, value) for name, value in answer.headers.items if name.lower() in _KEPT]
        return Response(answer.status, kept, bytes(answer.body))

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()


def replica_identity(state: Path) -> bytes:
    """What this replica is counted by, made when it is not there yet. No secret, and not for copies of the directory.

    :raises Unavailable: ``state-unwritable``, ``state-unreadable``. :raises InvalidInput: ``replica-malformed``.
    """
    path = state / IDENTITY_FILE
    with contextlib.suppress(Refused):  # it is there
        write_new(path, secrets.token_bytes(REPLICA_ID_LENGTH).hex().encode() + b"\n")
    try:
        identity = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise Unavailable("state-unreadable", f"{path} cannot be read: {error.strerror}") from error
    except ValueError:
        identity = b""
    if len(identity) != REPLICA_ID_LENGTH:
        raise InvalidInput(
            "replica-malformed", f"{path} does not hold a replica's name", hint="Remove it; a new one is made."
        )
    return identity
