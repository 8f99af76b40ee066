"""Credentials of S3 from a file, as AWS's tools write it: read again now and then, so that they can be rotated.

[default]
aws_access_key_id = AKIA...
aws_secret_access_key = ...
aws_session_token = ...         only of temporary ones
"""

from __future__ import annotations

import configparser
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cloister.base.clock import Clock
from cloister.base.errors import InvalidInput

_MAX_FILE: Final = 64 * 1024
_KEPT: Final = timedelta(minutes=5)


class CredentialsFile:
    """What obstore calls whenever it needs credentials; it keeps them until they expire."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """:raises InvalidInput: ``store-credentials-malformed``."""
        self._path = path
        self._clock = clock
        self()

    def __call__(self) -> dict[str, Any]:
        """The profile ``default``."""
        parser = configparser.ConfigParser(interpolation=None)
        try:
            with self._path.open(encoding="utf-8") as file:
                parser.read_string(file.read(_MAX_FILE))
            profile = parser["default"]
            return {
                "access_key_id": profile["aws_access_key_id"],
                "secret_access_key": profile["aws_secret_access_key"],
                "token": profile.get("aws_session_token"),
                "expires_at": datetime.fromtimestamp(self._clock.now(), UTC) + _KEPT,
            }
        except (OSError, ValueError, KeyError, configparser.Error):
            raise InvalidInput(
                "store-credentials-malformed",
                f"{self._path} holds no AWS credentials",
                hint="It needs [default] with aws_access_key_id and aws_secret_access_key, and must be readable.",
            ) from None  # parsers quote the line they fail at
