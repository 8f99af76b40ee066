"""TLS for a server of ours. It is welcome and changes nothing: bodies are sealed end to end (ARCHITECTURE.md)."""

from __future__ import annotations

import ssl
from pathlib import Path

from cloister.base.errors import InvalidInput


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and newer, HTTP/1.1 only.

    :param certificate: PEM, with the chain behind it. :param key: PEM, not encrypted.
    :raises InvalidInput: ``tls-certificate``.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            "tls-certificate",
            f"{certificate} and {key} are no certificate and its key: {getattr(error, 'strerror', None) or error}",
            hint="Both are PEM files; the key is not encrypted.",
        ) from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # and nobody is asked on a terminal
