"""One test per threat to a trust service whose state is sealed to the TEE it runs in (T320 to T324, T355 to T359)."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.fakes.attest_parts import MEASUREMENT, FakeAttester, Platform, gramine_folder, make_pki
from tests.fakes.service_parts import House, make_house
from tests.unit.test_jobs_libos import FewFiles

from strongroom.attest.attesters.gramine import GramineAttester
from strongroom.attest.policies import AllOf, Measurement, UnsafeAcceptSimulated
from strongroom.attest.simulated import process
from strongroom.attest.simulated.process import simulated_platform
from strongroom.cli.service_verify import judge_service
from strongroom.client.evidence import Shown, ask
from strongroom.client.owner import OwnerClient
from strongroom.client.seen import Seen
from strongroom.client.setup import accept_look, first_look, request_workspace
from strongroom.client.workspace import Workspace
from strongroom.crypto import x509
from strongroom.errors import DeniedError, InputError, IntegrityError
from strongroom.jobs.enclaves.gramine import build_service
from strongroom.kms.audit_chain import AuditHead
from strongroom.kms.roots.registry import RootFolder
from strongroom.kms.stores.sql import get_meta, set_meta
from strongroom.service.state import TrustService

SERVICE = AllOf((Measurement((MEASUREMENT.hex(),)), UnsafeAcceptSimulated()))
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


def _made_for(house: House, admin: str, identity: str = "", shown: Shown | None = None) -> str:
    """Return what speaks against the service in `house` at the first look of the owner `admin`."""
    shown = shown or _shown(house)
    now = datetime.now(UTC)
    choices = [(house.platform.verifier, house.platform.pki.endorsements(now))]
    verdict = judge_service(shown, identity or _identity(house), SERVICE, choices, now=now, admin=admin)
    return "; ".join(str(check) for check in verdict.checks if not check.passed)


def _shown(house: House, owner: str = "", **said: object) -> Shown:
    return ask(lambda method, path, body: house.as_owner(owner or house.owner)(method, path, body).json | said)


def _identity(house: House) -> str:
    return x509.spki_id(x509.certificate_from_pem(house.service.identity_pem).public_key())  # type: ignore[arg-type]


def _marked(house: House, name: str, value: bytes | None = None) -> bytes:
    """Return a row of the service's, after the host set it: as if no other check were there."""
    with house.service.store.transaction() as tx:
        if value is not None:
            set_meta(tx, name, value)
        return get_meta(tx, name) or b""


def test_T322_a_service_made_outside_its_tee_or_for_somebody_else(tmp_path: Path) -> None:
    attester = FakeAttester()
    house = make_house(tmp_path / "one", kind="tee", options=SHARES, attester=attester)
    assert _made_for(house, house.owner) == ""
    genuine = _marked(house, "born")

    # For another administrator, whom the machine's operator chose; as another identity than the one handed over.
    other = make_house(tmp_path / "two", kind="tee", options=SHARES, attester=attester)
    assert f"administrator: expected {house.owner}, got {other.owner}" in _made_for(other, house.owner)
    assert f"identity: expected {_identity(house)}, got" in _made_for(other, other.owner, _identity(house))

    # Set up outside, then moved in and sealed there: whoever made it has its keys. With another service's mark, too.
    outside = make_house(tmp_path / "three", kind="shares", options=SHARES)
    outside = outside.reopened(outside.handout, attester)
    outside.service.rotate_root("tee", SHARES, actor="x", now=datetime.now(UTC))
    assert outside.service.root_kind == "tee"
    nobody = f"administrator: expected {outside.owner}, got nobody: it was not made in this TEE"
    assert nobody in _made_for(outside, outside.owner)
    for forged in (genuine, bytes(32), b""):
        _marked(outside, "born", forged)
        outside = outside.reopened([], attester)
        assert nobody in _made_for(outside, outside.owner)

    # It stays true over restarts and new root keys; not elsewhere, nor with another administrator in its row.
    house.service.rotate_root("tee", SHARES, actor="x", now=datetime.now(UTC))
    house = house.reopened([], attester)
    assert _made_for(house, house.owner) == ""
    _marked(house, "admin", other.owner.encode())
    house = house.reopened([], attester)
    assert "got nobody" in _made_for(house, house.owner)
    _marked(house, "admin", house.owner.encode())
    shares = house.service.rotate_root("tee", SHARES, actor="x", now=datetime.now(UTC))
    moved = house.reopened(shares, FakeAttester(measurement=b"o" * 32))
    assert moved.service.born_for == ""


def test_T322_a_locked_service_is_nobodys(tmp_path: Path) -> None:
    attester = FakeAttester()
    house = make_house(tmp_path, kind="tee", options=SHARES, attester=attester)
    house.service.store.close()
    service = TrustService(tmp_path / "service", tmp_path / "root", attester)
    locked = House(service, house.owner, house.platform, tmp_path, [])
    failing = _made_for(locked, house.owner)
    assert "got nobody" in failing
    assert "identity: expected" in failing


def test_T355_genuine_evidence_for_another_identity_than_the_one_handed_over(tmp_path: Path) -> None:
    attester, forged = FakeAttester(), x509.spki_id(x509.new_key().public_key())
    house = make_house(tmp_path, kind="tee", options=SHARES, attester=attester)
    second = house.add_owner("second")
    # The host hands over an identity of its own, lets any owner ask for the nonce, and says that this one is locked.
    for said in (True, False):
        shown = _shown(house, second, locked=said)
        assert f"identity: expected {forged}" in _made_for(house, house.owner, forged, shown)

    # Unlocked between the look at what the service is and the turn at its attester.
    house.service.store.close()
    service = TrustService(tmp_path / "service", tmp_path / "root", attester)
    house = House(service, house.owner, house.platform, tmp_path, house.handout)
    answers: list[Shown] = []
    with house.owner_api._quoting:
        waiting = threading.Thread(target=lambda: answers.append(_shown(house)))
        waiting.start()
        time.sleep(0.3)
        service.unlock(house.handout[:2], now=datetime.now(UTC))
    waiting.join()
    assert (answers[0].locked, answers[0].key) == (False, service.parts.identity.public_key())
    assert f"identity: expected {forged}" in _made_for(house, house.owner, forged, answers[0])
    assert _made_for(house, house.owner, "", answers[0]) == ""


def test_T357_a_root_key_that_the_host_could_have_ends_the_claim_of_birth(tmp_path: Path) -> None:
    attester = FakeAttester()
    house = make_house(tmp_path, kind="tee", options=SHARES, attester=attester)
    roots = {path.name for path in (tmp_path / "root").iterdir()}
    for prepare in (False, True):
        answer = house.as_owner()("POST", "/v1/root/rotate", {"kind": "keyfile", "prepare": prepare})
        assert (answer.code, "kind keyfile: expected" in answer.json["detail"]) == ("input", True)
    assert {path.name for path in (tmp_path / "root").iterdir()} == roots, "never on the host's disk"
    for kind, options in (("passphrase", {"passphrase": "correct horse battery"}), ("tee", SHARES)):
        answer = house.as_owner()("POST", "/v1/root/rotate", {"kind": kind, "options": options})
        assert answer.status == 200, answer.raw
        assert "got nobody: it was not made in this TEE" in _made_for(house, house.owner)
    house = house.reopened([], attester)
    assert "got nobody: it was not made in this TEE" in _made_for(house, house.owner)


def test_T358_two_first_looks_at_once(tmp_path: Path) -> None:
    here, _ = request_workspace(tmp_path, name="shop", service="127.0.0.1:1", first=True)
    before = {path.name for path in here.folder.iterdir()}
    identities = []
    for name in ("evil.pem", "good.pem", "late.pem"):
        key = x509.self_signed(x509.new_key(), name, now=datetime.now(UTC), days=9, ca=True)
        identities.append(tmp_path / name)
        identities[-1].write_text(x509.certificate_pem(key))
    with first_look(here, identities[0]) as evil:
        assert {path.name for path in here.folder.iterdir()} == before | {evil.folder.name}
        OwnerClient(evil).close()
        with first_look(here, identities[1]) as good, first_look(here, identities[2]) as late:
            for looked in (good, evil, late):
                (looked.folder / "service-pin.json").write_text(looked.identity)
                Seen.load(looked.folder / "seen.json").see_head(AuditHead(seq=1, chain=looked.identity))
            accept_look(here, good)
            with pytest.raises(InputError, match="another look was accepted meanwhile"):
                accept_look(here, late)
    found = Workspace.find(here.folder)
    assert found.identity == good.identity
    OwnerClient(found).close()
    assert (here.folder / "service-pin.json").read_text() == good.identity
    head = Seen.load(here.folder / "seen.json").head
    assert head is not None
    assert head.chain == good.identity
    assert not list(here.folder.glob(".look-*"))


def test_T323_an_altered_image_of_the_service_gets_another_sealing_key(tmp_path: Path) -> None:
    bundle = build_service(FewFiles(tmp_path / "runtimes"), tmp_path / "bundle").folder
    template = bundle / "job.manifest.template"
    text, count = template.read_text(), 0

    def enclave(manifest: str) -> GramineAttester:
        # As the processor does it: all of the manifest is measured, and the key follows from that.
        nonlocal count
        folder = tmp_path / f"attestation-{(count := count + 1)}"
        folder.mkdir()
        return GramineAttester(gramine_folder(folder, lambda _: b"", hashlib.sha256(manifest.encode()).digest()[:16]))

    (roots := tmp_path / "root").mkdir()
    root, _ = RootFolder(roots, enclave(text)).create("tee", SHARES)
    assert RootFolder(roots, enclave(text)).unlock(root.id, []).id == root.id
    digest = tomllib.loads(text)["sgx"]["trusted_files"][1]["sha256"]
    for before, after in (
        ("/launch/admin.pem", "/launch/other.pem"),
        ('loader.env.TZ = "UTC"', 'loader.env.TZ = "UTC"\nloader.env.PYTHONPATH = "/launch"'),
        ('  "file:launch/",', '  "file:launch/",\n  "file:root/opt/",'),
        ("sgx.debug = false", "sgx.debug = true"),
        (digest, "0" * 64),
    ):
        assert text.count(before) >= 1, before
        with pytest.raises(DeniedError, match="other code or another machine"):
            RootFolder(roots, enclave(text.replace(before, after))).unlock(root.id, [])
    # What the host may write is the state and a certificate; neither is measured, nor believed.
    (bundle / "service" / "state.db").write_bytes(b"x")
    (bundle / "launch" / "admin.pem").write_text("x")
    build_service(FewFiles(tmp_path / "again"), bundle)
    assert template.read_text() == text
