"""Building release policies: what `policy set`, `policy approve` and `--approve` write."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import cast

from strongroom.attest.appraisal import policy_from_json, policy_to_json, rego_modules
from strongroom.attest.findings import Policy
from strongroom.attest.policies import (
    TDX_REGISTERS,
    AllOf,
    AnyOf,
    FreeArgument,
    JobDigest,
    Measurement,
    NotDebug,
    Reference,
    Rego,
    Root,
    SnpMeasurement,
    TcbStatus,
    TdxMeasurements,
    UnsafeAcceptSimulated,
    job_digest,
)
from strongroom.attest.reference import ReferenceValues
from strongroom.client.owner import OwnerClient
from strongroom.errors import InputError

__all__ = ["allow_job", "allowance", "clear_policy", "measured"]

_log = logging.getLogger(__name__)


def allowance(
    document: Mapping[str, object],
    measurement: str | Mapping[str, str],
    *,
    simulated: bool,
    free: Sequence[FreeArgument] = (),
    reference: ReferenceValues | None = None,
    rego: str = "",
    root: str = "",
    tcb: TcbStatus | None = None,
) -> Policy:
    """Return the policy that allows exactly this job in exactly this enclave.

    Args:
        document: The job document.
        measurement: Of SGX, hex. By name for SNP (`snp_measurement`: the launch digest, computed with kernel, first
            file system and command line) and for TDX (its registers).
        simulated: Accept the simulated root; without it a simulated quote is refused.
        free: Arguments that may differ by pattern.
        reference: Where document and measurement come from; decisions name it.
        rego: A module that has to accept too; decisions name its digest.
        root: Fingerprint of the one root that will do, which then need not be a maker's.
        tcb: What the platform may be; without it UpToDate alone.
    """
    code: Policy
    named = {"measurement": measurement} if isinstance(measurement, str) else measurement
    if "measurement" in named:
        code = Measurement((named["measurement"],))
    elif "snp_measurement" in named:
        code = SnpMeasurement((named["snp_measurement"],))
    else:
        code = TdxMeasurements(**{name: (value,) for name, value in named.items()})
    checks: list[Policy] = [code, JobDigest((job_digest(document, free),), tuple(free)), tcb or TcbStatus(), NotDebug()]
    checks += [UnsafeAcceptSimulated()] if simulated else []
    checks += [Root((root.lower(),))] if root else []
    checks += [Rego(rego)] if rego else []
    return Reference(reference.id, reference.signer, tuple(checks)) if reference else AllOf(tuple(checks))


def measured(claims: Mapping[str, object]) -> dict[str, str]:
    """Return what a request's claims say of the code, by name, as `allowance` takes it."""
    tee, own, rtmrs = claims.get("tee"), claims.get("measurement"), claims.get("rtmrs")
    if tee != "tdx":
        return {"snp_measurement" if tee == "snp" else "measurement": str(own)}
    if not isinstance(rtmrs, list | tuple) or len(rtmrs) != len(TDX_REGISTERS) - 1:
        raise InputError(f"the request's evidence: expected rtmr0 to rtmr3, got {rtmrs!r}")
    return dict(zip(TDX_REGISTERS, [str(own), *map(str, rtmrs)], strict=True))


def allow_job(
    client: OwnerClient,
    document: Mapping[str, object],
    measurement: str | Mapping[str, str],
    *,
    job: str,
    unsafe_accept_simulated: bool,
    free: Sequence[FreeArgument] = (),
    reference: ReferenceValues | None = None,
    rego: str = "",
    root: str = "",
    tcb: TcbStatus | None = None,
    keep: bool = False,
    keys: Sequence[str] = (),
    uses: Sequence[str] = (),
    request: int | None = None,
    claims: Mapping[str, object] | None = None,
) -> list[str]:
    """Allow a job on this owner's keys that it declares; return `key: uses` lines of what was added.

    Args:
        client: The owner.
        document: The job document.
        measurement: See `allowance`; of the enclave that runs it.
        job: The job digest.
        unsafe_accept_simulated: See `allowance`.
        free: See `allowance`.
        reference: See `allowance`.
        rego: See `allowance`.
        root: See `allowance`.
        tcb: See `allowance`.
        keep: What the owner said of this job before stays, whatever it demands.
        keys: Only these keys; empty for all that the job declares.
        uses: Only these uses; empty for all that the job declares.
        request: The pending request that this answers.
        claims: What the refused evidence claimed, kept for later differences.

    Raises:
        InputError: The job declares none of the keys.
    """
    declared = _declared(document, client.owner)
    chosen = {k: [u for u in v if not uses or u in uses] for k, v in declared.items() if not keys or k in keys}
    chosen = {key: wanted for key, wanted in chosen.items() if wanted}
    if not chosen:
        raise InputError(
            f"the job does not {' or '.join(uses) or 'use'} {', '.join(keys) or 'a key of yours'}",
            hint="`strongroom job show JOB_FILE` says which volumes and keys it uses, and how",
        )
    if document.get("unsafe_program_has_keys"):
        _log.warning(
            "job %s: under this LibOS the program can take the named keys themselves, not only what they open", job
        )
    if document.get("unsafe_host_has_keys"):
        _log.warning("job %s: under Occlum whoever runs the machine can take the named keys", job)
    if tcb and tcb != TcbStatus():
        named = ", ".join((*tcb.allowed[1:], *tcb.advisories))
        _log.warning("job %s: platforms are accepted with what their maker warns of: %s", job, named)
    branch = allowance(
        document,
        measurement,
        simulated=unsafe_accept_simulated,
        free=free,
        reference=reference,
        rego=rego,
        root=root,
        tcb=tcb,
    )
    shown = measurement if isinstance(measurement, str) else next(iter(measurement.values()))
    lines = {key: f"{key}: {' and '.join(wanted)}" for key, wanted in chosen.items()}
    for key, wanted in chosen.items():
        found = client.call("GET", f"/v1/keys/{key}/policy")
        policy = found["policy"]
        assert isinstance(policy, dict)
        for use in wanted:
            whole, lost = _with(policy.get(use), branch, keep=keep)
            for demand in lost:
                lines[key] += f" ({use}: {demand} is asked no more)"
                _log.warning("key %s, %s: %s is asked no more of job %s", key, use, demand, job)
            policy[use] = policy_to_json(whole)
        approved = {"job": job, "measurement": shown, "document": dict(document), "claims": dict(claims or {})}
        body = {"policy": policy, "revision": found["revision"], "approved": [approved], "request": request}
        client.call("PUT", f"/v1/keys/{key}/policy", body)
    return list(lines.values())


def clear_policy(client: OwnerClient, key: str) -> None:
    """Remove every allowance of a key: nobody gets it until a new policy is set. What outputs may be stays."""
    found = client.call("GET", f"/v1/keys/{key}/policy")
    kept = {k: v for k, v in cast(dict[str, object], found["policy"]).items() if k == "outputs"}
    body = {"policy": {"read": None, "write": None, **kept}, "revision": found["revision"]}
    client.call("PUT", f"/v1/keys/{key}/policy", body)


def _with(existing: object, branch: Policy, *, keep: bool = False) -> tuple[Policy, list[str]]:
    """Return `existing` with `branch` in it, and what was demanded of this job and is no more; see `allow_job`."""
    if existing is None:
        return AnyOf((branch,)), []
    policy = policy_from_json(existing)
    branches = policy.policies if isinstance(policy, AnyOf) else (policy,)
    # What was said of this job with another Rego module, root or TCB status, or without, goes: else the laxer counts.
    kept = tuple(b for b in branches if _bare(b) != _bare(branch))
    if keep and len(kept) < len(branches):
        return policy, []
    lost = {demand for b in branches if b not in kept for demand in _demands(b)} - _demands(branch)
    same = branch in branches and len(kept) == len(branches) - 1
    return policy if same else AnyOf((*kept, branch)), sorted(lost)


def _bare(branch: Policy) -> tuple[Policy, ...]:
    # Whether or not a reference value named them: by either way it is the same code and job.
    checks = branch.policies if isinstance(branch, AllOf | Reference) else (branch,)
    return tuple(p for p in checks if not isinstance(p, Rego | Root | TcbStatus))


def _demands(branch: Policy) -> set[str]:
    checks = branch.policies if isinstance(branch, AllOf | Reference) else (branch,)
    roots = {f"root {value}" for p in checks if isinstance(p, Root) for value in p.values}
    return roots | {f"Rego module {digest}" for digest in rego_modules(branch)}


def _declared(document: Mapping[str, object], owner: str) -> dict[str, list[str]]:
    # Key -> uses.
    declared: dict[str, list[str]] = {}
    for field, name in (("volumes", "key"), ("keys", "name")):
        listed = document.get(field)
        for one in (one for one in (listed if isinstance(listed, list) else []) if one.get("owner") == owner):
            uses = declared.setdefault(str(one[name]), [])
            uses += [u for u in ("read", *(["write"] if one["mode"] == "rw" else [])) if u not in uses]
    return declared
