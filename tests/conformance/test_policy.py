"""Every policy: round trip as JSON, hardware required, reasons that say expected and got."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fakes.attest_parts import JOB, MEASUREMENT, SIGNER, Platform

from strongroom.attest.appraisal import appraise, policy_from_json, policy_to_json
from strongroom.attest.claims import Claims
from strongroom.attest.findings import AppraisalContext, Policy
from strongroom.attest.policies import (
    AllOf,
    AnyOf,
    FreeArgument,
    JobDigest,
    Machine,
    Measurement,
    MinimumEvaluation,
    MinimumSvn,
    NotDebug,
    PlatformFlags,
    Root,
    Signer,
    SnpMeasurement,
    TcbStatus,
    TdxMeasurements,
    UnsafeAcceptSimulated,
    job_digest,
)
from strongroom.errors import AppraisalError

FREE = (FreeArgument(2, r"\d{4}-\d\d-\d\d"),)
GOOD: dict[str, Policy] = {
    "measurement": Measurement(("00" * 32, MEASUREMENT.hex())),
    "signer": Signer((SIGNER.hex(),)),
    "minimum_svn": MinimumSvn(3, product=7),
    "tcb_status": TcbStatus(),
    "grace": TcbStatus(("UpToDate", "OutOfDate"), ("INTEL-SA-1",), 30),
    "minimum_evaluation": MinimumEvaluation(1),
    "machine": Machine(("11" * 16, Platform().claims().piid.hex())),
    "platform_flags": PlatformFlags(),
    "root": Root((Platform().pki.anchor().fingerprint,)),
    "not_debug": NotDebug(),
    "job_digest": JobDigest((job_digest(JOB),)),
    "job_digest_free": JobDigest((job_digest(JOB, FREE),), FREE),
    "all_of": AllOf((Measurement((MEASUREMENT.hex(),)), NotDebug())),
    "any_of": AnyOf((Measurement(("00" * 32,)), Signer((SIGNER.hex(),)))),
}
BAD: dict[str, Policy] = {
    "measurement": Measurement(("00" * 32,)),
    "signer": Signer(("00" * 32,)),
    "minimum_svn": MinimumSvn(4),
    "product": MinimumSvn(1, product=8),
    "tcb_status": TcbStatus(("OutOfDate",)),
    "minimum_evaluation": MinimumEvaluation(2),
    "machine": Machine(("00" * 16,)),
    "root": Root(("00" * 32,)),
    "tdx_measurements": TdxMeasurements(rtmr3=("00" * 48,)),
    "snp_measurement": SnpMeasurement((MEASUREMENT.hex(),)),
    "job_digest": JobDigest(("sha256:" + "00" * 32,)),
    "job_digest_free": JobDigest((job_digest(JOB, FREE),), (FreeArgument(2, r"\d{4}"),)),
    "all_of": AllOf((Measurement((MEASUREMENT.hex(),)), Signer(("00" * 32,)))),
    "any_of": AnyOf((Measurement(("00" * 32,)), Signer(("00" * 32,)))),
    "empty all_of": AllOf(()),
    "empty any_of": AnyOf(()),
    "waiver": UnsafeAcceptSimulated(),
    "only waivers": AllOf((UnsafeAcceptSimulated(), UnsafeAcceptSimulated())),
    "no values": Measurement(()),
}


def _hardware() -> Claims:
    return replace(Platform().claims(), root="hardware", simulated=False)


@pytest.mark.parametrize("name", GOOD)
def test_accepts(name: str) -> None:
    appraise(GOOD[name], AppraisalContext(claims=_hardware(), job=JOB))


@pytest.mark.parametrize("name", BAD)
def test_refuses_with_reasons(name: str) -> None:
    with pytest.raises(AppraisalError) as caught:
        appraise(BAD[name], AppraisalContext(claims=_hardware(), job=JOB))
    assert caught.value.reasons
    for reason in caught.value.reasons:
        assert "expected" in reason
        assert "got" in reason


@pytest.mark.parametrize("name", GOOD)
def test_requires_hardware_a_production_enclave_and_an_up_to_date_platform(name: str) -> None:
    worse = {
        "root": replace(_hardware(), simulated=True),
        "debug": replace(_hardware(), debug=True),
        "tcb_status": replace(_hardware(), tcb_status="ConfigurationNeeded"),
        "advisories": replace(_hardware(), advisory_ids=("INTEL-SA-2",)),
    }
    for check, claims in worse.items():
        with pytest.raises(AppraisalError, match=f"{check}: expected"):
            appraise(GOOD[name], AppraisalContext(claims=claims, job=JOB))


@pytest.mark.parametrize("name", GOOD)
def test_a_waiver_beside_it_admits_the_simulated_root(name: str, caplog: pytest.LogCaptureFixture) -> None:
    context = AppraisalContext(claims=Platform().claims(), job=JOB)
    appraise(AllOf((UnsafeAcceptSimulated(), GOOD[name])), context)
    assert "SIMULATED" in caplog.text


TDX = TdxMeasurements(rtmr1=("01" * 48, "02" * 48), rtmr3=("03" * 48,))
SNP = SnpMeasurement(("01" * 48, "02" * 48))


@pytest.mark.parametrize(
    "policy", [TDX, SNP, *GOOD.values(), UnsafeAcceptSimulated()], ids=["tdx", "snp", *GOOD, "waiver"]
)
def test_json_round_trip(policy: Policy) -> None:
    assert policy_from_json(policy_to_json(policy)) == policy
