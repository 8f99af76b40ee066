"""Before an instance is told to end: wait until nothing is under way in it."""

from __future__ import annotations

import asyncio
import json
from typing import Final

from cloister.adapters.http.client import AsyncHttpClient
from cloister.base.errors import CloisterError

POLL_S: Final = 0.2  # between two questions whether it is idle
GIVE_UP_S: Final = 60.0  # beyond its drain, for an object whose deletion the API does not take


async def drained(client: AsyncHttpClient, address: str, grace_s: float, gone: asyncio.Event) -> None:
    """Until the instance is idle, does not say, is gone, or ``grace_s`` is over; SIGTERM then ends it gracefully."""
    try:
        async with asyncio.timeout(grace_s):
            while not gone.is_set() and await _busy(client, address):  # noqa: ASYNC110  # it has to be asked
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        return


async def _busy(client: AsyncHttpClient, address: str) -> bool:
    try:
        answer = await client.request("GET", address, "/v1/status", deadline_s=2.0)
        status = json.loads(answer.body)
        return any(int(status[name]) > 0 for name in ("in_flight", "queued", "waiting"))
    except (CloisterError, ValueError, KeyError, TypeError, RecursionError):
        return False
