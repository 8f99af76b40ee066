"""The stand-in for Kubernetes, held to the API's own description: its typed client reads and writes all of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio import client, config, watch

from cloister.testing.kubernetes.bench import Bench, run
from cloister.testing.kubernetes.cluster import NAMESPACE

MERGE = "application/merge-patch+json"


async def typed(bench: Bench) -> Any:
    configuration = client.Configuration()
    await config.load_kube_config(
        bench.cluster.kubeconfig(bench.folder / "typed"), client_configuration=configuration, persist_config=False
    )
    return client.ApiClient(configuration)


def test_a_pods_whole_life_is_pods(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.cluster.api.role = None
        bench.cluster.kubelet.room = 0
        bench.cluster.api.bookmark_s = 0.02
        d = await bench.open()
        seen: list[tuple[str, Any]] = []

        def tell(event: Any) -> None:
            seen.append((event["type"], event["object"]))

        async def look(core: Any) -> None:
            found = await core.list_namespaced_pod(NAMESPACE)
            stream = watch.Watch()
            version = found.metadata.resource_version
            events = stream.stream(
                core.list_namespaced_pod, NAMESPACE, resource_version=version, allow_watch_bookmarks=True
            )
            async for event in events:
                tell(event)

        async with await typed(bench) as api:
            core = client.CoreV1Api(api)
            looking = asyncio.ensure_future(look(core))
            await d.platform.start("i-1", "group/a")
            await bench.until(lambda: any(pod.get("status", {}).get("conditions") for pod in bench.cluster.pods()))
            bench.cluster.kubelet.room = 9
            bench.cluster.store.change("deployments", "d", lambda one: one["metadata"].update(labels={"a": "b"}))
            await d.next()
            bench.cluster.kill("i-1")
            await d.gone("i-1")
            await bench.until(lambda: not bench.cluster.pods())
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            assert not isinstance(looking.exception() if not looking.cancelled() else None, Exception)
        kinds = {kind for kind, _ in seen}
        assert kinds == {"ADDED", "MODIFIED", "DELETED", "BOOKMARK"}
        pods = [one for kind, one in seen if kind != "BOOKMARK"]
        assert all(isinstance(one, client.V1Pod) for one in pods)
        versions = [int(one.metadata.resource_version) for one in pods]
        assert versions == sorted(set(versions))
        assert {one.status.phase for one in pods} == {"Pending", "Running"}
        assert any(one.metadata.deletion_timestamp for one in pods)
        assert {"PodScheduled", "Ready"} <= {c.type for one in pods for c in one.status.conditions or ()}
        ended = [
            s.state.terminated.exit_code
            for one in pods
            for s in one.status.container_statuses or ()
            if s.state.terminated
        ]
        assert ended == [137]

    run(tmp_path, body)


def test_scale_and_deployment_are_what_they_say(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.cluster.api.role = None
        async with await typed(bench) as api:
            apps = client.AppsV1Api(api)
            scale = await apps.read_namespaced_deployment_scale("d", NAMESPACE)
            assert isinstance(scale, client.V1Scale)
            assert scale.spec.replicas in (0, None), "a zero is left out"
            changed = await apps.patch_namespaced_deployment_scale(
                "d", NAMESPACE, {"spec": {"replicas": 2}}, _content_type=MERGE
            )
            assert changed.spec.replicas == 2
            found = await apps.read_namespaced_deployment("d", NAMESPACE)
            assert found.spec.replicas == 2
            labels = ",".join(f"{name}={value}" for name, value in sorted(found.spec.selector.match_labels.items()))
            assert changed.status.selector == labels
            with pytest.raises(client.ApiException) as caught:
                await apps.patch_namespaced_deployment_scale(
                    "d", NAMESPACE, {"spec": {"replicas": -1}}, _content_type=MERGE
                )
            assert caught.value.status == 422
            with pytest.raises(client.ApiException) as caught:
                await apps.read_namespaced_deployment_scale("other", NAMESPACE)
            assert (caught.value.status, client.V1Status.from_json(caught.value.body).reason) == (404, "NotFound")

    run(tmp_path, body)


def test_lists_pages_and_preconditions(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.cluster.api.role = None
        await bench.until(lambda: len(bench.cluster.pods()) == 3)
        async with await typed(bench) as api:
            core = client.CoreV1Api(api)
            first = await core.list_namespaced_pod(NAMESPACE, limit=2)
            assert (len(first.items), first.metadata.remaining_item_count) == (2, 1)
            rest = await core.list_namespaced_pod(NAMESPACE, limit=2, _continue=first.metadata._continue)
            assert len(rest.items) == 1
            assert rest.metadata.resource_version == first.metadata.resource_version
            name, uid = rest.items[0].metadata.name, rest.items[0].metadata.uid
            wrong = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="another"))
            with pytest.raises(client.ApiException) as caught:
                await core.delete_namespaced_pod(name, NAMESPACE, body=wrong)
            assert caught.value.status == 409
            right = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=uid))
            gone = await core.delete_namespaced_pod(name, NAMESPACE, body=right)
            assert gone.metadata.deletion_timestamp is not None
            await bench.until(lambda: uid not in {pod["metadata"]["uid"] for pod in bench.cluster.pods()})
            with pytest.raises(client.ApiException) as caught:
                await core.list_namespaced_secret(NAMESPACE)
            assert caught.value.status == 404

    run(tmp_path, body, replicas=3)
