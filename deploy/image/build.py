"""Builds the images with the engine that is there, runs each once, and prints the measurement that policies name.

    python deploy/image/build.py [--tag TAG] [--control-tag TAG] [--only services|control]
                                 [--base IMAGE | --debian-base] [--engine podman]

``services`` are KeyService, runtime and OpenWhisk action, which are measured and trusted; ``control`` are gateway and
witness. ``--debian-base`` makes the base from Debian's packages (debian_root.py), for machines that reach no registry.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import assemble
import debian_root

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
FOLDERS = {"services": "image", "control": "control"}  # of build/, and targets of the Containerfile
ENGINES = {"docker": ("docker",), "podman": ("podman", *(("--runtime", "runc") if shutil.which("runc") else ()))}


def docker_runs() -> bool:
    """Whether there is a docker with a daemon behind it."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def build(engine: str, image: str, tag: str, base: str) -> None:
    """One image, of the docker format, which knows health checks."""
    file = str(ROOT / "deploy/Containerfile")
    command = [*ENGINES[engine], "build", "--file", file, "--target", image, "--tag", tag]
    if base:
        command += ["--build-arg", f"BASE_IMAGE={base}"]
    if engine == "podman":  # chroot: no step runs anything, so nothing needs to be isolated
        command += ["--format", "docker", "--isolation", "chroot", "--timestamp", str(assemble.epoch())]
    subprocess.run([*command, str(BUILD / FOLDERS[image])], check=True)


def run_once(engine: str, image: str, tag: str) -> None:
    """What the image measures is what was put into it; prints it."""
    run = [*ENGINES[engine], "run", "--rm", "--no-healthcheck", "--network", "none", "--read-only", *LIMITS]
    done = subprocess.run(
        [*run, "--cap-drop", "ALL", tag, "version", "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    told = json.loads(done.stdout)
    if told != json.loads((BUILD / FOLDERS[image] / "opt/cloister/measurement.json").read_text()):
        sys.exit("build: what the image measures is not what was put into it")
    print(f"{tag}: measurement {told['insecure-simulation-measurement']}")


def import_root(engine: str, tag: str) -> None:
    """The root file system as a base."""
    tar = ["tar", "--sort=name", "--numeric-owner", "--owner=0", "--group=0", "-C", str(BUILD / "root"), "-c", "."]
    with subprocess.Popen(tar, stdout=subprocess.PIPE) as packing:
        subprocess.run([*ENGINES[engine], "import", "-", tag], stdin=packing.stdout, check=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tag", default="localhost/cloister:test")
    parser.add_argument("--control-tag", default="localhost/cloister-gateway:test")
    parser.add_argument("--only", choices=sorted(FOLDERS))
    parser.add_argument("--base", default="")
    parser.add_argument("--debian-base", action="store_true")
    parser.add_argument("--engine", choices=sorted(ENGINES), default="docker" if docker_runs() else "podman")
    args = parser.parse_args()
    if args.debian_base:
        args.base = "localhost/cloister-base:bookworm"
        sys.argv = [sys.argv[0], str(BUILD / "root")]
        debian_root.main()
        import_root(args.engine, args.base)
    for image, tag in (("services", args.tag), ("control", args.control_tag)):
        if args.only in (None, image):
            assemble.lay_out(BUILD / FOLDERS[image], control=image == "control")
            build(args.engine, image, tag, args.base)
            run_once(args.engine, image, tag)


if __name__ == "__main__":
    main()
