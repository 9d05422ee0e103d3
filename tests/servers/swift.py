"""A real S3 server for tests: OpenStack Swift with its S3 interface, from Debian; one disk, one replica, plain HTTP."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.servers.packages import apt_install

_PACKAGES = ("swift-proxy", "swift-account", "swift-container", "swift-object", "memcached")
_PIPELINE = (
    "catch_errors gatekeeper healthcheck proxy-logging cache listing_formats s3api tempauth copy bulk slo dlo "
    "proxy-server"
)
_FILTERS = "catch_errors gatekeeper healthcheck proxy-logging listing_formats copy bulk slo dlo"
START_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Swift:
    """A running server.

    Attributes:
        endpoint: `http://127.0.0.1:PORT`.
        key: Access key.
        secret: Secret key.
        objects: The folder in which it keeps what was put.
    """

    endpoint: str
    key: str
    secret: str
    objects: Path


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _backend(folder: Path, kind: str, port: int) -> None:
    (folder / f"{kind}.conf").write_text(
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 1\nuser = root\nswift_dir = {folder}\n"
        f"devices = {folder}/devices\nmount_check = false\nlog_address = {folder}/none\n"
        f"[pipeline:main]\npipeline = {kind}-server\n"
        f"[app:{kind}-server]\nuse = egg:swift#{kind}\n"
    )
    builder = str(folder / f"{kind}.builder")
    for words in (["create", "4", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/disk", "1"], ["rebalance"]):
        subprocess.run(["swift-ring-builder", builder, *words], check=True, capture_output=True, timeout=60)


def _proxy(folder: Path, port: int, cache_port: int) -> None:
    text = (
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 1\nuser = root\nswift_dir = {folder}\n"
        f"log_address = {folder}/none\n"
        f"[pipeline:main]\npipeline = {_PIPELINE}\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n"
        f"[filter:cache]\nuse = egg:swift#memcache\nmemcache_servers = 127.0.0.1:{cache_port}\n"
        "[filter:tempauth]\nuse = egg:swift#tempauth\nuser_test_tester = testing .admin\n"
        "[filter:s3api]\nuse = egg:swift#s3api\ns3_acl = false\n"
    )
    text += "".join(f"[filter:{name}]\nuse = egg:swift#{name.replace('-', '_')}\n" for name in _FILTERS.split())
    (folder / "proxy.conf").write_text(text)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        said = log.read_text(errors="replace")[-3000:]
        assert process.poll() is None, f"{log.stem} ended with {process.returncode}\n{said}"
        assert time.monotonic() < deadline, f"{log.stem} did not start within {START_S:.0f} s\n{said}"
        time.sleep(0.1)


@contextlib.contextmanager
def running_swift(folder: Path) -> Iterator[Swift]:
    """Start Swift with its disk in `folder`; it ends with the block."""
    if not shutil.which("swift-proxy-server") or not shutil.which("memcached"):
        os.environ["RUNLEVEL"] = "1"  # Debian would start what it installs
        try:
            apt_install(*_PACKAGES)
        finally:
            del os.environ["RUNLEVEL"]
    (folder / "devices/disk").mkdir(parents=True)
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_prefix = test\nswift_hash_path_suffix = test\n"
        "[storage-policy:0]\nname = only\ndefault = yes\n"
    )
    ports = {kind: _free_port() for kind in ("account", "container", "object", "proxy", "memcached")}
    for kind in ("account", "container", "object"):
        _backend(folder, kind, ports[kind])
    _proxy(folder, ports["proxy"], ports["memcached"])
    with contextlib.ExitStack() as held:
        for kind, port in reversed(ports.items()):
            command = [f"swift-{kind}-server", str(folder / f"{kind}.conf")]
            if kind == "memcached":
                command = ["memcached", "-u", "root", "-l", "127.0.0.1", "-p", str(port)]
            log = folder / f"{kind}.log"
            with open(log, "wb") as out:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
                )
            held.callback(process.wait)
            held.callback(process.terminate)
            _wait(port, process, log)
        endpoint = f"http://127.0.0.1:{ports['proxy']}"
        yield Swift(endpoint=endpoint, key="test:tester", secret="testing", objects=folder / "devices")
