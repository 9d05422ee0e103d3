"""The worker's role in a job on several machines: no key ever comes here, only the secrets of the files it opens."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from strongroom.errors import InputError, UnavailableError
from strongroom.guest import confine, tunnel
from strongroom.guest.document import Report, volumes
from strongroom.guest.door import Door
from strongroom.guest.job import AGENT_SOCKET, check_hidden, make_places, sealed_folder
from strongroom.guest.lease import Lease
from strongroom.guest.peers import DRIVER, Peers
from strongroom.guest.relay import start_relay
from strongroom.guest.run import mount_views
from strongroom.guest.session import Certified, ServiceSession
from strongroom.guest.views import AgentVolume, View
from strongroom.guest.workload import Workload

__all__ = ["run_worker", "worker_document"]

_AGAIN_S = 0.2


class _Role:
    """The program that runs, and why it has to end."""

    def __init__(self) -> None:
        self.workload: Workload | None = None
        self.reason = ""

    def end(self, reason: str) -> None:
        """End the program, now and for good."""
        self.reason = self.reason or reason
        if self.workload is not None:
            self.workload.stop(reason)

    def begin(self, workload: Workload) -> bool:
        """Let this be the program; return whether it may run."""
        self.workload = workload  # before the reason is looked at: `end` sees the one or leaves the other
        return not self.reason


def run_worker(
    document: Mapping[str, object],
    session: ServiceSession,
    identity: Certified,
    door: Door,
    driver: str,
    report: Report,
) -> None:
    """Join the job of the driver at `driver`; run the worker's program as often as the driver's program wants it.

    Raises:
        StrongroomError: The driver does not admit this guest, or the service takes its certificate back.
    """
    role = _Role()
    left = threading.Event()

    def on_lost(number: int) -> None:
        if number == DRIVER:
            left.set()
            role.end("the job's driver is gone")

    def renew() -> float:
        # A worker holds no key, but whoever may not have a certificate any more may not go on either.
        session.attest()
        renewed = session.certificate()
        peers.renew(renewed)
        return renewed.ends_at

    peers = Peers(identity, door, on_lost=on_lost)
    peers.join(driver)
    interface = tunnel.open_interface(peers.address)
    staged = document.get("staged") is True
    shown = _mount(document) if staged else {}
    confine.lock_down()
    report.details["address"] = peers.address
    make_places(name for name in (str(v["name"]) for v in volumes(document)) if name not in shown)
    Lease(session.lock, renew, identity.ends_at).start(role.end)
    peers.start(interface)
    for name, (view, folder) in shown.items():
        view.serve(AgentVolume(name, folder, peers.agent), role.end)
    if not staged:
        start_relay(AGENT_SOCKET, peers.agent)
    wanted, port = worker_document(document, peers.number)
    report.exit_code = 0
    _end_on_signals(role)
    while report.exit_code == 0 and _opened(tunnel.address(DRIVER), port, role):
        if not role.begin(workload := Workload(wanted, staged=staged)):
            break
        report.exit_code = workload.run()
        _end_on_signals(role)
        if staged:  # a training script runs once; the driver's may still evaluate and save
            break
    while report.exit_code == 0 and not role.reason:
        left.wait(_AGAIN_S)
    if role.reason and not left.is_set():
        raise UnavailableError(role.reason)
    report.exit_code = 0 if left.is_set() else report.exit_code
    report.status = "completed"


def _mount(document: Mapping[str, object]) -> dict[str, tuple[View, Path]]:
    # What the program writes to other volumes is its own: the driver's alone is sealed.
    check_hidden()
    read = [str(v["name"]) for v in volumes(document) if v["mode"] == "ro"]
    folders = {name: sealed_folder(name, hidden=True) for name in read}
    shown = mount_views(read)
    if len(shown) < len(read):
        raise UnavailableError("this machine has no /dev/fuse, without which a worker sees no volume")
    return {view.name: (view, folders[view.name]) for view in shown}


def _end_on_signals(role: _Role) -> None:
    # While a program runs they go to it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: role.end("stopped"))


def worker_document(document: Mapping[str, object], number: int) -> tuple[dict[str, object], int]:
    """Return what the job document says of a worker as a document of its own, and the port to wait for.

    In its command and environment `{job.number}` stands for its number and `{job.address}` for its address, which only
    the run knows.

    Raises:
        InputError: The job has no workers.
    """
    found = document.get("workers")
    if not isinstance(found, dict):
        raise InputError("the job document names no workers")

    def filled(value: object) -> str:
        return str(value).replace("{job.address}", tunnel.address(number)).replace("{job.number}", str(number))

    return {
        "command": [filled(word) for word in found["command"]],
        "arguments": [],
        "environment": {name: filled(value) for name, value in found["environment"].items()},
        "limits": document.get("limits"),
    }, int(found["port"])


def _opened(host: str, port: int, role: _Role) -> bool:
    # A program may take hours before it starts its engine, and may start it again after it ended.
    while not role.reason:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return True
        except OSError:
            time.sleep(_AGAIN_S)
    return False
