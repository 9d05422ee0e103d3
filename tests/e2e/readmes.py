"""The commands of the examples' READMEs, run as they are written."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.conftest import Shell
from tests.servers.packages import apt_install

EXAMPLES = Path(__file__).parents[2] / "examples"


def blocks(page: str) -> list[str]:
    """Return the commands in the unnamed blocks of a page: continued lines as one, without comments."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    text = "".join(body for name, body in fences if not name)
    lines = re.sub(r"(?:\\|(?<=\|))\n\s*", " ", text).splitlines()
    return [words for line in lines if (words := re.sub(r"\s+", " ", re.sub(r"(^|\s+)# .*", "", line)).strip())]


def commands(example: str) -> list[str]:
    """Return the commands of an example's README in their order."""
    return blocks((EXAMPLES / example / "README.md").read_text())


def run(shell: Shell, todo: Iterable[str], *, spark: Sequence[str] = ()) -> Callable[[str], str]:
    """Run commands in the workspace's folder, as a person does who has the examples there.

    Returns a function that says what the one command printed that begins with its argument. What `make e2e` has
    installed is not installed again; `spark` are more flags for spark-submit, for results that a plain run has too.
    """
    if not (shell.folder / "examples").exists():
        (shell.folder / "examples").symlink_to(EXAMPLES)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **shell.environment}
    said, before = {}, ""
    for command in todo:
        if command.startswith("pip install "):
            continue
        if re.match(r"[A-Z]+=", command):
            before += f"{command}\n"
            continue
        for tool in ("npm", "unzip"):
            if command.startswith(f"{tool} ") and shutil.which(tool) is None:
                apt_install(tool)
        line = command.replace("strongroom spark-submit", shlex.join(["strongroom", "spark-submit", *spark]))
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", before + line], cwd=shell.folder, env=environment, capture_output=True,
            text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"$ {command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        said[command] = done.stdout

    def find(start: str) -> str:
        (found,) = [text for command, text in said.items() if command.startswith(start)]
        return found

    return find
