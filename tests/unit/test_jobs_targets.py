"""Where jobs run: what the process of a platform has of the command that started it."""

import os
import select
from pathlib import Path

from strongroom.jobs.targets.local import start_platform


def test_a_platform_holds_nothing_that_its_command_had_open(tmp_path: Path) -> None:
    """But for what is meant for it. Another thread waits for the end of a program's answer: jobs once hung so."""
    os.mkfifo(tmp_path / "bundle.json")  # the platform waits there
    read, write = os.pipe()
    life, meant = os.pipe()
    os.set_inheritable(meant, True)
    pid, outcome = start_platform(tmp_path, tmp_path / "seed", tmp_path / "cache", {}, None)
    os.close(write)
    os.close(meant)
    ended = select.select([read, life], [], [], 10)[0]
    (tmp_path / "bundle.json").write_text("[]")
    with os.fdopen(outcome, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    assert ended == [read]
    assert os.read(life, 1) == b""
    os.close(read)
    os.close(life)
    assert b"bundle.json is not a bundle of format 1" in said
