"""An OpenWhisk for tests: its REST API and web route, and an invoker that really runs action processes.

It answers as the platform's sources say (controller: Actions.scala, WebActions.scala, ErrorResponse.scala; invoker:
Container.scala, ActivationResult.scala), with its limits, and does on request what platforms do on bad days
(:class:`Fault`). It is no OpenWhisk: one namespace, no packages, triggers or rules, containers are child processes.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.client import AsyncHttpClient
from cloister.adapters.http.message import Request, Response
from cloister.adapters.http.server import HttpServer
from cloister.base.errors import CloisterError
from cloister.base.limits import MIB
from cloister.testing.action import STAND_IN, ActionProcess, Container
from cloister.testing.logs import MemoryLog
from cloister.testing.openwhisk_web import web_answer, web_arguments

AUTH: Final = "23bc46b1-71f6-4ed5-8c54-816aa4f8c502:" + "k" * 64
API: Final = "/api/v1/namespaces/"
WEB: Final = "/api/v1/web/"
LIMITS: Final[Mapping[str, int]] = {
    "minActionMemory": 128, "maxActionMemory": 4096, "minActionTimeout": 100, "maxActionTimeout": 300_000,
    "minActionLogs": 0, "maxActionLogs": 10, "minActionConcurrency": 1, "maxActionConcurrency": 64,
}  # fmt: skip
_JSON: Final = (("content-type", "application/json"),)


@dataclass(slots=True)
class Fault:
    """What happens to the next ``times`` calls whose method and target begin like this, instead of an answer.

    :param status: answered with the platform's form of an error. :param cut: the connection ends without an answer;
        with ``late`` after the call was carried out. :param queued: an invocation is answered 202, and goes on.
    :param body: answered as it is, whatever it is.
    """

    method: str
    target: str = API
    times: int = 1
    status: int = 0
    error: str = "a fault"
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False
    late: bool = False
    queued: bool = False
    body: bytes | None = None


@dataclass(slots=True)
class Place:
    """A container in the pool. ``busy`` counts its activations."""

    container: Container
    initialised: asyncio.Future[dict[str, Any] | None]
    busy: int = 0


@dataclass(slots=True)
class StoredAction:
    """An action as it was put."""

    document: dict[str, Any]
    version: int = 1
    containers: list[Place] = field(default_factory=list)

    @property
    def concurrency(self) -> int:
        """Activations in one container."""
        return int(self.document.get("limits", {}).get("concurrency", 1))

    def annotation(self, key: str) -> Any:
        """One annotation's value."""
        pairs = self.document.get("annotations", [])
        return next((pair["value"] for pair in pairs if pair["key"] == key), None)


class FakeOpenWhisk:
    """See the module. ``await open()`` first, ``await close()`` last.

    :param command: of one container, a child process; ``--listen`` is appended.
    :param spawn: starts a container instead.
    :ivar rate: invocations that are admitted until the next :meth:`next_minute`.
    :ivar calls: (method, target) of all that was asked.
    """

    def __init__(
        self,
        command: Sequence[str] = STAND_IN,
        *,
        spawn: Callable[[], Container] | None = None,
        rate: int = 1_000_000,
        carries: int = MIB,
    ) -> None:
        self.command = tuple(command)
        self._spawn = spawn or (lambda: ActionProcess(self.command))
        self.rate = rate
        self.limits = dict(LIMITS)
        self.carries = carries
        self.actions: dict[str, StoredAction] = {}
        self.activations: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.calls: list[tuple[str, str]] = []
        self.started = 0
        self.log = MemoryLog()
        self._server = HttpServer(self, log=self.log)
        self._client = AsyncHttpClient()
        self._running: set[asyncio.Task[Any]] = set()
        self._invoked = 0

    @property
    def address(self) -> str:
        """The API's origin."""
        return self._server.address

    async def open(self) -> str:
        """Listen; the origin."""
        await self._server.start()
        return self.address

    async def close(self) -> None:
        """End everything."""
        await self._server.close()
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for action in self.actions.values():
            self._reap(action)
        await self._client.close()

    def next_minute(self) -> None:
        """Invocations are counted anew."""
        self._invoked = 0

    def destroy_containers(self, name: str) -> int:
        """As the platform does with idle ones, or a machine that dies; how many."""
        return self._reap(self.actions[name])

    def remove(self, name: str) -> None:
        """Somebody else deletes an action."""
        self._reap(self.actions.pop(name))

    def _reap(self, action: StoredAction) -> int:
        containers, action.containers = action.containers, []
        for container in containers:
            container.container.kill()
        return len(containers)

    async def __call__(self, request: Request) -> Response:
        """Route one request."""
        target = request.path + (f"?{request.query}" if request.query else "")
        self.calls.append((request.method, target))
        fault = self._fault(request.method, target)
        if fault is not None:
            if fault.body is not None:
                return Response(fault.status or 200, (*_JSON, *fault.headers), fault.body)
            if fault.status:
                return _error(fault.status, fault.error, fault.headers)
            if fault.cut and not fault.late:
                raise asyncio.CancelledError  # ends the connection without a word
        response = await self._route(request, queued=fault is not None and fault.queued)
        if fault is not None and fault.cut:
            raise asyncio.CancelledError
        return response

    def _fault(self, method: str, target: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == method and target.startswith(fault.target):
                fault.times -= 1
                return fault
        return None

    async def _route(self, request: Request, *, queued: bool) -> Response:
        if request.path.startswith(WEB):
            return await self._web(request)
        if request.headers.get("authorization") != "Basic " + b64encode(AUTH.encode()).decode():
            return _error(401, "The supplied authentication is invalid.")
        words = request.path.removeprefix(API).split("/")
        if not request.path.startswith(API) or words[0] not in ("_", "guest"):
            return _error(404, "The requested resource does not exist.")
        match (request.method, *words[1:]):
            case ("GET", "limits"):
                return _ok(self.limits)
            case ("GET", "actions"):
                query = parse_qs(request.query)
                skip, limit = int(query.get("skip", ["0"])[0]), int(query.get("limit", ["30"])[0])
                names = sorted(self.actions)[skip : skip + limit]
                return _ok([self._shown(name) for name in names])
            case ("PUT", "actions", name):
                return self._put(name, json.loads(bytes(await request.body())), "overwrite=true" in request.query)
            case ("DELETE", "actions", name):
                return self._delete(name)
            case ("POST", "actions", name):
                return await self._post(name, bytes(await request.body(2 * MIB * 64)), queued=queued)
            case ("GET", "activations", identifier):
                found = self.activations.get(identifier)
                return _ok(found) if found else _error(404, "The requested resource does not exist.")
            case _:
                return _error(404, "The requested resource does not exist.")

    def _shown(self, name: str) -> dict[str, Any]:
        action = self.actions[name]
        kept = ("annotations", "limits", "exec")
        shown = {key: action.document[key] for key in kept if key in action.document}
        shown["exec"] = {"binary": False}
        return {"namespace": "guest", "name": name, "version": f"0.0.{action.version}", "publish": False, **shown}

    def _put(self, name: str, document: dict[str, Any], overwrite: bool) -> Response:
        known = self.actions.get(name)
        if known is not None and not overwrite:
            return _error(409, "resource already exists")
        memory = document.get("limits", {}).get("memory", 256)
        if not self.limits["minActionMemory"] <= memory <= self.limits["maxActionMemory"]:
            most = self.limits["maxActionMemory"]
            return _error(400, f"action memory size {memory} MB exceeds allowed threshold of {most} MB")
        if known is None:
            self.actions[name] = StoredAction(document)
        else:
            known.document, known.version = document, known.version + 1
            self._reap(known)
        return _ok(self._shown(name))

    def _delete(self, name: str) -> Response:
        action = self.actions.pop(name, None)
        if action is None:
            return _error(404, "The requested resource does not exist.")
        self._reap(action)  # the real one keeps idle containers for some minutes more
        return _ok({"namespace": "guest", "name": name})

    # --- invoking ---

    def _throttled(self) -> Response | None:
        self._invoked += 1
        if self._invoked > self.rate:
            words = f"Too many requests in the last minute (count: {self._invoked}, allowed: {self.rate})."
            return _error(429, words)
        return None

    async def _post(self, name: str, body: bytes, *, queued: bool) -> Response:
        refused = self._throttled()
        if refused is not None:
            return refused
        if len(body) > self.carries:
            return _error(413, f"Request larger than allowed: {len(body)} > {self.carries} bytes.")
        if name not in self.actions:
            return _error(404, "The requested resource does not exist.")
        identifier = secrets.token_hex(16)
        task = asyncio.get_running_loop().create_task(self._activate(name, identifier, json.loads(body or b"{}")))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        if queued:
            return Response(202, _JSON, json.dumps({"activationId": identifier}).encode())
        record = await asyncio.shield(task)
        status = {"success": 200, "whisk internal error": 500}.get(record["response"]["status"], 502)
        return Response(status, _JSON, json.dumps(record).encode())

    async def _activate(self, name: str, identifier: str, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            status, result = await self._run(self.actions[name], name, identifier, arguments)
        except (CloisterError, OSError) as error:
            status, result = "whisk internal error", {"error": f"{type(error).__name__}"}
        record = {
            "activationId": identifier,
            "name": name,
            "namespace": "guest",
            "publish": False,
            "version": "0.0.1",
            "subject": "guest",
            "start": 1,
            "logs": [],
            "response": {"status": status, "success": status == "success", "result": result},
        }
        self.activations[identifier] = record
        return record

    async def _run(
        self, action: StoredAction, name: str, identifier: str, arguments: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        parameters = action.document.get("parameters", [])
        environment = {p["key"]: p["value"] for p in parameters if p.get("init")}
        arguments = {**{p["key"]: p["value"] for p in parameters if not p.get("init")}, **arguments}
        container = next((c for c in action.containers if c.busy < action.concurrency), None)
        if container is None:
            loop = asyncio.get_running_loop()
            container = Place(await loop.run_in_executor(None, self._spawn), loop.create_future())
            action.containers.append(container)
            self.started += 1
        container.busy += 1
        try:
            failed = await self._initialised(container, environment)
            if failed is not None:
                self._destroy(action, container)
                return "action developer error", failed
            timeout = action.document.get("limits", {}).get("timeout", 60_000) / 1000
            context = {
                "namespace": "guest",
                "action_name": f"/guest/{name}",
                "activation_id": identifier,
                "transaction_id": secrets.token_hex(16),
                "deadline": round((SystemClock().now() + timeout) * 1000),
            }
            return await self._ran(action, container, {"value": arguments, **context}, timeout)
        finally:
            container.busy -= 1

    async def _initialised(self, container: Place, environment: Mapping[str, str]) -> dict[str, Any] | None:
        if container.busy > 1 or container.initialised.done():
            return await asyncio.shield(container.initialised)
        value = {"name": "a", "main": "main", "code": "", "binary": False, "env": dict(environment)}
        content = json.dumps({"value": value}).encode()
        failed: dict[str, Any] | None = {"error": "The action did not initialize and exited unexpectedly."}
        while container.container.alive:
            try:
                answer = await self._client.request(
                    "POST", container.container.address, "/init", content=content, idempotent=False, deadline_s=60.0
                )
            except CloisterError as error:
                if error.code != "connect-failed":
                    break
                await asyncio.sleep(0.01)
                continue
            failed = None if answer.status == 200 else json.loads(answer.body)
            break
        container.initialised.set_result(failed)
        return failed

    async def _ran(
        self, action: StoredAction, container: Place, body: object, timeout_s: float
    ) -> tuple[str, dict[str, Any]]:
        try:
            answer = await self._client.request(
                "POST",
                container.container.address,
                "/run",
                content=json.dumps(body).encode(),
                idempotent=False,
                deadline_s=timeout_s,
                max_answer=64 * MIB,
            )
        except CloisterError as error:
            self._destroy(action, container)
            late = error.code == "deadline-exceeded"
            return "action developer error", {
                "error": f"The action exceeded its time limits of {timeout_s * 1000:.0f} milliseconds."
                if late
                else "The action did not produce a valid response and exited unexpectedly."
            }
        if len(answer.body) > self.carries:
            words = "The action produced a response that exceeded the allowed length: "
            return "application error", {"error": f"{words}{len(answer.body)} > {self.carries} bytes."}
        result = json.loads(answer.body)
        if answer.status != 200:
            self._destroy(action, container)
            return "action developer error", {"error": result.get("error", "no JSON object")}
        if "error" in result:
            return "application error", {"error": result["error"]}
        return "success", result

    @staticmethod
    def _destroy(action: StoredAction, container: Place) -> None:
        if container in action.containers:
            action.containers.remove(container)
            container.container.kill()

    # --- web actions ---

    async def _web(self, request: Request) -> Response:
        words = request.path.removeprefix(WEB).split("/", 3)
        name = words[2].removesuffix(".http") if len(words) > 2 else ""
        action = self.actions.get(name)
        if action is None or words[:2] != ["guest", "default"] or action.annotation("web-export") is not True:
            return _error(404, "The requested resource does not exist.")
        secret = action.annotation("require-whisk-auth")
        if isinstance(secret, str) and request.headers.get("x-require-whisk-auth") != secret:
            return _error(401, "The resource requires authentication, which was not supplied with the request")
        refused = self._throttled()
        if refused is not None:
            return refused
        body = bytes(await request.body(64 * MIB))
        if len(body) > self.carries:
            return _error(413, f"Request larger than allowed: {len(body)} > {self.carries} bytes.")
        path = "/" + words[3] if len(words) > 3 else ""
        arguments = web_arguments(request.method, path, request.query, tuple(request.headers), body)
        return web_answer((await self._activate(name, secrets.token_hex(16), arguments))["response"])


def _ok(value: object) -> Response:
    return Response(200, _JSON, json.dumps(value).encode())


def _error(status: int, error: str, headers: Sequence[tuple[str, str]] = ()) -> Response:
    body = json.dumps({"error": error, "code": secrets.token_hex(16)}).encode()
    return Response(status, (*_JSON, *headers), body)
