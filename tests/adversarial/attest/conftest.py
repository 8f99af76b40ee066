"""Throw-away authorities, made once: RSA keys take a moment."""

from __future__ import annotations

import pytest

from cloister.testing.evidence_nitro import NitroAuthority
from cloister.testing.evidence_snp import SnpAuthority


@pytest.fixture(scope="session")
def amd() -> SnpAuthority:
    return SnpAuthority.create()


@pytest.fixture(scope="session")
def aws() -> NitroAuthority:
    return NitroAuthority.create()
