"""``[platform.kubernetes]`` and ``[platform.knative]``: where instances are in a cluster, and how the drivers are made.

Only the settings are imported with this module; a driver and the Kubernetes client are when one is configured.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from cloister.adapters.logs import EventLog
from cloister.control.gateway.section import Section, malformed
from cloister.platforms.knative.settings import KnativeSettings
from cloister.platforms.kubernetes.settings import NAME, Cluster, KubernetesSettings
from cloister.platforms.port import Platform

# A Deployment's name is a DNS subdomain; a Knative Service's a label, in which an instance's id has to fit too.
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_MAX_PREFIX: Final = 40


def read_kubernetes(at: Section, start_timeout_s: float, stop_grace_s: float) -> KubernetesSettings:
    """:raises InvalidInput: ``configuration-malformed``."""
    settings = KubernetesSettings(
        deployment=at.text("deployment", default="cloister-runtime"),
        container=at.text("container", default="runtime"),
        port=at.integer("port", 8080, 1, 65535),
        cluster=_cluster(at),
        start_timeout_s=start_timeout_s,
        stop_grace_s=stop_grace_s,
    )
    if _SUBDOMAIN.fullmatch(settings.deployment) is None:
        raise malformed("platform.kubernetes.deployment", "is no name of a Deployment: lower case, digits, - and .")
    if NAME.fullmatch(settings.container) is None:
        raise malformed("platform.kubernetes.container", "is no name of a container: lower case, digits and -")
    return settings


def read_knative(at: Section, start_timeout_s: float, stop_grace_s: float) -> tuple[KnativeSettings, str]:
    """The settings, without the manifest, and the file in which that is.

    :raises InvalidInput: ``configuration-malformed``.
    """
    manifest = at.text("manifest", default="")
    if not manifest:
        raise malformed("platform.knative.manifest", "is missing: the file with a Service, as it would be applied")
    settings = KnativeSettings(
        deployment=at.text("deployment", default="cloister"),
        manifest={},
        cluster=_cluster(at),
        start_timeout_s=start_timeout_s,
        stop_grace_s=stop_grace_s,
    )
    if NAME.fullmatch(settings.deployment) is None or len(settings.deployment) > _MAX_PREFIX:
        raise malformed(
            "platform.knative.deployment", f"is no name of at most {_MAX_PREFIX} lower-case letters, digits and -"
        )
    return settings, manifest


def _cluster(at: Section) -> Cluster:
    cluster = Cluster(
        kubeconfig=at.text("kubeconfig", default=""),
        context=at.text("context", default=""),
        namespace=at.text("namespace", default=""),
        poll_s=at.number("poll_s", 30.0, 1, 3600),
    )
    if cluster.namespace and NAME.fullmatch(cluster.namespace) is None:
        raise malformed(f"{at.name}.namespace", "is no name of a namespace: lower case, digits and -")
    return cluster


def make_kubernetes(settings: KubernetesSettings, log: EventLog) -> Platform:
    """The driver, not opened yet."""
    from cloister.platforms.kubernetes.driver import KubernetesPlatform

    return KubernetesPlatform(settings, log)


def make_knative(settings: KnativeSettings, file: str, log: EventLog) -> Platform:
    """The driver, not opened yet.

    :raises InvalidInput: ``knative-manifest``, ``kubernetes-missing``.
    """
    from dataclasses import replace

    from cloister.platforms.knative.driver import KnativePlatform
    from cloister.platforms.knative.manifest import read_manifest

    return KnativePlatform(replace(settings, manifest=read_manifest(Path(file))), log)
