"""Intel's checks of one quote, made here: what dcap-qvl refuses in words of its own is refused with what was compared.

They judge the SGX quotes that dcap-qvl does not take (`sgx`), and explain its refusals of all others: the first check
that fails names itself, what was expected and what was there. Nothing hangs on how the library words a refusal: one
that every check here would pass is a refusal still, in its own words.

Signatures come first. So a refusal that is not about them says which TCB levels were reached, in `details`:
`tcb_status`, `advisory_ids` and `tcb_levels` of the platform, its quoting enclave, its TDX module, and of the module
that runs now (TDX 1.5 and later). Levels that this quote does not come to are not named.

Source: Intel QVL `QuoteVerifier.cpp` (checks 4.1.2.4.x), `EnclaveReportVerifier.cpp`, `TcbLevelCheck.cpp`,
`EvaluateTcb.cpp`, `TdxModuleCheck.cpp`; Intel TDX module ABI (TD attributes).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from strongroom._encoding import parse_json
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.quote import Quote
from strongroom.attest.verifiers.chains import Platform, tcb_info
from strongroom.attest.verifiers.newest import proven
from strongroom.attest.verifiers.refusals import Judged, not_in_force
from strongroom.crypto.x509 import UNREADABLE
from strongroom.errors import AttestationError, EndorsementError, EvidenceError, VerificationError

__all__ = ["advisories", "attributes", "classified", "converged", "judge", "reached"]

Level = Mapping[str, Any]

_REPORT = 384
_VENDOR = "939a7233f79c4ca9940a0db3957f0607"
_FORM = "endorsements: expected Intel's form of TCB info and QE identity"
_EVIDENCE_WORDS = ("failed to decode quote", "unsupported dcap", "quote must have version")
_OUT_OF_DATE = {
    "UpToDate": "OutOfDate",
    "SWHardeningNeeded": "OutOfDate",
    "ConfigurationNeeded": "OutOfDateConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded": "OutOfDateConfigurationNeeded",
}
_STATUSES = {*_OUT_OF_DATE, *_OUT_OF_DATE.values(), "Revoked"}
_ISV_STATUSES = ("UpToDate", "OutOfDate", "Revoked")
# Attributes of an enclave (Intel SDM 3D, SECS.ATTRIBUTES): bit, whether it has to be set, what it is otherwise.
_SGX_ATTRIBUTES = (
    (0x01, True, "not initialized"),
    (0x04, True, "not of 64 bits"),
    (0x10, False, "has the provisioning key"),
    (0x20, False, "has the launch key"),
)
_SERVICES = ("body.mr_service_td", "body.init_service_td_hash", "body.service_td_hash")
# TD attributes that refuse a trust domain: bits, check, what they make it. 28 has to be set.
_SEPT_VE_DISABLE = 1 << 28
_DEFINED = sum(1 << bit for bit in (*range(8), 16, 17, 18, 19, 20, 21, 22, 27, 28, 29, 30, 31, 62, 63))
_TD_ATTRIBUTES = (
    (0x01, "debug", "one in debug mode (bit 0)"),
    (0xFE, "debug", "one whose profiling is enabled, or another of bits 1 to 7"),
    (1 << 17, "td_attributes", "one whose service domains may change (SERVTD_EXT, bit 17)"),
    (1 << 29, "td_attributes", "one that may migrate to another machine (migration, bit 29)"),
    (~_DEFINED & (1 << 64) - 1, "td_attributes", "one with a reserved bit"),
)


def classified(message: str, judged: Judged, anchor: TrustAnchor) -> AttestationError:
    """Return the refusal that dcap-qvl's `message` stands for, as the first check here that fails."""
    said = message.removeprefix("Verification failed: ")
    if any(word in said.lower() for word in _EVIDENCE_WORDS):
        return EvidenceError(f"quote: expected one that dcap-qvl can read, got: {said}")
    try:
        judge(judged, anchor)
    except AttestationError as exc:
        return exc
    if "decode tcbinfo" in said.lower() or "decode qeidentity" in said.lower():
        return EndorsementError(f"{_FORM}, got one that dcap-qvl refuses: {said}")
    return VerificationError(f"quote: expected one that dcap-qvl verifies, got its refusal: {said}")


def judge(judged: Judged, anchor: TrustAnchor) -> dict[str, Level]:
    """Return the TCB levels that the quote comes to, by part: none of them is revoked.

    Args:
        judged: Its certificates are a chain up to `anchor`.
        anchor: The root.

    Raises:
        EvidenceError: Another vendor's quote.
        EndorsementError: Endorsements are not signed under `anchor`, not in force, of another platform, or know no
            level of it but a revoked one.
        VerificationError: A signature, an identity or an attribute is another than it has to be.
    """
    quote = judged.quote
    _equal("qe_vendor", _VENDOR, quote["header.qe_vendor_id"].hex(), EvidenceError)
    if (refusal := not_in_force(judged)) is not None:
        raise refusal
    proven(anchor, judged.endorsements)
    _check_signatures(judged)
    try:
        platform = judged.platform
    except ValueError as exc:
        raise VerificationError(f"pck_extension: expected Intel's extension, got: {exc}") from exc
    try:
        identity: Any = parse_json(judged.endorsements.qe_identity, "qe_identity")
        return _levels(quote, platform, tcb_info(judged.endorsements), identity)
    except (*UNREADABLE, LookupError, AttributeError) as exc:
        got = f"one without {exc}" if isinstance(exc, KeyError) else "another"
        raise EndorsementError(f"{_FORM}, got {got}") from exc


def reached(levels: Mapping[str, Level]) -> dict[str, object]:
    """Return what `levels` say of a quote, as a refusal's details."""
    shown = {
        part: {
            "status": v["tcbStatus"],
            "date": v["tcbDate"],
            "advisories": list(v.get("advisoryIDs", ())),
            "versions": _level_versions(v["tcb"]),
        }
        for part, v in levels.items()
    }
    return {"tcb_status": converged(levels), "advisory_ids": advisories(levels), "tcb_levels": shown}


def converged(levels: Mapping[str, Level]) -> str | None:
    """Return the status that the parts' statuses make together, None where the platform has no level.

    A module that runs now and was not launched excuses what was: start again (4.1.2.5.1.20).
    """
    if any(level["tcbStatus"] == "Revoked" for level in levels.values()):
        return "Revoked"
    launched, runs = (_together(levels, kind) for kind in ("", "running_"))
    if launched in _OUT_OF_DATE.values() and runs in _OUT_OF_DATE:
        configured = "OutOfDateConfigurationNeeded" in (launched, _OUT_OF_DATE[runs])
        return "TDRelaunchAdvised" + "ConfigurationNeeded" * configured
    return launched


def _together(levels: Mapping[str, Level], kind: str) -> str | None:
    status = str(levels[f"{kind}platform"]["tcbStatus"]) if f"{kind}platform" in levels else None
    late = any(levels[part]["tcbStatus"] == "OutOfDate" for part in (f"{kind}tdx_module", "qe") if part in levels)
    return _OUT_OF_DATE.get(status, status) if late and status else status


def advisories(levels: Mapping[str, Level]) -> list[str]:
    """Return the advisories of every part that counts: of what runs now, only if it is revoked."""
    counted = [v for part, v in levels.items() if not part.startswith("running") or v["tcbStatus"] == "Revoked"]
    return list(dict.fromkeys(str(name) for level in counted for name in level.get("advisoryIDs", ())))


def _equal(check: str, expected: object, got: object, family: type[AttestationError] = EndorsementError) -> None:
    if expected != got:
        raise family(f"{check}: expected {expected}, got {got}")


def _check_signatures(judged: Judged) -> None:
    # 4.1.2.4.12, .13 and .16: the platform's key, the quoting enclave's, the quote's.
    quote, key = judged.quote, judged.quote["auth.attestation_key"]
    at = quote.spans["qe_report.cpu_svn"][0]
    report = quote.raw[at : at + _REPORT]
    try:
        leaf: object = judged.chain.leaf.public_key()
    except UNREADABLE:
        leaf = None
    _check("qe_report_signature", "the PCK certificate's key", leaf, quote["auth.qe_report_signature"], report)
    bound, got = hashlib.sha256(key + quote["auth.qe_auth_data"]).digest(), quote["qe_report.report_data"][:32]
    if not hmac.compare_digest(bound, got):
        raise VerificationError(
            f"qe_report_data: expected the hash of the attestation key, {bound.hex()}, got {got.hex()}"
        )
    try:
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + key)
    except ValueError as exc:
        raise VerificationError("quote_signature: expected a readable key on P-256, got none") from exc
    signed = quote.raw[: quote.spans["auth.size"][0]]
    _check("quote_signature", "the attestation key", point, quote["auth.signature"], signed)


def _check(check: str, whose: str, key: object, signature: bytes, signed: bytes) -> None:
    r, s = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:]))
    got = "another's, or one over other bytes"
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            return key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
        got = "a key of another kind"
    except InvalidSignature:
        pass
    raise VerificationError(f"{check}: expected one by {whose} (ECDSA P-256), got {got}")


def _levels(quote: Quote, platform: Platform, info: Level, identity: Level) -> dict[str, Level]:
    _equal("tcb_info", f"one of {quote.tee.upper()}", f"one of {info['id']}")
    _equal("fmspc", str(info["fmspc"]).upper(), platform.fmspc.hex().upper())
    for status in {level["tcbStatus"] for level in info["tcbLevels"]} - _STATUSES:
        raise EndorsementError(f"tcb_info: expected statuses that Intel defines, got {status!r:.40}")
    launched, runs = (quote[n] if n in quote.spans else None for n in ("body.tee_tcb_svn", "body.tee_tcb_svn2"))
    finds: dict[str, Callable[[], Level | None]] = {
        "platform": lambda: _platform_level(platform, info, launched),
        "tdx_module": lambda: _module_level("tdx_module", quote, info, launched) if launched else None,
        "qe": lambda: _enclave_level(quote, identity),
        "running_platform": lambda: _platform_level(platform, info, runs) if runs else None,
        "running_tdx_module": lambda: _module_level("running_tdx_module", quote, info, runs) if runs else None,
    }
    levels, refusals = {}, []
    for part, find in finds.items():  # each, so that the refusal says what the others are
        try:
            if level := find():
                levels[part] = level
        except AttestationError as exc:
            refusals.append(exc)
    if not refusals:
        refusals = [*attributes(quote), *_revoked(levels)]
    for refusal in refusals[:1]:
        refusal.details |= reached(levels)
        raise refusal
    return levels


def _platform_level(platform: Platform, info: Level, svn: bytes | None) -> Level:
    # 4.1.2.4.17: the highest level that the platform reaches in every component, whatever order the document has. A
    # TDX module of a version of its own has levels of its own.
    def wanted(level: Level) -> tuple[list[int], int, list[int]]:
        tcb = level["tcb"]
        sgx, tdx = ([c["svn"] for c in tcb[f"{kind}tcbcomponents"]] for kind in ("sgx", "tdx" if svn else "sgx"))
        if len(sgx) != 16 or len(tdx) != 16:
            raise EndorsementError(f"tcb_level: expected 16 components, got {min(len(sgx), len(tdx))}")
        return sgx, tcb["pcesvn"], tdx if svn else []

    start = 2 if svn and svn[1] else 0
    ranked = sorted(info["tcbLevels"], key=wanted, reverse=True)
    for level in ranked:
        sgx, pce, tdx = wanted(level)
        pairs = [
            *zip(platform.components, sgx, strict=True),
            (platform.pce_svn, pce),
            *zip((svn or b"")[start:], tdx[start:], strict=False),
        ]
        if all(has >= needs for has, needs in pairs):
            return dict(level)
    lowest = _level_versions(ranked[-1]["tcb"]) if ranked else "none"
    got = _versions(platform.components, platform.pce_svn, svn or b"")
    raise EndorsementError(
        f"tcb_level: expected one of the {len(ranked)} levels of FMSPC {info['fmspc']}, the lowest {lowest}, got {got}"
    )


def _versions(components: Sequence[int], pce: int, tdx: Sequence[int]) -> str:
    text = f"CPUSVN {bytes(components).hex()}, PCESVN {pce}"
    return text + (f", TEE_TCB_SVN {bytes(tdx).hex()}" if tdx else "")


def _level_versions(tcb: Level) -> str:
    if "isvsvn" in tcb:
        return f"SVN {tcb['isvsvn']}"
    sgx, tdx = ([c["svn"] for c in tcb.get(f"{kind}tcbcomponents", ())] for kind in ("sgx", "tdx"))
    return _versions(sgx, tcb["pcesvn"], tdx)


def _isv_level(check: str, levels: Sequence[Level], svn: int) -> Level:
    for level in levels:
        if svn >= level["tcb"]["isvsvn"]:
            if level["tcbStatus"] not in _ISV_STATUSES:
                known = ", ".join(_ISV_STATUSES)
                raise EndorsementError(f"{check}: expected one of the statuses {known}, got {level['tcbStatus']!r:.40}")
            return level
    lowest = min((level["tcb"]["isvsvn"] for level in levels), default="a level")
    raise EndorsementError(f"{check}: expected SVN {lowest} or more, got SVN {svn}")


def _module_level(check: str, quote: Quote, info: Level, svn: bytes) -> Level | None:
    # 4.1.2.4.11, and which level of its own a module has whose version is not 0.
    identity, name = info.get("tdxModule"), f"TDX_{svn[1]:02X}"
    if svn[1]:
        known = {str(one["id"]).upper(): one for one in info.get("tdxModuleIdentities", ())}
        identity = known.get(name)
        name = name if identity else f"{name} (TEE_TCB_SVN {svn.hex()})"
    if not identity:
        raise EndorsementError(
            f"{check}: expected {' or '.join(known) if svn[1] else 'an identity'} of the TCB info, got {name}"
        )
    signer, got = str(identity["mrsigner"]).lower(), quote["body.mr_signer_seam"].hex()
    _equal(check, f"signer {signer} (MRSIGNERSEAM)", f"signer {got} (MRSIGNERSEAM)")
    seam, wanted, mask = quote["body.seam_attributes"], identity["attributes"], identity["attributesMask"]
    _masked(check, "SEAMATTRIBUTES", seam, wanted, mask, EndorsementError)
    return _isv_level(check, identity["tcbLevels"], svn[0]) if svn[1] else None


def _enclave_level(quote: Quote, identity: Level) -> Level:
    # 4.1.2.4.14 and .15: the quoting enclave is Intel's, of a level that the identity names.
    wanted, given = ("TD_QE" if quote.tee == "tdx" else "QE", 2), (identity["id"], identity["version"])
    if given != wanted:
        expected, got = ("{} version {}".format(*one) for one in (wanted, given))
        raise EndorsementError(f"qe_identity: expected {expected}, got {got}")
    misc = quote["qe_report.misc_select"][::-1]  # written as a number
    _masked("qe_miscselect", "MISCSELECT", misc, identity["miscselect"], identity["miscselectMask"])
    attributes, mask = quote["qe_report.attributes"], identity["attributesMask"]
    _masked("qe_attributes", "ATTRIBUTES", attributes, identity["attributes"], mask)
    signer = identity["mrsigner"].lower()
    _equal("qe_mrsigner", signer, quote["qe_report.mr_signer"].hex(), VerificationError)
    _equal("qe_isvprodid", identity["isvprodid"], quote.number("qe_report.isv_prod_id"), VerificationError)
    return _isv_level("qe_isvsvn", identity["tcbLevels"], quote.number("qe_report.isv_svn"))


def _masked(
    check: str, what: str, got: bytes, expected: str, mask: str, family: type[AttestationError] = VerificationError
) -> None:
    if bytes(a & b for a, b in zip(got, bytes.fromhex(mask), strict=True)) != bytes.fromhex(expected):
        raise family(f"{check}: expected {what} {expected.lower()} under {mask.lower()}, got {got.hex()}")


def attributes(quote: Quote) -> list[AttestationError]:
    """Return why the enclave or domain is none that only its own code may enter, as far as its measurement is silent.

    Whoever signs the pages of an enclave anew chooses its attributes, and MRENCLAVE stays what it was. In TDX a machine
    inside the domain runs whatever the domain lets run, which no register names.
    """
    if quote.tee == "sgx":
        flags = quote["body.attributes"][0]
        if quote.debug:
            return [VerificationError("debug: expected a production enclave, got a debug enclave")]
        wrong = ", ".join(what for bit, one, what in _SGX_ATTRIBUTES if bool(flags & bit) != one)
        if not wrong:
            return []
        wanted = f"attributes: expected those of an enclave as it was built, got {quote['body.attributes'].hex()}"
        return [VerificationError(f"{wanted}: {wrong}")]
    flags = quote.number("body.td_attributes")
    found = [(check, got) for bits, check, got in _TD_ATTRIBUTES if flags & bits]
    if not flags & _SEPT_VE_DISABLE:
        found.append(("td_attributes", "one without SEPT_VE_DISABLE (bit 28)"))
    if any(any(quote[name]) for name in _SERVICES if name in quote.spans):
        found.append(("service_td", "one with a service domain"))
    if "body.vm_id" in quote.spans and (machine := quote.number("body.vm_id")):
        found.append(("vm_id", f"virtual machine {machine} inside one"))
    return [
        VerificationError(f"{check}: expected a trust domain that nobody else may enter, got {got}")
        for check, got in found
    ]


def _revoked(levels: Mapping[str, Level]) -> list[AttestationError]:
    revoked = {part: level for part, level in levels.items() if level["tcbStatus"] == "Revoked"}
    parts = [f"{part} level of {str(level['tcbDate'])[:10]}" for part, level in revoked.items()]
    got = f"{' and '.join(parts)} Revoked; advisories: {', '.join(advisories(revoked)) or 'none named'}"
    return [EndorsementError(f"tcb_status: expected levels that are not Revoked, got {got}")] if parts else []
