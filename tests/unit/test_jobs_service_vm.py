"""`service build --enclave cvm`: what is in the first file system of the trust service, and what the host has."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.unit.test_attest_launch_digest import firmware
from tests.unit.test_jobs_cvm import unpacked
from tests.unit.test_jobs_libos import FewFiles

from strongroom.attest.appraisal import policy_to_json
from strongroom.cli.job import command as job_command
from strongroom.cli.service_verify import _policy
from strongroom.cli.service_verify import build as build_command
from strongroom.errors import InputError


def build(runtimes: FewFiles, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    monkeypatch.setattr("strongroom.jobs.runtimes.Runtimes", lambda *_: runtimes)
    done = CliRunner().invoke(build_command, [str(folder), *words, "--json"])
    if done.exception is not None:
        raise done.exception
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_the_bundle_of_the_trust_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    (tmp_path / "OVMF.fd").write_bytes(firmware())
    words = ("--enclave", "cvm", "--kernel", str(tmp_path / "vmlinuz"))
    folder, runtimes = tmp_path / "b", FewFiles(tmp_path / "runtimes")
    built = build(runtimes, folder, monkeypatch, *words)
    assert (built["measurement"], built["remaining"][0]) == ("", "SEV-SNP: no launch digest: name the firmware")
    found = unpacked(folder / "initrd.cpio")
    assert b"sys.path += ['/opt/strongroom', '/opt/env/lib/" in found["init"][1]
    assert b"from strongroom.service.vm import main" in found["init"][1]
    names = set(found)
    assert {"opt/strongroom/strongroom/service/vm.py", "opt/strongroom/strongroom/_vm.py", "launch", "service"} <= names
    assert {"usr/lib/x86_64-linux-gnu/libc.so.6", "opt/python/bin/python3", "dev/console"} <= names, "not a LibOS's"
    unneeded = (
        "/guest/",
        "/cli/",
        "/client/",
        "/jobs/",
        "flask",
        "__pycache__",
        "strongroom/job",
        "sealed",
        "admin.pem",
    )
    assert not [name for name in names if any(part in name for part in unneeded)]
    for tee in ("snp", "tdx"):
        script = (folder / f"launch-{tee}.sh").read_text()
        assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0
        assert f"kernel={tmp_path}/vmlinuz\n" in script
        assert '-kernel "${KERNEL:-$kernel}" -initrd "$here/initrd.cpio"' in script, "on another machine, elsewhere"
        assert "hostfwd=tcp::8700-:8700,hostfwd=tcp::8701-:8701," in script
        assert 'path="$(folder "launch")",mount_tag=launch,security_model=none,readonly=on \\' in script
        assert 'path="$(folder "service")",mount_tag=service,security_model=none \\' in script
    reference = json.loads((folder / "reference.json").read_text())
    assert (reference["snp"]["host_data"], reference["tdx"]["mrconfigid"]) == ("00" * 32, "00" * 48), "no job's"
    assert "tdx_without_mrconfigid" not in reference
    assert reference["not_measured"][0].startswith("launch/ and service/: the host's word")

    # Equal on any machine and for any owner; with the firmware its launch digest is known, and names the kernel too.
    (folder / "launch/admin.pem").write_text("of any owner")
    (folder / "service/state.db").write_text("of any age")
    named = (*words, "--firmware", str(tmp_path / "OVMF.fd"))
    first = build(runtimes, folder, monkeypatch, *named)
    again = build(FewFiles(tmp_path / "others"), tmp_path / "c", monkeypatch, *named)
    reference = json.loads((folder / "reference.json").read_text())
    assert first["measurement"] == again["measurement"] == reference["snp"]["snp_measurement"]
    assert len(first["measurement"]) == 96
    assert (first["remaining"], first["bundle"]) == ([], str(folder))
    assert (folder / "initrd.cpio").read_bytes() == (tmp_path / "c/initrd.cpio").read_bytes()
    (tmp_path / "vmlinuz").write_bytes(b"other")
    assert build(runtimes, folder, monkeypatch, *named)["measurement"] != first["measurement"]
    assert (folder / "service/state.db").read_text() == "of any age"
    told = CliRunner().invoke(job_command, ["diff", str(folder)]).stdout.splitlines()
    assert [line.partition(":")[0] for line in told] == ["kernel", "measurement", "snp.snp_measurement"]


def test_what_a_bundle_of_the_trust_service_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes = FewFiles(tmp_path / "runtimes")
    for words, reason in (
        (("--enclave", "cvm"), "no kernel is named"),
        (("--enclave", "cvm", "--kernel", "none"), "none is not readable"),
        (("--enclave", "cvm", "--kernel", "none", "--modules", "no"), "has no kernel modules"),
        (("--kernel", "none"), "--kernel: expected with --enclave cvm, got gramine"),
        (("--enclave", "gramine", "--firmware", "none"), "--firmware: expected with --enclave cvm, got gramine"),
    ):
        with pytest.raises(InputError, match=reason):
            build(runtimes, tmp_path / "b", monkeypatch, *words)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    built = build(runtimes, tmp_path / "b", monkeypatch)
    assert (built["measurement"], len(built["remaining"])) == ("", 5), "without a word, for Gramine"
    assert (tmp_path / "b/job.manifest.template").exists()


def test_an_owner_names_a_launch_digest_as_a_measurement() -> None:
    for value, kind in (("AB" * 48, "snp_measurement"), ("ab" * 32, "measurement"), ("ab", "measurement")):
        code = policy_to_json(_policy(value, None, False))["policies"][0]  # type: ignore[index]
        assert code == {"kind": kind, "values": [value.lower()]}
