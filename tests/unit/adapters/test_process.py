"""Settings of the process itself."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys

from cloister.adapters.process import raise_file_limit, run, tune_allocator


def test_settings_are_taken() -> None:
    code = "from cloister.adapters.process import tune_allocator; raise SystemExit(not tune_allocator())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert tune_allocator() in {True, False}
    limit = raise_file_limit()
    assert limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_services_run_on_uvloop() -> None:
    async def main() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert run(main()) == "uvloop"
