"""A job under a LibOS, run in this process: what a failed commit, a dead run or its program left. T405, T406, T415."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.unit.test_guest_volumes import RING, RUN, Session, get, put, volume

from strongroom.errors import InputError, IntegrityError
from strongroom.guest import job, libos
from strongroom.guest.document import Report
from strongroom.guest.libos import GramineJob, LibosJob
from strongroom.guest.session import Grant, boottime
from strongroom.storage.dataset import DatasetInfo, write_info
from strongroom.storage.leftovers import KEPT_FOLDER, begin_changes
from strongroom.storage.places import LocalPlace

PROGRAM = "open('/work/out/a', 'w').write('new'); open('/work/out/b', 'w').write('more')"


@dataclass
class Libos:
    """One volume, and the trust service that has its head."""

    work: Path
    folder: Path
    session: Session = field(default_factory=Session)
    report: Report = field(default_factory=Report)

    def run(self, kind: type[LibosJob], program: str = PROGRAM, *, staged: bool = True) -> Report:
        head = self.session.head
        document: dict[str, object] = {
            "staged": staged,
            "command": [sys.executable],
            "arguments": ["-c", program.replace("/work", str(self.work))],
            "environment": {"PYTHONPATH": os.pathsep.join(sys.path)},
            "volumes": [{"name": "out", "dataset": head.dataset, "key": "sales", "owner": "me", "mode": "rw"}],
        }
        grant = Grant(ring=RING, heads={head.dataset: head}, run_id=RUN, ends_at=boottime() + 3600)
        self.report = Report()
        session, grants = self.session, {("me", "sales"): grant}
        kind(document, session, grants, self.report).run()  # type: ignore[arg-type]
        return self.report

    def held(self) -> dict[str, bytes]:
        """Return what the next run finds."""
        at = volume(self.folder, self.session.head, "ro")
        return {path: get(at, path) for path, _ in at.paths()}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Libos]:
    work, sealed = tmp_path / "work", tmp_path / "sealed"
    work.mkdir()
    chdir, before = os.chdir, os.getcwd()
    monkeypatch.setattr(os, "chdir", lambda path: chdir(work) if path == "/work" else chdir(path))
    monkeypatch.setattr("strongroom.guest.workload.signal.signal", lambda *_: None)
    for module in (job, libos):
        monkeypatch.setattr(module, "WORK", work)
    monkeypatch.setattr(job, "SEALED_FOLDER", sealed)
    monkeypatch.setattr(job, "AGENT_SOCKET", str(tmp_path / "run" / "agent.sock"))
    made = Libos(work, sealed / "out")
    head = made.session.head
    write_info(str(made.folder), DatasetInfo(dataset=head.dataset, key="sales", owner="me"))
    first = volume(made.folder)
    put(first, "a", b"old")
    first.commit(made.session)  # type: ignore[arg-type]
    yield made
    chdir(before)
    subprocess.run(["rm", "-rf", work], check=True)  # shutil.rmtree recurses, and a test nests deeper than that goes


NESTED = """
import os
at = os.open('/work', os.O_RDONLY)
for _ in range(1200):
    os.mkdir('d', dir_fd=at)
    at, above = os.open('d', os.O_RDONLY, dir_fd=at), at
    os.close(above)
os.close(os.open('deep', os.O_CREAT | os.O_WRONLY, dir_fd=at))
"""

LIBOSES = pytest.mark.parametrize("kind", [LibosJob, GramineJob])


@LIBOSES
def test_what_a_program_wrote_is_committed(machine: Libos, kind: type[LibosJob]) -> None:
    report = machine.run(kind)
    assert (report.status, report.exit_code) == ("completed", 0)
    assert report.details["committed"] == {"out": {"dataset": machine.session.head.dataset, "epoch": 2}}
    assert machine.held() == {"a": b"new", "b": b"more"}
    assert not (machine.folder / KEPT_FOLDER).exists()


@LIBOSES
def test_T405_a_commit_that_cannot_be_leaves_the_volume_as_it_was(machine: Libos, kind: type[LibosJob]) -> None:
    (machine.folder / "strange").write_text("of the host")
    with pytest.raises(IntegrityError, match="out/strange: added"):
        machine.run(kind)
    assert machine.held() == {"a": b"old"}
    assert sorted(path.name for path in machine.folder.iterdir()) == [".dataset", "a", "strange"]


@LIBOSES
def test_T405_who_committed_meanwhile_is_not_overwritten(
    machine: Libos, monkeypatch: pytest.MonkeyPatch, kind: type[LibosJob]
) -> None:
    other, spawn = volume(machine.folder, machine.session.head), os.posix_spawn

    def spawned(*words: object, **named: object) -> int:
        put(other, "c", b"another's")
        other.commit(machine.session)  # type: ignore[arg-type]
        return spawn(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "posix_spawn", spawned)
    with pytest.raises(IntegrityError, match="another run committed to this data set meanwhile"):
        machine.run(kind)
    assert machine.held() == {"a": b"old", "c": b"another's"}


@LIBOSES
def test_T406_a_run_that_died_while_it_changed_the_volume_is_undone(machine: Libos, kind: type[LibosJob]) -> None:
    at = LocalPlace(machine.folder)
    begin_changes(at)
    dead = volume(machine.folder, machine.session.head)
    for path, kept in dead.keep("a").items():
        at.move(path, f"{KEPT_FOLDER}/{kept}")
    put(dead, "a", b"half of a run")
    assert machine.run(kind).status == "completed"
    assert machine.held() == {"a": b"new", "b": b"more"}


@LIBOSES
def test_T415_folders_beside_the_volumes_do_not_turn_success_into_failure(machine: Libos, kind: type[LibosJob]) -> None:
    report = machine.run(kind, NESTED + PROGRAM)
    assert (report.status, report.exit_code, report.details["committed"]) == (
        "completed",
        0,
        {"out": {"dataset": machine.session.head.dataset, "epoch": 2}},
    )
    assert machine.held() == {"a": b"new", "b": b"more"}


@LIBOSES
def test_T415_folders_beside_the_volumes_do_not_hide_a_refusal(machine: Libos, kind: type[LibosJob]) -> None:
    (machine.folder / "strange").write_text("of the host")
    with pytest.raises(IntegrityError, match="out/strange: added"):
        machine.run(kind, NESTED + PROGRAM)
    assert machine.report.details["committed"] == {}
    assert "gone" not in machine.report.details


@LIBOSES
def test_T415_a_work_folder_that_cannot_be_listed_hides_no_exit_code(machine: Libos, kind: type[LibosJob]) -> None:
    report = machine.run(kind, "import os; os.rename('/work', '/work.away'); os._exit(3)")
    assert (report.status, report.exit_code) == ("completed", 3)
    assert "gone" not in report.details


@pytest.mark.parametrize(
    ("program", "staged", "gone"),
    [
        (PROGRAM, True, False),
        ("open('/work/model', 'w').write('w')", True, True),
        (PROGRAM, False, True),  # the agent alone seals there: this is a plain folder
        ("import os; os.makedirs('/work/out/spark'); open('/work/derby.log', 'w')", False, False),
    ],
)
def test_what_was_written_to_memory_alone_is_reported(machine: Libos, program: str, staged: bool, gone: bool) -> None:
    assert machine.run(LibosJob, program, staged=staged).details["gone"] is gone


def test_under_gramine_nothing_is_said_of_a_folder_that_the_program_does_not_have(machine: Libos) -> None:
    assert "gone" not in machine.run(GramineJob, "open('/work/model', 'w').write('w')").details


def test_T416_outputs_that_the_programs_process_cannot_read_are_refused_with_its_exit_code(machine: Libos) -> None:
    away = "import os, shutil; shutil.rmtree('/work/out')"
    with pytest.raises(InputError, match="the program's outputs: out cannot be read: No such file or directory"):
        machine.run(GramineJob, away)
    assert (machine.report.exit_code, machine.held()) == (0, {"a": b"old"})
