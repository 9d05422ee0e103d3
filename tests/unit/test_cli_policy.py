"""What an owner reads of a job before allowing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from strongroom.cli import output
from strongroom.cli.requests import _explain
from strongroom.client.petnames import Petnames

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
