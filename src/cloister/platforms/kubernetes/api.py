"""The Kubernetes API, through the project's own client: its authentication, TLS and connections; objects stay JSON.

Of the client only the generic half is loaded: its models of every resource take 1.2 s and 130 MB, and are as strict as
the release that they were made from, which a cluster need not be.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cloister.base.errors import CloisterError, InvalidInput, Unavailable
from cloister.base.limits import MIB
from cloister.platforms.kubernetes.resources import Expired, Resource, Told, printable
from cloister.platforms.kubernetes.settings import Cluster

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient

Object = dict[str, Any]

PAGE: Final = 500  # objects in one answer; kubectl's own
MAX_ANSWER: Final = 64 * MIB
CALL_S: Final = 15.0
ATTEMPTS: Final = 4
BACKOFF_S: Final = 0.2
MAX_WAIT_S: Final = 5.0  # between two attempts, whatever the API asks for; whoever calls has more patience, or none
RETIRED_S: Final = 600.0  # a client whose credentials were replaced is closed; by then nothing is under way on it
SLACK_S: Final = 10.0  # a watch that did not end so long after the API was to end it is silent for good
_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class _Call:
    """One call. ``verb`` is what a Role has to grant for it."""

    verb: str
    method: str
    resource: Resource
    name: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, object] | None = None
    seconds: float = CALL_S


class KubeApi:
    """One namespace of a cluster, for one event loop. :meth:`open` first, :meth:`close` last."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._client: ApiClient | None = None
        self._retired: list[tuple[float, ApiClient]] = []
        self._renewing = asyncio.Lock()
        self.namespace = cluster.namespace

    async def open(self) -> None:
        """Read who we are, and where the cluster is.

        :raises InvalidInput: ``kubernetes-missing``: the client is not installed; ``kubeconfig-unreadable``.
        """
        if self._client is None:
            self._client = await self._connect()

    async def close(self) -> None:
        """Let go of all connections."""
        clients = [client for _, client in self._retired] + ([self._client] if self._client is not None else [])
        self._client, self._retired = None, []
        for client in clients:
            await client.close()

    # --- verbs ---

    async def get(self, resource: Resource, name: str) -> Object:
        """One object. :raises CloisterError: as :meth:`Told.error`."""
        return await self._repeat(_Call("get", "GET", resource, name)) or {}

    async def patch(self, resource: Resource, name: str, change: Mapping[str, object]) -> Object:
        """A JSON merge patch (RFC 7396); None removes. :raises CloisterError: as :meth:`Told.error`."""
        return await self._repeat(_Call("patch", "PATCH", resource, name, body=change)) or {}

    async def create(self, resource: Resource, value: Mapping[str, object]) -> bool:
        """False when there is one of this name already. :raises CloisterError: as :meth:`Told.error`."""
        return await self._repeat(_Call("create", "POST", resource, body=value), fine="AlreadyExists") is not None

    async def delete(self, resource: Resource, name: str, *, uid: str = "", foreground: bool = False) -> bool:
        """Delete exactly this object; False when there is none. One that is another by now, or just changes, is an
        error: 409 says no more than that, and the next list will.

        :param foreground: the object stays until everything that belongs to it is gone.
        :raises CloisterError: as :meth:`Told.error`.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid:
            options["preconditions"] = {"uid": uid}
        if foreground:
            options["propagationPolicy"] = "Foreground"
        call = _Call("delete", "DELETE", resource, name, body=options)
        return await self._repeat(call, fine="NotFound") is not None

    async def all_of(self, resource: Resource, selector: str) -> tuple[list[Object], str]:
        """All that match, and the version that this was true at. :raises CloisterError: as :meth:`Told.error`."""
        while True:
            try:
                return await self._pages(resource, selector)
            except Expired:  # between two pages
                await asyncio.sleep(jittered(BACKOFF_S))

    async def _pages(self, resource: Resource, selector: str) -> tuple[list[Object], str]:
        query = {"labelSelector": selector, "limit": str(PAGE)}
        found: list[Object] = []
        while True:
            page = await self._repeat(_Call("list", "GET", resource, query=query)) or {}
            items, meta = page.get("items"), page.get("metadata")
            if not isinstance(items, list) or not isinstance(meta, dict):
                raise malformed("a list")
            found += [_object(item) for item in items]
            if not meta.get("continue"):
                return found, str(meta.get("resourceVersion", ""))
            query = {**query, "continue": str(meta["continue"])}

    async def watch(
        self, resource: Resource, selector: str, version: str, seconds: float
    ) -> AsyncGenerator[Object, None]:
        """Events from ``version`` on, as the API sends them, until it ends the watch after ``seconds``. Close it.

        :raises Expired: list anew. :raises CloisterError: as :meth:`Told.error`, or the stream was cut or is silent.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "labelSelector": selector,
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        call = _Call("watch", "GET", resource, query=query, seconds=seconds + SLACK_S)
        async with _translated():
            response = await self._send(call)
            try:
                if response.status != 200:
                    told = self._told(response, await response.content.read(MIB))
                    raise told.error("watch", resource, self.namespace, "")
                while line := await response.content.readline():
                    event = _json(line)
                    if event.get("type") == "ERROR":
                        raise Told.of(_object(event.get("object"))).error("watch", resource, self.namespace, "")
                    yield event
            finally:
                response.close()  # not release: the rest of a stream is not worth reading

    # --- calls ---

    async def _repeat(self, call: _Call, *, fine: str = "") -> Object | None:
        """A call that does no harm when it is carried out twice; None when it fails for a reason that is ``fine``."""
        wait = BACKOFF_S
        for attempt in range(ATTEMPTS):
            try:
                return await self._once(call, fine)
            except Unavailable as error:
                if attempt == ATTEMPTS - 1 or error.code == "platform-full":
                    raise
                await asyncio.sleep(jittered(max(wait, min(error.retry_after or 0.0, MAX_WAIT_S))))
                wait *= 2
        raise AssertionError  # pragma: no cover  # the last attempt returns or raises

    async def _once(self, call: _Call, fine: str) -> Object | None:
        async with _translated():
            response = await self._send(call)
            if response.status == 401:  # a token or a certificate that was renewed since
                response.close()
                await self._renew(self._client)
                response = await self._send(call)
            async with response:
                data = bytearray()
                async for piece in response.content.iter_any():
                    data += piece
                    if len(data) > MAX_ANSWER:
                        raise malformed("short enough")
                if response.status in (200, 201, 202):
                    return _json(bytes(data))
                told = self._told(response, bytes(data))
                if fine and told.reason == fine:
                    return None
                raise told.error(call.verb, call.resource, self.namespace, call.name)

    async def _send(self, call: _Call) -> Any:
        """The client's own answer (aiohttp's), its body not read yet."""
        import aiohttp

        await self.open()
        client = self._client
        assert client is not None  # noqa: S101
        kind = "application/merge-patch+json" if call.method == "PATCH" else "application/json"
        serialized = await client.param_serialize(
            call.method,
            call.resource.path(self.namespace, call.name),
            query_params=list(call.query.items()),
            header_params={"Accept": "application/json", "Content-Type": kind},
            body=call.body,
            auth_settings=["BearerToken"],
        )
        timeout = aiohttp.ClientTimeout(total=call.seconds, connect=CALL_S)
        return (await client.call_api(*serialized, _request_timeout=timeout)).response

    @staticmethod
    def _told(response: Any, body: bytes) -> Told:
        return Told.read(response.status, body, response.headers.get("Retry-After"))

    async def _renew(self, used: ApiClient | None) -> None:
        """Read who we are anew, unless another call has done so. Others may still be on the client in use."""
        async with self._renewing:
            if used is None or self._client is not used:
                return
            self._client = await self._connect()
            now = asyncio.get_running_loop().time()
            self._retired.append((now, used))
            old = [client for since, client in self._retired if now - since > RETIRED_S]
            self._retired = [(since, client) for since, client in self._retired if now - since <= RETIRED_S]
        for client in old:
            await client.close()

    async def _connect(self) -> ApiClient:
        try:
            from kubernetes.aio import config
            from kubernetes.aio.client import ApiClient, Configuration
        except ImportError as error:
            raise InvalidInput(
                "kubernetes-missing",
                "the Kubernetes client is not installed here",
                hint="Install cloister[kubernetes].",
            ) from error
        configuration = Configuration()
        cluster, namespace = self._cluster, ""
        try:
            if not cluster.kubeconfig and (_ACCOUNT / "token").exists() and "KUBERNETES_SERVICE_HOST" in os.environ:
                config.load_incluster_config(configuration)
                namespace = (_ACCOUNT / "namespace").read_text(encoding="ascii").strip()
            else:
                loader = await config.load_kube_config(
                    cluster.kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config"),
                    context=cluster.context or None,
                    client_configuration=configuration,
                    persist_config=False,
                )
                namespace = loader.current_context["context"].get("namespace") or "default"
            client = ApiClient(configuration)
        # The client raises its own ConfigException, and whatever YAML, base64 and ssl raise for files that are none.
        except Exception as error:
            where = cluster.kubeconfig or "the pod's service account, $KUBECONFIG or ~/.kube/config"
            raise InvalidInput(
                "kubeconfig-unreadable",
                f"{where} does not say where the cluster is: {printable(str(error)) or type(error).__name__}",
                hint="kubectl --kubeconfig FILE config view checks one.",
            ) from error
        self.namespace = cluster.namespace or namespace
        client.user_agent = "cloister-gateway"
        return client


class _translated:  # noqa: N801  # reads as a statement
    """What the client and the network raise, as errors of this project."""

    async def __aenter__(self) -> None:
        """Begin."""

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Translate."""
        if error is None or isinstance(error, CloisterError | Expired | asyncio.CancelledError | GeneratorExit):
            return
        import aiohttp

        if isinstance(error, aiohttp.ClientError | OSError | TimeoutError | ValueError | RuntimeError):
            raise Unavailable(
                "platform-unavailable",
                f"the Kubernetes API does not answer: {printable(str(error)) or type(error).__name__}",
                retry_after=1.0,
            ) from error


def jittered(seconds: float) -> float:
    """Between half and all of it: gateways that lost the same API do not come back at the same instant."""
    return seconds * (0.5 + secrets.randbelow(1001) / 2000)


def _json(data: bytes) -> Object:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise malformed("JSON") from error
    return _object(value)


def _object(value: object) -> Object:
    if not isinstance(value, dict):
        raise malformed("an object")
    return value


def malformed(what: str) -> Unavailable:
    """Whoever answered is not the Kubernetes API, or not quite."""
    return Unavailable(
        "platform-unavailable", f"the Kubernetes API answered something that is not {what}", retry_after=1.0
    )
