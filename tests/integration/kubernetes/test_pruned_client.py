"""The gateway's image has the Kubernetes client without its models of every resource (deploy/image/assemble.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = r"""
import asyncio, pathlib, re, sys, tempfile

class Gate:
    def find_spec(self, name, path=None, target=None):
        if re.fullmatch(r"kubernetes\.(aio\.)?client\.(api|models)\..+", name):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Gate())
from cloister.platforms.kubernetes.driver import KubernetesPlatform
from cloister.platforms.kubernetes.settings import Cluster, KubernetesSettings
from cloister.platforms.port import Gone, Ready
from cloister.testing.kubernetes.cluster import PORT, FakeKubernetes
from cloister.testing.logs import MemoryLog

async def main():
    there = FakeKubernetes()
    await there.open()
    there.deploy("pruned")
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(kubeconfig=there.kubeconfig(pathlib.Path(folder) / "kubeconfig"), poll_s=1.0)
        platform = KubernetesPlatform(KubernetesSettings("pruned", port=PORT, cluster=cluster), MemoryLog())
        events = platform.events()
        await platform.start("i-1", "g")
        assert isinstance(await anext(events), Ready)
        assert len(await platform.running()) == 1
        await platform.stop("i-1")
        assert isinstance(await anext(events), Gone)
        await platform.close()
    await there.close()
    print("served")

asyncio.run(asyncio.wait_for(main(), 60))
"""


def test_the_driver_needs_none_of_the_clients_models() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "served\n"), done.stderr[-2000:]


def test_what_is_pruned_is_where_it_was() -> None:
    """Another release of the client may lie elsewhere; then the image would silently have it all again."""
    import kubernetes

    folder = Path(kubernetes.__file__).parent
    for name in ("client/api", "client/models", "aio/client/api", "aio/client/models"):
        assert len(list((folder / name).glob("*.py"))) > 10, name
