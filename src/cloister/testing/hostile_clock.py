"""A host that lies about time: a preloaded library through which a process sees the clocks that we choose.

The host of most TEEs sets their wall clock and can stop them altogether (spec/threat-model.md, on time).
Needs a C compiler.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

AVAILABLE: Final = shutil.which("gcc") is not None
_SOURCE: Final = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* [0] nanoseconds added to the wall clock; [1] what monotonic clocks show, 0: the truth */
static volatile int64_t *told;

static void __attribute__((constructor)) begin(void) {
    const char *path = getenv("CLOISTER_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *there = mmap(0, 16, PROT_READ, MAP_SHARED, file, 0);
    if (there != MAP_FAILED) told = there;
    close(file);
}

int clock_gettime(clockid_t which, struct timespec *out) {
    int status = syscall(SYS_clock_gettime, which, out);
    if (status || !told) return status;
    int64_t value = (int64_t)out->tv_sec * 1000000000 + out->tv_nsec;
    if (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE) value += told[0];
    else if (told[1] && (which == CLOCK_MONOTONIC || which == CLOCK_MONOTONIC_RAW || which == CLOCK_MONOTONIC_COARSE
                         || which == CLOCK_BOOTTIME)) value = told[1];
    else return 0;
    out->tv_sec = value / 1000000000;
    out->tv_nsec = value % 1000000000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


class HostileClock:
    """The clocks of every process that is started with :attr:`environment`.

    :param folder: where the library and the clocks lie.
    """

    def __init__(self, folder: Path) -> None:
        source, library, clocks = folder / "clock.c", folder / "clock.so", folder / "clocks"
        source.write_text(_SOURCE, encoding="ascii")
        clocks.write_bytes(bytes(16))
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)  # noqa: S603, S607  # ours
        with clocks.open("r+b") as file:
            self._clocks = mmap.mmap(file.fileno(), 16)
        self.environment = {"LD_PRELOAD": str(library), "CLOISTER_TEST_CLOCK": str(clocks)}

    def shift(self, seconds: float) -> None:
        """Set the wall clock so far ahead, or back."""
        self._clocks[:8] = struct.pack("=q", int(seconds * 1e9))

    def stop(self, monotonic_s: float) -> None:
        """Monotonic clocks stand still here; 0: they run again."""
        self._clocks[8:] = struct.pack("=q", int(monotonic_s * 1e9))

    def close(self) -> None:
        """Let the clocks go."""
        self._clocks.close()
