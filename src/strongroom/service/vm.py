"""Process one of a confidential VM that is the trust service: the kernel starts it from a first file system in memory.

1. mount what a Linux system has; 2. mount the host's two folders: `launch/`, its word, and `service/`, the state, which
proves itself (docs/formats/service-state.md); 3. bring QEMU's network up; 4. run the service with few rights; 5. power
off when it has ended.

What it runs, and with which arguments, is in that file system, which the launch digest covers: one image for any owner.
Of `launch/` it reads `admin.pem` alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import stat
import sys
from pathlib import Path
from typing import NoReturn

from strongroom import _vm
from strongroom.service.main import main as serve

__all__ = ["main"]

_ARGUMENTS = ("/service", "0.0.0.0:8700", "vm", "/launch/admin.pem")
_SEV_GUEST = Path("/sys/class/misc/sev-guest/dev")
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITIES = (1 << 1) | (1 << 3)  # DAC_OVERRIDE and FOWNER: whoever the files of `service/` belong to on the host

_log = logging.getLogger(__name__)


def main() -> NoReturn:
    """Run the trust service and power off; whatever happens, nothing else runs here."""
    try:
        _vm.mount_system()  # 1.
        _make_sev_guest()
        _vm.mount_share("launch", "/launch", read_only=True)  # 2.
        _vm.mount_share("service", "/service", read_only=False)
        _vm.join_network({})  # 3.
        if (child := os.fork()) == 0:
            _serve()  # 4.
        while (ended := os.wait())[0] != child:  # as process one: of whatever else has ended too
            pass
        _vm.say(f"the trust service has ended, status {os.waitstatus_to_exitcode(ended[1])}")
    except OSError as exc:
        _vm.say(f"{exc.strerror}: {exc.filename}")
    finally:
        _vm.power_off()  # 5.


def _make_sev_guest() -> None:
    # Whence the sealing key comes in SEV-SNP; its number is the kernel's choice.
    with contextlib.suppress(FileNotFoundError):
        major, minor = map(int, _SEV_GUEST.read_text().split(":"))
        os.mknod("/dev/sev-guest", stat.S_IFCHR | 0o600, os.makedev(major, minor))


def _serve() -> NoReturn:
    # It stays root, to whom the kernel gives evidence and the sealing key: both are the service's own, and nothing else
    # runs here that could be kept from it. It can no longer mount, trace, or load code into the kernel; what is root's
    # under /proc/sys it could still write.
    status = 2
    try:
        _vm.check(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
        _vm.keep_capabilities(_CAPABILITIES)
        sys.argv[1:] = _ARGUMENTS
        status = serve()
    except BaseException:
        _log.exception("the trust service failed")
    finally:
        os._exit(status)  # never back into process one's code
