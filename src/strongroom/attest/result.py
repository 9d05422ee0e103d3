"""Attestation results: the signed outcome of a verification or an appraisal, for relying parties elsewhere (EAR).

A JWT, ES256, with one submodule `cpu0`. Whoever reads it trusts the service's key and the trustworthiness vector. The
vector is honest about simulation: a simulated root is *contraindicated* hardware with visible memory, whatever policy
let it pass, so that no relying party takes it for a TEE. It says nothing about code that nobody appraised: a result of
verification alone has *no claim* about executables and configuration, and is never *affirming*. Every stored policy
names code, so what one accepted are approved executables; an approved configuration is a job that the policy names.

The claims have the names of draft-fv-rats-ear and its profile, which Trustee writes and reads; draft-ietf-rats-ear-04
says the same under others (`ear_status`, profile `tag:ietf.org,2026:rats/ear#04`).

Source: draft-fv-rats-ear-05, draft-ietf-rats-ar4si, RFC 9711.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec

from strongroom import __version__
from strongroom.attest.claims import Claims
from strongroom.crypto.jose import ReceiverKey, jwk, sign_jws, verify_jws
from strongroom.crypto.x509 import spki_id
from strongroom.errors import InputError, VerificationError

__all__ = ["EAT_PROFILE", "NOT_APPRAISED", "issue_ear", "submodule", "verify_ear"]

EAT_PROFILE = "tag:github.com,2023:veraison/ear"
NOT_APPRAISED = "verification-only"
"""In place of a policy's id: nobody has asked one."""
_TYP = "eat+jwt"
_DEVELOPER = "Strongroom"
_MAX_LIFETIME = timedelta(days=1)

# AR4SI §2.3: what a value says depends on the claim; the tier follows from its size.
_NO_CLAIM = 0
_AFFIRMING = 2
_APPROVED_AT_BOOT = 3
_WARNING = 32
_VISIBLE_MEMORY = 96
_UNRECOGNIZED_HARDWARE = 97


def issue_ear(
    claims: Claims,
    *,
    policy_id: str,
    appraised: bool,
    nonce: str,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    lifetime: timedelta = timedelta(minutes=5),
    job_digest: str | None = None,
    job_named: bool = False,
    receiver: ReceiverKey | None = None,
) -> str:
    """Return the attestation result of verified claims.

    Args:
        claims: Verified.
        policy_id: Names the policy that accepted them, or says that none was asked.
        appraised: `appraisal.appraise` accepted the claims. Without it the result is at best a warning.
        nonce: The challenge that the evidence answered.
        key: The service's signing key, P-256.
        now: UTC.
        lifetime: At most a day.
        job_digest: The bound job, if any.
        job_named: The policy names this job.
        receiver: The key that the evidence binds with the nonce: to it a relying party seals what it gives the guest.

    Raises:
        InputError: The lifetime is not positive or over a day.
    """
    if not timedelta(0) < lifetime <= _MAX_LIFETIME:
        raise InputError(f"an attestation result lives up to {_MAX_LIFETIME}, got {lifetime}")
    issued = int(now.timestamp())
    bound = {} if receiver is None else {"runtime_data_claims": {"nonce": nonce, "tee-pubkey": jwk(receiver)}}
    payload: dict[str, object] = {
        "eat_profile": EAT_PROFILE,
        "iat": issued,
        "exp": issued + int(lifetime.total_seconds()),
        "eat_nonce": nonce,
        "ear.verifier-id": {"build": f"strongroom {__version__}", "developer": _DEVELOPER},
        "submods": {
            "cpu0": submodule(claims, policy_id, job_digest, appraised=appraised, job_named=job_named, **bound)
        },
    }
    return sign_jws(payload, key, typ=_TYP, kid=spki_id(key.public_key()))


def verify_ear(token: str, keys: Sequence[ec.EllipticCurvePublicKey], now: datetime) -> dict[str, object]:
    """Return the payload of an attestation result that holds at `now`; its status is the caller's to judge.

    Raises:
        VerificationError: No key signed it, another profile, not valid now, or no status for cpu0.
    """
    payload = verify_jws(token, {spki_id(key): key for key in keys}, typ=_TYP)
    if payload.get("eat_profile") != EAT_PROFILE:
        raise VerificationError(
            f"attestation result: expected profile {EAT_PROFILE}, got {payload.get('eat_profile')!r}"
        )
    issued, expires = payload.get("iat"), payload.get("exp")
    seconds = now.timestamp()
    if not isinstance(issued, int) or not isinstance(expires, int) or not issued - 60 <= seconds < expires:
        raise VerificationError(f"attestation result: valid from {issued} to {expires}, the time is {int(seconds)}")
    submods = payload.get("submods")
    cpu = submods.get("cpu0") if isinstance(submods, dict) else None
    if not isinstance(cpu, dict) or not isinstance(cpu.get("ear.status"), str):
        raise VerificationError("attestation result: no status for cpu0")
    return payload


def submodule(
    claims: Claims, policy_id: str, job_digest: str | None, *, appraised: bool, job_named: bool = False, **bound: object
) -> dict[str, object]:
    """Return what a result says of the CPU; see `issue_ear`. `bound` goes into the annotated evidence."""
    vector = _vector(claims, appraised=appraised, approved_job=appraised and job_named and job_digest is not None)
    return {
        "ear.status": _status(vector, appraised=appraised),
        "ear.trustworthiness-vector": vector,
        "ear.appraisal-policy-id": policy_id,
        "ear.veraison.annotated-evidence": {"claims": claims.to_json(), "job_digest": job_digest, **bound},
    }


def _vector(claims: Claims, *, appraised: bool, approved_job: bool) -> dict[str, int]:
    if claims.simulated:
        hardware, memory = _UNRECOGNIZED_HARDWARE, _VISIBLE_MEMORY
    elif claims.root != "hardware":
        hardware, memory = _UNRECOGNIZED_HARDWARE, _NO_CLAIM
    else:
        hardware = _AFFIRMING if claims.tcb_status == "UpToDate" else _WARNING
        memory = _VISIBLE_MEMORY if claims.debug else _AFFIRMING
    return {
        "instance-identity": _NO_CLAIM,
        "configuration": _AFFIRMING if approved_job else _NO_CLAIM,
        "executables": _APPROVED_AT_BOOT if appraised else _NO_CLAIM,
        "file-system": _NO_CLAIM,
        "hardware": hardware,
        "runtime-opaque": memory,
        "storage-opaque": _NO_CLAIM,
        "sourced-data": _NO_CLAIM,
    }


def _status(vector: dict[str, int], *, appraised: bool) -> str:
    # "none" would be the vector's word for what nobody looked at, but a reader that compares tiers as numbers would
    # take it for better than affirming.
    worst = max(vector.values())
    if worst >= 96:
        return "contraindicated"
    return "warning" if worst >= 32 or not appraised else "affirming"
