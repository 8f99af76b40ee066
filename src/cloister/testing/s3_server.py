"""A real S3 server for tests: moto's, in a process of its own on a port of loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
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
    :param users: their policies, as JSON. With users, signatures are verified and policies hold; without, anybody may
        do anything.
    """

    def __init__(self, *buckets: str, users: Mapping[str, str] | None = None) -> None:
        self._buckets = buckets
        self._users = users or {}
        self._folder = tempfile.TemporaryDirectory(prefix="cloister-s3-")
        self.address = ""

    def credentials(self, user: str = "") -> Path:
        """A file with keys it accepts, as AWS's tools write it."""
        return Path(self._folder.name) / f"credentials-{user}"

    def url(self, bucket: str, prefix: str = "models", *, address: str = "", user: str = "") -> str:
        """A model store in a bucket, seen through ``address``, with credentials."""
        where = address or self.address
        return f"s3://{bucket}/{prefix}?region=us-east-1&endpoint={where}&credentials={self.credentials(user)}"

    def __enter__(self) -> S3Server:
        """:raises Unavailable: ``service-not-started``."""
        self._keep("", ACCESS_KEY, SECRET_KEY)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        log = Path(self._folder.name) / "log"
        environment = dict(os.environ)
        if self._users:  # so many calls are free: those below
            environment["INITIAL_NO_AUTH_ACTION_COUNT"] = str(len(self._buckets) + 3 * len(self._users))
        with log.open("wb") as out:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
            self._process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)  # noqa: S603
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
            self._make_users()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        finally:
            client.close()
        return self

    def _make_users(self) -> None:
        if not self._users:
            return
        import boto3

        iam = boto3.client(
            "iam",
            endpoint_url=self.address,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        for user, policy in self._users.items():
            iam.create_user(UserName=user)
            iam.put_user_policy(UserName=user, PolicyName="models", PolicyDocument=policy)
            key = iam.create_access_key(UserName=user)["AccessKey"]
            self._keep(user, key["AccessKeyId"], key["SecretAccessKey"])

    def _keep(self, user: str, key: str, secret: str) -> None:
        self.credentials(user).write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key={secret}\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()
