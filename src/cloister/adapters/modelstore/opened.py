"""Which adapter a store's name means: the one place that knows, for runtimes, gateways and publishers.

http(s)://HOST/PREFIX           read only
s3:// gs:// az:// abfs(s)://    see object_url
anything without ://            a directory
"""

from __future__ import annotations

from pathlib import Path

from cloister.adapters.http.blocking import HttpClient
from cloister.adapters.modelstore.directory import DirectoryStore
from cloister.adapters.modelstore.object_url import SCHEMES, is_object_url, parse
from cloister.adapters.modelstore.patience import Patience
from cloister.adapters.modelstore.port import ModelStore, PublishingStore
from cloister.adapters.modelstore.ranged import HttpStore
from cloister.base.errors import InvalidInput


def open_store(where: str, client: HttpClient, patience: Patience) -> ModelStore:
    """To read from.

    :param client: for HTTP.
    :raises InvalidInput: ``store-url-malformed``, ``store-credentials-malformed``, ``origin-malformed``.
    :raises Unavailable: ``objectstores-missing``.
    """
    if where.startswith(("http://", "https://")):
        return HttpStore(client, where, patience)
    return open_for_publishing(where, patience)


def check(where: str) -> None:
    """Whether it names a store, without opening anything.

    :raises InvalidInput: ``store-url-malformed``.
    """
    if is_object_url(where):
        parse(where)
    elif not where.startswith(("http://", "https://")) and (not where or "://" in where):
        raise InvalidInput(
            "store-url-malformed",
            "a model store is a directory, or a URL of a known scheme",
            hint=f"Known: http, https, {', '.join(SCHEMES)}.",
        )


def open_for_publishing(where: str, patience: Patience) -> PublishingStore:
    """To write to, too.

    :raises InvalidInput: ``store-read-only``; as :func:`open_store`. :raises Unavailable: ``objectstores-missing``.
    """
    check(where)
    if is_object_url(where):
        from cloister.adapters.modelstore.objects import ObjectStore

        return ObjectStore(parse(where), patience)
    if where.startswith(("http://", "https://")):
        raise InvalidInput(
            "store-read-only",
            "nothing can be published to an http(s) store",
            hint="Name what lies behind it: a directory, or s3://, gs:// or az://.",
        )
    return DirectoryStore(Path(where))
