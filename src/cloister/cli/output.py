"""What the command prints: one JSON object with ``--json``, otherwise text for people, errors always on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from cloister.base.errors import CloisterError


class Output:
    """Where a sub-command sends its result."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str = "") -> None:
        """A line for people; nothing with ``--json``."""
        if not self.as_json:
            print(text, flush=True)

    def result(self, value: Mapping[str, object], text: str | None = None) -> None:
        """The result: the mapping as JSON, or ``text`` (by default ``name: value`` lines) for people."""
        if self.as_json:
            print(json.dumps(value, indent=2, sort_keys=False), flush=True)
        elif text is not None:
            print(text, flush=True)
        else:
            for name, item in value.items():
                print(f"{name}: {item}", flush=True)


def show_error(error: CloisterError, *, as_json: bool) -> None:
    """One paragraph on stderr: what was wrong, where, the stable code, what to do."""
    if as_json:
        body: dict[str, object] = {"error": error.code, "family": error.family, "message": error.message}
        if error.hint:
            body["hint"] = error.hint
        if error.details:
            body["details"] = error.details
        print(json.dumps(body), file=sys.stderr)
        return
    print(f"cloister: {error.message} [{error.code}]", file=sys.stderr)
    for name, value in error.details.items():
        print(f"  {name}: {value}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)


def as_json(value: object) -> object:
    """The same with bytes in hexadecimal, for ``--json``."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return value
