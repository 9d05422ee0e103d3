"""Intel DCAP verification of SGX and TDX quotes by dcap-qvl, under one explicit root.

Proves origin and integrity: certificate chain, revocation, TCB info, QE identity and both signatures. It only extracts
what the signatures cover; whether a TCB status or a measurement will do is `appraisal`'s question. The same code runs
for hardware and for the simulated platform: only the root differs.

What is judged here before the library, because it is silent or vague there:

1. the bytes are one canonical quote without trailing data (`quote`), of the TEE that the evidence names;
2. the root certificate in the quote is the anchor, byte for byte, and the leaf is an "SGX PCK Certificate";
3. `now` lies in the window of all endorsements.

Source: Intel QVL `QuoteVerifier.cpp`, checks 4.1.2.4.x.
"""

from __future__ import annotations

import hmac
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import dcap_qvl
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

from strongroom.attest.claims import Claims
from strongroom.attest.endorsement_snp import AnyEndorsements
from strongroom.attest.endorsements import Endorsements, TrustAnchor, check_window
from strongroom.attest.evidence import Evidence
from strongroom.attest.markers import SIMULATED_FMSPC, SIMULATED_NAME
from strongroom.attest.quote import Quote, parse_quote
from strongroom.errors import AttestationError, EndorsementError, EvidenceError, VerificationError

__all__ = ["DCAPVerifier"]

# What dcap-qvl 0.7 says, by the part that it blames. Anything unknown counts as a failed verification.
_ENDORSEMENT_WORDS = (
    "crl", "tcbinfo", "tcb info", "tcb level", "tcb status", "tcb_info", "qeidentity", "qe identity", "qe_identity",
    "fmspc mismatch", "tdx module", "component count", "collateral",
)  # fmt: skip
_EVIDENCE_WORDS = ("failed to decode quote", "unsupported dcap", "quote must have version", "unknown qe vendor")


@dataclass(frozen=True, slots=True)
class DCAPVerifier:
    """Verifies quotes under `anchor`."""

    anchor: TrustAnchor

    def verify(self, evidence: Evidence, endorsements: AnyEndorsements, *, now: datetime) -> Claims:
        """Return the claims proven by the quote's signatures.

        Args:
            evidence: An SGX quote of version 3 to 5, or a TDX quote of version 4 or 5.
            endorsements: For the quote's TEE and platform, covering `now`.
            now: UTC. Never read from the clock here.

        Raises:
            EvidenceError: Not a quote of these formats.
            EndorsementError: Endorsements are unreadable, expired, revoked, or for another platform.
            VerificationError: Another root, a broken chain or signature, or a debug enclave.
        """
        # 1. One canonical quote of the named TEE.
        quote = parse_quote(evidence.quote)
        if quote.tee != evidence.tee:
            raise EvidenceError(f"quote: expected TEE {evidence.tee}, got {quote.tee}")
        # 2. Its chain ends in the anchor.
        certificates = self._chain(quote)
        # 3. Endorsements are Intel's and hold now.
        if not isinstance(endorsements, Endorsements):
            raise EndorsementError("endorsements: expected Intel's, got AMD's")
        check_window(_parts(endorsements), now)
        # 4. dcap-qvl proves the rest.
        proven = self._proven(quote, certificates, endorsements, now)
        # 5. Claims are what the signatures cover.
        return _claims(quote, certificates, proven, self.anchor, now)

    def _chain(self, quote: Quote) -> list[x509.Certificate]:
        if not hmac.compare_digest(quote.root_der, self.anchor.certificate_der):
            found = TrustAnchor(kind=self.anchor.kind, certificate_der=quote.root_der).fingerprint
            raise VerificationError(f"root: expected {self.anchor.fingerprint[:16]}, got {found[:16]}")
        # Signatures first, so that what is read below is what the root's holder wrote.
        try:
            chain = [x509.load_der_x509_certificate(der) for der in quote.pck_chain]
            for certificate, issuer in itertools.pairwise(chain):
                certificate.verify_directly_issued_by(issuer)
            subject = _text(chain[0].subject, NameOID.COMMON_NAME)
        except (InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion, TypeError, ValueError) as exc:
            raise VerificationError("chain: a certificate is not readable or not signed by the next") from exc
        if subject != "SGX PCK Certificate":
            raise VerificationError(f"leaf: expected subject SGX PCK Certificate, got {subject!r:.60}")
        return chain

    def _proven(
        self, quote: Quote, chain: list[x509.Certificate], endorsements: Endorsements, now: datetime
    ) -> Mapping[str, object]:
        seconds = int(now.timestamp())
        try:
            collateral = _collateral(endorsements)
        except ValueError as exc:
            raise EndorsementError(f"endorsements: {exc}") from exc
        try:
            # claims_only judges no status: appraisal does, and says every reason.
            result = dcap_qvl.QuoteVerifier(self.anchor.certificate_der).verify_with_policy(
                quote.raw, collateral, seconds, dcap_qvl.QuotePolicy.claims_only(seconds)
            )
        except ValueError as exc:
            raise _classified(str(exc), chain, endorsements) from exc
        proven = json.loads(result.to_json())
        if not isinstance(proven, dict):
            raise VerificationError("dcap-qvl answered something that is not an object")
        return proven


@lru_cache(maxsize=16)
def _collateral(endorsements: Endorsements) -> dcap_qvl.QuoteCollateralV3:
    # Endorsements change once a day, quotes come all the time; what is cached is parsing, not a judgement.
    return dcap_qvl.QuoteCollateralV3.from_json(json.dumps(endorsements.to_json()))


@lru_cache(maxsize=16)
def _parts(endorsements: Endorsements) -> list[tuple[str, datetime, datetime]]:
    return endorsements.parts()


def _classified(message: str, chain: list[x509.Certificate], endorsements: Endorsements) -> AttestationError:
    said = message.removeprefix("Verification failed: ")
    low = said.lower()
    if "certificate chain" in low:
        for number, crl_der in enumerate((endorsements.pck_crl, endorsements.root_ca_crl)):
            crl = x509.load_der_x509_crl(crl_der)  # readable: the window was read from it
            if crl.get_revoked_certificate_by_serial_number(chain[number].serial_number) is not None:
                name = _text(chain[number].subject, NameOID.COMMON_NAME)
                return EndorsementError(f"revoked: {name} with serial {chain[number].serial_number:x}")
    if any(word in low for word in _EVIDENCE_WORDS):
        return EvidenceError(f"quote: {said}")
    if any(word in low for word in _ENDORSEMENT_WORDS) and "debug" not in low:
        return EndorsementError(f"endorsements: {said}")
    return VerificationError(f"quote: {said}")


def _claims(
    quote: Quote, chain: list[x509.Certificate], proven: Mapping[str, object], anchor: TrustAnchor, now: datetime
) -> Claims:
    tcb, platform, enclave = (_object(proven, part) for part in ("tcb", "platform", "qe"))
    pck = _object(platform, "pck")
    fmspc = _bytes(pck.get("fmspc"))
    simulated = anchor.kind == "simulated" or fmspc == SIMULATED_FMSPC or any(map(_marked, chain))
    advisories = tcb.get("advisory_ids")
    numbers = [n for n in (tcb.get("eval_data_number"), enclave.get("tcb_eval_data_number")) if isinstance(n, int)]
    # dcap-qvl has merged the TDX module's level into the platform's.
    oldest = min(_date(part) for part in (platform, enclave))
    return Claims(
        tee=quote.tee,
        root="simulated" if simulated else "hardware",
        root_fingerprint=anchor.fingerprint,
        simulated=simulated,
        measurement=quote.measurement,
        signer=quote.signer,
        isv_prod_id=quote.number("body.isv_prod_id") if quote.tee == "sgx" else 0,
        isv_svn=quote.number("body.isv_svn") if quote.tee == "sgx" else 0,
        config_id=quote.config_id,
        report_data=quote.report_data,
        debug=quote.debug,
        tcb_status=str(tcb.get("status")),
        advisory_ids=tuple(str(a) for a in advisories) if isinstance(advisories, list) else (),
        tcb_date=f"{oldest:%Y-%m-%d}",
        tcb_age_days=(now - oldest).days,
        fmspc=fmspc.hex(),
        tcb_eval_number=min(numbers) if len(numbers) == 2 else None,
        ppid=_bytes(pck.get("ppid")),
        piid=_bytes(pck.get("platform_instance_id")),
        rtmrs=tuple(quote[f"body.rtmr{i}"] for i in range(4)) if quote.tee == "tdx" else (),
    )


def _marked(certificate: x509.Certificate) -> bool:
    return any(
        SIMULATED_NAME in str(attribute.value)
        for name in (certificate.subject, certificate.issuer)
        for attribute in name
    )


def _text(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    values = name.get_attributes_for_oid(oid)
    return str(values[0].value) if len(values) == 1 else ""


def _object(value: Mapping[str, object], key: str) -> Mapping[str, object]:
    found = value.get(key)
    if not isinstance(found, dict):
        raise VerificationError(f"dcap-qvl named no {key}")
    return found


def _date(part: Mapping[str, object]) -> datetime:
    text = str(_object(part, "tcb_level").get("tcbDate"))
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError as exc:
        raise EndorsementError(f"endorsements: a TCB level's date is not readable: {text!r:.40}") from exc


def _bytes(value: object) -> bytes:
    return bytes(value) if isinstance(value, list) else b""
