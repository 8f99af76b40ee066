"""A runtime with fakes at its ports, and users who speak to it: for tests and benchmarks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloister.adapters.clock import SystemClock
from cloister.adapters.keyservice import KeyServiceLink, VolatileHeads
from cloister.adapters.tee.simulation import SimulatedAttester
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError
from cloister.base.ids import ModelId
from cloister.base.secret import SecretBytes
from cloister.crypto.digest import Context, digest
from cloister.crypto.hpke import HpkePrivateKey
from cloister.crypto.sign import SigningKey
from cloister.engines.optimise import pack_onnx
from cloister.engines.package import INDEX_FILE
from cloister.runtime.core import Ports, Runtime
from cloister.runtime.messages import RuntimeIdentity
from cloister.runtime.options import RuntimeOptions
from cloister.testing.collateral import NoCollateral
from cloister.testing.keyservice import FakeKeyService
from cloister.testing.logs import MemoryLog
from cloister.testing.modelstore import MemoryStore
from cloister.testing.published import Published, publish
from cloister.wire import bhttp, envelope, oip
from cloister.wire.envelope import OutgoingRequest
from cloister.wire.provisioning import ReleaseRequest

MEASUREMENT = b"r" * 48


@dataclass(slots=True)
class User:
    """Somebody with keys for one model."""

    identity: SigningKey
    model: ModelId
    request: ReleaseRequest
    request_key: SecretBytes | None
    service_key: HpkePrivateKey | None
    clock: Clock

    def begin(self) -> OutgoingRequest:
        """A fresh envelope."""
        now = int(self.clock.now())
        if self.request_key is not None:
            return envelope.new_request_with_key(
                request_key=self.request_key,
                key_id=self.request.key_id,
                model=self.model,
                user=self.request.user,
                issued_at=now,
            )
        assert self.service_key is not None  # noqa: S101
        return envelope.new_request_to_service(
            service_key=self.service_key.public_key,
            key_id=self.request.key_id,
            identity=self.identity,
            model=self.model,
            user=self.request.user,
            issued_at=now,
        )

    def infer_message(self, inputs: Mapping[str, Any], *, signature: bytes = b"", path: str | None = None) -> bytearray:
        """The plaintext of an inference."""
        request = oip.InferRequest(tuple(oip.tensor(name, value) for name, value in inputs.items()))
        where = path or f"/v2/models/{self.model.name}/infer"
        guess = len(signature)
        while True:  # the head's length is known only once the body is
            length, parts = oip.encode_request(request, offset=guess)
            size = sum(memoryview(part).nbytes for part in parts)
            head = bhttp.request_head("POST", where, ((oip.HEADER_LENGTH_FIELD, str(length)),), size)
            if len(signature) + len(head) == guess:
                return envelope.join([signature, head, *parts, bhttp.padding_after(len(head) + size)])
            guess = len(signature) + len(head)

    def seal(self, message: Callable[[bytes], bytes | bytearray]) -> tuple[OutgoingRequest, bytearray]:
        """An envelope and the sealed bytes of ``message(signature)``."""
        outgoing = self.begin()
        return outgoing, outgoing.seal(message(outgoing.signature))


@dataclass(frozen=True, slots=True)
class Reply:
    """An opened response."""

    status: int
    fields: Mapping[str, str]
    content: bytes

    def outputs(self) -> dict[str, Any]:
        """Of an inference."""
        length = self.fields.get(oip.HEADER_LENGTH_FIELD)
        response = oip.decode_response(memoryview(self.content), None if length is None else int(length))
        return {tensor.name: tensor.data for tensor in response.outputs}


def open_reply(outgoing: OutgoingRequest, data: bytes | memoryview) -> Reply:
    """:raises CloisterError: as the envelope does."""
    response = bhttp.parse_response(outgoing.open_response(data))
    return Reply(response.status, dict(response.fields), bytes(response.content))


class RuntimeBench:
    """A runtime in this process.

    :param options: anything of ``RuntimeOptions``.
    """

    def __init__(self, clock: Clock | None = None, **options: Any) -> None:
        self.clock = clock or SystemClock()
        self.simulation = SigningKey.generate()
        self.keyservice = FakeKeyService(self.clock, runtime_keys=(self.simulation.public_key,))
        self.store = MemoryStore()
        self.log = MemoryLog()
        self.owner = SigningKey.generate()
        self.options = RuntimeOptions(bundle_root=self.keyservice.root.public_key, **options)
        configuration = self.options.measured()
        attester = SimulatedAttester(
            self.simulation, self.clock, configuration_digest=configuration.digest, measurement=MEASUREMENT
        )
        self.link = KeyServiceLink(
            self.keyservice,
            bundle=lambda: self.keyservice.bundle,
            collateral=NoCollateral(),
            clock=self.clock,
            heads=VolatileHeads(),
        )
        self.runtime = Runtime(
            self.options,
            Ports(
                link=self.link,
                attester=attester,
                identity=RuntimeIdentity(attester.tee, MEASUREMENT, configuration.digest),
                store=self.store,
                clock=self.clock,
                log=self.log,
            ),
        )

    def publish(self, name: str, model: bytes, *, owner: SigningKey | None = None, version: int = 1) -> Published:
        """Pack and store an ONNX model."""
        packed = pack_onnx(model)
        files = {file: content for file, content in packed.files.items() if file != INDEX_FILE}
        return publish(self.store, owner or self.owner, name, files, packed.files[INDEX_FILE], version=version)

    def user(
        self, published: Published, *, service: bool = False, identity: SigningKey | None = None, **terms: Any
    ) -> User:
        """A user who may use a model."""
        identity = identity or SigningKey.generate()
        request_key = None if service else SecretBytes(digest(Context.KEY_COMMITMENT, identity.seed().reveal()))
        service_key = HpkePrivateKey.generate() if service else None
        request = self.keyservice.permit(
            identity,
            published.place.model,
            manifest_digest=published.place.digest,
            version=published.version,
            model_key=published.key,
            request_key=request_key,
            service_key=service_key,
            **terms,
        )
        return User(identity, published.place.model, request, request_key, service_key, self.clock)

    async def send(self, model: ModelId, sealed: bytes | bytearray) -> memoryview:
        """The sealed response, as over HTTP.

        :raises CloisterError: the outer error.
        """
        return await self.runtime.sealed.answer(model, memoryview(sealed), lambda size: memoryview(bytearray(size)))

    async def ask(self, user: User, inputs: Mapping[str, Any]) -> Reply:
        """One inference."""
        outgoing, sealed = user.seal(lambda signature: user.infer_message(inputs, signature=signature))
        return open_reply(outgoing, await self.send(user.model, sealed))

    async def infer(self, user: User, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Its outputs.

        :raises AssertionError: when the answer is an error.
        """
        reply = await self.ask(user, inputs)
        assert reply.status == 200, reply.content  # noqa: S101
        return reply.outputs()

    def run(self, scenario: Callable[[], Any]) -> Any:
        """Run a coroutine function, then stop the runtime."""

        async def whole() -> Any:
            try:
                return await asyncio.wait_for(scenario(), 60)
            finally:
                await asyncio.get_running_loop().run_in_executor(None, self.runtime.stop)

        return asyncio.run(whole())


def error_code(error: CloisterError | Reply) -> str:
    """The stable code of an outer error, or of a sealed problem."""
    if isinstance(error, CloisterError):
        return error.code
    import json

    value = json.loads(error.content)
    return str(value["type"]).removeprefix("urn:cloister:error:")


def image(seed: int, shape: tuple[int, ...]) -> Any:
    """A float32 input."""
    return np.random.default_rng(seed).random(shape, dtype=np.float32)
