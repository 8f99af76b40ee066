"""Chunks of a model's files: read by several threads, decrypted where the engine will use them, their roots confirmed.

A file's ciphertext can lie in its own weights buffer before the key is there: each chunk at its plaintext's place, its
tag beside. It is hashed as it comes, from memory of ours, so its root needs no second look; decrypting it in place
then takes one more copy, of 1 MiB at a time.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping
from time import perf_counter

from cloister.adapters.modelstore.port import ModelStore, Place
from cloister.base.errors import CloisterError, Tampered
from cloister.crypto.box import TAG_LENGTH
from cloister.engines.buffers import WeightBuffer
from cloister.wire.manifest import CHUNK, FileCipher, FileEntry, RootHash


class IncomingFile:
    """One file on its way into a buffer of ours.

    :param buffer: at least ``entry.size`` bytes; ciphertext first, plaintext in the end.
    """

    __slots__ = ("_digests", "_tags", "buffer", "entry")

    def __init__(self, entry: FileEntry, buffer: WeightBuffer) -> None:
        self.entry = entry
        self.buffer = buffer
        self._tags = bytearray(entry.chunks * TAG_LENGTH)
        self._digests: list[bytes | None] = [None] * entry.chunks  # of stored chunks that lie in the buffer

    def _place(self, index: int) -> memoryview:
        return self.buffer.view[index * CHUNK : min((index + 1) * CHUNK, self.entry.size)]

    def arrived(self, index: int) -> bool:
        """Whether a chunk's ciphertext is here."""
        return self._digests[index] is not None

    def put(self, index: int, stored: memoryview) -> None:
        """Keep a stored chunk until the key is there."""
        self._place(index)[:] = stored[:-TAG_LENGTH]
        self._tags[index * TAG_LENGTH : (index + 1) * TAG_LENGTH] = stored[-TAG_LENGTH:]
        self._digests[index] = hashlib.sha256(stored).digest()

    def get(self, index: int, stored: memoryview) -> None:
        """The stored chunk again, into memory of its own: it is decrypted into the place it lies in."""
        stored[:-TAG_LENGTH] = self._place(index)
        stored[-TAG_LENGTH:] = self._tags[index * TAG_LENGTH : (index + 1) * TAG_LENGTH]

    def open(self, index: int, cipher: FileCipher, stored: memoryview) -> None:
        """:raises Tampered: ``model-chunk``."""
        cipher.open_into(index, stored, self._place(index))

    def confirm(self, cipher: FileCipher) -> None:
        """The owner's root, from what came, or from the plaintext in use (AES-GCM has one ciphertext for it).

        :raises Tampered: ``model-root``.
        """
        root = RootHash()
        for index, found in enumerate(self._digests):
            root.update(found or hashlib.sha256(cipher.seal(index, self._place(index))).digest())
        if root.digest() != self.entry.root:
            raise other_root(self.entry.name)


class Reading:
    """Chunks shared out among threads that call :meth:`run`; the first failure stops all.

    :param ciphers: by file; without, ciphertext is fetched and kept.
    """

    def __init__(
        self,
        store: ModelStore,
        place: Place,
        files: Iterable[IncomingFile],
        ciphers: Mapping[str, FileCipher] | None = None,
    ) -> None:
        self._store = store
        self._place = place
        self._ciphers = ciphers
        self._tasks = iter([(file, index) for file in files for index in range(file.entry.chunks)])
        self._lock = threading.Lock()
        self._stopped = False
        self.failed: CloisterError | None = None
        self.reading = 0.0
        self.decrypting = 0.0

    def stop(self) -> None:
        """Begin no further chunk."""
        with self._lock:
            self._stopped = True

    def run(self) -> None:
        """Until nothing is left."""
        scratch = memoryview(bytearray(CHUNK + TAG_LENGTH))
        reading = decrypting = 0.0
        while True:
            with self._lock:
                task = None if self._stopped or self.failed is not None else next(self._tasks, None)
            if task is None:
                break
            file, index = task
            start, length = file.entry.chunk_range(index)
            stored = scratch[:length]
            begun = perf_counter()
            try:
                if self._ciphers is not None and file.arrived(index):
                    file.get(index, stored)
                else:
                    self._store.read_into(self._place, file.entry.name, start, stored)
                read = perf_counter()
                if self._ciphers is not None:
                    file.open(index, self._ciphers[file.entry.name], stored)
                else:
                    file.put(index, stored)
            except CloisterError as error:
                with self._lock:
                    self.failed = self.failed or error
                break
            reading += read - begun
            decrypting += perf_counter() - read
        with self._lock:
            self.reading += reading
            self.decrypting += decrypting


def other_root(name: str) -> Tampered:
    """What a file says that is not the one in the manifest."""
    return Tampered("model-root", f"the model's file {name!r} is not the one in the manifest its owner signed")
