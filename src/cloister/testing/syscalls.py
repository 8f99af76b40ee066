"""Proof that code talks to nobody: a seccomp filter that kills the process at the first socket or written file.

Linux on x86-64 only. The kernel enforces it for every thread and for C++ libraries too, which a patched Python function
would not.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Final

SUPPORTED: Final = platform.system() == "Linux" and platform.machine() == "x86_64"

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06
_NUMBER: Final = 0  # offsets into struct seccomp_data
_ARGUMENTS: Final = 16
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_OPEN: Final = {2: 1, 257: 2}  # open, openat: which argument holds the flags
_FORBIDDEN: Final = (
    *(41, 42, 44, 46, 49, 50, 53),  # socket, connect, sendto, sendmsg, bind, listen, socketpair
    *(57, 58, 59, 322),  # fork, vfork, execve, execveat
    *(76, 82, 83, 85, 86, 87, 88, 133),  # truncate, rename, mkdir, creat, link, unlink, symlink, mknod
    *(258, 259, 263, 264, 265, 266, 316, 437),  # the ...at forms, renameat2, openat2
)


def forbid_sockets_and_written_files() -> None:
    """From here on, for this process and for good: no socket, no new process, no file opened for writing or changed.

    Whoever tries dies by SIGSYS. Descriptors that are open already, and memory files, still work.

    :raises OSError: where the kernel does not take the filter.
    """
    if not SUPPORTED:
        raise OSError("seccomp filters are written for Linux on x86-64 only")
    program = [(_LOAD, 0, 0, _NUMBER)]
    for number in _FORBIDDEN:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _KILL)]
    for number, argument in _OPEN.items():
        # Not this call: skip the next four.
        program += [
            (_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
            (_ANY_BIT, 0, 1, _WRITING),
            (_RETURN, 0, 0, _KILL),
            (_RETURN, 0, 0, _ALLOW),
        ]
    program.append((_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refuses the seccomp filter")
