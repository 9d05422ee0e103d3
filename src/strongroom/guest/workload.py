"""Running the workload: confined, signalled, waited for; process one also buries orphans."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from strongroom.errors import InputError
from strongroom.guest import confine
from strongroom.guest.document import table, texts
from strongroom.guest.memory import MemoryWatch
from strongroom.guest.printing import Printing

__all__ = ["Started", "Workload"]

_log = logging.getLogger(__name__)

GRACE_S = 10.0
_SEALED = "/sealed"


class Started(Protocol):
    """A process that was started: its number, and None until it has ended."""

    pid: int
    returncode: int | None


class Workload:
    """The program of a job document.

    Args:
        document: The job document: `command`, `arguments`, `environment`, `limits`.
        staged: The program sees plain copies, so the sealed folders are out of its reach.
        max_printed: How many bytes it may print; None for any number.
    """

    def __init__(self, document: Mapping[str, object], *, staged: bool, max_printed: int | None = None) -> None:
        self._printing = None if max_printed is None else Printing(max_printed, self.stop)
        self._argv = [*texts(document, "command"), *texts(document, "arguments")]
        environment = document.get("environment")
        if not isinstance(environment, dict):
            raise InputError("the job document has no environment")
        self._environment = {str(k): str(v) for k, v in environment.items()}
        limit = table(document, "limits").get("max_runtime_s")
        self._max_runtime_s = limit if isinstance(limit, int) else 86_400
        self._writable = confine.WRITABLE if staged else (*confine.WRITABLE, _SEALED)
        self._process: Started | None = None
        self._asked = 0
        self.stopped = ""

    def run(self, listen: Callable[[int], None] | None = None) -> int:
        """Start the program and wait for its end; return its exit code (128 + n for signal n).

        Args:
            listen: Takes the seccomp listener that is told of the program's fsyncs, and closes it.

        Raises:
            InputError: It cannot be started, or was stopped before.
        """
        # From before it starts: a program may print, and be stopped for it, before its start has returned here.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._forward)
        if self.stopped:
            raise InputError(self.stopped)
        pair = () if listen is None else socket.socketpair()

        def confined() -> None:
            confine.restrict_workload(confine.READABLE, self._writable)
            if pair:
                confine.hand_over_syncs(pair[1])

        try:
            self._process = self._start(confined)
            if listen is not None and pair:
                (listener,) = socket.recv_fds(pair[0], 1, 1)[1]
                os.set_inheritable(listener, False)
                listen(listener)
        except (OSError, subprocess.SubprocessError) as exc:
            raise InputError(f"{self._argv[0]} could not be started: {exc}") from exc
        finally:
            for end in pair:
                end.close()
        if self._printing is not None:
            self._printing.start()
        timer = threading.Timer(
            min(self._max_runtime_s, threading.TIMEOUT_MAX),
            self.stop,
            [f"the job ran longer than {self._max_runtime_s} s"],
        )
        timer.daemon = True
        timer.start()
        if self._asked:  # nobody was there to be stopped
            self._forward(self._asked, None)
        memory = MemoryWatch()
        memory.start()
        code = self._wait(self._process.pid)
        memory.end(code)
        timer.cancel()
        if self._printing is not None:
            self._printing.end()
        return code

    def _start(self, confined: Callable[[], None]) -> Started:
        # Between fork and exec nothing but system calls runs; no other thread holds a lock it needs.
        return subprocess.Popen(
            self._argv,
            env=self._environment,
            cwd="/work",
            stdin=subprocess.DEVNULL,
            stdout=None if self._printing is None else self._printing.output,
            stderr=None if self._printing is None else self._printing.error,
            preexec_fn=confined,  # noqa: PLW1509
        )

    def stop(self, reason: str) -> None:
        """End the program: SIGTERM, and after a grace SIGKILL."""
        self.stopped = self.stopped or reason
        _log.warning("stopping the workload reason=%s", reason)
        self._forward(signal.SIGTERM, None)
        for after_s, act in ((GRACE_S, self._kill), (2 * GRACE_S, self._give_up)):
            timer = threading.Timer(after_s, act)
            timer.daemon = True
            timer.start()

    def _kill(self) -> None:
        self._forward(signal.SIGKILL, None)

    def _give_up(self) -> None:
        # A program that waits for what the host never answers is not even killed: the enclave ends with it.
        if self._process is not None and self._process.returncode is None:
            _log.error("the workload does not end, reason=%s: the enclave ends", self.stopped)
            os._exit(1)

    def _forward(self, number: int, _frame: object) -> None:
        if self._process is None:
            self._asked = number  # for `run`, once it has started
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def _wait(self, main: int) -> int:
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == main:
                assert self._process is not None
                code = os.waitstatus_to_exitcode(status)
                self._process.returncode = code
                _end_stragglers()
                return code if code >= 0 else 128 - code


def _end_stragglers() -> None:
    # What the program left behind must not change its outputs while they are sealed. -1 is everything else in this
    # process namespace, which only process one may clear.
    if os.getpid() != 1:
        return
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        while True:
            os.kill(-1, signal.SIGKILL)
            # Not waited for: another may be started at this moment, by a view that reads ahead.
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.001)
