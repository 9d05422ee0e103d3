"""Hosts with sshd, each in a network namespace of its own, joined by a bridge to this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers.packages import apt_install

__all__ = ["SshHosts", "ssh_hosts"]

NETWORK = "10.98.0"
BRIDGE = "strongroom0"
HERE = f"{NETWORK}.254"


@dataclass(frozen=True)
class SshHosts:
    """Running hosts.

    Attributes:
        names: Their addresses.
        config: SSH configuration by which they are reached.
        folder: Keys, configuration and logs.
    """

    names: tuple[str, ...]
    config: Path
    folder: Path

    @property
    def file(self) -> Path:
        """A hosts file with all of them."""
        path = self.folder / "hosts.txt"
        path.write_text("".join(f"{name}\n" for name in self.names))
        return path

    def run(self, host: str, command: str) -> str:
        """Run a command over SSH and return what it printed."""
        return subprocess.run(
            ["ssh", "-F", str(self.config), host, command], capture_output=True, text=True, check=True, timeout=60
        ).stdout

    @staticmethod
    def inside(host: str, *command: str) -> list[str]:
        """Return the command that runs `command` in the host's network."""
        return ["ip", "netns", "exec", f"strongroom{host.rpartition('.')[2]}", *command]


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True)


def _installed() -> None:
    if not Path("/usr/sbin/sshd").exists() or not shutil.which("ip"):
        apt_install("openssh-server", "openssh-client", "iproute2")


@contextlib.contextmanager
def ssh_hosts(folder: Path, count: int = 3) -> Iterator[SshHosts]:
    """Start `count` hosts; they are gone at the end."""
    _installed()
    folder.mkdir()
    Path("/run/sshd").mkdir(exist_ok=True)
    _remove(count)
    daemons: list[subprocess.Popen[bytes]] = []
    for name in ("client", "host"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    names = tuple(f"{NETWORK}.{number}" for number in range(1, count + 1))
    try:
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{HERE}/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        for number, address in enumerate(names, start=1):
            space, link = f"strongroom{number}", f"sr-v{number}"
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "link", "set", link, "master", BRIDGE, "up")
            _run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            _run("ip", "-n", space, "link", "set", "lo", "up")
            daemons.append(_sshd(folder, space, address))
        config = folder / "ssh.conf"
        known = "".join(f"{address} {(folder / 'host.pub').read_text()}" for address in names)
        (folder / "known_hosts").write_text(known)
        config.write_text(
            f"Host *\n  User root\n  IdentityFile {folder}/client\n  UserKnownHostsFile {folder}/known_hosts\n"
        )
        found = SshHosts(names=names, config=config, folder=folder)
        for name in names:
            _until_up(found, name)
        yield found
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait()
        _remove(count)


def _sshd(folder: Path, space: str, address: str) -> subprocess.Popen[bytes]:
    config = folder / f"{space}.conf"
    config.write_text(
        f"ListenAddress {address}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/client.pub\nStrictModes no\n"
        f"PidFile none\nUsePAM no\nPasswordAuthentication no\nMaxStartups 100\n"
    )
    command = ["ip", "netns", "exec", space, "/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
    with open(folder / f"{space}.log", "wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(os.environ))


def _until_up(hosts: SshHosts, name: str) -> None:
    limit = time.monotonic() + 20
    while True:
        try:
            hosts.run(name, "true")
            return
        except subprocess.CalledProcessError:
            assert time.monotonic() < limit, f"{name} does not answer"
            time.sleep(0.2)


def _remove(count: int) -> None:
    for number in range(1, count + 1):
        _run("ip", "netns", "del", f"strongroom{number}", check=False)
        _run("ip", "link", "del", f"sr-v{number}", check=False)
    _run("ip", "link", "del", BRIDGE, check=False)
