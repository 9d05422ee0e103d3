"""What runs on a machine of a cluster, outside any enclave: measures what was deployed, and runs workers.

Started over SSH by `ssh.py`. It holds no key of an owner; the seed beside it is the simulated platform's (SIMULATED).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from strongroom.attest.simulated import platform
from strongroom.attest.simulated.measure import tree_digest

__all__ = ["main"]

_PARTING_S = 15.0


def main(root: str, verb: str, argument: str) -> None:
    """Do one thing and answer with a JSON object.

    `measure JSON`: the digest of each deployed tree; `run FOLDER`: the worker in a job's folder, to its end; `count`
    and `stop FOLDER`: the workers of the jobs in it.
    """
    if verb == "measure":
        trees = json.loads(argument)
        _answer({n: _digest(Path(p), Path(root) / "digests") for n, p in trees.items()})
    elif verb == "run":
        _run(Path(root), Path(argument))
    else:
        _answer({"workers": len(_workers(Path(argument), stop=verb == "stop"))})


def _answer(value: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(value))


def _digest(tree: Path, cache: Path) -> str:
    return tree_digest(tree, cache).hex() if tree.exists() else ""


def _workers(jobs: Path, *, stop: bool) -> list[int]:
    found = []
    for file in jobs.glob("*/pid"):
        pid = int(file.read_text() or 0)
        command = Path(f"/proc/{pid}/cmdline")
        # The number alone may be another's by now: the command names the job's folder, which is like no other.
        if pid and command.exists() and os.fsencode(file.parent) in command.read_bytes():
            found.append(pid)
            if stop:
                os.kill(pid, signal.SIGTERM)
    limit = time.monotonic() + _PARTING_S
    while stop and any(os.path.exists(f"/proc/{pid}") for pid in found) and time.monotonic() < limit:
        time.sleep(0.1)
    if stop and jobs.is_dir():
        for job in jobs.iterdir():
            shutil.rmtree(job, ignore_errors=True)
    return found


def _run(root: Path, job: Path) -> None:
    volumes = json.loads((job / "bundle.json").read_bytes())["volumes"]
    missing = [path for _, path, _ in volumes if not os.path.isdir(path)]
    if missing:
        error = {"code": "input", "message": f"{missing[0]} is not a folder on this machine"}
        _answer({"report": {"status": "failed", "error": error}})
        return
    (job / "pid").write_text(str(os.getpid()))
    read, write = os.pipe()
    out = os.dup(1)
    os.dup2(2, 1)  # what the program says is the log; the outcome alone is our answer
    child = os.fork()
    if child == 0:
        os.close(read)
        platform.run_and_exit(job, root / "seed", root / "digests", write, {})
    os.close(write)
    threading.Thread(target=_end_with_caller, args=(child,), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda number, _frame: os.kill(child, number))
    with os.fdopen(read, "rb") as outcome, os.fdopen(out, "wb") as answer:
        answer.write(outcome.read())
    os.waitpid(child, 0)
    (job / "pid").unlink()


def _end_with_caller(child: int) -> None:
    # The caller's end of our input closes when it is done, dies or is cut off.
    while os.read(0, 1024):
        pass
    os.kill(child, signal.SIGTERM)
