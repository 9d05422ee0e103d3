from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fakes.attest_parts import JOB, MEASUREMENT, Platform

from strongroom.attest.appraisal import (
    AllOf,
    AnyOf,
    AppraisalContext,
    FreeArgument,
    JobDigest,
    Measurement,
    Policy,
    Signer,
    TcbStatus,
    UnsafeAcceptSimulated,
    appraise,
    job_digest,
    policy_from_json,
    policy_simulated,
)
from strongroom.attest.binding import job_init_data
from strongroom.errors import AppraisalError, InputError

GOOD = Measurement((MEASUREMENT.hex(),))
BAD = Measurement(("00" * 32,))
SIMULATED = AppraisalContext(claims=Platform().claims(), job=JOB)
HARDWARE = replace(SIMULATED, claims=replace(SIMULATED.claims, simulated=False, root="hardware"))


def _reasons(policy: Policy, context: AppraisalContext = HARDWARE) -> list[str]:
    with pytest.raises(AppraisalError) as caught:
        appraise(policy, context)
    return caught.value.reasons


def test_all_of_says_every_reason_once() -> None:
    reasons = _reasons(AllOf((BAD, Signer(("00" * 32,)))), SIMULATED)
    assert [reason.split(":")[0] for reason in reasons] == ["root", "measurement", "signer"]


def test_any_of_keeps_the_reasons_of_each_branch() -> None:
    reasons = _reasons(AnyOf((BAD, AllOf((GOOD, Signer(("00" * 32,)))))))
    assert [reason.split(":")[0] for reason in reasons] == ["any_of[0]", "any_of[1]"]


@pytest.mark.parametrize(
    "policy",
    [
        GOOD,
        AnyOf((GOOD, UnsafeAcceptSimulated())),
        AllOf((AnyOf((GOOD, UnsafeAcceptSimulated())), GOOD)),
        AllOf((GOOD, AllOf((UnsafeAcceptSimulated(), GOOD)))),
        AnyOf((AllOf((UnsafeAcceptSimulated(), BAD)), GOOD)),
        AllOf((UnsafeAcceptSimulated(),)),
        UnsafeAcceptSimulated(),
    ],
)
def test_a_waiver_reaches_only_its_own_all_of(policy: Policy) -> None:
    assert _reasons(policy, SIMULATED)


def test_a_waiver_covers_everything_inside_its_all_of() -> None:
    appraise(AllOf((UnsafeAcceptSimulated(), AnyOf((BAD, AllOf((GOOD,)))))), SIMULATED)
    appraise(AnyOf((BAD, AllOf((UnsafeAcceptSimulated(), GOOD)))), SIMULATED)


def test_status_may_be_widened_but_never_to_revoked() -> None:
    late = replace(HARDWARE, claims=replace(HARDWARE.claims, tcb_status="OutOfDate", advisory_ids=("INTEL-SA-1",)))
    assert "OutOfDate (INTEL-SA-1)" in _reasons(GOOD, late)[0]
    appraise(AllOf((TcbStatus(("UpToDate", "OutOfDate")), GOOD)), late)
    revoked = replace(late, claims=replace(late.claims, tcb_status="Revoked"))
    assert _reasons(AllOf((TcbStatus(("Revoked",)), GOOD)), revoked)


def test_job_digest_is_the_init_datas() -> None:
    import hashlib

    assert job_digest(JOB) == "sha256:" + hashlib.sha256(job_init_data(JOB).encode()).hexdigest()


def test_free_argument_matches_end_to_end() -> None:
    free = (FreeArgument(2, r"\d{4}-\d\d-\d\d"),)
    policy = JobDigest((job_digest(JOB, free),), free)
    appraise(policy, replace(HARDWARE, job={**JOB, "arguments": ["app.py", "--day", "1999-12-31"]}))
    for arguments in (
        ["app.py", "--day", "1999-12-31; rm"],
        ["app.py", "--day", "1999-12-31\n"],
        ["app.py", "--day", {"free": r"\d{4}-\d\d-\d\d"}],
        ["app.py", "--day"],
        ["evil.py", "--day", "1999-12-31"],
        ["app.py", "--day", "1999-12-31", "--more"],
        "app.py",
    ):
        assert _reasons(policy, replace(HARDWARE, job={**JOB, "arguments": arguments}))[0].startswith("job_digest")
    assert _reasons(policy, replace(HARDWARE, job=None))
    assert _reasons(policy, replace(HARDWARE, job={"x": 0.5, "arguments": ["a", "b", "1999-12-31"]}))


def test_a_template_is_not_the_digest_of_a_presented_job() -> None:
    # A job whose document already holds the replacement must not pass a policy without free arguments by its digest.
    free = (FreeArgument(2, ".*"),)
    presented = {**JOB, "arguments": ["app.py", "--day", {"free": ".*"}]}
    with pytest.raises(InputError):
        job_digest(presented, free)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [],
        {"kind": "hope"},
        {"kind": ["all_of"]},
        {"kind": "measurement"},
        {"kind": "measurement", "values": []},
        {"kind": "measurement", "values": ["AA" * 32]},
        {"kind": "measurement", "values": ["00" * 31]},
        {"kind": "measurement", "values": ["00" * 32], "more": 1},
        {"kind": "job_digest", "values": ["00" * 32]},
        {"kind": "job_digest", "values": ["sha256:" + "00" * 32], "free": [{"index": -1, "pattern": "x"}]},
        {"kind": "job_digest", "values": ["sha256:" + "00" * 32], "free": [{"index": 0, "pattern": "("}]},
        {"kind": "job_digest", "values": ["sha256:" + "00" * 32], "free": [{"index": 0, "pattern": "x"}] * 2},
        {"kind": "job_digest", "values": ["sha256:" + "00" * 32], "free": [{"index": 0}]},
        {"kind": "minimum_svn", "minimum": True},
        {"kind": "minimum_svn", "minimum": 1 << 16},
        {"kind": "minimum_svn", "minimum": 1, "product": "7"},
        {"kind": "tcb_status", "allowed": ["Revoked"]},
        {"kind": "tcb_status", "allowed": []},
        {"kind": "not_debug", "really": True},
        {"kind": "all_of", "policies": {}},
        {"kind": "all_of", "policies": [{"kind": "not_debug"}] * 4096},
    ],
)
def test_other_json_is_refused(value: object) -> None:
    with pytest.raises(InputError):
        policy_from_json(value)


def test_depth_is_limited() -> None:
    value: object = {"kind": "not_debug"}
    for _ in range(8):
        value = {"kind": "all_of", "policies": [value]}
    with pytest.raises(InputError):
        policy_from_json(value)


def test_policy_simulated() -> None:
    assert policy_simulated(AnyOf((GOOD, AllOf((UnsafeAcceptSimulated(), GOOD)))))
    assert not policy_simulated(AnyOf((GOOD, AllOf((BAD,)))))


@pytest.mark.parametrize(
    "policy", [Measurement(("01" * 48,)), Signer(("aa" * 48,)), AnyOf((Measurement(("01" * 48,)),))]
)
def test_T166_tdx_is_accepted_by_no_policy(policy: Policy) -> None:
    tdx = replace(HARDWARE.claims, tee="tdx", measurement=b"\x01" * 48, signer=b"\xaa" * 48)
    assert "tee: expected sgx, got tdx" in _reasons(policy, replace(HARDWARE, claims=tdx))[0]
