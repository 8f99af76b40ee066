"""How a KeyService reaches a witness: the port, and C2SP tlog-witness over HTTP (spec/protocol.md, 13.8)."""

from __future__ import annotations

import re
from typing import Final, Protocol

from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.http.origin import parse_origin
from cloister.base.errors import Refused, Tampered, Unavailable
from cloister.base.limits import MAX_CHECKPOINT, WITNESS_DEADLINE_S

_SIZE: Final = re.compile(rb"(0|[1-9][0-9]{0,18})\n")


class WitnessPort(Protocol):
    """Port: one witness. Real: :class:`HttpWitness`; in the process: ``cloister.witness.service.Witness``."""

    def add_checkpoint(self, body: bytes) -> bytes | int:
        """Signature lines, unverified; or the size that the witness has, when it is another than the request says.

        :raises CloisterError: it does not co-sign, or cannot be reached.
        """

    def follow_log_keys(self, body: bytes) -> bytes | int:
        """As :meth:`add_checkpoint`, after the log's key was retired (clause 13.27.7).

        :raises CloisterError: it does not co-sign, cannot be reached, or does not know this request, as C2SP's own
            witnesses: whoever operates those tells them the key.
        """

    def newest(self, keyservice: bytes) -> bytes | None:
        """The checkpoint that it co-signed last, with its co-signature, unverified; empty before the first; ``None``
        when it does not tell, as C2SP's own witnesses do not (clause 13.8.1).

        :raises CloisterError: it cannot be reached.
        """


class HttpWitness:
    """A witness at an address: ``http://host:port``, ``https://host`` or ``unix:/path``."""

    def __init__(self, client: HttpClient, address: str) -> None:
        """:raises InvalidInput: a malformed address."""
        parse_origin(address)
        self._client = client
        self._address = address

    def add_checkpoint(self, body: bytes) -> bytes | int:
        """See the port. Asking twice changes nothing, so a connection that died is tried again.

        :raises Refused: ``witness-refused``: 403, 404. :raises Tampered: ``log-fork``: 422.
        :raises Unavailable: ``witness-away``: anything else, or no answer in time.
        """
        return self._ask("/add-checkpoint", body)

    def follow_log_keys(self, body: bytes) -> bytes | int:
        """See the port; raises as :meth:`add_checkpoint`."""
        return self._ask("/follow-log-keys", body)

    def _ask(self, path: str, body: bytes) -> bytes | int:
        try:
            answer = self._client.request(
                "POST",
                self._address,
                path,
                content=body,
                max_answer=MAX_CHECKPOINT,
                deadline_s=WITNESS_DEADLINE_S,
                idempotent=True,
            )
        except Unavailable as error:
            raise Unavailable(
                "witness-away", f"the witness at {self._address} gives no answer: {error.code}"
            ) from error
        content = bytes(answer.body)
        match answer.status:
            case 200:
                return content
            case 409 if found := _SIZE.fullmatch(content):
                return int(found[1])
            case 422:
                raise Tampered("log-fork", f"the witness at {self._address} knows another history of the log")
            case 403 | 404:
                raise Refused(
                    "witness-refused",
                    f"the witness at {self._address} does not know this log, or not this key",
                    hint="Its operator adds it with `cloister witness add --log-key`; one of another make must be told "
                    "of the new log key after `cloister keyservice rotate-root`.",
                )
            case status:
                raise Unavailable("witness-away", f"the witness at {self._address} answers with status {status}")

    def newest(self, keyservice: bytes) -> bytes | None:
        """See the port.

        :raises Unavailable: ``witness-away``: anything but 200 and 404, or no answer in time.
        """
        path = f"/checkpoint/{keyservice.hex()}"
        try:
            answer = self._client.request(
                "GET", self._address, path, max_answer=MAX_CHECKPOINT, deadline_s=WITNESS_DEADLINE_S
            )
        except Unavailable as error:
            raise Unavailable(
                "witness-away", f"the witness at {self._address} gives no answer: {error.code}"
            ) from error
        if answer.status not in (200, 404):
            raise Unavailable("witness-away", f"the witness at {self._address} answers with status {answer.status}")
        return bytes(answer.body) if answer.status == 200 else None
