"""Folders of stores, mounted on this machine for as long as a run takes.

A sandbox has no network and reads sealed files from a folder, so the operator's side brings the store to it
(decisions/0013). Each mount is served by a process of its own (`store_view`), which lives while somebody holds the
other end of its standard input: the command, and whoever the command forked to run the sandbox. When the last of them
is gone, killed or not, the mount goes too. What a killed server left is removed when the next mount is made.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from strongroom._unix import lock_alone
from strongroom.errors import InputError, UnavailableError, from_code

__all__ = ["Mounts", "detach"]

PATIENCE_S = 5.0
_END_S = 30.0
_MNT_DETACH = 2
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from strongroom.jobs.targets.store_view import main; main()"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounts:
    """Makes mounts.

    Attributes:
        folder: Where they appear, in folders of random names; private to this user.
        locks: Where the locks of stores that are written to lie; the same for all workspaces of a user.
    """

    folder: Path
    locks: Path

    @contextlib.contextmanager
    def mounted(self, urls: Mapping[str, tuple[str, str]]) -> Iterator[dict[str, Path]]:
        """Mount each of name -> (URL, `ro` or `rw`) and yield name -> folder.

        A store that is mounted `rw` is held alone, on this machine: stores have no locks.

        Raises:
            InputError: A package is missing, or there is no such folder.
            UnavailableError: The store does not answer, or another run of this machine writes to it.
        """
        with contextlib.ExitStack() as held:
            if urls:
                _check_packages()
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self.locks.mkdir(parents=True, exist_ok=True)
                with self._places():
                    self._remove_left()
            yield {name: held.enter_context(self._mount(url, mode)) for name, (url, mode) in urls.items()}

    @contextlib.contextmanager
    def _mount(self, url: str, mode: str) -> Iterator[Path]:
        place = self.folder / secrets.token_hex(8)
        target = place / "store"
        with contextlib.ExitStack() as held:
            held.callback(_remove_place, place)
            with self._places():
                target.mkdir(parents=True, mode=0o700)
                locks = [held.enter_context(_held(place / "lock", url, 0.0))]
            if mode == "rw":
                name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()
                locks.append(held.enter_context(_held(self.locks / name, url, PATIENCE_S)))
            server, life = _serve(url, target, mode, locks)
            try:
                _wait_until_ready(server, url)
                yield target
            finally:
                os.close(life)
                _wait_until_gone(server, target)

    def _places(self) -> contextlib.AbstractContextManager[int]:
        # Nobody takes a place that is being made for one that was left.
        return _held(self.locks / "places", str(self.folder), PATIENCE_S)

    def _remove_left(self) -> None:
        # Mounts whose server was killed.
        for place in self.folder.iterdir():
            with contextlib.suppress(OSError):
                handle = os.open(place / "lock", os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not its server's any more
                    detach(str(place / "store"))
                    _remove_place(place)
                finally:
                    os.close(handle)


def detach(folder: str) -> None:
    """Take the mount at `folder` away, also while it is in use; none there is no error."""
    if ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(folder), _MNT_DETACH) == 0:
        return
    helper = shutil.which("fusermount") or shutil.which("fusermount3")
    if helper and ctypes.get_errno() == errno.EPERM:  # not root: the mount was made by this helper, too
        subprocess.run([helper, "-u", "-z", folder], capture_output=True, check=False)


def _check_packages() -> None:
    if importlib.util.find_spec("mfusepy") is None:
        raise InputError(
            "a store is mounted with mfusepy, which is not installed", hint="pip install 'strongroom[hdfs]'"
        )
    if not (ctypes.util.find_library("fuse") or ctypes.util.find_library("fuse3")):
        raise InputError(
            "a store is mounted with libfuse, which is not installed",
            hint="apt-get install libfuse2, and fuse too unless root runs the jobs",
        )


@contextlib.contextmanager
def _held(path: Path, url: str, wait_s: float) -> Iterator[int]:
    # The server inherits the descriptor, and with it the lock.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock_alone(handle, url, wait_s)
        yield handle
    finally:
        os.close(handle)


def _serve(url: str, target: Path, mode: str, locks: list[int]) -> tuple[subprocess.Popen[bytes], int]:
    read, write = os.pipe()
    # Above the numbers that the platform gives to its sandbox; it inherits this end when it is forked, and nobody else.
    life = fcntl.fcntl(write, fcntl.F_DUPFD, 64)
    os.close(write)
    try:
        server = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(sys.path), url, str(target), mode],
            stdin=read,
            stdout=subprocess.PIPE,
            pass_fds=locks,
            start_new_session=True,  # an interrupt at the terminal is for the job, which still needs the mount
        )
    except BaseException:
        os.close(life)
        raise
    finally:
        os.close(read)
    return server, life


def _wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    with server.stdout:  # type: ignore[union-attr]
        said = server.stdout.read()  # type: ignore[union-attr]
    found = json.loads(said or "{}")
    if "code" in found:
        raise from_code(str(found["code"]), str(found["message"]), hint=str(found["hint"]))
    if not found.get("ready"):
        raise UnavailableError(f"{url} could not be mounted", hint="the lines above say why")


def _wait_until_gone(server: subprocess.Popen[bytes], target: Path) -> None:
    try:
        server.wait(_END_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    detach(str(target))  # it has done so itself, unless it was killed


def _remove_place(place: Path) -> None:
    with contextlib.suppress(OSError):
        (place / "store").rmdir()
        (place / "lock").unlink(missing_ok=True)
        place.rmdir()
