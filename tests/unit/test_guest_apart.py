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
        apart.receive_files(back, ["out"], io.BytesIO(raw))
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


def test_links_and_pipes_do_not_pass(tmp_path: Path) -> None:
    for left in ("os.symlink('/etc/passwd', 'out/x')", "os.mkfifo('out/x')", "os.symlink('/etc', 'out/x')"):
        with pytest.raises(ValueError, match="out/x is neither a file nor a folder"):
            ran(tmp_path / str(len(left)), ["-c", f"import os; {left}"])
    long = line(path="out/" + "\u00e9" * 9000, size=-2) + END  # what is refused is told to the host
    with pytest.raises(ValueError, match=r"^out/(\\xe9){24} is neither a file nor a folder$"):
        apart.receive_files(tmp_path, ["out"], io.BytesIO(long))


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
        line(path="out/a", size=-2) + END, b'{"path": "out/' + b"a" * (1 << 17) + b'", "size": 0}\n' + END, b"\xff\n" + END,
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
