"""Reads the Service that an operator wrote down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloister.base.errors import InvalidInput
from cloister.base.limits import MIB
from cloister.platforms.knative.service import check
from cloister.platforms.kubernetes.resources import printable


def read_manifest(path: Path) -> Mapping[str, Any]:
    """One document in YAML, which JSON is too.

    :raises InvalidInput: ``knative-manifest``; ``kubernetes-missing``: the client, which brings YAML, is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise InvalidInput(
            "kubernetes-missing", "the Kubernetes client is not installed here", hint="Install cloister[kubernetes]."
        ) from error
    try:
        with path.open("rb") as file:
            text = file.read(MIB + 1)
        value = yaml.safe_load(text) if len(text) <= MIB else None
    except OSError as error:
        raise InvalidInput("knative-manifest", f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InvalidInput("knative-manifest", f"{path} is not YAML: {printable(str(error))}") from error
    return check(value, str(path))
