"""From encrypted files to a session, straight into the memory the engine uses (spec/model-format.md, section 5).

Chunks are read in parallel, each decrypted from its read buffer into its place in a weights buffer: one copy of the
weights, and a read buffer a reader. The owner's signed root of every file is confirmed *from the plaintext in use*:
AES-GCM has one ciphertext for a key, nonce and plaintext, so encrypting a chunk again gives the very bytes that the
owner signed, at memory speed and without keeping them. That runs beside the engine's start on another core; nothing
is answered before it has ended well.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from cloister.adapters.modelstore.port import ModelStore, Place
from cloister.adapters.process import trim_heap
from cloister.base.errors import CloisterError, InvalidInput, Refused, Tampered, Unavailable
from cloister.base.ids import ModelId
from cloister.base.limits import MAX_GRAPH_BYTES, MAX_MANIFEST
from cloister.base.secret import SecretBytes
from cloister.crypto.box import TAG_LENGTH
from cloister.engines.buffers import BufferPool, WeightBuffer
from cloister.engines.cpu import Cpu
from cloister.engines.package import Package, Variant
from cloister.engines.port import Session
from cloister.runtime.stages import Stage, Timings
from cloister.wire.manifest import (
    CHUNK,
    DESCRIPTION,
    MANIFEST_NAME,
    Description,
    FileCipher,
    FileEntry,
    Manifest,
    RootHash,
)
from cloister.wire.manifest import manifest_digest as digest_of
from cloister.wire.provisioning import Release

READERS: Final = 4  # a model: enough to hide a store's latency
_MAX_DESCRIPTION: Final = 4 * MAX_MANIFEST  # index and sizes, and their padding
_MAX_HINTS: Final = 16  # models whose small files may lie here unasked
# Memory as multiples of the files' size, measured with a network of dense layers and with ResNet101v2.
_RESIDENT: Final = 1.15  # borrowed, or the engine's own copy
_LENT_PEAK: Final = 1.1  # while loading: weights that the engine borrows,
_REPACKED_PEAK: Final = 3.2  # those it reorders (ours, its copy, the reordered one),
_PLAIN_PEAK: Final = 3.9  # and a graph it optimises first


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be loaded, known before anything large is fetched.

    :param memory: bytes it is expected to take once it is loaded and checked; ``peak``: until then.
    """

    place: Place
    manifest: Manifest
    description: Description
    package: Package
    variant: Variant
    memory: int
    peak: int


class LoadedModel:
    """A resident model. Weights that the engine borrows stay until :meth:`close`, which only the model cache calls;
    those it made its own of are given back as soon as they were checked."""

    def __init__(
        self,
        plan: Plan,
        session: Session,
        buffers: Mapping[str, WeightBuffer],
        pool: BufferPool,
        checks: list[Future[None]],
    ) -> None:
        self.place = plan.place
        self.version = plan.manifest.version
        self.package = plan.package
        self.session = session
        self.cost_s = math.inf  # what a request costs, a running mean; kept by whoever runs them
        lent = set(plan.variant.lent)
        self._buffers = [buffer for name, buffer in buffers.items() if name in lent]
        # The engine made its own of these; they stay only until they were checked.
        self._spare = [buffer for name, buffer in buffers.items() if name not in lent]
        self._lock = threading.Lock()
        self._pool = pool
        self._checks = checks
        self._unfinished = len(checks)
        self._settled = False
        self._when_settled: Callable[[], None] | None = None
        for check in checks:
            check.add_done_callback(self._one_checked)

    def when_settled(self, call: Callable[[], None]) -> None:
        """Call once what only the load needed was given back: at once, or from another thread."""
        with self._lock:
            if not self._settled:
                self._when_settled = call
                return
        call()

    def confirmed(self) -> None:
        """Return once every file's root, and the known answer, are confirmed; costs nothing from then on.

        :raises Tampered: ``model-root``. :raises Unavailable: ``engine-known-answer``.
        """
        if self._checks:
            for check in self._checks:
                check.result()
            self._checks = []

    def _one_checked(self, _: Future[None]) -> None:
        with self._lock:
            self._unfinished -= 1
            last = self._unfinished == 0
        if last:
            self._settle()

    def _settle(self) -> None:
        with self._lock:
            spare, self._spare = self._spare, []
        for buffer in spare:
            buffer.release()  # not into the pool: one copy of the weights, and no second one lying idle
        trim_heap()  # what the engine needed for its start only
        with self._lock:
            self._settled = True
            call, self._when_settled = self._when_settled, None
        if call is not None:
            call()

    def close(self) -> None:
        """Free session and weights; the weights are wiped."""
        wait(self._checks)
        self._settle()
        self.session.close()
        buffers, self._buffers = self._buffers, []
        for buffer in buffers:
            self._pool.give(buffer)
        trim_heap()


class Loader:
    """Loads models. Safe for many threads.

    :param readers: runs reads and decryption; never the executor that :meth:`load` itself runs on.
    :param cpu: what this machine can run.
    :param engines: those that the measured configuration names.
    """

    def __init__(
        self,
        store: ModelStore,
        *,
        readers: Executor,
        pool: BufferPool,
        cpu: Callable[[], Cpu],
        threads: int,
        engines: frozenset[str],
    ) -> None:
        self._store = store
        self._readers = readers
        self._pool = pool
        self._cpu = cpu
        self._threads = threads
        self._engines = engines
        # Variants whose known answer came out right, or wrong, in this process: (manifest digest, variant).
        self._passed: set[tuple[bytes, str]] = set()
        self._failed: set[tuple[bytes, str]] = set()
        self._lock = threading.Lock()
        self._ahead: OrderedDict[Place, dict[str, bytes]] = OrderedDict()

    def hint(self, model: ModelId) -> None:
        """Fetch manifest and description of what the store says is newest, while the keys are on their way.

        Nothing of it is believed: :meth:`plan` checks it against what was released, or fetches what was.
        """
        try:
            place = self._store.latest(model)
            if place is None or place in self._ahead:
                return
            manifest = self._store.read(place, MANIFEST_NAME, limit=MAX_MANIFEST)
            size = Manifest.parse(manifest).file(DESCRIPTION).stored_size
            description = self._store.read(place, DESCRIPTION, limit=min(size, _MAX_DESCRIPTION))
        except CloisterError:
            return
        with self._lock:
            self._ahead[place] = {MANIFEST_NAME: manifest, DESCRIPTION: description}
            if len(self._ahead) > _MAX_HINTS:
                self._ahead.popitem(last=False)

    def _read(self, place: Place, name: str, limit: int) -> bytes:
        with self._lock:
            data = self._ahead.get(place, {}).pop(name, None)
        return data if data is not None and len(data) <= limit else self._store.read(place, name, limit=limit)

    def read_ahead(self, place: Place) -> None:
        """Read the manifest and the stored chunks of a packing once, into nothing.

        The machine's page cache, or a cache before the store, has them when the keys are there. Nothing is believed.
        """
        manifest = Manifest.parse(self._store.read(place, MANIFEST_NAME, limit=MAX_MANIFEST))
        scratch = memoryview(bytearray(CHUNK + TAG_LENGTH))
        for entry in manifest.files:
            for index in range(entry.chunks):
                start, length = entry.chunk_range(index)
                self._store.read_into(place, entry.name, start, scratch[:length])

    def plan(self, place: Place, release: Release, timings: Timings) -> Plan:
        """Fetch and check the manifest and the description.

        :raises Tampered: ``manifest-digest``: the store holds another manifest than was released.
        :raises Unavailable: from the store.
        """
        with timings.stage(Stage.MODEL_FETCH):
            data = self._read(place, MANIFEST_NAME, MAX_MANIFEST)
        if digest_of(data) != release.manifest_digest:
            raise Tampered("manifest-digest", "the model store holds another manifest than the KeyService released")
        manifest = Manifest.parse(data)
        if (manifest.model, manifest.version) != (place.model, release.version):
            raise Tampered("manifest-other-model", "the manifest is of another model or version than was released")
        description = Description.decode(
            self._small(place, manifest, release, DESCRIPTION, limit=_MAX_DESCRIPTION, timings=timings)
        )
        package = Package.parse(description.package)
        if package.engine not in self._engines:
            raise Refused("engine-not-allowed", f"this runtime runs no models of the engine {package.engine!r}")
        variant = package.choose(self._cpu())
        if (place.digest, variant.name) in self._failed:
            variant = package.variants[-1]
        return Plan(place, manifest, description, package, variant, *_memory(manifest, variant))

    def load(self, plan: Plan, release: Release, timings: Timings) -> LoadedModel:
        """Fetch, decrypt and start the engine.

        A tuned variant whose known answer differs here is refused once, and the plain one planned from then on.
        """
        files: dict[str, WeightBuffer] = {}
        checks: list[Future[None]] = []
        try:
            self._fetch(plan, release, files, timings)
            checks.append(self._readers.submit(_confirm_roots, plan, release.model_key, files))
            with timings.stage(Stage.ENGINE_INIT):
                views = {name: buffer.view[: _true_size(plan, name)] for name, buffer in files.items()}
                session = plan.package.load(plan.variant, views, threads=self._threads, verify=False)
        except BaseException:
            wait(checks)
            for buffer in files.values():
                self._pool.give(buffer)
            raise
        if (plan.place.digest, plan.variant.name) not in self._passed:
            checks.append(self._readers.submit(self._ask, plan, session))
        return LoadedModel(plan, session, files, self._pool, checks)

    def _ask(self, plan: Plan, session: Session) -> None:
        name = (plan.place.digest, plan.variant.name)
        try:
            plan.package.confirm(session)
        except Unavailable:
            self._failed.add(name)
            raise
        self._passed.add(name)

    def _fetch(self, plan: Plan, release: Release, files: dict[str, WeightBuffer], timings: Timings) -> None:
        chunks: list[tuple[FileEntry, FileCipher, int]] = []
        for name in plan.variant.files:
            entry = plan.manifest.file(name)
            if name == plan.variant.graph and entry.size > MAX_GRAPH_BYTES:
                raise Refused("model-too-large", f"the model's graph has more than {MAX_GRAPH_BYTES} bytes")
            files[name] = self._pool.take(entry.size)
            cipher = FileCipher.of(release.model_key, plan.manifest, entry)
            chunks += [(entry, cipher, index) for index in range(entry.chunks)]
        work = _Chunks(chunks, self._store, plan.place, files)
        started = perf_counter()
        running = [self._readers.submit(work.run) for _ in range(min(READERS, len(chunks)) - 1)]
        work.run()
        for other in running:
            if not other.cancel():
                wait([other])
        elapsed = perf_counter() - started
        if work.failed is not None:
            raise work.failed
        # Reading and decrypting overlap: the elapsed time is shared out in proportion to the work of each.
        share = work.reading / ((work.reading + work.decrypting) or 1.0)
        timings.add(Stage.MODEL_FETCH, elapsed * share)
        timings.add(Stage.MODEL_DECRYPT, elapsed * (1 - share))

    def _small(
        self, place: Place, manifest: Manifest, release: Release, name: str, *, limit: int, timings: Timings
    ) -> bytes:
        """A whole small file, its root confirmed at once."""
        entry = manifest.file(name)
        if entry.size > limit:
            raise Refused("model-too-large", f"the model's file {name!r} has more than {limit} bytes")
        with timings.stage(Stage.MODEL_FETCH):
            stored = memoryview(self._read(place, name, entry.stored_size))
        if stored.nbytes != entry.stored_size:
            raise Tampered("model-file-length", f"the model's file {name!r} has another length than its owner signed")
        cipher = FileCipher.of(release.model_key, manifest, entry)
        out = bytearray(entry.size)
        root = RootHash()
        for index in range(entry.chunks):
            start, length = entry.chunk_range(index)
            part = stored[start : start + length]
            root.update(hashlib.sha256(part).digest())
            cipher.open_into(index, part, memoryview(out)[index * CHUNK : index * CHUNK + length - TAG_LENGTH])
        if root.digest() != entry.root:
            raise _other_root(name)
        return bytes(out)


class _Chunks:
    """Chunks shared out among reader threads; the first failure stops all."""

    def __init__(
        self,
        chunks: list[tuple[FileEntry, FileCipher, int]],
        store: ModelStore,
        place: Place,
        files: Mapping[str, WeightBuffer],
    ) -> None:
        self._chunks = iter(chunks)
        self._store = store
        self._place = place
        self._views = {name: buffer.view for name, buffer in files.items()}
        self._lock = threading.Lock()
        self.failed: CloisterError | None = None
        self.reading = 0.0
        self.decrypting = 0.0

    def run(self) -> None:
        """Read and decrypt until nothing is left."""
        stored = memoryview(bytearray(CHUNK + TAG_LENGTH))
        reading = decrypting = 0.0
        while True:
            with self._lock:
                task = next(self._chunks, None) if self.failed is None else None
            if task is None:
                break
            entry, cipher, index = task
            start, length = entry.chunk_range(index)
            out = self._views[entry.name][index * CHUNK : index * CHUNK + length - TAG_LENGTH]
            begun = perf_counter()
            try:
                self._store.read_into(self._place, entry.name, start, stored[:length])
                read = perf_counter()
                cipher.open_into(index, stored[:length], out)
            except CloisterError as error:
                with self._lock:
                    self.failed = self.failed or error
                break
            reading += read - begun
            decrypting += perf_counter() - read
        with self._lock:
            self.reading += reading
            self.decrypting += decrypting


def _confirm_roots(plan: Plan, model_key: SecretBytes, files: Mapping[str, WeightBuffer]) -> None:
    """:raises Tampered: ``model-root``."""
    for name, buffer in files.items():
        entry = plan.manifest.file(name)
        cipher = FileCipher.of(model_key, plan.manifest, entry)
        root = RootHash()
        for index in range(entry.chunks):
            sealed = cipher.seal(index, buffer.view[index * CHUNK : min((index + 1) * CHUNK, entry.size)])
            root.update(hashlib.sha256(sealed).digest())
        if root.digest() != entry.root:
            raise _other_root(name)


def _other_root(name: str) -> Tampered:
    return Tampered("model-root", f"the model's file {name!r} is not the one in the manifest its owner signed")


def _true_size(plan: Plan, name: str) -> int:
    """Without the padding."""
    size = plan.description.sizes.get(name, -1)
    if not 0 <= size <= plan.manifest.file(name).size:
        raise InvalidInput("description-sizes", f"the model's description gives no proper size for {name!r}")
    return size


def _memory(manifest: Manifest, variant: Variant) -> tuple[int, int]:
    """What a model takes in the end, and at most while it is loaded."""
    sizes = {name: manifest.file(name).size for name in variant.files}
    lent = sum(sizes[name] for name in variant.lent)
    given = sum(sizes.values()) - lent
    factor = _PLAIN_PEAK if variant.tuned_for is None else _REPACKED_PEAK
    resident = int((lent + given) * _RESIDENT) + CHUNK
    return resident, max(resident, int(lent * _LENT_PEAK + given * factor) + CHUNK)
