"""A base for the image where no registry can be reached: a root file system of a few Debian packages, without a shell.

    python deploy/image/debian_root.py build/root

Fetches the packages with apt-get (so it needs Debian 12, or a container of it), unpacks them without running anything
of them, and lists what they are in ``var/lib/dpkg/status.d`` for scanners. Then, for example::

    tar --sort=name -C build/root -c . | podman import - localhost/cloister-base
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# What Python 3.11 and the wheels of the trusted base link to; no dash, no coreutils, no dpkg.
PACKAGES = (
    "base-files", "ca-certificates", "libbz2-1.0", "libc6", "libcrypt1", "libexpat1", "libffi8", "libgcc-s1",
    "liblzma5", "libpython3.11-minimal", "libpython3.11-stdlib", "libsqlite3-0", "libssl3", "libstdc++6", "libuuid1",
    "media-types", "netbase", "python3.11-minimal", "tzdata", "zlib1g",
)  # fmt: skip
DROPPED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug", "usr/share/menu")
MERGED = ("bin", "sbin", "lib", "lib64")


def run(*command: str, cwd: Path | None = None) -> str:
    """Its output; what it fails with is shown."""
    return subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True).stdout


def compile_library(root: Path) -> None:
    """Byte code of the standard library, which Debian makes when a package is installed, and nothing is here.

    Without it every start of a container compiled what it imports: twice the time to readiness. Checked by hash, as all
    byte code in the image.
    """
    if sys.version_info[:2] != (3, 11):
        print("debian_root: no byte code: this is not Python 3.11", file=sys.stderr)
        return
    options = ("-q", "--invalidation-mode", "checked-hash", "-s", str(root), "-p", "/")
    run(sys.executable, "-m", "compileall", *options, str(root / "usr/lib/python3.11"))


def main() -> None:
    """See the module."""
    root = Path(sys.argv[1])
    shutil.rmtree(root, ignore_errors=True)
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    status = root / "var/lib/dpkg/status.d"
    status.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        packages = Path(folder)
        packages.chmod(0o755)
        run("apt-get", "download", "--quiet", *PACKAGES, cwd=packages)
        for package in sorted(packages.glob("*.deb")):
            # dpkg-deb would replace the merged folders' links; tar keeps them
            archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, check=True).stdout
            unpack = ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-C", str(root)]
            subprocess.run(unpack, input=archive, check=True)
            name = package.name.partition("_")[0]
            (status / name).write_text(run("dpkg-deb", "--field", str(package)))
    for name in DROPPED:
        shutil.rmtree(root / name, ignore_errors=True)
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_text("".join(path.read_text() for path in certificates))
    (root / "usr/bin/python3").symlink_to("python3.11")
    (root / "tmp").mkdir(mode=0o1777, exist_ok=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/nonexistent\ncloister:x:10001:10001::/:/nonexistent\n")
    (root / "etc/group").write_text("root:x:0:\ncloister:x:10001:\n")
    compile_library(root)
    when = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    for path in root.rglob("*"):
        os.utime(path, (when, when), follow_symlinks=False)
    print(f"{len(certificates)} certificates, {len(PACKAGES)} packages in {root}")


if __name__ == "__main__":
    main()
