"""Target `local`: this machine, one enclave, in the foreground."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from strongroom.attest.simulated import platform
from strongroom.errors import StrongroomError
from strongroom.jobs.plan import Bundle, LaunchPlan, Outcome
from strongroom.jobs.targets.mounts import Mounts

__all__ = ["LocalTarget", "outcome_of", "start_platform"]


class LocalTarget:
    """Runs a simulated bundle through the platform's process; the workload's output goes to ours.

    Args:
        seed: The simulated platform's seed file.
        cache: Digest cache.
        mounts: Mounts volumes that lie in stores.
        output_to_stderr: Send the workload's standard output to standard error.
    """

    def __init__(self, *, seed: Path, cache: Path, mounts: Mounts, output_to_stderr: bool = False) -> None:
        self._seed = seed
        self._cache = cache
        self.mounts = mounts
        self._stdout = 2 if output_to_stderr else None

    def run(self, bundle: Bundle, plan: LaunchPlan) -> Outcome:
        """Run to the end; SIGINT and SIGTERM go to the workload."""
        with self.mounts.mounted(bundle.stores) as mounted:
            return self.run_mounted(bundle, mounted)

    def run_mounted(
        self, bundle: Bundle, mounted: Mapping[str, Path], *, started: Callable[[int], object] = lambda _pid: None
    ) -> Outcome:
        """Run with the stores mounted; `started` is told the platform's process."""
        pid, read = start_platform(bundle.folder, self._seed, self._cache, mounted, self._stdout)
        started(pid)
        previous = {n: signal.signal(n, lambda n, _f: os.kill(pid, n)) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            with os.fdopen(read, "rb") as outcome:
                raw = outcome.read()
            os.waitpid(pid, 0)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return outcome_of(raw)


def start_platform(
    folder: Path, seed: Path, cache: Path, mounted: Mapping[str, Path], stdout: int | None, stderr: int | None = None
) -> tuple[int, int]:
    """Start the simulated platform for the bundle in `folder`; return its process and where its outcome can be read.

    Args:
        folder: Of the bundle.
        seed: The platform's seed file.
        cache: Digest cache.
        mounted: Volume -> folder, for volumes that lie in stores.
        stdout: What the workload's standard output is; None for ours.
        stderr: And its standard error.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # A process of its own, forked: starting Python once more would cost a third of the launch.
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        for fd, ours in ((stdout, 1), (stderr, 2)):
            if fd is not None:
                os.dup2(fd, ours)
        platform.run_and_exit(folder, seed, cache, write, mounted)
    os.close(write)
    return pid, read


def outcome_of(raw: bytes) -> Outcome:
    """Return what a platform wrote at its end.

    Raises:
        StrongroomError: It wrote nothing.
    """
    if not raw:
        raise StrongroomError("the simulated platform ended and said nothing")
    found = json.loads(raw)
    report, measured = found.get("report"), {"measurement": found.get("measurement", "")}
    if not isinstance(report, dict) or not report:
        error = {"code": "unexpected", "message": f"the enclave ended with {found.get('exit_code')} before it reported"}
        return Outcome(status="failed", exit_code=None, error=error, details=measured)
    reported, details = report.get("error"), report.get("details")
    return Outcome(
        status=str(report.get("status", "failed")),
        exit_code=report["exit_code"] if isinstance(report.get("exit_code"), int) else None,
        error=reported if isinstance(reported, dict) else {},
        details={**measured, **(details if isinstance(details, dict) else {})},
    )
