"""Verification of SGX quotes of versions 4 and 5, which Intel's own library takes and dcap-qvl 0.7 does not.

They carry what version 3 carries in another envelope: enclave report, quoting enclave, keys and certificates are the
same, only the bytes under the quote's signature differ. So dcap-qvl judges the same parts in the envelope of version 3,
where it comes to that signature after certificates, endorsements and quoting enclave, and may find nothing wrong but
it. Every check is made here too, levels and that signature included, since nothing should hang on the order of
another's checks; only the finer rules of certification paths are dcap-qvl's alone.

Source: Intel QVL `Quote.cpp`, `QuoteVerifier.cpp` (checks 4.1.2.4.x), `EnclaveReportVerifier.cpp`, `TcbLevelCheck.cpp`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
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

__all__ = ["as_version_3", "verify"]

_REPORT = 384
_UNSIGNED = "ISV enclave report signature is invalid"
_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_OUT_OF_DATE = {
    "UpToDate": "OutOfDate",
    "SWHardeningNeeded": "OutOfDate",
    "ConfigurationNeeded": "OutOfDateConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded": "OutOfDateConfigurationNeeded",
}


def verify(judged: Judged, anchor: TrustAnchor, library: Callable[[bytes], object]) -> dict[str, object]:
    """Return what is proven, as dcap-qvl says it of version 3.

    Args:
        judged: An SGX quote of version 4 or 5, its certificates checked up to `anchor`.
        anchor: The root.
        library: dcap-qvl on a quote and these endorsements; raises ValueError.

    Raises:
        ValueError: Refused, in dcap-qvl's words.
        AttestationError: Endorsements that are not signed under `anchor`, or certificates that are not in force.
    """
    quote = judged.quote
    if quote["header.qe_vendor_id"] != _VENDOR:
        raise ValueError("Unknown QE vendor ID")
    try:
        library(as_version_3(quote))
    except ValueError as exc:
        if str(exc).removeprefix("Verification failed: ") != _UNSIGNED:
            raise
    else:
        raise ValueError(f"report signature: expected one over version {quote.version}, got one over version 3")
    proven(anchor, judged.endorsements)
    if (refusal := not_in_force(judged)) is not None:
        raise refusal
    _check_signatures(judged)
    if quote.debug:
        raise ValueError("Debug mode is enabled")
    identity = parse_json(judged.endorsements.qe_identity, "qe_identity")
    try:
        return _judged(quote, judged.platform, tcb_info(judged.endorsements), identity)
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError("TCB info or QE identity has another form") from exc


def as_version_3(quote: Quote) -> bytes:
    """Return the parts of an SGX `quote` of version 4 or 5 in the envelope of version 3, signed as they were."""
    raw = quote.raw
    body, auth, nested = (quote.spans[name][0] for name in ("body.cpu_svn", "auth.signature", "qe_report.cpu_svn"))
    rest = raw[auth : auth + 128] + raw[nested:]
    return b"\3" + raw[1:48] + raw[body : body + _REPORT] + len(rest).to_bytes(4, "little") + rest


def _check_signatures(judged: Judged) -> None:
    # 4.1.2.4.12, .13 and .16: the platform's key, the quoting enclave's, the quote's.
    quote, key = judged.quote, judged.quote["auth.attestation_key"]
    report = _qe_report(quote)
    _check(judged.chain.leaf.public_key(), quote["auth.qe_report_signature"], report, "qe_report in quote")
    bound = hashlib.sha256(key + quote["auth.qe_auth_data"]).digest()
    if not hmac.compare_digest(bound, quote["qe_report.report_data"][:32]):
        raise ValueError("QE report hash mismatch")
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\4" + key)
    signed = quote.raw[: quote.spans["auth.size"][0]]
    _check(point, quote["auth.signature"], signed, "ISV enclave report: report signature")


def _check(key: object, signature: bytes, signed: bytes, what: str) -> None:
    r, s = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:]))
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            return key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        pass
    raise ValueError(f"Signature is invalid for {what}")


def _qe_report(quote: Quote) -> bytes:
    at = quote.spans["qe_report.cpu_svn"][0]
    return quote.raw[at : at + _REPORT]


def _judged(quote: Quote, platform: Platform, info: Mapping[str, Any], identity: Any) -> dict[str, object]:
    if info["id"] != "SGX":
        raise ValueError("SGX quote with non-SGX TCB info in the collateral")
    if str(info["fmspc"]).lower() != platform.fmspc.hex():
        raise ValueError("Fmspc mismatch")
    enclave, level = _enclave_level(quote, identity), _platform_level(platform, info)
    status, part = str(level["tcbStatus"]), str(enclave["tcbStatus"])
    if status not in (*_OUT_OF_DATE, *_OUT_OF_DATE.values(), "Revoked"):
        raise ValueError(f"TCB status: unknown {status!r:.40}")
    if part == "OutOfDate":
        status = _OUT_OF_DATE.get(status, status)
    if "Revoked" in (status, part):
        raise ValueError("TCB status is invalid: Revoked")
    advisories = [*level.get("advisoryIDs", ()), *enclave.get("advisoryIDs", ())]
    return {
        "tcb": {
            "status": status,
            "advisory_ids": list(dict.fromkeys(advisories)),
            "eval_data_number": info["tcbEvaluationDataNumber"],
        },
        "platform": {"tcb_level": level},
        "qe": {"tcb_level": enclave, "tcb_eval_data_number": identity["tcbEvaluationDataNumber"]},
    }


def _enclave_level(quote: Quote, identity: Any) -> dict[str, Any]:
    # 4.1.2.4.14 and .15: the quoting enclave is Intel's, of a level that the identity names.
    if (identity["id"], identity["version"]) != ("QE", 2):
        raise ValueError("Unsupported QE Identity id/version")
    for name, given in (("MISCSELECT", "misc_select"), ("ATTRIBUTES", "attributes")):
        got = quote[f"qe_report.{given}"]
        wanted, mask = (bytes.fromhex(identity[name.lower() + end]) for end in ("", "Mask"))
        if name == "MISCSELECT":  # written as a number
            wanted, mask = wanted[::-1], mask[::-1]
        if len(mask) != len(got) or bytes(a & b for a, b in zip(got, mask, strict=True)) != wanted:
            raise ValueError(f"QE {name} mismatch in the QE report")
    if quote["qe_report.mr_signer"].hex() != identity["mrsigner"].lower():
        raise ValueError("QE MRSIGNER mismatch")
    if quote.number("qe_report.isv_prod_id") != identity["isvprodid"]:
        raise ValueError("QE ISVPRODID mismatch")
    for level in identity["tcbLevels"]:
        if quote.number("qe_report.isv_svn") >= level["tcb"]["isvsvn"]:
            if level["tcbStatus"] not in ("UpToDate", "OutOfDate", "Revoked"):
                raise ValueError(f"QeIdentity: unknown status {level['tcbStatus']!r:.40}")
            return dict(level)
    raise ValueError("No matching level in QE Identity")


def _platform_level(platform: Platform, info: Mapping[str, Any]) -> dict[str, Any]:
    # 4.1.2.4.17: the highest level that the platform reaches in every component, whatever order the document has.
    def svns(level: Mapping[str, Any]) -> tuple[list[int], int]:
        return [component["svn"] for component in level["tcb"]["sgxtcbcomponents"]], level["tcb"]["pcesvn"]

    for level in sorted(info["tcbLevels"], key=svns, reverse=True):
        components, pce = svns(level)
        if len(components) != len(platform.components):
            raise ValueError("TCB level: component count")
        if platform.pce_svn >= pce and all(a >= b for a, b in zip(platform.components, components, strict=True)):
            return dict(level)
    raise ValueError("No matching TCB level found")
