"""The program's process under a LibOS, started by posix_spawn.

Occlum has no fork. Gramine has, and copies the guest's memory into the new enclave for it: nothing of the guest, not
even its interpreter, should run there. Neither has anything to confine a program with: nothing is left to do between.

Source: posix_spawn(3); Occlum, src/libos/src/process/do_spawn (which keeps descriptors of equal number as they are).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from strongroom.guest.workload import Started, Workload

__all__ = ["SpawnedWorkload"]


@dataclass
class _Child:
    pid: int
    returncode: int | None = None


class SpawnedWorkload(Workload):
    """The program of a job document, in a process that nothing confines.

    Args:
        document: The job document.
        before: Command that starts the program's own in an enclave process that shares no files with the guest's.
        handed: Descriptors for this command; closed here once it has them, so that each pipe ends with its other side.
    """

    def __init__(
        self, document: Mapping[str, object], *, before: tuple[str, ...] = (), handed: tuple[int, ...] = ()
    ) -> None:
        super().__init__(document, staged=True)
        self._argv = [*before, *self._argv]
        self._handed = handed

    def _start(self, confined: Callable[[], None]) -> Started:
        del confined  # a program that is spawned runs nothing of ours before it begins
        os.chdir("/work")
        for descriptor in self._handed:
            os.set_inheritable(descriptor, True)
        nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        ignored = (signal.SIGPIPE, signal.SIGXFSZ)  # by this interpreter, which the program shall not inherit
        found = os.posix_spawn(self._argv[0], self._argv, self._environment, file_actions=[nothing], setsigdef=ignored)
        for descriptor in self._handed:
            os.close(descriptor)
        return _Child(found)
