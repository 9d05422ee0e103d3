"""Endorsements from makers' services over real HTTP, into files, and what verification does without them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding
from tests.fakes.attest_parts import NOW, Platform
from tests.fakes.maker_services import Makers, serving
from tests.fakes.quote_parts import PKI
from tests.fakes.snp_parts import MILAN, TURIN, Maker

from strongroom.attest.endorsement_fetch import MakerService, fetch_intel, fetch_snp
from strongroom.attest.endorsement_files import anchor_of, file_name, read_bundle, write_bundle
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.snp import parse_report
from strongroom.attest.verifiers.newest import proven
from strongroom.cli.endorsements import command
from strongroom.client.setup import create_workspace
from strongroom.errors import EndorsementError, InputError, UnavailableError

PLATFORM = Platform()
FMSPC = "53494d000000"


@pytest.fixture
def makers() -> Iterator[Makers]:
    pki = PLATFORM.pki
    intel = {
        ("sgx", "standard"): pki.endorsements(NOW, tcb_eval_number=16),
        ("sgx", "early"): pki.endorsements(NOW, tcb_eval_number=18),
        ("sgx", "17"): pki.endorsements(NOW, tcb_eval_number=17),
        ("tdx", "standard"): pki.endorsements(NOW, tee="tdx"),
    }
    with serving(Makers(intel=intel, amd={"Milan": MILAN, "Turin": TURIN})) as found:
        yield found


def edition(found: object) -> int:
    return int(json.loads(found.tcb_info)["tcbEvaluationDataNumber"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["der", "hex", "pem"])
@pytest.mark.parametrize("tee", ["sgx", "tdx"])
def test_intel_comes_byte_for_byte(makers: Makers, tee: str, form: str) -> None:
    makers.crl_form = form
    found = fetch_intel(MakerService(makers.url), tee=tee, fmspc=FMSPC, ca="platform")  # type: ignore[arg-type]
    assert found == makers.intel[tee, "standard"]


def test_intel_editions(makers: Makers) -> None:
    service = MakerService(makers.url)
    assert edition(fetch_intel(service, tee="sgx", fmspc=FMSPC, ca="platform")) == 16
    assert edition(fetch_intel(service, tee="sgx", fmspc=FMSPC, ca="platform", update="early")) == 18
    assert edition(fetch_intel(service, tee="sgx", fmspc=FMSPC, ca="platform", edition=17)) == 17
    with pytest.raises(EndorsementError, match="no longer serves this edition: status 410"):
        fetch_intel(service, tee="sgx", fmspc=FMSPC, ca="platform", edition=3)
    assert any("tcbEvaluationDataNumber=17" in target for target in makers.asked)


def test_what_is_not_an_answer_is_refused(makers: Makers) -> None:
    service = MakerService(makers.url, sleep=lambda _: None)
    makers.broken = True
    with pytest.raises(EndorsementError, match="expected a certificate chain in the header TCB-Info-Issuer-Chain"):
        fetch_intel(service, tee="sgx", fmspc=FMSPC, ca="platform")
    for text in ("", "12345", "../../etc/pas"):
        with pytest.raises(InputError, match="an FMSPC has 12 hex digits"):
            fetch_intel(service, tee="sgx", fmspc=text, ca="platform")
    for address in ("http://example.org", "ftp://127.0.0.1", "x", "https://x:99999", "https://[x"):
        with pytest.raises(InputError, match="is not the https:// address"):
            MakerService(address).get("/")
    with pytest.raises(UnavailableError, match="does not answer"):
        MakerService("http://127.0.0.1:9").get("/")


def test_T244_certificates_and_lists_of_any_form_are_refused_in_order(makers: Makers) -> None:
    # What the X.509 library has errors of its own for: a version that does not exist, an extension twice, odd names.
    der = MILAN.ark.public_bytes(Encoding.DER)
    odd = der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020107"), 1)
    pem = f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(odd).decode()}-----END CERTIFICATE-----\n"
    intel, amd = makers.intel["sgx", "standard"], MILAN.endorsements()
    twice = intel.pck_crl.replace(bytes.fromhex("551d14"), bytes.fromhex("551d23"))
    for words in (
        lambda: anchor_of(replace(intel, pck_crl_issuer_chain=pem)),
        lambda: anchor_of(replace(intel, pck_crl_issuer_chain="")),
        lambda: file_name(replace(intel, pck_crl_issuer_chain=pem)),
        lambda: file_name(replace(intel, tcb_info="x")),
        lambda: file_name(replace(amd, ask=odd)),
        lambda: proven(MILAN.anchor, replace(amd, ask=odd)),
        lambda: proven(MILAN.anchor, replace(amd, ark=odd)),
        lambda: proven(PLATFORM.pki.anchor(), replace(intel, pck_crl=twice)),
        lambda: proven(PLATFORM.pki.anchor(), replace(intel, pck_crl_issuer_chain=pem)),
        lambda: proven(PLATFORM.pki.anchor(), replace(intel, tcb_info_signature=b"")),
    ):
        with pytest.raises(EndorsementError):
            words()

    class Odd(MakerService):
        def get(self, path: str, *_: object, **__: object) -> tuple[bytes, str]:
            return pem.encode() * 2, pem

    with pytest.raises(EndorsementError, match="is not two certificates"):
        fetch_snp(Odd(""), parse_report(MILAN.report()), "Milan")
    with pytest.raises(InputError, match="not readable PEM"):
        MakerService("https://127.0.0.1:9", ca_pem="garbage").get("/")


def test_busy_services_are_asked_politely(makers: Makers) -> None:
    waited: list[float] = []
    makers.busy, makers.retry_after = 2, "7"
    service = MakerService(makers.url, sleep=waited.append)
    assert service.get("/vcek/v1/Milan/crl")[0][:100] == MILAN.crl()[:100]
    assert waited == [7.0, 7.0]
    makers.busy, makers.retry_after, waited[:] = 99, "", []
    with pytest.raises(UnavailableError, match="answers 429 again and again"):
        service.get("/vcek/v1/Milan/crl")
    assert waited == [1.0, 2.0, 4.0, 8.0, 16.0]
    makers.busy, makers.retry_after, waited[:] = 1, "86400", []
    service.get("/vcek/v1/Milan/crl")
    assert waited == [60.0]


@pytest.mark.parametrize("maker", [MILAN, TURIN])
def test_amd(makers: Makers, maker: object) -> None:
    evidence = maker.evidence()  # type: ignore[attr-defined]
    report = parse_report(evidence.quote)
    found = fetch_snp(MakerService(makers.url), report, maker.product)  # type: ignore[attr-defined]
    claims = maker.verifier().verify(evidence, found, now=NOW)  # type: ignore[attr-defined]
    assert claims.tcb_status == "UpToDate"
    other = replace(found, keys=(maker.key(x4=bytes(64)).public_bytes(Encoding.DER),))  # type: ignore[attr-defined]
    again = fetch_snp(MakerService(makers.url), report, maker.product, other)  # type: ignore[attr-defined]
    assert again.keys[0] == other.keys[0]
    assert len(again.keys) == 2
    asked = len(makers.asked)
    assert fetch_snp(MakerService(makers.url), report, maker.product, again).keys == again.keys  # type: ignore[attr-defined]
    assert len(makers.asked) == asked + 2  # chain and revocation list, the chip's certificate is at hand


def test_amd_has_no_providers_keys(makers: Makers) -> None:
    service = MakerService(makers.url)
    with pytest.raises(EndorsementError, match="only the provider has it"):
        fetch_snp(service, parse_report(MILAN.report("vlek")), "Milan")
    brought = MILAN.evidence("vlek", certificate=True)
    found = fetch_snp(service, parse_report(brought.quote), "Milan")
    assert MILAN.verifier().verify(brought, found, now=NOW).tee == "snp"
    with pytest.raises(EndorsementError, match="status 404"):
        fetch_snp(service, parse_report(MILAN.report()), "Genoa")


def test_only_the_makers_roots_without_being_told() -> None:
    found = MILAN.endorsements()
    with pytest.raises(EndorsementError, match="root: expected Intel's or AMD's") as caught:
        anchor_of(found)
    assert "--anchor" in caught.value.hint
    assert anchor_of(found, MILAN.anchor) == MILAN.anchor


def test_commands(makers: Makers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    maker = makers.amd["Milan"] = Maker(now=now)
    here = create_workspace(tmp_path).workspace
    monkeypatch.setenv("STRONGROOM_WORKSPACE", str(here.folder))
    root, report, bundle = tmp_path / "ark.pem", tmp_path / "report.bin", tmp_path / "out" / "bundle.json"
    root.write_bytes(maker.ark.public_bytes(Encoding.PEM))
    report.write_bytes(maker.report(version=3))

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(command, list(words), standalone_mode=False)
        if done.exception:
            raise done.exception
        return done.return_value or 0, done.output

    fetch = ["fetch", str(report), "--from", makers.url]
    with pytest.raises(EndorsementError, match="root: expected Intel's or AMD's"):
        run(*fetch)
    said = run(*fetch, "--anchor", str(root))[1]
    assert "report.bin verifies with it, it calls itself 19-01-1 with TCB 4.0.20.209, which is no floor" in said
    assert "UpToDate" not in said
    assert "--minimum-tcb 19-01-1=VERSIONS` with those of AMD's latest security bulletin" in said
    asked = len(makers.asked)
    assert "nothing fetched" in run(*fetch, "--anchor", str(root))[1]
    assert len(makers.asked) == asked
    status, text = run("show")
    assert (status, "snp SEV-Milan" in text, "SIMULATED" in text) == (0, True, True)
    assert "SEV-VCEK Milan" in text
    assert "TCB 4.0.20.209" in text
    run(*fetch, "--anchor", str(root), "--out", str(bundle))
    run("import", str(bundle), "--anchor", str(root))
    stored = here.service_folder / "endorsements" / "snp-sev-milan.json"
    assert read_bundle(stored) == read_bundle(bundle)
    old = replace(maker.endorsements(), crl=maker.crl(now=now - timedelta(days=40)))
    write_bundle(bundle, maker.anchor, [old])
    with pytest.raises(EndorsementError, match="crl holds from") as caught:
        run("import", str(bundle), "--anchor", str(root))
    assert "attest endorsements fetch" in caught.value.hint
    status, text = run("show", str(bundle))
    assert (status, "EXPIRED" in text) == (1, True)
    for text in ("{}", json.dumps({"anchor": maker.anchor.to_json(), "endorsements": []})):
        stored.write_text(text)
        assert "verifies with it" in run(*fetch, "--anchor", str(root))[1], "what is at hand is replaced"
    bundle.write_text("{}")
    with pytest.raises(EndorsementError, match="are not readable"):
        run("show", str(bundle))
    bundle.write_text(json.dumps({"anchor": maker.anchor.to_json(), "endorsements": []}))
    assert run("show", str(bundle))[0] == 1, "nothing counts"
    stored.with_name("a.json").write_text("{}")  # one file stands in no other's way
    status, text = run("show")
    assert (status, "a.json" in text, "DOES NOT COUNT: the endorsements in" in text, "snp SEV-Milan" in text) == (
        1, True, True, True)  # fmt: skip


@pytest.mark.parametrize("part", ["root_ca_crl", "pck_crl", "tcb_info", "qe_identity", "root", "soon"])
def test_T396_show_does_not_take_a_files_word_for_whose_endorsements_are(tmp_path: Path, part: str) -> None:
    now, other = datetime.now(UTC), SimulatedPKI.create(b"x" * 32, now=datetime.now(UTC))
    anchor, good, forged = PKI.anchor(), PKI.endorsements(now), other.endorsements(now)
    shown = {"root": forged, "soon": PKI.endorsements(now + timedelta(days=2))}.get(part, good)
    if part in ("root_ca_crl", "pck_crl"):
        shown = replace(good, **{part: getattr(forged, part)})
    elif part in ("tcb_info", "qe_identity"):
        shown = replace(good, **{part: getattr(good, part).replace("UpToDate", "UpToDatf")})
    for given, status in ((good, 0), (shown, 1)):
        write_bundle(tmp_path / "b.json", anchor, [given])
        done = CliRunner().invoke(command, ["show", str(tmp_path / "b.json")], standalone_mode=False)
        assert (done.exception, done.return_value) == (None, status), done.output
        assert ("NOT YET" if part == "soon" else "DOES NOT COUNT: ") in done.output or not status


def test_a_bundle_is_fetched_where_there_is_no_workspace(
    makers: Makers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = makers.amd["Milan"] = Maker(now=datetime.now(UTC))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STRONGROOM_WORKSPACE", raising=False)
    Path("ark.pem").write_bytes(maker.ark.public_bytes(Encoding.PEM))
    Path("q").write_bytes(maker.report(version=3))
    words = ["fetch", "q", "--from", makers.url, "--anchor", "ark.pem"]
    done = CliRunner().invoke(command, [*words, "--out", "b"], standalone_mode=False)
    assert done.exception is None, done.exception
    assert "wrote b: q verifies with it" in done.output
    assert read_bundle(Path("b"))[0] == maker.anchor
    with pytest.raises(InputError, match="there is no workspace here"):
        raise CliRunner().invoke(command, words, standalone_mode=False).exception or AssertionError
