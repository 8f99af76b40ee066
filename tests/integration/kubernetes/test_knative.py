"""The Knative driver on bad days, and what it makes of the operator's manifest."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cloister.base.errors import InvalidInput, Refused, Unavailable
from cloister.platforms.knative.manifest import read_manifest
from cloister.platforms.knative.service import Service, make
from cloister.platforms.kubernetes import api
from cloister.platforms.kubernetes.rbac import KNATIVE, Rule
from cloister.platforms.port import Leaving, Ready
from cloister.testing.gateway import sealed
from cloister.testing.kubernetes.bench import Bench, Driver, run
from cloister.testing.kubernetes.cluster import manifest
from cloister.testing.kubernetes.server import Fault


async def opened(bench: Bench, *args: str, name: str = "k", **settings: Any) -> Driver:
    return await bench.open_knative(name, *args, **settings)


def services(bench: Bench) -> list[str]:
    return [one["metadata"]["name"] for one in bench.cluster.store.all_of("services")]


def test_a_service_is_the_manifest_and_what_makes_it_this_instance(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        d = await opened(bench)
        await d.up("i-1")
        (one,) = bench.cluster.store.all_of("services")
        assert one["metadata"]["name"] == "k-i-1"
        assert one["metadata"]["labels"] == {
            "cloister.dev/deployment": "k",
            "cloister.dev/instance": "i-1",
            "networking.knative.dev/visibility": "cluster-local",
        }
        assert one["metadata"]["annotations"] == {"cloister.dev/group": "group-i-1"}
        template = one["spec"]["template"]
        scale = {f"autoscaling.knative.dev/{bound}-scale": "1" for bound in ("min", "max")}
        assert template["metadata"]["annotations"] == scale
        assert template["spec"] == manifest()["spec"]["template"]["spec"]
        await d.platform.stop_all()
        assert not services(bench)
        assert set(bench.cluster.api.asked) == {(r.group, r.resource, verb) for r in KNATIVE for verb in r.verbs}

    run(tmp_path, body)


@pytest.mark.parametrize(
    "fault", [{"cut": True}, {"cut": True, "late": True}, {"code": 429, "after": 1}, {"code": 500}, {"body": b"[]"}]
)
def test_calls_that_fail_or_are_lost_make_one_service_and_delete_it(tmp_path: Path, fault: dict[str, Any]) -> None:
    async def body(bench: Bench) -> None:
        d = await opened(bench)
        bench.cluster.api.faults = [Fault(verb, "services", **fault) for verb in ("create", "delete", "list")]
        await d.up("i-1")
        assert services(bench) == ["k-i-1"]
        await d.platform.stop("i-1")
        assert await d.gone("i-1") == "stopped"
        assert not services(bench)
        await d.quiet()

    run(tmp_path, body)


def test_an_api_that_restarts_during_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BACKOFF_S", 0.02)

    async def body(bench: Bench) -> None:
        d = await opened(bench)
        await bench.cluster.api.down()
        await d.platform.start("i-1", "g")
        await d.quiet()
        await bench.cluster.api.up()
        assert isinstance(await d.next(), Ready)

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("args", "image", "words"),
    [
        ((), "example/other:1", 'did not start: RevisionFailed: Revision "k-i-1-00001" failed with message: Back-off'),
        (("--no-such-option",), "example/cloister:1", "did not start: RevisionFailed"),
        (("--ready-after-s", "60"), "example/cloister:1", "did not start in 2 s: RevisionMissing"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(
    tmp_path: Path, args: tuple[str, ...], image: str, words: str
) -> None:
    async def body(bench: Bench) -> None:
        d = await opened(bench, *args, image=image, start_timeout_s=2.0)
        await d.platform.start("i-1", "g")
        assert words in await d.gone("i-1")
        await bench.until(lambda: not services(bench))

    run(tmp_path, body)


def test_what_is_not_granted_or_full_is_told_at_once(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        d = await opened(bench)
        bench.cluster.api.faults = [Fault("create", "services", code=403, message="exceeded quota: pods=3")]
        with pytest.raises(Unavailable) as full:
            await d.platform.start("i-1", "g")
        assert full.value.code == "platform-full"
        bench.cluster.api.role = (Rule("serving.knative.dev", "services", ("list", "watch")),)
        with pytest.raises(Unavailable, match="cannot create") as caught:
            await d.platform.start("i-1", "g")
        assert caught.value.hint is not None
        assert "the verb create on services (API group serving.knative.dev)" in caught.value.hint
        assert not await d.platform.running()
        bench.cluster.api.role = ()
        with pytest.raises(Refused):
            await opened(bench)

    run(tmp_path, body)


def test_a_service_that_is_on_its_way_out_is_waited_for(tmp_path: Path) -> None:
    """The same id again, while the Service of before still goes."""

    async def body(bench: Bench) -> None:
        d = await opened(bench)
        await d.up("i-1")
        bench.cluster.controllers.paused = True
        await bench.cluster.api.down()
        bench.cluster.store.change(
            "services", "k-i-1", lambda one: one["metadata"].update(deletionTimestamp=bench.cluster.store.now())
        )
        await bench.cluster.api.up()
        assert isinstance(await d.next(), Leaving)
        assert len(await d.platform.running()) == 1, "until it is gone"
        bench.cluster.controllers.paused = False
        assert await d.gone("i-1") == "died: somebody deleted its Service"
        await d.up("i-1")

    run(tmp_path, body)


def test_requests_under_way_end_before_the_service_is_deleted(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        d = await opened(bench, "--delay-ms", "1000")
        ready = await d.up("i-1")
        under_way = asyncio.ensure_future(bench.infer(ready["i-1"].address, sealed()))
        await asyncio.sleep(0.2)
        await d.platform.stop("i-1")
        await asyncio.sleep(0.3)
        assert services(bench) == ["k-i-1"]
        assert (await under_way).status == 200
        assert await d.gone("i-1") == "stopped"

    run(tmp_path, body)


def test_two_gateways_see_only_their_own(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        one, other = await opened(bench), await opened(bench, name="other")
        await asyncio.gather(one.up("i-1"), other.up("i-1"))
        assert services(bench) == ["k-i-1", "other-i-1"]
        await other.platform.stop_all()
        assert [there.instance for there in await one.platform.running()] == ["i-1"]
        await one.quiet()

    run(tmp_path, body)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: [",
        "kind: Deployment",
        json.dumps({**manifest(), "apiVersion": "serving.knative.dev/v1alpha1"}),
        json.dumps({**manifest(), "spec": {"template": {"spec": {"containers": []}}}}),
        json.dumps({**manifest(), "spec": 7}),
        "\x00",
        "- a",
        "a: 1\n---\nb: 2",
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "service.yaml"
    with pytest.raises(InvalidInput) as missing:
        read_manifest(file)
    file.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_manifest(file)
    assert {missing.value.code, caught.value.code} == {"knative-manifest"}
    assert str(file) in caught.value.message


def test_what_the_operator_wrote_stays(tmp_path: Path) -> None:
    written = manifest(["--memory-mb", "512"], env={"A": "b"})
    written["metadata"] = {
        "name": "theirs",
        "namespace": "theirs",
        "labels": {"team": "ml", "networking.knative.dev/visibility": "", "cloister.dev/instance": "theirs"},
        "annotations": {"a": "b"},
    }
    written["status"] = {"url": "theirs"}
    written["spec"]["template"]["metadata"] = {
        "name": "theirs-00001",
        "annotations": {"autoscaling.knative.dev/target": "1", "autoscaling.knative.dev/max-scale": "9"},
    }
    file = tmp_path / "service.yaml"
    file.write_text(json.dumps(written))
    made = make(read_manifest(file), "k-i-1", "k", "i-1", "g/1")
    assert made["metadata"]["name"] == "k-i-1"
    assert "namespace" not in made["metadata"]
    assert made["metadata"]["labels"]["team"] == "ml"
    assert made["metadata"]["labels"]["networking.knative.dev/visibility"] == ""
    assert made["metadata"]["labels"]["cloister.dev/instance"] == "i-1"
    assert made["metadata"]["annotations"] == {"a": "b", "cloister.dev/group": "g/1"}
    assert made["spec"]["template"]["metadata"] == {
        "annotations": {
            "autoscaling.knative.dev/target": "1",
            "autoscaling.knative.dev/max-scale": "1",
            "autoscaling.knative.dev/min-scale": "1",
        }
    }
    assert "status" not in made
    assert json.loads(file.read_text()) == written, "and the manifest stays as it was for the next instance"


def test_a_status_of_an_earlier_generation_says_nothing() -> None:
    one: dict[str, Any] = {
        "metadata": {"name": "n", "generation": 2},
        "status": {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}], "url": "http://a/"},
    }
    assert Service.read(one).waits
    one["status"]["observedGeneration"] = 2
    assert not Service.read(one).waits
    assert Service.read(one).address == "http://a"
    one["status"]["conditions"] = [{"type": "Ready", "status": "False", "reason": "RevisionFailed", "message": "m"}]
    assert Service.read(one).failed == "RevisionFailed: m"
    one["status"]["conditions"] = [{"type": "Ready", "status": "False", "reason": "ConfigurationMissing"}]
    assert not Service.read(one).failed, "made a moment later"
    assert Service.read(one).waits == "ConfigurationMissing"
    for nonsense in ({}, {"metadata": 7}, {"status": {"conditions": 7, "address": [], "url": 7}}):
        assert Service.read(nonsense).waits
