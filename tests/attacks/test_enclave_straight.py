# ruff: noqa: E501  # programs
"""Files that are sealed as they are written (guest/straight.py): what programs see, and what a host can do. T305 to T307."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.attacks.test_enclave_checkpoints import kill_all
from tests.attacks.test_enclave_data import wait_for
from tests.conftest import stop_service
from tests.fakes.enclave_shell import Enclave, make_enclave

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="this machine has no /dev/fuse")

BIG = 20 << 20
WRITE = r"""
import os
def straight(volume, name, data=b"secret marker " * (1 << 20)):
    path = f"/work/.sealed/{volume}/{name}"
    with open(path, "xb", buffering=0) as file:
        for at in range(0, len(data), 3_000_001):
            file.write(data[at : at + 3_000_001])
    return path
"""
PROBE = (
    WRITE
    + r"""
import errno, json, mmap, shutil
found = {}
def attempt(name, function):
    try:
        found[name] = function()
    except OSError as exc:
        found[name] = errno.errorcode[exc.errno]

data = os.urandom(20 << 20)
one = straight("v", "one", data)
os.mkdir("/work/v/deep")
os.symlink(one, "/work/v/deep/model")
found["read"] = open("/work/v/deep/model", "rb").read() == data
with open(one, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as shared:
    found["mapped"] = shared[12_345_678 : 12_345_800] == data[12_345_678 : 12_345_800]
found["size"] = os.stat("/work/v/deep/model").st_size
shutil.copytree("/work/v/deep", "/work/v/again", symlinks=True)  # two links, one file
os.symlink(one, "/work/w/other key")
shutil.copy("/work/v/deep/model", "/work/v/plain copy")
straight("v", "no link")
straight("v", "empty", b"")
os.symlink("/work/.sealed/v/empty", "/work/v/empty")
os.symlink(straight("v", "gone"), "/work/v/gone")
os.unlink("/work/v/gone")
file = os.open("/work/.sealed/v/order", os.O_WRONLY | os.O_CREAT)
attempt("hole", lambda: os.pwrite(file, b"x", 10))
attempt("written", lambda: os.write(file, b"begun"))
attempt("over again", lambda: os.pwrite(file, b"B", 0))
attempt("read while written", lambda: open("/work/.sealed/v/order").read())
attempt("shorter", lambda: os.ftruncate(file, 2))
os.close(file)
attempt("write again", lambda: open("/work/.sealed/v/order", "r+b").write(b"more"))
attempt("append", lambda: open("/work/.sealed/v/order", "ab").write(b"more"))
attempt("truncate", lambda: open("/work/.sealed/v/order", "wb"))
attempt("after", lambda: open("/work/.sealed/v/order").read())
first = open("/work/.sealed/v/same name", "wb", buffering=0)
first.write(b"first")
os.unlink("/work/.sealed/v/same name")
straight("v", "same name", b"second")
attempt("of the first", lambda: first.write(b" and more"))
found["of the second"] = open("/work/.sealed/v/same name").read()
short = os.open("/work/.sealed/v/short", os.O_WRONLY | os.O_CREAT)
os.ftruncate(short, 100)
attempt("promised more", lambda: os.close(short))
attempt("and is gone", lambda: os.stat("/work/.sealed/v/short"))
attempt("folder", lambda: os.mkdir("/work/.sealed/v/x"))
attempt("rename over", lambda: os.rename(one, "/work/.sealed/v/empty"))
open("/work/v/sha", "wb").write(data)
print(json.dumps(found))
"""
)


@pytest.fixture
def enclave(tmp_path: Path) -> Iterator[Enclave]:
    made = make_enclave(tmp_path / "ws")
    yield made
    stop_service(made.workspace)


def ran(enclave: Enclave, *words: str) -> str:
    """Run a program to its end and return what it printed."""
    run = enclave.start(*words)
    out, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    return out


def volumes(*names: str) -> list[str]:
    return [word for name in names for word in ("--volume", f"{name}={name}:sales:rw")]


def leftovers(enclave: Enclave) -> list[str]:
    return [path.name for path in (enclave.folder / "v").rglob(".~strongroom-*")]


def test_files_written_straight_are_files_that_a_volume_takes_by_a_link(enclave: Enclave) -> None:
    done = ran(enclave, *volumes("v", "w"), "--", "python", "-c", PROBE)
    assert json.loads(done) == {
        "read": True, "mapped": True, "size": BIG, "hole": "ESPIPE", "written": 5, "over again": "ESPIPE",
        "read while written": "EBUSY", "shorter": "EPERM", "write again": "EACCES", "append": "EACCES",
        "truncate": "EACCES", "after": "begun", "of the first": "ESTALE", "of the second": "second", "promised more": None, "and is gone": "ENOENT", "folder": "ENOSYS",
        "rename over": "EEXIST",
    }  # fmt: skip
    enclave.run("data", "open", "v", "v.plain")
    enclave.run("data", "open", "w", "w.plain")
    data = (enclave.folder / "v.plain/sha").read_bytes()
    found = {
        p.relative_to(enclave.folder).as_posix(): p.read_bytes()
        for p in enclave.folder.glob("[vw].plain/**/*")
        if p.is_file()
    }
    assert found == {
        "v.plain/sha": data, "v.plain/deep/model": data, "v.plain/again/model": data, "v.plain/plain copy": data,
        "v.plain/empty": b"", "w.plain/other key": data,
    }  # fmt: skip
    assert leftovers(enclave) == []


def test_T305_a_file_that_the_host_alters_while_the_job_runs_fails_the_job(enclave: Enclave) -> None:
    program = WRITE + "os.symlink(straight('v', 'm'), '/work/v/m'); print('WRITTEN', flush=True)\n"
    program += "import time; time.sleep(2); open('/work/v/m', 'rb').read(); print('READ')\n"
    run = enclave.start(*volumes("v"), "--", "python", "-c", program)
    assert run.stdout is not None
    assert run.stdout.readline() == "WRITTEN\n", run.communicate()
    (name,) = leftovers(enclave)
    with open(enclave.folder / "v" / name, "r+b") as file:
        assert b"secret marker" not in file.read()
        file.seek(5 << 20)
        file.write(b"\0" * 64)
    out, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "READ" not in out
    assert "v/.sealed: chunk" in errors
    assert "was altered" in errors
    assert leftovers(enclave) == []
    assert [d["epoch"] for d in enclave.json("data", "list")["datasets"]] == [1, 0]  # type: ignore[attr-defined]


def test_T306_a_killed_enclave_leaves_nothing_that_the_next_run_does_not_remove(enclave: Enclave) -> None:
    program = WRITE + "straight('v', 'm'); print('WRITTEN', flush=True); import time; time.sleep(60)"
    run = enclave.start(*volumes("v"), "--", "python", "-c", program)
    assert run.stdout is not None
    assert run.stdout.readline() == "WRITTEN\n", run.communicate()
    # While its writer lives, another run that tidies up leaves it alone.
    ran(enclave, *volumes("v"), "--", "python", "-c", "open('/work/v/a', 'w').write('a')")
    assert len(leftovers(enclave)) == 1
    kill_all(run)
    wait_for(lambda: not _alive(run.pid))
    ran(enclave, *volumes("v"), "--", "python", "-c", "open('/work/v/b', 'w').write('b')")
    assert leftovers(enclave) == []
    assert enclave.open("v") == {"a": "a", "b": "b"}


def test_T307_what_is_written_straight_counts_as_output(enclave: Enclave) -> None:
    enclave.run("policy", "outputs", "sales", "--max-mb", "4")
    program = WRITE + "\ntry: straight('v', 'm')\nexcept OSError as exc: print(exc.errno)\n"
    done = ran(enclave, *volumes("v"), "--", "python", "-c", program)
    assert done == "122\n"  # EDQUOT
    assert leftovers(enclave) == []


def test_models_that_are_saved_again_and_again_do_not_fill_the_disk(enclave: Enclave) -> None:
    program = (
        WRITE + "for n in range(5):\n    os.symlink(straight('v', f'm{n}'), '/work/v/new')\n"
        "    os.replace('/work/v/new', '/work/v/m')\n    if n == 0: os.rename('/work/v/m', '/work/moved')\nprint(sorted(os.listdir('/work/.sealed/v')))\n"
    )
    done = ran(enclave, *volumes("v"), "--", "python", "-c", program)
    assert done == "['m0', 'm2', 'm3', 'm4']\n"  # one that no link names is dropped when the second after it begins


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_copies_and_processes_that_are_started_meanwhile_lose_nothing(enclave: Enclave) -> None:
    program = (
        WRITE + "import shutil, subprocess\n"
        "def save(name, data):\n"
        "    with open(f'/work/.sealed/v/{name}', 'xb', buffering=0) as file:\n"
        "        file.write(data)\n"
        "        subprocess.run(['true'], check=True)\n"  # closes its copy of the descriptor
        "        file.write(data)\n"
        "    os.makedirs('/work/v/last', exist_ok=True)\n"
        "    os.symlink(f'/work/.sealed/v/{name}', '/work/v/new')\n"
        "    os.replace('/work/v/new', '/work/v/last/m')\n"
        "save('one', b'one')\n"
        "shutil.copytree('/work/v/last', '/work/v/best', symlinks=True)\n"
        "for name in ('two', 'three', 'four'): save(name, name.encode())\n"
        "shutil.move('/work/v/last', '/tmp/last')\n"
        "for name in ('five', 'six', 'seven'): straight('v', name, b'')\n"
        "shutil.move('/tmp/last', '/work/v/last')\n"
        "try: os.rename('/work/.sealed', '/work/v/inside')\n"
        "except OSError as exc: print(exc.errno)\n"
    )
    assert ran(enclave, *volumes("v"), "--", "python", "-c", program) == "16\n"  # EBUSY
    assert enclave.open("v") == {"best/m": "oneone", "last/m": "fourfour"}


def test_fsync_of_a_file_that_is_sealed_as_it_is_written_commits(enclave: Enclave) -> None:
    program = (
        WRITE + "os.symlink(straight('v', 'm', b'saved'), '/work/v/m')\n"
        "file = os.open('/work/v/m', os.O_RDONLY); os.fsync(file); os._exit(3)"
    )
    run = enclave.start("--checkpoint-every", "3600", *volumes("v"), "--", "python", "-c", program)
    run.communicate(timeout=60)
    assert run.returncode == 3
    assert enclave.open("v") == {"m": "saved"}


def test_fsync_through_another_descriptor_than_the_writers(enclave: Enclave) -> None:
    # While it is written it cannot be sealed, so whoever syncs what a volume has by a link is told; then it can.
    program = (
        WRITE + "def synced(fd):\n"
        "    try: os.fsync(fd); return 0\n"
        "    except OSError as exc: return exc.errno\n"
        "said = []\n"
        "file = os.open('/work/.sealed/v/one', os.O_WRONLY | os.O_CREAT); os.write(file, b'saved')\n"
        "said.append(synced(os.dup(file)))\n"  # of what no volume has
        "os.symlink('/work/.sealed/v/one', '/work/v/m'); os.symlink('m', '/work/v/again')\n"
        "said += [synced(file), synced(os.dup(file))]\n"
        "for fd in range(3, 20):\n"
        "    try: os.close(fd)\n"
        "    except OSError: pass\n"
        "os.symlink(straight('v', 'other'), '/work/v/other'); open('/work/v/plain', 'w').write('x')\n"
        "said.append(synced(os.open('/work/v/m', os.O_RDONLY)))\n"
        "print(said, flush=True); os._exit(3)"
    )
    run = enclave.start("--checkpoint-every", "3600", *volumes("v"), "--", "python", "-c", program)
    out, errors = run.communicate(timeout=60)
    assert (run.returncode, out) == (3, "[0, 5, 5, 0]\n"), errors
    assert enclave.open("v") == {"m": "saved", "again": "saved"}


@pytest.mark.parametrize("link", ["../../.sealed/v/one", "./.././../.sealed/v/../v/one", "/work/v/../.sealed/v/one"])
def test_a_link_to_such_a_file_may_be_relative(enclave: Enclave, link: str) -> None:
    program = (
        WRITE + "straight('v', 'one', b'saved'); os.mkdir('/work/v/deep')\n"
        f"os.symlink({link!r}, '/work/v/deep/m'); os.symlink('deep/m', '/work/v/two steps')\n"
        "for n in range(3): straight('v', f'm{n}', b'')\n"  # whoever begins looks which files have links
        "print(open('/work/v/deep/m').read(), len(os.listdir('/work/.sealed/v')))\n"
    )
    assert ran(enclave, *volumes("v"), "--", "python", "-c", program) == "saved 4\n"
    assert enclave.open("v") == {"deep/m": "saved", "two steps": "saved"}
    assert leftovers(enclave) == []


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(enclave: Enclave) -> None:
    program = "import os; os.mkdir('/work/v/d'); open('/work/v/d/a', 'w').write('a'); os.chmod('/work/v/d', {})"
    ran(enclave, *volumes("v"), "--", "python", "-c", program.format("0o755"))
    hidden = "import os; os.chmod('/work/v/d', 0o311)"
    done = enclave.outcome(*volumes("v"), "--", "python", "-c", hidden)
    assert done["status"] == 1
    assert "a folder of volume v cannot be listed: Permission denied" in str(done["error"])
    assert enclave.open("v") == {"d/a": "a"}
