"""`strongroom attest show` on a certificate."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from tests.fakes.attest_parts import FakeAttester, Platform

from strongroom.attest import ratls
from strongroom.cli.attest import command


def test_a_certificate_is_explained_and_its_key_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, pki = datetime.now(UTC), Platform().pki
    known = tmp_path / ".strongroom" / "service" / "endorsements" / "one.json"
    known.parent.mkdir(parents=True)
    endorsements = [pki.endorsements(now).to_json()]
    known.write_text(json.dumps({"anchor": pki.anchor().to_json(), "endorsements": endorsements}))
    (tmp_path / ".strongroom" / "workspace.toml").write_text('identity = "i"\nowner = "o"\nname = "n"\n')
    monkeypatch.setenv("STRONGROOM_WORKSPACE", str(tmp_path))

    key, other = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    genuine = ratls.make_certificate(key, FakeAttester(), now=now, lifetime=timedelta(days=1))
    evidence = genuine.extensions.get_extension_for_oid(ratls.EXTENSION).value
    stolen = (
        x509.CertificateBuilder().subject_name(genuine.subject).issuer_name(genuine.subject).serial_number(1)
        .public_key(other.public_key()).not_valid_before(now).not_valid_after(now + timedelta(days=1))
        .add_extension(evidence, critical=False).sign(other, hashes.SHA384())
    )  # fmt: skip
    cases = ((genuine, Encoding.PEM, 0), (genuine, Encoding.DER, 0), (stolen, Encoding.PEM, 1))
    for certificate, encoding, passes in cases:
        (tmp_path / "c").write_bytes(certificate.public_bytes(encoding))
        done = CliRunner().invoke(command, ["show", str(tmp_path / "c"), "--json"], standalone_mode=False)
        assert done.return_value == passes, done.output
        checks = {c["check"]: c["detail"] for c in json.loads(done.stdout)["checks"]}
        assert ("names its key" in checks["certificate"]) is not bool(passes), checks
        assert passes == 0 or "expected evidence for key" in checks["certificate"]
