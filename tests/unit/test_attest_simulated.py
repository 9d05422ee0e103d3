from __future__ import annotations

import json
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import dcap_qvl
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.fakes.attest_parts import NOW, REPORT_DATA, Platform, make_pki, serve_quotes

from strongroom.attest.attesters.simulated import SimulatedAttester
from strongroom.attest.endorsements import INTEL_ROOT, Endorsements, TrustAnchor
from strongroom.attest.markers import SIMULATED_FMSPC
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.errors import EndorsementError, EvidenceError, InputError, UnavailableError

PLATFORM = Platform()


def test_the_same_seed_gives_the_same_platform_at_any_time() -> None:
    again = SimulatedPKI.create(b"one".ljust(32, b"."), now=NOW + timedelta(days=900))
    for name in ("root", "platform_ca", "pck", "tcb_signing"):
        assert getattr(again, name) == getattr(make_pki(), name)
    assert Platform(again).quote() == PLATFORM.quote()
    assert make_pki("two").anchor().fingerprint != again.anchor().fingerprint


def test_seed_and_clock_are_checked() -> None:
    for seed, now in ((b"short", NOW), (bytes(32), NOW - timedelta(days=2000))):
        with pytest.raises(InputError):
            SimulatedPKI.create(seed, now=now)


def test_every_name_says_simulated() -> None:
    pki = make_pki()
    for certificate in (pki.root, pki.platform_ca, pki.pck, pki.tcb_signing):
        assert "SIMULATED" in certificate.subject.rfc4514_string()
    assert dcap_qvl.parse_quote(PLATFORM.quote()).fmspc() == SIMULATED_FMSPC.hex().upper()


def test_the_extension_reads_as_a_real_one() -> None:
    extension = dcap_qvl.parse_pck_extension_from_pem(make_pki().pck_chain_pem())
    assert (extension.pce_svn, extension.sgx_type, extension.pce_id) == (13, 0, bytes(2))
    assert extension.cpu_svn == bytes([2]) * 16
    assert len(extension.ppid) == len(extension.platform_instance_id) == 16


def test_claims_name_the_platform() -> None:
    claims = PLATFORM.claims()
    assert claims.simulated
    assert claims.root == "simulated"
    assert (claims.tcb_status, claims.fmspc, claims.tcb_eval_number) == ("UpToDate", "53494d000000", 1)
    assert len(claims.ppid) == len(claims.piid) == 16
    json.dumps(claims.to_json())


def test_status_and_advisories_reach_the_claims() -> None:
    endorsements = PLATFORM.pki.endorsements(NOW, tcb_status="OutOfDate", advisory_ids=["INTEL-SA-1"])
    claims = PLATFORM.verifier.verify(PLATFORM.evidence(), endorsements, now=NOW)
    assert (claims.tcb_status, claims.advisory_ids) == ("OutOfDate", ("INTEL-SA-1",))
    late_qe = PLATFORM.pki.endorsements(NOW, qe_status="OutOfDate")
    assert PLATFORM.verifier.verify(PLATFORM.evidence(), late_qe, now=NOW).tcb_status == "OutOfDate"


def test_endorsements_round_trip_and_hold_for_30_days() -> None:
    endorsements = PLATFORM.endorsements()
    assert Endorsements.from_json(json.loads(json.dumps(endorsements.to_json()))) == endorsements
    ends = {(start, end) for _, start, end in endorsements.parts()}
    assert ends == {(NOW - timedelta(hours=1), NOW + timedelta(days=30))}
    assert (endorsements.tee, PLATFORM.endorsements("tdx").tee) == ("sgx", "tdx")
    wire = endorsements.to_json()
    for changed in ({}, {**wire, "more": ""}, {**wire, "pck_crl": "zz"}, {**wire, "tcb_info": 1}, []):
        with pytest.raises(EndorsementError):
            Endorsements.from_json(changed)


def test_anchor_round_trip() -> None:
    anchor = make_pki().anchor()
    assert TrustAnchor.from_json(anchor.to_json()) == anchor
    for changed in ({}, {**anchor.to_json(), "kind": "real"}, {**anchor.to_json(), "certificate": "AAAA"}):
        with pytest.raises(InputError):
            TrustAnchor.from_json(changed)


def test_the_intel_root_is_the_one_built_into_dcap_qvl() -> None:
    assert INTEL_ROOT.fingerprint == "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
    libraries = list(Path(dcap_qvl.__file__).parent.glob("_dcap_qvl*"))
    assert any(INTEL_ROOT.certificate_der in path.read_bytes() for path in libraries)


def test_the_root_certificate_verifies_itself() -> None:
    root = make_pki().root
    root.verify_directly_issued_by(root)
    assert make_pki().anchor().certificate_der == root.public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "changes", [{"measurement": b""}, {"report_data": bytes(63)}, {"config_id": bytes(32)}, {"isv_svn": 1 << 16}]
)
def test_the_quoting_enclave_checks_sizes(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        PLATFORM.quote(**changes)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"\1no", UnavailableError),
        (b"\0not a quote", EvidenceError),
        (b"\0" + bytes(1 << 17), EvidenceError),
        (b"", EvidenceError),
        (b"\0" + PLATFORM.quote(report_data=bytes(64)), EvidenceError),
    ],
    ids=["refusal", "garbage", "huge", "empty", "other report data"],
)
def test_the_attester_believes_no_answer(answer: bytes, error: type[Exception]) -> None:
    ours, theirs = socket.socketpair()
    serve_quotes(theirs, lambda _data: answer)
    with ours, pytest.raises(error):
        SimulatedAttester(ours).attest(REPORT_DATA)


def test_a_closed_platform_is_unavailable() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(UnavailableError):
        SimulatedAttester(ours).attest(REPORT_DATA)


def test_the_guests_side_reaches_no_verifier() -> None:
    code = (
        "import sys, strongroom.attest.attesters.simulated, strongroom.attest.handshake, strongroom.attest.binding\n"
        "far = ('dcap_qvl', 'strongroom.attest.simulated', 'strongroom.attest.verifiers')\n"
        "bad = [m for m in sys.modules if m.startswith(far)]\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
