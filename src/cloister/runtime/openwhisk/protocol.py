"""What OpenWhisk posts and what it wants back, as values. Pure.

Two ways in. An **invocation** over the platform's API carries ``value``::

    {"method": "POST", "path": "/v1/models/<owner>/<name>/infer", "body": "<base64>", "status": true}

and gets ``{"status": 200, "headers": {...}, "body": "<base64>"}``; a body too large for the platform goes by a payload
store, as ``body_ref`` instead of ``body``, both ways. A **raw web action** carries ``__ow_method``, ``__ow_path``,
``__ow_body`` and so on, and gets ``{"statusCode": ..., "headers": ..., "body": ...}``, so that a client sends and gets
its ciphertext as it is. Errors are ``{"error": ...}`` with status 200 ("application error" to the platform: the
container stays); anything but 200 means that the container is unfit.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.adapters.http.answer import Answer
from cloister.adapters.http.head import METHODS
from cloister.base.errors import InvalidInput, Unavailable
from cloister.base.limits import MIB

SENTINEL: Final = b"XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX\n"
INITIALISED_TWICE: Final = "Cannot initialize the action more than once."  # the platform's own tests want these words
NOT_INITIALISED: Final = "The action has not been initialized."
MAX_RESULT: Final = MIB  # docs/reference.md: "The maximum size of a result returned from an action is 1MB"
MAX_RUN: Final = 16 * MIB  # of a JSON request; the platform's own limit is 1 MiB unless its operator raised it
REFERENCE: Final = re.compile(r"[0-9a-f]{32}(\.answer)?")
_MAX_ENVIRONMENT: Final = 256
_BINARY: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Initialise:
    """``/init``. ``environment`` has the action's init parameters, all text."""

    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Run:
    """One activation.

    :param web: whether it came through the web route, and is answered for it.
    :param reference: where the body is, when it did not come along.
    :param want_status: the runtime's status is wanted beside the answer, which saves an activation for it.
    :param deadline: seconds since the epoch, when the platform destroys the container; None if it does not say.
    """

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    reference: str
    web: bool
    want_status: bool
    deadline: float | None
    activation: str


def parse_init(data: bytes) -> Initialise:
    """What ``/init`` was posted; code is ignored, since all of it is in the image.

    :raises InvalidInput: ``init-malformed``.
    """
    value = _object(data, "init-malformed").get("value")
    environment = value.get("env") if isinstance(value, dict) else None
    if environment is None:
        return Initialise({})
    if not isinstance(environment, dict) or len(environment) > _MAX_ENVIRONMENT:
        raise InvalidInput("init-malformed", "`env` is not an object of text")
    if not all(isinstance(text, str) for text in environment.values()):
        raise InvalidInput("init-malformed", "`env` is not an object of text")
    return Initialise(environment)


def parse_run(data: bytes) -> Run:
    """What ``/run`` was posted.

    :raises InvalidInput: ``run-malformed``: the platform's part of it is no JSON object with an object ``value``;
        ``invocation-malformed``: the caller's part is not as the module says. :class:`Run` for web or not.
    """
    outer = _object(data, "run-malformed")
    value = outer.get("value", {})
    if not isinstance(value, dict):
        raise InvalidInput("run-malformed", "`value` is not an object")
    deadline, activation = _deadline(outer.get("deadline")), outer.get("activation_id", "")
    activation = activation[:64] if isinstance(activation, str) else ""
    if "__ow_method" in value:
        return _web(value, deadline, activation)
    reference = _text(value, "body_ref", "")
    if reference and REFERENCE.fullmatch(reference) is None:
        raise _malformed("`body_ref` is no reference")
    if reference and "body" in value:
        raise _malformed("there are both `body` and `body_ref`")
    return Run(
        method=_method(_text(value, "method", "GET")),
        path=_path(_text(value, "path", "/readyz")),
        query="",
        headers=(("content-type", _text(value, "content_type", _BINARY)),),
        body=_decode(_text(value, "body", ""), "`body` is not base64"),
        reference=reference,
        web=False,
        want_status=value.get("status") is True,
        deadline=deadline,
        activation=activation,
    )


def is_web(data: bytes) -> bool:
    """Whether an activation that cannot be read in full came through the web route."""
    try:
        value = _object(data, "run-malformed").get("value")
    except InvalidInput:
        return False
    return isinstance(value, dict) and "__ow_method" in value


def _web(value: dict[str, Any], deadline: float | None, activation: str) -> Run:
    given = value.get("__ow_headers")
    fields = given if isinstance(given, dict) else {}
    headers = tuple((name, text) for name, text in fields.items() if isinstance(text, str) and name != "content-length")
    return Run(
        method=_method(_text(value, "__ow_method", "get").upper()),
        path=_path(_text(value, "__ow_path", "") or "/"),
        query=_text(value, "__ow_query", ""),
        headers=headers,
        body=_decode(_text(value, "__ow_body", ""), "the body did not come as binary: send Content-Type: " + _BINARY),
        reference="",
        web=True,
        want_status=False,
        deadline=deadline,
        activation=activation,
    )


def result(run: Run, answer: Answer, *, status: Mapping[str, object] | None = None, stored: str = "") -> bytes:
    """The result of an activation, from the runtime's answer. Problems become ``error``.

    :param stored: where the answer's body was put instead.
    """
    headers = {name: text for name, text in answer.headers if name not in ("connection", "transfer-encoding")}
    failed = answer.status >= 400
    value: dict[str, object]
    if run.web:
        problem = json.loads(answer.body) if failed and "json" in answer.headers.get("content-type") else None
        body = problem if problem is not None else b64encode(answer.body).decode("ascii")
        if problem is None and not _is_binary(answer.headers.get("content-type")):
            body = answer.body.decode("utf-8", "replace")
        value = {"statusCode": answer.status, "headers": headers, "body": body}
    else:
        value = {"status": answer.status, "headers": headers}
        if stored:
            value["body_ref"] = stored
        else:
            value["body"] = b64encode(answer.body).decode("ascii")
        if status is not None:
            value["runtime"] = status
    return encode({"error": value} if failed else value)


def too_large(size: int, limit: int, *, store: bool) -> Unavailable:
    """An answer that the platform would cut."""
    return Unavailable(
        "result-too-large",
        f"the answer takes {size} bytes, the platform carries {limit}",
        hint="Ask for fewer outputs." if store else "Give gateway and actions a payload store.",
    )


def encode(value: Mapping[str, object]) -> bytes:
    """A JSON object."""
    return json.dumps(value, separators=(",", ":")).encode()


def _is_binary(media_type: str) -> bool:
    kind = media_type.partition(";")[0].strip().lower()
    return not (kind.startswith("text/") or kind == "application/json" or kind.endswith("+json"))


def _object(data: bytes, code: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(code, "the body is not JSON") from error
    if not isinstance(value, dict):
        raise InvalidInput(code, "the body is not a JSON object")
    return value


def _deadline(value: object) -> float | None:
    """The platform sends a number; proxies and its tests send text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e15:
        return value / 1000
    return None


def _text(value: dict[str, Any], name: str, default: str) -> str:
    found = value.get(name, default)
    if not isinstance(found, str):
        raise _malformed(f"`{name}` is not text")
    return found


def _method(name: str) -> str:
    if name not in METHODS:
        raise _malformed("no such method")
    return name


def _path(text: str) -> str:
    if not text.startswith("/") or not text.isascii() or not text.isprintable() or len(text) > 2048 or " " in text:
        raise _malformed("the path is malformed")
    return text


def _decode(text: str, what: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed(what) from error


def _malformed(what: str) -> InvalidInput:
    return InvalidInput("invocation-malformed", f"the invocation cannot be read: {what}")


def parse_status(answer: Answer) -> Mapping[str, object] | None:
    """The runtime's own status, None where it has none to give."""
    if answer.status != 200:
        return None
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
