"""The image under test: ``make test-image`` builds it and names it in CLOISTER_TEST_IMAGE."""

from __future__ import annotations

import os

import pytest

from cloister.base.errors import Unavailable
from cloister.testing.containers import Engine


@pytest.fixture(scope="session")
def image() -> str:
    name = os.environ.get("CLOISTER_TEST_IMAGE", "")
    if not name:
        pytest.skip("NO IMAGE IS TESTED: CLOISTER_TEST_IMAGE names none; `make test-image` builds one and runs this")
    return name


@pytest.fixture(scope="session")
def engine(image: str) -> Engine:
    try:
        return Engine.find(image)
    except Unavailable as error:
        if os.environ.get("CLOISTER_TEST_IMAGE_REQUIRED"):
            raise
        pytest.skip(f"NO IMAGE IS TESTED: no container engine can run {image}: {error}")
