"""The product's verifier and a second, independent one say the same of the same quotes and endorsements.

Where dcap-qvl and Intel's documents differ, the product refuses if either does: see the docstring of
`attest/verifiers/dcap.py`. A trust domain whose module was updated under it is judged by Intel's rule of 2026; until
then Intel asked that the module now running reach the newest level, and not that its level be up to date.
"""

from __future__ import annotations

import base64
import json
import random
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import second_verifier
from tests.fakes.quote_parts import FORMATS, PKI, PLATFORM, Case, case, patched

from strongroom.attest.endorsements import INTEL_ROOT, Endorsements
from strongroom.attest.evidence import Evidence
from strongroom.attest.quote import describe, parse_quote, trimmed
from strongroom.attest.verifiers import sgx
from strongroom.attest.verifiers.chains import certified, tcb_signers
from strongroom.attest.verifiers.checks import converged, judge
from strongroom.attest.verifiers.dcap import DCAPVerifier
from strongroom.attest.verifiers.refusals import Judged
from strongroom.errors import AttestationError, EndorsementError, EvidenceError, VerificationError

STATUSES = second_verifier.STATUSES


def _second(given: Case) -> second_verifier.Verdict:
    anchor = PKI.anchor().certificate_der
    return second_verifier.verify(given.quote, given.tee, given.endorsements.to_json(), anchor, given.now)


def _both(given: Case) -> tuple[object, object]:
    """Return what each verifier says: status, advisories, oldest date, measurement, report data; or that it refuses."""
    first: object = "refused"
    second: object = "refused"
    try:
        evidence = Evidence(tee=given.tee, quote=given.quote)
        c = PLATFORM.verifier.verify(evidence, given.endorsements, now=given.now)
        flags = (c.dynamic_platform, c.cached_keys, c.smt)
        first = (c.tcb_status, set(c.advisory_ids), c.tcb_date, c.measurement, c.report_data, flags)
    except AttestationError:
        pass
    try:
        v = _second(given)
        second = (v.status, set(v.advisories), v.date, v.measurement, v.report_data, v.flags)
    except second_verifier.Refused:
        pass
    return first, second


def _named(given: Case) -> str | None:
    """Return the status that a refusal would name for another reason."""
    quote, anchor = parse_quote(given.quote), PKI.anchor()
    signers = tcb_signers(given.endorsements, anchor)
    return converged(judge(Judged(quote, certified(quote.pck_chain), signers, given.endorsements, given.now), anchor))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("status", STATUSES)
def test_every_status_of_every_format(name: str, status: str) -> None:
    advisories = [] if status == "UpToDate" else ["INTEL-SA-00001", "INTEL-SA-00002"]
    given = case(name, tcb_status=status, advisory_ids=advisories)
    first, second = _both(given)
    assert first == second
    if status != "Revoked":
        assert first[:2] == (status, set(advisories))  # type: ignore[index]
        return
    with pytest.raises(EndorsementError, match="Revoked; advisories: INTEL-SA-00001, INTEL-SA-00002"):
        PLATFORM.verifier.verify(Evidence(tee=given.tee, quote=given.quote), given.endorsements, now=given.now)


def _updated(name: str, levels: dict[int, str], *, launched: int, runs: int, platform: str = "UpToDate") -> Case:
    """Return a quote of a domain that one TDX module launched and another runs; `levels` are its identity's."""

    def change(document: dict[str, Any]) -> None:
        [level] = document["tdxModuleIdentities"][0]["tcbLevels"]
        document["tdxModuleIdentities"][0]["tcbLevels"] = [
            {**level, "tcb": {"isvsvn": svn}, "tcbStatus": status, "advisoryIDs": [f"SA-{svn}"]}
            for svn, status in levels.items()
        ]

    given = case(name, tcb_status=platform).document("tcb_info", change)
    return given.body(0, bytes([launched])).body(584, bytes([runs]))


@pytest.mark.parametrize("name", ["tdx5-1.5", "tdx5-ex"])
@pytest.mark.parametrize(
    ("platform", "launched", "runs", "status"),
    [
        ("UpToDate", 3, 4, "TDRelaunchAdvised"),
        ("SWHardeningNeeded", 3, 4, "TDRelaunchAdvised"),
        ("ConfigurationNeeded", 3, 4, "TDRelaunchAdvisedConfigurationNeeded"),
        ("ConfigurationAndSWHardeningNeeded", 3, 4, "TDRelaunchAdvisedConfigurationNeeded"),
        ("UpToDate", 3, 3, "OutOfDate"),
        ("ConfigurationNeeded", 3, 3, "OutOfDateConfigurationNeeded"),
        ("OutOfDate", 3, 4, "OutOfDate"),
        ("OutOfDateConfigurationNeeded", 3, 4, "OutOfDateConfigurationNeeded"),
        ("UpToDate", 4, 4, "UpToDate"),
    ],
)
def test_a_module_that_was_updated_under_a_domain(
    name: str, platform: str, launched: int, runs: int, status: str
) -> None:
    given = _updated(name, {4: "UpToDate", 3: "OutOfDate"}, launched=launched, runs=runs, platform=platform)
    first, second = _both(given)
    assert first == second
    assert first[:2] == (status, {f"SA-{launched}"})  # type: ignore[index]
    assert _named(given) == status


@pytest.mark.parametrize("name", ["tdx5-1.5", "tdx5-ex"])
def test_a_module_that_is_not_the_newest(name: str) -> None:
    older = _updated(name, {5: "UpToDate", 4: "UpToDate", 3: "OutOfDate"}, launched=3, runs=4)
    newest = _updated(name, {5: "OutOfDate", 3: "OutOfDate"}, launched=3, runs=5)
    for given, status in ((older, "TDRelaunchAdvised"), (newest, "OutOfDate")):
        first, second = _both(given)
        assert first == second
        assert first[0] == status  # type: ignore[index]
        assert _named(given) == status


@pytest.mark.parametrize("name", ["sgx4", "sgx5"])
def test_sgx_in_the_newer_formats_says_what_version_3_says(name: str) -> None:
    given, older = case(name), case("sgx3")
    quote = parse_quote(given.quote)
    assert (quote.tee, quote.version) == ("sgx", int(name[3]))
    assert b"".join(quote[name] for name in quote.spans) == given.quote
    claims, expected = (
        PLATFORM.verifier.verify(Evidence(tee="sgx", quote=one.quote), one.endorsements, now=one.now)
        for one in (given, older)
    )
    assert claims == expected
    # The same parts in the other envelope are no quote of it: what is signed names the version.
    as_3 = sgx.as_version_3(quote)
    assert len(as_3) == len(older.quote)
    for raw, reason in ((as_3, "quote_signature"), (_in_envelope(older, name), "got one over version 3")):
        assert _both(given.bytes(lambda _, raw=raw: raw)) == ("refused",) * 2
        with pytest.raises(VerificationError, match=reason):
            PLATFORM.verifier.verify(Evidence(tee="sgx", quote=raw), given.endorsements, now=given.now)


def _in_envelope(older: Case, name: str) -> bytes:
    """Return the quote `older`, signed as version 3, in the envelope of `name`."""
    newer, quote = case(name).quote, older.quote
    at = parse_quote(newer).spans["auth.signature"][0]
    newer = patched(newer, 8, quote[8:12])  # security versions, which the newer header has no place for
    return newer[:at] + quote[436:500] + newer[at + 64 :]


REAL = json.loads((Path(__file__).parents[1] / "vectors" / "quotes-real.json").read_text())["cases"]


@pytest.mark.parametrize("real", REAL, ids=[real["name"] for real in REAL])
def test_quotes_of_real_machines_under_intels_root(real: dict[str, Any]) -> None:
    raw, now = base64.b64decode(real["quote"]), datetime.fromisoformat(real["time"])
    given, tee, quote = Endorsements.from_json(real["endorsements"]), real["tee"], trimmed(raw)
    expected = {
        "sgx version 3": ("ConfigurationAndSWHardeningNeeded", ("INTEL-SA-00289", "INTEL-SA-00615"), "00a067110000"),
        "tdx version 4, padded": ("UpToDate", (), "b0c06f000000"),
        "tdx version 5, TDX 1.5 extended": ("UpToDate", (), "b0c06f000000"),
        "tdx version 5, older than every level": None,
    }[real["name"]]

    def second() -> second_verifier.Verdict:
        return second_verifier.verify(quote, tee, given.to_json(), INTEL_ROOT.certificate_der, now)

    if expected is None:
        reason = "tcb_level: expected one of the [0-9]+ levels of FMSPC 90C06F000000, the lowest CPUSVN .*, got CPUSVN "
        with pytest.raises(EndorsementError, match=reason):
            DCAPVerifier(INTEL_ROOT).verify(Evidence(tee=tee, quote=quote), given, now=now)
        with pytest.raises(second_verifier.Refused, match="tcb_level: none matches"):
            second()
        return
    claims = DCAPVerifier(INTEL_ROOT).verify(Evidence(tee=tee, quote=quote), given, now=now)
    verdict = second()
    assert (claims.root, claims.simulated) == ("hardware", False)
    assert (claims.tcb_status, claims.advisory_ids, claims.fmspc) == expected
    assert (verdict.status, verdict.advisories) == expected[:2]
    assert (claims.measurement, claims.report_data) == (verdict.measurement, verdict.report_data)
    assert claims.tcb_date == verdict.date
    # Servers with TDX have all three set; the certificate of a machine with one processor does not say.
    flags = (claims.dynamic_platform, claims.cached_keys, claims.smt)
    assert flags == verdict.flags == ((None,) * 3 if tee == "sgx" else (True,) * 3)
    assert (claims.tcb_date, claims.tcb_eval_number) in {("2024-03-13", 17), ("2025-08-13", 20)}
    assert any(claims.ppid)
    with pytest.raises(VerificationError, match="root: expected"):
        PLATFORM.verifier.verify(Evidence(tee=tee, quote=quote), given, now=now)
    if len(raw) > len(quote):  # as its hardware service handed it out
        assert (len(raw) - len(quote), any(raw[len(quote) :])) == (70, False)
        with pytest.raises(EvidenceError, match="70 trailing bytes"):
            DCAPVerifier(INTEL_ROOT).verify(Evidence(tee=tee, quote=raw), given, now=now)


def test_fields_of_version_5_are_where_intel_puts_them() -> None:
    quote = parse_quote(case("tdx5-1.5").quote)
    offsets = {name: span[0] for name, span in quote.spans.items()}
    assert (offsets["body.type"], offsets["body.size"], offsets["body.tee_tcb_svn"]) == (48, 50, 54)
    assert (offsets["body.report_data"], offsets["body.tee_tcb_svn2"]) == (54 + 520, 54 + 584)
    assert (offsets["body.mr_service_td"], offsets["auth.size"]) == (54 + 600, 54 + 648)
    assert {"body.type", "body.tee_tcb_svn2", "body.mr_service_td"} <= {row.name for row in describe(quote)}


def _random_tcb(rng: random.Random, document: dict[str, Any]) -> None:
    tdx = document["id"] == "TDX"

    def level() -> dict[str, Any]:
        components = [{"svn": rng.choice([1, 2, 2])} for _ in range(16)]
        components[rng.randrange(16)]["svn"] += rng.random() < 0.2
        tcb = {"sgxtcbcomponents": components, "pcesvn": rng.choice([11, 12, 13, 13, 14])}
        if tdx:
            tcb["tdxtcbcomponents"] = [{"svn": rng.choice([1, 2])} for _ in range(16)]
        return {"tcb": tcb, **_judged(rng, rng.choice(STATUSES[:-1] if rng.random() < 0.8 else STATUSES))}

    document["tcbLevels"] = [level() for _ in range(4)]
    if tdx:
        statuses = [rng.choice(["UpToDate", "UpToDate", "OutOfDate", "OutOfDate", "Revoked"]) for _ in range(3)]
        levels = [
            {"tcb": {"isvsvn": svn}, **_judged(rng, status)} for svn, status in zip((4, 3, 2), statuses, strict=True)
        ]
        document["tdxModuleIdentities"][0]["tcbLevels"] = levels


def _random_identity(rng: random.Random, document: dict[str, Any]) -> None:
    choices = ("UpToDate", "UpToDate", "UpToDate", "OutOfDate", "Revoked")
    document["tcbLevels"] = [{"tcb": {"isvsvn": n}, **_judged(rng, rng.choice(choices))} for n in (9, 8, 7)]


def _judged(rng: random.Random, status: str) -> dict[str, Any]:
    date = f"20{rng.randint(18, 24)}-0{rng.randint(1, 9)}-01T00:00:00Z"
    return {"tcbDate": date, "tcbStatus": status, "advisoryIDs": rng.sample(["A1", "A2", "A3", "A4"], 2)}


@pytest.mark.parametrize("names", [("sgx3", "tdx4", "tdx5", "tdx5-1.5", "tdx5-ex"), ("sgx4", "sgx5")], ids=str)
def test_random_tcb_levels_are_matched_alike(names: tuple[str, ...]) -> None:
    rng = random.Random(20261127)
    seen = set()
    for _ in range(150):
        given = case(rng.choice(names)).document("tcb_info", lambda d: _random_tcb(rng, d))
        given = given.document("qe_identity", lambda d: _random_identity(rng, d))
        if given.tee == "tdx":
            given = given.body(0, bytes([rng.choice([2, 3, 4]), rng.choice([0, 1, 1, 1])]))
        if len(given.parts.body) >= 648:
            # No older than what was launched: only the product looks at that.
            number, version = rng.choice([2, 3, 4]), rng.choice([0, 1, 1, 1])
            runs = max(bytes([version, number]), given.parts.body[1::-1])
            given = given.body(584, runs[::-1] + b"\2")
        first, second = _both(given)
        assert first == second, given.endorsements.tcb_info
        if isinstance(first, tuple):
            assert _named(given) == first[0], given.endorsements.tcb_info
        seen.add(first if isinstance(first, str) else first[0])  # type: ignore[index]
    assert len(seen) >= 7, seen


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_no_flipped_bit_is_believed_by_either() -> None:
    rng = random.Random(5)
    for name in FORMATS:
        given = case(name)
        raw = given.quote
        for _ in range(40):
            at = rng.randrange(len(raw))
            assert _both(given.bytes(lambda q, at=at: patched(q, at, bytes([q[at] ^ 1 << at % 8])))) == ("refused",) * 2


@pytest.mark.parametrize("name", ["root_ca_crl", "pck_crl", "tcb_info", "qe_identity", "tcb_info_signature"])
def test_no_flipped_bit_of_endorsements_is_believed_by_either(name: str) -> None:
    rng = random.Random(7)
    given = case("tdx5")
    value = getattr(given.endorsements, name)
    raw = value.encode() if isinstance(value, str) else value
    for _ in range(15):
        at = rng.randrange(len(raw))
        flipped = patched(raw, at, bytes([raw[at] ^ 1 << at % 7]))
        altered = given.endorsed(**{name: flipped.decode() if isinstance(value, str) else flipped})
        assert _both(altered) == ("refused",) * 2
