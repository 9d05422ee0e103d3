"""What a job measures, by the word of its owner: of the right kind, whole, and never against its build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.unit.test_jobs_cvm import Trees, with_machine
from tests.unit.test_jobs_cvm import plan as planned

import strongroom.cli.job as job_commands
from strongroom.attest.policies import TDX_REGISTERS
from strongroom.attest.reference import open_reference
from strongroom.cli.measured import measured_values
from strongroom.errors import InputError, UnavailableError
from strongroom.jobs.enclaves.cvm import ConfidentialVM
from strongroom.jobs.plan import Bundle, LaunchPlan

SGX, LONG = "5f" * 32, "a1" * 48
TDX = dict.fromkeys(TDX_REGISTERS, LONG)
plan = planned  # a fixture


def bundle(measures: str = "", *, remaining: tuple[str, ...] = ("measure it",)) -> Bundle:
    def measure() -> str:
        if not measures:
            raise UnavailableError("not known")
        return measures

    left = () if measures else remaining
    return Bundle(folder=Path("none"), job="", simulated=False, measure=measure, remaining=left)


@pytest.mark.parametrize(
    ("kind", "measures", "named"),
    [
        ("gramine", SGX, {}),
        ("gramine", "", {"measurement": SGX}),
        ("gramine", SGX, {"measurement": SGX}),
        ("occlum", "", {"measurement": SGX}),
        ("cvm", "", {"snp_measurement": LONG}),
        ("cvm", LONG, TDX),  # the build knows SNP's alone
    ],
)
def test_what_a_build_does_not_know_its_owner_says(kind: str, measures: str, named: dict[str, str]) -> None:
    assert measured_values(bundle(measures), kind, named) == (named or {"measurement": SGX})


@pytest.mark.parametrize(
    ("kind", "measures", "named", "reason"),
    [
        ("sim", SGX, {"measurement": SGX}, "its build computes what it measures"),
        ("occlum", "", {"snp_measurement": LONG}, "occlum: expected measurement, got snp_measurement"),
        ("cvm", "", {"measurement": SGX}, "cvm: expected snp_measurement or TDX registers, got measurement"),
        ("cvm", "", {"mrtd": LONG}, r"expected .* mrtd and rtmr0 .*, got \['mrtd'\]"),
        ("cvm", "", {**TDX, "snp_measurement": LONG}, "reference values: expected"),
        ("cvm", "", {**TDX, "mrtd": "a1"}, "is not 48 bytes in hex"),
        ("cvm", LONG, {"snp_measurement": "00" * 48}, f"snp_measurement: expected {LONG}, as the build computes it"),
        ("gramine", SGX, {"measurement": "00" * 32}, f"measurement: expected {SGX}, as the build computes it"),
    ],
)
def test_other_values_than_those_of_the_enclave_are_refused(
    kind: str, measures: str, named: dict[str, str], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        measured_values(bundle(measures), kind, named)


def test_values_of_a_tdx_launch_are_signed(plan: LaunchPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enclave = ConfidentialVM(Trees(tmp_path / "runtimes"), identity_pem="PEM")  # type: ignore[arg-type]
    owner = ec.generate_private_key(ec.SECP256R1())
    pem = owner.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "owner.key").write_bytes(pem)

    class Here:
        folder = tmp_path
        build = staticmethod(lambda plan: enclave.build(plan, tmp_path / "bundles"))

    monkeypatch.setattr(job_commands, "plan_file", lambda _path: (Here, with_machine(plan)))
    monkeypatch.setattr(job_commands, "workspace", lambda: Here)

    def sign(*words: str) -> Any:
        out = tmp_path / "signed.json"
        done = CliRunner().invoke(job_commands.command, ["sign", "job.toml", "--out", str(out), "--json", *words])
        if done.exception:
            raise done.exception
        return json.loads(done.stdout), open_reference(out.read_bytes(), [owner.public_key()])

    with pytest.raises(InputError, match="the launch digest is not known") as refused:
        sign()
    assert "TDX: launch it on a machine that you trust, and repeat with --tdx REGISTER=HEX" in refused.value.hint
    said, signed = sign(*(word for name in TDX for word in ("--tdx", f"{name}={LONG.upper()}")))
    assert signed.values == TDX == {name: said[name] for name in TDX}
    assert (signed.simulated, signed.job) == (False, plan.job)
