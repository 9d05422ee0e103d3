"""Enclave kind `cvm`: a bundle for a confidential VM, SEV-SNP or TDX, launched by QEMU with a kernel of its own.

All that runs lies in one first file system (`initrd.cpio`): guest, Python, packages, the job's files and its init data;
or the trust service with what it needs, and nothing of whoever owns it (`build_service`).
It never touches a disk, and the launch digest covers it, as the firmware checks the hashes of kernel, first file system
and command line that QEMU puts into the measured memory (SNP), or measures them into RTMR1 and RTMR2 (TDX). The digest
of the init data goes into HOSTDATA (SNP) or MRCONFIGID (TDX) too, where a policy of the job finds it.

Equal inputs give equal bytes: names are sorted, times are zero, byte code is left out. What is not covered is said in
`reference.json`, and by the claims of such a VM.
"""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import IO

from strongroom.attest.binding import config_id, expected_register, init_data_digest
from strongroom.attest.launch_digest import launch_digest
from strongroom.errors import InputError
from strongroom.jobs.differences import keep_build
from strongroom.jobs.enclaves.libos import (
    SERVICE_PATHS,
    HardwareEnclave,
    link_volumes,
    select_service,
    walk_files,
    write_launch,
)
from strongroom.jobs.plan import Bundle, LaunchPlan
from strongroom.jobs.runtimes import Runtimes
from strongroom.jobs.spec import Cvm, Volume

__all__ = ["ConfidentialVM", "build_service", "write_cpio"]

COMMAND_LINE = "console=ttyS0 quiet panic=-1"
_INIT = (
    "#!/opt/python/bin/python3 -ISB\n"
    "import sys\nsys.path.insert(0, '/strongroom/guest')\nfrom strongroom.guest.cvm import main\nmain()\n"
)
_SERVICE_INIT = (
    f"#!/opt/python/bin/python3 -ISB\nimport sys\nsys.path += {SERVICE_PATHS}\n"
    "from strongroom.service.vm import main\nmain()\n"
)
_FOLDERS = ("dev", "proc", "sys", "run", "tmp")
_GUEST_FOLDERS = ("work", "app", "sealed", "trust/service", "strongroom/host")
_SERVICE_FOLDERS = ("launch", "service")
_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"}
_MODULES = ("virtio_pci", "virtio_net", "9pnet_virtio", "9p", "fuse", "configfs", "sev-guest", "tdx-guest")
MEASURED = {
    "snp": "launch digest: firmware, first processor state, and through hashes in it kernel, initrd and command line",
    "tdx": "MRTD: firmware; RTMR0: its configuration; RTMR1: kernel; RTMR2: command line and initrd",
}
_GUEST_HOSTS = (
    "launch/ and sealed/: the host's word; the guest knows the service by its key and opens nothing that is not sealed"
)
_SERVICE_HOSTS = "launch/ and service/: the host's word; evidence names the owner, and the state proves itself"
NOT_MEASURED = (
    "devices: the host can withhold, delay and repeat what they carry",
    "SNP: the host's ACPI tables, which the kernel runs as programs (TDX: RTMR0); use a kernel that confines them",
    "SNP without kernel-hashes=on measures the firmware alone: another launch digest, which a policy refuses",
)


class ConfidentialVM(HardwareEnclave):
    """Builds bundles for confidential VMs."""

    def build(self, plan: LaunchPlan, folder: Path) -> Bundle:
        """Write the bundle of `plan` below `folder`.

        Raises:
            InputError: A job on several machines, no kernel, or a file that is not there.
        """
        spec, machine = plan.spec, plan.spec.cvm
        if plan.command.worker is not None:
            raise InputError("enclave kind cvm: a job on several machines is not available there yet")
        _check_kernel(machine)
        target = folder / f"cvm-{plan.job.removeprefix('sha256:')[:16]}"
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        places = self.runtimes.places(plan.command.runtimes, spec.venv)
        places |= {f"/strongroom/code/{path.name}": path for path in spec.code}
        texts = {"init": (_INIT, 0o755), "strongroom/job/init-data.toml": (plan.init_data, 0o644)}
        files = _write_initrd(target / "initrd.cpio", places, texts, _GUEST_FOLDERS, machine)
        (target / "init-data.toml").write_text(plan.init_data)
        (target / "job.json").write_text(json.dumps(dict(plan.document), indent=1, ensure_ascii=False))
        write_launch(target, "https://10.0.2.2:8701", self.identity_pem, spec)  # QEMU's own network calls the host so
        link_volumes(target, spec)
        digest = init_data_digest(plan.init_data)
        shares = [_share("launch", "host"), *map(_volume_share, count(), sorted(spec.volumes, key=lambda v: v.name))]
        unset = {"mrconfigid": bytes(48).hex(), "rtmr3": expected_register(digest).hex()}
        scripts = _scripts(machine, digest, shares, "user", "job build")
        more = {"tdx_without_mrconfigid": unset}
        return _finish(target, machine, files, plan.job, digest, scripts, _GUEST_HOSTS, more)


def build_service(runtimes: Runtimes, target: Path, machine: Cvm) -> Bundle:
    """Write the bundle of the trust service to the folder `target`: equal for equal packages, for any owner.

    It listens on ports 8700 and 8701, which the launch scripts open on the host too, keeps its state in `service/`, and
    makes itself, at its first start, for the owner whose request is `launch/admin.pem`.

    Raises:
        InputError: No kernel, or a file that is not there.
    """
    _check_kernel(machine)
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in _SERVICE_FOLDERS:
        (target / name).mkdir(exist_ok=True, mode=0o700)
    places, texts = select_service(runtimes, libc=True), {"init": (_SERVICE_INIT, 0o755)}
    files = _write_initrd(target / "initrd.cpio", places, texts, _SERVICE_FOLDERS, machine)
    (target / "job.json").write_text("{}")  # for `job diff`
    shares = [_share("launch", "launch", read_only=True), _share("service", "service")]
    network = "user," + ",".join(f"hostfwd=tcp::{port}-:{port}" for port in (8700, 8701))
    scripts = _scripts(machine, bytes(32), shares, network, "service build")
    return _finish(target, machine, files, "", bytes(32), scripts, _SERVICE_HOSTS, {})


def _check_kernel(machine: Cvm) -> None:
    if not machine.kernel:
        raise InputError("enclave kind cvm: no kernel is named", hint='kernel = "/boot/vmlinuz-..." or --kernel')


def _finish(
    target: Path,
    machine: Cvm,
    files: Mapping[str, str],
    job: str,
    digest: bytes,
    scripts: Mapping[str, str],
    hosts: str,
    more: Mapping[str, object],
) -> Bundle:
    # What lies beside the first file system, which is there. `digest`: of the init data, zeros without.
    kernel, initrd = _file_digest(Path(machine.kernel)), _file_digest(target / "initrd.cpio")
    firmware = _file_digest(Path(machine.firmware)) if machine.firmware else None
    snp, remaining = _launch_digest(machine, kernel, initrd)
    for tee, script in scripts.items():
        (target / f"launch-{tee}.sh").write_text(script)
        (target / f"launch-{tee}.sh").chmod(0o755)
    named: dict[str, object] = {
        "kernel": kernel,
        "initrd": initrd,
        "firmware": firmware,
        "command_line": COMMAND_LINE,
        "snp": {"snp_measurement": snp or None, "host_data": config_id(digest, 32).hex(), "vmpl": 0},
        "tdx": {"mrconfigid": config_id(digest, 48).hex(), "rtmr3": bytes(48).hex()},
        **more,
    }
    reference = {"kind": "cvm", "job": job, **named, "measured": MEASURED, "not_measured": (hosts, *NOT_MEASURED)}
    (target / "reference.json").write_text(json.dumps(reference, indent=1))
    shape = {"vcpus": machine.vcpus, "vcpu_type": machine.vcpu_type, "memory_mb": machine.memory_mb}
    measured = {"measurement": snp or None, **named, "machine": shape, "files": files}
    keep_build(target / "measured.json", json.dumps(measured, indent=1, sort_keys=True))

    def measure() -> str:
        if not snp:
            raise InputError(
                "the launch digest is not known: " + remaining[0].removeprefix("SEV-SNP: no launch digest: "),
                hint="TDX: launch it on a machine that you trust, and repeat with --tdx REGISTER=HEX for each",
            )
        return snp

    return Bundle(folder=target, job=job, simulated=False, measure=measure, remaining=remaining)


def write_cpio(out: IO[bytes], entries: Iterator[tuple[str, int, bytes | Path, int]]) -> dict[str, str]:
    """Write an initramfs (cpio, "newc") of `entries`: name, mode, content, device; owners are root, times are zero.

    Returns:
        Name -> mode (octal) and SHA-256 of what was written.

    Raises:
        InputError: A name or file that the format cannot carry.
    """
    found: dict[str, str] = {}
    for number, (name, mode, content, device) in enumerate((*entries, ("TRAILER!!!", 0, b"", 0)), 1):
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if size > 0xFFFFFFFF or "\0" in name:
            raise InputError(f"{name} does not go into an initramfs: {size} bytes")
        raw = os.fsencode(name) + b"\0"
        fields = (number, mode, 0, 0, 1, 0, size, 0, 0, os.major(device), os.minor(device), len(raw), 0)
        head = b"070701" + "".join(f"{value:08x}" for value in fields).encode() + raw
        out.write(head + bytes(-len(head) % 4))
        digest = hashlib.sha256(b"" if isinstance(content, Path) else content)
        if isinstance(content, Path):
            with content.open("rb") as file:
                written = 0
                while part := file.read(1 << 20):
                    digest.update(part)
                    written += out.write(part)
            if written != size:
                raise InputError(f"{content} changed while it was read")
        else:
            out.write(content)
        out.write(bytes(-size % 4))
        found[name] = f"{mode:o} {digest.hexdigest()}"
    return found


def _write_initrd(
    path: Path,
    places: Mapping[str, Path],
    texts: Mapping[str, tuple[str, int]],
    folders: tuple[str, ...],
    machine: Cvm,
) -> dict[str, str]:
    found: dict[str, tuple[int, bytes | Path, int]] = {"dev/console": (stat.S_IFCHR | 0o600, b"", os.makedev(5, 1))}
    for name in (*_FOLDERS, *folders):
        found[name] = (stat.S_IFDIR | 0o755, b"", 0)
    for name, link in _LINKS.items():
        found[name] = (stat.S_IFLNK | 0o777, link.encode(), 0)
    for name, file in (item for place, source in places.items() for item in walk_files(place[1:], source)):
        if file.is_symlink() and f"/{name}" not in places:
            found[name] = (stat.S_IFLNK | 0o777, os.fsencode(os.readlink(file)), 0)
        elif file.is_file():
            found[name] = (_mode(file), file, 0)
    for name, (text, mode) in texts.items():
        found[name] = (stat.S_IFREG | mode, text.encode(), 0)
    for number, (name, raw) in enumerate(_modules(machine)):
        found[f"strongroom/modules/{number:02}-{name}.ko"] = (stat.S_IFREG | 0o600, raw, 0)
    for name in list(found):  # every folder before what is in it
        for parent in list(Path(name).parents)[:-1]:
            found.setdefault(str(parent), (stat.S_IFDIR | 0o755, b"", 0))
    beside = path.with_suffix(".new")
    with beside.open("wb") as out:
        written = write_cpio(out, ((name, *found[name]) for name in sorted(found, key=lambda name: name.split("/"))))
    beside.replace(path)
    return written


def _mode(path: Path) -> int:
    # Readable to the program, and the same whoever builds: of the builder's own rights, that it is a program is kept.
    return stat.S_IFREG | (0o555 if path.stat().st_mode & 0o111 else 0o444)


def _modules(machine: Cvm) -> list[tuple[str, bytes]]:
    # What virtio, sealed folders and evidence need, each after what it depends on by its own word.
    if not machine.modules:
        return []
    found = sorted(Path(machine.modules).rglob("*.ko*"))
    files = {path.name.split(".ko")[0].replace("-", "_"): path for path in found}
    if not files:
        raise InputError(f"modules: {machine.modules} has no kernel modules")
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path.name.split(".ko")[0] in ordered:
            return  # built in
        if path.suffix not in (".ko", ".xz"):
            raise InputError(f"modules: {path.name}: expected a module as .ko or .ko.xz")
        raw = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        needed = re.search(rb"\0depends=([^\0]*)\0", raw)
        for other in needed[1].decode().split(",") if needed else []:
            add(other)
        ordered[path.name.split(".ko")[0]] = raw

    for name in _MODULES:
        add(name)
    return list(ordered.items())


def _launch_digest(machine: Cvm, kernel: str, initrd: str) -> tuple[str, tuple[str, ...]]:
    # Of SEV-SNP, and what remains to be done where it is not known: TDX's firmware may be named in its place.
    reason = "name the firmware"
    if machine.firmware:
        line = hashlib.sha256(COMMAND_LINE.encode() + b"\0").digest()
        kernel_hash, initrd_hash = (bytes.fromhex(digest.removeprefix("sha256:")) for digest in (kernel, initrd))
        hashes = {"kernel": kernel_hash, "initrd": initrd_hash, "command_line": line}
        try:
            raw = Path(machine.firmware).read_bytes()
            return launch_digest(raw, hashes, processors=machine.vcpus, model=machine.vcpu_type).hex(), ()
        except InputError as exc:
            reason = str(exc)
    return "", (
        f"SEV-SNP: no launch digest: {reason}",
        "TDX: launch-tdx.sh once, on a machine that you trust; then policies name what ran (tdx_measurements, --tdx)",
    )


def _share(folder: str, tag: str, *, read_only: bool = False) -> str:
    words = f'-virtfs local,path="$(folder "{folder}")",mount_tag={tag},security_model=none'
    return words + ",readonly=on" * read_only


def _volume_share(number: int, volume: Volume) -> str:
    return _share(f"sealed/{volume.name}", f"sealed{number}", read_only=volume.mode == "ro")


def _scripts(machine: Cvm, digest: bytes, shares: list[str], network: str, verb: str) -> dict[str, str]:
    host_data, config = (base64.b64encode(config_id(digest, size)).decode() for size in (32, 48))
    objects = {
        "snp": "-object sev-snp-guest,id=tee,cbitpos=51,reduced-phys-bits=1,policy=0x30000,kernel-hashes=on,"
        f"host-data={host_data}",
        "tdx": f'-object \'{{"qom-type":"tdx-guest","id":"tee","mrconfigid":"{config}",'
        '"quote-generation-socket":{"type":"vsock","cid":"2","port":"4050"}}\'',
    }
    irqchip = {"snp": "", "tdx": ",kernel-irqchip=split,hpet=off"}  # as every launch of a TD that is known to work
    processor = {"snp": machine.vcpu_type, "tdx": "host"}
    scripts = {}
    for tee, thing in objects.items():
        lines = [
            f"-machine q35,accel=kvm,confidential-guest-support=tee,memory-backend=ram{irqchip[tee]}",
            f"-object memory-backend-memfd,id=ram,size={machine.memory_mb}M,share=true,prealloc=false",
            thing,
            f"-cpu {processor[tee]} -smp {machine.vcpus} -m {machine.memory_mb}M",
            '-bios "${FIRMWARE:-$firmware}"',
            f'-kernel "${{KERNEL:-$kernel}}" -initrd "$here/initrd.cpio" -append {shlex.quote(COMMAND_LINE)}',
            f"-netdev {network},id=net -device virtio-net-pci,netdev=net,romfile=",  # which the firmware would ignore
            *shares,
            '-nographic -no-reboot "$@"',
        ]
        head = f"#!/bin/sh\n# Written by `strongroom {verb}`. Altered settings give another launch digest.\nset -eu\n"
        place = f'here=$(dirname "$(readlink -f "$0")")\nfirmware={shlex.quote(machine.firmware or "OVMF.fd")}\n'
        place += f"kernel={shlex.quote(machine.kernel)}\n"
        place += 'folder() { readlink -f "$here/$1" | sed s/,/,,/g; }\n'
        command = " \\\n  ".join(["exec qemu-system-x86_64", *lines])
        scripts[tee] = f"{head}{place}{command}\n"
    return scripts


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise InputError(f"{path} is not readable: {exc.strerror}") from exc
