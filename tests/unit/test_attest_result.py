from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes.attest_parts import NOW, Platform

from strongroom.attest.claims import Claims
from strongroom.attest.result import issue_ear, verify_ear
from strongroom.errors import InputError, VerificationError

KEY = ec.generate_private_key(ec.SECP256R1())
SIMULATED = Platform().claims()
HARDWARE = replace(SIMULATED, simulated=False, root="hardware")


def _cpu(claims: Claims, **changes: object) -> dict[str, object]:
    values = {"policy_id": "p", "appraised": True, "nonce": "n", "key": KEY, "now": NOW, **changes}
    token = issue_ear(claims, **values)  # type: ignore[arg-type]
    payload = verify_ear(token, [KEY.public_key()], NOW)
    assert payload["eat_nonce"] == "n"
    return payload["submods"]["cpu0"]  # type: ignore[index, no-any-return]


def test_hardware_is_affirmed() -> None:
    cpu = _cpu(HARDWARE, job_digest="sha256:00", job_named=True)
    assert cpu["ear.status"] == "affirming"
    for job, named, said in (("sha256:00", True, 2), ("sha256:00", False, 0), (None, True, 0)):
        vector = _cpu(HARDWARE, job_digest=job, job_named=named)["ear.trustworthiness-vector"]
        assert (vector["executables"], vector["configuration"]) == (3, said)  # type: ignore[index]
    assert cpu["ear.trustworthiness-vector"]["hardware"] == 2  # type: ignore[index]
    assert cpu["ear.appraisal-policy-id"] == "p"


def test_a_simulated_root_is_never_affirmed() -> None:
    cpu = _cpu(SIMULATED)
    assert cpu["ear.status"] == "contraindicated"
    assert cpu["ear.trustworthiness-vector"]["hardware"] >= 96  # type: ignore[index, operator]


def test_an_old_platform_is_a_warning() -> None:
    assert _cpu(replace(HARDWARE, tcb_status="SWHardeningNeeded"))["ear.status"] == "warning"


@pytest.mark.parametrize("claims", [HARDWARE, SIMULATED, replace(HARDWARE, tcb_status="OutOfDate")])
def test_T162_an_enclave_that_nobody_appraised_is_not_affirmed(claims: Claims) -> None:
    cpu = _cpu(claims, appraised=False, job_digest="sha256:00", job_named=True)
    assert cpu["ear.status"] in ("warning", "contraindicated")
    vector = cpu["ear.trustworthiness-vector"]
    assert (vector["executables"], vector["configuration"]) == (0, 0)  # type: ignore[index]
    assert vector["hardware"] == _cpu(claims)["ear.trustworthiness-vector"]["hardware"]  # type: ignore[index]


def test_time_key_and_form_are_checked() -> None:
    token = issue_ear(HARDWARE, policy_id="p", appraised=True, nonce="n", key=KEY, now=NOW)
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    for keys, now in (
        ([stranger], NOW),
        ([], NOW),
        ([KEY.public_key()], NOW + timedelta(minutes=6)),
        ([KEY.public_key()], NOW - timedelta(minutes=6)),
    ):
        with pytest.raises(VerificationError):
            verify_ear(token, keys, now)
    with pytest.raises(InputError):
        issue_ear(HARDWARE, policy_id="p", appraised=True, nonce="n", key=KEY, now=NOW, lifetime=timedelta(days=2))
