"""``HOST:PORT``, where a service is to listen."""

from __future__ import annotations

from cloister.base.errors import InvalidInput


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port; an IPv6 address stands in brackets.

    :raises InvalidInput: ``argument``.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidInput("argument", f"not HOST:PORT: {text[:100]!r}")
    return host.strip("[]"), int(port)
