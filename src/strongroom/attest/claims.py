"""Claims: what verification proved about a TEE, and the two comparisons that bind them to a conversation.

Claims are true, not acceptable: `appraisal` decides that.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, fields

from strongroom.attest.binding import config_id, expected_register, init_data_digest, parse_init_data
from strongroom.errors import VerificationError

__all__ = ["Claims", "check_init_data", "check_job", "check_report_data"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The verified contents of evidence.

    Attributes:
        tee: "sgx", "tdx" or "snp".
        root: What the chain's root stands for: "hardware" (a maker's, built in), "own" (one that the owner who
            administers added) or "simulated".
        root_fingerprint: SHA-256 of the root certificate, hex.
        simulated: Either the root is a simulated one or the evidence carries a simulated mark.
        measurement: MRENCLAVE (32 bytes), MRTD (48 bytes) or the launch digest of SNP (48 bytes).
        signer: MRSIGNER (32 bytes), MROWNER (48 bytes) or SNP's digest of the author's key (48 bytes).
        isv_prod_id: Product number; 0 but for SGX.
        isv_svn: Security version of the product; 0 but for SGX.
        config_id: CONFIGID (64 bytes), MRCONFIGID (48 bytes) or HOSTDATA (32 bytes).
        report_data: 64 bytes.
        debug: The host can read the enclave's memory.
        tcb_status: The maker's word for the platform, for example "UpToDate"; SNP: the owner's floor's.
        advisory_ids: Security advisories that apply.
        tcb_date: Day of the TCB level, for example "2024-01-01": the oldest of the parts that are out of date, or of
            all if none is; empty if unknown.
        tcb_age_days: Whole days from it to the verification, None if unknown.
        fmspc: Platform family, hex.
        tcb_eval_number: Edition of the TCB info, None if unknown.
        ppid: The platform's provisioning id, empty if unknown.
        piid: The platform's instance id, empty if unknown.
        dynamic_platform: Intel: packages may join the platform later; None where its certificate does not say.
        cached_keys: Intel: Intel keeps the platform's root keys; None likewise.
        smt: Intel: hyperthreading was on when the platform registered; None likewise.
        rtmrs: RTMR 0 to 3 for TDX, else empty.
        chip_id: SNP's CHIP_ID, 64 bytes; else empty.
        vmpl: The privilege level that SNP's report was asked from, else None.
        tcb: SNP's security versions and what is below the owner's floor, for people; else empty.
        limits: What the measurement does not cover, for people.
        signing_key: SNP: "vcek", the chip's, or "vlek", a cloud provider's; else empty.
        provider: The provider that a VLEK names, else empty.
        guest_policy: SNP: what the guest lets the host do, hex; else empty.
        platform_info: SNP: how the platform is configured, hex; else empty.
        mitigations: SNP from version 5 on: vectors at launch and now, hex; else empty.
    """

    tee: str
    root: str
    root_fingerprint: str
    simulated: bool
    measurement: bytes
    signer: bytes
    isv_prod_id: int
    isv_svn: int
    config_id: bytes
    report_data: bytes
    debug: bool
    tcb_status: str
    advisory_ids: tuple[str, ...] = ()
    tcb_date: str = ""
    tcb_age_days: int | None = None
    fmspc: str = ""
    tcb_eval_number: int | None = None
    ppid: bytes = b""
    piid: bytes = b""
    dynamic_platform: bool | None = None
    cached_keys: bool | None = None
    smt: bool | None = None
    rtmrs: tuple[bytes, ...] = ()
    chip_id: bytes = b""
    vmpl: int | None = None
    tcb: str = ""
    limits: tuple[str, ...] = ()
    signing_key: str = ""
    provider: str = ""
    guest_policy: str = ""
    platform_info: str = ""
    mitigations: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the claims as JSON-ready values, bytes as hex."""
        return {field.name: _shown(getattr(self, field.name)) for field in fields(self)}


def check_report_data(claims: Claims, expected: bytes) -> None:
    """Return only if all 64 bytes of report data are `expected`, compared in constant time.

    Raises:
        VerificationError: They differ: another nonce, another guest key, or a replay.
    """
    if len(expected) != 64 or not hmac.compare_digest(claims.report_data, expected):
        raise VerificationError(
            f"report data: expected {expected.hex()}, got {claims.report_data.hex()}",
            hint="the evidence answers another challenge or names another guest key",
        )


def check_init_data(claims: Claims, text: str, said: str | None = None) -> dict[str, str]:
    """Return the files of the init data `text`, which the evidence binds (`check_job`).

    Args:
        claims: Verified, with report data compared.
        text: As it came.
        said: What the guest's key under that report data says, `sha256:<hex>`.

    Raises:
        VerificationError: The evidence binds other init data.
        InputError: The bound document is not Initdata.
    """
    digest = init_data_digest(text)
    if said is not None and not hmac.compare_digest(said, f"sha256:{digest.hex()}"):
        raise VerificationError(f"init data: expected {said}, got sha256:{digest.hex()}")
    check_job(claims, digest, said=said is not None)
    return parse_init_data(text)


def check_job(claims: Claims, digest: bytes, *, said: bool) -> None:
    """Return only if the evidence binds the init data of this SHA-256, through its config id.

    Where a TDX guest's MRCONFIGID is all zeros, since whoever launches it sets none, RTMR3 binds it: its digest is the
    one thing that was measured there. Where an SGX enclave's config id is, its report data does: the code that was
    measured says so, and it holds as far as a policy names that code (docs/decisions/0018).

    Args:
        claims: Verified, with report data compared.
        digest: What the job is.
        said: What is under the report data says it too.

    Raises:
        VerificationError: The evidence binds other init data.
    """
    if said and claims.tee == "sgx" and not any(claims.config_id):
        return
    expected = config_id(digest, len(claims.config_id))
    if claims.tee == "tdx" and not any(claims.config_id):
        if not hmac.compare_digest(claims.rtmrs[3], expected_register(digest)):
            raise VerificationError("init data: MRCONFIGID is not set, and RTMR3 binds other init data")
    elif not hmac.compare_digest(claims.config_id, expected):
        raise VerificationError(f"init data: expected config id {claims.config_id.hex()}, got {expected.hex()}")


def _shown(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_shown(item) for item in value]
    return value
