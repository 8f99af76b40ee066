"""What an action takes of its init parameters into the process's environment: an object store's, and nothing else."""

from __future__ import annotations

import os

import pytest

from cloister.adapters.clock import SystemClock
from cloister.base.errors import InvalidInput
from cloister.cli.openwhisk_action import compose


def test_only_an_object_stores_variables_become_the_processs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "GOOGLE_SERVICE_ACCOUNT_KEY", "AZURE_STORAGE_ACCOUNT_KEY"):
        monkeypatch.setenv(name, "before")  # taken back afterwards
    given = {
        "AWS_ACCESS_KEY_ID": "one",
        "GOOGLE_SERVICE_ACCOUNT_KEY": "two",
        "AZURE_STORAGE_ACCOUNT_KEY": "three",
        "LD_PRELOAD": "/tmp/evil.so",
        "CLOISTER_STORE": "s3://models/prod",
    }
    with pytest.raises(InvalidInput, match="--bundle-root"):  # the rest is missing here
        compose(given, SystemClock())
    assert os.environ["AWS_ACCESS_KEY_ID"] == "one"
    assert os.environ["GOOGLE_SERVICE_ACCOUNT_KEY"] == "two"
    assert os.environ["AZURE_STORAGE_ACCOUNT_KEY"] == "three"
    assert not {"LD_PRELOAD", "CLOISTER_STORE"} & os.environ.keys()
