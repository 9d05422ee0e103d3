"""Sockets of the guest whose other end is a program: who fills up its descriptors ends nothing for others. T407."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from strongroom._unix import serve_connections
from strongroom.errors import UnavailableError
from strongroom.guest import cvm
from strongroom.guest.agent import KeyAgent
from strongroom.guest.column_keys import ColumnKeys
from strongroom.guest.relay import start_relay

ANSWER = (4).to_bytes(4, "big") + b"said"


@pytest.fixture
def full() -> Iterator[Callable[[], None]]:
    """Take all descriptors of this process until the test calls it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)

    def free() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    yield free
    free()


def relay(path: Path) -> None:
    """Start a worker's agent; the driver's answers what it is asked."""

    held = []

    def connect() -> socket.socket:
        try:
            near, far = socket.socketpair()
        except OSError as exc:
            raise UnavailableError("the driver is not reached") from exc
        far.sendall(ANSWER)
        held.append(far)
        return near

    start_relay(str(path), connect)


def passed_on(path: Path) -> None:
    """Start what a confidential VM's process one does for the guest's connections; the other end says something."""
    listener = socket.create_server(("127.0.0.1", 0))
    serve_connections(listener, lambda sock: sock.sendall(ANSWER), "service")
    cvm._pass_on(f"https://127.0.0.1:{listener.getsockname()[1]}", str(path), os.getuid())


def agent(path: Path) -> None:
    """Start the guest's own, which answers a request that is none by an error."""
    KeyAgent({}, bytes(16), keys=ColumnKeys({})).start(str(path))


LEAKS = """
import threading
from strongroom.log import say_kinds_only
say_kinds_only()
class Leaving:
    def __del__(self): raise KeyError("secret marker")
def fail():
    Leaving()
    raise ValueError("secret marker")
thread = threading.Thread(target=fail, name="agent"); thread.start(); thread.join()
"""


def test_a_thread_that_fails_says_no_more_than_how() -> None:
    # The host reads it, and the text of an error that nobody foresaw could hold data.
    done = subprocess.run([sys.executable, "-c", LEAKS], capture_output=True, text=True, check=True)
    assert "secret marker" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "thread=agent error=ValueError" in done.stderr
    assert "error=KeyError" in done.stderr


@pytest.mark.parametrize("start", [relay, passed_on, agent])
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_T407_a_connection_that_is_not_accepted_ends_no_other(
    tmp_path: Path, request: pytest.FixtureRequest, start: Callable[[Path], None]
) -> None:
    path = tmp_path / "agent.sock"
    start(path)
    clients = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
    free = request.getfixturevalue("full")
    for client in clients[:2]:  # who comes now may be refused
        client.connect(str(path))
    time.sleep(0.3)
    free()
    clients[2].connect(str(path))
    clients[2].settimeout(5)
    clients[2].sendall((1).to_bytes(4, "big") + b"?")
    assert clients[2].recv(8).startswith(b"\0\0\0")
    for client in clients:
        client.close()


def test_T407_a_connection_without_a_thread_is_closed_and_the_next_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, start, left = tmp_path / "agent.sock", threading.Thread.start, [1]
    agent(path)

    def limited(thread: threading.Thread) -> None:
        if left:
            left.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    for answer in (b"", b"\0\0\0"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))
            client.settimeout(5)
            assert _asked(client) == answer


def _asked(client: socket.socket) -> bytes:
    try:
        client.sendall((1).to_bytes(4, "big") + b"?")
        return client.recv(3)
    except ConnectionError:
        return b""
