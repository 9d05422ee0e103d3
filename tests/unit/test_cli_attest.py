"""`strongroom attest show` on a certificate, and `strongroom attest verify` on everything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from tests.fakes.attest_parts import JOB, MEASUREMENT, FakeAttester, Platform, make_pki
from tests.fakes.quote_parts import FORMATS, PKI, case, tee
from tests.fakes.second_verifier import STATUSES
from tests.fakes.service_parts import ratls_extension
from tests.fakes.snp_parts import Maker
from tests.fakes.stock_evidence import RELEASES, attestation_report

from strongroom.attest import ratls
from strongroom.attest.binding import init_data_digest, job_init_data
from strongroom.attest.endorsement_files import write_bundle
from strongroom.attest.endorsements import INTEL_ROOT, Endorsements, TrustAnchor
from strongroom.attest.makers import MAKERS
from strongroom.attest.quote import parse_quote, trimmed
from strongroom.attest.snp import parse_report
from strongroom.cli.attest import command
from strongroom.cli.attest import endorsements as fetching
from strongroom.cli.evidence import _known_roots
from strongroom.cli.service import command as service
from strongroom.client.workspace import Workspace
from strongroom.crypto.x509 import issue, new_csr, new_key, self_signed
from strongroom.errors import EndorsementError, EvidenceError, InputError, UnavailableError
from strongroom.kms.ca import WorkloadCA


def test_a_certificate_is_explained_and_its_key_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, pki = datetime.now(UTC), Platform().pki
    known = tmp_path / ".strongroom" / "service" / "endorsements" / "one.json"
    known.parent.mkdir(parents=True)
    endorsements = [pki.endorsements(now).to_json()]
    known.write_text(json.dumps({"anchor": pki.anchor().to_json(), "endorsements": endorsements}))
    (tmp_path / ".strongroom" / "workspace.toml").write_text('identity = "i"\nowner = "o"\nname = "n"\n')
    seed = tmp_path / ".strongroom" / "simulated" / "seed"
    seed.parent.mkdir()
    seed.write_bytes(b"one".ljust(32, b"."))
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


POLICIES = {
    "sgx": {"kind": "measurement", "values": [MEASUREMENT.hex()]},
    "tdx": {
        "kind": "tdx_measurements",
        "mrtd": [MEASUREMENT.hex() + "00" * 16],
        **{f"rtmr{i}": ["00" * 48] for i in range(4)},
    },
    "snp": {"kind": "snp_measurement", "values": ["c3" * 48]},
}
JOB_POLICY = {"kind": "job_digest", "values": ["sha256:" + "00" * 32]}
WAIVER = {"kind": "unsafe_accept_simulated"}


def _workspace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".strongroom").mkdir()
    (folder / ".strongroom" / "workspace.toml").write_text('identity = "i"\nowner = "o"\nname = "n"\n')
    monkeypatch.setenv("STRONGROOM_WORKSPACE", str(folder))


def _verify(
    folder: Path, quote: bytes, policy: object, anchor: TrustAnchor, endorsements: list[Any], *more: str
) -> tuple[int, str, dict[str, Any]]:
    (folder / "q").write_bytes(quote)
    (folder / "p").write_text(json.dumps(policy))
    (folder / "e").write_text(
        json.dumps({"anchor": anchor.to_json(), "endorsements": [e.to_json() for e in endorsements]})
    )
    words = ["verify", *(str(folder / n) for n in ("q",)), "--policy", str(folder / "p"), "--endorsements"]
    page, value = (
        CliRunner().invoke(command, [*words, str(folder / "e"), *more, *form], standalone_mode=False)
        for form in ([], ["--json"])
    )
    for done in (page, value):
        if done.exception is not None:
            raise done.exception
    assert page.return_value == value.return_value
    return page.return_value, page.stdout, json.loads(value.stdout)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("name", FORMATS)
def test_every_status_has_a_verdict_that_explains_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, status: str
) -> None:
    _workspace(tmp_path, monkeypatch)
    now, advisories = datetime.now(UTC), [] if status == "UpToDate" else ["INTEL-SA-00615"]
    given = [PKI.endorsements(now, tee=tee(name), tcb_status=status, advisory_ids=advisories)]
    strict = {"kind": "all_of", "policies": [WAIVER, POLICIES[tee(name)]]}
    code, page, value = _verify(tmp_path, case(name).quote, strict, PKI.anchor(), given)
    failed = {check["check"]: check for check in value["checks"] if not check["passed"]}
    if status == "UpToDate":
        assert (code, failed) == (0, {})
        assert page.startswith("ACCEPTED: true, and what the policy names. SIMULATED: no hardware protects this\n")
        return
    assert code == 1
    assert status in page
    assert "INTEL-SA-00615" in page
    assert "hint: " in page
    if status == "Revoked":
        assert value["root"] is None
        assert page.startswith("REFUSED: nothing is proven, so the policy was not asked")
        assert (value["tcb_status"], value["advisory_ids"]) == ("Revoked", advisories)
        level = value["tcb_levels"]["platform"]
        assert (level["status"], level["date"], level["advisories"]) == ("Revoked", "2024-01-01T00:00:00Z", advisories)
        assert {"platform", "qe"} <= set(value["tcb_levels"])
        assert list(failed) == ["tcb_status"]
        assert failed["tcb_status"]["expected"] == "levels that are not Revoked"
        got = r"platform level of 2024-01-01.* Revoked; advisories: INTEL-SA-00615"
        assert re.fullmatch(got, failed["tcb_status"]["got"])
        assert re.search(
            r"platform +Revoked\nadvisories +INTEL-SA-00615\nlevels +platform Revoked as of 2024-01-01", page
        )
        return
    assert value["tcb_levels"] is None
    assert (value["root"], value["tcb_status"], value["advisory_ids"]) == ("simulated", status, advisories)
    assert failed["tcb_status"]["expected"] == "UpToDate"
    assert failed["tcb_status"]["got"] == f"{status} (INTEL-SA-00615)"
    assert failed["advisories"] == {
        "check": "advisories", "passed": False, "expected": "none", "got": "INTEL-SA-00615",
    }  # fmt: skip
    allowing = {"kind": "tcb_status", "allowed": [status], "advisories": advisories}
    policy = {"kind": "all_of", "policies": [WAIVER, POLICIES[tee(name)], allowing]}
    assert _verify(tmp_path, case(name).quote, policy, PKI.anchor(), given)[0] == 0
    hardware = {"kind": "all_of", "policies": [POLICIES[tee(name)], allowing]}
    assert (
        "expected hardware\n          got simulated"
        in _verify(tmp_path, case(name).quote, hardware, PKI.anchor(), given)[1]
    )


def _relaunched(now: datetime, svn: int, configured: str, attributes: int = 1 << 28) -> tuple[bytes, Endorsements]:
    """Return a quote of a domain that a module of `svn` launched, level 3, while level 4, the newest, runs now."""
    given = replace(case("tdx5-1.5"), endorsements=PKI.endorsements(now, tee="tdx", tcb_status=configured))
    given = given.body(0, bytes([svn])).body(584, b"\4").body(120, attributes.to_bytes(8, "little"))

    def levels(document: dict[str, Any]) -> None:
        module = document["tdxModuleIdentities"][0]["tcbLevels"]
        old = {"tcbStatus": "OutOfDate", "advisoryIDs": ["INTEL-SA-01234"]}
        module[:] = [{**module[0], "tcb": {"isvsvn": 4}}, {**module[0], **old}]

    given = given.document("tcb_info", levels)
    return given.quote, given.endorsements


@pytest.mark.parametrize(
    ("configured", "status"),
    [("UpToDate", "TDRelaunchAdvised"), ("ConfigurationNeeded", "TDRelaunchAdvisedConfigurationNeeded")],
)
def test_a_domain_whose_module_was_updated_under_it_is_told_to_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: str, status: str
) -> None:
    _workspace(tmp_path, monkeypatch)
    quote, endorsements = _relaunched(datetime.now(UTC), 3, configured)
    strict = [WAIVER, POLICIES["tdx"]]
    allowing = {"kind": "tcb_status", "allowed": [status], "advisories": ["INTEL-SA-01234"]}
    for more, code in (([], 1), ([allowing], 0)):
        policy = {"kind": "all_of", "policies": [*strict, *more]}
        found, page, value = _verify(tmp_path, quote, policy, PKI.anchor(), [endorsements])
        assert (found, value["tcb_status"], value["advisory_ids"]) == (code, status, ["INTEL-SA-01234"]), page
        assert re.search(rf"platform +{status} as of 2024-01-01", page)
    # What refuses before a policy is asked says it too.
    debug, endorsements = _relaunched(datetime.now(UTC), 3, configured, attributes=1 << 28 | 1)
    _, page, value = _verify(tmp_path, debug, {"kind": "all_of", "policies": strict}, PKI.anchor(), [endorsements])
    assert (value["claims"], value["checks"][0]["check"], value["tcb_status"]) == (None, "debug", status)
    assert re.search(rf"platform +{status}\nadvisories +INTEL-SA-01234\nlevels +platform", page)
    newest, endorsements = _relaunched(datetime.now(UTC), 4, "UpToDate")
    assert _verify(tmp_path, newest, {"kind": "all_of", "policies": strict}, PKI.anchor(), [endorsements])[0] == 0


@pytest.mark.parametrize("status", ["UpToDate", "OutOfDate", "ConfigurationNeeded", "OutOfDateConfigurationNeeded"])
def test_every_status_of_snp_has_a_verdict_that_explains_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    _workspace(tmp_path, monkeypatch)
    maker, late, unchecked = Maker(now=datetime.now(UTC)), "OutOfDate" in status, "Configuration" in status
    anchor = replace(maker.anchor, kind="simulated")
    quote = maker.report(version=3, changes={0x40: b"\1"} if unchecked else {})
    given, floor = [maker.endorsements()], f"19-01-1={replace(maker.tcb, snp=99) if late else maker.tcb}"
    strict = {"kind": "all_of", "policies": [WAIVER, POLICIES["snp"]]}
    code, page, value = _verify(tmp_path, quote, strict, anchor, given, "--minimum-tcb", floor)
    assert (code, value["tcb_status"], value["advisory_ids"]) == (status != "UpToDate", status, [])
    failed = [check for check in value["checks"] if not check["passed"]]
    assert failed == [{"check": "tcb_status", "passed": False, "expected": "UpToDate", "got": status}][: len(failed)]
    assert re.search(rf"platform +{status}\n", page)
    said = value["claims"]["tcb"]
    assert re.search(rf"versions +{re.escape(said)}\n", page)
    assert ("reported_tcb: snp is 20, below 99" in said, "BadRAM" in said) == (late, unchecked), said
    allowing = {"kind": "all_of", "policies": [*strict["policies"], {"kind": "tcb_status", "allowed": [status]}]}
    assert _verify(tmp_path, quote, allowing, anchor, given, "--minimum-tcb", floor)[0] == 0
    # What refuses before a policy is asked says it too, and no status where the signature does not hold.
    no_smt = _verify(tmp_path, quote, strict, anchor, given, "--minimum-tcb", floor, "--no-smt")[2]
    assert (no_smt["claims"], no_smt["tcb_status"], no_smt["advisory_ids"]) == (None, status, [])
    altered = _verify(tmp_path, quote[:0x50] + b"x" + quote[0x51:], strict, anchor, given, "--minimum-tcb", floor)[2]
    assert (altered["checks"][0]["check"], altered["tcb_status"]) == ("signature", None)


def test_an_snp_report_has_a_verdict_and_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _workspace(tmp_path, monkeypatch)
    maker = Maker(now=datetime.now(UTC))
    quote, anchor = maker.evidence(certificate=True).quote, replace(maker.anchor, kind="simulated")
    policy = {
        "kind": "all_of",
        "policies": [WAIVER, POLICIES["snp"], {"kind": "machine", "values": [maker.chip.hex()]}],
    }
    given = [maker.endorsements()]
    code, page, _ = _verify(tmp_path, quote, policy, anchor, given, "--minimum-tcb", f"unnamed={maker.tcb}")
    assert code == 0, page
    assert "pass  vmpl: 0" in page
    code, page, value = _verify(tmp_path, quote, policy, anchor, given)  # nobody said which versions will do
    assert (code, value["checks"][0]["check"], value["checks"][0]["got"]) == (1, "minimum_tcb", "none")
    assert "hint: --minimum-tcb unnamed=VERSIONS, here or with" in page
    done = CliRunner().invoke(command, ["show", str(tmp_path / "q"), "--json"], standalone_mode=False)
    assert {"chip_id", "report_data", "vmpl"} <= {field["name"] for field in json.loads(done.stdout)["fields"]}


def test_T380_a_verdict_says_that_a_root_is_no_makers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _workspace(tmp_path, monkeypatch)
    maker = Maker(now=datetime.now(UTC))
    own, floor = maker.anchor.fingerprint, f"unnamed={maker.tcb}"
    write_bundle(tmp_path / ".strongroom/service/endorsements/own.json", maker.anchor, [maker.endorsements()])
    monkeypatch.setattr("strongroom.cli.evidence._known_roots", lambda *_: {(own, "hardware")})
    (tmp_path / "q").write_bytes(maker.evidence(certificate=True).quote)
    words = ["verify", str(tmp_path / "q"), "--policy", str(tmp_path / "p"), "--minimum-tcb", floor]
    for more, status in (([], 1), ([{"kind": "root", "values": [own]}], 0)):
        (tmp_path / "p").write_text(json.dumps({"kind": "all_of", "policies": [POLICIES["snp"], *more]}))
        done = CliRunner().invoke(command, words, standalone_mode=False)
        assert (done.exception, done.return_value) == (None, status), done.output
        assert f"own, no maker's: {own}" in done.stdout
        assert ("names a root of your own (root)" in done.stdout) is bool(status)


def test_T290_a_verdict_as_of_another_time_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _workspace(tmp_path, monkeypatch)
    quote, anchor, then = case("sgx3").quote, PKI.anchor(), datetime(2026, 3, 1, 12, tzinfo=UTC)
    policy = {"kind": "all_of", "policies": [WAIVER, POLICIES["sgx"]]}
    given = [PKI.endorsements(then)]
    for at in ("2026-03-01T12:00Z", "2026-03-01T12:00", "2026-03-01T14:00+02:00"):
        code, page, value = _verify(tmp_path, quote, policy, anchor, given, "--at", at)
        assert (code, value["accepted"], value["as_of"], value["time"]) == (0, True, True, "2026-03-01T12:00:00Z")
        first, *rest = page.splitlines()
        assert first.startswith("ACCEPTED: ")
        assert first.endswith("AS OF 2026-03-01T12:00:00Z: this says nothing of now")
        assert any(line.split() == ["time", "2026-03-01T12:00:00Z,", "as", "--at", "says"] for line in rest), page
    for at, reason in (("2026-04-01", "holds from"), ("2026-02-01", "holds from")):
        code, page, value = _verify(tmp_path, quote, policy, anchor, given, "--at", at)
        assert (code, value["as_of"], reason in page) == (1, True, True)
        assert "AS OF" in page.splitlines()[0]
    # Without it the time is now, at which these do not hold, and nothing is said of another.
    code, page, value = _verify(tmp_path, quote, policy, anchor, [PKI.endorsements(datetime.now(UTC))])
    assert (code, value["as_of"], "AS OF" in page) == (0, False, False)
    for at in ("yesterday", "2026-13-01", "0001-01-01T00:00+14:00"):
        with pytest.raises(InputError, match="--at: expected a time such as"):
            _verify(tmp_path, quote, policy, anchor, given, "--at", at)


def test_a_real_quote_is_accepted_as_of_the_time_of_its_endorsements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _workspace(tmp_path, monkeypatch)
    vectors = json.loads((Path(__file__).parents[1] / "vectors" / "quotes-real.json").read_text())["cases"]
    real = next(one for one in vectors if one["name"] == "tdx version 4, padded")
    quote = parse_quote(trimmed(base64.b64decode(real["quote"])))
    registers = {f"rtmr{i}": [quote[f"body.rtmr{i}"].hex()] for i in range(4)}
    code = {"kind": "tdx_measurements", "mrtd": [quote.measurement.hex()], **registers}
    given = [Endorsements.from_json(real["endorsements"])]
    smt = [{"kind": "platform_flags", "allowed": ["smt"]}]
    for flags, failed in (([], []), (smt, ["dynamic_platform", "cached_keys"])):
        policy = {"kind": "all_of", "policies": [code, *flags]}
        status, page, value = _verify(tmp_path, quote.raw, policy, INTEL_ROOT, given, "--at", real["time"])
        assert (status, value["root"], value["as_of"]) == (bool(failed), "hardware", True)
        assert [check["check"] for check in value["checks"] if not check["passed"]] == failed
        assert re.search(r"root +hardware, Intel's root", page)
        assert re.search(r"flags +dynamic_platform yes, cached_keys yes, smt yes", page)
        assert "endorsements: for this platform, then" in page
    assert _verify(tmp_path, quote.raw, code, INTEL_ROOT, given)[0] == 1  # they no longer hold


def test_verify_takes_what_service_trust_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _workspace(tmp_path, monkeypatch)
    maker = Maker(now=datetime.now(UTC))
    anchor, floor = replace(maker.anchor, kind="simulated"), ("--minimum-tcb", f"unnamed={maker.tcb}")
    policy = {"kind": "all_of", "policies": [WAIVER, POLICIES["snp"]]}
    vcek, behind, vlek = maker.report(), maker.report(changes={8: b"\0\0\x22"}), maker.report("vlek")
    for quote, kind, words, reason in (
        (vcek, "vcek", (), ""),
        (vcek, "vcek", ("--no-smt",), "expected no SMT"),
        (vcek, "vcek", ("--minimum-abi", "1.51"), "expected a minimum ABI of 1.51"),
        (vcek, "vcek", ("--minimum-tcb", "19-01-1=9.9.99.99"), ""),
        (behind, "vcek", (), "expected no CXL"),
        (behind, "vcek", ("--cxl",), ""),
        (vlek, "vlek", (), "expected a VCEK, got a VLEK of 'Tests'"),
        (vlek, "vlek", ("--vlek", "Tests"), ""),
    ):
        code, page, value = _verify(tmp_path, quote, policy, anchor, [maker.endorsements(kind)], *floor, *words)
        assert code == bool(reason), page
        said = " ".join(f"expected {c['expected']}, got {c['got']}" for c in value["checks"])
        assert reason in said, page
    trust = {option.name: option for option in service.commands["trust"].params}
    mine = {option.name: option for option in command.commands["verify"].params}
    for name in ("floors", "minimum_abi", "no_smt", "cxl", "vlek"):
        assert trust[name].to_info_dict() == mine[name].to_info_dict()


@pytest.mark.parametrize("name", ["sgx3", "sgx4", "tdx5"])
def test_show_says_what_the_pck_certificate_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _workspace(tmp_path, monkeypatch)
    (tmp_path / "q").write_bytes(case(name).quote)
    done = CliRunner().invoke(command, ["show", str(tmp_path / "q"), "--json"], standalone_mode=False)
    rows = {row["name"]: row["value"] for row in json.loads(done.stdout)["fields"]}
    assert {n: rows[f"pck.{n}"] for n in ("dynamic_platform", "cached_keys", "smt")} == dict.fromkeys(
        ("dynamic_platform", "cached_keys", "smt"), "no"
    )
    assert len(rows["pck.piid"]) == 32


def test_T235_a_file_cannot_make_its_root_a_hardware_makers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _workspace(tmp_path, monkeypatch)
    misfiled = replace(PKI.anchor(), kind="hardware")
    given = [PKI.endorsements(datetime.now(UTC))]
    with pytest.raises(InputError, match="expected Intel's, AMD's or a simulated one"):
        _verify(tmp_path, case("sgx3").quote, POLICIES["sgx"], misfiled, given)
    # And if a list of makers were wrong, the marks inside the evidence still say what it is.
    monkeypatch.setitem(MAKERS, misfiled.fingerprint, "Intel")
    code, page, value = _verify(tmp_path, case("sgx3").quote, POLICIES["sgx"], misfiled, given)
    assert (code, value["root"]) == (1, "simulated")
    assert "root         SIMULATED, no hardware protects this" in page


def test_what_cannot_be_judged_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _workspace(tmp_path, monkeypatch)
    quote, anchor, now = case("sgx3").quote, PKI.anchor(), datetime.now(UTC)
    policy = {"kind": "all_of", "policies": [WAIVER, POLICIES["sgx"]]}
    good, old = [PKI.endorsements(now)], [PKI.endorsements(now - timedelta(days=40))]
    for name, raw, asked, given, check, got in (
        ("no endorsements", quote, policy, [], "root", "got "),
        ("expired", quote, policy, old, "endorsements", "holds from"),
        ("trailing", quote + b"\0", policy, good, "quote", "1 trailing bytes"),
        ("no quote", b"x" * 100, policy, good, "quote", "not supported"),
        (
            "any code",
            quote,
            {"kind": "all_of", "policies": [WAIVER, {"kind": "not_debug"}]},
            good,
            "policy",
            "any code",
        ),
        ("another job", quote, {**policy, "policies": [*policy["policies"], JOB_POLICY]}, good, "job_digest", "no job"),
    ):
        code, page, value = _verify(tmp_path, raw, asked, anchor, given)
        assert code == 1, name
        failed = [c for c in value["checks"] if not c["passed"]]
        assert [c["check"] for c in failed] == [check], name
        assert got in page, name
        assert value["hint"], name


def test_whoever_has_no_endorsements_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = json.loads((Path(__file__).parents[1] / "vectors" / "quotes-real.json").read_text())["cases"]
    intels = trimmed(base64.b64decode(vectors[0]["quote"]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STRONGROOM_WORKSPACE", raising=False)
    (tmp_path / "q").write_bytes(intels)
    (tmp_path / "p").write_text(json.dumps(POLICIES["sgx"]))
    words = ["verify", str(tmp_path / "q"), "--policy", str(tmp_path / "p")]
    bare = CliRunner().invoke(command, words, standalone_mode=False).exception
    assert isinstance(bare, InputError)
    assert "--endorsements BUNDLE" in bare.hint
    assert "`strongroom attest endorsements fetch FILE --out BUNDLE`" in bare.hint
    _workspace(tmp_path, monkeypatch)
    for quote, hint in (
        (intels, "no endorsements of Intel's are here: `strongroom attest endorsements fetch FILE` gets them"),
        (Maker().report(), "no endorsements of AMD's are here: `strongroom attest endorsements fetch FILE` gets them"),
        (case("tdx4").quote, "the root is no maker's, and not trusted here"),
    ):
        (tmp_path / "q").write_bytes(quote)
        done = CliRunner().invoke(command, words, standalone_mode=False)
        assert (done.exception, done.return_value) == (None, 1)
        assert "root\n          expected one of none" in done.stdout
        assert f"hint: {hint}" in done.stdout


def test_a_verdict_warns_of_endorsements_that_end_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STRONGROOM_WORKSPACE", raising=False)
    now = datetime.now(UTC)
    maker = Maker(now=now)
    monkeypatch.setitem(MAKERS, maker.anchor.fingerprint, "AMD Milan")
    (tmp_path / "q").write_bytes(maker.report())
    (tmp_path / "p").write_text(json.dumps(POLICIES["snp"]))
    words = ["verify", "q", "--policy", "p", "--endorsements", "e", "--minimum-tcb", f"unnamed={maker.tcb}"]
    for age, warned in ((1, False), (27, True)):
        given = maker.endorsements(crl=maker.crl(now=now - timedelta(days=age)))
        write_bundle(tmp_path / "e", maker.anchor, [given])
        done = CliRunner().invoke(command, words, standalone_mode=False)
        assert (done.exception, done.return_value) == (None, 0), done.output
        assert ("WARNING: snp SEV-Milan: crl holds until" in done.stderr) is warned
        done = CliRunner().invoke(command, [*words, "--at", f"{now:%Y-%m-%dT%H:%M:%SZ}"], standalone_mode=False)
        assert "WARNING" not in done.stderr


def _show(quote: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    """Return the exit status, checks by name with the limits, and the page of `attest show`."""
    words = ["show", str(quote), *more]
    page, found = (CliRunner().invoke(command, [*words, *form], standalone_mode=False) for form in ([], ["--json"]))
    for done in (page, found):
        if done.exception is not None:
            raise done.exception
    value = json.loads(found.stdout)
    return found.return_value, {c["check"]: c for c in value["checks"]} | {"limits": value["limits"]}, page.stdout


@pytest.mark.parametrize("kind", ["vcek", "vlek"])
def test_T374_show_explains_a_report_without_a_floor_and_says_that_it_asked_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    _workspace(tmp_path, monkeypatch)
    maker, quote = Maker(now=datetime.now(UTC)), tmp_path / "q"
    folder = tmp_path / ".strongroom" / "service" / "endorsements"
    write_bundle(folder / "own.json", maker.anchor, [maker.endorsements(kind)])
    monkeypatch.setattr("strongroom.cli.evidence._known_roots", lambda *_: {(maker.anchor.fingerprint, "hardware")})
    for changes, aliases in (({0x40: b"\x21"}, False), ({0x40: b"\1", 8: b"\0\0\x22"}, True)):  # the second behind CXL
        quote.write_bytes(maker.report(kind, version=3, changes=changes))
        status, checks, page = _show(quote)
        assert status == 0, checks
        assert checks["signatures and chain"]["detail"].startswith(
            "hold, under the root of nobody who makes hardware, "
        )
        assert ("BadRAM" in checks["endorsements"]["detail"]) is aliases
        assert "UpToDate" not in page
        assert checks["floor"]["passed"] is None
        assert f"not asked of TCB {maker.tcb}" in checks["floor"]["detail"]
        assert "  ----  floor: " in page
        assert "limits of what is measured:\n  - launch digest: " in page
        assert "Milan: whoever has a chip" in page
    for altered, reason in (
        (quote.read_bytes()[:-1], "report"),
        (maker.report(kind, changes={8: b"\0\0\x0a"}), "bit 19"),
    ):
        quote.write_bytes(altered)
        if reason == "report":
            with pytest.raises(EvidenceError):
                _show(quote)
        else:
            status, checks, page = _show(quote)
            assert (status, reason in page, "floor" in checks, checks["limits"]) == (1, True, False, [])


def _said(name: str) -> tuple[bytes, TrustAnchor, Any]:
    """Return evidence as it stands, and what it verifies with."""
    maker, now = Maker(now=datetime.now(UTC)), datetime.now(UTC)
    if name == "snp":
        anchor = replace(maker.anchor, kind="simulated")
        return maker.evidence(version=4, certificate=True).quote, anchor, maker.endorsements()
    return case(name).quote, PKI.anchor(), PKI.endorsements(now, tee=tee(name))


def _json(**value: object) -> bytes:
    return json.dumps(value).encode()


FORMS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "binary": ("sgx3", bytes),
    "base64 in lines": ("sgx5", base64.encodebytes),
    "base64 of a report": ("snp", base64.b64encode),
    "a client's": ("sgx3", lambda q: _json(quote=base64.b64encode(q).decode())),
    "a padded quote": ("tdx4", lambda q: q + bytes(70)),
    "a TDX client's": ("tdx5", lambda q: _json(cc_eventlog="AAAA", quote=base64.b64encode(q + bytes(9)).decode())),
    **{
        f"an SNP client's, {release}": (
            "snp",
            lambda q, r=release: _json(attestation_report=attestation_report(q, r), cert_chain=[
                {"cert_type": "VCEK", "data": list(parse_report(q).certificate)}
            ]),
        )
        for release in RELEASES
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_evidence_is_read_in_every_form_that_clients_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STRONGROOM_WORKSPACE", raising=False)
    name, written = FORMS[form]
    quote, anchor, given = _said(name)
    policy = {"kind": "all_of", "policies": [WAIVER, POLICIES[tee(name)]]}
    floor = ("--minimum-tcb", "19-01-1=4.0.20.209") if name == "snp" else ()
    code, _, value = _verify(tmp_path, written(quote), policy, anchor, [given], *floor)
    assert (code, value["tee"]) == (0, tee(name)), value["checks"]
    assert value["evidence_sha256"] == hashlib.sha256(quote).hexdigest()
    status, checks, _ = _show(tmp_path / "q", "--endorsements", str(tmp_path / "e"))
    assert (status, checks["length"]["passed"]) == (0, True), checks
    unread = [one for one in value["claims"]["limits"] if one.startswith("cc_eventlog")]
    assert [c["detail"] for n, c in checks.items() if n == "beside it"] == unread
    assert len(unread) == (form == "a TDX client's")
    # Where `show` sends whoever has no endorsements.
    words = ["fetch", str(tmp_path / "q"), "--out", str(tmp_path / "b"), "--from", "http://127.0.0.1:1"]
    done = CliRunner().invoke(fetching, words, standalone_mode=False)
    assert isinstance(done.exception, UnavailableError), done.exception


@pytest.mark.parametrize(
    ("name", "written", "reason"),
    [
        ("sgx3", lambda q: _json(cc_eventlog="AA==", quote=base64.b64encode(q).decode()), "exactly the field quote"),
        ("tdx4", lambda q: _json(quote=base64.b64encode(q).decode(), tee="sgx"), "exactly the field quote"),
        ("snp", lambda q: _json(attestation_report={}, quote=base64.b64encode(q).decode()), "cert_chain"),
        ("sgx3", lambda q: b'{"quote": "AA==", "quote": "%s"}' % base64.b64encode(q), "is not JSON"),
        ("tdx4", lambda q: q + bytes(70) + b"\1", "71 trailing bytes"),
        ("sgx3", lambda q: q + bytes(70), "70 trailing bytes"),
        ("snp", lambda q: q + bytes(70), "canonical certificate table"),
        ("sgx3", lambda q: b" " * (1 << 20) + base64.b64encode(q), "larger than 1048576 bytes"),
    ],
)
def test_T395_what_a_service_would_refuse_is_refused_in_a_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, written: Callable[[bytes], bytes], reason: str
) -> None:
    _workspace(tmp_path, monkeypatch)
    quote, anchor, given = _said(name)
    policy = {"kind": "all_of", "policies": [WAIVER, POLICIES[tee(name)]]}
    try:
        code, page, _ = _verify(tmp_path, written(quote), policy, anchor, [given])
    except (InputError, EvidenceError) as exc:
        code, page = 1, str(exc)
    assert code == 1
    assert reason in page


@pytest.mark.parametrize(("name", "words"), [("sgx3", "MRENCLAVE: "), ("tdx5-1.5", "RTMR0 to RTMR3: extended after")])
def test_limits_of_what_is_measured_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STRONGROOM_WORKSPACE", raising=False)
    given, policy = [PKI.endorsements(datetime.now(UTC), tee=tee(name))], POLICIES[tee(name)]
    _, page, value = _verify(tmp_path, case(name).quote, policy, PKI.anchor(), given)
    status, checks, shown = _show(tmp_path / "q", "--endorsements", str(tmp_path / "e"))
    assert status == 0
    assert any(one.startswith(words) for one in value["claims"]["limits"])
    assert value["claims"]["limits"][0].startswith("SIMULATED: ")
    assert checks["limits"] == value["claims"]["limits"]
    for text in (page, shown):
        assert f"\n  - {words}" in text
        assert "limits of what is measured:\n  - SIMULATED: " in text
    assert max(map(len, page.splitlines())) < 200


def test_show_works_where_there_is_no_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STRONGROOM_WORKSPACE", raising=False)
    (tmp_path / "q").write_bytes(case("tdx4").quote)
    status, checks, page = _show(tmp_path / "q")
    assert status == 1, "nothing is proven"
    assert "Measurement" in page
    found = checks["signatures and chain"]
    assert found["passed"] is None
    assert found["detail"].startswith("not checked: there is no workspace here; `strongroom attest endorsements fetch")
    write_bundle(tmp_path / "e", PKI.anchor(), [PKI.endorsements(datetime.now(UTC), tee="tdx")])
    status, checks, page = _show(tmp_path / "q", "--endorsements", str(tmp_path / "e"))
    assert (status, checks["signatures and chain"]["passed"]) == (0, True)
    assert "under the SIMULATED root" in page
    with pytest.raises(EndorsementError, match="are not readable"):
        _show(tmp_path / "q", "--endorsements", str(tmp_path / "missing"))
    write_bundle(tmp_path / "e", replace(PKI.anchor(), kind="hardware"), [])
    with pytest.raises(InputError, match="expected Intel's, AMD's or a simulated one"):
        _show(tmp_path / "q", "--endorsements", str(tmp_path / "e"))


def test_T398_no_simulated_quote_has_a_hardware_builds_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _workspace(tmp_path, monkeypatch)
    (tmp_path / "app.py").write_text("pass")
    job = tmp_path / "job.toml"
    text = '[job]\nname = "j"\nworkload = "python"\nprogram = "app.py"\nenclave = "gramine"\n'
    job.write_text(text + "[sandbox]\nnetwork = true\n")
    done = CliRunner().invoke(command, ["quote", str(job), str(tmp_path / "q")], standalone_mode=False)
    assert isinstance(done.exception, InputError), done.exception
    assert "expected a job for the enclave kind sim, got gramine" in str(done.exception)
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("kind", ["hardware", "simulated"])
def test_T261_show_believes_no_root_that_only_a_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    _workspace(tmp_path, monkeypatch)
    folder, quote = tmp_path / ".strongroom" / "service" / "endorsements", tmp_path / "q"
    write_bundle(folder / "own.json", replace(PKI.anchor(), kind=kind), [PKI.endorsements(datetime.now(UTC))])
    quote.write_bytes(case("sgx3").quote)

    def show() -> tuple[int, dict[str, Any]]:
        done = CliRunner().invoke(command, ["show", str(quote), "--json"], standalone_mode=False)
        assert done.exception is None, done.exception
        return done.return_value, {c["check"]: c for c in json.loads(done.stdout)["checks"]}

    status, checks = show()
    assert (status, set(checks)) == (1, {"length", "verification"})
    assert f"expected one of none, got {PKI.anchor().fingerprint[:16]}" in checks["verification"]["detail"]
    monkeypatch.setattr("strongroom.cli.evidence._known_roots", lambda *_: {(PKI.anchor().fingerprint, kind)})
    assert show()[0] == 0


def test_T279_roots_that_a_service_lists_do_not_count_where_it_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service whose machine's owner added a root of his own would else prove itself by that root."""
    _workspace(tmp_path, monkeypatch)
    here = Workspace.find(tmp_path)
    monkeypatch.setattr(Workspace, "is_running", lambda _: True)

    class Lists:
        def call(self, *_: str) -> dict[str, object]:
            return {"anchors": [{"fingerprint": "ab" * 32, "kind": "hardware"}]}

    monkeypatch.setattr("strongroom.cli.evidence.owner", Lists)
    assert ("ab" * 32, "hardware") in _known_roots(here, True)
    assert ("ab" * 32, "hardware") not in _known_roots(here, False)


def test_T342_a_guests_certificate_is_judged_by_whoever_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _workspace(tmp_path, monkeypatch)
    now, platform, key, other = datetime.now(UTC), Platform(), new_key(), new_key()
    ca = WorkloadCA(new_key(), now=now)
    digest = "sha256:" + init_data_digest(job_init_data(JOB)).hex()
    this = {"kind": "job_digest", "values": [digest]}
    policy = {"kind": "all_of", "policies": [POLICIES["sgx"], this, WAIVER]}
    another = {**JOB, "name": "x"}

    def made(job: dict[str, object] = JOB, of: Any = key, platform: Platform = platform, **quote: Any) -> bytes:
        return ratls_extension(of, job, "nonce", platform, **quote)

    def judged(evidence: bytes, *more: str) -> tuple[int, dict[str, Any]]:
        words = {"job": digest, "owner": "ab" * 32, "now": now, "lifetime": timedelta(hours=1)}
        pem = ca.issue(new_csr(key, "workload"), evidence=evidence, **words).encode()
        pki = platform.pki
        status, _, found = _verify(tmp_path, pem, policy, pki.anchor(), [pki.endorsements(now)], *more)
        return status, {c["check"]: c for c in found["checks"]}

    status, checks = judged(made())
    assert status == 0, checks
    assert "names its key and its job, sha256:" in checks["certificate"]["got"]
    assert judged(made(config_id=bytes(64)))[0] == 0, "Gramine's is zero: then the claims say the job"
    attacks = {
        "of another key, from its certificate": (made(of=other), "RA-TLS", "evidence for key"),
        "of another job": (made(another), "RA-TLS", "evidence for job"),
        "of another job's enclave": (made(config_id=bytes(63) + b"x"), "init data", "config id"),
        "of other code": (made(measurement=b"\xee" * 32), "measurement", MEASUREMENT.hex()),
        "bound to nothing": (made(report_data=bytes(64)), "report data", ""),
        "of another root": (made(platform=Platform(make_pki("two"))), "root", ""),
    }
    for name, (evidence, check, expected) in attacks.items():
        status, checks = judged(evidence)
        assert status == 1, name
        failed = [c for c in checks.values() if not c["passed"] and c["got"] != "no job document"]
        assert [c["check"] for c in failed] == [check], (name, checks)
        assert expected in failed[0]["expected"], (name, failed)
        assert failed[0]["got"], name
    status, checks = judged(made(), "--at", f"{now - timedelta(minutes=30):%Y-%m-%dT%H:%M}")
    assert status == 1
    assert any("the certificate holds from" in c["got"] for c in checks.values()), checks
    names = [ratls.JOB_URI + "0" * 64]
    bare = issue(ca._root, ca._key, key.public_key(), "workload", now=now, lifetime=timedelta(hours=1), uris=names)
    pki = platform.pki
    with pytest.raises(EvidenceError, match=r"expected the extension 2\.23\.133\.5\.4\.9, got none"):
        _verify(tmp_path, bare.public_bytes(Encoding.PEM), policy, pki.anchor(), [pki.endorsements(now)])


def test_T342_a_quote_in_a_strangers_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a quote believed in a self-signed certificate of another key, nor in one of any issuer without a job."""
    _workspace(tmp_path, monkeypatch)
    now, pki, key, other = datetime.now(UTC), Platform().pki, new_key(), new_key()
    policy = {"kind": "all_of", "policies": [POLICIES["sgx"], WAIVER]}
    genuine = ratls.make_certificate(key, FakeAttester(), now=now, lifetime=timedelta(days=1))
    # A program that has the device can have any claims quoted, as any job's.
    said = {"strongroom-job": "sha256:" + "0" * 64}
    lying = ratls.make_extension(key.public_key(), FakeAttester(), nonce=None, texts=said)
    another: dict[str, Any] = {"extensions": {ratls.EXTENSION: lying}, "uris": [ratls.JOB_URI + "0" * 64]}
    evidence = genuine.extensions.get_extension_for_oid(ratls.EXTENSION).value.value
    stolen = self_signed(other, "RA-TLS", now=now, days=1, ca=False)
    words: dict[str, Any] = {"now": now, "lifetime": timedelta(days=1), "extensions": {ratls.EXTENSION: evidence}}
    own = self_signed(key, "RA-TLS", now=now, days=1, ca=False)
    cases = {
        "genuine": (genuine, ""),
        "another's job": (issue(own, key, key.public_key(), "RA-TLS", **{**words, **another}), "config id"),
        "another key": (issue(stolen, other, other.public_key(), "RA-TLS", **words), "evidence for key"),
        "no job": (issue(stolen, other, key.public_key(), "guest", **words), "signed by its own key, or another's"),
    }
    for name, (certificate, expected) in cases.items():
        pem = certificate.public_bytes(Encoding.PEM)
        status, _, found = _verify(tmp_path, pem, policy, pki.anchor(), [pki.endorsements(now)])
        failed = [c["expected"] for c in found["checks"] if not c["passed"]]
        assert (status, len(failed)) == ((1, 1) if expected else (0, 0)), (name, found["checks"])
        assert not failed or expected in failed[0], (name, failed)


HOSTILE = [b'{"quote":' + b"[" * 20_000, b'{"a":"\xff"}', b'{"quote":"AA==","quote":"AA=="}', b"{"]


@pytest.mark.parametrize("raw", HOSTILE)
@pytest.mark.parametrize("words", [("show",), ("verify", "--policy")])
def test_T401_hostile_json_is_refused_in_order(tmp_path: Path, raw: bytes, words: tuple[str, ...]) -> None:
    (tmp_path / "file").write_bytes(raw)
    arguments = [words[0], str(tmp_path / "file"), *words[1:], *([str(tmp_path / "file")] if words[1:] else [])]
    with pytest.raises(InputError, match=r"is not JSON|it is no text"):
        CliRunner().invoke(command, arguments, standalone_mode=False, catch_exceptions=False)


def test_evidence_is_shown_as_stock_clients_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker(now=datetime.now(UTC))
    monkeypatch.setenv("STRONGROOM_WORKSPACE", str(tmp_path / "none"))
    write_bundle(tmp_path / "amd.json", replace(maker.anchor, kind="simulated"), [maker.endorsements()])
    snp = {"attestation_report": attestation_report(maker.report(), RELEASES[-1]), "cert_chain": None}
    tdx = {"quote": base64.b64encode(case("tdx4").quote).decode(), "cc_eventlog": "AAAA"}
    for name, value, form in (("snp", snp, "snp"), ("tdx", tdx, "tdx")):
        (tmp_path / name).write_text(json.dumps(value))
        words = ["show", str(tmp_path / name), "--endorsements", str(tmp_path / "amd.json"), "--json"]
        shown = json.loads(CliRunner().invoke(command, words, standalone_mode=False).stdout)
        assert shown["tee"] == form
        assert shown["fields"]
