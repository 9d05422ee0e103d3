# ruff: noqa: E501  # tables
"""A program in a process of its own: what it sees, what comes back, and what must not."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from strongroom.guest import apart


def ran(tmp_path: Path, command: list[str], *, always: bool = False) -> tuple[int, str, Path]:
    """Run a command apart; return exit code, what it printed, and the folder with what came back."""
    given, place, back = (tmp_path / n for n in ("given", "place", "back"))
    for folder in (given / "in" / "sub", given / "out", place, back / "out"):
        folder.mkdir(parents=True)
    (given / "in" / "sub" / "a").write_bytes(b"a" * 3_000_000)
    (given / "out" / "old").write_text("old")
    sent = tmp_path / "sent"
    with open(sent, "wb") as stream:
        apart.send_files(given, ["in", "out"], stream)
    (tmp_path / "returned").touch()
    source, target = os.open(sent, os.O_RDONLY), os.open(tmp_path / "returned", os.O_WRONLY)
    done = subprocess.run(
        [sys.executable, apart.__file__, str(source), str(target), '["in", "out"]', '["out"]', json.dumps(always), "python",
         *command],
        cwd=place, pass_fds=(source, target), capture_output=True, text=True, check=False,
    )  # fmt: skip
    os.close(source)
    os.close(target)
    raw = (tmp_path / "returned").read_bytes()
    if raw:
        (tmp_path / "left").write_text("\n".join(apart.receive_files(back, ["out"], io.BytesIO(raw))))
    return done.returncode, done.stdout + done.stderr, back / "out" if raw else place


def test_a_program_is_itself_and_its_outputs_come_back(tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text(
        "import atexit, os, sys, threading, time\n"
        "assert __name__ == '__main__' and 'strongroom' not in sys.modules\n"
        f"assert sys.path[0] == {str(tmp_path)!r} and sys.argv == [{str(program)!r}, 'x']\n"
        "os.remove('out/old'); os.makedirs('out/deep/empty')\n"
        "open('out/deep/n', 'w').write(str(os.path.getsize('in/sub/a')))\n"
        "atexit.register(lambda: open('out/last', 'w').write('1'))\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), open('out/thread', 'w').write('1'))).start()\n"
    )
    code, said, out = ran(tmp_path, [str(program), "x"])
    assert (code, said) == (0, "")
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*")) == [
        "deep",
        "deep/empty",
        "deep/n",
        "last",
        "thread",
    ]
    assert (out / "deep" / "n").read_text() == "3000000"


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("import sys; print(sys.argv); sys.exit(3)", 3, "['-c', 'y']\n"),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("1/0", 1, "ZeroDivisionError"),
        ("import os; os._exit(0)", 0, ""),  # nothing came back: the guest commits nothing
        ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),
    ],
)
def test_a_program_that_does_not_end_well_sends_nothing(tmp_path: Path, code: str, status: int, said: str) -> None:
    got, printed, out = ran(tmp_path, ["-c", code, "y"])
    assert got == status
    assert said in printed
    assert out.name == "place"


def test_outputs_of_a_failed_program_on_request(tmp_path: Path) -> None:
    code, _, out = ran(tmp_path, ["-c", "open('out/n', 'w').write('1'); exit(5)"], always=True)
    assert (code, (out / "n").read_text()) == (5, "1")


def test_links_and_pipes_are_named_and_a_link_to_a_file_of_the_volume_is_that_file(tmp_path: Path) -> None:
    program = (
        "import os; os.symlink('/etc/passwd', 'out/1'); os.mkfifo('out/2'); os.symlink('/etc', 'out/3')\n"
        "os.symlink('4', 'out/4'); os.symlink('../in/sub/a', 'out/5'); os.symlink('/nowhere', 'out/6')\n"
        "os.symlink('old', 'out/7'); os.makedirs('out/8'); os.symlink(os.path.abspath('out/old'), 'out/8/9')\n"
    )
    code, said, out = ran(tmp_path, ["-c", program])
    assert (code, said) == (0, "")
    files = {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*") if p.is_file()}
    assert files == {"old": "old", "7": "old", "8/9": "old"}
    assert not any(p.is_symlink() for p in out.rglob("*"))
    assert sorted((tmp_path / "left").read_text().split()) == [f"out/{n}" for n in range(1, 7)]


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_folder: Path) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may be root's, whom no mode keeps out
    with pytest.raises(PermissionError):
        apart.send_files(tmp_path, ["out"], io.BytesIO())


@pytest.mark.parametrize(("code", "status"), [("", 0), ("; exit(5)", 5)])
def test_T416_a_program_whose_outputs_cannot_be_read_keeps_its_exit_code(
    tmp_path: Path, code: str, status: int
) -> None:
    away = "import os; os.remove('out/old'); os.rmdir('out')"
    with pytest.raises(ValueError, match=r"^out cannot be read: No such file or directory$"):
        ran(tmp_path, ["-c", away + code], always=True)
    found = subprocess.run(
        [sys.executable, apart.__file__, "0", "2", "[]", '["out"]', "true", "python", "-c", away + code],
        cwd=tmp_path / "given", input=END, capture_output=True, check=False,
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (status, line(error="out cannot be read: No such file or directory"))


def test_T416_what_a_process_says_of_its_error_is_short_and_plain() -> None:
    with pytest.raises(ValueError, match=r"^\\x1b\[2J\\nx{191}$"):
        apart.receive_files(Path("/nowhere"), [], io.BytesIO(line(error="\x1b[2J\n" + "x" * 1000)))


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


END = line(end=True)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\n", b"[]\n", b"{}\n" + END, END[:-1], line(path="out/a", size=3) + b"ab", line(path="out/a", size=1) + b"a",
        line(path="out/../../a", size=0) + END, line(path="/etc/a", size=0) + END, line(path="in/a", size=0) + END,
        line(path="out//a", size=0) + END, line(path="out/./a", size=0) + END, line(path="out/a\0", size=0) + END,
        line(path="out/a", size=True) + END, line(path="out/a", size="0") + END, line(path=["out"], size=0) + END,
        line(path="out/a", size=-2) + line(path="out/a", size=0) + END, b'{"path": "out/' + b"a" * (1 << 17) + b'", "size": 0}\n' + END, b"\xff\n" + END,
        line(path="out/a", size=-2) + line(path="out/a/a", size=-1) + END, line(path="out", size=-2) + END,
    ],
)  # fmt: skip
def test_a_stream_that_is_not_whole_or_leads_elsewhere_is_refused(raw: bytes, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "out").mkdir(parents=True)
    (root / "in").mkdir()
    with pytest.raises((ValueError, FileNotFoundError)):
        apart.receive_files(root, ["out"], io.BytesIO(raw))
    assert {p.name for p in tmp_path.rglob("*")} <= {"root", "in", "out", "a"}
    assert not list((root / "in").iterdir())
