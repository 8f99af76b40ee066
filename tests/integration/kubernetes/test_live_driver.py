"""The drivers against a live API server, with no more rights than they list: `make test-kubernetes`.

CLOISTER_TEST_KUBECONFIG  (the make target sets it from KUBECONFIG) who may make a namespace and roles in it
CLOISTER_TEST_IMAGE       this project's image, where the cluster's nodes pull from; or any image that answers 200 at
                          CLOISTER_TEST_READY (default /healthz) on port 8080 without arguments. Without it, the pause
                          container that every node has stands in for a runtime, and Knative's part is left out

It makes a namespace with a service account, a Role of `rbac.py`, and a Deployment; the driver uses that account's
token. Knative's part runs where the cluster has Knative Serving. Pods need not be reachable from here.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloister.base.errors import Refused
from cloister.platforms.knative.driver import KnativePlatform
from cloister.platforms.knative.settings import KnativeSettings
from cloister.platforms.kubernetes.api import KubeApi
from cloister.platforms.kubernetes.driver import KubernetesPlatform
from cloister.platforms.kubernetes.pods import INSTANCE
from cloister.platforms.kubernetes.rbac import KNATIVE, KUBERNETES
from cloister.platforms.kubernetes.resources import PODS, SCALE, Resource
from cloister.platforms.kubernetes.settings import Cluster, KubernetesSettings
from cloister.platforms.port import Gone, Leaving, Ready
from cloister.testing.kubernetes.bench import Driver
from cloister.testing.logs import MemoryLog

client = pytest.importorskip("kubernetes", reason="NOT RUN: cloister[kubernetes] is not installed").client
utils = pytest.importorskip("kubernetes.utils")
config = pytest.importorskip("kubernetes.config")

KUBECONFIG = os.environ.get("CLOISTER_TEST_KUBECONFIG", "")
IMAGE = os.environ.get("CLOISTER_TEST_IMAGE", "")
READY = os.environ.get("CLOISTER_TEST_READY", "/healthz")
ACCOUNT = "gateway"
WAIT_S = 300.0

pytestmark = [
    pytest.mark.skipif(not KUBECONFIG, reason="NOT RUN: no cluster. Say: KUBECONFIG=... make test-kubernetes"),
    pytest.mark.timeout(1200),
]


@dataclass(frozen=True)
class Live:
    """A namespace of its own. ``admin`` and ``boss`` are who made it, ``reach`` is how a gateway gets there."""

    admin: Any
    namespace: str
    reach: Cluster
    boss: Cluster
    image: str


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    settings = client.Configuration()
    admin = config.new_client_from_config(KUBECONFIG, client_configuration=settings)
    name = f"cloister-test-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "cloister.dev/test": "true"}
    core = client.CoreV1Api(admin)
    image = IMAGE or paused(core)
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name, labels=labels)))
    try:
        for one in rights(name):
            utils.create_from_dict(admin, one, namespace=name)
        utils.create_from_dict(admin, deployment("pool", image), namespace=name)
        request = client.AuthenticationV1TokenRequest(
            spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=3600)
        )
        token = core.create_namespaced_service_account_token(ACCOUNT, name, request).status.token
        folder = tmp_path_factory.mktemp("live")
        boss = Cluster(KUBECONFIG, namespace=name, poll_s=5.0)
        yield Live(admin, name, gateway(folder, settings, name, token), boss, image)
    finally:
        core.delete_namespace(name)


def gateway(folder: Path, settings: Any, namespace: str, token: str) -> Cluster:
    """A kubeconfig of the gateway's account: the same server, and nothing else of the admin's."""
    server = {"server": settings.host, "insecure-skip-tls-verify": not settings.verify_ssl}
    if settings.ssl_ca_cert and settings.verify_ssl:
        server = {"server": settings.host, "certificate-authority": settings.ssl_ca_cert}
    value = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "live",
        "contexts": [{"name": "live", "context": {"cluster": "live", "user": "gateway", "namespace": namespace}}],
        "clusters": [{"name": "live", "cluster": server}],
        "users": [{"name": "gateway", "user": {"token": token}}],
    }
    file = folder / "kubeconfig"
    file.write_text(json.dumps(value))
    return Cluster(kubeconfig=str(file), poll_s=5.0)


def rights(namespace: str) -> list[dict[str, Any]]:
    rules = [
        {"apiGroups": [r.group], "resources": [r.resource], "verbs": list(r.verbs)} for r in (*KUBERNETES, *KNATIVE)
    ]
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT}
    meta = {"name": ACCOUNT}
    group = "rbac.authorization.k8s.io/v1"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": group, "kind": "Role", "metadata": meta, "rules": rules},
        {"apiVersion": group, "kind": "RoleBinding", "metadata": meta, "subjects": [subject], "roleRef": role},
    ]


def paused(core: Any) -> str:
    """The image of the pause container, as some node has it."""
    for node in core.list_node().items:
        for image in node.status.images or ():
            for name in image.names or ():
                if re.search(r"pause:[\w.-]+$", name):
                    return str(name)
    return pytest.skip("NOT RUN: no node tells of a pause image: set CLOISTER_TEST_IMAGE")


def container(image: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": "runtime",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if image == IMAGE:
        made["ports"] = [{"containerPort": 8080}]
        made["readinessProbe"] = {"httpGet": {"path": READY, "port": 8080}, "periodSeconds": 1}
    else:
        made["securityContext"]["runAsUser"] = 65534
    return made


def deployment(name: str, image: str) -> dict[str, Any]:
    labels = {"app": name}
    spec = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 10,
        "containers": [container(image)],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def driver(live: Live, name: str = "pool", **settings: Any) -> Driver:
    wanted = {"cluster": live.reach, "start_timeout_s": WAIT_S, "stop_grace_s": 2.0, **settings}
    return Driver(KubernetesPlatform(KubernetesSettings(name, **wanted), MemoryLog()))


async def up(d: Driver, *instances: str) -> dict[str, Ready]:
    for instance in instances:
        await d.platform.start(instance, f"group/{instance}")
    found: dict[str, Ready] = {}
    while len(found) < len(instances):
        event = await d.next(WAIT_S)
        assert isinstance(event, Ready), event
        found[event.instance] = event
    return found


async def pods(api: KubeApi) -> dict[str, str]:
    """Instances and their pods' uids, those on their way out left out."""
    found, _ = await api.all_of(PODS, INSTANCE)
    staying = [one for one in found if "deletionTimestamp" not in one["metadata"]]
    return {one["metadata"]["labels"][INSTANCE]: one["metadata"]["uid"] for one in staying}


def test_the_driver_keeps_its_promises(live: Live) -> None:
    async def body() -> None:
        boss = KubeApi(live.boss)
        await boss.open()
        d = driver(live)
        try:
            ready = await up(d, "i-1", "i-2", "i-3")
            assert {one.group for one in ready.values()} == {"group/i-1", "group/i-2", "group/i-3"}
            assert all(one.address.startswith("http://") and one.host for one in ready.values())
            before = await pods(boss)

            # Exactly that one, while another one starts.
            await d.platform.start("i-4", "g")
            await d.platform.stop("i-2")
            events = [await d.next(WAIT_S), await d.next(WAIT_S)]
            assert {type(event) for event in events} == {Ready, Gone}
            after = await pods(boss)
            assert set(after) == {"i-1", "i-3", "i-4"}
            assert {name: after[name] for name in ("i-1", "i-3")} == {name: before[name] for name in ("i-1", "i-3")}
            assert (await boss.get(SCALE, "pool"))["spec"]["replicas"] == 3

            # Another gateway, later.
            await d.close()
            d = driver(live)
            found = {there.instance: there for there in await _running(d)}
            assert set(found) == {"i-1", "i-3", "i-4"}
            assert all(there.ready for there in found.values())

            # Somebody else's hand.
            listed, _ = await boss.all_of(PODS, f"{INSTANCE}=i-1")
            await boss.delete(PODS, listed[0]["metadata"]["name"])
            assert isinstance(await d.next(WAIT_S), Leaving)
            gone = await d.next(WAIT_S)
            assert isinstance(gone, Gone)
            assert (gone.instance, gone.reason) == ("i-1", "died: somebody deleted its pod")
            await boss.patch(SCALE, "pool", {"spec": {"replicas": 5}})
            await _until(boss, 2)
            assert set(await pods(boss)) == {"i-3", "i-4"}

            await d.platform.stop_all()
            assert not (await boss.all_of(PODS, "app=pool"))[0]
            assert (await boss.get(SCALE, "pool"))["spec"].get("replicas", 0) == 0
        finally:
            await d.close()
            await boss.close()

    asyncio.run(body())


async def _running(d: Driver) -> Any:
    return await d.platform.running()


async def _until(api: KubeApi, replicas: int) -> None:
    async with asyncio.timeout(60):
        while (await api.get(SCALE, "pool"))["spec"].get("replicas", 0) != replicas:  # noqa: ASYNC110  # it is asked
            await asyncio.sleep(0.5)


def test_an_image_that_cannot_be_pulled_is_told(live: Live) -> None:
    async def body() -> None:
        utils.create_from_dict(live.admin, deployment("bad", f"{live.image}-there-is-none"), namespace=live.namespace)
        d = driver(live, "bad")
        try:
            await d.platform.start("i-1", "g")
            gone = await d.next(WAIT_S)
            assert isinstance(gone, Gone)
            assert "its container cannot run: " in gone.reason
            assert "Image" in gone.reason
            await d.platform.stop_all()
        finally:
            await d.close()

    asyncio.run(body())


def test_a_right_that_is_missing_is_named(live: Live) -> None:
    async def body() -> None:
        api = KubeApi(live.reach)
        try:
            with pytest.raises(Refused) as caught:
                await api.all_of(Resource("", "v1", "secrets"), "")
            assert "the verb list on secrets" in str(caught.value)
        finally:
            await api.close()

    asyncio.run(body())


def test_the_knative_driver_keeps_its_promises(live: Live) -> None:
    if not IMAGE:
        pytest.skip("NOT RUN: CLOISTER_TEST_IMAGE names no image")
    groups = [group.name for group in client.ApisApi(live.admin).get_api_versions().groups]
    if "serving.knative.dev" not in groups:
        pytest.skip("NOT RUN: this cluster has no Knative Serving")
    spec = {"containerConcurrency": 4, "timeoutSeconds": 30, "containers": [container(live.image)]}
    manifest = {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "spec": {"template": {"spec": spec}}}

    async def body() -> None:
        settings = KnativeSettings("live", manifest, live.reach, start_timeout_s=WAIT_S, stop_grace_s=2.0)
        d = Driver(KnativePlatform(settings, MemoryLog()))
        try:
            ready = await up(d, "i-1", "i-2")
            assert all(one.address.startswith("http") for one in ready.values())
            await d.platform.stop("i-1")
            gone = await d.next(WAIT_S)
            assert isinstance(gone, Gone)
            assert (gone.instance, gone.reason) == ("i-1", "stopped")
            await d.close()
            d = Driver(KnativePlatform(settings, MemoryLog()))
            assert [there.instance for there in await _running(d)] == ["i-2"]
            await d.platform.stop_all()
            assert not await d.platform.running()
        finally:
            await d.close()

    asyncio.run(body())
