"""Lays out what goes into an image, from this tree and uv.lock, the same bytes each time.

    python deploy/image/assemble.py build/image
    python deploy/image/assemble.py build/control --control     # gateway and witness, which nobody has to trust

makes ``opt/cloister`` with ``lib`` (Cloister's own modules, and the distributions they need as pinned in the lock, with
their hashes), ``start.py``, ``sbom.cdx.json`` and, printed too, ``measurement.json``. Files' times are
SOURCE_DATE_EPOCH, or that of the last commit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import contents

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = "3.11"
# Gateway and witness need no engine and verify no evidence. grpcio is for the external scaler, obstore for models that
# the gateway looks up in an object store, the rest for clusters.
CONTROL_DISTRIBUTIONS = ("cryptography", "cbor2", "httptools", "uvloop", "grpcio", "obstore", "kubernetes", "aiohttp")
EXTRAS = ("litert", "objectstores", "custodians", "postgres", "scaler", "kubernetes")
# What services never load of their distributions, 60 MB and 115 MB; tests compute with both engines and drive a cluster
# without it. Of the Kubernetes client, the models and calls of every resource (cloister.platforms.kubernetes.api), but
# for the packages' own files, which know what they would load.
UNUSED = (
    *("numpy/**/tests", "numpy/distutils", "numpy/f2py"),
    *("onnxruntime/transformers", "onnxruntime/quantization", "onnxruntime/tools", "onnxruntime/datasets"),
    *("ai_edge_litert/tools", "ai_edge_litert/vendors", "ai_edge_litert/libLiteRtWebGpuAccelerator.so"),
    # Of PyCryptodome, whose sharing of secrets is used: all of its C, and what needs it.
    *(f"Crypto/{name}" for name in ("Cipher", "Hash", "IO", "Math", "PublicKey", "SelfTest", "Signature", "*/*.so")),
    *("tzdata/zoneinfo", "tzdata/zones"),  # of python-dateutil, which pg8000 brings: no time zone is ever asked for
    *("kubernetes/client/api/[!_]*", "kubernetes/client/models/[!_]*"),
    *("kubernetes/aio/client/api/[!_]*", "kubernetes/aio/client/models/[!_]*"),
)
SKIPPED = ("bin", ".lock")  # of an installation with --target: commands of distributions, an empty lock


def epoch() -> int:
    """The time that all files get."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def trusted() -> tuple[str, ...]:
    """Names of the trusted base's distributions."""
    sys.path.insert(0, str(ROOT / "src"))
    from cloister.adapters.tee.simulation import TRUSTED_DISTRIBUTIONS

    return TRUSTED_DISTRIBUTIONS


def required(distributions: tuple[str, ...]) -> set[str]:
    """Them and all they require, by the lock."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    requires: dict[str, set[str]] = {}
    for package in lock["package"]:
        names = {item["name"] for item in package.get("dependencies", ())}
        requires.setdefault(package["name"], set()).update(names)
    found: set[str] = set()
    waiting = list(distributions)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += requires[name]
    return found


def requirements(distributions: tuple[str, ...]) -> str:
    """Pinned, with hashes, of these only."""
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    command = ["uv", "export", "--frozen", "--no-dev", "--no-emit-project", *extras]
    done = subprocess.run([*command, "--quiet"], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = required(distributions)
    kept = []
    for block in re.split(r"\n(?=[A-Za-z0-9])", done.stdout):
        name = re.match(r"[A-Za-z0-9._-]+", block)
        if name and name[0].lower() in wanted:
            kept.append(re.sub(r"\n\s+#.*", "", block).rstrip())
    return "\n".join(kept) + "\n"


def install(lib: Path, distributions: tuple[str, ...]) -> None:
    """The distributions, as wheels for Linux on x86-64."""
    pinned = lib.parent / "requirements.txt"
    pinned.write_text(requirements(distributions))
    command = [
        *("uv", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"),
        *("--target", str(lib), "--python-version", PYTHON, "--python-platform", "x86_64-manylinux_2_31"),
        *("--link-mode", "copy", "-r", str(pinned)),
    ]
    subprocess.run(command, check=True)
    pinned.unlink()
    for pattern in (*UNUSED, *SKIPPED):
        for path in list(lib.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def copy_cloister(lib: Path, listed: Path) -> None:
    """The modules of the list, and the files, which have a path."""
    for name in listed.read_text().splitlines():
        if name.startswith("#"):
            continue
        source = ROOT / "src" / (name if "/" in name else name.replace(".", "/"))
        if "/" not in name:
            source = source / "__init__.py" if source.is_dir() else source.with_suffix(".py")
        target = lib / source.relative_to(ROOT / "src")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def compile_all(lib: Path) -> None:
    """Byte code, checked against its source by hash: a changed source is never run from an old cache."""
    if f"{sys.version_info[0]}.{sys.version_info[1]}" != PYTHON:
        print(f"assemble: no byte code: this is not Python {PYTHON}", file=sys.stderr)
        return
    command = [
        sys.executable,
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode",
        "checked-hash",
        "-s",
        str(lib.parents[2]),
    ]
    subprocess.run(
        [*command, "-p", "/", str(lib)], check=False
    )  # some distributions ship templates that do not compile


def sbom(lib: Path) -> dict[str, object]:
    """CycloneDX 1.6, from the metadata of what is there."""
    parts = []
    for folder in sorted(lib.glob("*.dist-info")):
        head = (folder / "METADATA").read_text("utf-8").split("\n\n", 1)[0]
        fields = dict(re.findall(r"(?m)^(Name|Version|License-Expression|License): (.+)$", head))
        name = re.sub(r"[-_.]+", "-", fields["Name"]).lower()
        purl = f"pkg:pypi/{name}@{fields['Version']}"
        part: dict[str, object] = {
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": fields["Version"],
            "purl": purl,
        }
        if "License-Expression" in fields:
            part["licenses"] = [{"expression": fields["License-Expression"]}]
        elif len(fields.get("License", "x" * 99)) < 64:
            part["licenses"] = [{"license": {"name": fields["License"]}}]
        parts.append(part)
    version = re.search(r'__version__ = "(.+)"', (lib / "cloister" / "__init__.py").read_text())
    own = {"type": "application", "bom-ref": "cloister", "name": "cloister", "version": version[1] if version else ""}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": own},
        "components": parts,
        "dependencies": [{"ref": "cloister", "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def normalise(root: Path, when: int) -> None:
    """The same modes, owners' bits and times everywhere."""
    for path in sorted(root.rglob("*"), reverse=True):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (when, when), follow_symlinks=False)
    os.utime(root, (when, when))


def lay_out(target: Path, *, control: bool) -> None:
    """Everything of one image."""
    shutil.rmtree(target, ignore_errors=True)
    here = target / "opt" / "cloister"
    lib = here / "lib"
    lib.mkdir(parents=True)
    (target / "state").mkdir()
    install(lib, CONTROL_DISTRIBUTIONS if control else trusted())
    copy_cloister(lib, contents.CONTROL if control else contents.LIST)
    shutil.copyfile(HERE / "start.py", here / "start.py")
    compile_all(lib)
    (here / "sbom.cdx.json").write_text(json.dumps(sbom(lib), indent=1) + "\n")
    command = [sys.executable, "-IBS", str(here / "start.py"), "version", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (here / "measurement.json").write_text(done.stdout)
    print(done.stdout, end="")
    normalise(target, epoch())


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]), control="--control" in sys.argv)
