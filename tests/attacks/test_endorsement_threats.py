"""One test per threat to what a trust service believes of hardware (docs/threat-model.md, T261 to T264)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding
from tests.fakes.attest_parts import Platform
from tests.fakes.service_parts import House, make_house
from tests.fakes.snp_parts import MILAN

from strongroom.attest.endorsement_files import write_bundle
from strongroom.attest.endorsements import INTEL_ROOT, TrustAnchor
from strongroom.cli import service as service_commands
from strongroom.errors import EndorsementError, InputError


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path)


class _Owner:
    """An owner's client that reaches `house` without a network."""

    def __init__(self, house: House) -> None:
        self.house = house

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        answer = self.house.as_owner()(method, path, body)
        assert answer.status == 200, answer.raw
        return answer.json


def _command(house: House, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setattr(service_commands, "owner", lambda: _Owner(house))
    done = CliRunner().invoke(service_commands.command, list(words), standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.output


def test_T261_a_bundle_does_not_choose_whom_the_service_believes(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, bundle, before = Platform().pki, tmp_path / "b.json", list(house.service.anchors)
    own = TrustAnchor(kind="hardware", certificate_der=other.anchor().certificate_der)
    genuine = other.endorsements(datetime.now(UTC))
    for anchor, found, error, reason in (
        (own, [genuine], EndorsementError, "root: expected Intel's or AMD's"),
        (INTEL_ROOT, [genuine], EndorsementError, "root: expected Intel's or AMD's"),
        (MILAN.anchor, [MILAN.endorsements()], EndorsementError, "root: expected Intel's or AMD's"),
        (INTEL_ROOT, [], InputError, "got none"),
        (other.anchor(), [genuine], InputError, "SIMULATED"),
    ):
        write_bundle(bundle, anchor, found)  # type: ignore[arg-type]
        with pytest.raises(error, match=reason):
            _command(house, monkeypatch, "trust", str(bundle), "--minimum-tcb", "4.0.20.209")
    answer = house.as_owner()("PUT", "/v1/anchors", {"fingerprint": own.fingerprint})
    assert (answer.code, "own_root" in answer.json["detail"]) == ("input", True)
    assert house.service.anchors == before
    # Whoever means another root says which one; a bundle under a third is still refused.
    certificate = tmp_path / "ark.pem"
    certificate.write_bytes(MILAN.ark.public_bytes(Encoding.PEM))
    words = ("trust", str(bundle), "--minimum-tcb", "4.0.20.209", "--anchor", str(certificate))
    write_bundle(bundle, own, [genuine])
    with pytest.raises(EndorsementError, match="root: expected Intel's or AMD's"):
        _command(house, monkeypatch, *words)
    write_bundle(bundle, MILAN.anchor, [MILAN.endorsements(), genuine])
    with pytest.raises(EndorsementError, match="root: expected Intel's or AMD's"):
        _command(house, monkeypatch, *words)
    write_bundle(bundle, MILAN.anchor, [MILAN.endorsements()])
    assert "is believed" in _command(house, monkeypatch, *words)
    assert house.service.anchors[-1]["fingerprint"] == MILAN.anchor.fingerprint
