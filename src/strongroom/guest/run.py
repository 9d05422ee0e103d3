"""A job in a sandbox or a confidential VM: its program is confined, sees views, and its fsyncs are answered."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from strongroom.errors import InputError
from strongroom.guest import confine, tunnel, views
from strongroom.guest.checkpoints import Checkpoints
from strongroom.guest.document import table
from strongroom.guest.door import Door
from strongroom.guest.job import WORK, Job, output_limit
from strongroom.guest.peers import Peers
from strongroom.guest.session import Certified
from strongroom.guest.staging import StagedVolume
from strongroom.guest.straight import STRAIGHT_FOLDER, StraightFile, StraightFolder
from strongroom.guest.syncs import Syncs
from strongroom.guest.views import View
from strongroom.guest.workload import Workload

__all__ = ["SandboxJob", "mount_views"]

STRAIGHT = WORK / STRAIGHT_FOLDER


class SandboxJob(Job):
    """A job whose program shares nothing with the guest, and cannot reach the sealed folders of staged volumes."""

    hides = True
    _shown: Sequence[View] = ()
    _straight: Sequence[StraightFolder] = ()
    _network: Peers | None = None

    def run(self, peers: tuple[Certified, Door] | None = None) -> None:
        """Run it, with `peers` as the driver of a job on several machines; raises as `Job.run`."""
        if self.staged:
            self._mount()
        self.watched[:0] = [*self._shown, *self._straight]
        if peers:
            self._network = self._lead(*peers)
        else:
            confine.lock_down()
        try:
            super().run()
        finally:
            for folder in self._straight:  # what no volume has taken
                folder.end()

    def make_workload(self) -> Workload:
        """Return what runs the program, confined."""
        return Workload(self.document, staged=self.staged, max_printed=output_limit(self.grants))

    def stage(self) -> list[StagedVolume]:
        """Serve the views; return the other volumes."""
        for view in self._shown:
            view.serve(self.volumes[view.name], self.workload.stop)
        for folder in self._straight:
            folder.serve(self.volumes[folder.name], self.workload.stop)
        viewed = {view.name for view in self._shown}
        return [StagedVolume(v, WORK / name, self._find) for name, v in self.volumes.items() if name not in viewed]

    def run_program(self, plain: Sequence[StagedVolume]) -> int:
        """Run the program, and commit while it runs if the job asks for that."""
        with self._commits(plain) as listen:
            return self.workload.run(listen)

    def end_network(self) -> None:
        """Return once the workers' enclaves are gone."""
        if self._network is not None:
            self._network.end()

    def renew(self) -> float:
        """Attest again; peers see the new certificate from now on."""
        ends_at = super().renew()
        if self._network is not None:
            self._network.renew(self.session.certificate())
        return ends_at

    def _mount(self) -> None:
        read = [name for name, volume in self.volumes.items() if volume.mode == "ro"]
        if views.available():  # first, as there is no device after `mount_views`
            self._straight = [StraightFolder(name, STRAIGHT, read) for name in self.volumes if name not in read]
        self._shown = mount_views(read)

    def _lead(self, certified: Certified, door: Door) -> Peers:
        network = Peers(certified, door, serve_agent=self.agent.serve, limit=_workers(self.document))
        network.lead()
        interface = tunnel.open_interface(network.address)
        # Capabilities are this thread's: those that are started from now on have none either.
        confine.lock_down()
        network.start(interface)
        return network

    def _find(self, link: str) -> StraightFile | None:
        return next((file for folder in self._straight if (file := folder.find(link)) is not None), None)

    @contextlib.contextmanager
    def _commits(self, plain: Sequence[StagedVolume]) -> Iterator[Callable[[int], None] | None]:
        # While it runs: every so often, and when it asks by fsync.
        every_s = self.document.get("checkpoint_s")
        if not isinstance(every_s, int):
            yield None
            return
        checkpoints = Checkpoints(plain, self.session, every_s, self.check, self.workload.stop)
        written = [staged for staged in plain if staged.volume.mode == "rw" and not staged.volume.approval]
        places = [folder.place for folder in self._straight]
        syncs = Syncs(written, self.session, self.check, self.workload.stop, places)
        checkpoints.start()
        try:
            yield syncs.listen if written else None
        finally:
            syncs.stop()
            checkpoints.stop()


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


def _workers(document: Mapping[str, object]) -> int:
    count = table(document, "workers").get("count")
    if not isinstance(count, int) or count < 1:
        raise InputError("the job document names no workers")
    return count
