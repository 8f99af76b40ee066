"""How OpenWhisk's controller wraps HTTP for raw web actions, and unwraps their results (WebActions.scala)."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, Final

from cloister.adapters.http.message import Response

_TEXT_TYPES: Final = ("text/", "application/xml")
_JSON: Final = (("content-type", "application/json"),)


def web_arguments(
    method: str, path: str, query: str, headers: tuple[tuple[str, str], ...], body: bytes
) -> dict[str, Any]:
    """What a raw web action gets: binary bodies and JSON as base64, text as text, nothing as an empty string."""
    fields = dict(headers)
    kind = fields.get("content-type", "application/octet-stream")
    text = kind.startswith(_TEXT_TYPES) or (kind.endswith("+json") and kind != "application/json")
    return {
        "__ow_method": method.lower(),
        "__ow_headers": fields,
        "__ow_path": path,
        "__ow_query": query,
        "__ow_body": body.decode("utf-8", "replace") if text else b64encode(body).decode("ascii"),
    }


def web_answer(response: Mapping[str, Any]) -> Response:
    """What the client gets, as ``resultAsHttp`` makes it; ``error`` is unwrapped for application errors."""
    if response["status"] not in ("success", "application error"):
        return _error("There was an error processing your request.")
    result = response["result"] if response["status"] == "success" else response["result"]["error"]
    if not isinstance(result, dict):
        return _error("Response is not valid 'message/http'.")
    status = result.get("statusCode")
    headers = tuple((name.lower(), str(value)) for name, value in result.get("headers", {}).items())
    body = result.get("body")
    if body is None or body == "":
        return Response(status or 204, tuple(pair for pair in headers if pair[0] != "content-type"))
    kind = dict(headers).get("content-type", "text/html" if isinstance(body, str) else "application/json")
    family = kind == "application/json" or kind.endswith("+json")
    rest = tuple(pair for pair in headers if pair[0] != "content-type")
    if not isinstance(body, str):
        if not family:
            return _error("Response type in header did not match generated content type.")
        return Response(status or 200, (*rest, ("content-type", kind)), json.dumps(body).encode())
    if family or kind.startswith(_TEXT_TYPES):
        return Response(status or 200, (*rest, ("content-type", kind)), body.encode())
    try:
        return Response(status or 200, (*rest, ("content-type", kind)), b64decode(body, validate=True))
    except ValueError:
        return _error("Response type in header did not match generated content type.")


def _error(message: str) -> Response:
    return Response(400, _JSON, json.dumps({"error": message, "code": "0"}).encode())
