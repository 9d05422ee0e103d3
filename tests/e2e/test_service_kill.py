"""The service's worker is killed again and again under load: what was acknowledged is there afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import Shell

from strongroom.client.owner import OwnerClient
from strongroom.errors import StrongroomError, UnavailableError
from strongroom.storage.dataset import Head

pytestmark = pytest.mark.e2e
KILLS = 20
CLIENTS = 3


def worker_of(pid: int) -> int | None:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found[0]) if found else None


class _Load(threading.Thread):
    """One client that makes, rotates, restricts, commits and releases, and remembers what was acknowledged."""

    def __init__(self, shell: Shell, number: int, stop: threading.Event) -> None:
        super().__init__()
        self._client = OwnerClient(shell.workspace)
        self._client.seen.path = shell.workspace.folder / f"seen-{number}.json"
        self._number, self._ended = number, stop
        self.versions: dict[str, int] = {}
        self.revisions: dict[str, int] = {}
        self.heads: dict[str, Head] = {}
        self.releases = 0
        self.unsure = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        turn = 0
        try:
            while not self._ended.is_set():
                try:
                    self._turn(turn)
                except UnavailableError:  # it may or may not have been done
                    self.unsure += 1
                    time.sleep(0.02)
                turn += 1
        except BaseException as exc:  # reported by the test
            self.failure = exc
        finally:
            self._client.close()

    def _turn(self, turn: int) -> None:
        client, name = self._client, f"k{self._number}-{turn}"
        client.call("POST", "/v1/keys", {"name": name})
        self.versions[name] = 1
        found = client.call("POST", f"/v1/keys/{name}/rotate")
        self.versions[name] = len(found["versions"])  # type: ignore[arg-type]
        policy = {"policy": {"read": None, "write": None}, "revision": 0}
        client.call("PUT", f"/v1/keys/{name}/policy", policy)
        self.revisions[name] = 1
        head = client.create_dataset(name)
        self.heads[head.dataset] = head
        for epoch in range(2):
            head = client.commit(head, f"sha256:{turn * 2 + epoch:064x}", [1, 2])
            self.heads[head.dataset] = head
        client.key_ring(name)
        self.releases += 1


def test_acknowledged_operations_survive_kill_9(shell: Shell) -> None:
    shell.run("key", "list")
    supervisor = shell.workspace.pid()
    assert supervisor is not None
    chance, ended = random.Random(20261123), threading.Event()
    loads = [_Load(shell, number, ended) for number in range(CLIENTS)]
    for load in loads:
        load.start()
    killed: list[int] = []
    watcher = OwnerClient(shell.workspace)
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.0, 0.6))
        worker = worker_of(supervisor)
        if worker is None or worker in killed:
            for _ in range(600):
                worker = worker_of(supervisor)
                if worker is not None and worker not in killed:
                    break
                time.sleep(0.01)
        assert worker is not None
        _serving(watcher)
        time.sleep(chance.uniform(0.0, 0.2))
        os.kill(worker, signal.SIGKILL)
        killed.append(worker)
    _serving(watcher)
    _until(lambda: all(load.releases > 3 for load in loads), "every client did something")
    ended.set()
    for load in loads:
        load.join(60)
    assert [load.failure for load in loads] == [None] * CLIENTS
    assert shell.workspace.pid() == supervisor, "the supervisor went on"
    _check(shell, loads)
    # The supervisor too: its worker goes with it, and the next call starts both again.
    worker = worker_of(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    wait_gone(worker)
    assert "k0-0" in shell.run("key", "list").stdout
    with contextlib.suppress(ChildProcessError):
        os.waitpid(supervisor, os.WNOHANG)
    assert shell.workspace.pid() not in (None, supervisor)
    _check(shell, loads)


def _serving(client: OwnerClient) -> None:
    limit = time.monotonic() + 15
    while True:
        try:
            client.call("GET", "/v1/status")
            return
        except UnavailableError:
            assert time.monotonic() < limit, "the service did not come back"
            time.sleep(0.02)


def _until(holds: Callable[[], bool], what: str) -> None:
    """Twenty kills come faster than a slow machine turns: the load goes on until each client had its share."""
    limit = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < limit, f"waited two minutes, but never: {what}"
        time.sleep(0.05)


def wait_gone(pid: int | None) -> None:
    for _ in range(500):
        if pid is None or not Path(f"/proc/{pid}").exists():
            return
        if " Z" in Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.01)
    raise AssertionError("the worker outlived its supervisor")


def _check(shell: Shell, loads: list[_Load]) -> None:
    client = OwnerClient(shell.workspace)
    keys = {str(k["name"]): k for k in client.call("GET", "/v1/keys")["keys"]}  # type: ignore[union-attr]
    records = client.audit_records()
    client.verified_audit()
    released = sum('"action":"release-to-owner"' in str(r["record"]) for r in records)
    assert released >= sum(load.releases for load in loads)
    for load in loads:
        seen = load._client.seen.head
        assert seen is not None
        assert records[seen.seq - 1]["chain"] == seen.chain, "the log is the one that this client saw"
        for name, count in load.versions.items():
            assert len(keys[name]["versions"]) >= count
        for name, revision in load.revisions.items():
            assert client.call("GET", f"/v1/keys/{name}/policy")["revision"] == revision
        for dataset, head in load.heads.items():
            found = client.current(dataset)
            assert found.epoch >= head.epoch
            if found.epoch == head.epoch:
                assert found == head
    name = next(iter(loads[0].versions))
    assert client.key_ring(name) is not None
    with pytest.raises(StrongroomError):
        client.call("POST", "/v1/keys", {"name": name})
    client.close()
