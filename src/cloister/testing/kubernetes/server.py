"""The API server: authentication, roles, verbs, lists in pages, watches with bookmarks, and faults on request."""

from __future__ import annotations

import asyncio
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from cloister.adapters.http.limits import ServerLimits
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.platforms.kubernetes.rbac import Rule
from cloister.testing.kubernetes.store import Change, Object, Refusal, Store, matches, merge
from cloister.testing.logs import MemoryLog

if TYPE_CHECKING:
    import ssl

USER: Final = "system:serviceaccount:{}:cloister-gateway"
_JSON: Final = (("content-type", "application/json"),)
_MERGE: Final = "application/merge-patch+json"
_LABEL: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_PATH: Final = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))/namespaces/(?P<namespace>[^/]+)"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?"
)
_KINDS: Final = {
    ("", "v1", "pods"): "Pod",
    ("apps", "v1", "deployments"): "Deployment",
    ("serving.knative.dev", "v1", "services"): "Service",
}


@dataclass(slots=True)
class Fault:
    """What happens to the next ``times`` calls with this verb on this resource (``deployments/scale``), not an answer.

    :param code: answered with a Status; ``after`` is its Retry-After. :param slow_s: it comes later.
    :param cut: the connection ends without an answer; with ``late`` after the call was carried out.
    :param silent: a watch begins, and then never says anything, nor ends. :param body: answered as it is.
    """

    verb: str
    resource: str
    times: int = 1
    code: int = 0
    reason: str = "InternalError"
    message: str = "a fault"
    after: int | None = None
    cut: bool = False
    late: bool = False
    slow_s: float = 0.0
    silent: bool = False
    body: bytes | None = None


class ApiServer:
    """See the module.

    :param role: what its one user may do; None for everything.
    :ivar asked: (API group, resource, verb) of all that was asked, as a Role names it.
    :ivar bookmark_s: between two bookmarks of a watch. :ivar muted: watches are told of nothing.
    :ivar tls: from the next :meth:`up` on.
    """

    def __init__(self, store: Store, *, token: str, role: Iterable[Rule] | None = None) -> None:
        self.store = store
        self.token = token
        self.role = None if role is None else tuple(role)
        self.asked: list[tuple[str, str, str]] = []
        self.faults: list[Fault] = []
        self.bookmark_s = 0.2
        self.watching = 0
        self.muted = False
        self.log = MemoryLog()
        self.tls: ssl.SSLContext | None = None
        self._server: HttpServer | None = None
        self._port = 0
        self._lost: set[int] = set()

    @property
    def address(self) -> str:
        """Origin of the API, the same after every restart."""
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self._port}"

    async def up(self) -> None:
        """Listen."""
        self._server = HttpServer(self, log=self.log, limits=ServerLimits(idle_s=600.0))
        await self._server.start(port=self._port, tls=self.tls)
        self._port = int(self._server.address.rpartition(":")[2])

    async def down(self) -> None:
        """Gone, with every connection and watch."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.close()

    def lose(self, version: int) -> None:
        """Watches are not told of this change."""
        self._lost.add(version)

    async def __call__(self, request: Request) -> Response:
        """One call."""
        try:
            return await self._answer(request)
        except Refusal as refusal:
            return _status(refusal)

    async def _answer(self, request: Request) -> Response:
        found = _PATH.fullmatch(request.path)
        if found is None:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        if request.headers.get("authorization") not in (f"Bearer {self.token}", f"bearer {self.token}"):
            raise Refusal(401, "Unauthorized", "Unauthorized")
        query = dict(parse_qsl(request.query))
        group, plural, name, sub = found["group"] or "", found["plural"], found["name"] or "", found["sub"] or ""
        verb = _verb(request.method, name, query)
        resource = f"{plural}/{sub}" if sub else plural
        self.asked.append((group, resource, verb))
        fault = await self._strike(verb, resource)
        if fault is not None and fault.body is not None:
            return Response(fault.code or 200, _JSON, fault.body)
        self._permit(group, resource, verb, found["namespace"])
        kind = _KINDS.get((group, found["core"] or found["version"], plural))
        if kind is None or sub not in ("", "scale"):
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        if verb == "watch":
            silent = fault is not None and fault.silent
            return Response(200, _JSON, self._watch(plural, kind, query, silent=silent))
        body = json.loads(bytes(await request.body()) or b"{}")
        media = request.headers.get("content-type").partition(";")[0]
        value, code = self._carry_out(verb, plural, kind, name, sub, query, body, media)
        if fault is not None and fault.cut:
            raise asyncio.CancelledError
        return Response(code, _JSON, json.dumps(value).encode())

    async def _strike(self, verb: str, resource: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and (fault.verb, fault.resource) == (verb, resource):
                fault.times -= 1
                if fault.slow_s:
                    await asyncio.sleep(fault.slow_s)
                if fault.body is None and fault.code:
                    details = {"retryAfterSeconds": fault.after} if fault.after is not None else None
                    raise Refusal(fault.code, fault.reason, fault.message, details=details)
                if fault.cut and not fault.late:
                    raise asyncio.CancelledError  # ends the connection without a word
                return fault
        return None

    def _permit(self, group: str, resource: str, verb: str, namespace: str) -> None:
        allowed = self.role is None or any(
            (rule.group, rule.resource) == (group, resource) and verb in rule.verbs for rule in self.role
        )
        if not allowed or namespace != self.store.namespace:
            user = USER.format(self.store.namespace)
            where = f'in API group "{group}" in the namespace "{namespace}"'
            words = f'{resource} is forbidden: User "{user}" cannot {verb} resource "{resource}" {where}'
            raise Refusal(403, "Forbidden", words)

    def _carry_out(  # noqa: PLR0917  # the parts of one request line
        self,
        verb: str,
        plural: str,
        kind: str,
        name: str,
        sub: str,
        query: Mapping[str, str],
        body: Any,
        media: str,
    ) -> tuple[Object, int]:
        match verb:
            case "get":
                return self._shown(plural, name, sub), 200
            case "list":
                return self._page(plural, kind, query), 200
            case "create":
                _check(body)
                return self.store.create(plural, body), 201
            case "patch":
                if media != _MERGE:
                    raise Refusal(415, "UnsupportedMediaType", f"the body of the request was in {media}")
                return self._patch(plural, name, sub, body), 200
            case "delete":
                return self._delete(plural, name, body), 200
            case _:
                raise Refusal(405, "MethodNotAllowed", f"the server does not allow {verb}")

    # --- objects ---

    def _shown(self, plural: str, name: str, sub: str) -> Object:
        one = self.store.get(plural, name)
        if not sub:
            return one
        meta = {
            key: one["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        }
        labels = one["spec"]["selector"]["matchLabels"]
        replicas = one["spec"].get("replicas", 1)
        return {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": meta,
            "spec": {"replicas": replicas} if replicas else {},  # omitempty
            "status": {
                "replicas": one.get("status", {}).get("replicas", 0),
                "selector": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
            },
        }

    def _patch(self, plural: str, name: str, sub: str, patch: Any) -> Object:
        def edit(one: Object) -> None:
            if sub == "scale":
                replicas = patch.get("spec", {}).get("replicas")
                if not isinstance(replicas, int) or replicas < 0:
                    raise Refusal(422, "Invalid", f'Scale.autoscaling "{name}" is invalid: spec.replicas')
                one["spec"]["replicas"] = replicas
                return
            given = patch.get("metadata", {})
            for key in ("uid", "resourceVersion"):
                if key in given and given[key] != one["metadata"][key]:
                    words = f"Precondition failed: {key} in precondition: {given[key]}, in object meta: differs"
                    raise Refusal(409, "Conflict", f'Operation cannot be fulfilled on {plural} "{name}": {words}')
            merged = merge(one, patch)
            merged["metadata"]["resourceVersion"] = one["metadata"]["resourceVersion"]
            _check(merged)
            one.clear()
            one.update(merged)

        self.store.change(plural, name, edit)
        return self._shown(plural, name, sub)

    def _delete(self, plural: str, name: str, options: Any) -> Object:
        one = self.store.get(plural, name)
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted is not None and wanted != one["metadata"]["uid"]:
            words = (
                f"the UID in the precondition ({wanted}) does not match the UID in record ({one['metadata']['uid']})"
            )
            raise Refusal(409, "Conflict", f'Operation cannot be fulfilled on {plural} "{name}": {words}')
        foreground = options.get("propagationPolicy") == "Foreground"
        if plural == "pods":
            grace = options.get("gracePeriodSeconds", one["spec"].get("terminationGracePeriodSeconds", 30))
            return self.store.change(plural, name, lambda pod: leave(pod, grace, self.store.now()))
        if foreground:
            return self.store.change(plural, name, lambda owner: leave(owner, 0, self.store.now()))
        return self.store.remove(plural, name)

    def _page(self, plural: str, kind: str, query: Mapping[str, str]) -> Object:
        start, version = "", self.store.version
        if "continue" in query:
            mark = json.loads(urlsafe_b64decode(query["continue"]))
            start, version = mark["start"], mark["rv"]
            if version <= self.store.oldest:
                raise Refusal(410, "Expired", "The provided continue parameter is too old to display a consistent list")
        items = [
            one
            for one in self.store.all_of(plural)
            if matches(query.get("labelSelector", ""), one) and one["metadata"]["name"] > start
        ]
        limit = int(query.get("limit", "0")) or len(items)
        meta: Object = {"resourceVersion": str(version)}
        if len(items) > limit:
            mark = {"v": "meta.k8s.io/v1", "rv": version, "start": items[limit - 1]["metadata"]["name"]}
            meta["continue"] = urlsafe_b64encode(json.dumps(mark).encode()).decode()
            meta["remainingItemCount"] = len(items) - limit
        for one in items:  # the items of a list do not repeat what they are
            one.pop("kind", None)
            one.pop("apiVersion", None)
        return {"kind": f"{kind}List", "apiVersion": "v1", "metadata": meta, "items": items[:limit]}

    # --- watches ---

    async def _watch(self, plural: str, kind: str, query: Mapping[str, str], *, silent: bool) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        self.watching += 1
        try:
            if silent:
                await asyncio.Event().wait()
            seen = int(query.get("resourceVersion") or self.store.version)
            end = loop.time() + float(query.get("timeoutSeconds", "1800"))
            selector, marks = query.get("labelSelector", ""), query.get("allowWatchBookmarks") == "true"
            while loop.time() < end:
                if seen < self.store.oldest:
                    words = f"too old resource version: {seen} ({self.store.oldest})"
                    yield _line("ERROR", Refusal(410, "Expired", words).status)
                    return
                moved = self.store.moved
                for change in tuple(self.store.history):
                    if change.version > seen:
                        seen = change.version
                        event = _event(change, selector) if change.plural == plural else None
                        if event is not None and not self.muted and change.version not in self._lost:
                            yield event
                try:
                    async with asyncio.timeout(min(self.bookmark_s, max(0.0, end - loop.time()))):
                        await moved.wait()
                except TimeoutError:
                    if marks and not self.muted:
                        yield _line("BOOKMARK", _bookmark(plural, kind, seen))
        finally:
            self.watching -= 1


def leave(one: Object, grace: int, now: str) -> None:
    """It is to go: graceful deletion, as the API writes it down. A second one changes nothing but a shorter grace."""
    meta = one["metadata"]
    if "deletionTimestamp" in meta:
        meta["deletionGracePeriodSeconds"] = min(grace, meta["deletionGracePeriodSeconds"])
        return
    meta["deletionTimestamp"] = now
    meta["deletionGracePeriodSeconds"] = grace


def _verb(method: str, name: str, query: Mapping[str, str]) -> str:
    if method == "GET":
        return "get" if name else ("watch" if query.get("watch") in ("true", "1") else "list")
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(method, method.lower())


def _check(one: Object) -> None:
    """What of an object's metadata the API would refuse."""
    for key, value in (one["metadata"].get("labels") or {}).items():
        if not isinstance(value, str) or _LABEL.fullmatch(value) is None:
            raise Refusal(422, "Invalid", f"metadata.labels: Invalid value: {value!r} of {key}")
    for key, value in (one["metadata"].get("annotations") or {}).items():
        if not isinstance(value, str):
            raise Refusal(422, "Invalid", f"metadata.annotations: Invalid value of {key}: must be a string")


def _event(change: Change, selector: str) -> bytes | None:
    """As a watch with this selector sees a change: an object that begins to match is added, one that ceases deleted."""
    before, after = matches(selector, change.before), matches(selector, change.after)
    if after:
        return _line("MODIFIED" if before else "ADDED", change.after)
    if not before:
        return None
    last = dict(change.after or change.before or {})
    last["metadata"] = {**last["metadata"], "resourceVersion": str(change.version)}
    return _line("DELETED", last)


def _line(kind: str, one: object) -> bytes:
    return json.dumps({"type": kind, "object": one}).encode() + b"\n"


def _bookmark(plural: str, kind: str, version: int) -> Object:
    """Half an object: what it is and a version, and zero values that would be wrong anywhere else."""
    meta = {"resourceVersion": str(version), "creationTimestamp": None}
    if plural == "pods":
        return {"kind": kind, "apiVersion": "v1", "metadata": meta, "spec": {"containers": None}, "status": {}}
    return {"kind": kind, "apiVersion": "serving.knative.dev/v1", "metadata": meta}


def _status(refusal: Refusal) -> Response:
    after = refusal.status.get("details", {}).get("retryAfterSeconds")
    headers = (*_JSON, ("retry-after", str(after))) if after is not None else _JSON
    return Response(refusal.code, headers, json.dumps(refusal.status).encode())
