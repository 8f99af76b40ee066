"""What the chart renders: objects that Kubernetes takes, commands that exist, configurations that are read."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cloister import __version__
from cloister.cli import runtime
from cloister.cli.main import COMMANDS
from cloister.control.gateway import configuration
from cloister.control.gateway.keda import read_scaled_object
from cloister.control.gateway.scaler import POLICIES
from cloister.crypto.hpke import HpkePrivateKey
from cloister.keyservice.custody.upkeep import Custodians
from cloister.keyservice.settings import Settings
from cloister.keyservice.storage.postgres.url import parse_url
from cloister.platforms.kubernetes.rbac import KUBERNETES, Rule
from cloister.wire.custody import custodian_id, read_public_key

helm = pytest.importorskip("helm_python", reason="no Helm: uv sync --inexact --group deploy")
yaml = pytest.importorskip("yaml", reason="no YAML: uv sync --inexact --group deploy")
schemas = pytest.importorskip("kubernetes_validate.utils", reason="no schemas: uv sync --inexact --group deploy")

CHART = Path(__file__).parents[4] / "deploy" / "helm" / "cloister"
VERSIONS = ("1.35", "1.36", "1.37")  # the three that are maintained
CUSTOM = ("ServiceMonitor", "ScaledObject")
Render = Callable[..., list[dict[str, Any]]]


def of(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def specs(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for found in objects:
        if found["kind"] in ("Deployment", "StatefulSet"):
            yield found["spec"]["template"]["spec"]


@pytest.fixture
def quick_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads megabytes of JSON anew for each object."""
    monkeypatch.setattr(schemas, "schema_contents", _schema)


@cache
def _schema(filename: str, desired_version: str, read: Any = schemas.schema_contents) -> Any:
    return read(filename, desired_version)


def test_the_chart_is_of_this_version(chart: Any) -> None:
    assert chart.metadata["appVersion"] == __version__


def test_lint_finds_nothing(example: dict[str, Any]) -> None:
    report = helm.lint(CHART, example, strict=True)
    assert not report["errors"]
    assert [found["error"] for found in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.usefixtures("quick_schemas")
def test_kubernetes_takes_every_object(example: dict[str, Any], render: Render, version: str) -> None:
    count = 0
    for found in render(example):
        if found["kind"] not in CUSTOM:
            assert schemas.validate(found, version, strict=True) == version
            count += 1
    assert count > 10


@pytest.mark.usefixtures("quick_schemas")
def test_the_schemas_refuse_what_is_no_field(trial: dict[str, Any], render: Render) -> None:
    (deployment, *_) = of(render(trial), "Deployment").values()
    deployment["spec"]["replica"] = 3
    with pytest.raises(schemas.ValidationError):
        schemas.validate(deployment, VERSIONS[-1], strict=True)


def test_custom_resources_are_as_their_documentation_says(example: dict[str, Any], render: Render) -> None:
    """https://keda.sh/docs/2.20/reference/scaledobject-spec/, .../scalers/external-push/ and the Prometheus operator's
    API reference: no published package has these schemas for Python."""
    objects = render(example)
    deployments, services = of(objects, "Deployment"), of(objects, "Service")
    for found in objects:
        if found["kind"] == "ScaledObject":
            assert found["apiVersion"] == "keda.sh/v1alpha1"
            spec = found["spec"]
            assert set(spec) == {
                "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "advanced",
                "triggers",
            }  # fmt: skip
            assert "replicas" not in deployments[spec["scaleTargetRef"]["name"]]["spec"]
            (trigger,) = spec["triggers"]
            assert set(trigger) == {"type", "metricType", "metadata"}
            assert (trigger["type"], trigger["metricType"]) == ("external-push", "AverageValue")
            host, _, port = trigger["metadata"]["scalerAddress"].rpartition(":")
            name, namespace, _ = host.split(".")
            assert namespace == "ml"
            assert int(port) in [item["port"] for item in services[name]["spec"]["ports"]]
            assert trigger["metadata"]["policy"] in POLICIES
            assert read_scaled_object(b"").metadata.get("policy") is None
        if found["kind"] == "ServiceMonitor":
            assert found["apiVersion"] == "monitoring.coreos.com/v1"
            wanted = found["spec"]["selector"]["matchLabels"]
            needed = [item["key"] for item in found["spec"]["selector"].get("matchExpressions", ())]
            chosen = [
                service["metadata"]["name"]
                for service in services.values()
                if wanted.items() <= service["metadata"]["labels"].items()
                and all(key in service["metadata"]["labels"] for key in needed)
            ]
            assert chosen, found["metadata"]["name"]
            for endpoint in found["spec"]["endpoints"]:
                assert all(
                    endpoint["port"] in [port["name"] for port in services[name]["spec"]["ports"]] for name in chosen
                )


def test_services_run_commands_that_exist(example: dict[str, Any], render: Render) -> None:
    seen = set()
    objects = render(example)
    for spec in (*specs(objects), *(found["spec"] for found in of(objects, "Pod").values())):
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            if container["name"] == "aesmd":
                continue
            name, *words = container["args"]
            parser = argparse.ArgumentParser(exit_on_error=False)
            importlib.import_module(COMMANDS[name][0]).configure(parser)
            parser.parse_args([word.replace("$(REPLICA)", "1") for word in words])
            seen.add(name)
            places = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
            for word in words:
                path = word.partition("=")[2]
                if path.startswith("/"):
                    assert any(path == place or path.startswith(f"{place}/") for place in places), word
    assert seen >= {"gateway", "runtime", "keyservice", "health"}


def test_probes_and_ports_fit(example: dict[str, Any], render: Render) -> None:
    for spec in specs(render(example)):
        for container in spec["containers"]:
            names = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert f"--listen=0.0.0.0:{names['http']}" in container["args"]
            ready = "/readyz" if container["args"][0] in ("gateway", "runtime") else "/healthz"
            assert container["readinessProbe"]["httpGet"]["path"] == ready
            assert {container[kind]["httpGet"]["port"] for kind in ("startupProbe", "livenessProbe")} == {"http"}
            assert container["lifecycle"]["preStop"]["sleep"]["seconds"] == 5


def test_draining_fits_into_the_grace_period(example: dict[str, Any], render: Render) -> None:
    for spec in specs(render(example)):
        grace = spec["terminationGracePeriodSeconds"]
        for container in spec["containers"]:
            drain = {"keyservice": 10, "witness": 5, "gateway": 30, "runtime": 30}[container["name"]]
            assert grace >= 5 + drain + 5


def test_gateways_read_what_the_chart_writes(example: dict[str, Any], render: Render) -> None:
    objects = render(example)
    found = [
        configuration.parse(item["data"]["gateway.toml"].encode())
        for item in of(objects, "ConfigMap").values()
        if "gateway.toml" in item["data"]
    ]
    assert len(found) == len(example["pools"])
    services, runtimes = of(objects, "Service"), of(objects, "Deployment")
    for read in found:
        if read.platform.kubernetes is not None:
            assert read.platform.on_exit == "leave"
            deployment = runtimes[read.platform.kubernetes.deployment]
            assert "replicas" not in deployment["spec"]
            (container,) = deployment["spec"]["template"]["spec"]["containers"]
            assert container["name"] == read.platform.kubernetes.container
            assert {"name": "http", "containerPort": read.platform.kubernetes.port, "protocol": "TCP"} in container[
                "ports"
            ]
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
            assert read.platform.kubernetes.cluster.namespace == "ml"
            continue
        assert read.platform.static is not None
        (address,) = read.platform.static.addresses
        name = address.removeprefix("http://").partition(".")[0]
        assert services[name]["spec"]["clusterIP"] == "None"
        (container,) = runtimes[name]["spec"]["template"]["spec"]["containers"]
        assert f"--memory-mb={read.pool.memory_mb:.0f}" in container["args"]
        assert f"--concurrency={read.pool.concurrency}" in container["args"]
        assert read.platform.static.scaled is ("replicas" not in runtimes[name]["spec"])
        assert read.scaler.listen == ("0.0.0.0:9090" if name in of(objects, "ScaledObject") else "")


def test_the_keyservice_reads_what_the_chart_writes(example: dict[str, Any], render: Render, tmp_path: Path) -> None:
    from cloister.keyservice.opening import read_settings

    (text,) = [
        item["data"]["keyservice.toml"]
        for item in of(render(example), "ConfigMap").values()
        if "keyservice.toml" in item["data"]
    ]
    file = tmp_path / "keyservice.toml"
    file.write_text(text)
    assert read_settings(file) == Settings.read(example["keyservice"]["configuration"])


def test_policies_can_name_what_the_runtimes_are(example: dict[str, Any], render: Render) -> None:
    """The same words give the digest that evidence has: nothing of the pod changes what is measured."""
    for spec in specs(render(example)):
        for container in spec["containers"]:
            if container["args"][0] == "runtime":
                _, options = _parsed(container["args"][1:])
                assert options.bundle_root.hex() == example["trust"]["bundleRoot"]
                assert len(options.measured().digest) == 32


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"imgae": {}}, "imgae"),
        ({"keyservice": {"tee": "tdx"}}, "/keyservice/tee"),
        ({"keyservice": {"tee": ""}}, "keyservice.tee is not set"),
        ({"keyservice": {"replicas": 3}}, "replicas"),
        ({"keyservice": {"configuration": {"replicas": 5}}}, "/keyservice/configuration/replicas"),
        ({"keyservice": {"tlsSecret": "tls"}}, "keyservice.tlsSecret is set and there are replicas"),
        ({"keyservice": {"configuration": {"bundleroot": "00"}}}, "bundleroot"),
        ({"keyservice": {"enabled": False}}, "keyservice.address is not set"),
        ({"pools": {"default": {"tee": ""}}}, "pools.default.tee is not set"),
        ({"poolDefaults": {"tee": "none"}}, "/poolDefaults/tee"),
        ({"pools": {"default": {"runtime": {"memory": 3}}}}, "/pools/default/runtime"),
        ({"pools": {"Default": {}}}, "Default"),
        ({"pools": {"default": {"gateway": {"configuration": {"pool": {"max_instance": 3}}}}}}, "max_instance"),
        ({"pools": {"default": {"gateway": {"configuration": {"platform": {"kind": "local"}}}}}}, "platform"),
        ({"tee": {"insecure-simulation": {"keySecret": ""}}}, "tee.insecure-simulation.keySecret is not set"),
        ({"image": {"tag": "latest"}}, "/image/tag"),
        ({"image": {"tag": ""}}, "image.tag or image.digest is not set"),
        ({"image": {"repository": ""}}, "image.repository is not set"),
        ({"controlImage": {"repository": ""}}, "controlImage.repository is not set"),
        ({"trust": {"bundleRoot": ""}}, "trust.bundleRoot is not set"),
        ({"trust": {"bundleConfigMap": ""}}, "trust.bundleConfigMap is not set"),
        ({"trust": {"bundleRoot": "5F"}}, "/trust/bundleRoot"),
        ({"store": {"url": "/srv/models"}}, "/store/url"),
        ({"store": {"url": "ftp://models"}}, "/store/url"),
        ({"store": {"url": ""}}, "store.url is not set"),
    ],
)
def test_what_is_wrong_is_named(
    trial: dict[str, Any], refusal: Callable[..., str], more: dict[str, Any], named: str
) -> None:
    assert named in refusal(trial, more)


def test_the_schema_knows_every_setting_of_gateway_and_keyservice(chart: Any) -> None:
    defined = chart.schema["$defs"]["pool"]["properties"]["gateway"]["properties"]["configuration"]["properties"]
    text = "[platform]\ncommand = ['x']\n"
    for section, schema in defined.items():
        if section == "models":
            continue
        for name in schema["properties"]:  # one that the gateway does not know would be refused by its name
            given = schema["properties"][name]
            low = given.get("minimum", given.get("enum", [True])[0])
            value = [1] if given.get("type") == "array" else low
            text_of = f"{text}[{section}]\n{name} = {json.dumps(value)}\n"
            configuration.parse(text_of.encode())
    known = {"pool": configuration.PoolSettings, "queue": configuration.QueueSettings}
    for section, settings in known.items():
        missing = set(settings.__dataclass_fields__) - set(defined[section]["properties"])
        assert missing == ({"memory_mb", "concurrency"} if section == "pool" else set())
    measured = chart.schema["properties"]["keyservice"]["properties"]["configuration"]["properties"]
    assert set(measured) == set(Settings.__dataclass_fields__)


def test_large_numbers_stay_numbers(render: Render, trial: dict[str, Any]) -> None:
    runtime_options = {"memoryMb": 3_000_000, "queue": 65536, "deadlineSeconds": 3600}
    pool = {"runtime": runtime_options, "gateway": {"configuration": {"limits": {"users": 10_000_000}}}}
    objects = render(trial, {"pools": {"default": pool}, "trust": {"bundleVersion": 5_000_000}})
    (found,) = [spec for spec in specs(objects) if spec["containers"][0]["name"] == "runtime"]
    args, options = _parsed(found["containers"][0]["args"][1:])
    assert (options.memory_mb, options.queue, options.deadline_s) == (3_000_000, 65536, 3600)
    assert args.bundle_version == 5_000_000
    read = configuration.parse(
        of(objects, "ConfigMap")["prod-cloister-gateway-default"]["data"]["gateway.toml"].encode()
    )
    assert (read.pool.memory_mb, read.limits.users) == (3_000_000, 10_000_000)


def _parsed(words: list[str]) -> tuple[argparse.Namespace, Any]:
    parser = argparse.ArgumentParser()
    runtime.configure(parser)
    args = parser.parse_args(words)
    return args, runtime._options(args)


def test_a_tee_is_where_its_component_runs(render: Render, trial: dict[str, Any]) -> None:
    def pod(tee: str, component: str) -> dict[str, Any]:
        objects = render(
            trial, {"keyservice": {"tee": tee}} if component == "keyservice" else {"pools": {"default": {"tee": tee}}}
        )
        (found,) = [spec for spec in specs(objects) if spec["containers"][0]["name"] == component]
        return found

    assert pod("sev-snp", "keyservice")["runtimeClassName"] == "kata-qemu-snp"
    assert pod("tdx", "runtime")["runtimeClassName"] == "kata-qemu-tdx"
    for component in ("keyservice", "runtime"):
        enclave = pod("sgx", component)
        assert "runtimeClassName" not in enclave
        for container in (*enclave.get("initContainers", ()), *enclave["containers"]):
            for kind in ("requests", "limits"):
                assert container["resources"][kind]["sgx.intel.com/epc"] == "8Gi"
                assert container["resources"][kind]["sgx.intel.com/enclave"] == "1"
                assert container["resources"][kind]["sgx.intel.com/provision"] == "1"
        for tee in ("sgx", "sev-snp"):
            text = json.dumps(pod(tee, component))
            assert "simulation" not in text


def test_a_gateway_that_scales_may_do_what_the_driver_does_and_no_more(render: Render, trial: dict[str, Any]) -> None:
    objects = render(trial)
    ((name, role),) = of(objects, "Role").items()
    rules = {
        Rule(group, resource, tuple(rule["verbs"]))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert rules == set(KUBERNETES)
    (scale,) = [rule for rule in role["rules"] if rule["resources"] == ["deployments/scale"]]
    assert scale["resourceNames"] == ["prod-cloister-runtime-default"]
    (binding,) = of(objects, "RoleBinding").values()
    assert binding["roleRef"]["name"] == name
    assert [(item["name"], item["namespace"]) for item in binding["subjects"]] == [(name, "ml")]
    accounts = [spec["serviceAccountName"] for spec in specs(objects) if spec["automountServiceAccountToken"]]
    assert accounts == [name]
    assert not [found for found in objects if found["kind"].startswith("Cluster")]
    for by in ("keda", "fixed", "other"):
        objects = render(trial, {"pools": {"default": {"scaling": {"by": by}}}})
        assert not of(objects, "Role")
        assert not [spec for spec in specs(objects) if spec["automountServiceAccountToken"]]


def test_the_stores_credentials_reach_those_that_read_it_and_no_others(render: Render, trial: dict[str, Any]) -> None:
    assert not [spec for spec in specs(render(trial)) if "envFrom" in spec["containers"][0]]
    found = {
        spec["containers"][0]["name"]: spec["containers"][0].get("envFrom")
        for spec in specs(render(trial, {"store": {"credentialsSecret": "models-reader"}}))
    }
    given = [{"secretRef": {"name": "models-reader"}}]
    assert found == {"runtime": given, "gateway": given, "keyservice": None, "witness": None}


def test_two_gateways_never_scale_one_deployment(render: Render, trial: dict[str, Any]) -> None:
    for by, strategy in (("gateway", "Recreate"), ("keda", "RollingUpdate"), ("fixed", "RollingUpdate")):
        objects = render(trial, {"pools": {"default": {"scaling": {"by": by}}}})
        gateway = of(objects, "Deployment")["prod-cloister-gateway-default"]
        assert gateway["spec"]["replicas"] == 1
        assert gateway["spec"]["strategy"]["type"] == strategy


def test_flows_are_those_that_are_needed_and_no_others(render: Render, trial: dict[str, Any]) -> None:
    objects = render(trial)
    policies = of(objects, "NetworkPolicy")
    everything = policies["prod-cloister-deny"]["spec"]
    assert everything["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(everything)
    for spec in specs(objects):
        del spec  # each pod has the labels that the first policy selects:
    for found in objects:
        if found["kind"] in ("Deployment", "StatefulSet"):
            labels = found["spec"]["template"]["metadata"]["labels"]
            assert everything["podSelector"]["matchLabels"].items() <= labels.items()

    def flows(direction: str, end: str) -> set[tuple[str, str, Any]]:
        out = set()
        for policy in policies.values():
            chosen = policy["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component")
            for rule in policy["spec"].get(direction, ()):
                for peer in rule.get(end, [{}]):
                    other = peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/component")
                    other = other or json.dumps(peer.get("namespaceSelector"))
                    out |= {(str(chosen), other, port["port"]) for port in rule["ports"]}
        return out

    spaces = '{{"matchLabels": {{"kubernetes.io/metadata.name": "{}"}}}}'
    monitoring = spaces.format("monitoring")
    assert flows("ingress", "from") == {
        ("witness", "keyservice", "http"),
        ("keyservice", "keyservice", "http"),
        ("keyservice", "runtime", "http"),
        ("keyservice", "{}", "http"),
        ("runtime", "gateway", "http"),
        ("gateway", "{}", "http"),
        *((component, monitoring, "http") for component in ("witness", "keyservice", "runtime", "gateway")),
    }
    scaled = of(render(trial, {"pools": {"default": {"scaling": {"by": "keda"}}}}), "NetworkPolicy")
    keda = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}
    (rule,) = [rule for rule in scaled["prod-cloister-gateway"]["spec"]["ingress"] if rule["from"] == [keda]]
    assert rule["ports"] == [{"protocol": "TCP", "port": "scaler"}]
    assert flows("egress", "to") == {
        ("None", spaces.format("kube-system"), 53),
        ("keyservice", "keyservice", 8080),
        ("keyservice", "witness", 8080),
        ("runtime", "keyservice", 8080),
        ("gateway", "runtime", 8080),
        *((component, "null", port) for component in ("runtime", "gateway") for port in (80, 443)),
        ("gateway", "null", 6443),
    }


def test_stateful_services_are_apart_and_keep_their_volumes(render: Render, trial: dict[str, Any]) -> None:
    objects = render(trial, {"keyservice": {"antiAffinity": "required"}})
    for found in of(objects, "StatefulSet").values():
        spec = found["spec"]
        assert set(spec["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}
        assert of(objects, "Service")[spec["serviceName"]]["spec"]["clusterIP"] == "None"
        (budget,) = [
            item for item in of(objects, "PodDisruptionBudget").values() if item["spec"]["selector"] == spec["selector"]
        ]
        assert budget["spec"]["maxUnavailable"] == 1
        rules = spec["template"]["spec"]["affinity"]["podAntiAffinity"]
        hard = "requiredDuringSchedulingIgnoredDuringExecution" in rules
        assert hard is (found["metadata"]["name"] == "prod-cloister-keyservice")
    assert of(objects, "StatefulSet")["prod-cloister-witness"]["spec"]["replicas"] == 3
    (service,) = [spec for spec in specs(objects) if spec["containers"][0]["name"] == "keyservice"]
    urls = [word for word in service["containers"][0]["args"] if word.startswith("--witness=")]
    assert urls[2] == "--witness=http://prod-cloister-witness-2.prod-cloister-witness.ml.svc:8080"
    assert len(urls) == 3


def test_replicas_are_as_many_as_the_measured_configuration_says(render: Render, trial: dict[str, Any]) -> None:
    def keyservice(replicas: int, **more: Any) -> tuple[dict[str, Any], list[str], list[str]]:
        objects = render(trial, {"keyservice": {"configuration": {"replicas": replicas}, **more}})
        found = of(objects, "StatefulSet")["prod-cloister-keyservice"]
        spec = found["spec"]["template"]["spec"]
        return found, spec["initContainers"][-1]["args"], spec["containers"][0]["args"]

    found, init, run = keyservice(3)
    assert found["spec"]["replicas"] == 3
    assert found["spec"]["podManagementPolicy"] == "Parallel"  # or the loss of the first would hold up the others
    peers = [
        f"--peer=http://prod-cloister-keyservice-{number}.prod-cloister-keyservice-peers.ml.svc:8080"
        for number in range(3)
    ]
    assert found["spec"]["serviceName"] == "prod-cloister-keyservice-peers"
    assert [word for word in run if word.startswith("--peer")] == peers
    assert [word for word in init if word.startswith("--peer")] == peers
    assert "--replica=$(REPLICA)" in init
    (variable,) = found["spec"]["template"]["spec"]["initContainers"][-1]["env"]
    assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['apps.kubernetes.io/pod-index']"
    pinned = keyservice(3, id="44" * 32)
    assert all(f"--keyservice={'44' * 32}" in words for words in pinned[1:])
    found, init, run = keyservice(0)
    assert found["spec"]["replicas"] == 1
    assert not [word for word in (*init, *run) if word.startswith(("--peer", "--replica", "--keyservice="))]


def test_custodians_have_a_public_key_each(
    render: Render, refusal: Callable[..., str], trial: dict[str, Any], tmp_path: Path
) -> None:
    keys = [HpkePrivateKey.generate().public_key for _ in range(2)]
    named = {"custodians": [custodian_id(key).hex() for key in keys], "custodian_threshold": 2}
    more = {"keyservice": {"configuration": named, "custodianKeys": [key.hex() for key in keys]}}
    objects = render(trial, more)
    data = of(objects, "ConfigMap")["prod-cloister-keyservice"]["data"]
    for name, text in data.items():
        (tmp_path / name).write_text(text)
    spec = of(objects, "StatefulSet")["prod-cloister-keyservice"]["spec"]["template"]["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        given = [word for word in container["args"] if word.startswith("--custodian=")]
        files = [tmp_path / Path(word.partition("=")[2]).name for word in given]
        found = {custodian_id(key): key for key in (read_public_key(file.read_bytes()) for file in files)}
        Custodians(found).check(Settings.read(tomllib.loads(data["keyservice.toml"])))
    for some in ([], more["keyservice"]["custodianKeys"][:1]):
        assert "custodianKeys" in refusal(trial, {"keyservice": {"configuration": named, "custodianKeys": some}})


def test_each_replica_has_a_namespace_of_the_database(render: Render, trial: dict[str, Any]) -> None:
    def keyservice(replicas: int, **database: str) -> tuple[dict[str, Any], list[dict[str, Any]], set[int]]:
        given = {"keyservice": {"configuration": {"replicas": replicas}, "database": database}}
        objects = render(trial, given)
        spec = of(objects, "StatefulSet")["prod-cloister-keyservice"]["spec"]["template"]["spec"]
        egress = of(objects, "NetworkPolicy")["prod-cloister-keyservice"]["spec"]["egress"]
        ports = {port["port"] for rule in egress for port in rule["ports"]}
        return spec, [spec["initContainers"][-1], spec["containers"][0]], ports

    url = "postgresql://ks@db.example:5433/cloister?sslrootcert=/database/ca.crt"
    spec, both, ports = keyservice(3, url=url, secret="db")
    for container in both:
        (store,) = [word for word in container["args"] if word.startswith("--store=")]
        assert store == f"--store={url}&schema=replica$(REPLICA)&password_file=/database/password"
        assert parse_url(store.removeprefix("--store=").replace("$(REPLICA)", "2")).schema == "replica2"
        assert [item["name"] for item in container["env"]] == ["REPLICA"]
        assert {"name": "database", "mountPath": "/database", "readOnly": True} in container["volumeMounts"]
    assert [item["secret"]["secretName"] for item in spec["volumes"] if item["name"] == "database"] == ["db"]
    assert 5432 in ports
    _, both, _ = keyservice(0, url="postgresql://ks@db.example/cloister")
    for container in both:
        assert "--store=postgresql://ks@db.example/cloister?schema=replica0" in container["args"]
        assert "env" not in container
    _, both, ports = keyservice(3)
    assert 5432 not in ports
    assert not [word for container in both for word in container["args"] if word.startswith("--store")]
    for wrong in (
        {"url": "postgresql://ks:hunter2@db.example/cloister"},
        {"url": "postgresql://ks@db.example/cloister?schema=mine"},
        {"url": "mysql://ks@db.example/cloister"},
        {"secret": "db"},
    ):
        with pytest.raises(Exception, match="database"):
            keyservice(3, **wrong)


@pytest.mark.usefixtures("quick_schemas")
def test_what_the_how_to_writes_down_is_taken(render: Render) -> None:
    """Its values make the chart render, and its HPA is one, for a Deployment that the chart leaves to it."""
    page = (CHART.parents[2] / "docs" / "how-to" / "kubernetes.md").read_text()
    blocks = [textwrap.dedent(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    (scaler,) = [yaml.safe_load(block) for block in blocks if "kind:" in block]
    schemas.validate(scaler, VERSIONS[-1], strict=True)
    given: dict[str, Any] = {}
    for block in blocks:
        if "kind:" not in block:
            given |= yaml.safe_load(re.sub(r'"([0-9a-f]{2})…"', lambda m: f'"{m[1] * 32}"', block))
    assert len(of(render(given), "Deployment")) == 2
    given["pools"]["default"]["scaling"] = {"by": "other"}
    deployment = of(render(given, {"nameOverride": "cloister"}), "Deployment")[scaler["spec"]["scaleTargetRef"]["name"]]
    assert "replicas" not in deployment["spec"]


def test_simulation_is_loud(chart: Any, trial: dict[str, Any]) -> None:
    notes = chart.render(trial, name="prod", namespace="ml")["cloister/templates/NOTES.txt"]
    assert "INSECURE SIMULATION: nothing that passes through the KeyService, pool default is protected" in notes


def test_the_page_has_every_value(chart: Any) -> None:
    text = (CHART / "README.md").read_text()

    def leaves(table: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[str]:
        for name, value in table.items():
            where = f"{path}.{name}" if path else name
            if isinstance(value, dict) and value:
                yield from leaves(value, schema, where)
            else:
                yield where

    names = list(leaves(chart.values, chart.schema, ""))
    assert len(names) > 60
    assert [name for name in names if f"`{name}`" not in text] == []
    told = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert told - set(names) == set()


def test_a_configuration_is_the_same_to_whoever_asks_for_it(render: Render, trial: dict[str, Any]) -> None:
    """Two renderings are equal: no random name, no time, nothing that makes an upgrade restart pods."""
    assert render(trial) == render(trial)
