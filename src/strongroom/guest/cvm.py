"""Process one of a confidential VM: the kernel starts it from a first file system that the launch digest covers.

1. mount what a Linux system has; 2. mount enclave memory and the host's folders (sealed data, and one with the
service's address); 3. bring the network up; 4. pass the guest's connections on to the trust service, so that a program
without network has none; 5. run the guest, as in a sandbox, under a user of its own, and fetch it evidence from the
kernel, the first of which the host gets too; 6. say how it ended, and power off.

The guest is the first of its own process namespace: the kernel ends with it whatever the program left running. The
host's folder is mounted nowhere by then: names that a program looks up in there would be words to the host.

The host's folders and network are the host's: the guest opens nothing there that is not sealed, and knows the service
by its key. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import stat
import struct
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from strongroom import _vm, log
from strongroom._encoding import parse_json
from strongroom._unix import listen_unix, receive_exactly, serve_connections
from strongroom.attest.attesters import Attester
from strongroom.attest.attesters.tsm import TDX_REGISTERS, TsmAttester, bind_at_runtime
from strongroom.attest.binding import init_data_digest
from strongroom.errors import InputError, StrongroomError, UnavailableError
from strongroom.guest.document import LeftEvidence, read_job, read_object, table, volumes

__all__ = ["main", "serve"]

_JOB, _SHARE = Path("/strongroom/job"), "/strongroom/host"
_HOST_FD = 11
_HOST = Path(f"/proc/self/fd/{_HOST_FD}")
_DOOR = "/trust/service/guest.sock"
_PLATFORM_FD = 10
_USER = 1000
_CAPABILITIES = (1 << 2) | (1 << 21)  # DAC_READ_SEARCH and SYS_ADMIN: the guest gives them up before the program starts
_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _RAISE = 8, 47, 2
_CLONE_NEWNS, _CLONE_NEWPID, _CLONE_NEWNET = 0x20000, 0x20000000, 0x40000000
_MNT_DETACH, _MS_BIND = 2, 4096
_MEMORY = 2 | 4  # mount flags: no set-user-id, no devices
_MAX_MESSAGE = 1 << 24
_GUEST = (
    "import sys; sys.path.insert(0, '/strongroom/guest'); from strongroom.guest.main import main; main(sys.argv[1])"
)

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> NoReturn:
    """Run the job and power off; whatever happens, nothing else runs here."""
    log.say_kinds_only()
    ended: dict[str, object] = {"status": "failed"}
    try:
        ended = _run()
    except (StrongroomError, OSError) as exc:
        ended["error"] = {"message": f"{type(exc).__name__}: {exc}"}
    except Exception as exc:  # nothing of an unforeseen error's text may leave: it could hold data
        ended["error"] = {"message": f"unexpected error: {type(exc).__name__}"}
    with contextlib.suppress(OSError):
        (_HOST / "report.json").write_text(json.dumps(ended))
    _vm.say(json.dumps(ended))
    _vm.power_off()


def _run() -> dict[str, object]:
    _vm.mount_system()  # 1.
    init_data, document = read_job(_JOB)
    user = _mount_all(document)  # 2.
    launch = read_object(_HOST / "launch.json")
    _vm.join_network(launch)  # 3.
    _pass_on(str(launch.get("service")), _DOOR, user)  # 4.
    said = {"service": f"unix:{_DOOR}", "identity": launch.get("identity"), "doors": _doors(launch, user)}
    (_JOB / "launch.json").write_text(json.dumps(said))
    attester = TsmAttester()
    _bind(attester, init_data)
    left = LeftEvidence(attester, _HOST / "quote.bin")
    ended = _guest(left, user, network=table(document, "sandbox").get("network") is True)  # 5.
    if isinstance(error := ended.get("error"), dict):
        left.explain(error)
    return ended


def _bind(attester: Attester, init_data: str, registers: Path = TDX_REGISTERS) -> None:
    if attester.tee == "tdx":
        try:
            bind_at_runtime(init_data_digest(init_data), registers)
        except UnavailableError as exc:  # no failure where MRCONFIGID binds it; else the service refuses
            _vm.say(str(exc))


def _mount_all(document: dict[str, object]) -> int:
    # Returns whose the guest is.
    _open_host()
    owners = {}
    # The order of the launch script's shares.
    for number, volume in enumerate(sorted(volumes(document), key=lambda v: str(v["name"]))):
        place = f"/sealed/{volume['name']}"
        _vm.mount_share(f"sealed{number}", place, read_only=volume["mode"] == "ro")
        if volume["mode"] == "rw":
            owners[str(volume["name"])] = os.stat(place).st_uid
    user = _user(owners)
    passwd = Path("/etc/passwd")
    passwd.write_text(passwd.read_text().replace(f":{_USER}:{_USER}:", f":{user}:{user}:"))
    _make_devices(user)
    scratch = table(document, "sandbox").get("scratch_mb")
    for place in ("/work", "/tmp", "/dev/shm", "/run", "/app"):  # noqa: S108  # enclave memory
        size = 64 if place == "/run" else scratch if isinstance(scratch, int) else 1024
        _vm.mount("tmpfs", place, "tmpfs", _MEMORY, f"size={size}m,mode=0700,uid={user},gid={user}")
    if document.get("staged") is True:
        for place in ("/sealed", "/trust"):  # for the guest alone
            os.chmod(place, 0)
    return user


def _user(owners: Mapping[str, int]) -> int:
    # The kernel compares the owner of a shared file, as the host has it, with whoever writes. Any but root will do.
    for name, owner in owners.items():
        if not 0 < owner < 1 << 31:
            raise InputError(
                f"volume {name}: owner of its folder: expected a user, got {owner}: the guest writes as its owner",
                hint="chown -R it on the host",
            )
    return next(iter(owners.values()), _USER)


def _open_host() -> None:
    _vm.mount_share("host", _SHARE, read_only=False)
    opened = os.open(_SHARE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.dup2(opened, _HOST_FD, inheritable=False)
    os.close(opened)
    _vm.check(_libc.umount2(os.fsencode(_SHARE), _MNT_DETACH), "umount2")


def _make_devices(user: int) -> None:
    # Beside the sandbox's. The guest unmounts /dev/fuse before the program starts: nothing is under it.
    os.symlink("pts/ptmx", "/dev/ptmx")
    os.mkdir("/dev/pts")
    if os.path.exists("/sys/module/fuse"):  # else programs see copies of their volumes
        os.mknod("/dev/fuse-node", stat.S_IFCHR | 0o600, os.makedev(10, 229))
        os.chown("/dev/fuse-node", user, user)
        Path("/dev/fuse").touch(0o000)
        _vm.mount("/dev/fuse-node", "/dev/fuse", "", _MS_BIND)
        os.unlink("/dev/fuse-node")


def _doors(launch: dict[str, object], user: int) -> dict[str, str]:
    # To each KBS that the job document names: the guest asks for these and no others.
    found = launch.get("doors")
    doors = {}
    for number, (at, there) in enumerate(sorted(found.items()) if isinstance(found, dict) else []):
        doors[at] = f"unix:{os.path.dirname(_DOOR)}/kbs{number}.sock"
        _pass_on(str(there), doors[at].removeprefix("unix:"), user)
    return doors


def _pass_on(service: str, door: str, user: int) -> None:
    host, _, port = service.removeprefix("https://").rstrip("/").rpartition(":")
    os.makedirs(os.path.dirname(door), exist_ok=True)
    listener = listen_unix(door)
    os.chown(door, user, user)

    def relay(near: socket.socket) -> None:
        try:
            far = socket.create_connection((host.strip("[]"), int(port)), 30)
        except (OSError, ValueError):
            near.close()
            return
        far.settimeout(None)
        with near, far:
            back = threading.Thread(target=_copy, args=(far, near), daemon=True)
            back.start()
            _copy(near, far)
            back.join()

    serve_connections(listener, relay, door)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(1 << 16):
            target.sendall(part)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _guest(attester: Attester, user: int, *, network: bool) -> dict[str, object]:
    tee = attester.tee
    mine, theirs = socket.socketpair()
    _vm.check(_libc.unshare(_CLONE_NEWPID), "unshare")  # takes hold of what this thread starts
    child = os.fork()
    if child == 0:
        try:
            os.dup2(theirs.fileno(), _PLATFORM_FD, inheritable=True)
            _vm.check(_libc.unshare(_CLONE_NEWNS | (0 if network else _CLONE_NEWNET)), "unshare")
            if not network:
                _vm.bring_up("lo", "127.0.0.1", "255.0.0.0")  # its own
            _vm.mount("proc", "/proc", "proc", _vm.PLAIN)  # of its own processes
            os.setgroups([])
            _become(user)
            os.chdir("/work")
            os.execve(sys.executable, [sys.executable, "-ISB", "-c", _GUEST, tee], {})  # noqa: S606  # no shell here
        finally:
            os._exit(127)
    theirs.close()
    ended = serve(mine, attester)
    while True:  # as process one: of whatever else has ended too
        if os.wait()[0] == child:
            return ended


def serve(sock: socket.socket, attester: Attester) -> dict[str, object]:
    """Answer the guest's requests for evidence until it says how it ended; return that.

    Whoever writes to configfs has to be root, and the guest gives up being anything before the program starts.
    """
    ended: dict[str, object] = {"status": "failed", "error": {"message": "the guest ended without a word"}}
    with sock, contextlib.suppress(OSError):
        while True:
            (size,) = struct.unpack(">I", receive_exactly(sock, 4))
            body = receive_exactly(sock, min(size, _MAX_MESSAGE))
            answer = b"\0"
            if body[:5] == b"quote":
                try:
                    answer += attester.attest(body[5:]).quote
                except StrongroomError as exc:
                    answer = b"\1" + str(exc).encode()
            elif body[:6] == b"report":
                found = parse_json(body[6:], "the guest's report", max_bytes=_MAX_MESSAGE)
                ended = found if isinstance(found, dict) else ended
            sock.sendall(struct.pack(">I", len(answer)) + answer)
            if body[:6] == b"report":
                break
    return ended


def _become(user: int) -> None:
    _vm.check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "keepcaps")
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _vm.keep_capabilities(_CAPABILITIES)
    for number in (2, 21):
        _vm.check(_libc.prctl(_PR_CAP_AMBIENT, _RAISE, number, 0, 0), "ambient")
