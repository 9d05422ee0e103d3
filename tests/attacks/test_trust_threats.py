"""One test per threat to what owners, guests and the trust service believe of each other (T276 to T281)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes.attest_parts import MEASUREMENT, Platform, make_pki
from tests.fakes.service_parts import House, document, make_house

from strongroom.attest.claims import Claims
from strongroom.attest.endorsement_files import write_bundle
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.policies import TDX_REGISTERS, job_digest
from strongroom.attest.reference import ReferenceValues, sign_reference
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.verifiers import verify_any
from strongroom.cli import policy as policy_commands
from strongroom.client.petnames import Petnames
from strongroom.client.workspace import Workspace
from strongroom.crypto import x509
from strongroom.errors import InputError, StrongroomError, VerificationError
from strongroom.service import guest_api

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


def _trusting(house: House, pki: SimulatedPKI, **settings: str) -> None:
    anchor = {"kind": "hardware", "fingerprint": pki.anchor().fingerprint, **settings}
    with house.service.store.transaction() as tx:
        house.service.trust(tx, anchor)
    house.service.follow()


def test_T277_a_root_distrusted_and_trusted_again_brings_nothing_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house, pki, now = make_house(tmp_path), make_pki("two"), datetime.now(UTC)
    anchor = TrustAnchor(kind="hardware", certificate_der=pki.anchor().certificate_der)

    def endorse(edition: int) -> None:
        found = [pki.endorsements(now, tcb_eval_number=edition)]
        write_bundle(tmp_path / "service" / "endorsements" / "two.json", anchor, found)  # type: ignore[arg-type]

    endorse(5)
    _trusting(house, pki)
    job, _ = house.ready()
    guest, other = house.guest(job, platform=Platform(pki)).attested(), house.guest(job).attested()
    assert guest.resource(house.owner).status == 200
    _trusting(house, pki)
    assert guest.resource(house.owner).status == 200, "nothing changed"
    for change in ("distrusted", "other settings"):
        if change == "distrusted":
            assert house.as_owner()("DELETE", f"/v1/anchors/{anchor.fingerprint}").status == 200
        else:
            _trusting(house, pki, smt="refused")
        _trusting(house, pki)
        assert guest.resource(house.owner).code == "denied", change
        assert other.resource(house.owner).status == 200, "trust in another root does not concern it"
        guest = house.guest(job, platform=Platform(pki)).attested()
        assert guest.resource(house.owner).status == 200
    # Nor do endorsements that were outdated before the root was distrusted, also after a restart.
    house.as_owner()("DELETE", f"/v1/anchors/{anchor.fingerprint}")
    endorse(4)
    _trusting(house, pki)
    for one in (house, house.reopened()):
        caplog.clear()
        assert one.guest(job, platform=Platform(pki)).attest().status != 200
        assert re.search("expected edition 5 of .*, seen before, or newer, got edition 4 of", caplog.text)


def test_T277_trust_that_changes_while_evidence_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = make_house(tmp_path)
    job, _ = house.ready()
    root, pki = house.service.anchors[0], house.platform.pki

    def change(*_: object, **__: object) -> Claims:
        claims = verify_any(*_, **__)  # type: ignore[arg-type]
        with house.service.store.transaction() as tx:
            house.service.distrust(tx, root["fingerprint"])
        with house.service.store.transaction() as tx:
            house.service.trust(tx, root)
        house.service.follow()
        return claims

    with monkeypatch.context() as during:
        during.setattr(guest_api, "verify_any", change)
        guest = house.guest(job).attested()
    assert pki.anchor().fingerprint == root["fingerprint"]
    assert guest.resource(house.owner).code == "denied"
    assert house.guest(job).attested().resource(house.owner).status == 200
