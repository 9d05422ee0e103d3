"""SEV-SNP: the parser's rules, and each reason for which the verifier refuses."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.attest_parts import CONFIG_ID, NOW, REPORT_DATA, Platform
from tests.fakes.snp_parts import CHIP, DER, MEASUREMENT, MILAN, REAL, TURIN, Maker, raw_tcb

from strongroom.attest.endorsement_snp import AMD_ROOTS, SNPEndorsements, read_endorsements
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.evidence import Evidence
from strongroom.attest.snp import TCB, certificate_table, parse_report, read_table
from strongroom.attest.verifiers.choose import tcb_floors
from strongroom.attest.verifiers.snp import SNPRules, SNPVerifier
from strongroom.errors import AttestationError, EndorsementError, EvidenceError, InputError, VerificationError

Case = Callable[[], object]


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
    assert (claims.tee, claims.root, claims.simulated) == ("snp", "hardware", False)
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
    from strongroom.attest.verifiers import snp

    report, leaf = parse_report(raw["milan"]), snp._load("key", raw["vcek"])
    ask, ark = snp._load("ask", raw["ask"]), snp._load("ark", raw["ark"])
    for issuer, certificate in ((ark, ark), (ark, ask), (ask, leaf)):
        snp._check_signed("it", issuer, certificate.signature, certificate.tbs_certificate_bytes)
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


PARSER: dict[str, tuple[Case, str]] = {
    "one byte short": (lambda: MILAN.report()[:-1], "expected 1184 bytes, got 1183"),
    "one zero behind": (lambda: MILAN.report() + b"\0", "certificate table"),
    "a page of zeros behind": (lambda: MILAN.report() + bytes(4096), "not a canonical certificate table"),
    "version 1": (lambda: MILAN.report(version=1, changes={0x188: bytes(3)}), "expected version 2, 3 or 5, got 1"),
    "version 4": (lambda: MILAN.report(version=4), "expected version 2, 3 or 5, got 4"),
    "family in version 2": (lambda: MILAN.report(changes={0x188: b"\x19"}), "reserved bytes at 0x188"),
    "mitigations in version 3": (lambda: MILAN.report(version=3, changes={0x1F8: b"\1"}), "reserved bytes at 0x1f8"),
    "reserved in version 5": (lambda: MILAN.report(version=5, changes={0x208: b"\1"}), "reserved bytes at 0x208"),
    "reserved beside the key information": (lambda: MILAN.report(changes={0x4C: b"\1"}), "reserved bytes at 0x4c"),
    "reserved behind the signature": (lambda: MILAN.report()[:-1] + b"\1", "reserved bytes at 0x330"),
    "policy bit 17 clear": (lambda: MILAN.report(changes={8: bytes(8)}), "bit 17 clear"),
    "policy bit 26 set": (lambda: MILAN.report(changes={8: b"\0\0\2\4"}), "reserved bits set"),
    "key information bit 5": (lambda: MILAN.report(changes={0x48: b"\x20"}), "reserved bits of the key information"),
    "model of Venice": (lambda: TURIN.report(version=3, changes={0x188: b"\x1a\x50"}), "of Milan, .*, got 1a-50-0"),
    "model beside Milan and Genoa": (lambda: MILAN.report(version=3, changes={0x188: b"\x19\x20"}), "got 19-20-0"),
    "another algorithm": (lambda: MILAN.report(changes={0x34: b"\2"}), "expected signature algorithm 1"),
    "no signer": (lambda: MILAN.report(changes={0x48: b"\x1c"}), "expected VCEK or VLEK as signer, got 7"),
    "a reserved signer": (lambda: MILAN.report(changes={0x48: b"\x08"}), "expected VCEK or VLEK as signer, got 2"),
    "masked chip key": (lambda: MILAN.report(changes={0x48: b"\x02"}), "key is masked"),
    "asked by the hypervisor": (lambda: MILAN.report(changes={0x30: b"\xff" * 4}), "expected VMPL 0 to 3"),
    "author's key without digest": (lambda: MILAN.report(changes={0x48: b"\1"}), "author key bit is 1"),
    "author's digest without key": (lambda: MILAN.report(changes={0x110: b"\1"}), "author key bit is 0"),
    "reserved part of a TCB": (lambda: MILAN.report(changes={0x182: b"\1"}), "reserved bytes of a TCB"),
    "r too long": (lambda: MILAN.report()[:0x2D0] + b"\1" + MILAN.report()[0x2D1:], "signature_r is not a number"),
    "s is zero": (lambda: MILAN.report()[:0x2E8] + bytes(72) + MILAN.report()[0x330:], "signature_s is not a number"),
    "the other kind's certificate": (
        lambda: MILAN.report() + certificate_table({"vlek": b"x"}),
        "expected the certificate of its vcek, got vlek",
    ),
    "the root brought along": (
        lambda: MILAN.report() + certificate_table({"vcek": b"x", "ark": b"y"}),
        "expected the certificate of its vcek, got vcek, ark",
    ),
}


@pytest.mark.parametrize("name", PARSER)
def test_parser_refuses(name: str) -> None:
    make, reason = PARSER[name]
    with pytest.raises(EvidenceError, match=reason):
        parse_report(make())  # type: ignore[arg-type]


VERIFIER: dict[str, tuple[Case, type[AttestationError], str]] = {
    "a bit of the measurement": (lambda: check(_flipped(0x90)), VerificationError, "not signed by its chip's key"),
    "a bit of the signature": (lambda: check(_flipped(0x2A1)), VerificationError, "not signed by its chip's key"),
    "debugging": (lambda: check(changed(8, b"\0\0\x0b")), VerificationError, "expected no debugging"),
    "migration agent": (lambda: check(changed(8, b"\0\0\x07")), VerificationError, "expected no migration agent"),
    "SMT": (lambda: check(smt=False), VerificationError, "expected no SMT"),
    "older ABI": (lambda: check(minimum_abi=(1, 51)), VerificationError, "minimum ABI of 1.51, got 0.31"),
    "another TEE's name": (
        lambda: check(Evidence(tee="tdx", quote=MILAN.report())), EvidenceError, "expected TEE tdx, got snp"),
    "Intel's endorsements": (
        lambda: MILAN.verifier().verify(MILAN.evidence(), Platform().endorsements(), now=NOW),
        EndorsementError, "expected AMD's, got Intel's"),
    "another root": (
        lambda: check(endorsements=Maker(root_key=1).endorsements()), VerificationError, "root: expected"),
    "VLEK's intermediate for a VCEK": (
        lambda: check(endorsements=MILAN.endorsements("vlek")), EndorsementError, "expected SEV-Milan over"),
    "intermediate under another key": (
        lambda: check(endorsements=MILAN.endorsements(ask=Maker(root_key=1).ask.public_bytes(DER))),
        VerificationError, "the intermediate is not signed by ARK-Milan"),
    "intermediate that is none": (
        lambda: check(endorsements=MILAN.endorsements(ask=_authority(ca=False))),
        VerificationError, "not a certificate authority"),
    "intermediate signed by PKCS #1": (
        lambda: check(endorsements=MILAN.endorsements(ask=_authority(pss=None))),
        VerificationError, "the intermediate is not signed"),
    "unreadable intermediate": (
        lambda: check(endorsements=MILAN.endorsements(ask=b"0")), EndorsementError, "intermediate is not readable"),
    "expired intermediate": (
        lambda: check(endorsements=MILAN.endorsements(ask=_authority(days=-1))), EndorsementError, "SEV-Milan holds"),
    "revoked intermediate": (
        lambda: check(endorsements=MILAN.endorsements(crl=MILAN.crl([2]))), EndorsementError, "revoked: SEV-Milan"),
    "revoked root": (
        lambda: check(endorsements=MILAN.endorsements(crl=MILAN.crl([1]))), EndorsementError, "revoked: ARK-Milan"),
    "no revocation list": (
        lambda: check(endorsements=MILAN.endorsements(crl=b"-")), EndorsementError, "crl is not readable"),
    "another root's revocation list": (
        lambda: check(endorsements=MILAN.endorsements(crl=MILAN.crl(issuer="ARK-Genoa"))),
        EndorsementError, "list is another root's"),
    "forged revocation list": (
        lambda: check(endorsements=MILAN.endorsements(crl=MILAN.crl(key=1))),
        VerificationError, "the revocation list is not signed by ARK-Milan"),
    "partial revocation list": (
        lambda: check(endorsements=MILAN.endorsements(crl=MILAN.crl(only_contains_attribute_certs=False))),
        EndorsementError, "an extension that is not known"),
    "expired revocation list": (lambda: check(now=NOW + timedelta(days=31)), EndorsementError, "crl holds from"),
    "clock before all": (lambda: check(now=NOW - timedelta(days=2)), EndorsementError, "crl holds from"),
    "expired key": (lambda: check(endorsements=_keyed(days=-1)), EndorsementError, "SEV-VCEK holds from"),
    "key under another intermediate": (
        lambda: _brought(signer=0), VerificationError, "the key is not signed by SEV-Milan"),
    "no key": (
        lambda: check(endorsements=replace(MILAN.endorsements(), keys=())), EndorsementError, "no VCEK of chip"),
    "key of another TCB": (lambda: _brought(x3_3=b"\2\1\x13"), VerificationError, "the key is for snp 19, the report"),
    "key of another microcode": (lambda: _brought(x3_8=b"\2\1\7"), VerificationError, "the key is for microcode 7"),
    "key of another bootloader": (lambda: _brought(x3_1=b"\2\1\3"), VerificationError, "the key is for bootloader 3"),
    "key of another OS": (lambda: _brought(x3_2=b"\2\1\1"), VerificationError, "the key is for tee 1"),
    "key with a first mutable code": (lambda: _brought(x3_9=b"\2\1\1"), VerificationError, "the key is for fmc 1"),
    "key with a reserved level": (lambda: _brought(x3_5=b"\2\1\1"), VerificationError, "in a reserved part"),
    "key with a negative level": (lambda: _brought(x3_3=b"\2\1\xff"), VerificationError, "not a number from 0 to 255"),
    "key with a padded level": (lambda: _brought(x3_3=b"\2\2\0\x14"), VerificationError, "not a number from 0 to 255"),
    "key without a level": (lambda: _brought(x3_3=None), VerificationError, "not a number from 0 to 255"),
    "key of another chip": (lambda: _brought(x4=CHIP[::-1]), VerificationError, "chip: the key is for"),
    "key of no chip": (lambda: _brought(x4=None), VerificationError, "a VCEK names its chip"),
    "key of a chip and a provider": (lambda: _brought(x5=b"\x16\1x"), VerificationError, "a VCEK names its chip"),
    "key of another product": (lambda: _brought(x2=b"\x16\5Genoa"), VerificationError, "product: expected Milan"),
    "Turin's report under Milan": (
        lambda: check(MILAN.evidence(version=3, changes={0x188: b"\x1a", **_turin_tcbs()}, certificate=True)),
        VerificationError, "expected a processor of Milan, got Turin"),
    "masked chip id": (
        lambda: check(MILAN.evidence(changes={0x1A0: bytes(64)}, certificate=True)),
        VerificationError, "chip: the key is for"),
    "VLEK that names a chip": (
        lambda: MILAN.verifier().verify(
            _with(MILAN.report("vlek"), "vlek", x4=CHIP), MILAN.endorsements("vlek"), now=NOW),
        VerificationError, "a VLEK names a provider"),
    "key of another curve": (lambda: _brought_curve(ec.SECP256R1()), VerificationError, "key: expected ECDSA P-384"),
}  # fmt: skip


@pytest.mark.parametrize("name", VERIFIER)
def test_verifier_refuses(name: str) -> None:
    make, kind, reason = VERIFIER[name]
    with pytest.raises(kind, match=reason) as caught:
        make()
    assert type(caught.value) is kind
    if isinstance(caught.value, EndorsementError) and "holds" in str(caught.value):
        assert "fetch" in caught.value.hint
        assert "clock" in caught.value.hint


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


def _authority(**changes: Any) -> bytes:
    return MILAN.authority("SEV-Milan", "ARK-Milan", 1, serial=2, **changes).public_bytes(DER)


def _keyed(**changes: Any) -> SNPEndorsements:
    return MILAN.endorsements("vcek", MILAN.key(**changes))


def _with(report: bytes, kind: str, **changes: Any) -> Evidence:
    table = certificate_table({kind: MILAN.key(kind, **changes).public_bytes(DER)})
    return Evidence(tee="snp", quote=report + table)


def _brought(**changes: Any) -> object:
    return check(_with(MILAN.report(), "vcek", **changes))


def _turin_tcbs() -> dict[int, bytes]:
    return dict.fromkeys((0x38, 0x180, 0x1E0, 0x1F0), raw_tcb(TURIN.tcb))


def _brought_curve(curve: ec.EllipticCurve) -> object:
    maker = Maker(chip_key=ec.generate_private_key(curve))
    table = certificate_table({"vcek": maker.key().public_bytes(DER)})
    return check(Evidence(tee="snp", quote=MILAN.report() + table))
