"""The driver against a real OpenWhisk: set CLOISTER_OPENWHISK to its API's address, and

CLOISTER_OPENWHISK_AUTH        a file with uuid:key of a namespace
CLOISTER_OPENWHISK_IMAGE       the image, pushed where the platform's invokers pull from
CLOISTER_OPENWHISK_PARAMETERS  a JSON file with the actions' init parameters; without it everything is
                               tried up to where a runtime would need them
CLOISTER_OPENWHISK_CA          a file with the API's certificate, where no public authority has certified it
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from pathlib import Path

import pytest

from cloister.adapters.http.client import AsyncHttpClient
from cloister.platforms.openwhisk.driver import OpenWhiskPlatform
from cloister.platforms.openwhisk.settings import OpenWhiskSettings
from cloister.platforms.port import Gone, Ready
from cloister.testing.gateway import MODEL
from cloister.testing.logs import MemoryLog

API = os.environ.get("CLOISTER_OPENWHISK", "")
PARAMETERS = os.environ.get("CLOISTER_OPENWHISK_PARAMETERS", "")


def settings(parameters: dict[str, str]) -> OpenWhiskSettings:
    return OpenWhiskSettings(
        api=API,
        auth=Path(os.environ["CLOISTER_OPENWHISK_AUTH"]).read_text().strip(),
        image=os.environ["CLOISTER_OPENWHISK_IMAGE"],
        deployment=f"cloister-test-{secrets.token_hex(4)}",
        parameters=parameters,
        memory_mb=int(os.environ.get("CLOISTER_OPENWHISK_MEMORY_MB", "512")),
        ca=os.environ.get("CLOISTER_OPENWHISK_CA", ""),
        start_timeout_s=300.0,
    )


@pytest.mark.skipif(not API, reason="CLOISTER_OPENWHISK names no OpenWhisk")
@pytest.mark.timeout(900)
def test_an_action_lives_through_the_driver() -> None:
    parameters = json.loads(Path(PARAMETERS).read_text()) if PARAMETERS else {}

    async def body() -> None:
        platform = OpenWhiskPlatform(settings(parameters), MemoryLog())
        client = AsyncHttpClient()
        try:
            await platform.start("i-1", "g")
            assert [there.instance for there in await platform.running()] == ["i-1"]
            event = await anext(platform.events())
            if not PARAMETERS:
                assert isinstance(event, Gone)
                assert "[argument]" in event.reason, event.reason
                return
            assert isinstance(event, Ready), event
            status = await client.request("GET", event.address, "/v1/status")
            assert json.loads(status.body)["ready"] is True
            target = f"/v1/models/{MODEL}/infer"
            refused = await client.request("POST", event.address, target, content=b"nonsense", deadline_s=120)
            assert refused.status == 400
        finally:
            await platform.stop_all()
            assert not await platform.running()
            await platform.close()
            await client.close()

    asyncio.run(body())
