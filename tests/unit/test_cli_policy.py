"""What an owner reads of a job before allowing it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.fakes.attest_parts import JOB, MEASUREMENT, Platform

from strongroom.attest.appraisal import findings, policy_from_json
from strongroom.attest.binding import init_data_digest, job_init_data
from strongroom.attest.findings import AppraisalContext
from strongroom.attest.policies import TcbStatus, job_digest
from strongroom.attest.reference import ReferenceValues, sign_reference
from strongroom.cli import output
from strongroom.cli.policy import command as policy
from strongroom.cli.requests import _explain
from strongroom.client.petnames import Petnames
from strongroom.client.policies import allow_job
from strongroom.crypto import x509
from strongroom.errors import InputError

ME, BANK = "a" * 64, "b" * 64


def test_the_whole_job_is_shown_and_nothing_of_it_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    volume = {"name": "in", "dataset": "0" * 32, "key": "sales", "owner": ME, "mode": "ro"}
    document = {
        "arguments": ["\x1b[2Jharmless"],
        "code": {"join.py": "sha256:" + "1" * 64},
        "sandbox": {"network": True},
        "x\x1b[1A": "\u202e",
        "volumes": [volume, {**volume, "name": "out", "key": "re\x1bsults", "owner": BANK, "mode": "rw", "epoch": "3"}],
    }
    found = {
        "key": "sales", "uses": ["read"], "job": "sha256:2", "measurement": "3", "state": "pending",
        "claims": {"root": "simulated", "simulated": True},
        "reasons": ["read: no policy\x1b[1A"], "difference": ["x\x1b[1A: 1 -> 2"], "job_document": document,
    }  # fmt: skip
    names = Petnames(path=Path("owners.json"), own=ME, owners={"me": ME, "bank": BANK})
    output.lines(_explain(found, names))
    said = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in said)
    for part in (
        "sha256:" + "1" * 64, "harmless", '"network": true', '"epoch": "3"', f"me ({ME[:16]}, you)", "reads and writes",
        f'its result goes to key "re\\u001bsults" of bank ({BANK[:16]})',
    ):  # fmt: skip
        assert part in said
    for tee, name in (("sgx", "measurement  "), ("snp", "snp_measurement  "), ("tdx", "mrtd  ")):  # as policies say it
        claims = {"root": "hardware", "simulated": False, "tee": tee, "rtmrs": ["0" * 96] * 4}
        assert any(line.startswith(name) for line in _explain({**found, "claims": claims}, names))


def test_a_platform_that_is_not_up_to_date_is_allowed_by_name_and_no_longer_than_said() -> None:
    class Owner:
        owner, policy = ME, dict[str, Any](read=None, write=None)

        def call(self, _method: str, _path: str, body: Any = None) -> dict[str, Any]:
            self.policy = body["policy"] if body else self.policy
            return {"policy": self.policy, "revision": 1}

    volume = {"name": "in", "dataset": "0" * 32, "key": "sales", "owner": ME, "mode": "ro"}
    document, owner = {**JOB, "volumes": [volume]}, Owner()
    platform = Platform().claims(config_id=init_data_digest(job_init_data(document)).ljust(64, b"\0"))

    def refused(tcb: TcbStatus | None, status: str, *advisories: str) -> str:
        allow_job(owner, document, MEASUREMENT.hex(), job="j", unsafe_accept_simulated=True, tcb=tcb)  # type: ignore[arg-type]
        claims = replace(platform, tcb_status=status, advisory_ids=advisories)
        found = findings(policy_from_json(owner.policy["read"]), AppraisalContext(claims=claims, job=document))
        return "; ".join(str(finding) for finding in found if not finding.passed)

    hardening = TcbStatus(("UpToDate", "SWHardeningNeeded"), ("INTEL-SA-00615",))
    assert refused(hardening, "SWHardeningNeeded", "INTEL-SA-00615") == ""
    assert "advisories: expected none but INTEL-SA-00615" in refused(hardening, "SWHardeningNeeded", "INTEL-SA-00828")
    assert "tcb_status: expected" in refused(hardening, "OutOfDate", "INTEL-SA-00615")
    assert refused(hardening, "UpToDate") == ""
    assert "tcb_status: expected UpToDate" in refused(None, "SWHardeningNeeded", "INTEL-SA-00615")  # it is taken back


def test_imported_values_are_accepted_of_the_platforms_that_the_owner_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = {"name": "in", "dataset": "0" * 32, "key": "sales", "owner": ME, "mode": "ro"}
    signer, document, policy_set = x509.new_key(), {**JOB, "volumes": [volume]}, dict[str, Any](read=None, write=None)
    values = ReferenceValues(
        name="job", job=job_digest(document), document=document, values={"measurement": "ab" * 32}, simulated=False
    )
    (tmp_path / "job.reference.json").write_bytes(sign_reference(values, signer))
    pem = x509.certificate_pem(x509.self_signed(signer, "builder", now=datetime.now(UTC), days=1, ca=False))
    (tmp_path / "builder.pem").write_text(pem)

    class Owner:
        owner = ME

        def call(self, _method: str, _path: str, body: Any = None) -> dict[str, Any]:
            policy_set.update(body["policy"] if body else {})
            return {"policy": policy_set, "revision": 1}

    monkeypatch.setattr("strongroom.cli.policy.owner", Owner)
    words = ["import", "sales", str(tmp_path / "job.reference.json"), "--signer", str(tmp_path / "builder.pem")]
    words += ["--tcb-status", "SWHardeningNeeded", "--advisory", "INTEL-SA-00615", "--root", "CD" * 32]
    done = CliRunner().invoke(policy, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    said = policy_set["read"]["policies"][0]
    assert said["kind"] == "reference"
    checks = said["policies"]
    tcb = {"kind": "tcb_status", "allowed": ["UpToDate", "SWHardeningNeeded"], "advisories": ["INTEL-SA-00615"]}
    assert any(check.items() >= tcb.items() for check in checks), checks
    assert {"kind": "root", "values": ["cd" * 32]} in checks


@pytest.mark.parametrize(
    "words", [["request", "1"], ["approve", "1", "--measurement", "00"], ["request", "1", "--json"]]
)
def test_what_its_owner_allowed_is_no_refused_job(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # `policy set` keeps the job under a number of its own, for later differences.
    class Owner:
        def call(self, *_: object) -> dict[str, Any]:
            return {"id": 1, "key": "sales", "job": "2", "state": "approved", "claims": {"measurement": "3"}}

    monkeypatch.setattr("strongroom.cli.requests.owner", Owner)
    error = CliRunner().invoke(policy, words, standalone_mode=False).exception
    assert isinstance(error, InputError)
    assert "1 is no refused job" in str(error)
    assert "policy requests" in error.hint
