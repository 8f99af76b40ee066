"""The gateway's TOML: what is missing has a default, what is wrong is named."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.base.errors import InvalidInput
from cloister.control.gateway import configuration as config
from cloister.platforms.static.settings import StaticSettings
from cloister.testing.gateway import MODEL, toml

LEAST = b'[platform]\ncommand = ["runtime"]\n'
KUBERNETES = "[platform]\nkind = 'kubernetes'\n[platform.kubernetes]\n"
KNATIVE = "[platform]\nkind = 'knative'\n[platform.knative]\n"
STATIC = "[platform]\nkind = 'static'\n[platform.static]\naddresses = ['http://runtime:8080', 'unix:/run/r']\n"
REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "gateway-configuration.md"


def test_a_command_is_enough() -> None:
    found = config.parse(LEAST)
    assert found.platform.command == ("runtime",)
    assert found.pool.packer == "adaptive"
    assert found.pool.fleet.max_instances == found.pool.max_instances
    assert found.models == ()
    assert found.discovery.enabled


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "platform.command"),
        ("[platform]\ncommand = 'runtime'", "platform.command"),
        ("[platform]\ncommand = [1]", "platform.command"),
        ("[platform\n", "the file"),
        ("\udcff", "the file"),
        ("[pool]\npacker = 'best'", "pool.packer"),
        ("[pool]\nmax_instances = 0", "pool.max_instances"),
        ("[pool]\nmax_instances = 1.5", "pool.max_instances"),
        ("[pool]\nmax_instances = true", "pool.max_instances"),
        ("[pool]\nkeep_alive_s = nan", "pool.keep_alive_s"),
        ("[pool]\nslowdown = []", "pool.slowdown"),
        ("[pool]\nslowdown = [2, 1]", "pool.slowdown"),
        ("[pool]\nkeyless = 3\nmax_instances = 2", "pool.min_instances"),
        ("[pool]\nmin_instances = 3\nmax_instances = 2", "pool.min_instances"),
        ("[pool]\nmaxinstances = 2", "pool.maxinstances"),
        ("[queues]\n", "queues"),
        ("pool = 3", "pool"),
        ("[models.x]\n", "models.'x'"),
        (f'[models."{MODEL}"]\nmemory = 3', f"models.{MODEL}.memory"),
        (f'[models."{MODEL}".stages]\nthinking = 3', f"models.{MODEL}.stages.thinking"),
        ("[discovery]\nenabled = 1", "discovery.enabled"),
        ("[platform]\nkind = 'mainframe'", "platform.kind"),
        ("[platform]\nkind = 'static'", "platform.static.addresses"),
        ("[platform]\nkind = 'static'\n[platform.static]\naddresses = []", "platform.static.addresses"),
        ("[platform]\nkind = 'static'\n[platform.static]\naddresses = ['runtime:8080']", "platform.static.addresses"),
        ("[platform]\nkind = 'static'\n[platform.static]\naddresses = ['http://a/b']", "platform.static.addresses"),
        (STATIC + "poll_s = 0", "platform.static.poll_s"),
        (KUBERNETES + "deployment = 'A'", "platform.kubernetes.deployment"),
        (KUBERNETES + "deployment = ''", "platform.kubernetes.deployment"),
        (KUBERNETES + "container = 'a b'", "platform.kubernetes.container"),
        (KUBERNETES + "port = 0", "platform.kubernetes.port"),
        (KUBERNETES + "namespace = 'a.b'", "platform.kubernetes.namespace"),
        (KUBERNETES + "poll_s = 0.5", "platform.kubernetes.poll_s"),
        (KUBERNETES + "manifest = 'x'", "platform.kubernetes.manifest"),
        (KNATIVE, "platform.knative.manifest"),
        (KNATIVE + "manifest = 'x'\ndeployment = 'a.b'", "platform.knative.deployment"),
        (KNATIVE + f"manifest = 'x'\ndeployment = '{'a' * 41}'", "platform.knative.deployment"),
        (KNATIVE + "manifest = 'x'\nnamespace = 'A'", "platform.knative.namespace"),
        (KNATIVE + "manifest = 'x'\nport = 1", "platform.knative.port"),
        ("[platform]\ncommand = ['x']\n[platform.knative]\nmanifest = 'x'", "platform.knative.manifest"),
        (STATIC + "failures = 0", "platform.static.failures"),
        (STATIC + "address = 'x'", "platform.static.address"),
        ("[platform]\ncommand = ['x']\n[platform.static]\naddresses = ['http://a:1']", "platform.static.addresses"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str) -> None:
    whole = text if "platform" in text or not text else f"{text}\n{LEAST.decode()}"
    with pytest.raises(InvalidInput) as caught:
        config.parse(whole.encode("utf-8", "surrogateescape"))
    assert caught.value.code == "configuration-malformed"
    assert caught.value.message.startswith(f"{named} ")


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_a_configuration_or_told_why_not(data: bytes) -> None:
    try:
        found = config.parse(data)
    except InvalidInput:
        return  # and nothing but that
    assert found.platform.command


def test_a_misspelt_setting_is_put_right() -> None:
    with pytest.raises(InvalidInput) as caught:
        config.parse(LEAST + b"[pool]\nmax_instance = 3\n")
    assert caught.value.hint == "Did you mean 'max_instances'?"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        config.read(tmp_path / "missing.toml")
    assert caught.value.code == "configuration-unreadable"


def _changes(**sections: str) -> config.Changes:
    return config.changes(config.parse(toml().encode()), config.parse(toml(sections).encode()))


def test_changes_are_told_by_what_it_takes_to_follow() -> None:
    old = config.parse(toml().encode())
    assert config.changes(old, old) == config.Changes(
        fleet=False, policies=False, command=False, addresses=False, models=False, restart=()
    )
    fleet = config.changes(old, config.parse(toml(pool="max_instances = 7").encode()))
    assert fleet.fleet
    assert not fleet.policies
    assert config.changes(old, config.parse(toml(pool='max_instances = 2\npacker = "fnpacker"').encode())).policies
    assert config.changes(old, config.parse(toml(command=["other"]).encode())).command
    assert config.changes(old, config.parse(toml(models=()).encode())).models
    static = config.parse(STATIC.encode())
    moved = config.changes(static, config.parse(STATIC.replace("unix:/run/r", "https://other").encode()))
    assert (moved.addresses, moved.restart) == (True, ())
    assert config.changes(old, static).restart == ("platform.kind",)
    assert _changes(store='url = "elsewhere"').restart == ("store.url",)
    assert _changes(limits="connections = 7").restart == ("limits.connections",)


def test_stages_of_a_model_are_taken_over() -> None:
    text = f'[models."{MODEL}"]\nmemory_mb = 3\nslo_ms = 50\nshares_with = ["*"]\nstages.inference = 12'
    (model,) = config.parse(LEAST + text.encode()).models
    assert model.stages is not None
    assert model.stages.inference == 12
    assert model.shares_with == {"*"}


def test_every_setting_is_in_the_reference() -> None:
    text = REFERENCE.read_text()
    pairs = [
        ("platform", config.PlatformSettings),
        ("static", StaticSettings),
        ("pool", config.PoolSettings),
        ("queue", config.QueueSettings),
        ("circuit", config.CircuitSettings),
        ("discovery", config.DiscoverySettings),
    ]
    names = [field.name for _, settings in pairs for field in fields(settings)]
    names += ["url", "max_body_mb", "retry_body_mb", "buffers_mb", "user_rate_per_s", "user_burst", "answer_s"]
    names += ["user_concurrency", "users", "connections", "drain_s", "shares_with", "stages"]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_example_in_the_reference_is_good() -> None:
    blocks = REFERENCE.read_text().split("```toml\n")[1:]
    assert blocks
    for block in blocks:
        config.parse(block.partition("```")[0].encode())


def test_a_gateway_in_a_cluster_needs_little() -> None:
    found = config.parse(KUBERNETES.encode()).platform
    assert found.kubernetes is not None
    assert (found.kubernetes.deployment, found.kubernetes.container, found.kubernetes.port) == (
        "cloister-runtime",
        "runtime",
        8080,
    )
    other = config.parse((KNATIVE + "manifest = '/etc/service.yaml'\nnamespace = 'ml'").encode()).platform
    assert other.knative is not None
    assert (other.manifest, other.knative.cluster.namespace) == ("/etc/service.yaml", "ml")
    old, new = config.parse(KUBERNETES.encode()), config.parse((KUBERNETES + "port = 9").encode())
    assert config.changes(old, new).restart == ("platform.kubernetes",)


def test_no_driver_and_no_client_of_a_cluster_is_loaded_before_one_is_configured(tmp_path: Path) -> None:
    """Nor is either where a runtime or a KeyService could reach it."""
    names = (
        "kubernetes",
        "aiohttp",
        "yaml",
        "cloister.platforms.kubernetes.driver",
        "cloister.platforms.knative.driver",
    )
    check = f"import sys; print([name for name in {names} if name in sys.modules])"
    loads = "import cloister.control.gateway.app, cloister.runtime.app, cloister.keyservice.app, cloister.cli.gateway"
    done = subprocess.run([sys.executable, "-c", f"{loads}; {check}"], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
