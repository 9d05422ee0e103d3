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
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from strongroom import log
from strongroom.attest.attesters import Attester
from strongroom.attest.attesters.gramine import GramineAttester
from strongroom.attest.attesters.occlum import DEVICE, OcclumAttester
from strongroom.errors import DeniedError, InputError, StrongroomError, UnavailableError
from strongroom.guest import apart
from strongroom.guest.agent import KeyAgent
from strongroom.guest.document import LeftEvidence, Report, service_volumes, texts
from strongroom.guest.document import column_keys as keys_of
from strongroom.guest.document import volumes as volumes_of
from strongroom.guest.kbs import outward, receive_kbs
from strongroom.guest.lease import Lease
from strongroom.guest.main import attempt, check_code, read_job, read_object, receive
from strongroom.guest.run import (
    AGENT_SOCKET,
    BUSY_PATIENCE_S,
    WORK,
    column_keys,
    make_places,
    open_volumes,
    tell_committed,
)
from strongroom.guest.session import Grant, ServiceSession
from strongroom.guest.spawned import SpawnedWorkload
from strongroom.guest.staging import StagedVolume
from strongroom.guest.volumes import SealedVolume

__all__ = ["main", "run_libos_job"]

_log = logging.getLogger(__name__)

_ATTESTS = "every process of such an enclave can attest, and get the job's named keys for itself"
_REPLACED = "Occlum measures files by a MAC whose key is public: its host can run others, and get the named keys"
JOB_FOLDER, CODE_FOLDER, LAUNCH = Path("/strongroom/job"), Path("/app"), Path("/launch")


def main() -> NoReturn:
    """Run the job and exit with the program's exit code, or 1 if it did not run; say how in launch/report.json.

    The first evidence is left beside it, as quote.bin.
    """
    log.configure()
    report = Report()
    occlum = DEVICE.exists()  # in the file system of the LibOS, where the host puts nothing
    attester = LeftEvidence(OcclumAttester() if occlum else GramineAttester(), LAUNCH / "quote.bin")
    attempt(report, lambda: _boot(report, attester, occlum))
    attester.explain(report.error)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    said = {"status": report.status, "exit_code": report.exit_code, "error": report.error, "details": report.details}
    if report.error:
        _log.error("the job did not end well status=%s reason=%s", report.status, report.error["message"])
    with contextlib.suppress(OSError):  # the host's folder: it may keep itself from knowing
        (LAUNCH / "report.json").write_text(json.dumps(said))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if report.exit_code is None or report.status != "completed" else report.exit_code)


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
    run_libos_job(document, session, grants, report, one_enclave=occlum)  # 4.


def _check_outputs(grants: Mapping[tuple[str, str], Grant]) -> None:
    for _, name in (at for at, grant in grants.items() if grant.max_bytes is not None or grant.approval):
        raise DeniedError(
            f"key {name!r}: outputs: expected any, as a program under a LibOS can write to the host, got a limit",
            hint="the owner: `strongroom policy outputs KEY --any`, or run the job in a confidential VM (enclave cvm)",
        )


def run_libos_job(
    document: dict[str, object],
    session: ServiceSession,
    grants: dict[tuple[str, str], Grant],
    report: Report,
    *,
    one_enclave: bool,
) -> None:
    """Run the program of `document` to its end and commit what it wrote.

    Args:
        document: The job document.
        session: The attested session.
        grants: What the service released.
        report: Where outcomes go.
        one_enclave: Processes share an enclave, and so its memory file systems.

    Raises:
        StrongroomError: What kept the program or its outputs from finishing; nothing half-written is committed.
    """
    staged = document.get("staged") is True
    run_id = next(iter(grants.values())).run_id if grants else bytes(16)
    volumes = open_volumes(document, grants, run_id, hidden=False)
    session.inputs = {str(v["name"]): volumes[str(v["name"])].released for v in service_volumes(document)}
    report.details["run"] = run_id.hex()

    def renew() -> float:
        session.attest()
        return min(session.key(owner, name).ends_at for (owner, name), g in grants.items() if g.ends_at != math.inf)

    lease = Lease(session.lock, renew, min((g.ends_at for g in grants.values()), default=None))
    pipes = _Pipes(document, volumes) if staged and not one_enclave else None
    before, handed = (pipes.before, pipes.handed) if pipes else ((), ())
    workload = SpawnedWorkload(document, before=before, handed=handed)
    agent = KeyAgent(volumes, run_id, lease.check, keys=column_keys(document, grants), on_failure=workload.stop)

    def end(reason: str) -> None:
        agent.stop(reason)
        workload.stop(reason)

    lease.start(end)
    plain = [StagedVolume(volume, WORK / name, holes=False) for name, volume in volumes.items()] if staged else []
    for volume in plain:
        volume.open_all()
    with contextlib.ExitStack() as held:
        if not staged:  # the program changes the sealed folders while it runs
            make_places(volumes)
            agent.start(AGENT_SOCKET)
            for sealed in volumes.values():
                held.enter_context(sealed.changing(session, BUSY_PATIENCE_S))
        held.callback(tell_committed, report, volumes)
        lease.check()
        if pipes:
            pipes.start()
        exit_code = workload.run()
        agent.stop("the job has ended")
        if agent.failure is not None:
            raise agent.failure
        report.exit_code = exit_code
        if workload.stopped:
            raise InputError(workload.stopped)
        if exit_code == 0 or document.get("publish_on_failure") is True:
            if pipes:
                pipes.take_back()
                for sealed in volumes.values():
                    held.enter_context(sealed.changing(session))
            for volume in plain:
                volume.seal_changes(pipes.left_out(volume.volume.name) if pipes else ())
            for sealed in volumes.values():
                sealed.commit(session)
    report.status = "completed"


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
