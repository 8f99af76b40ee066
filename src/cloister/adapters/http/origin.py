"""Where a call goes: ``http://host:port``, ``https://host`` or ``unix:/path``; and through which proxy."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cloister.base.errors import InvalidInput

_URL: Final = re.compile(r"(https?)://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?/?")
_PROXY: Final = re.compile(r"(?:http://)?(?:([^@/]*)@)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?/?")


@dataclass(frozen=True, slots=True)
class Origin:
    """A server. ``path`` is set for a Unix socket, ``host`` and ``port`` otherwise."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def authority(self) -> str:
        """The Host header."""
        if self.scheme == "unix":
            return "localhost"
        name = f"[{self.host}]" if ":" in self.host else self.host
        usual = 443 if self.scheme == "https" else 80
        return name if self.port == usual else f"{name}:{self.port}"

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.scheme == "unix" else f"{self.scheme}://{self.authority}"


@lru_cache(maxsize=1024)
def parse_origin(text: str) -> Origin:
    """An origin as a configuration or ``HttpServer.address`` writes it.

    :raises InvalidInput: ``origin-malformed``.
    """
    if text.startswith("unix:/"):
        return Origin("unix", "", 0, text.removeprefix("unix:"))
    match = _URL.fullmatch(text)
    if match is None or not 0 < int(match[3] or 1) < 65536:
        raise InvalidInput(
            "origin-malformed",
            f"not an address: {text[:100]!r}",
            hint="Write http://host:port, https://host or unix:/path.",
        )
    port = int(match[3]) if match[3] else 443 if match[1] == "https" else 80
    return Origin(match[1], match[2].strip("[]").lower(), port)


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that opens tunnels (CONNECT), and the hosts that are reached without it.

    :param authorization: value of Proxy-Authorization, or empty.
    """

    host: str
    port: int
    authorization: str = ""
    direct: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"  # not its password

    def serves(self, origin: Origin) -> bool:
        """Whether calls to ``origin`` go through here: HTTPS only, and not to a host in NO_PROXY."""
        if origin.scheme != "https":
            return False
        return not any(rule in {"*", origin.host} or origin.host.endswith("." + rule) for rule in self.direct)

    def connect_request(self, origin: Origin) -> bytes:
        """What asks for a tunnel (RFC 9110, section 9.3.6)."""
        name = f"[{origin.host}]" if ":" in origin.host else origin.host
        target = f"{name}:{origin.port}"
        secret = f"proxy-authorization: {self.authorization}\r\n" if self.authorization else ""
        return f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n{secret}\r\n".encode("latin-1")


def proxy_from(environment: Mapping[str, str]) -> Proxy | None:
    """The proxy that ``HTTPS_PROXY`` names, with ``NO_PROXY``; the trusted services use none.

    :raises InvalidInput: ``proxy-malformed``.
    """
    value = environment.get("https_proxy") or environment.get("HTTPS_PROXY") or ""
    if not value:
        return None
    match = _PROXY.fullmatch(value)
    if match is None or not 0 < int(match[3] or 1) < 65536:
        raise InvalidInput("proxy-malformed", "HTTPS_PROXY is not http://[user:password@]host:port")
    authorization = ""
    if match[1]:
        from urllib.parse import unquote

        authorization = "Basic " + b64encode(unquote(match[1]).encode()).decode("ascii")
    rules = (environment.get("no_proxy") or environment.get("NO_PROXY") or "").lower().split(",")
    direct = tuple(rule.strip().lstrip(".") for rule in rules if rule.strip())
    return Proxy(match[2].strip("[]"), int(match[3] or 80), authorization, direct)
