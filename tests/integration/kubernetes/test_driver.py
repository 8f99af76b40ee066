"""The Kubernetes driver on bad days: restarts, stale watches, lost events, throttling, missing rights."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from cloister.base.errors import CloisterError, InvalidInput, Refused, Unavailable
from cloister.platforms.kubernetes import api, driver
from cloister.platforms.kubernetes.pods import COST, GROUP, STATE
from cloister.platforms.kubernetes.rbac import KUBERNETES, Rule
from cloister.platforms.port import Gone, Leaving, Ready
from cloister.testing.gateway import sealed
from cloister.testing.kubernetes.bench import Bench, run
from cloister.testing.kubernetes.server import Fault, leave


def uids(bench: Bench) -> dict[str, str]:
    """Of all pods that stay, by name."""
    return {
        pod["metadata"]["name"]: pod["metadata"]["uid"]
        for pod in bench.cluster.pods()
        if "deletionTimestamp" not in pod["metadata"]
    }


# --- the API is away, or not what it was ---


def test_an_api_that_restarts_during_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BACKOFF_S", 0.02)

    async def body(bench: Bench) -> None:
        d = await bench.open()
        await bench.cluster.api.down()
        await d.platform.start("i-1", "g")
        (there,) = await d.platform.running()
        assert not there.ready
        await bench.cluster.api.up()
        ready = await d.next()
        assert isinstance(ready, Ready)
        assert bench.cluster.replicas("d") == 1
        assert bench.logged("platform-silent")

    run(tmp_path, body)


def test_what_happened_while_the_api_was_away_is_told_afterwards(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        d = await bench.open()
        await d.up("i-1", "i-2")
        await bench.cluster.api.down()
        bench.cluster.kill("i-1")
        await d.quiet()
        assert len(await d.platform.running()) == 2, "nobody has said otherwise"
        bench.cluster.store.compact()
        await bench.cluster.api.up()
        assert "died: its container ended: exit code 137" in await d.gone("i-1")
        await d.quiet()

    run(tmp_path, body)


def test_a_watch_that_falls_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SLACK_S", 0.3)

    async def body(bench: Bench) -> None:
        bench.cluster.api.faults = [Fault("watch", "pods", silent=True)]
        d = await bench.open()
        await d.up("i-1")
        assert bench.cluster.api.faults[0].times == 0
        assert bench.logged("platform-silent") == 1

    run(tmp_path, body)


def test_events_that_are_lost_are_found_by_the_next_list(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        d = await bench.open()
        await d.up("i-1", "i-2")
        bench.cluster.controllers.paused = True
        bench.cluster.vanish("pods", bench.cluster.pod_of("i-1"))
        assert await d.gone("i-1", 5) == "died: somebody deleted its pod"
        bench.cluster.controllers.paused = False
        await bench.until(lambda: bench.cluster.replicas("d") == 1)
        await d.quiet()

    run(tmp_path, body)


@pytest.mark.parametrize("by", ["status", "event"])
def test_a_version_that_is_forgotten_begins_with_a_list(tmp_path: Path, by: str) -> None:
    async def body(bench: Bench) -> None:
        d = await bench.open(poll_s=60.0)
        await d.up("i-1")
        lists = bench.cluster.api.asked.count(("", "pods", "list"))
        if by == "status":
            bench.cluster.api.faults = [Fault("watch", "pods", code=410, reason="Expired")]
        await bench.cluster.api.down()
        bench.cluster.kill("i-1")
        await asyncio.sleep(0.1)
        bench.cluster.store.compact()
        await bench.cluster.api.up()
        assert "exit code 137" in await d.gone("i-1")
        assert bench.cluster.api.asked.count(("", "pods", "list")) > lists

    run(tmp_path, body)


def test_a_cut_watch_goes_on_where_it_was(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        d = await bench.open(poll_s=60.0)
        await d.up("i-1")
        lists = bench.cluster.api.asked.count(("", "pods", "list"))
        await bench.cluster.api.down()
        await bench.cluster.api.up()
        bench.cluster.kill("i-1")
        assert "exit code 137" in await d.gone("i-1")
        await d.quiet()
        assert bench.cluster.api.asked.count(("", "pods", "list")) == lists, "no list was needed"

    run(tmp_path, body)


@pytest.mark.parametrize("code", [429, 500, 503, 409])
def test_an_api_that_is_busy_is_asked_again_when_it_says(tmp_path: Path, code: int) -> None:
    async def body(bench: Bench) -> None:
        d = await bench.open()
        verbs = [("patch", "deployments/scale"), ("patch", "pods"), ("delete", "pods"), ("list", "pods")]
        bench.cluster.api.faults = [Fault(verb, resource, code=code, after=1) for verb, resource in verbs]
        loop = asyncio.get_running_loop()
        began = loop.time()
        await d.up("i-1")
        assert loop.time() - began > 0.5, "Retry-After, less jitter"
        await d.platform.stop("i-1")
        assert await d.gone("i-1") == "stopped"

    run(tmp_path, body)


@pytest.mark.parametrize(
    "fault",
    [
        {"cut": True},
        {"cut": True, "late": True},
        {"slow_s": 0.3},
        {"body": b"<html>bad gateway</html>", "code": 502},
        {"body": b"{}", "code": 200},
        {"body": b"[1]"},
        {"body": b"\xff not json"},
    ],
    ids=lambda fault: "-".join(str(key) for key in fault),
)
def test_answers_that_are_lost_or_nonsense_change_nothing(tmp_path: Path, fault: dict[str, Any]) -> None:
    async def body(bench: Bench) -> None:
        d = await bench.open()
        verbs = [("patch", "deployments/scale"), ("patch", "pods"), ("delete", "pods"), ("list", "pods")]
        bench.cluster.api.faults = [Fault(verb, resource, times=1, **fault) for verb, resource in verbs]
        ready = await d.up("i-1")
        assert list(uids(bench)) == [bench.cluster.pod_of("i-1")]
        assert (await bench.infer(ready["i-1"].address, sealed())).status == 200
        await d.platform.stop("i-1")
        assert await d.gone("i-1") == "stopped"
        await d.platform.stop_all()
        assert bench.cluster.replicas("d") == 0

    run(tmp_path, body)


# --- what a gateway may not ----


@pytest.mark.parametrize(("resource", "verb"), [(rule.resource, verb) for rule in KUBERNETES for verb in rule.verbs])
def test_a_verb_that_is_not_granted_is_named(tmp_path: Path, resource: str, verb: str) -> None:
    async def body(bench: Bench) -> None:
        bench.cluster.api.role = tuple(
            Rule(rule.group, rule.resource, tuple(v for v in rule.verbs if (rule.resource, v) != (resource, verb)))
            for rule in KUBERNETES
        )
        group = " (API group apps)" if "deployments" in resource else ""
        words = f"the verb {verb} on {resource}{group}"
        if verb in ("get", "list"):
            with pytest.raises(Refused) as refused:
                await bench.open()
            assert refused.value.code == "platform-refused"
            assert words in str(refused.value)
            return
        d = await bench.open(start_timeout_s=1.5)
        if resource != "pods":
            with pytest.raises(Unavailable) as caught:
                await d.platform.start("i-1", "g")
            assert words in str(caught.value)
            assert not await d.platform.running()
            return
        await d.platform.start("i-1", "g")
        if verb == "patch":
            assert "did not start in 1.5 s" in await d.gone("i-1")
        else:
            assert isinstance(await d.next(), Ready), "without watches there are lists"
            await d.platform.stop("i-1")
        await bench.until(lambda: any("403" in str(event[2].get("error")) for event in bench.log.events))
        bench.cluster.api.role = KUBERNETES

    run(tmp_path, body)


def test_a_token_that_is_no_longer_good_is_read_again(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        d = await bench.open()
        bench.cluster.api.token = "renewed"
        with pytest.raises(Unavailable, match="401"):
            await d.platform.start("i-1", "g")
        bench.cluster.kubeconfig(bench.folder / "kubeconfig")
        await d.up("i-1")

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"deployment": "other"}, "platform-object-missing"),
        ({"text": "{}"}, "kubeconfig-unreadable"),
        ({"text": "a: [b"}, "kubeconfig-unreadable"),
        ({"text": ""}, "kubeconfig-unreadable"),
        ({"context": "elsewhere"}, "kubeconfig-unreadable"),
        ({"namespace": "elsewhere"}, "platform-refused"),
        ({"away": True}, "platform-unavailable"),
    ],
)
def test_what_cannot_be_opened_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], code: str
) -> None:
    monkeypatch.setattr(api, "BACKOFF_S", 0.01)

    async def body(bench: Bench) -> None:
        cluster = bench.reach()
        if "text" in changes:
            (bench.folder / "kubeconfig").write_text(changes["text"])
        if "away" in changes:
            await bench.cluster.api.down()
        from dataclasses import replace

        cluster = replace(cluster, **{key: changes[key] for key in ("context", "namespace") if key in changes})
        with pytest.raises(CloisterError) as caught:
            await bench.open(changes.get("deployment", "d"), cluster=cluster)
        assert caught.value.code == code
        assert caught.value.hint or code == "platform-unavailable"

    run(tmp_path, body)


def test_without_the_client_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes.aio", None)

    async def body(bench: Bench) -> None:
        with pytest.raises(InvalidInput) as caught:
            await bench.open()
        assert caught.value.code == "kubernetes-missing"
        assert "cloister[kubernetes]" in str(caught.value)

    run(tmp_path, body)


def test_lists_come_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PAGE", 2)

    async def body(bench: Bench) -> None:
        d = await bench.open()
        await d.up("i-1", "i-2", "i-3")
        await d.close()
        bench.cluster.api.faults = [Fault("list", "pods", times=1, slow_s=0.0), Fault("list", "pods", code=410)]
        again = await bench.open()
        assert len(await again.platform.running()) == 3

    run(tmp_path, body)


# --- others ---


def test_two_gateways_see_only_their_own(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.cluster.deploy("e")
        one, other = await bench.open("d"), await bench.open("e")
        await asyncio.gather(one.up("i-1"), other.up("i-1", "i-2"))
        assert len(await one.platform.running()) == 1
        await other.platform.stop_all()
        assert len(await one.platform.running()) == 1
        assert (bench.cluster.replicas("d"), bench.cluster.replicas("e")) == (1, 0)
        await one.quiet()

    run(tmp_path, body)


def test_a_gateway_that_ends_within_a_start_leaves_it_to_the_next(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        first = await bench.open()
        await first.platform.start("i-1", "group/a")
        await bench.until(lambda: "i-1" in {r.instance for r in _labelled(bench)})
        await first.close()
        second = await bench.open()
        ((there),) = await second.platform.running()
        assert (there.instance, there.group) == ("i-1", "group/a")
        if not there.ready:
            assert isinstance(await second.next(), Ready)
        assert bench.cluster.replicas("d") == 1

    run(tmp_path, body)


def _labelled(bench: Bench) -> list[Any]:
    from cloister.platforms.kubernetes.pods import Pod

    return [Pod.read(pod, "runtime", 1) for pod in bench.cluster.pods()]


def test_a_gateway_that_ends_within_a_drain_leaves_that_to_the_next(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        first = await bench.open()
        await first.up("i-1")
        bench.cluster.store.change(
            "pods", bench.cluster.pod_of("i-1"), lambda pod: pod["metadata"]["labels"].update({STATE: "draining"})
        )
        await first.close()
        second = await bench.open()
        assert not await second.platform.running()
        assert await second.gone("i-1") == "stopped"
        assert bench.cluster.replicas("d") == 0

    run(tmp_path, body)


def test_pods_nobody_asked_for_go_and_are_used_first(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        await bench.until(lambda: sum(pod.ready for pod in _labelled(bench)) == 2)
        before = uids(bench)
        bench.cluster.controllers.paused = True
        d = await bench.open()
        loop = asyncio.get_running_loop()
        await d.platform.start("i-1", "g")
        began = loop.time()
        assert isinstance(await d.next(), Ready)
        assert loop.time() - began < 1, "it was ready before it was asked for"
        bench.cluster.controllers.paused = False
        await bench.until(lambda: len(uids(bench)) == 1)
        assert set(uids(bench)) < set(before)
        assert bench.cluster.pod_of("i-1") in uids(bench)

    run(tmp_path, body, replicas=2)


def test_replicas_that_somebody_changed_are_put_back(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        d = await bench.open()
        await d.up("i-1")
        bench.cluster.store.change("deployments", "d", lambda one: one["spec"].update(replicas=4))
        await bench.until(lambda: bench.cluster.replicas("d") == 1)
        await bench.until(lambda: len(uids(bench)) == 1)
        assert bench.cluster.pod_of("i-1") in uids(bench)
        await d.quiet()
        assert bench.logged("platform-contended") == 1

    run(tmp_path, body)


def test_a_pod_that_somebody_deletes_finishes_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "SPARE_S", 0.5)

    async def body(bench: Bench) -> None:
        d = await bench.open()
        ready = await d.up("i-1")
        request = sealed()
        under_way = asyncio.ensure_future(bench.infer(ready["i-1"].address, request))
        await asyncio.sleep(0.2)
        name = bench.cluster.pod_of("i-1")
        bench.cluster.store.change("pods", name, lambda pod: leave(pod, 30, bench.cluster.store.now()))
        event = await d.next()
        assert isinstance(event, Leaving)
        assert len(await d.platform.running()) == 1, "until it is gone"
        await d.platform.stop("i-1")
        assert (await under_way).status == 200
        assert await d.gone("i-1") == "died: somebody deleted its pod"
        await bench.until(lambda: not uids(bench))

    run(tmp_path, body, args=["--delay-ms", "1000"])


def test_what_the_cluster_made_in_a_deleted_pods_place_is_used(tmp_path: Path) -> None:
    """A rollout, or a node that is emptied: the pod for the next instance is there before anybody asks."""

    async def body(bench: Bench) -> None:
        d = await bench.open()
        await d.up("i-1")
        first = bench.cluster.pod_of("i-1")
        bench.cluster.store.change("pods", first, lambda pod: leave(pod, 30, bench.cluster.store.now()))
        assert isinstance(await d.next(), Leaving)
        await d.gone("i-1")
        await bench.until(lambda: len(uids(bench)) == 1)
        (second,) = uids(bench)
        await d.up("i-2")
        assert bench.cluster.pod_of("i-2") == second
        assert bench.cluster.replicas("d") == 1
        assert bench.cluster.api.asked.count(("apps", "deployments/scale", "patch")) == 1, "that of the first start"

    run(tmp_path, body)


def test_a_node_that_is_gone_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LEAVE_SLACK_S", 0.2)

    async def body(bench: Bench) -> None:
        d = await bench.open()
        ready = await d.up("i-1")
        bench.cluster.kubelet.lost_nodes.add(ready["i-1"].host)
        await d.platform.stop("i-1")
        assert "its node does not confirm it" in await d.gone("i-1")
        await bench.until(lambda: bench.cluster.replicas("d") == 0)
        await d.up("i-2")
        bench.cluster.kubelet.lost_nodes.clear()

    run(tmp_path, body, grace_s=1)


# --- starts that fail ---


@pytest.mark.parametrize(
    ("deployment", "room", "words"),
    [
        ({"image": "example/other:1"}, 9, 'ImagePullBackOff: Back-off pulling image "example/other:1"'),
        ({"args": ["--no-such-option"]}, 9, "exit code 2: Error"),
        ({"args": ["--no-such-option"]}, 9, "unrecognized arguments: --no-such-option"),
        ({"args": ["--ready-after-s", "60"]}, 9, "did not start in 2 s: its container runs, and its readiness probe"),
        ({}, 0, "did not start in 2 s: its pod has no node: Unschedulable: 0/2 nodes are available"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(
    tmp_path: Path, deployment: dict[str, Any], room: int, words: str
) -> None:
    async def body(bench: Bench) -> None:
        bench.cluster.kubelet.room = room
        d = await bench.open(start_timeout_s=2.0)
        await d.platform.start("i-1", "g")
        assert words in await d.gone("i-1")
        assert not await d.platform.running()
        await bench.until(lambda: not bench.cluster.pods())
        assert bench.cluster.replicas("d") == 0

    run(tmp_path, body, **deployment)


def test_a_namespace_without_quota_is_told_after_a_while(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.cluster.controllers.quota = 0
        d = await bench.open(start_timeout_s=1.0)
        await d.platform.start("i-1", "g")
        assert "the Deployment has made no pod yet" in await d.gone("i-1")
        await bench.until(lambda: bench.cluster.replicas("d") == 0)

    run(tmp_path, body)


# --- which pod goes ---


def test_exactly_the_one_that_is_stopped_goes_while_others_start(tmp_path: Path) -> None:
    """A deletion cost alone would take the one that is starting."""

    async def body(bench: Bench) -> None:
        d = await bench.open()
        await d.up("i-1", "i-2", "i-3")
        kept = {name: bench.cluster.pod_of(name) for name in ("i-1", "i-3")}
        bench.cluster.kubelet.room = 0  # what starts from here on is pending
        await d.platform.start("i-4", "g")
        await bench.until(lambda: len(uids(bench)) == 4)
        await d.platform.stop("i-2")
        assert await d.gone("i-2") == "stopped"
        bench.cluster.kubelet.room = 9
        bench.cluster.store.change("deployments", "d", lambda one: one["metadata"].update(labels={"a": "b"}))
        ready = await d.next()
        assert isinstance(ready, Ready)
        assert ready.instance == "i-4"
        assert {name: bench.cluster.pod_of(name) for name in kept} == kept
        assert bench.cluster.replicas("d") == 3
        await bench.until(lambda: len(uids(bench)) == 3)
        meta = bench.cluster.store.get("pods", kept["i-1"])["metadata"]
        assert meta["annotations"] == {GROUP: "group-i-1", COST: "100"}
        await d.quiet()

    run(tmp_path, body)


@pytest.mark.parametrize("stopped", ["i-1", "i-2", "i-3"])
def test_exactly_the_one_that_is_stopped_goes_while_all_are_ready(tmp_path: Path, stopped: str) -> None:
    """The number alone would take the newest."""

    async def body(bench: Bench) -> None:
        d = await bench.open()
        await d.up("i-1")
        await d.up("i-2")
        await d.up("i-3")
        kept = {name: bench.cluster.pod_of(name) for name in {"i-1", "i-2", "i-3"} - {stopped}}
        await d.platform.stop(stopped)
        assert await d.gone(stopped) == "stopped"
        await bench.until(lambda: len(uids(bench)) == 2)
        assert {name: bench.cluster.pod_of(name) for name in kept} == kept
        assert bench.cluster.replicas("d") == 2
        await d.quiet()

    run(tmp_path, body)


def test_requests_under_way_end_before_the_pod_is_deleted(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        d = await bench.open()
        ready = await d.up("i-1")
        name = bench.cluster.pod_of("i-1")
        under_way = asyncio.ensure_future(bench.infer(ready["i-1"].address, sealed()))
        await asyncio.sleep(0.2)
        await d.platform.stop("i-1")
        await asyncio.sleep(0.4)
        meta = bench.cluster.store.get("pods", name)["metadata"]
        assert meta["labels"][STATE] == "draining"
        assert "deletionTimestamp" not in meta
        assert not await d.platform.running()
        assert (await under_way).status == 200
        assert await d.gone("i-1") == "stopped"

    run(tmp_path, body, args=["--delay-ms", "1500"])


def test_many_starts_stops_and_deaths_at_once_end_as_asked(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        d = await bench.open(poll_s=2.0)
        names = [f"i-{count}" for count in range(6)]
        await d.up(*names[:4])
        kept = {name: bench.cluster.pod_of(name) for name in names[2:4]}
        await asyncio.gather(
            d.platform.stop(names[0]), d.platform.start(names[4], "g"), d.platform.start(names[5], "g")
        )
        bench.cluster.kill(names[1])
        await bench.cluster.api.down()
        await bench.cluster.api.up()
        ended: dict[str, str] = {}
        up: set[str] = set()
        while len(ended) + len(up) < 4:
            event = await d.next()
            assert not isinstance(event, Leaving)
            if isinstance(event, Gone):
                ended[event.instance] = event.reason
            else:
                up.add(event.instance)
        assert ended.keys() == {names[0], names[1]}
        assert ended[names[0]] == "stopped"
        assert up == {names[4], names[5]}
        assert {name: bench.cluster.pod_of(name) for name in kept} == kept
        await bench.until(lambda: len(uids(bench)) == 4 and bench.cluster.replicas("d") == 4)
        await d.quiet(1.0)
        await d.platform.stop_all()
        assert not bench.cluster.pods()

    run(tmp_path, body)


def test_nothing_but_the_listed_verbs_is_ever_asked(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.cluster.api.role = None  # everything is allowed: what is asked, not what is granted
        d = await bench.open()
        await d.up("i-1")
        bench.cluster.kill("i-1")
        await d.gone("i-1")
        await d.up("i-2")
        await d.platform.stop_all()
        assert set(bench.cluster.api.asked) == {(r.group, r.resource, verb) for r in KUBERNETES for verb in r.verbs}

    run(tmp_path, body)


def test_a_deployment_whose_pods_cannot_be_told_from_others_is_refused(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.cluster.store.change("deployments", "d", lambda one: one["spec"]["selector"].update(matchLabels={}))
        with pytest.raises(InvalidInput, match="no selector"):
            await bench.open()

    run(tmp_path, body)
