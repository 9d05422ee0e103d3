"""The sealed FileSystem against the guest's own key agent: what a program changes, and what a failed run leaves."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.fakes import java_support
from tests.unit.test_guest_volumes import Killed, Session, get, on_disk, put, volume

from strongroom.guest.agent import KeyAgent
from strongroom.guest.column_keys import ColumnKeys
from strongroom.guest.volumes import SealedVolume
from strongroom.storage.dataset import DatasetInfo, write_info

DATASET = "ab" * 16


@pytest.fixture
def committed(tmp_path: Path) -> tuple[Session, Path]:
    folder, session = tmp_path / "v", Session()
    write_info(str(folder), DatasetInfo(dataset=DATASET, key="sales", owner="me"))
    at = volume(folder)
    for name in ("f0", "f1", "d/g"):
        put(at, name, b"committed")
    at.commit(session)  # type: ignore[arg-type]
    return session, folder


def shell(at: SealedVolume, socket: Path, script: str) -> list[str]:
    """Run the lines of `script` in a JVM; return an answer a line."""
    agent = KeyAgent({at.name: at}, b"r" * 16, keys=ColumnKeys({}))
    agent.start(str(socket))
    lines = [line.strip() for line in script.strip().splitlines()]
    return java_support.checks("shell", socket, lines="\n".join(lines) + "\n").splitlines()


def test_committed_files_can_be_deleted_and_replaced_and_come_back_if_the_run_fails(
    committed: tuple[Session, Path], tmp_path: Path
) -> None:
    session, folder = committed
    before = on_disk(folder)
    at = volume(folder, session.head)

    def run() -> None:
        with at.changing(session):  # type: ignore[arg-type]
            said = shell(
                at,
                tmp_path / "s",
                """delete /work/out/f0
                exists /work/out/f0
                list /work/out
                write /work/out/f1 changed
                write /work/out/f1 changed-again
                rename /work/out/d/g /work/out/d/h
                list /work/out/d
                delete /work/out all
                exists /work/out
                write /work/out/new data
                list /work/out""",
            )
            at._check_folder()
            assert said == [
                "true", "false", "{d=0, f1=9}", "written", "written", "true", "{h=9}", "true", "false", "written",
                "{new=4}",
            ]  # fmt: skip
            raise Killed

    with pytest.raises(Killed):
        run()
    assert on_disk(folder) == before


def test_an_overwritten_volume_is_committed(committed: tuple[Session, Path], tmp_path: Path) -> None:
    session, folder = committed
    at = volume(folder, session.head)
    with at.changing(session):  # type: ignore[arg-type]
        shell(at, tmp_path / "s", "delete /work/out all\nwrite /work/out/f0 second")
        assert at.commit(session) is not None  # type: ignore[arg-type]
    after = volume(folder, session.head)
    assert [path for path, _ in after.paths()] == ["f0"]
    assert get(after, "f0") == b"second"


def test_an_interrupted_thread_does_not_part_file_system_and_agent(
    committed: tuple[Session, Path], tmp_path: Path
) -> None:
    session, folder = committed
    at = volume(folder, session.head)
    with at.changing(session):  # type: ignore[arg-type]
        said = shell(
            at,
            tmp_path / "s",
            """interrupted rename /work/out/f0 /work/out/f2
            interrupted delete /work/out/f1
            list /work/out""",
        )
        assert said == ["true", "true", "{d=0, f2=9}"]
        assert at.commit(session) is not None  # type: ignore[arg-type]


def test_a_stream_whose_file_is_deleted_or_renamed_ends_well(committed: tuple[Session, Path], tmp_path: Path) -> None:
    session, folder = committed
    at = volume(folder, session.head)
    with at.changing(session):  # type: ignore[arg-type]
        said = shell(
            at,
            tmp_path / "s",
            """begin /work/out/e/x one
            delete /work/out/e/x
            write /work/out/e/x again
            close one
            begin /work/out/g/x two
            rename /work/out/g /work/out/h
            close two
            list /work/out/e
            list /work/out/h""",
        )
        assert said == ["begun", "true", "written", "closed", "begun", "true", "closed", "{x=5}", "{x=1}"]
        assert at.commit(session) is not None  # type: ignore[arg-type]


def test_a_name_that_a_data_set_cannot_hold_is_refused_at_once(committed: tuple[Session, Path], tmp_path: Path) -> None:
    session, folder = committed
    said = shell(volume(folder, session.head), tmp_path / "s", "mkdirs /work/out/e\u0301\nlist /work/out")
    assert "NFC" in said[0]
    assert said[1] == "{d=0, f0=9, f1=9}"


def test_threads_ask_side_by_side(committed: tuple[Session, Path]) -> None:
    """LIST of one folder does not look at every file of the volume."""
    session, folder = committed
    at = volume(folder, session.head)
    for number in range(3000):
        put(at, f"many/{number % 7}/{number}", b"x")
    seen: list[dict[str, int]] = []
    threads = [threading.Thread(target=lambda: seen.append(at.list("many"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(found) == 7 for found in seen)
