"""Confining processes inside the enclave: what the guest does to itself, and to the workload before it starts.

The guest becomes unreadable to other processes of the same user (`PR_SET_DUMPABLE 0`) and leaves no core. The workload
loses the right to signal the guest and to touch what is not its own, by Landlock where the kernel has it. Capabilities
and system calls that the guest needs to begin with, to mount views or make a network, are gone before anything is run
that was not measured.

Source: prctl(2), seccomp(2), mount(2), landlock(7); numbers from linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from strongroom._seccomp import filter_program, notifying_program

__all__ = [
    "READABLE",
    "WRITABLE",
    "add_terminals",
    "hand_over_syncs",
    "harden_guest",
    "landlock_abi",
    "lock_down",
    "restrict_workload",
    "take_away",
]

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_NEW_LISTENER, _WAIT_KILLABLE = 1 << 3, 1 << 5
_DETACH = 2
_MS_NOSUID, _MS_NOEXEC = 2, 8
_READ = 0b1101  # execute, read file, read folder
_LIST = 0b1000  # folders may be listed anywhere; what is in them needs a rule of its own
_FILE = (1 << 0) | (1 << 1) | (1 << 2) | (1 << 14) | (1 << 15)  # what a rule on a single file may name
_SCOPE_ABSTRACT_AND_SIGNAL = 0b11
_ALL_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}

READABLE = ("/usr", "/bin", "/lib", "/lib64", "/etc", "/opt", "/app", "/proc", "/run/strongroom", "/strongroom/guest")
WRITABLE = ("/work", "/tmp", "/dev")  # noqa: S108  # enclave memory
"""What every workload may touch. The JVM of a Spark job may also write /sealed, where its sealed files lie."""

_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)
"""What the workload has: more than 1,024 would not do for programs that use select(2)."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("fd", ctypes.c_int32)]


def harden_guest() -> None:
    """Make this process unreadable to its peers; nothing it starts dumps core or gains privileges.

    It may open as many files as the system lets it: it holds one for each that a program has open in a view.
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    # A limit of 0 stops core files, but not a core_pattern that is a pipe to the host; 1 stops both (fs/coredump.c).
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")


def lock_down() -> None:
    """Give up every capability and the system calls of `_seccomp`, also for what this process starts.

    Capabilities are the calling thread's: those that it starts from now on have none either. The filter holds for all.
    """
    header, empty = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) or _libc.capset(header, empty):
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")
    if _load(filter_program(), _ALL_THREADS):
        raise OSError(ctypes.get_errno(), "the system call filter cannot be set")


def _load(program: bytes, flags: int) -> int:
    loaded = _Filter(length=len(program) // 8, program=program)
    return int(_libc.syscall(_SECCOMP[os.uname().machine], _SET_MODE_FILTER, flags, ctypes.byref(loaded)))


def take_away(device: Path) -> None:
    """Remove a device of the sandbox, for everybody."""
    if _libc.umount2(os.fsencode(device), _DETACH):
        raise OSError(ctypes.get_errno(), f"{device} cannot be taken away")


def add_terminals() -> None:
    """Mount /dev/pts: programs may make pseudo terminals, which only they see."""
    options = b"newinstance,ptmxmode=0666,mode=620"
    if _libc.mount(b"devpts", b"/dev/pts", b"devpts", _MS_NOSUID | _MS_NOEXEC, options):
        raise OSError(ctypes.get_errno(), "/dev/pts cannot be mounted")


def landlock_abi() -> int:
    """Return the kernel's Landlock version, 0 if it has none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)))


def restrict_workload(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Confine the calling process and its children to these folders; a kernel without Landlock confines nothing.

    Runs between fork and exec of the workload.
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, _FILES)
    abi = landlock_abi()
    if not abi:
        return
    everything = (1 << _ALL_BY_ABI.get(abi, 16)) - 1
    ruleset = _Ruleset(fs=everything, net=0, scoped=_SCOPE_ABSTRACT_AND_SIGNAL if abi >= 6 else 0)
    size = 24 if abi >= 6 else 8
    handle = _libc.syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0)
    if handle < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset failed")
    for paths, allowed in ((("/",), _LIST), (readable, _READ), (writable, everything)):
        for path in paths:
            _allow(handle, path, allowed & everything)
    if _libc.syscall(_RESTRICT_SELF, handle, 0):
        raise OSError(ctypes.get_errno(), "landlock_restrict_self failed")
    os.close(handle)


def hand_over_syncs(to: socket.socket) -> None:
    """Have fsync and its like, of this process and its children, wait for whoever gets the listener through `to`.

    Runs between fork and exec of the workload.
    """
    # A call that waits is ended by death alone, where the kernel can (5.19): not every program tries again after EINTR.
    program = notifying_program()
    listener = _load(program, _NEW_LISTENER | _WAIT_KILLABLE)
    if listener < 0:
        listener = _load(program, _NEW_LISTENER)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "the filter for fsync cannot be set")
    to.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", listener))])
    os.close(listener)


def _allow(ruleset: int, path: str, allowed: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            allowed &= _FILE
        rule = _PathBeneath(allowed=allowed, fd=handle)
        if _libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0):
            raise OSError(ctypes.get_errno(), f"landlock_add_rule failed for {path}")
    finally:
        os.close(handle)
