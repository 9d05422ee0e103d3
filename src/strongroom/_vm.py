"""What process one of a confidential VM does before its own work, whatever runs there: a job's guest, or the service.

The kernel starts it from a first file system in memory that the launch digest covers; the rest of the machine is the
host's. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import stat
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

__all__ = [
    "PLAIN",
    "bring_up",
    "check",
    "join_network",
    "keep_capabilities",
    "mount",
    "mount_share",
    "mount_system",
    "power_off",
    "say",
]

PLAIN = 2 | 4 | 8
"""Mount flags: no set-user-id, no devices, no programs."""

_MS_RDONLY, _MS_NOSUID = 1, 2
_HOSTS = PLAIN | 256  # MS_NOSYMFOLLOW: a link of the host's would lead to files that were measured
_SHARED = "trans=virtio,version=9p2000.L,msize=262144"
_MODULES = Path("/strongroom/modules")
_INIT_MODULE = {"x86_64": 175, "aarch64": 105}
_HARMLESS = (17, 19)  # it is there already; this machine has no device for it
_CAPABILITY_VERSION_3 = 0x20080522
_POWER_OFF = 0x4321FEDC
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C

_libc = ctypes.CDLL(None, use_errno=True)


def mount_system() -> None:
    """Mount what a Linux system has, load the modules that lie beside, and make the devices of a sandbox."""
    mount("proc", "/proc", "proc", PLAIN)
    _load_modules()
    mount("sysfs", "/sys", "sysfs", PLAIN)
    with contextlib.suppress(OSError):  # without it there is no evidence, which the attester says
        mount("configfs", "/sys/kernel/config", "configfs", PLAIN)
    mount("tmpfs", "/dev", "tmpfs", _MS_NOSUID, "size=1m,mode=0755")
    umask = os.umask(0)
    for name, minor in {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}.items():
        os.mknod(f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(1, minor))
    os.umask(umask)
    for name, target in {"stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "fd": "/proc/self/fd"}.items():
        os.symlink(target, f"/dev/{name}")
    socket.sethostname("enclave")


def _load_modules() -> None:
    # In the order in which they need each other.
    number = _INIT_MODULE[os.uname().machine]
    for path in sorted(_MODULES.iterdir()) if _MODULES.is_dir() else []:
        raw = path.read_bytes()
        if _libc.syscall(number, raw, ctypes.c_ulong(len(raw)), b"") and ctypes.get_errno() not in _HARMLESS:
            say(f"module {path.name}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, place: str, kind: str, flags: int, options: str = "") -> None:
    """Mount at `place`, which is made if it is not there."""
    if not os.path.exists(place):
        os.makedirs(place)
    if _libc.mount(source.encode(), os.fsencode(place), kind.encode(), flags, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, f"mounting {source} ({kind}): {os.strerror(number)}", place)


def mount_share(tag: str, place: str, *, read_only: bool) -> None:
    """Mount a folder of the host's, by the tag that the launch script gives it: no links, programs or devices there."""
    mount(tag, place, "9p", _HOSTS | (_MS_RDONLY if read_only else 0), _SHARED)


def join_network(said: Mapping[str, object]) -> None:
    """Bring up the loopback and the first other device, at the host's word: `address` and `netmask`, else QEMU's."""
    bring_up("lo", "127.0.0.1", "255.0.0.0")
    address, mask = str(said.get("address", "10.0.2.15")), str(said.get("netmask", "255.255.255.0"))
    for name in sorted(os.listdir("/sys/class/net")):
        if name != "lo":
            bring_up(name, address, mask)
            break


def bring_up(name: str, address: str, mask: str) -> None:
    """Give the network device `name` an address, and start it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, mask)):
            where = struct.pack("<H2x4s8x", socket.AF_INET, socket.inet_aton(value))
            fcntl.ioctl(control, request, struct.pack("16s16s", name.encode(), where))
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", name.encode(), 0x41))  # up and running


def keep_capabilities(mask: int) -> None:
    """Have this thread, and those that it starts, keep the capabilities in `mask` (by number, as bits) alone."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    check(_libc.capset(header, struct.pack("<6I", *(mask,) * 3, 0, 0, 0)), "capset")


def check(result: int, what: str) -> None:
    """Raise the kernel's error if a call to it failed."""
    if result:
        raise OSError(ctypes.get_errno(), what)


def say(text: str) -> None:
    """Write a line for whoever looks at the VM's console."""
    sys.stderr.write(f"strongroom: {text}\n")
    sys.stderr.flush()


def power_off() -> NoReturn:
    """End the VM, with what was written on the host's disk."""
    os.sync()
    _libc.reboot(_POWER_OFF)
    os._exit(1)
