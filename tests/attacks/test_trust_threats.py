"""One test per threat to what owners, guests and the trust service believe of each other (T276 to T281)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes.attest_parts import MEASUREMENT, Platform
from tests.fakes.service_parts import document

from strongroom.attest.policies import TDX_REGISTERS, job_digest
from strongroom.attest.reference import ReferenceValues, sign_reference
from strongroom.cli import policy as policy_commands
from strongroom.client.petnames import Petnames
from strongroom.client.workspace import Workspace
from strongroom.crypto import x509
from strongroom.errors import InputError, StrongroomError, VerificationError

ME = "a" * 64
JOB = document(ME, "0" * 32)


class _Owner:
    """An owner's client with one pending request; what it writes is in `written`."""

    owner = ME
    workspace = Workspace(folder=Path("none"), identity="", owner=ME, name="me")

    def __init__(self, claims: dict[str, object]) -> None:
        self.written: list[Any] = []
        self._found = {
            "key": "sales", "uses": ["read"], "job": job_digest(JOB), "measurement": claims["measurement"],
            "state": "pending", "claims": claims, "reasons": [], "difference": [], "job_document": JOB,
        }  # fmt: skip

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        if method == "PUT":
            self.written.append(body)
        return {"policy": {}, "revision": 0} if path.endswith("/policy") else self._found


def _hardware(**changes: object) -> dict[str, object]:
    return Platform().claims().to_json() | {"simulated": False, "root": "hardware", "limits": []} | changes


def _approve(monkeypatch: pytest.MonkeyPatch, claims: dict[str, object], *words: str) -> list[Any]:
    client = _Owner(claims)
    monkeypatch.setattr(policy_commands, "owner", lambda: client)
    monkeypatch.setattr(Petnames, "load", lambda _: Petnames(path=Path("none"), own=ME, owners={}))
    done = CliRunner().invoke(policy_commands.command, ["approve", "3", *words], standalone_mode=False)
    assert bool(done.exception) is not bool(client.written)
    if done.exception:
        raise done.exception
    return client.written


def test_T276_an_approval_does_not_take_from_hardware_which_code_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sgx, tdx = MEASUREMENT.hex(), {name: f"{n}c" * 48 for n, name in enumerate(TDX_REGISTERS)}
    registers = [word for name, value in tdx.items() for word in ("--tdx", f"{name}={value}")]
    intel = _hardware(tee="tdx", measurement=tdx["mrtd"], rtmrs=list(tdx.values())[1:])
    for claims, words, reason in (
        (_hardware(), [], rf"measurement: expected the value that you computed, got none; the evidence says {sgx}"),
        (_hardware(), ["--measurement", "00" * 32], "measurement: expected .* got 0000"),
        (_hardware(), ["--measurement", sgx, "--snp-measurement", sgx], "snp_measurement: .* says nothing of it"),
        (_hardware(simulated=True), ["--measurement", "00" * 32, "--unsafe-accept-simulated"], "measurement: expected"),
        (intel, [], "mrtd: expected .* got none; .* rtmr3: expected"),
        (intel, registers[:-2], "^rtmr3: expected .* got none"),
        (intel, [*registers[:-1], f"rtmr3={'00' * 48}"], "^rtmr3: expected"),
        (intel, ["--measurement", tdx["mrtd"]], "mrtd: expected .* got none"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            _approve(monkeypatch, claims, *words)
        assert "repeat with --" in caught.value.hint
    assert _approve(monkeypatch, _hardware(), "--measurement", sgx.upper())
    assert _approve(monkeypatch, intel, *registers)
    assert _approve(monkeypatch, _hardware(simulated=True), "--unsafe-accept-simulated")

    # Signed reference values name it too: of this job, by somebody whom the owner names.
    key, signer, path = x509.new_key(), tmp_path / "signer.pem", tmp_path / "job.reference.json"
    signer.write_text(_certificate(key))
    words = ["--reference", str(path), "--signer", str(signer)]

    def sign(value: str = sgx, job: dict[str, object] = JOB, by: ec.EllipticCurvePrivateKey = key) -> None:
        values = ReferenceValues(
            name="count", job=job_digest(job), document=job, values={"measurement": value}, simulated=False
        )
        path.write_bytes(sign_reference(values, by))

    refused: list[tuple[dict[str, Any], type[StrongroomError], str]] = [
        ({"value": "00" * 32}, InputError, "measurement: expected"),
        ({"job": {**JOB, "name": "other"}}, InputError, "reference: expected values of"),
        ({"by": x509.new_key()}, VerificationError, "expected the signature of"),
    ]
    for changes, error, reason in refused:
        sign(**changes)
        with pytest.raises(error, match=reason):
            _approve(monkeypatch, _hardware(), *words)
    sign()
    with pytest.raises(VerificationError, match="nobody"):
        _approve(monkeypatch, _hardware(), *words[:2])
    assert "'kind': 'reference'" in str(_approve(monkeypatch, _hardware(), *words))


def _certificate(key: ec.EllipticCurvePrivateKey) -> str:
    return x509.certificate_pem(x509.self_signed(key, "builder", now=datetime.now(UTC), days=1, ca=False))
