"""Views: a sealed volume that a program only reads, shown as plain files and opened piece by piece as it reads them.

Nothing is opened before it is read, so a volume may be larger than enclave memory and costs a start nothing. Every file
is the one that the head's manifest names, or the program gets EIO and the job stops with the file's name. A worker of a
job on several machines has no key: it asks the driver's key agent about each file that it opens.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from strongroom.crypto.keys import FileSecret
from strongroom.crypto.stream import Reader
from strongroom.errors import StrongroomError, UnavailableError
from strongroom.guest.fuse import DEVICE, FuseServer, OpenFile, mount
from strongroom.guest.volumes import open_reader
from strongroom.keyagent.client import KeyAgentClient
from strongroom.keyagent.protocol import FOLDER, Operation

__all__ = ["DEVICE", "AgentVolume", "View", "Volume", "available"]

_log = logging.getLogger(__name__)


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
        self._descriptor = mount(place)
        self.failure: StrongroomError | None = None

    def serve(self, volume: Volume, on_failure: Callable[[str], None]) -> None:
        """Show `volume` from now on; tell why if a file is not what it should be, which is in `failure` too."""

        def failed(error: StrongroomError) -> None:
            self.failure = self.failure or error
            volume.failed(str(error))
            on_failure(str(error))

        FuseServer(self._descriptor, _Files(volume), failed).start()


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
