"""Target `cluster`: what its crew makes of workers and machines, without enclaves."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from strongroom.errors import UnavailableError
from strongroom.jobs.plan import Bundle, Outcome
from strongroom.jobs.targets.cluster import _Crew
from strongroom.jobs.targets.ssh import Deployment, SshHost

BUNDLE = Bundle(folder=Path("none"), job="", simulated=True, measure=str)


class Host:
    driver_host = "127.0.0.1"

    def __init__(self, name: str, *, fails: bool) -> None:
        self.name, self._fails, self._over = name, fails, threading.Event()

    def start(self, _bundle: Bundle, _driver: str, _number: int) -> Host:
        if self._fails:
            raise UnavailableError("no route to it")
        return self

    def wait(self) -> Outcome:
        self._over.wait()
        return Outcome(status="completed", exit_code=0)

    def stop(self) -> None:
        self._over.set()


def test_a_worker_that_fails_before_the_next_is_started_is_not_the_last() -> None:
    said: list[str] = []
    crew = _Crew(2, said.append)
    crew.start(Host("a", fails=True), BUNDLE, "", 1)
    crew._threads[0].join()
    crew.start(Host("b", fails=False), BUNDLE, "", 2)
    assert said == ["worker 1 on a is gone: no route to it; 1 left"]
    assert not crew.reason
    crew.stop()
    assert len(said) == 1


@pytest.mark.parametrize("answer", ["[]", "{}", "no JSON", '{"python": "3"}', "\\xff\\xfe"])
def test_a_machine_that_answers_something_else_is_unavailable(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "ssh"
    raw = answer.encode("latin-1").decode("unicode_escape").encode("latin-1")
    (tmp_path / "said").write_bytes(raw)
    ssh.write_text(f"#!/bin/sh\ncat {tmp_path}/said\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    here = Path(sys.executable)
    deployment = Deployment(places={}, node=(here, "ab"), seed=here, service=here, owner="x")
    host = SshHost(name="liar", root="/srv/x", config="", python="python3", deployment=deployment)
    assert subprocess.run(["ssh"], capture_output=True, check=True).stdout == raw
    with pytest.raises(UnavailableError, match="liar says something else than was asked"):
        host.facts()
    host._facts = {"mark": "x"}
    with pytest.raises(UnavailableError, match="liar says something else than was asked"):
        host.running()
