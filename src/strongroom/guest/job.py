"""An attested job from its keys to its end, wherever its program runs: open volumes, run, seal and commit.

What a sandbox has beside (views, checkpoints, peers) is in `run.py`; what a LibOS has instead in `libos.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from strongroom.errors import InputError, IntegrityError, StrongroomError
from strongroom.guest.agent import KeyAgent
from strongroom.guest.column_keys import ColumnKey, ColumnKeys
from strongroom.guest.document import Report, service_volumes
from strongroom.guest.document import column_keys as keys_of
from strongroom.guest.document import volumes as volumes_of
from strongroom.guest.lease import Lease
from strongroom.guest.session import Grant, ServiceSession
from strongroom.guest.staging import StagedVolume
from strongroom.guest.volumes import PATIENCE_S, SealedVolume
from strongroom.guest.workload import Workload
from strongroom.storage.leftovers import was_interrupted
from strongroom.storage.places import LocalPlace

__all__ = [
    "AGENT_SOCKET",
    "WORK",
    "Grants",
    "Job",
    "check_hidden",
    "column_keys",
    "make_places",
    "output_limit",
    "sealed_folder",
]

SEALED_FOLDER, WORK = Path("/sealed"), Path("/work")
BUSY_PATIENCE_S = 10.0  # a job that writes while it runs may take hours: whoever comes second is told
AGENT_SOCKET = "/run/strongroom/agent.sock"
MAX_LOOKED_AT = 1000  # files and folders beside the volumes

Grants = Mapping[tuple[str, str], Grant]
"""By owner and key name."""


class Failing(Protocol):
    """What may find, while the program runs, that a file is not what it should be."""

    @property
    def failure(self) -> StrongroomError | None:
        """What it found first."""


class Job:
    """The job of `document`, once its keys are here.

    Args:
        document: The job document.
        session: The attested session.
        grants: What the service released.
        report: Where outcomes go.
    """

    hides = False
    """Whether the program cannot reach the sealed folders of staged volumes, which the guest keeps open."""
    shares_work = True
    """Whether the guest's /work is the program's too."""

    def __init__(self, document: dict[str, object], session: ServiceSession, grants: Grants, report: Report) -> None:
        self.document = document
        self.session = session
        self.grants = grants
        self.report = report
        self.staged = document.get("staged") is True
        hidden = self.hides and self.staged
        if hidden:
            check_hidden()
        run_id = next(iter(grants.values())).run_id if grants else bytes(16)
        self.volumes = {str(v["name"]): _volume(v, grants, run_id, hidden=hidden) for v in volumes_of(document)}
        # Of volumes under a KBS' key the service knows nothing; which state they are in is in the job digest.
        session.inputs = {str(v["name"]): self.volumes[str(v["name"])].released for v in service_volumes(document)}
        report.details["run"] = run_id.hex()
        self.lease = Lease(session.lock, self.renew, min((g.ends_at for g in grants.values()), default=None))
        self.workload = self.make_workload()
        self.agent = KeyAgent(
            self.volumes,
            run_id,
            self.lease.check,
            keys=column_keys(document, grants),
            on_batch=self._commit_batch,
            on_failure=self.workload.stop,
        )
        self.watched: list[Failing] = [self.agent]

    # --- what a place may do otherwise

    def make_workload(self) -> Workload:
        """Return what runs the program."""
        raise NotImplementedError

    def stage(self) -> list[StagedVolume]:
        """Return the volumes that the program sees as plain copies."""
        raise NotImplementedError

    def run_program(self, plain: Sequence[StagedVolume]) -> int:
        """Run the program to its end; return its exit code."""
        raise NotImplementedError

    def end_network(self) -> None:
        """Return once no peer writes any more."""

    def take_back(self) -> None:
        """Return once the plain copies are as the program left them, which ended well."""

    def left_out(self, name: str) -> Collection[str]:
        """Return the paths in the volume `name` of what is no file, where its plain copy does not show it."""
        del name
        return ()

    def renew(self) -> float:
        """Attest again; return the end of the shortest new lease."""
        self.session.attest()
        return min(self.session.key(*at).ends_at for at, grant in self.grants.items() if grant.ends_at != math.inf)

    # --- what all of them do

    def run(self) -> None:
        """Run the program to its end and commit what it wrote.

        Raises:
            StrongroomError: What kept the program or its outputs from finishing; nothing half-written is committed.
        """
        self.lease.start(self._end)  # before the staging, which may take longer than a lease
        if self.staged:
            self._undo_interrupted()
        plain = self.stage() if self.staged else []
        for volume in plain:
            volume.open_all()
        with contextlib.ExitStack() as held:
            if not self.staged:  # the program changes the sealed folders while it runs
                make_places(self.volumes)
                self.agent.start(AGENT_SOCKET)
                self._hold(held, BUSY_PATIENCE_S)
            held.callback(self._tell_committed)  # a job that fails may have committed checkpoints
            self.lease.check()
            exit_code = self.run_program(plain)
            self.agent.stop("the job has ended")
            self.end_network()
            self._check_watched()
            self.report.exit_code = exit_code
            if self.workload.stopped:
                raise InputError(self.workload.stopped)
            if exit_code == 0 or self.document.get("publish_on_failure") is True:
                self._publish(plain, held)
        self.report.status = "completed"
        if self.shares_work:
            with contextlib.suppress(Exception):  # the program made these folders, and the job is committed
                self.report.details["gone"] = _wrote_beside(self.volumes if self.staged else ())

    def check(self) -> None:
        """Raise if the job has failed by now: nothing is committed any more."""
        self.lease.check()
        self._check_watched()
        if self.workload.stopped:
            raise InputError(self.workload.stopped)

    def _end(self, reason: str) -> None:
        self.agent.stop(reason)
        self.workload.stop(reason)

    def _check_watched(self) -> None:
        # Whatever the program made of its EIO, here or on a worker: a file that is not whole makes nothing that counts.
        for failure in (one.failure for one in self.watched):
            if failure is not None:
                raise failure

    def _publish(self, plain: Sequence[StagedVolume], held: contextlib.ExitStack) -> None:
        if self.staged:
            self.take_back()
            self._hold(held)
        for volume in plain:
            volume.seal_changes(self.left_out(volume.volume.name))
        for sealed in self.volumes.values():
            sealed.commit(self.session)

    def _hold(self, held: contextlib.ExitStack, patience_s: float = PATIENCE_S) -> None:
        for sealed in self.volumes.values():
            held.enter_context(sealed.changing(self.session, patience_s))

    def _undo_interrupted(self) -> None:
        # A run that died around a commit left files that the head does not name.
        for sealed in self.volumes.values():
            if sealed.mode == "rw" and was_interrupted(LocalPlace(sealed.folder)):
                with sealed.changing(self.session):
                    pass

    def _commit_batch(self, checkpoint: SealedVolume) -> None:
        # The checkpoint comes last: a batch that it does not name yet is repeated, one that it names is never lost.
        for sealed in sorted(self.volumes.values(), key=lambda v: v is checkpoint):
            sealed.commit(self.session, running=True)

    def _tell_committed(self) -> None:
        heads, details = {v.name: v.committed for v in self.volumes.values()}, self.report.details
        details["committed"] = {n: {"dataset": h.dataset, "epoch": h.epoch} for n, h in heads.items() if h}
        details["held"] = [v.name for v in self.volumes.values() if v.held]
        details["left_out"] = {v.name: v.left_out for v in self.volumes.values() if v.left_out}


def _wrote_beside(volumes: Container[str]) -> bool:
    # Names stay in the enclave. Hidden ones are caches; Spark's own database of tables is no output. The program chose
    # how many there are, and how deep.
    with os.scandir(WORK) as found:
        beside = [e for e in itertools.islice(found, MAX_LOOKED_AT) if e.name not in volumes and _may_be_output(e.name)]
    for entry in beside:  # which grows
        if not entry.is_dir(follow_symlinks=False):
            return True
        with os.scandir(entry) as found:
            beside += itertools.islice(found, MAX_LOOKED_AT - len(beside))
    return False


def _may_be_output(name: str) -> bool:
    return not name.startswith((".", "derby.", "metastore_db"))


def make_places(volumes: Iterable[str]) -> None:
    """Make the folder of the agent's socket, and one for each volume, which programs name their files by."""
    os.mkdir(os.path.dirname(AGENT_SOCKET), 0o700)
    for name in volumes:
        (WORK / name).mkdir()


def column_keys(document: Mapping[str, object], grants: Grants) -> ColumnKeys:
    """Return the job's column keys; each has one owner and one mode."""
    keys = {}
    for key in keys_of(document):
        owner, name = str(key["owner"]), str(key["name"])
        if name in keys:
            raise InputError(f"the job document names the column key {name!r} twice")
        keys[name] = ColumnKey(ring=grants[(owner, name)].ring, mode=str(key["mode"]))
    return ColumnKeys(keys)


def output_limit(grants: Grants) -> int | None:
    """Return what the strictest key allows the job to print and to write to each volume; None for any number."""
    return min((g.max_bytes for g in grants.values() if g.max_bytes is not None), default=None)


def check_hidden() -> None:
    """Refuse a sandbox in which the program could reach the sealed folders."""
    # The guest alone passes this folder, by a capability that it drops before the program starts.
    if SEALED_FOLDER.exists() and SEALED_FOLDER.stat().st_mode & 0o777:
        raise IntegrityError("the program could reach the sealed folders: not the sandbox that the job asks for")


def sealed_folder(name: str, *, hidden: bool) -> Path:
    """Return where a volume's sealed files are, for the guest to open at any time."""
    folder = SEALED_FOLDER / name
    if not hidden:
        return folder
    # Kept open: the path is out of reach once the capability is dropped.
    return Path(f"/proc/self/fd/{os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}")


def _volume(volume: Mapping[str, object], grants: Grants, run_id: bytes, *, hidden: bool) -> SealedVolume:
    grant = grants[(str(volume["owner"]), str(volume["key"]))]
    head = grant.heads.get(str(volume["dataset"]))
    if head is None or (head.owner, head.key) != (volume["owner"], volume["key"]):
        raise IntegrityError(f"volume {volume['name']}: the release has no head of its data set")
    name = str(volume["name"])
    return SealedVolume(
        name=name,
        folder=sealed_folder(name, hidden=hidden),
        mode=str(volume["mode"]),
        ring=grant.ring,
        head=head,
        run_id=run_id,
        visible_names=volume.get("names") == "visible",
        max_bytes=output_limit(grants),
        approval=grant.approval,
    )
