from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.fakes.attest_parts import JOB, MEASUREMENT, NOW, Platform
from tests.fakes.quote_parts import case

from strongroom.attest.appraisal import (
    appraise,
    check_pins_code,
    findings,
    names_job,
    policy_from_json,
    policy_to_json,
    references,
)
from strongroom.attest.binding import job_init_data
from strongroom.attest.findings import AppraisalContext, Policy
from strongroom.attest.policies import (
    TCB_STATUSES,
    AllOf,
    AnyOf,
    FreeArgument,
    JobDigest,
    Machine,
    Measurement,
    MinimumEvaluation,
    MinimumSvn,
    PlatformFlags,
    Reference,
    Signer,
    SnpMeasurement,
    TcbStatus,
    TdxMeasurements,
    UnsafeAcceptSimulated,
    job_digest,
)
from strongroom.client.policies import allowance, measured
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
    appraise(AllOf((TcbStatus(("UpToDate", "OutOfDate"), ("INTEL-SA-1",)), GOOD)), late)
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
        {"kind": "tdx_measurements"},
        {"kind": "tdx_measurements", "rtmr4": ["00" * 48]},
        {"kind": "tdx_measurements", "mrtd": ["00" * 32]},
        {"kind": "tdx_measurements", "mrtd": []},
        {"kind": "tcb_status", "allowed": ["UpToDate"], "grace_days": 30},
        {"kind": "tcb_status", "allowed": ["OutOfDate"], "grace_days": -1},
        {"kind": "tcb_status", "allowed": ["OutOfDate"], "advisories": ["all of them"]},
        {"kind": "minimum_evaluation", "minimum": "17"},
        {"kind": "machine", "values": ["00" * 16]},
        {"kind": "machine", "values": ["11" * 17]},
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


MRTD, *RTMRS = [str(i) * 48 for i in range(10, 15)]
REGISTERS = {"mrtd": MRTD, **{f"rtmr{i}": value for i, value in enumerate(RTMRS)}}
TDX = replace(
    HARDWARE,
    claims=replace(
        HARDWARE.claims,
        tee="tdx",
        measurement=bytes.fromhex(MRTD),
        signer=b"\xaa" * 48,
        rtmrs=tuple(map(bytes.fromhex, RTMRS)),
    ),
)


def _tdx(**changes: str | None) -> TdxMeasurements:
    return TdxMeasurements(**{name: (value,) for name, value in {**REGISTERS, **changes}.items() if value})


@pytest.mark.parametrize(
    "policy",
    [
        Measurement((MRTD,)),
        AllOf((Measurement((MRTD,)), JobDigest((job_digest(JOB),)))),
        AllOf((Signer(("aa" * 48,)), MinimumSvn(0, product=0))),
        AllOf((_tdx(rtmr0=None), Measurement((MRTD,)))),
        AllOf((AnyOf((_tdx(), GOOD)), JobDigest((job_digest(JOB),)))),
    ],
)
def test_T166_tdx_is_accepted_only_where_every_register_is_named(policy: Policy) -> None:
    assert "tee: expected sgx (snp where snp_measurement names the launch digest, tdx where" in _reasons(policy, TDX)[0]


@pytest.mark.parametrize("register", REGISTERS)
def test_T230_a_register_that_is_not_named_or_differs(register: str) -> None:
    appraise(_tdx(), TDX)
    appraise(AllOf((_tdx(), JobDigest((job_digest(JOB),)))), TDX)
    check_pins_code(_tdx())
    assert _reasons(_tdx(**{register: "99" * 48}), TDX) == [
        f"{register}: expected {'99' * 48}, got {REGISTERS[register]}"
    ]
    part = _tdx(**{register: None})
    assert _reasons(part, TDX)[0].startswith("tee: expected sgx ")
    with pytest.raises(InputError, match="names no code"):
        check_pins_code(part)
    # What a complete check admits, it admits of TDX alone, with everything else as strict as ever.
    assert _reasons(_tdx()) == ["tdx_measurements: expected tdx, got sgx"]
    for change in ({"simulated": True}, {"debug": True}, {"tcb_status": "OutOfDate"}, {"advisory_ids": ("A",)}):
        assert len(_reasons(_tdx(), replace(TDX, claims=replace(TDX.claims, **change)))) == 1


def test_snp_is_accepted_by_launch_digest_at_level_0_and_has_no_svn_of_sgx() -> None:
    snp = replace(TDX.claims, tee="snp", rtmrs=(), vmpl=0, chip_id=b"\x07" * 64, ppid=b"", piid=b"")
    policy = AllOf((SnpMeasurement((MRTD,)), Machine(("07" * 64,))))
    appraise(policy, AppraisalContext(claims=snp))
    appraise(AnyOf((GOOD, policy)), AppraisalContext(claims=snp))
    check_pins_code(policy)
    for vmpl in (1, None):
        reasons = _reasons(policy, AppraisalContext(claims=replace(snp, vmpl=vmpl)))
        assert reasons == [f"vmpl: expected 0, got {vmpl}"]
    signed = AllOf((Signer(("aa" * 48,)), MinimumSvn(0, product=0)))
    assert [r.split(":")[0] for r in _reasons(signed, AppraisalContext(claims=snp))] == [
        "tee", "minimum_svn", "product",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "policy",
    [
        Measurement((MRTD,)),
        AllOf((Measurement((MRTD,)), JobDigest((job_digest(JOB),)))),
        AllOf((AnyOf((SnpMeasurement((MRTD,)), GOOD)), JobDigest((job_digest(JOB),)))),
        AllOf((_tdx(), Measurement((MRTD,)))),
    ],
)
def test_T265_a_launch_digest_is_judged_by_snp_measurement_alone(policy: Policy) -> None:
    snp = AppraisalContext(claims=replace(TDX.claims, tee="snp", rtmrs=(), vmpl=0), job=JOB)
    assert any(reason.startswith("tee: expected sgx") for reason in _reasons(policy, snp))
    # And it judges nothing else: what is as long in TDX is no launch digest.
    for other in (TDX, AppraisalContext(claims=Platform().claims(), job=JOB)):
        assert any(r.startswith("snp_measurement: expected") for r in _reasons(SnpMeasurement((MRTD,)), other))


def test_T231_advisories_grace_edition_and_machine() -> None:
    quote, status = Platform().evidence(), TcbStatus(("OutOfDate",), ("INTEL-SA-1", "INTEL-SA-3"), grace_days=790)
    endorsements = Platform().pki.endorsements(
        NOW, tcb_status="OutOfDate", advisory_ids=["INTEL-SA-1", "INTEL-SA-2"], tcb_eval_number=17
    )
    claims = Platform().verifier.verify(quote, endorsements, now=NOW)
    assert (claims.tcb_date, claims.tcb_age_days, claims.tcb_eval_number) == ("2024-01-01", 790, 17)
    context = AppraisalContext(claims=replace(claims, simulated=False, root="hardware"))
    assert _reasons(status, context) == [
        "advisories: expected none but INTEL-SA-1, INTEL-SA-3, got INTEL-SA-1, INTEL-SA-2"
    ]
    known = replace(status, advisories=("INTEL-SA-1", "INTEL-SA-2"))
    appraise(known, context)
    too_old = "grace: expected at most 789 days after the TCB's date, got 790 days after 2024-01-01"
    assert _reasons(replace(known, grace_days=789), context) == [too_old]

    # The date of a part that is up to date does not count.
    def late(document: dict[str, Any]) -> object:
        return document["tcbLevels"][0].update(tcbDate="2020-01-01T00:00:00Z")

    aged = case("sgx3", tcb_status="OutOfDate").document("qe_identity", late)
    assert Platform().verifier.verify(quote, aged.endorsements, now=NOW).tcb_date == "2024-01-01"
    aged = case("sgx3", qe_status="OutOfDate").document("qe_identity", late)
    assert Platform().verifier.verify(quote, aged.endorsements, now=NOW).tcb_date == "2020-01-01"
    undated = replace(context, claims=replace(context.claims, tcb_age_days=None))
    assert "got an unknown date" in _reasons(known, undated)[0]
    appraise(AllOf((known, MinimumEvaluation(17))), context)
    assert _reasons(AllOf((known, MinimumEvaluation(18))), context) == [
        "minimum_evaluation: expected at least 18, got 17"
    ]
    appraise(AllOf((known, Machine((claims.ppid.hex(),)))), context)
    hidden = replace(context, claims=replace(context.claims, ppid=bytes(16), piid=b""))
    assert _reasons(AllOf((known, Machine(("00" * 16,)))), hidden) == [f"machine: expected {'00' * 16}, got nothing"]


@pytest.mark.parametrize("status", TCB_STATUSES)
def test_T397_a_grace_ends_for_whatever_was_launched_out_of_date(status: str) -> None:
    late = replace(HARDWARE, claims=replace(HARDWARE.claims, tcb_status=status, tcb_date="2024-01-01", tcb_age_days=31))
    policy = TcbStatus((status,), grace_days=30)
    text = policy_to_json(policy)
    if status.startswith(("OutOfDate", "TDRelaunchAdvised")):
        too_old = "grace: expected at most 30 days after the TCB's date, got 31 days after 2024-01-01"
        assert _reasons(policy, late) == [too_old]
        assert policy_from_json(text) == policy
    else:
        appraise(policy, late)
        with pytest.raises(InputError, match="grace_days limits"):
            policy_from_json(text)


def test_T289_flags_of_a_platform_that_nobody_allowed_or_that_nobody_knows() -> None:
    context, found = HARDWARE, HARDWARE.claims
    assert (found.dynamic_platform, found.cached_keys, found.smt) == (False, False, False)
    strict, smt = AllOf((GOOD, PlatformFlags())), AllOf((GOOD, PlatformFlags(("smt",))))
    server = AppraisalContext(claims=replace(found, dynamic_platform=True, cached_keys=None, smt=True))
    appraise(strict, context)
    appraise(GOOD, server)  # as in Intel's own appraisal, only what a policy asks for is judged
    assert _reasons(strict, server) == [
        "dynamic_platform: expected no, got yes", "cached_keys: expected no, got unknown", "smt: expected no, got yes",
    ]  # fmt: skip
    assert [r.split(":")[0] for r in _reasons(smt, server)] == ["dynamic_platform", "cached_keys"]
    assert policy_from_json({"kind": "platform_flags"}) == PlatformFlags()
    for policy in (strict, smt):
        assert policy_from_json(policy_to_json(policy)) == policy
        with pytest.raises(InputError, match="names no code"):
            check_pins_code(policy.policies[1])
    for allowed in ([], ["hyperthreading"], "smt"):
        with pytest.raises(InputError, match="platform_flags"):
            policy_from_json({"kind": "platform_flags", "allowed": allowed})


def test_findings_say_what_passed_too() -> None:
    found = {f.check: f for f in findings(AnyOf((BAD, AllOf((GOOD, Machine(("11" * 16,)))))), HARDWARE)}
    assert found["any_of[1]: measurement"].passed
    assert found["any_of[0]: measurement"].to_json()["got"] == MEASUREMENT.hex()
    assert [f.check for f in findings(AnyOf((BAD, GOOD)), HARDWARE) if not f.passed] == []


def test_reference_values_that_accept_are_named() -> None:
    ids = ["sha256:" + n * 64 for n in "123"]
    good, bad = Reference(ids[0], ids[2], (GOOD,)), Reference(ids[1], ids[2], (BAD,))
    policy = AnyOf((bad, AnyOf((good,)), GOOD))
    appraise(policy, HARDWARE)
    own = f"measurement {MEASUREMENT.hex()}"
    assert references(policy, HARDWARE) == [ids[0]], "the choice that decided"
    assert references(AnyOf((bad, GOOD, good)), HARDWARE) == [own]
    assert policy_from_json(policy_to_json(policy)) == policy
    # An owner who asks for more puts it beside the values, or around them.
    claims = replace(HARDWARE.claims, tcb_eval_number=17, tcb_status="OutOfDate")
    late = AppraisalContext(claims=claims, job=HARDWARE.job)
    for more in (MinimumEvaluation(17), TcbStatus(("UpToDate", "OutOfDate"))):
        for stricter in (
            AllOf((good, more)),
            AllOf((more, AnyOf((bad, good)))),
            AnyOf((AllOf((AllOf((good,)), more)),)),
        ):
            context = (
                late if isinstance(more, TcbStatus) else replace(late, claims=replace(claims, tcb_status="UpToDate"))
            )
            appraise(stricter, context)
            assert references(stricter, context) == [ids[0]]
    assert references(AllOf((GOOD, JobDigest(("sha256:" + "0" * 64,)))), HARDWARE) == [own]
    check_pins_code(good)
    assert references(AnyOf((good,)), SIMULATED) == []
    assert _reasons(Reference(ids[0], ids[2], ()))
    waived = Reference(ids[0], ids[2], (GOOD, UnsafeAcceptSimulated()))
    assert references(waived, SIMULATED) == [ids[0]]
    with pytest.raises(InputError, match="names no code"):
        check_pins_code(Reference(ids[0], ids[2], (TcbStatus(),)))
    for field in ("id", "signer"):
        with pytest.raises(InputError, match="not a SHA-256 id"):
            policy_from_json({**policy_to_json(good), field: "none"})


def test_a_job_whose_arguments_are_free_is_not_named() -> None:
    named, free = (
        allowance(JOB, MEASUREMENT.hex(), simulated=False, free=f) for f in ((), (FreeArgument(2, r"\d{4}-\d\d-\d\d"),))
    )
    assert names_job(named)
    assert not names_job(free)
    assert not names_job(AnyOf((named, free)))


def test_what_an_owner_approves_is_what_the_evidence_said() -> None:
    for context in (HARDWARE, TDX):
        policy = allowance(JOB, measured(context.claims.to_json()), simulated=False)
        check_pins_code(policy)
        appraise(policy, context)
        other = replace(context.claims, measurement=bytes(len(context.claims.measurement)))
        assert _reasons(policy, replace(context, claims=other))
    assert _reasons(policy, replace(TDX, claims=replace(TDX.claims, rtmrs=(*TDX.claims.rtmrs[:3], bytes(48)))))
