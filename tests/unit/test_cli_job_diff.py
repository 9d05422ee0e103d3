"""`strongroom job diff`, kind by kind: it says that two builds measure the same only if both were measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.unit.test_jobs_libos import FewFiles, planned

from strongroom.attest.sigstruct import Sigstruct
from strongroom.cli.job import command
from strongroom.errors import InputError
from strongroom.jobs.enclaves.cvm import ConfidentialVM
from strongroom.jobs.enclaves.gramine import GramineEnclave
from strongroom.jobs.enclaves.occlum import OcclumEnclave
from strongroom.jobs.enclaves.sim import SimulatedEnclave
from strongroom.jobs.spec import Cvm, JobSpec, Sandbox, Sgx

SAME = ["no difference: the same measurement"]
UNKNOWN = ["no difference in what was built; what was measured is not known of both, and may differ"]


def diff(*folders: Path) -> list[str]:
    done = CliRunner().invoke(command, ["diff", *map(str, folders)])
    if done.exception is not None:
        raise done.exception
    return done.stdout.splitlines()


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    (tmp_path / "app.py").write_text("print(1)\n")
    sandbox = Sandbox(network=True, scratch_mb=512)
    return JobSpec(name="j", workload="python", program=tmp_path / "app.py", sandbox=sandbox)


@pytest.fixture
def runtimes(tmp_path: Path) -> FewFiles:
    return FewFiles(tmp_path / "runtimes")


def vm(spec: JobSpec, runtimes: FewFiles, tmp_path: Path, folder: str = "b", **parts: object) -> Path:
    machine: dict[str, Any] = {"kernel": b"kernel", "firmware": b"firmware"} | parts
    for name in ("kernel", "firmware"):
        (tmp_path / name).write_bytes(machine[name])
        machine[name] = str(tmp_path / name)
    kind = ConfidentialVM(runtimes, identity_pem="PEM")
    return kind.build(planned(replace(spec, enclave="cvm", cvm=Cvm(**machine))), tmp_path / folder).folder


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strongroom.jobs.enclaves.cvm._launch_digest", lambda *_: ("", ("compute it",)))
    monkeypatch.setattr(shutil, "which", lambda _name: None)


@pytest.mark.usefixtures("no_tools")
@pytest.mark.parametrize(
    ("parts", "where"),
    [
        ({"kernel": b"other"}, ["kernel"]),
        ({"firmware": b"other"}, ["firmware"]),
        ({"vcpus": 7}, ["machine.vcpus"]),
        ({"memory_mb": 9999}, ["machine.memory_mb"]),
    ],
)
def test_a_vm_differs_by_what_it_starts_from(
    parts: dict[str, object], where: list[str], spec: JobSpec, runtimes: FewFiles, tmp_path: Path
) -> None:
    old, new = vm(spec, runtimes, tmp_path, "old"), vm(spec, runtimes, tmp_path, "new", **parts)
    assert [line.split(": ")[0] for line in diff(old, new)] == where
    assert diff(old, vm(spec, runtimes, tmp_path, "same")) == UNKNOWN
    with pytest.raises(InputError, match="was built once"):
        diff(old)
    vm(spec, runtimes, tmp_path, "old", **parts)
    assert [line.split(": ")[0] for line in diff(old)] == where


@pytest.mark.usefixtures("no_tools")
def test_a_vm_differs_by_a_file_its_mode_and_its_command_line(
    spec: JobSpec, runtimes: FewFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = vm(spec, runtimes, tmp_path)
    (runtimes.folder / "guest/strongroom/guest/libos.py").write_text("other")
    (runtimes.folder / "base/etc/passwd").chmod(0o755)
    vm(spec, runtimes, tmp_path)
    changed = ["files.etc/passwd", "files.strongroom/guest/strongroom/guest/libos.py", "initrd"]
    lines = diff(folder)
    assert [line.split(": ")[0] for line in lines] == changed
    assert "100444 " in lines[0]
    assert "100555 " in lines[0]
    monkeypatch.setattr("strongroom.jobs.enclaves.cvm.COMMAND_LINE", "quiet")
    vm(spec, runtimes, tmp_path)
    assert diff(folder) == ['command_line: "console=ttyS0 quiet panic=-1" -> "quiet"']


def test_a_vm_differs_by_its_launch_digest_alone(
    spec: JobSpec, runtimes: FewFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = iter(["ab" * 48, "cd" * 48, "cd" * 48])
    monkeypatch.setattr("strongroom.jobs.enclaves.cvm._launch_digest", lambda *_: (next(digests), ()))
    old, new, same = (vm(spec, runtimes, tmp_path, name) for name in ("old", "new", "same"))
    assert [line.split(": ")[0] for line in diff(old, new)] == ["measurement", "snp.snp_measurement"]
    assert diff(new, same) == SAME


def test_a_bundle_of_a_vm_without_its_list_is_not_compared(spec: JobSpec, runtimes: FewFiles, tmp_path: Path) -> None:
    folder = vm(spec, runtimes, tmp_path)
    (folder / "measured.json").unlink()  # as builds before this list were
    with pytest.raises(InputError, match="is not what a build writes"):
        diff(folder, folder)


def signed(folder: Path, measurement: bytes, runtime: str) -> None:
    """Do what Gramine's tools do: fill in the runtime's files, measure and sign."""
    text, place = (folder / "job.manifest.template").read_text(), "file:/usr/lib/gramine"
    listed = f'{{ uri = "{place}/libc.so.6", sha256 = "{runtime * 32}" }}'
    text = text.replace('"file:{{ gramine.runtimedir() }}/"', listed).replace("file:{{ gramine.runtimedir() }}", place)
    (folder / "job.manifest").write_text(text)
    made = Sigstruct(
        measurement=measurement, attributes=bytes(16), attribute_mask=bytes(16), signed_on=date(2026, 1, 1)
    )
    (folder / "job.sig").write_bytes(made.to_bytes())


@pytest.mark.usefixtures("no_tools")
def test_gramine_builds_differ_by_gramine_too(spec: JobSpec, runtimes: FewFiles, tmp_path: Path) -> None:
    kind = GramineEnclave(runtimes, identity_pem="PEM")
    plan = planned(replace(spec, enclave="gramine"))
    old, new = (kind.build(plan, tmp_path / name).folder for name in ("old", "new"))
    assert diff(old, new) == UNKNOWN
    signed(old, b"\1" * 32, "ab")
    assert diff(old, new) == UNKNOWN
    signed(new, b"\2" * 32, "cd")
    lines = diff(old, new)
    assert lines[0] == f'measurement: "{"01" * 32}" -> "{"02" * 32}"'
    assert lines[1].startswith("runtime.file:/usr/lib/gramine/libc.so.6: ")
    assert len(lines) == 2
    signed(new, b"\2" * 32, "ab")  # Gramine's loader, which no manifest lists
    assert diff(old, new) == lines[:1]
    signed(new, b"\1" * 32, "ab")
    assert diff(old, new) == SAME
    (runtimes.folder / "base/etc/passwd").write_text("other")
    kind.build(plan, tmp_path / "new")
    assert [line.split(":")[:2] for line in diff(new)] == [["files.file", "root/etc/passwd"]]
    signed(new, b"\3" * 32, "ab")
    assert diff(new)[-1] == f'measurement: "{"01" * 32}" -> "{"03" * 32}"'
    (new / "job.sig").write_bytes(b"of somebody else")
    with pytest.raises(InputError, match="is not what a build writes"):
        diff(old, new)


def test_occlum_measures_elsewhere(spec: JobSpec, runtimes: FewFiles, tmp_path: Path) -> None:
    kind = OcclumEnclave(runtimes, identity_pem="PEM")
    folders = [
        kind.build(planned(replace(spec, enclave="occlum", sgx=Sgx(svn=svn))), tmp_path / name).folder
        for name, svn in (("old", 1), ("same", 1), ("new", 2))
    ]
    assert diff(*folders[:2]) == UNKNOWN
    assert "version_number" in "".join(diff(folders[0], folders[2]))


def test_simulated_builds_differ_by_the_whole_measurement(spec: JobSpec, runtimes: FewFiles, tmp_path: Path) -> None:
    kind = SimulatedEnclave(runtimes, cache=tmp_path / "cache", service=tmp_path, identity_pem="PEM")
    first, same = (kind.build(planned(spec), tmp_path / name) for name in ("old", "same"))
    measurement = same.measurement
    assert first.measurement == measurement
    assert diff(first.folder, same.folder) == SAME
    with pytest.raises(InputError, match="was built once"):
        diff(first.folder)
    (runtimes.folder / "guest/strongroom/guest/libos.py").write_text("of another size")
    assert kind.build(planned(spec), tmp_path / "old").measurement != measurement
    assert [line.split(": ")[0] for line in diff(first.folder)] == ["measurement", "places./strongroom/guest"]
    reference = json.loads((first.folder / "reference.json").read_text())
    reference["measurement"] = "ef" * 32  # what is measured of the platform is in no place
    (same.folder / "reference.json").write_text(json.dumps(reference))
    assert [line.split(": ")[0] for line in diff(first.folder, same.folder)] == ["measurement"]
