"""A volume that a job writes to: two processes at one file, links, sparse files, a full disk; what the user is told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import stop_service, tiny_disk
from tests.fakes.enclave_shell import Enclave, error, make_enclave

from strongroom.storage.places import TEMPORARY

PROGRAM = Path(__file__).parents[1] / "e2e/programs/writers.py"
OUT = ("--volume", "in=in", "--volume", "out=out:sales:rw", "--scratch-mb", "16", "--", "python")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enclave]:
    made = make_enclave(tmp_path_factory.mktemp("written"))
    yield made
    stop_service(made.workspace)


def test_what_programs_do_with_files_is_what_is_sealed(shell: Enclave) -> None:
    (shell.folder / "writers.py").write_bytes(PROGRAM.read_bytes())
    done = shell.run("run", "--approve", "--unsafe-accept-simulated", *OUT, "writers.py")
    found = json.loads(done.stdout)
    assert found.pop("direct") in (8192, "EINVAL")  # tmpfs takes O_DIRECT since Linux 6.6
    well = {name: [0, 0] for name in ("append", "halves", "rename", "truncate")}
    assert found == well | {"lines": True, "cut": True}
    for path, reason in {"folder": "a link, but not to a file", "input": "a link out of the volume"}.items():
        assert f"strongroom: out cannot hold {path}, {reason}: left out, or as it was before" in done.stderr

    opened = shell.open("out")
    names = {"log", "halves", "renamed", "cut", "direct", "sparse", "ckpt-3", "latest", "same"}
    assert opened.keys() | {"direct"} == names
    assert opened["latest"] == opened["same"] == opened["ckpt-3"] == "three"
    assert opened["halves"][:-8] == "A" * 65_536 + "B" * 65_536
    assert opened["halves"][-8:] == "aaaabbbb"
    assert len(opened["renamed"]) == 10_299
    assert set(opened["renamed"]) in ({"0"}, {"1"})
    assert opened["sparse"].strip("\0") == "end"
    # It fitted as it was written, so it fits again.
    show = "import os; print(os.stat('/work/out/sparse').st_blocks < 1000, os.path.islink('/work/out/latest'))"
    read_only = "\nopen('/work/in/new', 'w')"
    done = shell.run("run", "--approve", "--unsafe-accept-simulated", *OUT, "-c", show + read_only, check=False)
    assert (done.returncode, done.stdout) == (1, "True False\n")
    assert "if it could not write: a program may write to /work/out (kept if the program ends well)" in done.stderr


@pytest.mark.parametrize(
    ("program", "gone"),
    [
        ("open('model.pt', 'w').write('w')", True),
        ("import os; os.makedirs('runs/1'); open('runs/1/log', 'w').write('w')", True),
        ("import os; os.makedirs('runs/1'); open('.cache', 'w').write('w'); open('/tmp/x', 'w').write('w')", False),
        ("open('out/model.pt', 'w').write('w')", False),
    ],
)
def test_who_wrote_beside_the_volumes_is_told_that_it_is_gone(shell: Enclave, program: str, gone: bool) -> None:
    done = shell.run("run", "--approve", "--unsafe-accept-simulated", *OUT, "-c", program)
    assert ("what the program wrote to /work outside its volumes is gone" in done.stderr) is gone, done.stderr
    assert ("hint: --volume NAME=PATH:KEY:rw keeps what is written to PATH" in done.stderr) is gone


def test_a_disk_that_is_full_at_the_end_keeps_the_version_before(shell: Enclave) -> None:
    """On a file system of 1 MB: the run fails and says at which file, the next one is as if it had not been."""
    with tiny_disk(shell.folder / "small", megabytes=1) as folder:
        writes = ("--volume", "small=small:sales:rw", "--", "python", "-c")
        first = shell.outcome(*writes, "open('/work/small/a', 'w').write('old')")
        assert first["exit_code"] == 0, first
        before = on_disk(folder)
        program = (
            "import os; open('/work/small/a', 'w').write('new')\n"
            "for n in range(3): open(f'/work/small/b{n}', 'wb').write(os.urandom(400_000))"
        )
        done = shell.outcome(*writes, program)
        assert (done["outcome"], done["status"]) == ("failed", 1), done
        assert re.search(r"output small/b\d could not be written: No space left", str(error(done)["message"])), done
        assert "free disk space" in str(error(done)["hint"])
        assert on_disk(folder) == before
        assert shell.open("small") == {"a": "old"}


def on_disk(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert not any(TEMPORARY in path for path in found)
    return found
