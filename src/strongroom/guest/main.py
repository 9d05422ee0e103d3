"""Process one of the enclave.

1. become unreadable; 2. read the job document; 3. check the job's own code against it; 4. attest and receive keys;
5. open or serve the volumes; 6. confine and run the program; 7. seal and commit its outputs; 8. report and forget.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from strongroom import log
from strongroom._encoding import sha256_id
from strongroom.attest.attesters.simulated import SimulatedAttester
from strongroom.crypto import x509
from strongroom.errors import AppraisalError, DeniedError, InputError, IntegrityError, StrongroomError, UnavailableError
from strongroom.guest import confine
from strongroom.guest.document import Report, column_keys, kbs_volumes, read_job, read_object, service_volumes, texts
from strongroom.guest.session import Grant, ServiceSession

if TYPE_CHECKING:
    from strongroom.guest.door import Door

__all__ = ["attempt", "check_code", "main", "receive"]

_log = logging.getLogger(__name__)

PLATFORM_FD, DOOR_FD = 10, 13
JOB_FOLDER = Path("/strongroom/job")
HOST_CODE = Path("/strongroom/code")
CODE_FOLDER = Path("/app")
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(tee: str = "sgx") -> NoReturn:
    """Run the job and exit with the program's exit code, or 1 if it did not run.

    Args:
        tee: Whose evidence comes over the socket.
    """
    started = time.monotonic()
    confine.harden_guest()
    for number in STOPPING:
        signal.signal(number, _stop_early)
    os.set_inheritable(PLATFORM_FD, False)
    log.configure()
    log.say_kinds_only()
    platform = socket.socket(fileno=PLATFORM_FD)
    report = Report()
    attempt(report, lambda: _run(platform, tee, report, started))
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    _tell(platform, report)
    sys.stderr.flush()
    # Nothing is left to be tidied, and whatever is in memory goes with the process.
    os._exit(report.exit_status)


def attempt(report: Report, run: Callable[[], None]) -> None:
    """Run the job; whatever keeps it from its end is in the report."""
    try:
        run()
    except StrongroomError as exc:
        refused = report.status == "refused" and not isinstance(exc, UnavailableError)
        report.fail(exc, status="refused" if refused else "failed")
    except Exception as exc:  # nothing of an unforeseen error's text may leave: it could hold data
        _log.error("unexpected error=%s", type(exc).__name__)
        report.fail(StrongroomError(f"unexpected error in the guest: {type(exc).__name__}"))


def _stop_early(_number: int, _frame: object) -> NoReturn:
    raise UnavailableError("stopped before the program started")


def _run(platform: socket.socket, tee: str, report: Report, started: float) -> None:
    launch = read_object(JOB_FOLDER / "launch.json")  # the host's word, for addresses only
    init_data, document = read_job(JOB_FOLDER)
    _take_code(document)
    identity = tuple(texts(document, "service"))
    attester = SimulatedAttester(platform, tee)
    session = ServiceSession(
        _kept_open(str(launch.get("service"))), str(launch.get("identity")), identity, attester, init_data
    )
    threading.Thread(target=_import_ahead, daemon=True).start()
    report.status = "refused"
    report.details["token"] = session.attest()
    worker = launch.get("role") == "worker"  # the host's choice: what either role runs is in the document
    grants = {} if worker else receive(session, document)
    certified = session.certificate() if "workers" in document else None
    if certified is not None:
        certificate = x509.certificate_from_pem(certified.certificate_pem)
        report.details["certificate"] = x509.fingerprint(certificate)
    if not worker and kbs_volumes(document):
        from strongroom.guest.kbs import outward, receive_kbs  # noqa: PLC0415  # few jobs have such a key

        dial = outward(launch) if "doors" in launch else _door().connect
        grants |= receive_kbs(document, attester, init_data, dial)
    report.status = "failed"
    report.details["attested_ms"] = round((time.monotonic() - started) * 1000)
    peers = None if certified is None else (certified, _door())
    if worker and peers:
        from strongroom.guest.worker import run_worker  # noqa: PLC0415  # most jobs have none

        run_worker(document, session, *peers, str(launch.get("driver")), report)
        return
    from strongroom.guest.run import SandboxJob  # noqa: PLC0415  # see _import_ahead

    SandboxJob(document, session, grants, report).run(peers)


def _kept_open(address: str) -> str:
    # A program that has no business with the trust service does not get to the socket, whose other end is the host's:
    # its folder is passed by the capability that the guest drops.
    if not address.startswith("unix:"):
        return address
    folder, name = os.path.split(address.removeprefix("unix:"))
    return f"unix:/proc/self/fd/{os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}/{name}"


def _door() -> Door:
    from strongroom.guest.door import Door  # noqa: PLC0415  # most jobs need no way out

    os.set_inheritable(DOOR_FD, False)
    return Door(socket.socket(fileno=os.dup(DOOR_FD)))


def _import_ahead() -> None:
    # A tenth of a second of imports that attesting does not need; the service verifies meanwhile.
    importlib.import_module("strongroom.guest.run")


def check_code(document: Mapping[str, object], folder: Path) -> dict[str, bytes]:
    """Return the job's own files in `folder`, which are exactly those of the document.

    Raises:
        IntegrityError: Others, or altered.
    """
    code = document.get("code")
    if not isinstance(code, dict):
        raise InputError("the job document names no code")
    there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if there != set(code):
        raise IntegrityError(f"the job's files are {sorted(there)}, expected {sorted(code)}")
    files = {name: (folder / name).read_bytes() for name in code}
    for name, digest in code.items():
        if sha256_id(files[name]) != digest:
            raise IntegrityError(
                f"{name} was altered after the job was built: expected {digest}, got {sha256_id(files[name])}",
                hint="build the job again; the owner decides whether to allow it",
            )
    return files


def _take_code(document: Mapping[str, object]) -> None:
    # Copied into enclave memory as it was checked: what runs is that, whatever the host does to its files.
    for name, raw in check_code(document, HOST_CODE).items():
        (CODE_FOLDER / name).write_bytes(raw)
        (CODE_FOLDER / name).chmod(0o555)


def receive(session: ServiceSession, document: Mapping[str, object]) -> dict[tuple[str, str], Grant]:
    """Return what the service releases: all the job's keys, or none.

    Every key is asked for, also after a refusal: each owner whose key was refused then has the job to look at.

    Raises:
        AppraisalError, DeniedError: With the reasons of each that was refused.
    """
    grants: dict[tuple[str, str], Grant] = {}
    refusals: list[tuple[str, str, AppraisalError | DeniedError]] = []
    wanted = {(str(v["owner"]), str(v["key"])) for v in service_volumes(document)}
    wanted |= {(str(k["owner"]), str(k["name"])) for k in column_keys(document)}
    for owner, key in sorted(wanted):
        try:
            grants[owner, key] = session.key(owner, key)
        except (AppraisalError, DeniedError) as exc:
            refusals.append((owner, key, exc))
    if refusals:
        raise _refusal(refusals)
    return grants


def _refusal(refusals: list[tuple[str, str, AppraisalError | DeniedError]]) -> AppraisalError | DeniedError:
    if len(refusals) == 1:
        return refusals[0][2]
    reasons: list[str] = []
    refused: list[dict[str, object]] = []
    for owner, key, error in refusals:
        own = error.reasons if isinstance(error, AppraisalError) else [str(error)]
        reasons += [f"key {key!r} of owner {owner:.16}: {reason}" for reason in own]
        refused.append({"owner": owner, "key": key, "reasons": own, "request": error.details.get("request")})
    hint = "; ".join(dict.fromkeys(error.hint for _, _, error in refusals if error.hint))
    return AppraisalError(reasons, hint=hint, details={"refused": refused})


def _tell(platform: socket.socket, report: Report) -> None:
    sys.stdout.flush()
    body = b"report" + json.dumps(report.to_json()).encode("utf-8", "replace")
    platform.sendall(struct.pack(">I", len(body)) + body)
    platform.recv(16)
