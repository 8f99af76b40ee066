"""The part of OpenWhisk's REST API that the driver uses (apiv1swagger.json; answers as Actions.scala gives them)."""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.adapters.http.answer import Answer
from cloister.adapters.http.client import AsyncHttpClient
from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.base.limits import MIB

PAGE: Final = 200  # actions in one list; the most the platform gives
MAX_ANSWER: Final = 16 * MIB
CALL_S: Final = 30.0
ATTEMPTS: Final = 4  # of calls that may be repeated
BACKOFF_S: Final = 0.1
THROTTLED_S: Final = 5.0  # the platform counts by the minute, and says nothing of when to come again
FIRST_POLL_S: Final = 0.1
LAST_POLL_S: Final = 2.0
LONGEST_WAIT_S: Final = 60.0  # of a blocking invocation; the controller answers 202 after it
_ID: Final = re.compile(r"[0-9a-f]{32}")
_MAX_TEXT: Final = 300


@dataclass(frozen=True, slots=True)
class Action:
    """An action as a list shows it; ``annotations`` with text values only."""

    name: str
    version: str
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation that is over.

    :param status: ``success``, ``application error``, ``action developer error`` or ``whisk internal error``.
    :param result: what the action gave, or ``{"error": ...}``.
    """

    id: str
    status: str
    result: Mapping[str, Any]


class OpenWhiskApi:
    """One namespace, for one event loop.

    :param auth: ``uuid:key``.
    """

    def __init__(self, client: AsyncHttpClient, api: str, auth: str, namespace: str = "_") -> None:
        self._client = client
        self._origin = api
        self._base = f"/api/v1/namespaces/{namespace}"
        self._headers = (
            ("authorization", "Basic " + b64encode(auth.encode()).decode("ascii")),
            ("content-type", "application/json"),
        )

    async def put(self, name: str, body: Mapping[str, object]) -> None:
        """Create an action, or replace what has this name.

        :raises Refused: ``platform-refused``. :raises InvalidInput: ``platform-limit``.
        :raises Unavailable: ``platform-unavailable``, ``platform-throttled``.
        """
        answer = await self._repeat("PUT", f"/actions/{name}?overwrite=true", body)
        if answer.status != 200:
            raise _error(answer)

    async def delete(self, name: str) -> bool:
        """False when there was none."""
        answer = await self._repeat("DELETE", f"/actions/{name}")
        if answer.status not in (200, 204, 404):
            raise _error(answer)
        return answer.status != 404

    async def actions(self) -> tuple[Action, ...]:
        """All of the namespace."""
        found: list[Action] = []
        while True:
            answer = await self._repeat("GET", f"/actions?limit={PAGE}&skip={len(found)}")
            if answer.status != 200:
                raise _error(answer)
            page = _json(answer)
            if not isinstance(page, list):
                raise _malformed("a list of actions")
            found += [_action(item) for item in page]
            if len(page) < PAGE:
                return tuple(found)

    async def limits(self) -> Mapping[str, object]:
        """Of the namespace; empty for platforms that do not tell."""
        answer = await self._repeat("GET", "/limits")
        if answer.status == 404:
            return {}
        if answer.status != 200:
            raise _error(answer)
        value = _json(answer)
        return value if isinstance(value, dict) else {}

    async def invoke(self, name: str, value: Mapping[str, object], *, deadline_s: float) -> Activation:
        """Invoke an action and wait for the activation's end, however often the platform has to be asked.

        Sent once: whether it was carried out cannot be told when the connection breaks.

        :raises Unavailable: ``activation-lost`` when nobody knows its outcome; ``platform-throttled``;
            ``platform-unavailable``, ``instance-missing``: not carried out. ``deadline-exceeded``.
        :raises InvalidInput: ``body-too-large``. :raises Refused: ``platform-refused``.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        wait = min(LONGEST_WAIT_S, deadline_s)
        target = f"/actions/{name}?blocking=true&result=false&timeout={max(1, round(wait * 1000))}"
        try:
            answer = await self._call("POST", target, value, deadline_s=min(deadline_s, wait + 10.0))
        except Unavailable as error:
            if error.code == "connect-failed":
                raise _away(error) from error
            raise _lost(error.code) from error
        if answer.status == 404:
            raise Unavailable("instance-missing", f"the platform has no action {name}", retry_after=1.0)
        found = _try_json(answer)
        record = found if isinstance(found, dict) else {}
        if "response" in record:
            return _activation(record)
        if answer.status == 202:
            return await self._poll(_id(record), end)
        raise _error(answer)

    async def _poll(self, activation: str, end: float) -> Activation:
        """Ask for an activation until it is there."""
        loop = asyncio.get_running_loop()
        wait = FIRST_POLL_S
        while loop.time() + wait < end:
            await asyncio.sleep(wait)
            wait = min(LAST_POLL_S, wait * 1.5)
            try:
                answer = await self._call("GET", f"/activations/{activation}", None, deadline_s=CALL_S)
            except Unavailable:
                continue
            if answer.status == 200:
                record = _json(answer)
                if isinstance(record, dict) and "response" in record:
                    return _activation(record)
                raise _malformed("an activation")
            if answer.status not in (404, 429, 500, 502, 503):
                raise _error(answer)
        raise Unavailable("deadline-exceeded", f"the activation {activation} did not end in time", retry_after=1.0)

    async def _repeat(self, method: str, target: str, body: Mapping[str, object] | None = None) -> Answer:
        """A call that does no harm when it is carried out twice."""
        wait = BACKOFF_S
        for attempt in range(ATTEMPTS):
            last = attempt == ATTEMPTS - 1
            try:
                answer = await self._call(method, target, body, deadline_s=CALL_S)
            except Unavailable as error:
                if last:
                    raise _away(error) from error
            else:
                # 409 is two writers at a time (also this call's own earlier attempt)
                if last or answer.status not in (409, 500, 502, 503):
                    return answer
            await asyncio.sleep(wait)
            wait *= 2
        raise AssertionError  # pragma: no cover  # the last attempt returns or raises

    async def _call(self, method: str, target: str, body: Mapping[str, object] | None, *, deadline_s: float) -> Answer:
        content = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        return await self._client.request(
            method,
            self._origin,
            self._base + target,
            headers=self._headers,
            content=content,
            deadline_s=deadline_s,
            max_answer=MAX_ANSWER,
            idempotent=method != "POST",
        )


def _action(item: object) -> Action:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise _malformed("an action")
    annotations: dict[str, str] = {}
    given = item.get("annotations")
    for pair in given if isinstance(given, list) else []:
        if isinstance(pair, dict) and isinstance(pair.get("key"), str) and isinstance(pair.get("value"), str):
            annotations[pair["key"]] = pair["value"]
    version = item.get("version")
    return Action(item["name"], version if isinstance(version, str) else "", annotations)


def _activation(record: Mapping[str, Any]) -> Activation:
    response = record["response"]
    if not isinstance(response, dict) or not isinstance(response.get("status"), str):
        raise _malformed("an activation")
    result = response.get("result")
    identifier = record.get("activationId")
    return Activation(
        identifier if isinstance(identifier, str) else "",
        response["status"],
        result if isinstance(result, dict) else {},
    )


def _id(record: Mapping[str, Any]) -> str:
    found = record.get("activationId")
    if not isinstance(found, str) or _ID.fullmatch(found) is None:
        raise _malformed("an activation's id")
    return found


def _try_json(answer: Answer) -> object:
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        return None


def _json(answer: Answer) -> object:
    value = _try_json(answer)
    if value is None:
        raise _malformed("JSON")
    return value


def _malformed(what: str) -> Unavailable:
    return Unavailable("platform-unavailable", f"OpenWhisk answered something that is not {what}", retry_after=1.0)


def _away(error: CloisterError) -> Unavailable:
    return Unavailable("platform-unavailable", f"OpenWhisk does not answer: {error.code}", retry_after=1.0)


def _lost(cause: str) -> Unavailable:
    return Unavailable("activation-lost", f"the activation's outcome is not known: {cause}", retry_after=0.1)


def _error(answer: Answer) -> CloisterError:
    """What the platform's ``{"error": ..., "code": ...}`` means here."""
    value = _try_json(answer)
    given = value.get("error") if isinstance(value, dict) else None
    text = given if isinstance(given, str) else ""
    said = "".join(c if c.isprintable() else " " for c in text[:_MAX_TEXT])
    message = f"OpenWhisk answers {answer.status}" + (f": {said}" if said else "")
    match answer.status:
        case 401 | 403:
            return Refused(
                "platform-refused", message, hint="Check the key in auth_file, and what its namespace may do."
            )
        case 413:
            return InvalidInput(
                "body-too-large", message, hint="Larger bodies need a payload store: [platform.openwhisk] payloads."
            )
        case 400 | 404 | 405 | 406 | 415 | 422:
            return InvalidInput("platform-limit", message, hint="Check [platform.openwhisk] against its limits.")
        case 429:
            after = answer.headers.get("retry-after")
            seconds = float(after) if re.fullmatch(r"[0-9]{1,4}", after) else THROTTLED_S
            return Unavailable(
                "platform-throttled",
                message,
                retry_after=seconds,
                hint="The namespace's invocations a minute or at a time are used up; its operator can raise them.",
            )
        case _:
            return Unavailable("platform-unavailable", message, retry_after=1.0)
