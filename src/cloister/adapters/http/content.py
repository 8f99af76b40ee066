"""What a message body is given as. Imports nothing that runs: both clients and the server share it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

Buffer = bytes | bytearray | memoryview
Content = Buffer | Sequence[Buffer] | AsyncIterator[Buffer]
