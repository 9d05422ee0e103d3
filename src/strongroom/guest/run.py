"""Running an attested job: open or serve its volumes, confine and run the program, seal and commit its outputs."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from strongroom.errors import InputError, IntegrityError
from strongroom.guest import confine, tunnel, views
from strongroom.guest.agent import KeyAgent
from strongroom.guest.checkpoints import Checkpoints
from strongroom.guest.column_keys import ColumnKey, ColumnKeys
from strongroom.guest.document import Report, service_volumes
from strongroom.guest.document import column_keys as keys_of
from strongroom.guest.document import volumes as volumes_of
from strongroom.guest.door import Door
from strongroom.guest.lease import Lease
from strongroom.guest.peers import Peers
from strongroom.guest.session import Certified, Grant, ServiceSession
from strongroom.guest.staging import StagedVolume
from strongroom.guest.straight import STRAIGHT_FOLDER, StraightFile, StraightFolder
from strongroom.guest.syncs import Syncs
from strongroom.guest.views import View
from strongroom.guest.volumes import SealedVolume
from strongroom.guest.workload import Workload
from strongroom.storage.leftovers import was_interrupted
from strongroom.storage.places import LocalPlace

__all__ = [
    "check_hidden",
    "column_keys",
    "make_places",
    "mount_views",
    "open_volumes",
    "output_limit",
    "run_job",
    "sealed_folder",
    "tell_committed",
]

SEALED_FOLDER, WORK = Path("/sealed"), Path("/work")
STRAIGHT = WORK / STRAIGHT_FOLDER
BUSY_PATIENCE_S = 10.0  # a job that writes while it runs may take hours: whoever comes second is told
AGENT_SOCKET = "/run/strongroom/agent.sock"

_Served = View | StraightFolder


def run_job(
    document: dict[str, object],
    session: ServiceSession,
    grants: dict[tuple[str, str], Grant],
    report: Report,
    *,
    peers: tuple[Certified, Door] | None = None,
) -> None:
    """Run the program of `document` to its end and commit what it wrote.

    Args:
        document: The job document.
        session: The attested session.
        grants: What the service released.
        report: Where outcomes go.
        peers: For the driver of a job on several machines.

    Raises:
        StrongroomError: What kept the program or its outputs from finishing; nothing half-written is committed.
    """
    staged = document.get("staged") is True
    if staged:
        check_hidden()
    run_id = next(iter(grants.values())).run_id if grants else bytes(16)
    volumes = open_volumes(document, grants, run_id, hidden=staged)
    # Of volumes under a KBS' key the service knows nothing; which state they are in is in the job digest.
    session.inputs = {str(v["name"]): volumes[str(v["name"])].released for v in service_volumes(document)}
    report.details["run"] = run_id.hex()

    lease = Lease(
        session.lock, lambda: _renew(session, grants, network), min((g.ends_at for g in grants.values()), default=None)
    )

    def commit_batch(checkpoint: SealedVolume) -> None:
        # The checkpoint comes last: a batch that it does not name yet is repeated, one that it names is never lost.
        for sealed in sorted(volumes.values(), key=lambda v: v is checkpoint):
            sealed.commit(session, running=True)

    shown, straight = _mount(volumes) if staged else (list[View](), list[StraightFolder]())
    served: tuple[_Served, ...] = (*shown, *straight)
    workload = Workload(document, staged=staged, max_printed=output_limit(grants))
    keys = column_keys(document, grants)
    agent = KeyAgent(volumes, run_id, lease.check, keys=keys, on_batch=commit_batch, on_failure=workload.stop)
    network = _lead(peers, agent, document)

    def end(reason: str) -> None:
        agent.stop(reason)
        workload.stop(reason)

    lease.start(end)  # before the staging, which may take longer than a lease
    if staged:
        _undo_interrupted(volumes, session)
        plain = _open_places(volumes, shown, straight, workload)
    else:
        plain = []
        make_places(volumes)
        agent.start(AGENT_SOCKET)

    with contextlib.ExitStack() as held:
        if not staged:  # the program changes the sealed folders while it runs
            for sealed in volumes.values():
                held.enter_context(sealed.changing(session, BUSY_PATIENCE_S))
        held.callback(_end, straight)
        held.callback(tell_committed, report, volumes)  # a job that fails may have committed checkpoints
        lease.check()
        with _commits(
            document,
            (plain, straight),
            session,
            functools.partial(_may_go_on, lease, served, agent, workload),
            workload,
        ) as listen:
            exit_code = workload.run(listen)
        agent.stop("the job has ended")
        if network is not None:
            network.end()
        _check_views(served, agent)
        report.exit_code = exit_code
        if workload.stopped:
            raise InputError(workload.stopped)
        if exit_code == 0 or document.get("publish_on_failure") is True:
            if staged:
                for sealed in volumes.values():
                    held.enter_context(sealed.changing(session))
            _commit(plain, volumes, session)
    report.status = "completed"


def _renew(session: ServiceSession, grants: Mapping[tuple[str, str], Grant], network: Peers | None) -> float:
    session.attest()
    ends = [session.key(owner, name).ends_at for (owner, name), g in grants.items() if g.ends_at != math.inf]
    if network is not None:
        network.renew(session.certificate())
    return min(ends)


def _commit(plain: Sequence[StagedVolume], volumes: Mapping[str, SealedVolume], session: ServiceSession) -> None:
    for volume in plain:
        volume.seal_changes()
    for sealed in volumes.values():
        sealed.commit(session)


def tell_committed(report: Report, volumes: Mapping[str, SealedVolume]) -> None:
    """Say in the report what was committed, what waits for its owner, what no data set can hold, and what is gone."""
    heads = {v.name: v.committed for v in volumes.values()}
    report.details["committed"] = {n: {"dataset": h.dataset, "epoch": h.epoch} for n, h in heads.items() if h}
    report.details["held"] = [v.name for v in volumes.values() if v.held]
    report.details["left_out"] = {v.name: v.left_out for v in volumes.values() if v.left_out}
    report.details["gone"] = _wrote_beside(volumes)


def _wrote_beside(volumes: Container[str]) -> bool:
    # Names stay in the enclave. Hidden ones are caches; Spark's own database of tables is no output.
    with os.scandir(WORK) as found:
        beside = [e for e in found if e.name not in volumes and not e.name.startswith((".", "derby.", "metastore_db"))]
    return any(not e.is_dir(follow_symlinks=False) or any(files for *_, files in os.walk(e)) for e in beside)


def _end(straight: Sequence[StraightFolder]) -> None:
    for folder in straight:
        folder.end()


def _may_go_on(lease: Lease, served: Sequence[_Served], agent: KeyAgent, workload: Workload) -> None:
    lease.check()
    _check_views(served, agent)
    if workload.stopped:
        raise InputError(workload.stopped)


def mount_views(names: Iterable[str]) -> list[View]:
    """Mount a view for each volume of `names`, none if the sandbox cannot have any; they are not served yet.

    Needs the capability that `confine.lock_down` takes away. Afterwards the device is gone.
    """
    if not views.available():
        return []
    shown = [View(name, WORK / name) for name in names]
    confine.take_away(views.DEVICE)
    confine.add_terminals()
    return shown


def _undo_interrupted(volumes: Mapping[str, SealedVolume], session: ServiceSession) -> None:
    # A run that died around a checkpoint left files that the head does not name.
    for sealed in volumes.values():
        if sealed.mode == "rw" and was_interrupted(LocalPlace(sealed.folder)):
            with sealed.changing(session):
                pass


def _mount(volumes: Mapping[str, SealedVolume]) -> tuple[list[View], list[StraightFolder]]:
    read = [name for name, volume in volumes.items() if volume.mode == "ro"]
    # First, as there is no device after `mount_views`.
    written = [StraightFolder(n, STRAIGHT, read) for n in volumes if n not in read] if views.available() else []
    return mount_views(read), written


def _open_places(
    volumes: Mapping[str, SealedVolume],
    shown: Sequence[View],
    straight: Sequence[StraightFolder],
    workload: Workload,
) -> list[StagedVolume]:
    served: tuple[_Served, ...] = (*shown, *straight)
    for one in served:
        one.serve(volumes[one.name], workload.stop)

    def find(link: str) -> StraightFile | None:
        return next((file for folder in straight if (file := folder.find(link)) is not None), None)

    viewed = {view.name for view in shown}
    plain = [StagedVolume(volume, WORK / name, find) for name, volume in volumes.items() if name not in viewed]
    for volume in plain:
        volume.open_all()
    return plain


@contextlib.contextmanager
def _commits(
    document: Mapping[str, object],
    volumes: tuple[Sequence[StagedVolume], Sequence[StraightFolder]],
    session: ServiceSession,
    check: Callable[[], None],
    workload: Workload,
) -> Iterator[Callable[[int], None] | None]:
    # While it runs: every so often, and when it asks by fsync.
    plain, straight = volumes
    every_s = document.get("checkpoint_s")
    if not isinstance(every_s, int):
        yield None
        return
    checkpoints = Checkpoints(plain, session, every_s, check, workload.stop)
    written = [staged for staged in plain if staged.volume.mode == "rw" and not staged.volume.approval]
    syncs = Syncs(written, session, check, workload.stop, [folder.place for folder in straight])
    checkpoints.start()
    try:
        yield syncs.listen if written else None
    finally:
        syncs.stop()
        checkpoints.stop()


def _check_views(served: Sequence[_Served], agent: KeyAgent) -> None:
    # Whatever the program made of its EIO, here or on a worker: a file that is not whole makes nothing that counts.
    for failure in (*(view.failure for view in served), agent.failure):
        if failure is not None:
            raise failure


def _lead(peers: tuple[Certified, Door] | None, agent: KeyAgent, document: Mapping[str, object]) -> Peers | None:
    # Capabilities are this thread's: those that are started from now on have none either.
    if peers is None:
        confine.lock_down()
        return None
    network = Peers(*peers, serve_agent=agent.serve, limit=_workers(document))
    network.lead()
    interface = tunnel.open_interface(network.address)
    confine.lock_down()
    network.start(interface)
    return network


def make_places(volumes: Iterable[str]) -> None:
    """Make the folder of the agent's socket, and one for each volume, which programs name their files by."""
    os.mkdir(os.path.dirname(AGENT_SOCKET), 0o700)
    for name in volumes:
        (WORK / name).mkdir()


def _workers(document: Mapping[str, object]) -> int:
    workers = document.get("workers")
    count = workers.get("count") if isinstance(workers, dict) else None
    if not isinstance(count, int) or count < 1:
        raise InputError("the job document names no workers")
    return count


def column_keys(document: Mapping[str, object], grants: Mapping[tuple[str, str], Grant]) -> ColumnKeys:
    """Return the job's column keys; each has one owner and one mode."""
    keys = {}
    for key in keys_of(document):
        owner, name = str(key["owner"]), str(key["name"])
        if name in keys:
            raise InputError(f"the job document names the column key {name!r} twice")
        keys[name] = ColumnKey(ring=grants[(owner, name)].ring, mode=str(key["mode"]))
    return ColumnKeys(keys)


def check_hidden() -> None:
    """Refuse a sandbox in which the program could reach the sealed folders."""
    # The guest alone passes this folder, by a capability that it drops before the program starts.
    if SEALED_FOLDER.exists() and SEALED_FOLDER.stat().st_mode & 0o777:
        raise IntegrityError("the program could reach the sealed folders: not the sandbox that the job asks for")


def sealed_folder(name: str, *, staged: bool) -> Path:
    """Return where a volume's sealed files are, for the guest to open at any time."""
    folder = SEALED_FOLDER / name
    if not staged:
        return folder
    # Kept open: the path is out of reach once the capability is dropped.
    return Path(f"/proc/self/fd/{os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}")


def output_limit(grants: Mapping[tuple[str, str], Grant]) -> int | None:
    """Return what the strictest key allows the job to print and to write to each volume; None for any number."""
    return min((g.max_bytes for g in grants.values() if g.max_bytes is not None), default=None)


def open_volumes(
    document: Mapping[str, object], grants: Mapping[tuple[str, str], Grant], run_id: bytes, *, hidden: bool
) -> dict[str, SealedVolume]:
    """Return the job's volumes by name; `hidden` ones stay reachable for the guest once the program is confined."""
    return {str(v["name"]): _volume(v, grants, run_id, staged=hidden) for v in volumes_of(document)}


def _volume(
    volume: Mapping[str, object], grants: Mapping[tuple[str, str], Grant], run_id: bytes, *, staged: bool
) -> SealedVolume:
    grant = grants[(str(volume["owner"]), str(volume["key"]))]
    head = grant.heads.get(str(volume["dataset"]))
    if head is None or (head.owner, head.key) != (volume["owner"], volume["key"]):
        raise IntegrityError(f"volume {volume['name']}: the release has no head of its data set")
    name = str(volume["name"])
    return SealedVolume(
        name=name,
        folder=sealed_folder(name, staged=staged),
        mode=str(volume["mode"]),
        ring=grant.ring,
        head=head,
        run_id=run_id,
        visible_names=volume.get("names") == "visible",
        max_bytes=output_limit(grants),
        approval=grant.approval,
    )
