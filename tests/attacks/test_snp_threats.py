"""One test per threat to SEV-SNP evidence and to endorsements (docs/threat-model.md, T240 to T246, T265 on)."""

from __future__ import annotations

import hashlib
import socket
import ssl
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from tests.fakes.attest_parts import JOB, MEASUREMENT, NOW, Platform
from tests.fakes.snp_parts import CHIP, DER, MILAN, TURIN, Maker, _builder, raw_tcb

from strongroom.attest import ratls
from strongroom.attest.appraisal import appraise
from strongroom.attest.binding import expected_register, init_data_digest, job_init_data
from strongroom.attest.claims import check_init_data
from strongroom.attest.endorsements import INTEL_ROOT
from strongroom.attest.evidence import Evidence
from strongroom.attest.findings import AppraisalContext
from strongroom.attest.policies import AllOf, AnyOf, Measurement, NotDebug, Root, SnpMeasurement, UnsafeAcceptSimulated
from strongroom.attest.result import submodule
from strongroom.attest.snp import TCB, certificate_table
from strongroom.attest.verifiers import chip_keys, snp, verify_any
from strongroom.cli.policy import command
from strongroom.crypto.x509 import certificate_from_pem, uris
from strongroom.errors import (
    AppraisalError,
    AttestationError,
    EndorsementError,
    EvidenceError,
    InputError,
    VerificationError,
)

CHOICES = [(MILAN.verifier(), MILAN.endorsements()), (TURIN.verifier(), TURIN.endorsements())]


def _brought(**changes: object) -> Evidence:
    table = certificate_table({"vcek": MILAN.key(**changes).public_bytes(DER)})  # type: ignore[arg-type]
    return Evidence(tee="snp", quote=MILAN.report() + table)


def test_T240_report_under_the_key_of_another_chip_version_or_product() -> None:
    assert verify_any(MILAN.evidence(), CHOICES, now=NOW).chip_id == MILAN.chip
    assert verify_any(TURIN.evidence(), CHOICES, now=NOW).chip_id == TURIN.chip
    for changes, reason in (
        ({"x4": CHIP[::-1]}, "chip: expected a key for the report"),
        ({"x3_3": b"\2\1\x15"}, "tcb: expected a key for snp 20, got one for snp 21"),
        ({"x2": b"\x16\5Genoa"}, "product: expected Milan"),
    ):
        with pytest.raises(VerificationError, match=reason):
            verify_any(_brought(**changes), CHOICES, now=NOW)


def test_T241_old_firmware_is_not_up_to_date() -> None:
    # The host chose an older version to report, loaded one when the guest was launched, or may still go back to one.
    old = TCB(bootloader=4, tee=0, snp=3, microcode=209)
    keys = MILAN.endorsements("vcek", MILAN.key(), Maker(tcb=old).key())
    policy = AllOf((SnpMeasurement(("c3" * 48,)), Root((MILAN.anchor.fingerprint,))))
    appraise(policy, AppraisalContext(claims=MILAN.verifier().verify(MILAN.evidence(), keys, now=NOW)))
    for at in (0x180, 0x1E0, 0x1F0):
        claims = MILAN.verifier().verify(MILAN.evidence(changes={at: raw_tcb(old)}), keys, now=NOW)
        with pytest.raises(AppraisalError, match="tcb_status: expected UpToDate, got OutOfDate"):
            appraise(policy, AppraisalContext(claims=claims))


def test_T380_a_root_without_marks_that_somebody_added_is_no_makers() -> None:
    claims = MILAN.verifier().verify(MILAN.evidence(), MILAN.endorsements(), now=NOW)
    assert (claims.root, claims.simulated) == ("own", False)
    context, code = AppraisalContext(claims=claims), SnpMeasurement(("c3" * 48,))
    own = Root((MILAN.anchor.fingerprint,))
    appraise(AllOf((code, own)), context)
    appraise(AllOf((AllOf((code, own)),)), context)
    for policy, expected in (
        (code, "hardware"),
        (AllOf((code, UnsafeAcceptSimulated())), "hardware or simulated"),
        (AllOf((code, AnyOf((own, NotDebug())))), "hardware"),  # what is named in one branch holds there
        (AllOf((code, Root((INTEL_ROOT.fingerprint,)))), "hardware or named"),
    ):
        reason = f"root: expected {expected}, got own ({MILAN.anchor.fingerprint})"
        with pytest.raises(AppraisalError) as refused:
            appraise(policy, context)
        assert reason in str(refused.value)
    vector = submodule(claims, "p", None, appraised=True)["ear.trustworthiness-vector"]
    assert vector["hardware"] == 97, "what a result says does not depend on whom the policy trusts"  # type: ignore[index]
    genuine = replace(claims, root="hardware", root_fingerprint=INTEL_ROOT.fingerprint)
    appraise(code, AppraisalContext(claims=genuine))
    with pytest.raises(AppraisalError, match="root_fingerprint: expected"):  # an owner can want one root alone
        appraise(AllOf((code, own)), AppraisalContext(claims=genuine))


def test_T265_digest_of_a_launch_without_the_kernels_hashes() -> None:
    claims = MILAN.verifier().verify(MILAN.evidence(), MILAN.endorsements(), now=NOW)
    assert "kernel-hashes=on" in claims.limits[0]
    with pytest.raises(AppraisalError, match=r"tee: expected sgx .snp where snp_measurement names the launch digest"):
        appraise(AllOf((Measurement((claims.measurement.hex(),)),)), AppraisalContext(claims=claims))
    # Nor does an approval take what the evidence says for what the owner computed.
    kind = {
        "measurement": claims.measurement.hex(),
        "claims": claims.to_json(),
        "job_document": {},
        "reasons": [],
        "job": "",
        "key": "",
    }
    approve = ["approve", "3", "--root", claims.root_fingerprint]
    for words in ([], ["--snp-measurement", "00" * 48]):
        with (
            patch("strongroom.cli.requests.owner", lambda: SimpleNamespace(call=lambda *_: kind)),
            pytest.raises(
                InputError, match=r"snp_measurement: expected the value that you computed, got .*covers: launch digest"
            ),
        ):
            CliRunner().invoke(command, [*approve, *words], standalone_mode=False, catch_exceptions=False)


def test_T269_keys_that_stand_in_the_way_of_others_or_cost_time(monkeypatch: pytest.MonkeyPatch) -> None:
    decoys = [MILAN.key(x4=hashlib.sha512(bytes([n])).digest()) for n in range(20)]
    forged = MILAN.key(signer=0)  # says it is the chip's, and is not signed by the intermediate
    given = MILAN.endorsements("vcek", forged, *decoys, MILAN.key())
    given = replace(given, keys=(b"not a certificate", *given.keys))
    loaded, load = [], chip_keys.x509.load_der_x509_certificate
    uncached = chip_keys.load_certificate.__wrapped__  # its memory of single certificates strangers can flush
    for module in (chip_keys, snp):
        monkeypatch.setattr(module, "load_certificate", uncached)
    monkeypatch.setattr(chip_keys.x509, "load_der_x509_certificate", lambda der: loaded.append(der) or load(der))
    for first in (True, False):
        loaded.clear()
        assert verify_any(MILAN.evidence(), [(MILAN.verifier(), given)], now=NOW).tcb_status == "UpToDate"
        assert any(der in given.keys[:-1] for der in loaded) is first


def test_T268_processor_for_which_the_owner_named_no_floor() -> None:
    # Microcode is counted per model and stepping: one number for all would let the oldest of another model pass.
    maker = Maker(product="Genoa", tcb=TCB(bootloader=10, tee=0, snp=23, microcode=30))
    floors = {"19-11-1": TCB.from_text("10.0.23.30"), "19-a0-2": TCB.from_text("10.0.23.31")}
    for cpuid, status in ((b"\x19\x11\1", "UpToDate"), (b"\x19\xa0\2", "OutOfDate"), (b"\x19\x11\2", "OutOfDate")):
        evidence = maker.evidence(version=3, changes={0x188: cpuid})
        claims = maker.verifier(floors=floors).verify(evidence, maker.endorsements(), now=NOW)
        assert claims.tcb_status == status, claims.tcb
    assert "floor of 19-11-2 none; reported_tcb: no floor" in claims.tcb
    # A report of version 2 names no processor, and one of Turin is not above versions that leave fmc out.
    assert (
        maker.verifier(floors=floors).verify(maker.evidence(), maker.endorsements(), now=NOW).tcb_status == "OutOfDate"
    )
    short = TURIN.verifier(floors={"1a-02-1": TCB.from_text("0.0.0.0")})
    claims = short.verify(TURIN.evidence(), TURIN.endorsements(), now=NOW)
    assert (claims.tcb_status, "fmc is 1, below None" in claims.tcb) == ("OutOfDate", True)


def test_T267_platform_or_key_that_the_owner_did_not_choose() -> None:
    # Memory modules that lie about their size: the firmware did not look, and says so where reports have the bit.
    policy = AllOf((SnpMeasurement(("c3" * 48,)),))
    for version, asked, status in ((2, b"\1", "UpToDate"), (3, b"\x21", "UpToDate"), (5, b"\1", "ConfigurationNeeded")):
        evidence = MILAN.evidence(version=version, changes={0x40: asked})
        claims = verify_any(evidence, CHOICES, now=NOW)
        assert (claims.tcb_status, claims.platform_info, "BadRAM" in claims.tcb) == (
            status, hex(asked[0]), status != "UpToDate",
        )  # fmt: skip
    with pytest.raises(AppraisalError, match="tcb_status: expected UpToDate, got ConfigurationNeeded"):
        appraise(policy, AppraisalContext(claims=claims))
    # Memory behind CXL.
    behind = MILAN.evidence(changes={8: b"\0\0\x23"})
    with pytest.raises(VerificationError, match="policy: expected no CXL"):
        verify_any(behind, CHOICES, now=NOW)
    assert MILAN.verifier(cxl=True).verify(behind, MILAN.endorsements(), now=NOW).guest_policy == "0x230000"
    # A provider's key, for whoever did not name that provider.
    given = MILAN.endorsements("vlek")
    claims = MILAN.verifier().verify(MILAN.evidence("vlek"), given, now=NOW)
    assert (claims.signing_key, claims.provider) == ("vlek", "Tests")
    # Chips whose seed can be read: no check can tell, so it is said wherever limits are shown.
    assert "2605.12990" in claims.limits[-1]
    assert "2605.12990" not in str(verify_any(TURIN.evidence(), CHOICES, now=NOW).limits)
    for named in ("", "Other"):
        with pytest.raises(VerificationError, match=r"key: expected a VCEK.*, got a VLEK of 'Tests'"):
            MILAN.verifier(vlek=named).verify(MILAN.evidence("vlek"), given, now=NOW)
    nameless = MILAN.endorsements("vlek", MILAN.key("vlek", x5=b"\4\1x"))
    with pytest.raises(VerificationError, match="got a VLEK of ''"):
        MILAN.verifier(vlek="").verify(MILAN.evidence("vlek"), nameless, now=NOW)
    assert verify_any(MILAN.evidence(), CHOICES, now=NOW).signing_key == "vcek"


# A SubjectAltName of a kind that `cryptography` does not know, at which it raises an error under none of its families.
ODD_NAME = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), bytes.fromhex("3004a3023000"))


def _oddly_named() -> x509.CertificateBuilder:
    return _builder("SEV-VCEK", "SEV-Milan", MILAN.chip_key.public_key(), 5, 9).add_extension(ODD_NAME, critical=False)


def test_T266_certificate_that_the_library_fails_at() -> None:
    der = _oddly_named().sign(MILAN.chip_key, hashes.SHA384()).public_bytes(DER)
    with pytest.raises(EndorsementError, match="certificate of the key is not readable"):
        verify_any(Evidence(tee="snp", quote=MILAN.report() + certificate_table({"vcek": der})), CHOICES, now=NOW)
    with pytest.raises(EvidenceError, match="UnsupportedGeneralNameType"):
        ratls.read_certificate(der)
    with pytest.raises(InputError):
        uris(certificate_from_pem(ssl.DER_cert_to_PEM_cert(der)))


def test_T242_a_guest_that_others_may_enter_or_that_did_not_ask() -> None:
    for at, value, reason in (
        (8, b"\0\0\x0b", "debugging"),
        (8, b"\0\0\x07", "migration agent"),
        (0x30, b"\xff" * 4, "the guest did not ask"),
        (0x48, b"\2", "masked"),
    ):
        with pytest.raises(AttestationError, match=reason):
            verify_any(MILAN.evidence(changes={at: value}), CHOICES, now=NOW)
    claims = verify_any(MILAN.evidence(changes={0x30: b"\2"}), CHOICES, now=NOW)
    with pytest.raises(AppraisalError, match="vmpl: expected 0, got 2"):
        appraise(AllOf((SnpMeasurement(("c3" * 48,)),)), AppraisalContext(claims=claims))


def test_T243_root_of_ones_own_and_revoked_intermediate() -> None:
    own = Maker(root_key=1)
    for choices in ([(MILAN.verifier(), own.endorsements())], [(MILAN.verifier(), MILAN.endorsements(crl=own.crl()))]):
        with pytest.raises(VerificationError, match=r"root: expected|to be signed by ARK-Milan"):
            verify_any(MILAN.evidence(), choices, now=NOW)
    revoked = [(MILAN.verifier(), MILAN.endorsements(crl=MILAN.crl([MILAN.ask.serial_number])))]
    with pytest.raises(EndorsementError, match=r"revoked: expected .*, got SEV-Milan"):
        verify_any(MILAN.evidence(), revoked, now=NOW)
    with pytest.raises(VerificationError, match="root"):
        verify_any(MILAN.evidence(), [(Platform().verifier, Platform().endorsements())], now=NOW)


def test_T244_without_endorsements_that_hold_nothing_verifies_and_nothing_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("verification went to the network")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(socket, "create_connection", no_network)
    intel, amd = Platform(), MILAN.endorsements()
    verify_any(MILAN.evidence(), [(MILAN.verifier(), amd)], now=NOW)
    for verifier, evidence, endorsements in (
        (MILAN.verifier(), MILAN.evidence(), amd),
        (intel.verifier, intel.evidence(), intel.endorsements()),
    ):
        unreadable = replace(endorsements, **{"crl" if endorsements is amd else "pck_crl": b"0"})  # type: ignore[arg-type]
        for given, now in (
            (endorsements, NOW + timedelta(days=60)),
            (endorsements, NOW - timedelta(days=60)),
            (unreadable, NOW),
        ):
            with pytest.raises(EndorsementError) as caught:
                verify_any(evidence, [(verifier, given)], now=now)  # type: ignore[list-item]
            assert "fetch" in caught.value.hint, caught.value
    with pytest.raises(EndorsementError, match="no VCEK of chip") as caught:
        verify_any(MILAN.evidence(), [(MILAN.verifier(), replace(amd, keys=()))], now=NOW)
    assert "fetch" in caught.value.hint


def test_T245_bytes_behind_a_report() -> None:
    report = MILAN.report()
    key = MILAN.key().public_bytes(DER)
    table = certificate_table({"vcek": key})
    verify_any(Evidence(tee="snp", quote=report + table), CHOICES, now=NOW)
    for rest in (b"\0", bytes(4096), b"x" * 48, table + b"\0", table[:24] + table, table + table):
        with pytest.raises(EvidenceError):
            verify_any(Evidence(tee="snp", quote=report + rest), CHOICES, now=NOW)


def test_T246_confidential_vm_with_another_job() -> None:
    text, other = job_init_data(JOB), job_init_data({**JOB, "name": "other"})
    claims = verify_any(MILAN.evidence(), CHOICES, now=NOW)
    assert check_init_data(claims, text)
    with pytest.raises(VerificationError, match="init data: expected config id"):
        check_init_data(claims, other)
    # TDX where the cloud sets no MRCONFIGID: RTMR3 binds the job, and only if nothing else was measured there.
    platform, digest = Platform(), init_data_digest(text)
    bound = expected_register(digest)
    again = hashlib.sha384(bound + digest + bytes(16)).digest()
    for register, config, accepted in (
        (bound, bytes(48), True),
        (again, bytes(48), False),
        (bytes(48), bytes(48), False),
    ):
        quote = platform.quote_tdx(config_id=config, rtmrs=(bytes(48), bytes(48), bytes(48), register))
        tdx = platform.verifier.verify(Evidence(tee="tdx", quote=quote), platform.endorsements("tdx"), now=NOW)
        if accepted:
            assert check_init_data(tdx, text)
        for wrong in (other,) if accepted else (text, other):
            with pytest.raises(VerificationError, match="init data"):
                check_init_data(tdx, wrong)
    # Whose MRCONFIGID names another job is not helped by the register.
    quote = platform.quote_tdx(config_id=b"\1" * 48, rtmrs=(bytes(48), bytes(48), bytes(48), bound))
    tdx = platform.verifier.verify(Evidence(tee="tdx", quote=quote), platform.endorsements("tdx"), now=NOW)
    with pytest.raises(VerificationError, match="init data"):
        check_init_data(tdx, text)
    assert platform.claims().measurement == MEASUREMENT
