"""One test per threat to a trust service whose state is sealed to the TEE that it runs in (T320 to T324)."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.fakes.attest_parts import FakeAttester, Platform, make_pki
from tests.fakes.service_parts import make_house

from strongroom.attest.simulated import process
from strongroom.attest.simulated.process import simulated_platform
from strongroom.errors import DeniedError, IntegrityError
from strongroom.kms.roots.registry import RootFolder
from strongroom.service.state import TrustService

SHARES = {"threshold": "2", "shares": "3"}


def test_T320_a_service_of_other_code_or_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "seed", tmp_path / "other-seed"
    roots = tmp_path / "root"
    roots.mkdir()
    with simulated_platform(here) as attester:
        root, shares = RootFolder(roots, attester).create("tee", SHARES)
    with simulated_platform(here) as attester:
        assert RootFolder(roots, attester).unlock(root.id, []).id == root.id
    with simulated_platform(there) as attester, pytest.raises(DeniedError, match="other code or another machine"):
        RootFolder(roots, attester).unlock(root.id, [])
    with monkeypatch.context() as patch:
        patch.setattr(process, "own_measurement", lambda: b"\xee" * 32)
        with simulated_platform(here) as attester, pytest.raises(DeniedError, match="needs 2 shares"):
            RootFolder(roots, attester).unlock(root.id, [])
    with pytest.raises(DeniedError, match="runs outside"):
        RootFolder(roots).unlock(root.id, [])
    # Nor does what the host can read hold the key: it is not under the measurement, which everybody knows.
    sealed = (roots / f"root-{root.id}.key").read_bytes()
    assert len(sealed) == 12 + 32 + 16
    with simulated_platform(there) as attester:
        assert RootFolder(roots, attester).unlock(root.id, shares[1:]).id == root.id


def test_T320_a_whole_service_moved_stays_locked_until_people_come(tmp_path: Path) -> None:
    house = make_house(tmp_path, kind="tee", options=SHARES, attester=FakeAttester())
    house.as_owner()("POST", "/v1/keys", {"name": "sales"})
    for stranger in (FakeAttester(measurement=b"o" * 32), FakeAttester(Platform(make_pki("two"))), None):
        moved = house.reopened(attester=stranger)
        with pytest.raises(DeniedError, match="it needs 2 shares"):
            moved.service.unlock([], now=datetime.now(UTC))
        assert moved.service.locked
        assert moved.as_owner()("GET", "/v1/keys").code == "unavailable"
    moved = house.reopened(house.handout[:2], FakeAttester(Platform(make_pki("two"))))
    assert [k["name"] for k in moved.as_owner()("GET", "/v1/keys").json["keys"]] == ["sales"]
    moved.reopened([], FakeAttester(Platform(make_pki("two"))))  # it is sealed to the new machine


def test_T321_a_sealed_root_key_altered_cut_swapped_or_of_a_retired_root(tmp_path: Path) -> None:
    attester = FakeAttester()
    house = make_house(tmp_path, kind="tee", options=SHARES, attester=attester)
    old = tmp_path / "root" / f"root-{house.service.root_name}.key"
    first = old.read_bytes()
    house.service.rotate_root("tee", SHARES, actor="x", now=datetime.now(UTC))
    assert not old.exists()
    sealed = tmp_path / "root" / f"root-{house.service.root_name}.key"
    whole = sealed.read_bytes()
    altered = [bytes(b ^ (1 if n == at else 0) for n, b in enumerate(whole)) for at in range(len(whole))]
    for bad in (b"", whole[:12], whole[:-1], whole + b"\0", first, bytes(len(whole)), *altered):
        sealed.write_bytes(bad)
        with pytest.raises(DeniedError, match="or was altered: it needs 2 shares"):
            house.reopened([], attester)
    sealed.write_bytes(whole)
    assert not house.reopened([], attester).service.locked
    # The descriptor cannot make it another kind that opens.
    descriptor = sealed.with_suffix(".json")
    text = descriptor.read_text()
    for before, after in (('"tee"', '"keyfile"'), ('"tee"', '"shares"'), ('"tee"', '"passphrase"')):
        descriptor.write_text(text.replace(before, after))
        with pytest.raises((DeniedError, IntegrityError)):
            house.reopened([], attester)
    descriptor.write_text(text)
    # A copy of everything on another machine is as much worth as without the key.
    shutil.copytree(tmp_path / "root", tmp_path / "copy" / "root")
    shutil.copytree(tmp_path / "service", tmp_path / "copy" / "service")
    stolen = TrustService(
        tmp_path / "copy" / "service", tmp_path / "copy" / "root", FakeAttester(measurement=bytes(32))
    )
    with pytest.raises(DeniedError):
        stolen.unlock([], now=datetime.now(UTC))
    stolen.store.close()
