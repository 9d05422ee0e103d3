"""The sandbox's system call filter, as classic BPF; the guest sets it, the platform measures it.

Refused with EPERM: mounting, new namespaces, tracing and reading other processes, kernel keys and modules, BPF,
io_uring, and whatever else an unprivileged workload has no need of. `clone3` answers ENOSYS, so that libc falls back
to `clone`, whose namespace flags this filter can see.

Numbers: Linux asm/unistd for x86-64 and arm64; BPF: linux/filter.h, seccomp(2).
"""

from __future__ import annotations

import os
import struct

from strongroom.errors import InputError

__all__ = ["SYNCS", "computing_program", "filter_program", "notifying_program"]

# name: (x86-64, arm64); -1 where the architecture has none
_DENIED = {
    "acct": (163, 89), "add_key": (248, 217), "bpf": (321, 280), "delete_module": (176, 106),
    "finit_module": (313, 273), "fsconfig": (431, 431), "fsmount": (432, 432), "fsopen": (430, 430),
    "fspick": (433, 433), "init_module": (175, 105), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425), "ioperm": (173, -1), "iopl": (172, -1), "kcmp": (312, 272),
    "kexec_file_load": (320, 294), "kexec_load": (246, 104), "keyctl": (250, 219), "mount": (165, 40),
    "mount_setattr": (442, 442), "move_mount": (429, 429), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "perf_event_open": (298, 241), "pidfd_getfd": (438, 438), "pivot_root": (155, 41), "process_madvise": (440, 440),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117), "quotactl": (179, 60),
    "reboot": (169, 142), "request_key": (249, 218), "setns": (308, 268), "swapoff": (168, 225),
    "swapon": (167, 224), "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282),
}  # fmt: skip
# What is left to a process that computes on what it has read and writes an answer; memory, locks, time, its end.
_COMPUTING = {
    "brk": (12, 214), "clock_gettime": (228, 113), "close": (3, 57), "exit": (60, 93), "exit_group": (231, 94),
    "futex": (202, 98), "getrandom": (318, 278), "madvise": (28, 233), "mmap": (9, 222), "mprotect": (10, 226),
    "mremap": (25, 216), "munmap": (11, 215), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sched_yield": (24, 124), "write": (1, 64),
}  # fmt: skip
SYNCS = {"fsync": (74, 82), "fdatasync": (75, 83), "msync": (26, 227), "sync": (162, 81), "syncfs": (306, 267)}
"""Calls that promise that a file outlives a power cut: (x86-64, arm64)."""

_CLONE = (56, 220)
_CLONE3 = 435
_NAMESPACES = 0x7E020080  # CLONE_NEWTIME | NS | CGROUP | UTS | IPC | USER | PID | NET
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENT0, _ARGUMENT2 = 0, 4, 16, 32
_ALLOW, _KILL, _ERRNO, _NOTIFY = 0x7FFF0000, 0x80000000, 0x00050000, 0x7FC00000
_MS_SYNC = 4
_EPERM, _ENOSYS = 1, 38


def filter_program(machine: str | None = None) -> bytes:
    """Return the filter for `machine` (default: this one).

    Raises:
        InputError: No numbers are known for the architecture.
    """
    code, column = _beginning(machine or os.uname().machine)
    for numbers in _DENIED.values():
        if numbers[column] >= 0:
            code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    code += [(_EQUAL, 0, 3, _CLONE[column]), (_LOAD, 0, 0, _ARGUMENT0)]
    code += [(_ANY_BIT, 0, 1, _NAMESPACES), (_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *step) for step in code)


def computing_program(machine: str | None = None) -> bytes:
    """Return the filter of a process that may compute and write to what it has open: all else answers EPERM.

    Raises:
        InputError: No numbers are known for the architecture.
    """
    code, column = _beginning(machine or os.uname().machine)
    for numbers in _COMPUTING.values():
        code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *step) for step in [*code, (_RETURN, 0, 0, _ERRNO | _EPERM)])


def notifying_program(machine: str | None = None) -> bytes:
    """Return the filter that asks its listener about the calls of `SYNCS` and leaves all else to other filters.

    It changes no answer of `filter_program`: an error or a kill goes before a notification.

    Raises:
        InputError: No numbers are known for the architecture.
    """
    code, column = _beginning(machine or os.uname().machine)
    for name, numbers in SYNCS.items():
        if name != "msync":
            code += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _NOTIFY)]
    code += [(_EQUAL, 0, 3, SYNCS["msync"][column]), (_LOAD, 0, 0, _ARGUMENT2)]
    code += [(_ANY_BIT, 0, 1, _MS_SYNC), (_RETURN, 0, 0, _NOTIFY), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *step) for step in code)


def _beginning(machine: str) -> tuple[list[tuple[int, int, int, int]], int]:
    if machine not in _ARCHITECTURES:
        raise InputError(f"no system call filter for {machine}: expected one of {', '.join(_ARCHITECTURES)}")
    arch, column = _ARCHITECTURES[machine]
    code = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    return [*code, (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)], column
