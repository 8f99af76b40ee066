#!/bin/sh
# A container engine for `make image`: what is installed, or, as root on Debian, podman with runc from its packages.
# runc, because crun up to 1.8 refuses hosts that have both versions of cgroups mounted; iptables, for its network.
set -eu
if command -v docker >/dev/null && docker info >/dev/null 2>&1; then exit 0; fi
if command -v podman >/dev/null && command -v runc >/dev/null; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "make image needs docker, or podman with runc: install one of them" >&2
    exit 1
fi
apt-get update -q >/dev/null
apt-get install -q -y --no-install-recommends podman runc netavark aardvark-dns iptables >/dev/null
