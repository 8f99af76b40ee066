"""Fixtures that every area of the tests may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from cloister.testing.postgres import PostgresServer, find_server

# The same examples in every run, and no deadline: two cores are shared by whatever else runs.
settings.register_profile("cloister", deadline=None, derandomize=True)
settings.load_profile("cloister")


@pytest.fixture(scope="session")
def evidence_dir() -> Path:
    """Recorded evidence of real TEEs; it is not part of this repository, so tests of it skip where it is absent."""
    named = os.environ.get("CLOISTER_EVIDENCE_DIR")
    repository = Path(__file__).parents[1]
    folder = Path(named) if named else repository.parent / "shared" / "vectors" / "attestation"
    if not folder.is_dir():
        pytest.skip("no recorded evidence: set CLOISTER_EVIDENCE_DIR to a folder that has it")
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server of this process's own. Tests use a namespace each; whoever stops it starts it again."""
    if find_server() is None:
        pytest.skip("no PostgreSQL server here: install Debian's `postgresql`")
    with PostgresServer() as server:
        yield server
