"""A real S3 server for tests: moto's, in a process of its own on a port of loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.blocking import HttpClient
from cloister.base.errors import CloisterError, Unavailable

ACCESS_KEY: Final = "AKIACLOISTERTEST"
SECRET_KEY: Final = "no-secret-of-anybody"  # noqa: S105
_STARTS_WITHIN_S: Final = 60.0


class S3Server:
    """A context manager.

    :param buckets: made at once.
    """

    def __init__(self, *buckets: str) -> None:
        self._buckets = buckets
        self._folder = tempfile.TemporaryDirectory(prefix="cloister-s3-")
        self.address = ""

    @property
    def credentials(self) -> Path:
        """A file with keys it accepts, as AWS's tools write it."""
        return Path(self._folder.name) / "credentials"

    def url(self, bucket: str, prefix: str = "models", *, address: str = "") -> str:
        """A model store in a bucket, seen through ``address``, with credentials."""
        where = address or self.address
        return f"s3://{bucket}/{prefix}?region=us-east-1&endpoint={where}&credentials={self.credentials}"

    def __enter__(self) -> S3Server:
        """:raises Unavailable: ``service-not-started``."""
        self.credentials.write_text(f"[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        log = Path(self._folder.name) / "log"
        with log.open("wb") as out:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
            self._process = subprocess.Popen(command, stdout=out, stderr=out)  # noqa: S603
        self.address = f"http://127.0.0.1:{port}"
        client, end = HttpClient(SystemClock()), time.monotonic() + _STARTS_WITHIN_S
        waiting = list(self._buckets)
        try:
            while waiting:
                try:
                    client.request("PUT", self.address, f"/{waiting[0]}").checked()
                    waiting.pop(0)
                except CloisterError as error:
                    if self._process.poll() is not None or time.monotonic() > end:
                        tail = log.read_text("utf-8", "replace").splitlines()[-1:]
                        raise Unavailable("service-not-started", f"no S3 server: {' '.join(tail)}") from error
                    time.sleep(0.05)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        finally:
            client.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()
