"""SEV-SNP: true reports, floors, tables. What is refused, and why: `tests/attacks/test_altered_reports.py`."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.attest_parts import CONFIG_ID, NOW, REPORT_DATA, Platform
from tests.fakes.snp_parts import MEASUREMENT, MILAN, REAL, TURIN, Maker, raw_tcb

from strongroom.attest.endorsement_snp import AMD_ROOTS, SNPEndorsements, read_endorsements
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.evidence import Evidence
from strongroom.attest.snp import TCB, certificate_table, parse_report, read_table
from strongroom.attest.verifiers.choose import tcb_floors
from strongroom.attest.verifiers.snp import SNPRules, SNPVerifier
from strongroom.errors import AttestationError, EndorsementError, EvidenceError, InputError, VerificationError


def check(
    evidence: Evidence | None = None, endorsements: SNPEndorsements | None = None, *, now: datetime = NOW, **rules: Any
) -> Any:
    verifier = MILAN.verifier(**rules)
    return verifier.verify(evidence or MILAN.evidence(), endorsements or MILAN.endorsements(), now=now)


def changed(at: int, value: bytes, **more: object) -> Evidence:
    return MILAN.evidence(changes={at: value}, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["vcek", "vlek"])
@pytest.mark.parametrize(("maker", "version"), [(MILAN, 2), (MILAN, 3), (MILAN, 5), (TURIN, 3), (TURIN, 5)])
@pytest.mark.parametrize("brought", [False, True])
def test_true_reports_verify(maker: Maker, version: int, kind: str, brought: bool) -> None:
    evidence = maker.evidence(kind, version=version, certificate=brought)
    endorsements = maker.endorsements(kind)
    if brought:
        endorsements = replace(endorsements, keys=())
    claims = maker.verifier().verify(evidence, endorsements, now=NOW)
    assert (claims.tee, claims.root, claims.simulated) == ("snp", "own", False)
    assert (claims.measurement, claims.report_data, claims.config_id) == (MEASUREMENT, REPORT_DATA, CONFIG_ID[:32])
    assert (claims.chip_id, claims.vmpl, claims.tcb_status) == (maker.chip, 0, "UpToDate")
    assert claims.root_fingerprint == maker.anchor.fingerprint


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_real_report_of_a_milan_machine() -> None:
    raw = {name: base64.b64decode(REAL[name]) for name in ("ark", "ask", "vcek", "milan")}
    anchor = TrustAnchor(kind="hardware", certificate_der=raw["ark"])
    assert anchor.fingerprint == AMD_ROOTS["Milan"]
    endorsements = SNPEndorsements(ask=raw["ask"], ark=raw["ark"], crl=MILAN.crl(), keys=(raw["vcek"],))
    verifier = SNPVerifier(anchor, SNPRules(floors={"unnamed": TCB.from_text("3.0.8.115")}))
    # AMD's list is not at hand: everything up to it holds, and without it nothing is accepted.
    with pytest.raises(EndorsementError, match="another root"):
        verifier.verify(Evidence(tee="snp", quote=raw["milan"]), endorsements, now=datetime(2024, 1, 1, tzinfo=UTC))
    from strongroom.attest.verifiers import chip_keys, snp

    report, leaf = parse_report(raw["milan"]), chip_keys.load_certificate("key", raw["vcek"])
    ask, ark = chip_keys.load_certificate("ask", raw["ask"]), chip_keys.load_certificate("ark", raw["ark"])
    for issuer, certificate in ((ark, ark), (ark, ask), (ask, leaf)):
        chip_keys.check_signed("it", issuer, certificate)
    snp._check_identity(report, leaf, "Milan")
    snp._check_signature(report, leaf)
    flipped = bytearray(raw["milan"])
    flipped[0x90] ^= 1
    with pytest.raises(VerificationError, match="signature"):
        snp._check_signature(parse_report(bytes(flipped)), leaf)


def test_real_report_of_a_turin_machine_parses() -> None:
    report = parse_report(base64.b64decode(REAL["turin"]))
    assert (report.version, report.line, report.processor, report.signer) == (5, "Turin", "1a-02-1", "vcek")
    assert str(report.tcb("reported_tcb")) == "0.1.0.2.71"


def test_intels_endorsements_are_not_amds() -> None:
    with pytest.raises(EndorsementError, match="expected AMD's, got Intel's"):
        MILAN.verifier().verify(MILAN.evidence(), Platform().endorsements(), now=NOW)


def test_status_is_out_of_date_below_the_floor() -> None:
    for at, name in ((0x180, "reported_tcb"), (0x1E0, "committed_tcb"), (0x1F0, "launch_tcb")):
        older = TCB(bootloader=4, tee=0, snp=19, microcode=209)
        evidence = changed(at, raw_tcb(older))
        keys = MILAN.endorsements("vcek", MILAN.key(), Maker(tcb=older).key())
        claims = check(evidence, keys)
        assert claims.tcb_status == "OutOfDate"
        assert f"; {name}: snp is 19, below 20" in claims.tcb


def test_a_higher_part_does_not_make_up_for_a_lower_one() -> None:
    floor = TCB.from_text("4.0.20.209")
    assert TCB.from_text("9.9.19.255").below(floor) == ["snp is 19, below 20"]
    assert TCB.from_text("4.0.20.209").below(floor) == []
    for text in ("", "1.2.3", "1.2.3.4.5.6", "1.2.3.256", "1.2.3.-4", "1.2.3.04", "1.2.3.x"):
        with pytest.raises(InputError, match="a TCB is"):
            TCB.from_text(text)


def test_floors_are_written_per_processor() -> None:
    floors = tcb_floors("19-01-1=4.0.23.213,unnamed=4.0.22.213,1a-02-1=1.1.0.4.71")
    assert {name: str(tcb) for name, tcb in floors.items()} == {
        "19-01-1": "4.0.23.213", "unnamed": "4.0.22.213", "1a-02-1": "1.1.0.4.71",
    }  # fmt: skip
    for text, reason in (
        ("4.0.23.213", "expected PROCESSOR=VERSIONS"),
        ("19-01=4.0.23.213", "expected PROCESSOR=VERSIONS"),
        ("19-01-1=4.0.23.213,19-01-1=0.0.0.0", "each processor once"),
        ("1a-02-1=1.0.4.71", "Turin's versions have fmc"),
        ("19-01-1=0.4.0.23.213", "Turin's versions have fmc"),
        ("19-01-1=4.0.23", "a TCB is"),
    ):
        with pytest.raises(InputError, match=reason):
            tcb_floors(text)


def test_any_bit_of_the_signed_part_counts() -> None:
    leaf = MILAN.endorsements()
    for at in range(0, 0x2A0, 13):
        with pytest.raises(AttestationError):
            check(_flipped(at), leaf)


@given(st.binary(max_size=1300))
def test_parser_never_fails_otherwise(raw: bytes) -> None:
    with pytest.raises(EvidenceError):
        parse_report(raw)


@given(st.dictionaries(st.sampled_from(["vcek", "vlek", "ask", "ark"]), st.binary(min_size=1, max_size=40)))
def test_tables_come_back(certificates: dict[str, bytes]) -> None:
    table = certificate_table(certificates)
    assert read_table(table) == certificates
    assert read_table(table + bytes(4096)) == certificates  # as the kernel pads it


def test_endorsements_come_back() -> None:
    endorsements = MILAN.endorsements()
    assert read_endorsements(endorsements.to_json()) == endorsements
    for broken in ({}, {**endorsements.to_json(), "more": ""}, {**endorsements.to_json(), "crl": "x"}):
        with pytest.raises(EndorsementError):
            read_endorsements({"tee": "snp", **broken})


def _flipped(at: int) -> Evidence:
    raw = bytearray(MILAN.report())
    raw[at] ^= 1
    return Evidence(tee="snp", quote=bytes(raw))
