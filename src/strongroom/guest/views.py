"""Views: a sealed volume that a program only reads, shown as plain files and opened piece by piece as it reads them.

Nothing is opened before it is read, so a volume may be larger than enclave memory and costs a start nothing. Every file
is the one that the head's manifest names, or the program gets EIO and the job stops with the file's name. A worker of a
job on several machines has no key: it asks the driver's key agent about each file that it opens.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from strongroom.crypto.keys import FileSecret
from strongroom.crypto.stream import Reader
from strongroom.errors import StrongroomError, UnavailableError
from strongroom.guest import confine
from strongroom.guest.fuse import DEVICE, NEAR, FuseServer, OpenFile, mount
from strongroom.guest.opening import open_reader
from strongroom.keyagent.client import KeyAgentClient
from strongroom.keyagent.protocol import FOLDER, Operation

__all__ = ["DEVICE", "AgentVolume", "View", "Volume", "available"]

_log = logging.getLogger(__name__)

_PIECE = 1 << 17  # what the kernel reads ahead at once


_READER = f"""
import os, sys
place, name, file = os.fsencode(sys.argv[1]), "", -1
for line in sys.stdin:
    offset, wanted = line.split()
    try:
        if wanted != name:
            if file >= 0:
                os.close(file)
            name, file = "", -1
            file = os.open(os.path.join(place, bytes.fromhex(wanted)), os.O_RDONLY)
            name = wanted
        for at in range(int(offset), int(offset) + {NEAR}, {_PIECE}):
            os.posix_fadvise(file, at, {_PIECE}, os.POSIX_FADV_WILLNEED)
    except OSError:
        pass
"""


class Volume(Protocol):
    """What a view shows."""

    name: str

    def stat(self, path: str) -> int | None:
        """Return a file's size, FOLDER, or None if nothing is there."""

    def list(self, folder: str) -> dict[str, int]:
        """Return name -> size, as `stat` says it."""

    def reader(self, path: str) -> Reader:
        """Open a file; refuse one that is not what it should be."""

    def failed(self, reason: str) -> None:
        """Make sure that the job fails; returns once that is so, and before the program hears of it."""


def available() -> bool:
    """Return whether the sandbox has what views need."""
    return os.access(DEVICE, os.R_OK | os.W_OK)


class View:
    """A read-only volume at a place of its own.

    Args:
        name: The volume's name.
        place: Where programs see it (/work/<name>).
    """

    def __init__(self, name: str, place: Path) -> None:
        self.name = name
        place.mkdir()
        self._place = place
        self._descriptor = mount(place)
        self.failure: StrongroomError | None = None

    def serve(self, volume: Volume, on_failure: Callable[[str], None]) -> None:
        """Show `volume` from now on; tell why if a file is not what it should be, which is in `failure` too."""

        def failed(error: StrongroomError) -> None:
            self.failure = self.failure or error
            volume.failed(str(error))
            on_failure(str(error))

        FuseServer(self._descriptor, _Files(volume), failed, _Ahead(self._place)).start()


class _Ahead:
    """Has the kernel read what lies around small reads, by a process that reads as programs do.

    The process that answers the kernel must not wait for it: killed at that moment it would hold on to the device, and
    the kernel would wait for its answer for ever.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._wanted: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._started = self._ended = False

    def __call__(self, path: str, offset: int) -> None:
        if self._ended:
            return
        self._wanted.put(b"%d %s\n" % (offset, os.fsencode(path).hex().encode()))
        if not self._started:
            self._started = True
            threading.Thread(target=self._pass_on, daemon=True, name="ahead").start()

    def _pass_on(self) -> None:
        try:
            reader = subprocess.Popen(
                [sys.executable, "-ISB", "-c", _READER, self._place],
                stdin=subprocess.PIPE,
                bufsize=0,
                preexec_fn=lambda: confine.restrict_workload((*confine.READABLE, str(self._place.parent)), ()),  # noqa: PLW1509
            )
            assert reader.stdin is not None
            while True:
                reader.stdin.write(self._wanted.get())
        except (OSError, subprocess.SubprocessError) as exc:  # programs read on, if slower
            self._ended = True
            _log.warning("nothing is read ahead reason=%s", exc)


class AgentVolume:
    """A volume of a worker, whose names and secrets the driver's key agent knows.

    Args:
        name: The volume's name.
        folder: Where the sealed files are, on this machine.
        connect: Returns a new connection to the agent.
    """

    def __init__(self, name: str, folder: Path, connect: Callable[[], socket.socket]) -> None:
        self.name = name
        self._folder = folder
        self._connect = connect
        self._client: KeyAgentClient | None = None
        self._turn = threading.Lock()

    def stat(self, path: str) -> int | None:
        """Return a file's size, FOLDER, or None if nothing is there."""
        found = self._call(Operation.STAT, path)
        return int.from_bytes(found[0]) if found else None

    def list(self, folder: str) -> dict[str, int]:
        """Return name -> size, as `stat` says it."""
        found = self._call(Operation.LIST, folder)
        return {n.decode(): int.from_bytes(size) for n, size in zip(found[0::2], found[1::2], strict=True)}

    def reader(self, path: str) -> Reader:
        """Open a file; refuse one that is not what it should be."""

        def ask(prefix: bytes) -> tuple[FileSecret, int]:
            secret, size = self._call(Operation.OPEN, path, prefix)
            return FileSecret.decode(secret), int.from_bytes(size)

        return open_reader(self._folder, self.name, path, ask)

    def failed(self, reason: str) -> None:
        """Tell the driver; without it there is nothing to go on for."""
        try:
            self._call(Operation.FAIL, reason)
        except StrongroomError as exc:
            _log.error("the driver cannot be told reason=%s failure=%s", exc, reason)
            os._exit(1)

    def _call(self, operation: Operation, path: str, *fields: bytes) -> tuple[bytes, ...]:
        with self._turn:
            if self._client is not None:
                try:
                    return self._client.call(operation, self.name, path, *fields)
                except UnavailableError as exc:  # none of these operations minds being done twice
                    _log.warning("asking the driver again reason=%s", exc)
                    self._client.close()
            self._client = KeyAgentClient(self._connect())
            return self._client.call(operation, self.name, path, *fields)


class _Files:
    """A volume as the FUSE server asks for it."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    def size(self, path: str) -> int | None:
        try:
            path.encode()
        except UnicodeEncodeError:  # no data set has such names
            return None
        found = self._volume.stat(path)
        return -1 if found == FOLDER else found

    def names(self, folder: str) -> dict[str, int]:
        return {name: -1 if size == FOLDER else size for name, size in self._volume.list(folder).items()}

    def open(self, path: str) -> OpenFile:
        return self._volume.reader(path)
