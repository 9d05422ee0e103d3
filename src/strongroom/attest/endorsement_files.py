"""Endorsements as files: the trust service's folder, and bundles that are carried to machines without a network.

A file is `{"anchor": ..., "endorsements": [...]}`. It is the host's word: whoever reads one compares the anchor with
the roots that are trusted, and the verifier proves the rest.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from strongroom._encoding import parse_json
from strongroom._unix import write_whole
from strongroom.attest.endorsement_snp import AnyEndorsements, SNPEndorsements, read_endorsements
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.makers import MAKERS
from strongroom.attest.verifiers.newest import newest
from strongroom.crypto.x509 import UNREADABLE, common_name
from strongroom.errors import EndorsementError, InputError

__all__ = [
    "SOON_DAYS",
    "anchor_of",
    "end_of",
    "ends",
    "file_name",
    "read_bundle",
    "read_folder",
    "stamp_of",
    "title",
    "write_bundle",
]

SOON_DAYS = 7
_MAX_BYTES = 64 << 20


def read_bundle(path: Path) -> tuple[TrustAnchor, list[AnyEndorsements]]:
    """Return anchor and endorsements in the file `path`.

    Raises:
        EndorsementError: Not readable, or another form.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # of a pipe nobody may ever write the end
                raise InputError("expected a regular file")
            raw = file.read(_MAX_BYTES + 1)
        document = parse_json(raw, str(path), max_bytes=_MAX_BYTES)
        if not isinstance(document, dict) or set(document) != {"anchor", "endorsements"}:
            raise InputError("expected anchor and endorsements")
        values = document["endorsements"]
        if not isinstance(values, list):
            raise InputError("endorsements is not a list")
        return TrustAnchor.from_json(document["anchor"]), [read_endorsements(value) for value in values]
    except (OSError, InputError, EndorsementError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise EndorsementError(
            f"the endorsements in {path} are not readable: {reason}",
            hint="fetch them anew with `strongroom attest endorsements fetch`, or import a bundle",
        ) from exc


def read_folder(folder: Path) -> tuple[list[tuple[TrustAnchor, AnyEndorsements]], list[str]]:
    """Return what the files in `folder` hold, and why some are not readable: one stands in no other's way."""
    found: list[tuple[TrustAnchor, AnyEndorsements]] = []
    refused = []
    for path in sorted(folder.glob("*.json")):
        try:
            anchor, endorsements = read_bundle(path)
        except EndorsementError as exc:
            refused.append(str(exc))
            continue
        found += [(anchor, one) for one in endorsements]
    return found, refused


def end_of(endorsements: AnyEndorsements, now: datetime) -> tuple[str, int]:
    """Return which part of `endorsements` ends first and when, in words, and how many whole days that is from `now`."""
    name, _, end = min(endorsements.parts(), key=lambda part: part[2])
    days = (end - now).days
    return f"{name} holds until {end:%Y-%m-%d} ({days} days); nothing verifies with it after that", days


def ends(found: Sequence[tuple[TrustAnchor, AnyEndorsements]], now: datetime) -> list[tuple[int, str]]:
    """Return in how many days each of `found` ends, and that in words, the next to end first.

    Of each part the newest counts, as where evidence is verified. SIMULATED ones are left out: jobs renew them.
    """
    ending = []
    for (anchor, _), one in zip(found, newest(found), strict=True):
        if anchor.kind == "hardware" and not isinstance(one, EndorsementError):
            text, days = end_of(one, now)
            ending.append((days, f"{title(one)}: {text}"))
    return sorted(ending)


def stamp_of(folder: Path) -> tuple[tuple[str, int], ...]:
    """Return something that changes when the files in `folder` do."""

    def changed(path: Path) -> int:
        try:
            return path.stat().st_mtime_ns
        except OSError:  # gone since, or a link to nowhere
            return 0

    return tuple((path.name, changed(path)) for path in sorted(folder.glob("*.json")))


def write_bundle(path: Path, anchor: TrustAnchor, endorsements: Sequence[AnyEndorsements]) -> None:
    """Write a file that `read_bundle` reads; nobody sees half of it."""
    document = {"anchor": anchor.to_json(), "endorsements": [value.to_json() for value in endorsements]}
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, json.dumps(document))


def anchor_of(endorsements: AnyEndorsements, given: TrustAnchor | None = None) -> TrustAnchor:
    """Return the root that `endorsements` are said to be under, if it is Intel's, AMD's or `given`.

    Raises:
        EndorsementError: It is another, or not readable.
    """
    try:
        if isinstance(endorsements, SNPEndorsements):
            root = endorsements.ark
        else:
            chain = x509.load_pem_x509_certificates(endorsements.pck_crl_issuer_chain.encode())
            root = chain[-1].public_bytes(Encoding.DER)
    except (*UNREADABLE, IndexError) as exc:
        raise EndorsementError("endorsements: the issuer chain of pck_crl is not readable") from exc
    anchor = TrustAnchor(kind="hardware", certificate_der=root)
    if anchor.fingerprint not in MAKERS and (given is None or given.certificate_der != root):
        raise EndorsementError(
            f"root: expected Intel's or AMD's, got {anchor.fingerprint[:16]}",
            hint="name the certificate of a root that you trust with --anchor",
        )
    return anchor


def title(endorsements: AnyEndorsements) -> str:
    """Return what `endorsements` are for: `sgx 00906ed50000` (with `platform` for that CA), or `snp SEV-Milan`."""
    if isinstance(endorsements, SNPEndorsements):
        try:
            name = common_name(x509.load_der_x509_certificate(endorsements.ask).subject)
        except UNREADABLE as exc:
            raise EndorsementError("endorsements: ask is not a certificate") from exc
        return f"snp {name}"
    try:
        document = parse_json(endorsements.tcb_info, "tcb_info")
        issuer = x509.load_pem_x509_certificates(endorsements.pck_crl_issuer_chain.encode())[0].subject
    except (*UNREADABLE, InputError, IndexError) as exc:
        raise EndorsementError("endorsements: tcb_info or the issuer chain of pck_crl is not readable") from exc
    family = str(document.get("fmspc", "")).lower() if isinstance(document, dict) else ""
    return f"{endorsements.tee} {family}{' platform' if 'Platform CA' in issuer.rfc4514_string() else ''}"


def file_name(endorsements: AnyEndorsements) -> str:
    """Return the name of the file in the trust service's folder."""
    return re.sub(r"[^a-z0-9]+", "-", title(endorsements).lower())[:60] + ".json"
