"""A view under Debian's fio: every block that it wrote comes back with its offset, length and CRC, however it is read.

The file is written by fio outside and sealed; each case reads a copy that nobody has read before. Where a block is
expected not to verify, a byte of the copy was altered before it was sealed: fio sees it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.conftest import Shell
from tests.servers.packages import apt_install

pytestmark = pytest.mark.e2e
EXPECTED = Path(__file__).parents[1] / "vectors/fio.json"
WORDS = ["--name=v", "--size=8m", "--verify=crc32c", "--thread", "--output-format=json"]
ALTERED = (5 << 20) + 1000
PROGRAM = """
import json, os, re, subprocess, sys
here, found = os.path.dirname(os.path.abspath(__file__)), {}
environment = {**os.environ, "LD_LIBRARY_PATH": here}
for number, (case, words) in enumerate(json.load(open(f"{here}/cases.json")).items()):
    command = [f"{here}/fio", f"--filename=/work/v/{number}", *words, *case.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    jobs = json.loads(done.stdout[done.stdout.index("{"):])["jobs"]
    refused = re.findall(r"verify failed .* offset [0-9]+|error=[RO].*", done.stderr + done.stdout)
    read = sum(job["read"]["io_bytes"] for job in jobs)
    found[case] = " ".join(refused) if done.returncode else f"{read} bytes read and verified"
print(json.dumps(found))
"""


def fio(folder: Path) -> Path:
    """Return a folder with fio and the libraries that an enclave does not have."""
    if shutil.which("fio") is None:
        if os.geteuid() != 0:
            pytest.skip("only root may install fio")
        apt_install("fio")
    program = str(shutil.which("fio"))
    folder.mkdir()
    shutil.copyfile(program, folder / "fio")
    (folder / "fio").chmod(0o755)
    for line in subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout.splitlines():
        name, _, path = line.split(" (")[0].strip().partition(" => ")
        if path and not name.startswith("libc.so"):
            shutil.copyfile(path, folder / name)
    return folder


@pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="this machine has no /dev/fuse")
def test_fio_finds_every_block_where_it_wrote_it(shell: Shell, plain: Path) -> None:
    programs = fio(shell.folder / "fio.files")
    expected = json.loads(EXPECTED.read_text())
    (plain / "v").mkdir()
    written = plain / "written"
    subprocess.run(
        [programs / "fio", *WORDS, f"--filename={written}", "--rw=write", "--bs=4k", "--do_verify=0"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    whole = written.read_bytes()
    altered = whole[:ALTERED] + bytes([whole[ALTERED] ^ 1]) + whole[ALTERED + 1 :]
    for number, outcome in enumerate(expected.values()):
        (plain / f"v/{number}").write_bytes(altered if outcome.startswith("verify failed") else whole)
    (programs / "cases.json").write_text(json.dumps(dict.fromkeys(expected, WORDS)))
    (programs / "program.py").write_text(PROGRAM)
    shell.run("key", "create", "files")
    shell.run("data", "seal", str(plain / "v"), "v", "--key", "files")
    files = [word for file in sorted(programs.iterdir()) for word in ("--file", str(file)) if file.suffix != ".py"]
    words = ("run", "--approve", "--unsafe-accept-simulated", *files, "--volume", "v=v")
    found = json.loads(shell.run(*words, "--", "python", str(programs / "program.py")).stdout)
    assert found == expected
