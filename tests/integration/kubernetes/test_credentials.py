"""Who the gateway is to the cluster: kubeconfig files, a pod's service account, plugins, and all of them renewed."""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from kubernetes.aio.config import incluster_config

from cloister.adapters.clock import SystemClock
from cloister.adapters.http.tls import server_context
from cloister.base.errors import Unavailable
from cloister.platforms.kubernetes import api
from cloister.platforms.kubernetes.settings import Cluster
from cloister.testing.authority import Authority
from cloister.testing.kubernetes.bench import Bench, run
from cloister.testing.kubernetes.cluster import NAMESPACE


async def secured(bench: Bench, folder: Path) -> Authority:
    """The API speaks TLS from here on."""
    authority = Authority(folder, SystemClock().now())
    await bench.cluster.api.down()
    bench.cluster.api.tls = server_context(*authority.issue("127.0.0.1"))
    await bench.cluster.api.up()
    return authority


def pem(authority: Authority) -> bytes:
    return authority.certificate.public_bytes(Encoding.PEM)


def written(bench: Bench, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> str:
    file = bench.folder / "own"
    value = json.loads(Path(bench.cluster.kubeconfig(file)).read_text())
    change(value["clusters"][0]["cluster"], value["users"][0]["user"])
    file.write_text(json.dumps(value))
    return str(file)


@pytest.mark.parametrize("form", ["data", "file"])
def test_the_clusters_certificate_is_believed(tmp_path: Path, form: str) -> None:
    async def body(bench: Bench) -> None:
        authority = await secured(bench, tmp_path)
        (tmp_path / "ca.crt").write_bytes(pem(authority))

        def change(cluster: dict[str, Any], user: dict[str, Any]) -> None:
            if form == "data":
                cluster["certificate-authority-data"] = b64encode(pem(authority)).decode()
            else:
                cluster["certificate-authority"] = "ca.crt"  # beside the file

        d = await bench.open(cluster=Cluster(kubeconfig=written(bench, change)))
        await d.up("i-1")

    run(tmp_path, body)


def test_another_certificate_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BACKOFF_S", 0.01)

    async def body(bench: Bench) -> None:
        await secured(bench, tmp_path)
        other = Authority(tmp_path, SystemClock().now())

        def change(cluster: dict[str, Any], user: dict[str, Any]) -> None:
            cluster["certificate-authority-data"] = b64encode(pem(other)).decode()

        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            await bench.open(cluster=Cluster(kubeconfig=written(bench, change)))
        assert not bench.cluster.api.asked, "nothing was said to it"

    run(tmp_path, body)


def test_a_pods_service_account_and_its_renewed_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = tmp_path / "serviceaccount"
    account.mkdir()
    monkeypatch.setattr(api, "_ACCOUNT", account)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(account / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(account / "ca.crt"))

    async def body(bench: Bench) -> None:
        authority = await secured(bench, tmp_path)
        host, _, port = bench.cluster.api.address.removeprefix("https://").partition(":")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        (account / "ca.crt").write_bytes(pem(authority))
        (account / "namespace").write_text(NAMESPACE)
        (account / "token").write_text(bench.cluster.api.token)
        d = await bench.open(cluster=Cluster(poll_s=1.0))
        await d.up("i-1")
        bench.cluster.api.token = "renewed"
        (account / "token").write_text("renewed")
        await d.up("i-2")
        await d.platform.stop("i-1")
        assert await d.gone("i-1") == "stopped"

    run(tmp_path, body)


def test_a_plugins_token_and_the_next_one(tmp_path: Path) -> None:
    """As clouds hand them out: a command that prints a credential."""

    async def body(bench: Bench) -> None:
        token = tmp_path / "token"
        token.write_text(bench.cluster.api.token)
        version = "client.authentication.k8s.io/v1"
        program = (
            "import json, pathlib, sys; token = pathlib.Path(sys.argv[1]).read_text();"
            f"print(json.dumps(dict(apiVersion={version!r}, kind='ExecCredential', status=dict(token=token))))"
        )

        def change(cluster: dict[str, Any], user: dict[str, Any]) -> None:
            user.clear()
            user["exec"] = {
                "apiVersion": version,
                "command": sys.executable,
                "args": ["-c", program, str(token)],
                "interactiveMode": "Never",
            }

        d = await bench.open(cluster=Cluster(kubeconfig=written(bench, change), poll_s=1.0))
        await d.up("i-1")
        bench.cluster.api.token = "renewed"
        token.write_text("renewed")
        await d.up("i-2")

    run(tmp_path, body)
