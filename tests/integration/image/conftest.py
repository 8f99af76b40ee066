"""The images under test: ``make test-image`` builds them and names them in CLOISTER_TEST_[GATEWAY_]IMAGE."""

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
def gateway_image() -> str:
    name = os.environ.get("CLOISTER_TEST_GATEWAY_IMAGE", "")
    if not name:
        pytest.skip("NO GATEWAY IMAGE IS TESTED: CLOISTER_TEST_GATEWAY_IMAGE names none; see `make test-image`")
    return name


@pytest.fixture(params=["services", "control"])
def either(request: pytest.FixtureRequest, image: str) -> str:
    """One image after the other."""
    return image if request.param == "services" else str(request.getfixturevalue("gateway_image"))


@pytest.fixture(scope="session")
def engine(image: str) -> Engine:
    try:
        return Engine.find(image)
    except Unavailable as error:
        if os.environ.get("CLOISTER_TEST_IMAGE_REQUIRED"):
            raise
        pytest.skip(f"NO IMAGE IS TESTED: no container engine can run {image}: {error}")
