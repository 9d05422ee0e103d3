"""The first process of an SGX enclave under Gramine or Occlum (docs/decisions/0018-guests-under-a-libos.md).

1. read the job document, which the LibOS measures; 2. check the job's code; 3. attest and receive keys; 4. a Python
program: open the volumes, start it, seal and commit; under Gramine its process has files of its own, which it is handed
and gives back (`apart.py`); a JVM: serve the key agent, let it read and write sealed files itself, commit.

What confines a program elsewhere is not here: no namespaces, no seccomp, no Landlock. The program can attest for the
job's keys as well, and write to what the host sees: the job document says both (`unsafe_program_has_keys`, `network`),
and no key is used whose policy limits outputs. What Occlum measures, its host can replace (`unsafe_host_has_keys`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from strongroom import log
from strongroom.attest.attesters import Attester
from strongroom.attest.attesters.gramine import GramineAttester
from strongroom.attest.attesters.occlum import DEVICE, OcclumAttester
from strongroom.errors import DeniedError, InputError, StrongroomError, UnavailableError
from strongroom.guest import apart
from strongroom.guest.document import LeftEvidence, Report, read_job, read_object, texts
from strongroom.guest.document import column_keys as keys_of
from strongroom.guest.document import volumes as volumes_of
from strongroom.guest.job import WORK, Grants, Job
from strongroom.guest.kbs import outward, receive_kbs
from strongroom.guest.main import attempt, check_code, receive
from strongroom.guest.session import ServiceSession
from strongroom.guest.spawned import SpawnedWorkload
from strongroom.guest.staging import StagedVolume
from strongroom.guest.volumes import SealedVolume
from strongroom.guest.workload import Workload

__all__ = ["GramineJob", "LibosJob", "main"]

_log = logging.getLogger(__name__)

_ATTESTS = "every process of such an enclave can attest, and get the job's named keys for itself"
_REPLACED = "Occlum measures files by a MAC whose key is public: its host can run others, and get the named keys"
JOB_FOLDER, CODE_FOLDER, LAUNCH = Path("/strongroom/job"), Path("/app"), Path("/launch")


def main() -> NoReturn:
    """Run the job and exit with the program's exit code, or 1 if it did not run; say how in launch/report.json.

    The first evidence is left beside it, as quote.bin.
    """
    log.configure()
    log.say_kinds_only()
    report = Report()
    occlum = DEVICE.exists()  # in the file system of the LibOS, where the host puts nothing
    attester = LeftEvidence(OcclumAttester() if occlum else GramineAttester(), LAUNCH / "quote.bin")
    attempt(report, lambda: _boot(report, attester, occlum))
    attester.explain(report.error)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if report.error:
        _log.error("the job did not end well status=%s reason=%s", report.status, report.error["message"])
    with contextlib.suppress(OSError):  # the host's folder: it may keep itself from knowing
        (LAUNCH / "report.json").write_text(json.dumps(report.to_json()))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(report.exit_status)


def _boot(report: Report, attester: Attester, occlum: bool) -> None:
    started = time.monotonic()
    launch = read_object(LAUNCH / "launch.json")  # the host's word, for addresses only
    init_data, document = read_job(JOB_FOLDER)  # 1.
    check_code(document, CODE_FOLDER)  # 2.
    risks = {"unsafe_program_has_keys": _ATTESTS} | ({"unsafe_host_has_keys": _REPLACED} if occlum else {})
    for name, hint in risks.items():
        if (volumes_of(document) or keys_of(document)) and document.get(name) is not True:
            raise DeniedError(f"{name}: expected true, as the job names keys, got none", hint=hint)
    environment = document.get("environment")
    if isinstance(environment, dict):  # where the LibOS' own C library is, the manifest says
        document["environment"] = {**environment, "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    session = ServiceSession(
        str(launch.get("service")),
        str(launch.get("identity")),
        tuple(texts(document, "service")),
        attester,
        init_data,
        says_init_data=True,
    )
    report.status = "refused"
    report.details["token"] = session.attest()  # 3.
    grants = receive(session, document)
    _check_outputs(grants)
    # The manifest names the init data's digest, and a stock KBS would look for it in CONFIGID, which is zero.
    grants |= receive_kbs(document, attester, None, outward(launch))
    report.status = "failed"
    report.details["attested_ms"] = round((time.monotonic() - started) * 1000)
    (LibosJob if occlum else GramineJob)(document, session, grants, report).run()  # 4.


def _check_outputs(grants: Grants) -> None:
    for _, name in (at for at, grant in grants.items() if grant.max_bytes is not None or grant.approval):
        raise DeniedError(
            f"key {name!r}: outputs: expected any, as a program under a LibOS can write to the host, got a limit",
            hint="the owner: `strongroom policy outputs KEY --any`, or run the job in a confidential VM (enclave cvm)",
        )


class LibosJob(Job):
    """A job whose program is a process that nothing confines, in the guest's enclave, as under Occlum."""

    def make_workload(self) -> Workload:
        """Return what spawns the program."""
        return SpawnedWorkload(self.document)

    def stage(self) -> list[StagedVolume]:
        """Return all volumes: there are no views."""
        return [StagedVolume(volume, WORK / name, holes=False) for name, volume in self.volumes.items()]

    def run_program(self, _plain: Sequence[StagedVolume]) -> int:
        """Run the program to its end; return its exit code."""
        return self.workload.run()


class GramineJob(LibosJob):
    """A job whose program has an enclave, and so memory file systems, of its own: it is handed its files."""

    shares_work = False
    _pipes: _Pipes | None = None

    def make_workload(self) -> Workload:
        """Return what spawns the program in a process that takes its files first."""
        if not self.staged:
            return super().make_workload()
        self._pipes = _Pipes(self.document, self.volumes)
        return SpawnedWorkload(self.document, before=self._pipes.before, handed=self._pipes.handed)

    def run_program(self, plain: Sequence[StagedVolume]) -> int:
        """Run the program to its end; return its exit code."""
        if self._pipes:
            self._pipes.start()
        return super().run_program(plain)

    def take_back(self) -> None:
        """Return once what the program's process left is here."""
        if self._pipes:
            self._pipes.take_back()

    def left_out(self, name: str) -> Collection[str]:
        """Return the paths in the volume `name` of what the program's process left that is no file."""
        return self._pipes.left_out(name) if self._pipes else ()


class _Pipes:
    """Files to and from the program's process."""

    def __init__(self, document: Mapping[str, object], volumes: Mapping[str, SealedVolume]) -> None:
        self._names = sorted(volumes)
        self._written = sorted(name for name, volume in volumes.items() if volume.mode == "rw")
        (theirs, self._ours), (self._back, they_send) = os.pipe(), os.pipe()
        self.handed = (theirs, they_send)
        always = json.dumps(document.get("publish_on_failure") is True)
        names, written = json.dumps(self._names), json.dumps(self._written)
        interpreter = texts(document, "command")[0]
        here = (str(theirs), str(they_send))
        self.before = (interpreter, str(Path(apart.__file__)), *here, names, written, always)
        self._left: list[str] = []
        self._received: StrongroomError | None = UnavailableError("the program's outputs did not come back")
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._receive)]

    def start(self) -> None:
        """Hand over the volumes once the program's process reads; its outputs are taken as they come."""
        for thread in self._threads:
            thread.start()

    def take_back(self) -> None:
        """Return once the outputs are here, whole.

        Raises:
            InputError: The program did not send all of it.
        """
        for thread in self._threads:
            thread.join()
        if self._received is not None:
            raise self._received

    def left_out(self, name: str) -> list[str]:
        """Return the paths in a volume of what the program left there that is no file."""
        return [path.removeprefix(f"{name}/") for path in self._left if path.startswith(f"{name}/")]

    def _send(self) -> None:
        with contextlib.suppress(OSError), open(self._ours, "wb") as stream:
            apart.send_files(WORK, self._names, stream)

    def _receive(self) -> None:
        try:
            with open(self._back, "rb") as stream:
                if stream.peek(1):  # only then is what the program was given replaced by what it left
                    self._left = apart.receive_files(WORK, self._written, stream)
                    self._received = None
        except (ValueError, OSError, RecursionError) as exc:
            self._received = InputError(f"the program's outputs: {getattr(exc, 'strerror', None) or exc}")
