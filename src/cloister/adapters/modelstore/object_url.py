"""URLs of object stores: what ``s3://``, ``gs://`` and ``az://`` say, as the settings that obstore takes. No I/O.

    s3://BUCKET/PREFIX?region=eu-central-1&endpoint=https://minio.example:9000
    gs://BUCKET/PREFIX
    az://CONTAINER/PREFIX?account=NAME        abfss://CONTAINER@NAME.dfs.core.windows.net/PREFIX

Credentials are never part of a URL, which is logged, listed and passed around; they come from the environment, a file
or the platform. What the query does not say, the environment may (AWS_REGION, AZURE_STORAGE_ACCOUNT_NAME, ...).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from cloister.base.errors import InvalidInput

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}[a-z0-9]")
_PREFIX: Final = re.compile(r"[A-Za-z0-9._=+@-]+(/[A-Za-z0-9._=+@-]+)*")
_ENDPOINT: Final = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[A-Za-z0-9._/-]*)?")
_ACCOUNT_HOST: Final = re.compile(r"([a-z0-9]{3,24})\.(?:dfs|blob)\.core\.windows\.net")
_SECRETS: Final = ("key", "secret", "token", "sig", "sas", "password")


class Kind(Enum):
    """Whose interface a store speaks."""

    S3 = "s3"
    GCS = "gs"
    AZURE = "az"


SCHEMES: Final[Mapping[str, Kind]] = {
    "s3": Kind.S3,
    "gs": Kind.GCS,
    "az": Kind.AZURE,
    "abfs": Kind.AZURE,
    "abfss": Kind.AZURE,
}
# Option of the URL, to the setting of obstore. `anonymous` and `virtual_hosted` are true or false.
_OPTIONS: Final[Mapping[Kind, Mapping[str, str]]] = {
    Kind.S3: {
        "region": "region",
        "endpoint": "endpoint",
        "anonymous": "skip_signature",
        "virtual_hosted": "virtual_hosted_style_request",
        "credentials": "",
    },
    Kind.GCS: {"endpoint": "base_url", "anonymous": "skip_signature", "credentials": "application_credentials"},
    Kind.AZURE: {"account": "account_name", "endpoint": "endpoint", "anonymous": "skip_signature"},
}
_FLAGS: Final = frozenset({"anonymous", "virtual_hosted"})


@dataclass(frozen=True, slots=True)
class ObjectUrl:
    """Where an object store is.

    :param container: the bucket, or Azure's container.
    :param settings: of obstore, none of them secret.
    :param allow_http: the endpoint is without TLS, as its URL says.
    :param credentials: an AWS credentials file, for S3.
    :param ca: a file with the authority that certified the endpoint.
    """

    kind: Kind
    container: str
    prefix: str
    settings: Mapping[str, str | bool]
    allow_http: bool
    credentials: Path | None
    ca: Path | None

    @property
    def anonymous(self) -> bool:
        """Whether requests carry no credentials."""
        return bool(self.settings.get("skip_signature"))


def is_object_url(text: str) -> bool:
    """Whether it begins like one."""
    return text.partition("://")[0] in SCHEMES and "://" in text


def parse(text: str) -> ObjectUrl:
    """:raises InvalidInput: ``store-url-malformed``, saying which part is, never repeating a value."""
    try:
        parts = urlsplit(text)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise _malformed("it is no URL") from error
    kind = SCHEMES.get(parts.scheme)
    if kind is None:
        raise _malformed(f"the scheme is one of {', '.join(SCHEMES)}")
    if parts.fragment or ":" in parts.netloc or "%" in parts.netloc:
        raise _malformed("it has a fragment, a port or a password")
    container, at, host = parts.netloc.partition("@")
    settings: dict[str, str | bool] = {}
    if at:
        account = _ACCOUNT_HOST.fullmatch(host)
        if kind is not Kind.AZURE or account is None:
            raise _malformed("only abfs(s)://CONTAINER@ACCOUNT.dfs.core.windows.net has an @")
        settings["account_name"] = account[1]
    if not _BUCKET.fullmatch(container):
        raise _malformed("the bucket or container is not named as buckets are")
    prefix = unquote(parts.path).strip("/")
    if prefix and (not _PREFIX.fullmatch(prefix) or ".." in prefix):
        raise _malformed("the prefix has other characters than A-Z a-z 0-9 . _ = + @ - and /")
    credentials, ca = _options(kind, query, settings)
    allow_http = str(settings.get("base_url") or settings.get("endpoint") or "").startswith("http://")
    url = ObjectUrl(kind, container, prefix, settings, allow_http, credentials, ca)
    if allow_http and kind is not Kind.S3 and not url.anonymous and not _loopback(settings):
        raise _malformed("without TLS, tokens could be read on the way: the endpoint must be https")
    return url


def _options(
    kind: Kind, query: list[tuple[str, str]], settings: dict[str, str | bool]
) -> tuple[Path | None, Path | None]:
    known = _OPTIONS[kind]
    files: dict[str, Path] = {}
    for name, value in query:
        if name == "ca" or (name == "credentials" and kind is Kind.S3):
            files[name] = Path(value)
        elif name in known and known[name] not in settings:
            settings[known[name]] = _value(name, value)
        elif any(word in name.lower() for word in _SECRETS):
            raise _malformed("a URL is no place for credentials; they come from the environment or a file")
        else:
            shown = re.sub(r"[^a-z_]", "?", name.lower())[:32]
            raise _malformed(f"the option {shown!r} is unknown or there twice; known: {', '.join((*known, 'ca'))}")
    return files.get("credentials"), files.get("ca")


def _value(name: str, value: str) -> str | bool:
    if name in _FLAGS:
        if value not in ("true", "false"):
            raise _malformed(f"{name} is true or false")
        return value == "true"
    if name == "endpoint" and not _ENDPOINT.fullmatch(value):
        raise _malformed("the endpoint is http(s)://host[:port][/path]")
    if not value or len(value) > 1024 or not value.isprintable():
        raise _malformed(f"{name} is empty or no text")
    return value


def _loopback(settings: Mapping[str, str | bool]) -> bool:
    host = urlsplit(str(settings.get("base_url") or settings.get("endpoint"))).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _malformed(what: str) -> InvalidInput:
    return InvalidInput(
        "store-url-malformed",
        f"the object store's URL is not understood: {what}",
        hint="docs/how-to/object-stores.md has the form for each store.",
    )
