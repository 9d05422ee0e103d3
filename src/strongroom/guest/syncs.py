"""fsync of a program's files: the kernel asks the guest, which seals and commits before the call returns.

A filter that the program begins with (`confine.hand_over_syncs`) has the calls of `_seccomp.SYNCS` wait for this. The
guest finds by number, never by name, which file is meant; a program that exchanges a descriptor meanwhile misleads
itself. Every call is let through afterwards, or answered with an error: it does no harm, whatever its arguments have
become, and on a memory file system nothing at all.

    fsync, fdatasync    of a file: that file as it is now, whoever wrote it; of a folder: a checkpoint of its volume
    msync(MS_SYNC)      the files that are mapped there
    sync, syncfs        all files of all volumes as they are now

Source: seccomp_unotify(2), proc(5); numbers from linux/seccomp.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import queue
import select
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from strongroom._seccomp import SYNCS
from strongroom.errors import StrongroomError, UnavailableError
from strongroom.guest.session import ServiceSession
from strongroom.guest.staging import StagedVolume

__all__ = ["Syncs"]

_log = logging.getLogger(__name__)

_RECEIVE, _ANSWER, _IS_VALID = 0xC0502100, 0xC0182101, 0x40082102
_ASKED, _ANSWERED = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_CONTINUE = 1
_PATIENCE_S = 5.0  # with files that a program moves meanwhile
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class _Call:
    number: int
    files: frozenset[int] | None = frozenset()  # None: all
    folders: frozenset[str] = frozenset()  # names of volumes


class Syncs:
    """Answers the fsyncs of a program and of all that it starts.

    Args:
        volumes: Those that are committed while the program runs.
        session: Where heads are kept.
        check: Raises if the job has failed by now: nothing is committed any more.
        on_failure: Told why nothing more can be committed; what lies on the disk is then not sure.
        straight: Where files are written straight into their sealed form: an fsync of one means the links to it.
    """

    def __init__(
        self,
        volumes: Sequence[StagedVolume],
        session: ServiceSession,
        check: Callable[[], None],
        on_failure: Callable[[str], None],
        straight: Iterable[Path] = (),
    ) -> None:
        self._volumes = volumes
        self._session = session
        self._check = check
        self._on_failure = on_failure
        column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
        self._names = {numbers[column]: name for name, numbers in SYNCS.items()}
        self._mounts = {_mount_of(staged.place) for staged in volumes}
        self._devices = {os.stat(staged.place).st_dev for staged in volumes}
        self._straight = {_mount_of(place) for place in straight}
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._listener = -1
        self._failed = False
        self._threads: list[threading.Thread] = []

    def listen(self, listener: int) -> None:
        """Answer what comes from this seccomp listener until `stop`, which closes it."""
        self._listener = listener
        for work in (self._receive, self._serve):
            self._threads.append(threading.Thread(target=work, daemon=True, name=f"syncs{work.__name__}"))
            self._threads[-1].start()

    def stop(self) -> None:
        """Return once the last call is answered; the program has ended."""
        os.eventfd_write(self._end, 1)
        for thread in self._threads:
            thread.join()
        os.close(self._end)
        if self._listener >= 0:
            os.close(self._listener)

    def _receive(self) -> None:
        # All that asks is heard at once: from then on, no signal but a deadly one takes it away.
        ready = select.poll()
        ready.register(self._listener, select.POLLIN)
        ready.register(self._end, select.POLLIN)
        try:
            while {n: e & ~select.POLLIN for n, e in ready.poll()} == {self._listener: 0}:  # not stopped, nor alone
                with contextlib.suppress(FileNotFoundError, InterruptedError):  # killed in between
                    self._hear(bytearray(_ASKED.size))
        except Exception as exc:
            _log.error("fsync not understood error=%s", type(exc).__name__)  # its text could hold data
            self._fail(f"unexpected error in an fsync: {type(exc).__name__}")
        finally:
            self._calls.put(None)

    def _hear(self, asked: bytearray) -> None:
        fcntl.ioctl(self._listener, _RECEIVE, asked)
        number, pid, _, call, _, _, *arguments = _ASKED.unpack(asked)
        try:
            found = self._look(number, pid, self._names[call], arguments)
            fcntl.ioctl(self._listener, _IS_VALID, struct.pack("=Q", number))
        except (PermissionError, UnavailableError):  # of a process, a folder: whatever it means is among all there is
            found = _Call(number, None)
        except (FileNotFoundError, ProcessLookupError):  # no such descriptor, which the kernel says, or it is dead
            found = None
        if found is None or not (found.files is None or found.files or found.folders):
            self._answer(number)
        else:
            self._calls.put(found)

    def _look(self, number: int, pid: int, name: str, arguments: Sequence[int]) -> _Call | None:
        if name == "sync":
            return _Call(number, None)
        if name == "msync":
            with open(f"/proc/{pid}/maps", "rb") as maps:
                return _Call(number, frozenset(self._mapped(maps, arguments[0], arguments[0] + arguments[1])))
        # Without asking the file system, which could be a view that this process serves.
        file = os.open(f"/proc/{pid}/fd/{arguments[0] & 0xFFFFFFFF}", os.O_PATH | os.O_CLOEXEC)
        try:
            mounted = _mount(file)
            if mounted not in self._mounts | self._straight:
                return None
            if name == "syncfs":
                return _Call(number, None)
            at = os.readlink(f"/proc/self/fd/{file}")
            if mounted in self._straight:
                return _Call(number, frozenset(i for staged in self._volumes for i in staged.links_to(at)))
            info = os.fstat(file)
        finally:
            os.close(file)
        inside = [s.volume.name for s in self._volumes if f"{at}/".startswith(f"{s.place}/")]
        return _Call(
            number,
            files=frozenset([info.st_ino] if stat.S_ISREG(info.st_mode) else []),
            folders=frozenset(inside if stat.S_ISDIR(info.st_mode) else []),
        )

    def _mapped(self, maps: Iterable[bytes], start: int, end: int) -> Iterable[int]:
        for line in maps:
            ends, _, _, device, inode = line.split(maxsplit=5)[:5]
            first, last = (int(part, 16) for part in ends.split(b"-"))
            major, minor = (int(part, 16) for part in device.split(b":"))
            if first < end and start < last and os.makedev(major, minor) in self._devices:
                yield int(inode)

    def _serve(self) -> None:
        # What came while the last commit was on its way shares the next one.
        going = True
        while going:
            calls = [self._calls.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    calls.append(self._calls.get_nowait())
            going = None not in calls
            for number, error in self._settle([call for call in calls if call]).items():
                self._answer(number, error)

    def _settle(self, calls: Sequence[_Call]) -> dict[int, int]:
        errors = {call.number: 0 for call in calls}
        for staged in self._volumes if calls else ():
            files = None if any(c.files is None for c in calls) else {i for c in calls for i in c.files or ()}
            folder = any(staged.volume.name in c.folders for c in calls)
            error, left = self._try(staged, files, folder)
            for call in calls:
                errors[call.number] = errors[call.number] or error or (errno.EIO if left & (call.files or set()) else 0)
        return errors

    def _try(self, staged: StagedVolume, files: set[int] | None, folder: bool) -> tuple[int, set[int]]:
        limit = time.monotonic() + _PATIENCE_S
        while not self._failed:
            try:
                if folder:
                    staged.checkpoint(self._session, self._check)
                return 0, staged.sync(files, self._session, self._check)
            except UnavailableError as exc:
                if staged.volume.undecided:
                    self._fail(f"no fsync could be done: {exc}")
                elif isinstance(exc.__cause__, OSError) or time.monotonic() > limit:
                    _log.warning("volume=%s fsync failed reason=%s", staged.volume.name, exc)
                    number = exc.__cause__.errno if isinstance(exc.__cause__, OSError) else None
                    return number if number in _FULL else errno.EIO, set()
            except StrongroomError as exc:
                self._fail(f"no fsync could be done: {exc}")
            except Exception as exc:
                _log.error("fsync failed error=%s", type(exc).__name__)  # its text could hold data
                self._fail(f"unexpected error in an fsync: {type(exc).__name__}")
        return errno.EIO, set()

    def _fail(self, reason: str) -> None:
        self._failed = True
        self._on_failure(reason)

    def _answer(self, number: int, error: int = 0) -> None:
        answer = bytearray(_ANSWERED.pack(number, 0, -error, 0 if error else _CONTINUE))
        with contextlib.suppress(FileNotFoundError):  # it is dead
            fcntl.ioctl(self._listener, _ANSWER, answer)


def _mount_of(place: Path) -> int:
    file = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        return _mount(file)
    finally:
        os.close(file)


def _mount(file: int) -> int:
    with open(f"/proc/self/fdinfo/{file}") as info:
        return next(int(line.split()[1]) for line in info if line.startswith("mnt_id:"))
