"""Addresses and proxies."""

from __future__ import annotations

import pytest

from cloister.adapters.http.origin import Origin, parse_origin, proxy_from
from cloister.base.errors import InvalidInput


def test_addresses() -> None:
    assert parse_origin("http://127.0.0.1:8080") == Origin("http", "127.0.0.1", 8080)
    assert parse_origin("https://Host.example/").authority == "host.example"
    assert parse_origin("http://[::1]:80").authority == "[::1]"
    assert str(parse_origin("unix:/run/x.sock")) == "unix:/run/x.sock"
    for bad in (
        "",
        "host:1",
        "http://",
        "http://h:0",
        "http://h:99999",
        "http://h/path",
        "http://u@h",
        "unix:x",
        "http://h\r\n",
    ):
        with pytest.raises(InvalidInput, match="origin-malformed"):
            parse_origin(bad)


def test_proxies() -> None:
    assert proxy_from({}) is None
    proxy = proxy_from({"HTTPS_PROXY": "http://u:p%40@proxy:3128", "NO_PROXY": "internal, .example.org"})
    assert proxy is not None
    assert (proxy.host, proxy.port, proxy.authorization) == ("proxy", 3128, "Basic dTpwQA==")
    assert "dTpw" not in repr(proxy)
    assert proxy.serves(parse_origin("https://a.b"))
    for direct in ("https://internal", "https://x.example.org", "http://a.b", "unix:/x"):
        assert not proxy.serves(parse_origin(direct))
    assert proxy.connect_request(parse_origin("https://a.b")).startswith(
        b"CONNECT a.b:443 HTTP/1.1\r\nhost: a.b:443\r\n"
    )
    with pytest.raises(InvalidInput, match="proxy-malformed"):
        proxy_from({"https_proxy": "socks5://x:1"})
