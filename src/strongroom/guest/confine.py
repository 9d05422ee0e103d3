"""Confining processes inside the enclave: what the guest does to itself, and to the workload before it starts.

The guest becomes unreadable to other processes of the same user (`PR_SET_DUMPABLE 0`) and leaves no core. The workload
loses the right to signal the guest and to touch what is not its own, by Landlock where the kernel has it. Capabilities
and system calls are taken away by the sandbox before the guest starts.

Source: prctl(2), landlock(7); numbers from linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Sequence

__all__ = ["READABLE", "WRITABLE", "drop_capabilities", "harden_guest", "landlock_abi", "restrict_workload"]

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_READ = 0b1101  # execute, read file, read folder
_LIST = 0b1000  # folders may be listed anywhere; what is in them needs a rule of its own
_FILE = (1 << 0) | (1 << 1) | (1 << 2) | (1 << 14) | (1 << 15)  # what a rule on a single file may name
_SCOPE_ABSTRACT_AND_SIGNAL = 0b11
_ALL_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}

READABLE = ("/usr", "/bin", "/lib", "/lib64", "/etc", "/opt", "/app", "/proc", "/run/strongroom", "/strongroom/guest")
WRITABLE = ("/work", "/tmp", "/dev")  # noqa: S108  # enclave memory
"""What every workload may touch. The JVM of a Spark job may also write /sealed, where its sealed files lie."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("fd", ctypes.c_int32)]


def harden_guest() -> None:
    """Make this process unreadable to its peers; nothing it starts dumps core or gains privileges."""
    # A limit of 0 stops core files, but not a core_pattern that is a pipe to the host; 1 stops both (fs/coredump.c).
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")


def drop_capabilities() -> None:
    """Give up every capability, also for what this process starts."""
    header, empty = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) or _libc.capset(header, empty):
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")


def landlock_abi() -> int:
    """Return the kernel's Landlock version, 0 if it has none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)))


def restrict_workload(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Confine the calling process and its children to these folders; a kernel without Landlock confines nothing.

    Runs between fork and exec of the workload.
    """
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
