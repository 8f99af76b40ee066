"""From encrypted files to a session, straight into the memory the engine uses (spec/model-format.md, section 5).

Chunks are read in parallel, each decrypted from its read buffer into its place in a weights buffer: one copy of the
weights, and a read buffer a reader. The owner's signed root of every file is confirmed *from the plaintext in use*:
AES-GCM has one ciphertext for a key, nonce and plaintext, so encrypting a chunk again gives the very bytes that the
owner signed, at memory speed and without keeping them. That runs beside the engine's start on another core; nothing
is answered before it has ended well. What came ahead of its key (``ahead``) was hashed as it came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, wait
from time import perf_counter

from cloister.adapters.modelstore.port import ModelStore, Place
from cloister.base.errors import InvalidInput, Refused, Tampered, Unavailable
from cloister.base.limits import MAX_GRAPH_BYTES, MAX_MANIFEST
from cloister.crypto.box import TAG_LENGTH
from cloister.engines.buffers import BufferPool
from cloister.engines.cpu import Cpu
from cloister.engines.package import Package
from cloister.engines.port import Session
from cloister.runtime.ahead import MAX_DESCRIPTION, Ahead, Arrival
from cloister.runtime.chunks import IncomingFile, Reading, other_root
from cloister.runtime.loaded import LoadedModel, Plan, memory_of
from cloister.runtime.stages import Stage, Timings
from cloister.wire.manifest import CHUNK, DESCRIPTION, MANIFEST_NAME, Description, FileCipher, Manifest, RootHash
from cloister.wire.manifest import manifest_digest as digest_of
from cloister.wire.provisioning import Release


class Loader:
    """Loads models. Safe for many threads.

    :param readers: runs reads and decryption; never the executor that :meth:`load` itself runs on.
    :param cpu: what this machine can run.
    :param engines: those that the measured configuration names.
    :param ahead: what was fetched before it was asked for.
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
        ahead: Ahead,
    ) -> None:
        self._store = store
        self._readers = readers
        self._pool = pool
        self._cpu = cpu
        self._threads = threads
        self._engines = engines
        self._ahead = ahead
        # Variants whose known answer came out right, or wrong, in this process: (manifest digest, variant).
        self._passed: set[tuple[bytes, str]] = set()
        self._failed: set[tuple[bytes, str]] = set()

    def plan(self, place: Place, release: Release, timings: Timings) -> Plan:
        """Fetch and check the manifest and the description.

        :raises Tampered: ``manifest-digest``: the store holds another manifest than was released.
        :raises Unavailable: from the store.
        """
        arrival = self._ahead.take(place)
        try:
            return self._plan(place, release, arrival, timings)
        except BaseException:
            if arrival is not None:
                self._ahead.free(arrival)
            raise

    def drop(self, plan: Plan) -> None:
        """A plan that will not be carried out."""
        if plan.arrival is not None:
            self._ahead.free(plan.arrival)

    def _plan(self, place: Place, release: Release, arrival: Arrival | None, timings: Timings) -> Plan:
        small = dict(arrival.small) if arrival is not None else {}
        with timings.stage(Stage.MODEL_FETCH):
            data = small.get(MANIFEST_NAME) or self._store.read(place, MANIFEST_NAME, limit=MAX_MANIFEST)
        if digest_of(data) != release.manifest_digest:
            raise Tampered("manifest-digest", "the model store holds another manifest than the KeyService released")
        manifest = Manifest.parse(data)
        if (manifest.model, manifest.version) != (place.model, release.version):
            raise Tampered("manifest-other-model", "the manifest is of another model or version than was released")
        description = Description.decode(self._description(place, manifest, release, small.get(DESCRIPTION), timings))
        package = Package.parse(description.package)
        if package.engine not in self._engines:
            raise Refused("engine-not-allowed", f"this runtime runs no models of the engine {package.engine!r}")
        variant = package.choose(self._cpu())
        if (place.digest, variant.name) in self._failed:
            variant = package.variants[-1]
        return Plan(place, manifest, description, package, variant, *memory_of(manifest, variant), arrival)

    def load(self, plan: Plan, release: Release, timings: Timings) -> LoadedModel:
        """Fetch, decrypt and start the engine.

        A tuned variant whose known answer differs here is refused once, and the plain one planned from then on.
        """
        files: dict[str, IncomingFile] = {}
        checks: list[Future[None]] = []
        try:
            self._take(plan, files)
            ciphers = {
                name: FileCipher.of(release.model_key, plan.manifest, file.entry) for name, file in files.items()
            }
            self._fetch(plan.place, files, ciphers, timings)
            checks.append(self._readers.submit(_confirm_roots, files, ciphers))
            with timings.stage(Stage.ENGINE_INIT):
                views = {name: file.buffer.view[: _true_size(plan, name)] for name, file in files.items()}
                session = plan.package.load(plan.variant, views, threads=self._threads, verify=False)
        except BaseException:
            wait(checks)
            for file in files.values():
                self._pool.give(file.buffer)
            raise
        buffers = {name: file.buffer for name, file in files.items()}
        if (plan.place.digest, plan.variant.name) not in self._passed:
            checks.append(self._readers.submit(self._ask, plan, session))
        return LoadedModel(plan, session, buffers, self._pool, checks)

    def _ask(self, plan: Plan, session: Session) -> None:
        name = (plan.place.digest, plan.variant.name)
        try:
            plan.package.confirm(session)
        except Unavailable:
            self._failed.add(name)
            raise
        self._passed.add(name)

    def _take(self, plan: Plan, files: dict[str, IncomingFile]) -> None:
        """A buffer for every file, with what has come already; what came in vain is given back."""
        come = plan.arrival.files if plan.arrival is not None else {}
        for name in set(come) - set(plan.variant.files):
            come.pop(name).buffer.release()
        for name in plan.variant.files:
            entry = plan.manifest.file(name)
            if name == plan.variant.graph and entry.size > MAX_GRAPH_BYTES:
                raise Refused("model-too-large", f"the model's graph has more than {MAX_GRAPH_BYTES} bytes")
            file = come.pop(name, None)
            files[name] = file if file is not None else IncomingFile(entry, self._pool.take(entry.size))

    def _fetch(
        self, place: Place, files: Mapping[str, IncomingFile], ciphers: Mapping[str, FileCipher], timings: Timings
    ) -> None:
        work = Reading(self._store, place, files.values(), ciphers)
        started = perf_counter()
        helpers = min(self._store.parallel, sum(file.entry.chunks for file in files.values())) - 1
        running = [self._readers.submit(work.run) for _ in range(helpers)]
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

    def _description(
        self, place: Place, manifest: Manifest, release: Release, come: bytes | None, timings: Timings
    ) -> bytes:
        """The whole description, its root confirmed at once."""
        entry = manifest.file(DESCRIPTION)
        if entry.size > MAX_DESCRIPTION:
            raise Refused("model-too-large", f"the model's description has more than {MAX_DESCRIPTION} bytes")
        with timings.stage(Stage.MODEL_FETCH):
            stored = memoryview(come or self._store.read(place, DESCRIPTION, limit=entry.stored_size))
        if stored.nbytes != entry.stored_size:
            raise Tampered("model-file-length", "the model's description has another length than its owner signed")
        cipher = FileCipher.of(release.model_key, manifest, entry)
        out = bytearray(entry.size)
        root = RootHash()
        for index in range(entry.chunks):
            start, length = entry.chunk_range(index)
            part = stored[start : start + length]
            root.update(hashlib.sha256(part).digest())
            cipher.open_into(index, part, memoryview(out)[index * CHUNK : index * CHUNK + length - TAG_LENGTH])
        if root.digest() != entry.root:
            raise other_root(DESCRIPTION)
        return bytes(out)


def _confirm_roots(files: Mapping[str, IncomingFile], ciphers: Mapping[str, FileCipher]) -> None:
    """:raises Tampered: ``model-root``."""
    for name, file in files.items():
        file.confirm(ciphers[name])


def _true_size(plan: Plan, name: str) -> int:
    """Without the padding."""
    size = plan.description.sizes.get(name, -1)
    if not 0 <= size <= plan.manifest.file(name).size:
        raise InvalidInput("description-sizes", f"the model's description gives no proper size for {name!r}")
    return size
