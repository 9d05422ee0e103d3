"""The guides, run as written: every `console` block of a page, in one empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.conftest import Shell, stop_service

from strongroom.client.workspace import Workspace

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


@dataclass
class Step:
    command: str
    exit_status: int = 0
    output: list[str] = field(default_factory=list)


def steps(page: str) -> list[Step]:
    found: list[Step] = []
    for block in re.findall(r"```console\n(.*?)```", page, flags=re.S):
        lines = iter(block.splitlines())
        for line in lines:
            if not line.startswith("$ "):
                found[-1].output.append(line)
                continue
            command, _, note = line[2:].partition("   # ")
            heredoc = re.search(r"<<'(\w+)'", command)
            while heredoc and command.rsplit("\n", 1)[-1] != heredoc[1]:
                command += "\n" + next(lines)
            found.append(Step(command, 1 if note.strip() == "exit 1" else 0))
    return found


PAGES = ["cluster", "deep-learning", "getting-started", "multi-party", "python"]


def test_every_guide_is_run() -> None:
    elsewhere = {"spark", "hardware", "confidential-vm"}  # test_spark_guide.py; hardware that no machine of ours has
    assert {page.stem for page in GUIDES.glob("*.md")} == {*PAGES, *elsewhere}


@pytest.mark.e2e
@pytest.mark.parametrize("page", PAGES)
def test_guide_runs_as_written(page: str, tmp_path: Path) -> None:
    todo = steps((GUIDES / f"{page}.md").read_text())
    assert len(todo) >= 5
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    try:
        for step in todo:
            done = subprocess.run(
                ["bash", "-c", step.command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            said = f"$ {step.command}\n{done.stdout}{done.stderr}"
            assert done.returncode == step.exit_status, said
            for line in step.output:
                assert line in done.stdout.splitlines(), said
    finally:
        for service in tmp_path.glob("**/.strongroom/service"):
            stop_service(Workspace.find(service.parent))


def demo(folder: Path) -> str:
    strongroom = str(Path(sys.executable).parent / "strongroom")
    words = [strongroom, "demo", "--scale", "0.01", "--folder", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.e2e
def test_demo_tells_its_story_in_forty_lines(tmp_path: Path) -> None:
    told = demo(tmp_path / "demo").splitlines()
    assert len(told) <= 40
    assert any("REFUSED, no key was released" in line for line in told)
    assert any("SIMULATED" in line for line in told)


@pytest.mark.example  # `.ci/run` runs the demo, and the guides, which say the same at length
def test_readme_runs_as_written(tmp_path: Path) -> None:
    demo(tmp_path / "demo")
    readme = (GUIDES.parents[1] / "README.md").read_text()
    first, decide, after = re.findall(r"```\n(.*?)```", readme.split("## Use it")[1], flags=re.S)
    begin, submit, rest = first.partition("strongroom spark-submit")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    script = f"set -ex\n{begin}if {submit}{rest}then false; fi\n{decide}{submit}{rest}{after}cat opened/report/part-*"
    try:
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    finally:
        stop_service(Workspace.find(tmp_path / "try"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1-URGENT" in done.stdout


@pytest.mark.e2e
def test_sealed_file_opens_with_cobblestone_alone(shell: Shell) -> None:
    # The ten lines of sealed-file.md, run as written: no Strongroom in them, an exported key and the documented header.
    page = (GUIDES.parent / "formats" / "sealed-file.md").read_text()
    program = re.findall(r"```python\n(.*?)```", page, flags=re.S)[0]
    assert "strongroom" not in program
    (shell.folder / "plain").mkdir()
    text = "order,amount\n" + "".join(f"{n},{n * 7}\n" for n in range(5000))
    (shell.folder / "plain" / "orders.csv").write_text(text)
    shell.run("key", "create", "sales", "--exportable")
    shell.run("data", "seal", "plain", "sealed", "--key", "sales")
    (shell.folder / "sales-1.hex").write_text(shell.run("key", "export", "sales").stdout)
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=shell.folder, capture_output=True, text=True, check=True)
    assert done.stdout == text + "\n"


def test_reference_pages_are_up_to_date() -> None:
    script = Path(__file__).parents[2] / "scripts" / "reference.py"
    words = [sys.executable, str(script), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}, check=False)
    assert done.returncode == 0, done.stdout
