"""One test per threat to attestation (docs/threat-model.md, T01 to T15)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes.attest_parts import JOB, MEASUREMENT, NOW, SIGNER, Platform, make_pki

from strongroom.attest.appraisal import appraise
from strongroom.attest.binding import job_init_data
from strongroom.attest.claims import check_init_data, check_report_data
from strongroom.attest.endorsements import INTEL_ROOT, TrustAnchor
from strongroom.attest.evidence import Evidence
from strongroom.attest.findings import AppraisalContext
from strongroom.attest.handshake import AttestRequest, tee_pubkey
from strongroom.attest.policies import (
    AllOf,
    JobDigest,
    Measurement,
    MinimumSvn,
    Root,
    Signer,
    TcbStatus,
    TdxMeasurements,
    UnsafeAcceptSimulated,
    job_digest,
)
from strongroom.attest.quote import parse_quote
from strongroom.attest.verifiers import verify_any
from strongroom.attest.verifiers.dcap import DCAPVerifier
from strongroom.errors import AppraisalError, EndorsementError, EvidenceError, InputError, VerificationError

PLATFORM, OTHER = Platform(), Platform(make_pki("two"))
ADMITTED = AllOf((UnsafeAcceptSimulated(), Measurement((MEASUREMENT.hex(),))))


def _request(nonce: str = "nonce-of-this-session", evidence: Evidence | None = None) -> AttestRequest:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return AttestRequest(nonce=nonce, tee_pubkey=tee_pubkey(key), evidence=(evidence or PLATFORM.evidence()).to_json())


def test_T01_quote_of_another_measurement() -> None:
    claims = PLATFORM.claims(measurement=bytes(32))
    with pytest.raises(AppraisalError, match="measurement: expected"):
        appraise(ADMITTED, AppraisalContext(claims=claims))


def test_T02_debug_enclave() -> None:
    with pytest.raises(VerificationError, match="debug: expected a production enclave"):
        PLATFORM.claims(debug=True)
    claims = replace(PLATFORM.claims(), debug=True)  # and if a verifier let it through
    with pytest.raises(AppraisalError, match="debug: expected"):
        appraise(ADMITTED, AppraisalContext(claims=claims))


def test_T03_another_root() -> None:
    with pytest.raises(VerificationError, match="root"):
        PLATFORM.verifier.verify(OTHER.evidence(), OTHER.endorsements(), now=NOW)
    with pytest.raises(VerificationError, match="root"):
        verify_any(OTHER.evidence(), [(PLATFORM.verifier, PLATFORM.endorsements())], now=NOW)
    with pytest.raises(VerificationError, match="root"):
        verify_any(OTHER.evidence(), [], now=NOW)
    both = [(PLATFORM.verifier, PLATFORM.endorsements()), (OTHER.verifier, OTHER.endorsements())]
    assert verify_any(OTHER.evidence(), both, now=NOW).root_fingerprint == OTHER.pki.anchor().fingerprint


def test_T03_endorsements_of_another_root() -> None:
    with pytest.raises((EndorsementError, VerificationError)):
        PLATFORM.verifier.verify(PLATFORM.evidence(), OTHER.endorsements(), now=NOW)


def test_T04_simulated_quote_where_the_policy_wants_hardware() -> None:
    with pytest.raises(AppraisalError, match="root: expected hardware, got simulated"):
        appraise(Measurement((MEASUREMENT.hex(),)), AppraisalContext(claims=PLATFORM.claims()))
    with pytest.raises(VerificationError, match="root"):
        DCAPVerifier(INTEL_ROOT).verify(PLATFORM.evidence(), PLATFORM.endorsements(), now=NOW)


@pytest.mark.parametrize("tee", ["sgx", "tdx"])
def test_T05_simulated_root_filed_as_hardware(tee: str) -> None:
    misfiled = TrustAnchor(kind="hardware", certificate_der=PLATFORM.pki.anchor().certificate_der)
    quote = PLATFORM.quote() if tee == "sgx" else PLATFORM.quote_tdx()
    claims = DCAPVerifier(misfiled).verify(Evidence(tee=tee, quote=quote), PLATFORM.endorsements(tee), now=NOW)
    assert claims.simulated
    assert claims.root == "simulated"
    zero = ("00" * 48,)
    registers = TdxMeasurements((claims.measurement.hex(),), zero, zero, zero, zero)
    policy = Measurement((MEASUREMENT.hex(),)) if tee == "sgx" else registers
    appraise(AllOf((UnsafeAcceptSimulated(), policy)), AppraisalContext(claims=claims))
    with pytest.raises(AppraisalError, match=r"^root: expected hardware, got simulated \(.{16}\)$"):
        appraise(policy, AppraisalContext(claims=claims))
    with pytest.raises(AppraisalError, match=r"^root: expected hardware or named, got simulated \(.{16}\)$"):
        appraise(AllOf((policy, Root((misfiled.fingerprint,)))), AppraisalContext(claims=claims))


@pytest.mark.parametrize("days", [-40, 40])
def test_T06_endorsements_that_do_not_hold_now(days: int) -> None:
    stale = PLATFORM.pki.endorsements(NOW + timedelta(days=days))
    with pytest.raises(EndorsementError, match="holds from"):
        PLATFORM.verifier.verify(PLATFORM.evidence(), stale, now=NOW)


@pytest.mark.parametrize("which", ["revoke_pck", "revoke_platform_ca"])
def test_T07_revoked_platform(which: str) -> None:
    endorsements = PLATFORM.pki.endorsements(NOW, **{which: True})  # type: ignore[arg-type]
    with pytest.raises(EndorsementError, match="revoked"):
        PLATFORM.verifier.verify(PLATFORM.evidence(), endorsements, now=NOW)


def test_T08_replayed_evidence() -> None:
    first = _request("nonce-of-the-first-session")
    claims = PLATFORM.claims(report_data=first.report_data())
    check_report_data(claims, first.report_data())
    with pytest.raises(VerificationError, match="report data"):
        check_report_data(claims, replace(first, nonce="nonce-of-the-second-session").report_data())


def test_T09_evidence_relayed_under_another_guest_key() -> None:
    mine, theirs = _request(), _request()
    claims = PLATFORM.claims(report_data=theirs.report_data())
    with pytest.raises(VerificationError, match="report data"):
        check_report_data(claims, mine.report_data())
    # The TLS key is under the same hash.
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    bound = replace(theirs, tee_pubkey={**theirs.tee_pubkey, **tee_pubkey(key, key)})
    with pytest.raises(VerificationError, match="report data"):
        check_report_data(claims, bound.report_data())


def test_T10_report_data_that_agrees_in_the_hash_only() -> None:
    expected = _request().report_data()
    for at in (0, 47, 48, 63):
        altered = bytearray(expected)
        altered[at] ^= 1
        with pytest.raises(VerificationError, match="report data"):
            check_report_data(PLATFORM.claims(report_data=bytes(altered)), expected)
    with pytest.raises(VerificationError):
        check_report_data(PLATFORM.claims(report_data=expected), expected[:48])


def test_T11_trailing_or_missing_bytes() -> None:
    quote = PLATFORM.quote()
    for altered in (quote + b"\0", quote + quote, quote[:-1], quote[:432]):
        with pytest.raises(EvidenceError):
            PLATFORM.verifier.verify(Evidence(tee="sgx", quote=altered), PLATFORM.endorsements(), now=NOW)


def test_T12_job_document_that_the_evidence_does_not_bind() -> None:
    claims = PLATFORM.claims()
    assert check_init_data(claims, job_init_data(JOB)) == {"job.json": job_init_data_body()}
    for text in (job_init_data({**JOB, "name": "steal"}), job_init_data(JOB) + "\n", ""):
        with pytest.raises((VerificationError, InputError)):
            check_init_data(claims, text)
    policy = AllOf((UnsafeAcceptSimulated(), JobDigest((job_digest(JOB),))))
    with pytest.raises(AppraisalError, match="job_digest: expected"):
        appraise(policy, AppraisalContext(claims=claims, job={**JOB, "name": "steal"}))


def job_init_data_body() -> str:
    from strongroom._encoding import canonical_json

    return canonical_json(JOB).decode()


def test_T13_old_version_of_the_same_signer() -> None:
    policy = AllOf((UnsafeAcceptSimulated(), Signer((SIGNER.hex(),)), MinimumSvn(3, product=7)))
    appraise(policy, AppraisalContext(claims=PLATFORM.claims()))
    for changes in ({"isv_svn": 2}, {"isv_prod_id": 8}):
        with pytest.raises(AppraisalError):
            appraise(policy, AppraisalContext(claims=PLATFORM.claims(**changes)))


def test_T14_platform_with_known_weaknesses() -> None:
    endorsements = PLATFORM.pki.endorsements(NOW, tcb_status="OutOfDate", advisory_ids=["INTEL-SA-1"])
    context = AppraisalContext(claims=PLATFORM.verifier.verify(PLATFORM.evidence(), endorsements, now=NOW))
    with pytest.raises(AppraisalError, match="INTEL-SA-1"):
        appraise(ADMITTED, context)
    with pytest.raises(AppraisalError, match="advisories: expected none, got INTEL-SA-1"):
        appraise(AllOf((*ADMITTED.policies, TcbStatus(("OutOfDate",)))), context)
    appraise(AllOf((*ADMITTED.policies, TcbStatus(("OutOfDate",), ("INTEL-SA-1",)))), context)
    revoked = PLATFORM.pki.endorsements(NOW, tcb_status="Revoked")
    with pytest.raises(EndorsementError, match="Revoked"):
        PLATFORM.verifier.verify(PLATFORM.evidence(), revoked, now=NOW)


def test_T15_spliced_quote() -> None:
    # The body of one quote under the signature of another, and a foreign PCK chain behind a signed body.
    one, two = PLATFORM.quote(), PLATFORM.quote(measurement=bytes(32))
    foreign = OTHER.quote()
    chain = parse_quote(one)["auth.cert_data"]
    for spliced in (two[:432] + one[432:], one.replace(chain, parse_quote(foreign)["auth.cert_data"])):
        with pytest.raises((VerificationError, EvidenceError)):
            PLATFORM.verifier.verify(Evidence(tee="sgx", quote=spliced), PLATFORM.endorsements(), now=NOW)
    with pytest.raises(EvidenceError):
        PLATFORM.verifier.verify(Evidence(tee="tdx", quote=one), PLATFORM.endorsements("tdx"), now=NOW)
