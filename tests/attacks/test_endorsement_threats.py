"""One test per threat to what a trust service believes of hardware (docs/threat-model.md, T261 to T264, T375, T403)."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding
from tests.fakes.attest_parts import NOW, Platform, make_pki
from tests.fakes.quote_parts import PKI, case, crl
from tests.fakes.service_parts import House, make_house
from tests.fakes.snp_parts import DER, MILAN, Maker

from strongroom.attest.endorsement_files import file_name, write_bundle
from strongroom.attest.endorsements import INTEL_ROOT, TrustAnchor
from strongroom.attest.evidence import Evidence
from strongroom.attest.verifiers import verify_any
from strongroom.cli import doctor
from strongroom.cli import endorsements as endorsement_commands
from strongroom.cli import service as service_commands
from strongroom.client.workspace import Workspace
from strongroom.errors import EndorsementError, InputError, UnavailableError
from strongroom.service import server, trust
from strongroom.service.endorsements import EndorsementFolder
from strongroom.service.guest_api import GuestAPI


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
    other, bundle, before = Platform().pki, tmp_path / "b.json", list(house.service.trusted().anchors)
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
            _command(house, monkeypatch, "trust", str(bundle), "--minimum-tcb", "unnamed=4.0.20.209")
    answer = house.as_owner()("PUT", "/v1/anchors", {"fingerprint": own.fingerprint})
    assert (answer.code, "own_root" in answer.json["detail"]) == ("input", True)
    assert house.service.trusted().anchors == before
    # Whoever means another root says which one; a bundle under a third is still refused.
    certificate = tmp_path / "ark.pem"
    certificate.write_bytes(MILAN.ark.public_bytes(Encoding.PEM))
    words = ("trust", str(bundle), "--minimum-tcb", "unnamed=4.0.20.209", "--anchor", str(certificate))
    write_bundle(bundle, own, [genuine])
    with pytest.raises(EndorsementError, match="root: expected Intel's or AMD's"):
        _command(house, monkeypatch, *words)
    write_bundle(bundle, MILAN.anchor, [MILAN.endorsements(), genuine])
    with pytest.raises(EndorsementError, match="root: expected Intel's or AMD's"):
        _command(house, monkeypatch, *words)
    write_bundle(bundle, MILAN.anchor, [MILAN.endorsements()])
    said = _command(house, monkeypatch, *words)
    assert "is believed" in said
    assert (
        f"no maker's root: policies have to name it (`strongroom policy set ... --root {MILAN.anchor.fingerprint}`)"
        in said
    )
    assert "WARNING: whoever has a Milan chip" in said
    assert house.service.trusted().anchors[-1]["fingerprint"] == MILAN.anchor.fingerprint


@pytest.mark.parametrize("later", [0, 1])
def test_T262_an_older_revocation_list_hides_nothing_beside_a_newer_one(later: int) -> None:
    intel = case("sgx3")
    revoked = crl(PKI.platform_ca, PKI.platform_key, days=0, revoked=PKI.pck.serial_number)
    new, old = (
        intel.endorsed(pck_crl=value).endorsements
        for value in (revoked, crl(PKI.platform_ca, PKI.platform_key, days=-20))
    )
    evidence, verifier = Evidence(tee="sgx", quote=intel.quote), Platform().verifier
    verify_any(evidence, [(verifier, old)], now=NOW)
    both = [(verifier, old), (verifier, new)]
    with pytest.raises(EndorsementError, match=r"revoked: .*SGX PCK Certificate"):
        verify_any(evidence, both[::-1] if later else both, now=NOW)
    newer = case("sgx3", tcb_eval_number=2, tcb_status="OutOfDate").endorsements
    found = [(verifier, one) for one in ((newer, intel.endorsements) if later else (intel.endorsements, newer))]
    assert verify_any(evidence, found, now=NOW).tcb_status == "OutOfDate"
    forged = replace(newer, tcb_info=newer.tcb_info.replace("OutOfDate", "Revoked"))
    assert verify_any(evidence, [(verifier, forged), (verifier, intel.endorsements)], now=NOW).tcb_status == "UpToDate"

    stale = MILAN.endorsements(crl=MILAN.crl(now=NOW - timedelta(days=20)))
    amd = [stale, MILAN.endorsements(crl=MILAN.crl([MILAN.ask.serial_number]))]
    choices = [(MILAN.verifier(), one) for one in (amd[::-1] if later else amd)]
    verify_any(MILAN.evidence(), [(MILAN.verifier(), stale)], now=NOW)
    with pytest.raises(EndorsementError, match=r"revoked: expected .*, got SEV-Milan"):
        verify_any(MILAN.evidence(), choices, now=NOW)


def test_T262_a_service_remembers_the_newest_endorsements_that_it_has_seen(house: House) -> None:
    now = datetime.now(UTC)
    job, _ = house.ready()
    house.guest(job).attested()
    house.endorse(now=now, tcb_eval_number=5)
    house.guest(job).attested()
    for step, accepted in (
        ({"now": now - timedelta(hours=3), "tcb_eval_number": 5}, False),
        ({"now": now + timedelta(minutes=1), "tcb_eval_number": 4}, False),
        ({"now": now + timedelta(minutes=1), "tcb_eval_number": 5}, True),
    ):
        house.endorse(**step)
        for _ in range(2):
            assert (house.guest(job).attest().status == 200) is accepted, step
            house = house.reopened()
    refused = [reason for d in house.decisions() for reason in d.get("details", {}).get("reasons", [])]
    assert any("expected edition 5 of" in reason and "got edition 4 of" in reason for reason in refused), refused
    # A claim to be newer that the maker did not sign withdraws nothing.
    folder = house.folder / "service" / "endorsements"
    forged = house.platform.pki.endorsements(now + timedelta(days=1), tcb_eval_number=9)
    for change in ({"tcb_info_signature": bytes(64)}, {"pck_crl": forged.root_ca_crl}):
        write_bundle(folder / "a.json", house.platform.pki.anchor(), [replace(forged, **change)])  # type: ignore[arg-type]
        house.guest(job).attested()


def test_T262_import_takes_nothing_older_or_unsigned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    maker, bundle, root = Maker(now=now), tmp_path / "b.json", tmp_path / "ark.pem"
    root.write_bytes(maker.ark.public_bytes(Encoding.PEM))
    monkeypatch.setattr(endorsement_commands, "_folder", lambda *_: tmp_path / "known")

    def take(**changes: bytes) -> None:
        write_bundle(bundle, maker.anchor, [maker.endorsements(**changes)])
        words = ["import", str(bundle), "--anchor", str(root)]
        done = CliRunner().invoke(endorsement_commands.command, words, standalone_mode=False)
        if done.exception:
            raise done.exception

    take()
    for changes, reason in (
        ({"crl": maker.crl(now=now - timedelta(days=3))}, "crl: expected that of"),
        ({"crl": maker.crl(now=now + timedelta(hours=1), key=1)}, "expected a list signed by"),
        ({"ask": Maker(root_key=1).ask.public_bytes(DER)}, "not signed under its root"),
    ):
        with pytest.raises(EndorsementError, match=reason):
            take(**changes)
    take(crl=maker.crl(now=now + timedelta(hours=1)))


def test_T263_one_bad_file_stops_no_other(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job, _ = house.ready()
    folder = house.folder / "service" / "endorsements"
    for number, text in enumerate(("", "{}", "[" * 100_000, '{"anchor": 1, "endorsements": []}')):
        (folder / f"0{number}.json").write_text(text)
    (folder / "0-link.json").symlink_to(folder / "nowhere")
    (folder / "0-folder.json").mkdir()
    house.guest(job).attested()
    reads = []
    monkeypatch.setattr(trust, "renewed", lambda *given: reads.append(given))
    house.guest(job).attested()
    assert not reads, "unreadable files are not read again for every request"

    other = replace(Maker(product="Genoa").endorsements(), ask=b"0\0")
    choices = [(Maker(product="Genoa").verifier(), other), (MILAN.verifier(), MILAN.endorsements())]
    assert verify_any(MILAN.evidence(certificate=True), choices, now=NOW).tee == "snp"


def test_T263_every_family_under_a_root_has_its_own_endorsements() -> None:
    mine, verifier = case("sgx3"), Platform().verifier
    other = mine.document("tcb_info", lambda d: d.update(fmspc="00906ED50000")).endorsements
    evidence = Evidence(tee="sgx", quote=mine.quote)
    for found in ((other, mine.endorsements), (mine.endorsements, other)):
        assert verify_any(evidence, [(verifier, one) for one in found], now=NOW).fmspc == "53494d000000"
    assert file_name(other) == "sgx-00906ed50000-platform.json"


def test_T264_trust_is_taken_back_at_once_and_only_as_one_step(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job, _ = house.ready()
    guest, root = house.guest(job).attested(), house.service.trusted().anchors[0]["fingerprint"]
    assert guest.resource(house.owner).status == 200
    before, lease = list(house.service.trusted().anchors), house.service.trusted().lease_s
    with monkeypatch.context() as broken:
        broken.setattr(house.service.parts.audit, "append", _full_disk)
        for method, path, body in (
            ("PUT", "/v1/anchors", {"fingerprint": INTEL_ROOT.fingerprint}),
            ("DELETE", f"/v1/anchors/{root}", None),
            ("PUT", "/v1/lease", {"lease_s": 121}),
        ):
            assert house.as_owner()(method, path, body).status >= 500
    assert (house.service.trusted().anchors, house.service.trusted().lease_s) == (before, lease)
    house.as_owner()("PUT", "/v1/anchors", {"fingerprint": INTEL_ROOT.fingerprint})
    assert guest.resource(house.owner).status == 200, "trust in another root does not concern it"
    assert root[:16] in _command(house, monkeypatch, "distrust", root[:8])
    assert guest.resource(house.owner).code == "denied"
    assert house.guest(job).attest().code == "endorsement"
    assert house.reopened().guest(job).attest().code == "endorsement"


def test_T264_other_settings_are_said_and_end_sessions(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pki, bundle, root = Platform(make_pki("two")).pki, tmp_path / "b.json", tmp_path / "root.pem"
    anchor = TrustAnchor(kind="hardware", certificate_der=pki.anchor().certificate_der)
    for path in (bundle, house.folder / "service" / "endorsements" / "two.json"):
        write_bundle(path, anchor, [pki.endorsements(datetime.now(UTC))])
    root.write_bytes(pki.root.public_bytes(Encoding.PEM))

    def trust(floor: str, *settings: str) -> str:
        words = ("trust", str(bundle), "--anchor", str(root), "--minimum-tcb", f"unnamed={floor}", *settings)
        return _command(house, monkeypatch, *words)

    assert " was " not in trust("4.0.21.209", "--no-smt")
    job, _ = house.ready()
    guest = house.guest(job, platform=Platform(pki)).attested()
    assert " was " not in trust("4.0.21.209", "--no-smt")
    assert guest.resource(house.owner).status == 200
    said = trust("4.0.20.209", "--cxl")
    assert "WARNING: minimum_tcb was unnamed=4.0.21.209, is unnamed=4.0.20.209" in said
    assert "WARNING: smt was refused, is not set" in said
    assert "WARNING: cxl was not set, is allowed" in said
    assert guest.resource(house.owner).code == "denied"


def _full_disk(*_: object, **__: object) -> None:
    raise UnavailableError("the disk is full")


def test_T375_endorsements_do_not_end_unannounced(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From that day on every guest is refused, so doctor, status and the service's log say it a week before."""
    now, pki, folder = datetime.now(UTC), make_pki("two"), house.folder / "service" / "endorsements"
    own = replace(pki.anchor(), kind="hardware")
    house.as_owner()("PUT", "/v1/anchors", {"fingerprint": own.fingerprint, "own_root": True})
    job, _ = house.ready()
    (house.folder / "workspace.toml").write_text('identity = "i"\nowner = "o"\nname = "n"\n')
    monkeypatch.setenv("STRONGROOM_WORKSPACE", str(house.folder))
    here = Workspace.find(house.folder)
    client = SimpleNamespace(workspace=here, call=lambda *_: dict(house.as_owner()("GET", "/v1/status").json))
    monkeypatch.setattr(service_commands, "owner", lambda: client)

    def said() -> tuple[tuple[str, str] | None, str, list[str]]:
        row = next((row[1:] for row in doctor._workspace() if row[0] == "endorsements"), None)
        status = CliRunner().invoke(service_commands.command, ["status"], standalone_mode=False)
        assert status.exception is None, status.exception
        caplog.clear()
        server._look(house.service, EndorsementFolder(house.service))  # at the start, and each minute: no guest came
        logged = [r.getMessage() for r in caplog.records if "endorsements end" in r.getMessage()]
        return row, status.stdout, logged  # type: ignore[return-value]

    assert said()[0] is None, "SIMULATED ones are renewed by jobs"
    for age, words in ((31, "(-2 days)"), (25, "(4 days)"), (0, "(29 days)")):
        write_bundle(folder / "own.json", own, [pki.endorsements(now - timedelta(days=age), tee="sgx")])
        row, status, logged = said()
        assert row is not None
        assert words in row[1]
        assert (row[0], "fetch" in row[1]) == (("WARNING", True) if age else ("ok", False))
        assert (f"WARNING: {row[1]}" if age else row[1]) in status
        assert [words.strip("()").split()[0] in one for one in logged] == [True] * bool(age), logged
        if age == 25:
            caplog.clear()
            house.guest(job).attested()
            house.guest(job).attested()
            assert len([r for r in caplog.records if "endorsements end" in r.getMessage()]) == 1, "once a day"
    # What another file renews does not end.
    write_bundle(folder / "old.json", own, [pki.endorsements(now - timedelta(days=31))])
    row, _, logged = said()
    assert row is not None
    assert (row[0], logged) == ("ok", [])


@pytest.mark.parametrize("what", ["pipe", "error"])
def test_T403_a_file_among_the_endorsements_holds_up_no_destruction(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Housekeeping goes on, whatever the host puts where endorsements lie."""
    job, _ = house.ready()
    house.guest(job).attested()  # so that these endorsements are known
    folder, api = house.folder / "service" / "endorsements", GuestAPI(house.service)
    os.mkfifo(folder / "pipe.json")
    if what == "error":
        monkeypatch.setattr("strongroom.service.endorsements.read_folder", lambda _: 1 / 0)
    done: list[str] = []
    monkeypatch.setattr(house.service, "destroy_due", lambda *_, **__: done.append("destroyed"))
    monkeypatch.setattr(server, "HOUSEKEEPING_S", 0.0)
    monkeypatch.setattr(server, "LEAF_RENEWAL_S", -1.0)

    async def run() -> None:
        task = asyncio.create_task(server._housekeeping(house.service, api.endorsements, lambda: done.append("TLS")))
        async with asyncio.timeout(20):
            while len(done) < 4:
                await asyncio.sleep(0.01)
        task.cancel()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    thread.join(30)
    os.close(os.open(folder / "pipe.json", os.O_RDWR))  # whoever waits for it is let go
    assert not thread.is_alive()
    assert done[:4] == ["destroyed", "TLS"] * 2
    if what == "pipe":
        assert any("expected a regular file" in r.getMessage() for r in caplog.records)
        assert house.guest(job).attest().status == 200, "it stops no other"
    else:
        assert any("ZeroDivisionError" in (r.exc_text or "") for r in caplog.records)
