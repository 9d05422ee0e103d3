"""One test per threat inside a confidential VM, with namespaces of this machine in its place (T271 to T273)."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.test_guest_volumes import EMPTY, Session, volume

from strongroom.errors import UnavailableError
from strongroom.guest import staging
from strongroom.storage.dataset import DatasetInfo, write_info

HOST = """
import os, sys
from strongroom import _vm
from strongroom.guest import cvm
mount = _vm.mount
_vm.mount = lambda source, place, kind, flags, _: mount(source, place, "tmpfs", flags)  # there is no host to share 9p
cvm._SHARE = sys.argv[1]
cvm._open_host()
(cvm._HOST / "report.json").write_text("for the host")
assert (cvm._HOST / "report.json").read_text() == "for the host"
(cvm._HOST / "link").symlink_to("/etc/passwd")  # what the host puts there does not lead into the guest
for act in (lambda: (cvm._HOST / "link").read_text(), lambda: (cvm._HOST / "link").open("a")):
    try: act()
    except OSError as exc: assert exc.errno == 40, exc
    else: raise AssertionError("followed")
from strongroom.guest.document import LeftEvidence
class Hardware:
    class quote: quote = b"a quote"
    attest = lambda self, _: self.quote
left = LeftEvidence(Hardware(), cvm._HOST / "link")
left.attest(b"")
assert not left.left
left.place = cvm._HOST / "quote.bin"
left.attest(b"")
assert left.left and left.place.read_bytes() == b"a quote"
assert os.listdir(cvm._SHARE) == [] and not os.path.ismount(cvm._SHARE)
assert "tmpfs " + str(cvm._SHARE) not in open("/proc/self/mounts").read()
os.execv("/bin/sh", ["sh", "-c", "ls /proc/self/fd/%d/ 2>&1 || echo out of reach" % cvm._HOST_FD])
"""

LEFT_BEHIND = """
import json, os, socket, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
os.wait()
with socket.create_server(("127.0.0.1", 0)) as server:  # PySpark and its JVM meet there
    socket.create_connection(server.getsockname()).close()
said = {"number": os.getpid(), "networks": os.listdir("/proc/sys/net/ipv4/conf")}
said["seen"] = sum(name.isdigit() for name in os.listdir("/proc"))
body = b"report" + json.dumps(said).encode()
sock = socket.socket(fileno=10)
sock.sendall(len(body).to_bytes(4, "big") + body)
sock.recv(16)
"""

GUEST = """
import json, os, sys
from strongroom.guest import cvm
cvm._become = lambda _: None  # there is one user here
os.setgroups = os.chdir = lambda _: None
cvm._GUEST = sys.argv[1]
class Hardware: tee = "snp"
print(json.dumps(cvm._guest(Hardware(), 1000, network=False)), flush=True)
"""


def alone(script: str, argument: str) -> str:
    """Run a script as root of namespaces of its own; return what it and all that it left behind print."""
    words = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", script, argument]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_T271_a_program_looks_names_up_in_the_hosts_folder(tmp_path: Path) -> None:
    assert alone(HOST, str(tmp_path)).endswith("out of reach\n")


def test_T272_what_a_program_left_running_ends_with_the_guest() -> None:
    # Whoever is left holds standard output: this returns when nobody is.
    said = json.loads(alone(GUEST, LEFT_BEHIND))
    assert (said["number"], said["seen"]) == (1, 2)
    assert sorted(said["networks"]) == ["all", "default", "lo"]


class Growing(io.FileIO):
    """A file that somebody appends to as fast as it is read."""

    most = 0

    def read(self, size: int = -1, /) -> bytes:
        Growing.most = max(Growing.most, self.seek(size, 1))
        return bytes(size)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        Growing.most = max(Growing.most, self.tell() + len(buffer))
        buffer[:] = bytes(len(buffer))
        assert self.tell() < 1 << 26, "it would go on for ever"
        return self.seek(len(buffer), 1) and len(buffer)


def test_T273_a_file_grows_as_it_is_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_info(str(tmp_path / "v"), DatasetInfo(dataset=EMPTY.dataset, key="sales", owner="me"))
    staged, session = staging.StagedVolume(volume(tmp_path / "v"), tmp_path / "work"), Session()
    staged.open_all()
    (tmp_path / "work" / "a").write_bytes(b"x" * 100)
    monkeypatch.setattr(staging, "open_plain", lambda root, path: Growing(root / path))
    grew = r"output out/a grew while it was sealed: expected 100 bytes, got more"
    with staged.volume.changing(session), pytest.raises(UnavailableError, match=grew):  # type: ignore[arg-type]
        staged.seal_changes()
    assert Growing.most == 101, "what is sealed lies in the host's folder: none of it was not counted"
    assert not [p for p in (tmp_path / "v").iterdir() if p.name.startswith(staging.TEMPORARY)]
