"""Enclave kind `cvm`: what is in the first file system, what is computed for policies, what is refused."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import lzma
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_attest_launch_digest import firmware

from strongroom.attest.binding import init_data_digest
from strongroom.attest.launch_digest import launch_digest
from strongroom.errors import InputError
from strongroom.guest.cvm import _user
from strongroom.jobs.enclaves import cvm
from strongroom.jobs.enclaves.cvm import ConfidentialVM, write_cpio
from strongroom.jobs.plan import LaunchPlan, plan_job
from strongroom.jobs.runtimes import Runtimes
from strongroom.jobs.spec import Cvm, JobSpec, Volume, load_spec
from strongroom.jobs.workloads.python import PythonWorkload

IDENTITY = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"


class Trees:
    """Runtimes of a few small files."""

    places = Runtimes.places

    def __init__(self, folder: Path) -> None:
        for name in ("base/usr/lib", "base/etc", "guest", "python/bin", "env", "library"):
            (folder / name).mkdir(parents=True)
        (folder / "python/bin/python3.11").write_bytes(b"python")
        (folder / "python/bin/python3").symlink_to("python3.11")
        (folder / "guest/__pycache__").mkdir()
        (folder / "guest/__pycache__/x.pyc").write_bytes(b"differs")
        (folder / "base/usr/lib/libc.so.6").write_bytes(b"libc")
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self._folder / name


@pytest.fixture
def plan(tmp_path: Path) -> LaunchPlan:
    (tmp_path / "app.py").write_text("print(1)\n")
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    sealed = tmp_path / "sealed-sales"
    sealed.mkdir()
    volumes = (
        Volume(name="sales", location=sealed, dataset="ab" * 16, key="sales", owner="cd" * 32, mode="ro"),
        Volume(name="out", location=sealed, dataset="ac" * 16, key="sales", owner="cd" * 32, mode="rw"),
    )
    machine = Cvm(kernel=str(tmp_path / "vmlinuz"))
    spec = JobSpec(
        name="j", workload="python", program=tmp_path / "app.py", volumes=volumes, enclave="cvm", cvm=machine
    )
    return plan_job(spec, {"python": PythonWorkload()}, ("sha256:" + "ee" * 32,))


@pytest.fixture
def enclave(tmp_path: Path) -> ConfidentialVM:
    return ConfidentialVM(Trees(tmp_path / "runtimes"), identity_pem=IDENTITY)  # type: ignore[arg-type]


def with_machine(plan: LaunchPlan, **changes: object) -> LaunchPlan:
    return replace(plan, spec=replace(plan.spec, cvm=replace(plan.spec.cvm, **changes)))  # type: ignore[arg-type]


def unpacked(path: Path) -> dict[str, tuple[int, bytes, str]]:
    """Read an initramfs by its own description (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    raw, at, found = path.read_bytes(), 0, {}
    while True:
        assert raw[at : at + 6] == b"070701"
        f = [int(raw[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = raw[at + 110 : at + 110 + f[11] - 1].decode()
        body = at + (110 + f[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        assert (f[2], f[3], f[5]) == (0, 0, 0), "root's, and without a time"
        found[name] = (f[1], raw[body : body + f[6]], f"{f[9]}:{f[10]}")
        at = (body + f[6] + 3) // 4 * 4


def test_first_file_system(plan: LaunchPlan, enclave: ConfidentialVM, tmp_path: Path) -> None:
    bundle = enclave.build(plan, tmp_path / "b")
    found = unpacked(bundle.folder / "initrd.cpio")
    assert found["init"][1].startswith(b"#!/opt/python/bin/python3 -ISB\n")
    assert found["init"][0] & 0o111
    assert found["strongroom/job/init-data.toml"][1].decode() == plan.init_data
    assert found["strongroom/code/app.py"][1] == b"print(1)\n"
    assert found["opt/python/bin/python3"][:2] == (stat.S_IFLNK | 0o777, b"python3.11")
    assert (found["dev/console"][0], found["dev/console"][2]) == (stat.S_IFCHR | 0o600, "5:1")
    assert not any("__pycache__" in name for name in found)
    assert not any(mode & 0o022 for mode, _, _ in found.values() if not stat.S_ISLNK(mode))
    names = list(found)
    for name in names:  # the kernel makes no folders of its own
        parent = name.rpartition("/")[0]
        assert not parent or names.index(parent) < names.index(name)
    before = (bundle.folder / "initrd.cpio").read_bytes()
    (tmp_path / "app.py").touch()
    (tmp_path / "app.py").chmod(0o600)  # another umask
    assert (enclave.build(plan, tmp_path / "c").folder / "initrd.cpio").read_bytes() == before
    listed = subprocess.run(["cpio", "-t"], input=before, capture_output=True, check=False) if _has("cpio") else None
    assert listed is None or set(listed.stdout.decode().split()) == set(names)


def test_reference_values_and_commands(plan: LaunchPlan, enclave: ConfidentialVM, tmp_path: Path) -> None:
    bundle = enclave.build(plan, tmp_path / "b")
    reference = json.loads((bundle.folder / "reference.json").read_text())
    digest = init_data_digest(plan.init_data)
    assert reference["job"] == plan.job
    assert reference["kernel"] == f"sha256:{hashlib.sha256(b'kernel').hexdigest()}"
    assert reference["initrd"] == f"sha256:{hashlib.sha256((bundle.folder / 'initrd.cpio').read_bytes()).hexdigest()}"
    assert reference["snp"] == {"snp_measurement": None, "host_data": digest.hex(), "vmpl": 0}
    assert reference["tdx"] == {"mrconfigid": digest.hex() + "00" * 16, "rtmr3": "00" * 48}
    rtmr3 = hashlib.sha384(bytes(48) + digest + bytes(16)).hexdigest()
    assert reference["tdx_without_mrconfigid"] == {"mrconfigid": "00" * 48, "rtmr3": rtmr3}
    assert len(reference["not_measured"]) == 4
    snp, tdx = ((bundle.folder / f"launch-{tee}.sh").read_text() for tee in ("snp", "tdx"))
    assert f"kernel-hashes=on,host-data={base64.b64encode(digest).decode()} " in snp
    assert f'"mrconfigid":"{base64.b64encode(digest + bytes(16)).decode()}"' in tdx
    for script in (snp, tdx):
        assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0
        assert "mount_tag=sealed0,security_model=none \\" in script  # out: to be written
        assert "mount_tag=sealed1,security_model=none,readonly=on" in script
        assert f"-append '{cvm.COMMAND_LINE}'" in script
    assert bundle.remaining[0] == "SEV-SNP: no launch digest: name the firmware"
    assert "TDX: launch-tdx.sh once, on a machine that you trust" in bundle.remaining[1]
    with pytest.raises(InputError, match="the launch digest is not known"):
        _ = bundle.measurement


def test_the_launch_digest_is_known_where_the_firmware_is(
    plan: LaunchPlan, enclave: ConfidentialVM, tmp_path: Path
) -> None:
    file = tmp_path / "OVMF.fd"
    file.write_bytes(firmware())
    named = with_machine(plan, firmware=str(file), vcpus=3)
    bundle = enclave.build(named, tmp_path / "b")
    sha256 = {
        "kernel": hashlib.sha256(b"kernel").digest(),
        "initrd": hashlib.sha256((bundle.folder / "initrd.cpio").read_bytes()).digest(),
        "command_line": hashlib.sha256(cvm.COMMAND_LINE.encode() + b"\0").digest(),
    }
    expected = launch_digest(firmware(), sha256, processors=3, model="EPYC-v4").hex()
    assert (bundle.values, bundle.remaining) == ({"snp_measurement": expected}, ())
    assert json.loads((bundle.folder / "reference.json").read_text())["snp"]["snp_measurement"] == expected
    for changes, reason in (  # for TDX, or another processor, it is built all the same
        ({"vcpu_type": "SapphireRapids"}, "processor SapphireRapids: expected one of EPYC"),
        ({"firmware": str(tmp_path / "vmlinuz")}, "firmware: expected whole pages"),
    ):
        other = enclave.build(with_machine(named, **changes), tmp_path / "c")
        assert reason in other.remaining[0]
        with pytest.raises(InputError, match=f"the launch digest is not known: {reason}"):
            _ = other.measurement


def test_modules_come_after_what_they_need(plan: LaunchPlan, enclave: ConfidentialVM, tmp_path: Path) -> None:
    folder = tmp_path / "modules/kernel"
    folder.mkdir(parents=True)
    (folder / "9p.ko").write_bytes(b"\0depends=9pnet,netfs\0")
    (folder / "9pnet.ko.xz").write_bytes(lzma.compress(b"\0depends=\0"))
    (folder / "netfs.ko").write_bytes(b"\0depends=\0")
    (folder / "other.ko").write_bytes(b"\0depends=\0")
    found = unpacked(
        enclave.build(with_machine(plan, modules=str(tmp_path / "modules")), tmp_path / "b").folder / "initrd.cpio"
    )
    names = sorted(name.rpartition("/")[2] for name in found if name.startswith("strongroom/modules/"))
    assert names == ["00-9pnet.ko", "01-netfs.ko", "02-9p.ko"]
    assert found["strongroom/modules/00-9pnet.ko"][1] == b"\0depends=\0"
    (folder / "9p.ko").rename(folder / "9p.ko.zst")
    with pytest.raises(InputError, match=r"expected a module as \.ko or \.ko\.xz"):
        enclave.build(with_machine(plan, modules=str(tmp_path / "modules")), tmp_path / "b")
    with pytest.raises(InputError, match="has no kernel modules"):
        enclave.build(with_machine(plan, modules=str(tmp_path / "none")), tmp_path / "b")


def test_refusals(plan: LaunchPlan, enclave: ConfidentialVM, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no kernel is named"):
        enclave.build(with_machine(plan, kernel=""), tmp_path / "b")
    with pytest.raises(InputError, match="is not readable"):
        enclave.build(with_machine(plan, kernel=str(tmp_path / "none")), tmp_path / "b")
    for text, reason in (("vcpus = 0", "vcpus is a number"), ("kernel = 3", "kernel is a text")):
        with pytest.raises(InputError, match=reason):
            Cvm(**{text.split()[0]: int(text.split()[2])})
    (tmp_path / "job.toml").write_text('[job]\nworkload = "python"\n[cvm]\nkernle = "x"\n')
    with pytest.raises(InputError, match=r"\[cvm\] has no field 'kernle'"):
        load_spec(tmp_path / "job.toml")
    with pytest.raises(InputError, match="does not go into an initramfs"):
        write_cpio(io.BytesIO(), iter([("a\0b", 0, b"", 0)]))


def test_the_guest_is_whoever_owns_what_it_writes() -> None:
    assert _user({}) == 1000
    assert _user({"out": 1001, "more": 1002}) == 1001
    for owner in (0, 0xFFFFFFFF, 1 << 31):
        with pytest.raises(InputError, match=f"volume out: owner of its folder: expected a user, got {owner}"):
            _user({"in": 1001, "out": owner})


def _has(tool: str) -> bool:
    return subprocess.run(["sh", "-c", f"command -v {tool}"], capture_output=True, check=False).returncode == 0
