"""The example configuration is one, and each mistake in it is told by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.adapters.clock import SystemClock
from cloister.base.errors import InvalidInput
from cloister.cli.openwhisk_action import compose, options
from cloister.control.gateway import configuration
from cloister.control.gateway.platforms import make_platform
from cloister.testing.logs import MemoryLog

FILE = Path(__file__).parents[3] / "deploy" / "openwhisk" / "gateway.toml"


def test_the_example_is_read() -> None:
    read = configuration.read(FILE)
    settings = read.platform.openwhisk
    assert settings is not None
    assert (settings.memory_mb, settings.concurrency, settings.deployment) == (768, 1, "cloister")
    assert read.pool.concurrency == settings.concurrency
    parsed = options({**settings.parameters, "CLOISTER_BUNDLE": "base64:AAAA"})
    assert (parsed.memory_mb, parsed.concurrency) == (512, 1)
    assert Path(parsed.bundle).read_bytes() == b"\0\0\0"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("api = ", "apo = ", "platform.openwhisk.api"),
        ('api = "https://openwhisk.example"', 'api = "ftp://x"', "platform.openwhisk.api"),
        ('image = "registry.example/cloister:0.1.0"', "", "platform.openwhisk.image"),
        ("memory_mb = 768", "memory_mb = 0", "platform.openwhisk.memory_mb"),
        ('deployment = "cloister"', 'deployment = "a/b"', "platform.openwhisk.deployment"),
        ('namespace = "_"', 'namespace = "?x"', "platform.openwhisk.namespace"),
        ('CLOISTER_MEMORY_MB = "512"', "CLOISTER_MEMORY_MB = 512", "parameters.CLOISTER_MEMORY_MB"),
        ('auth_file = "/etc/cloister/openwhisk.auth"', "", "platform.openwhisk.auth_file"),
        ('kind = "openwhisk"', 'kind = "local"', "platform.command"),
    ],
)
def test_mistakes_are_named(old: str, new: str, named: str) -> None:
    text = FILE.read_text()
    assert old in text
    with pytest.raises(InvalidInput) as caught:
        configuration.parse(text.replace(old, new, 1).encode())
    assert named in caught.value.message


@pytest.mark.parametrize("content", [None, "", "nocolon", "a:b:c", "a:\x01"])
def test_a_key_that_is_none_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "auth"
    if content is not None:
        file.write_text(content)
    text = FILE.read_text().replace("/etc/cloister/openwhisk.auth", str(file))
    with pytest.raises(InvalidInput) as caught:
        make_platform(configuration.parse(text.encode()).platform, tmp_path / "state", MemoryLog())
    assert caught.value.code == "auth-file-unreadable"


@pytest.mark.parametrize(
    "variables",
    [
        {"CLOISTER_MEMORY_MB": "many"},
        {"CLOISTER_ISOLATION": "none"},
        {"CLOISTER_NO_CO_TENANCY": "yes"},
        {"CLOISTER_BUNDLE": "base64:***"},
        {"CLOISTER_MAX_RESULT": "1 MB"},
        {},
    ],
)
def test_init_parameters_that_are_no_options_are_refused(variables: dict[str, str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        compose(variables, SystemClock())
    assert caught.value.code == "argument"
