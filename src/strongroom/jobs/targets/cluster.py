"""Target `cluster`: the driver here, each worker in an enclave of its own, on this machine or on others over SSH.

Nothing of this is trusted with data. It copies the bundle, starts simulated platforms and tells each guest where the
driver is; guests then call each other directly.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from strongroom._unix import write_whole
from strongroom.errors import InputError, UnavailableError
from strongroom.jobs.plan import Bundle, LaunchPlan, Outcome
from strongroom.jobs.targets.local import LocalTarget, outcome_of, start_platform

__all__ = ["ClusterTarget", "LocalHost", "WorkerHost", "WorkerRun", "edit_json", "worker_bundle"]


_PARTING_S = 20.0
_GRACE_S = 8.0


class WorkerRun(Protocol):
    """A worker that runs on a host."""

    def wait(self) -> Outcome:
        """Return how it ended."""

    def stop(self) -> None:
        """End it."""


class WorkerHost(Protocol):
    """A machine that can run workers."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def driver_host(self) -> str:
        """The address at which it reaches this machine."""

    def start(self, bundle: Bundle, driver: str, number: int) -> WorkerRun:
        """Start worker `number` of the job whose driver is at `driver`."""


class ClusterTarget:
    """Runs a job's driver on this machine and its workers on `hosts`, in turn.

    Args:
        driver: Runs the driver.
        hosts: Where workers run.
        say: Told what happens to workers.
    """

    def __init__(
        self, *, driver: LocalTarget, hosts: Sequence[WorkerHost], say: Callable[[str], None] = lambda _line: None
    ) -> None:
        self._driver = driver
        self._hosts = hosts
        self._say = say

    def run(self, bundle: Bundle, plan: LaunchPlan) -> Outcome:
        """Run to the end of the driver; workers end with it.

        Raises:
            UnavailableError: No worker is left.
        """
        assert plan.command.worker is not None
        # A folder of this run alone: the same job may run twice at a time.
        run = replace(bundle, folder=Path(tempfile.mkdtemp(prefix="run-", dir=bundle.folder)))
        for name in ("bundle.json", "init-data.toml", "launch.json"):
            shutil.copy(bundle.folder / name, run.folder)
        with self._driver.mounts.mounted(bundle.stores) as mounted:
            outcome = self._run(run, plan.command.worker.count, mounted)
        if (outcome.status, outcome.exit_code) == ("completed", 0):
            shutil.rmtree(run.folder)  # with the workers' logs, which hold what programs print
        return outcome

    def _run(self, run: Bundle, workers: int, mounted: Mapping[str, Path]) -> Outcome:
        volumes = json.loads((run.folder / "bundle.json").read_bytes())["volumes"]
        volumes = [[name, str(mounted.get(name, place)), mode] for name, place, mode in volumes]
        addresses = {h.driver_host for h in self._hosts}
        listen = addresses.pop() if len(addresses) == 1 else "0.0.0.0"  # noqa: S104  # several networks lead here
        port = _free_port(listen)
        edit_json(run.folder / "bundle.json", listen=f"{listen}:{port}", volumes=volumes)
        edit_json(run.folder / "launch.json", role="driver")
        crew = _Crew(workers, self._say)
        for number in range(workers):
            host = self._hosts[number % len(self._hosts)]
            crew.start(host, run, f"{host.driver_host}:{port}", number + 1)
        try:
            outcome = self._driver.run_mounted(run, {}, started=crew.watch)
        finally:
            crew.stop()
        if crew.gave_up:
            hint = f"what each worker said is in {run.folder}/worker-N/worker.log"
            raise UnavailableError(f"no worker is left: {crew.reason}", hint=hint)
        return outcome


class _Crew:
    """The workers of one run."""

    def __init__(self, count: int, say: Callable[[str], None]) -> None:
        self._say = say
        self._runs: list[WorkerRun] = []
        self._threads: list[threading.Thread] = []
        self._left = count
        self._lock = threading.Lock()
        self._over = False
        self._driver = 0
        self.reason = ""
        self.gave_up = False

    def start(self, host: WorkerHost, bundle: Bundle, driver: str, number: int) -> None:
        """Start a worker in the background."""
        thread = threading.Thread(target=self._run, args=(host, bundle, driver, number), daemon=True)
        self._threads.append(thread)
        thread.start()

    def watch(self, driver: int) -> None:
        """Remember the driver's process, to end it if no worker is left."""
        self._driver = driver

    def stop(self) -> None:
        """End the workers; wait a moment until nothing is left of them."""
        with self._lock:
            self._over = True
        for run in list(self._runs):
            run.stop()
        limit = time.monotonic() + _PARTING_S
        for thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))

    def _run(self, host: WorkerHost, bundle: Bundle, driver: str, number: int) -> None:
        try:
            run = host.start(bundle, driver, number)
            self._runs.append(run)
            if self._over:
                run.stop()
            outcome = run.wait()
            ended = "" if outcome.exit_code == 0 else f"it ended with {outcome.exit_code}"
            if outcome.error:
                ended = str(outcome.error.get("message"))
        except Exception as exc:  # said; the others go on
            ended = str(exc)
        with self._lock:
            self._left -= 1
            if self._over or not ended:  # a driver that is done sends its workers home
                return
            ended = "".join(c if c.isprintable() else " " for c in ended)  # a machine that nobody trusts said it
            self._say(f"worker {number} on {host.name} is gone: {ended}; {self._left} left")
            if not self._left:
                self.reason = ended
                # A driver that is refused, or whose program failed, has its own reason to tell.
                timer = threading.Timer(_GRACE_S, self._give_up)
                timer.daemon = True
                timer.start()

    def _give_up(self) -> None:
        with self._lock:
            if self._over or not self._driver:
                return
            self.gave_up = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._driver, signal.SIGTERM)


class LocalHost:
    """This machine as a host of workers: `local-cluster`.

    Args:
        seed: The simulated platform's seed file.
        cache: Digest cache.
    """

    name = "this machine"
    driver_host = "127.0.0.1"

    def __init__(self, *, seed: Path, cache: Path) -> None:
        self._seed = seed
        self._cache = cache

    def start(self, bundle: Bundle, driver: str, number: int) -> WorkerRun:
        """Start a platform of its own for the worker; its output goes to a log beside the bundle."""
        folder = worker_bundle(bundle.folder, driver, number, f"{self.driver_host}:0")
        log = os.open(folder / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        pid, outcome = start_platform(folder, self._seed, self._cache, {}, log, log)
        os.close(log)
        return _Forked(pid, outcome)


class _Forked:
    def __init__(self, pid: int, outcome: int) -> None:
        self._pid = pid
        self._outcome = outcome

    def wait(self) -> Outcome:
        with os.fdopen(self._outcome, "rb") as file:
            raw = file.read()
        os.waitpid(self._pid, 0)
        return outcome_of(raw)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)


def worker_bundle(folder: Path, driver: str, number: int, listen: str) -> Path:
    """Write the bundle of one worker below its job's bundle: the same but for the host's words; return its folder."""
    target = folder / f"worker-{number}"
    target.mkdir(exist_ok=True, mode=0o700)
    for name in ("bundle.json", "init-data.toml", "launch.json"):
        shutil.copy(folder / name, target)
    edit_json(target / "bundle.json", listen=listen)
    edit_json(target / "launch.json", role="worker", driver=driver)
    return target


def edit_json(path: Path, **values: object) -> None:
    """Change members of the object in a JSON file."""
    write_whole(path, json.dumps({**json.loads(path.read_bytes()), **values}, indent=1))


def _free_port(host: str) -> int:
    # Somebody could take it before the driver does; the run then fails and says so.
    try:
        with socket.create_server((host, 0)) as probe:
            port: int = probe.getsockname()[1]
    except OSError as exc:
        raise InputError(
            f"this machine has no address {host}, at which a machine of the cluster sees it: {exc.strerror}",
            hint="`strongroom cluster deploy --address ADDRESS` names one that all of them reach",
        ) from exc
    return port
