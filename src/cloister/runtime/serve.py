"""One sealed request, from bytes to bytes (spec/protocol.md, section 8).

The coroutine only waits: for the room, for keys, for the model. Everything that computes (open, infer, seal) is one
job in one slot. Until a request has authenticated, whatever is wrong with it is told with one code; afterwards causes
travel sealed.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Final, TypeVar

from cloister.adapters.http.buffers import BufferPool
from cloister.adapters.logs import EventLog
from cloister.adapters.modelstore.port import Place
from cloister.base.clock import Clock
from cloister.base.errors import CloisterError, InvalidInput, Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import MAX_REQUEST_BODY
from cloister.base.secret import SecretBytes
from cloister.crypto.stream import Buffer
from cloister.runtime import endpoints
from cloister.runtime.isolation import Rooms, Visit
from cloister.runtime.leases import Lease, LeaseTable
from cloister.runtime.loaded import LoadedModel
from cloister.runtime.messages import TIMING_FIELD, Answer, Lend, RuntimeIdentity, problem_answer, seal_answer
from cloister.runtime.models import ModelCache, Pin
from cloister.runtime.replay import ReplayCache, check_fresh
from cloister.runtime.scheduler import Job, Mailbox, Scheduler
from cloister.runtime.stages import Stage, StageMetrics, Timings
from cloister.wire import bhttp, envelope, oip
from cloister.wire.envelope import RequestPrefix
from cloister.wire.provisioning import ReleaseRequest

_ATTEMPTS: Final = 4  # to hold lease and model at once, while others evict and rooms change
INLINE_S: Final = 0.0005  # a request cheaper than this is answered on the event loop: a slot costs 0.1 ms
_SMOOTHING: Final = 0.1
T = TypeVar("T")


def refused() -> InvalidInput:
    """The only thing said about a request that did not authenticate (clause 8.8)."""
    return InvalidInput("request-refused", "the request was refused")


@dataclass(slots=True)
class Ticket:
    """Everything a request holds while it runs; given back when the last :meth:`Sealed.close` is called.

    :param error: why there is no model, to be told once the request has authenticated.
    :param holds: who still needs it: whoever answers, and a job under way for somebody who has gone.
    """

    prefix: RequestPrefix
    visit: Visit
    lease: Lease
    pin: Pin | None
    error: CloisterError | None
    timings: Timings
    holds: int = 1
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def request(self) -> ReleaseRequest:
        """Which keys it uses."""
        return self.lease.request


class Sealed:
    """Answers sealed requests. Its coroutines belong to one event loop; everything it uses is thread-safe."""

    def __init__(
        self,
        *,
        rooms: Rooms,
        leases: LeaseTable,
        models: ModelCache,
        scheduler: Scheduler,
        replay: ReplayCache,
        metrics: StageMetrics,
        plaintexts: BufferPool,
        identity: RuntimeIdentity,
        clock: Clock,
        log: EventLog,
        deadline_s: float,
        started: Callable[[], Timings | None],
        hint: Callable[[ModelId], None],
        inline_s: float = INLINE_S,
    ) -> None:
        """:param started: the stages of the process's start, once, for the first request it delayed.
        :param hint: told which model will be wanted once keys are there.
        """
        self.rooms = rooms
        self.leases = leases
        self.models = models
        self.scheduler = scheduler
        self.metrics = metrics
        self.identity = identity
        self._replay = replay
        self._plaintexts = plaintexts
        self._clock = clock
        self._log = log
        self._deadline_s = deadline_s
        self._started = started
        self._hint = hint
        self._inline_s = inline_s
        self._mailbox: Mailbox | None = None

    async def answer(self, model: ModelId, body: memoryview, lend: Lend) -> memoryview:
        """The sealed response to a whole sealed request.

        :param model: from the route.
        :raises InvalidInput: ``request-refused``: nothing else is said before it has authenticated.
        :raises Unavailable: try again, after ``retry_after``.
        """
        deadline = self._clock.monotonic() + self._deadline_s
        try:
            prefix = self.parse(model, body)
            if prefix is None:
                raise refused()
            ticket = await self.enter(prefix)
        except Unavailable as error:
            self.metrics.count("none", error.code)
            raise
        except CloisterError as error:
            self.metrics.count("none", "request-refused")
            raise refused() from error
        frames = body[prefix.length :]
        return await self.run(ticket, deadline, lambda: self._compute(ticket, frames, lend))

    # --- waiting ---

    def parse(self, model: ModelId, body: Buffer) -> RequestPrefix | None:
        """The prefix of a fresh request for this model; ``None`` when more bytes are needed.

        :raises InvalidInput: otherwise.
        """
        prefix = RequestPrefix.parse(body)
        if prefix is not None:
            if prefix.header.model != model:
                raise InvalidInput("model-other", "the route names another model than the header")
            check_fresh(prefix.header.issued_at, self._clock.now())
        return prefix

    async def enter(self, prefix: RequestPrefix) -> Ticket:
        """Room, keys, model, in this order; the ticket holds all three.

        :raises CloisterError: from the KeyService, or Unavailable from here.
        """
        header = prefix.header
        request = ReleaseRequest(header.user, header.model, header.mode, header.key_id)
        timings = Timings()
        refusal = self.leases.refused_lately(request)
        if refusal is not None:  # strangers must not empty the room with a name that was just refused
            raise refusal
        for _ in range(_ATTEMPTS):
            visit = self.rooms.try_enter(header.user, header.model)
            if visit is None:
                visit = await _mine(self.rooms.enter(header.user, header.model), self.rooms.leave)
            try:
                lease = await self._lease(request, timings)
                if self.rooms.confirm(visit, co_tenancy=lease.release.co_tenancy):
                    pin, error = await self._pin(lease, timings)
                    return Ticket(prefix, visit, lease, pin, error, timings)
            except BaseException:
                self.rooms.leave(visit)
                raise
            self.leases.drop(request)  # policies do not allow these owners together: come again, alone
            self.rooms.leave(visit)
        raise Unavailable("runtime-overloaded", "no room could be had", retry_after=1.0)

    async def _lease(self, request: ReleaseRequest, timings: Timings) -> Lease:
        for _ in range(_ATTEMPTS):
            lease = self.leases.find(request)
            if lease is not None:
                return lease
            coming = self.leases.obtain(request)
            self._hint(request.model)
            _took(timings, await asyncio.shield(asyncio.wrap_future(coming)))
            if (start := self._started()) is not None:
                _took(timings, start)
        raise Unavailable("runtime-overloaded", "leases end before they can be used", retry_after=1.0)

    async def keep(self, ticket: Ticket) -> None:
        """For a stream, before each of its inferences: the newest lease, and nobody else's turn.

        :raises CloisterError: as the KeyService says; Unavailable when others have waited long enough.
        """
        ticket.lease = await self._lease(ticket.request, Timings())
        if not self.rooms.confirm(ticket.visit, co_tenancy=ticket.lease.release.co_tenancy):
            raise Unavailable("room-wanted", "policies do not allow these models together any more", retry_after=1.0)
        if self.rooms.overdue:
            raise Unavailable("room-wanted", "others wait for this instance; send the rest again", retry_after=1.0)

    async def _pin(self, lease: Lease, timings: Timings) -> tuple[Pin | None, CloisterError | None]:
        place = Place(lease.request.model, lease.release.manifest_digest)
        for _ in range(_ATTEMPTS):
            pin = self.models.pin(place)
            if pin is not None:
                return pin, None
            try:
                took = await asyncio.shield(asyncio.wrap_future(self.models.obtain(place, lease.release)))
            except Unavailable:
                raise
            except CloisterError as error:
                return None, error
            _took(timings, took)
        raise Unavailable("runtime-overloaded", "models evict each other", retry_after=1.0)

    def close(self, ticket: Ticket) -> None:
        """One holder less; the last one gives back what the request held."""
        with ticket.lock:
            ticket.holds -= 1
            if ticket.holds:
                return
        if ticket.pin is not None:
            ticket.pin.release()
        self.rooms.leave(ticket.visit)

    async def run(self, ticket: Ticket, deadline: float, compute: Callable[[], T], *, keep: bool = False) -> T:
        """Run ``compute`` in a slot; the ticket is given back when it ends, whether or not anybody still waits.

        What costs less than the way to a slot and back is done here and now, while nothing else waits.

        :param keep: the caller goes on holding the ticket: more follows.
        """
        if keep:
            with ticket.lock:
                ticket.holds += 1
        if ticket.pin is not None and ticket.pin.model.cost_s < self._inline_s and self.scheduler.idle:
            try:
                return compute()
            finally:
                self.close(ticket)
        loop = asyncio.get_running_loop()
        if self._mailbox is None:
            self._mailbox = Mailbox(loop)
        mailbox = self._mailbox
        done: asyncio.Future[T] = loop.create_future()

        def run() -> Callable[[], None]:
            try:
                result = compute()
            except BaseException as error:  # noqa: BLE001  # it belongs to whoever waits
                return partial(abandon, error)
            return partial(finish, result)

        def finish(result: T) -> None:
            self.close(ticket)
            mailbox.post(done, result)

        def abandon(error: BaseException) -> None:
            self.close(ticket)
            mailbox.post(done, None, error)

        job = Job(ticket.prefix.header.user, run, abandon, deadline)
        try:
            self.scheduler.submit(job)
        except Unavailable:
            self.close(ticket)
            raise
        try:
            return await done
        except asyncio.CancelledError:
            job.cancelled = True  # if it waits, it is abandoned; if it runs, it ends
            raise

    # --- computing: in a slot ---

    def _compute(self, ticket: Ticket, frames: memoryview, lend: Lend) -> memoryview:
        started = perf_counter()
        try:
            secret = self.open_secret(ticket)
            size = envelope.plaintext_length(frames)
            if size > MAX_REQUEST_BODY:
                raise refused()
            plaintext = self._plaintexts.lease(size)
        except CloisterError as error:
            self.metrics.count("none", "request-refused")
            raise refused() from error
        try:
            message = plaintext.view
            try:
                envelope.open_frames(envelope.request_opener(secret, ticket.prefix.digest), frames, message)
                message = self.authenticate(ticket, message)
            except CloisterError as error:
                self.metrics.count("none", "request-refused")
                raise refused() from error
            ticket.timings.add(Stage.REQUEST_DECRYPT, perf_counter() - started)
            answer = self._answer_to(ticket, message)
            del message
            sealed = self._seal(ticket, answer, secret, lend)
            _learn(ticket, perf_counter() - started)
            return sealed
        finally:
            plaintext.release()

    def open_secret(self, ticket: Ticket) -> SecretBytes:
        """The content secret.

        :raises Tampered: ``hpke-open``.
        """
        lease = ticket.lease
        if lease.service_key is not None:
            return envelope.open_content_secret(lease.service_key, ticket.prefix)
        return envelope.derive_content_secret(lease.release.key, ticket.prefix.header_bytes)

    def authenticate(self, ticket: Ticket, message: memoryview) -> memoryview:
        """What follows the user's signature, which service-key mode has (clause 8.5).

        :raises Tampered: ``signature-invalid``.
        """
        length = envelope.signature_length(ticket.prefix.header.mode)
        if not length:
            return message
        if message.nbytes < length:
            raise Tampered("signature-invalid", "the request has no signature")
        envelope.verify_request_signature(ticket.prefix, bytes(message[:length]), ticket.lease.release.user_key)
        return message[length:]

    def first(self, ticket: Ticket) -> LoadedModel:
        """After a request has authenticated: it was not seen before, and there is a model.

        :raises CloisterError: to be told inside.
        """
        self._replay.admit(ticket.prefix.digest)
        return self._model(ticket)

    def again(self, ticket: Ticket) -> LoadedModel:
        """Before each inference: lease and quota.

        :raises CloisterError: to be told inside.
        """
        self.leases.count(ticket.lease)
        return self._model(ticket)

    def _model(self, ticket: Ticket) -> LoadedModel:
        if ticket.pin is None:
            raise ticket.error or Unavailable("model-unavailable", "the model could not be loaded")
        return ticket.pin.model

    def _answer_to(self, ticket: Ticket, message: memoryview) -> Answer:
        try:
            self.first(ticket)
            model = self.again(ticket)
            request = bhttp.parse_request(message)
            if request.streamed:
                raise InvalidInput("endpoint-unknown", "streams have a route of their own")
            call = endpoints.Call(request, request.content, header_length(request), model, ticket.timings)
            answer = endpoints.find(request, model)(call)
            self.confirm(ticket)
        except CloisterError as error:
            return self.told(ticket, error)
        except Exception as error:  # noqa: BLE001  # ours; its text may hold plaintext
            return self.told(ticket, self.fault(error))
        self.metrics.count(ticket.timings.path, "ok")
        return answer

    def confirm(self, ticket: Ticket) -> None:
        """Before an answer leaves: the model is confirmed. One that is not is taken out at once.

        :raises CloisterError: ``model-root``, ``engine-known-answer``.
        """
        pin = ticket.pin
        if pin is not None:
            try:
                if pin.model.pending:
                    with ticket.timings.stage(Stage.ENGINE_INIT):  # the first requests wait for it beside their own
                        pin.model.confirmed()
            except CloisterError:
                self.models.discard(pin.model.place)
                raise

    def told(self, ticket: Ticket, error: CloisterError) -> Answer:
        """An error, for inside."""
        self.metrics.count(ticket.timings.path, error.code)
        return problem_answer(error)

    def fault(self, error: Exception) -> Unavailable:
        """A fault of ours: logged by type and place only."""
        trace = error.__traceback__
        where = ""
        while trace is not None:
            where = f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}"
            trace = trace.tb_next
        self._log.event("internal-error", level="error", error=type(error).__name__, where=where)
        return Unavailable("internal", "a fault in the runtime")

    def _seal(self, ticket: Ticket, answer: Answer, secret: SecretBytes, lend: Lend) -> memoryview:
        started = perf_counter()
        digest = ticket.prefix.digest
        lease = ticket.lease
        if not lease.said:
            lease.said = bhttp.encode_fields(self.identity.fields(lease.release))
        fields = ((TIMING_FIELD, ticket.timings.server_timing()),)
        try:
            sealed = seal_answer(answer, fields, lease.said, secret=secret, request_digest=digest, lend=lend)
        except InvalidInput as error:
            sealed = seal_answer(
                problem_answer(error), fields, lease.said, secret=secret, request_digest=digest, lend=lend
            )
        ticket.timings.add(Stage.RESPONSE_ENCRYPT, perf_counter() - started)
        self.metrics.observe(ticket.timings)
        return sealed


def header_length(request: bhttp.Request) -> int | None:
    """The length of the JSON part, where a field gives it.

    :raises InvalidInput: ``oip-malformed``.
    """
    text = bhttp.field(request.fields, oip.HEADER_LENGTH_FIELD)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 10:
        raise InvalidInput("oip-malformed", f"{oip.HEADER_LENGTH_FIELD} is not a number")
    return int(text)


def _learn(ticket: Ticket, seconds: float) -> None:
    if ticket.pin is not None:
        model = ticket.pin.model
        model.cost_s = seconds if math.isinf(model.cost_s) else model.cost_s + _SMOOTHING * (seconds - model.cost_s)


def _took(timings: Timings, other: Timings) -> None:
    for stage, seconds in other.seconds.items():
        timings.add(stage, seconds)


async def _mine(future: Future[T], undo: Callable[[T], None]) -> T:
    """Wait for what is ours alone; if nobody waits any more, it is given back when it comes."""
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if not future.cancel():
            future.add_done_callback(lambda f: None if f.cancelled() or f.exception() is not None else undo(f.result()))
        raise
