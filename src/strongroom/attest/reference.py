"""Reference values: what a build says a job measures, signed by whoever built it.

An in-toto Statement in a DSSE envelope, so that other tools can read and check it (in-toto attestation framework v1,
DSSE v1). The subject is the job, by its digest; the predicate holds the measured values and the whole job document.
Trusts the signer that the caller names, and nothing in the file before its signature holds.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from strongroom._encoding import canonical_json, parse_json, sha256_id
from strongroom.attest.policies import TDX_REGISTERS, job_digest
from strongroom.crypto.x509 import spki_id
from strongroom.errors import InputError, VerificationError

__all__ = ["PREDICATE", "ReferenceValues", "check_values", "open_reference", "sign_reference"]

PREDICATE = "tag:strongroom,2026:reference-values/v1"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PAYLOAD = "application/vnd.in-toto+json"
_MAX_BYTES = 1 << 22
_VALUES = {frozenset({"measurement"}): 32, frozenset({"snp_measurement"}): 48, frozenset(TDX_REGISTERS): 48}
"""What one kind of enclave measures, by name, and the size of each value in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceValues:
    """What one job measures in one kind of enclave.

    Attributes:
        name: Of the job, for people.
        job: Its digest, `sha256:<hex>`.
        document: The job document, whose digest is `job`.
        values: "measurement" (SGX), "snp_measurement" (SNP: the launch digest, computed with kernel, first file system
            and command line), or "mrtd" and "rtmr0" to "rtmr3" (TDX) -> hex.
        simulated: Evidence for them is signed by a simulated platform.
        id: `sha256:<hex>` of the statement; a decision names it.
        signer: SPKI id of the key that signed it.
    """

    name: str
    job: str
    document: Mapping[str, object]
    values: Mapping[str, str]
    simulated: bool
    id: str = ""
    signer: str = ""


def check_values(values: Mapping[str, object]) -> None:
    """Return if these are all the values of one kind of enclave, by name, each in lower-case hex.

    Raises:
        InputError: They are not.
    """
    size = _VALUES.get(frozenset(values))
    if size is None:
        forms = " or ".join(" and ".join(sorted(names)) for names in _VALUES)
        raise InputError(f"reference values: expected {forms}, got {sorted(values)}")
    if not all(isinstance(v, str) and re.fullmatch(f"[0-9a-f]{{{2 * size}}}", v) for v in values.values()):
        raise InputError(f"reference values: a value of {', '.join(sorted(values))} is not {size} bytes in hex")


def sign_reference(values: ReferenceValues, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the signed file."""
    digest = {"sha256": values.job.removeprefix("sha256:")}
    predicate = {"values": dict(values.values), "simulated": values.simulated, "document": dict(values.document)}
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": values.name, "digest": digest}],
        "predicateType": PREDICATE,
        "predicate": predicate,
    }
    payload = canonical_json(statement)
    signature = key.sign(_signed(payload), ec.ECDSA(hashes.SHA256()))
    signatures = [{"keyid": spki_id(key.public_key()), "sig": _b64(signature)}]
    return canonical_json({"payload": _b64(payload), "payloadType": _PAYLOAD, "signatures": signatures})


def open_reference(raw: bytes, signers: Sequence[ec.EllipticCurvePublicKey]) -> ReferenceValues:
    """Return the reference values in `raw`, which one of `signers` signed.

    Raises:
        VerificationError: None of them did.
        InputError: Not reference values of this format, or not of the job that they name.
    """
    envelope = _object(parse_json(raw, "the reference values", max_bytes=_MAX_BYTES), "envelope")
    if set(envelope) != {"payload", "payloadType", "signatures"} or envelope["payloadType"] != _PAYLOAD:
        raise InputError(f"reference values: expected a DSSE envelope of {_PAYLOAD}, got {sorted(envelope)!r:.200}")
    payload = _b64_decode(envelope["payload"])
    signer = _signer(payload, envelope["signatures"], signers)
    statement = _object(parse_json(payload, "the reference values", max_bytes=_MAX_BYTES), "statement")
    if (statement.get("_type"), statement.get("predicateType")) != (_STATEMENT, PREDICATE):
        raise InputError(f"reference values: expected {PREDICATE}, got {statement.get('predicateType')!r:.100}")
    return _read(statement, sha256_id(payload), signer)


def _signer(payload: bytes, signatures: object, signers: Sequence[ec.EllipticCurvePublicKey]) -> str:
    # The key id is a hint (DSSE): whichever of the trusted keys fits is the signer.
    if not isinstance(signatures, list) or not 0 < len(signatures) <= 16:
        raise InputError("reference values: expected 1 to 16 signatures")
    for signature in signatures:
        raw = _b64_decode(_object(signature, "signature").get("sig"))
        for key in signers:
            try:
                key.verify(raw, _signed(payload), ec.ECDSA(hashes.SHA256()))
            except InvalidSignature:
                continue
            return spki_id(key)
    expected = " or ".join(spki_id(key)[:23] for key in signers) or "nobody"
    got = ", ".join(str(_object(s, "signature").get("keyid"))[:23] for s in signatures)
    raise VerificationError(f"reference values: expected the signature of {expected}, got {got!r}")


def _read(statement: Mapping[str, Any], identity: str, signer: str) -> ReferenceValues:
    predicate = _object(statement.get("predicate"), "predicate")
    document, values = (_object(predicate.get(name), name) for name in ("document", "values"))
    check_values(values)
    subjects = statement.get("subject")
    job = job_digest(document)
    named = {"sha256": job.removeprefix("sha256:")}
    if not isinstance(subjects, list) or len(subjects) != 1 or _object(subjects[0], "subject").get("digest") != named:
        raise InputError(f"reference values: the subject is not the job in it, {job}")
    simulated = predicate.get("simulated")
    if not isinstance(simulated, bool):
        raise InputError("reference values: simulated is not true or false")
    return ReferenceValues(
        name=str(subjects[0].get("name", "")),
        job=job,
        document=document,
        values=values,
        simulated=simulated,
        id=identity,
        signer=signer,
    )


def _signed(payload: bytes) -> bytes:
    # DSSE's pre-authentication encoding.
    return b" ".join((b"DSSEv1", b"%d" % len(_PAYLOAD), _PAYLOAD.encode(), b"%d" % len(payload), payload))


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"reference values: {name} is not an object")
    return value


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _b64_decode(value: object) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InputError("reference values: not base64") from exc
