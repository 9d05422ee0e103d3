"""Intel DCAP verification of SGX and TDX quotes by dcap-qvl, under one explicit root.

Proves origin and integrity: certificate chain, revocation, TCB info, QE identity and both signatures. It only extracts
what the signatures cover; whether a TCB status or a measurement will do is `appraisal`'s question. The same code runs
for hardware and for the simulated platform: only the root differs.

What is judged here beside the library, because it is silent or vague there, or accepts what Intel's own library
refuses (tests/attacks/test_altered_quotes.py compares with a second verifier):

1. the bytes are one canonical quote without trailing data (`quote`), of the TEE that the evidence names;
2. the root certificate in the quote is the anchor, byte for byte, the leaf is an "SGX PCK Certificate", and its issuer
   may sign certificates;
3. `now` lies in the window of all endorsements;
4. TCB info (version 3) and QE identity are signed by an "SGX TCB Signing" certificate directly under the anchor, and
   the PCK revocation list names the PCK certificate's issuers;
5. TCB info is for this PCE (PCEID), and the TDX module that runs is no older than the one that was launched.

dcap-qvl 0.7 takes SGX quotes of version 3 only, though Intel's formats 4 and 5 allow them: those are refused.

Source: Intel QVL `QuoteVerifier.cpp`, checks 4.1.2.4.x.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeGuard

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from strongroom._encoding import parse_json
from strongroom.attest.claims import Claims
from strongroom.attest.endorsement_snp import AnyEndorsements
from strongroom.attest.endorsements import Endorsements, TrustAnchor, check_window
from strongroom.attest.evidence import Evidence
from strongroom.attest.markers import SIMULATED_FMSPC, SIMULATED_NAME
from strongroom.attest.quote import Quote, parse_quote
from strongroom.crypto.x509 import UNREADABLE
from strongroom.errors import AttestationError, EndorsementError, EvidenceError, InputError, VerificationError

__all__ = ["DCAPVerifier", "covers_platform", "tcb_signers"]

# What dcap-qvl 0.7 says, by the part that it blames. Anything unknown counts as a failed verification.
_ENDORSEMENT_WORDS = (
    "crl", "tcbinfo", "tcb info", "tcb level", "tcb status", "tcb_info", "qeidentity", "qe identity", "qe_identity",
    "fmspc mismatch", "tdx module", "component count", "collateral", "tee_tcb_svn2",
)  # fmt: skip
_EVIDENCE_WORDS = ("failed to decode quote", "unsupported dcap", "quote must have version", "unknown qe vendor")
_FRESH = "fetch this platform's endorsements again; if they are current, the platform itself needs its maker's updates"


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
        chain = self._chain(quote)
        try:
            # 3. Endorsements are Intel's and hold now, 4. and come from who may give them.
            if not isinstance(endorsements, Endorsements):
                raise EndorsementError("endorsements: expected Intel's, got AMD's")
            check_window(_parts(endorsements), now)
            signers = tcb_signers(endorsements, self.anchor)
            _check_crl_issuers(endorsements, quote)
            # 5. dcap-qvl proves the rest. A TDX module of 1.5 may be replaced while domains run, by a newer one alone.
            proven = self._proven(_Judged(quote, chain, signers, endorsements, now))
            _check_running_module(quote)
            # 6. Claims are what the signatures cover.
            return _claims(quote, chain, proven, self.anchor, now)
        except EndorsementError as exc:
            exc.hint = exc.hint or _FRESH
            raise

    def _chain(self, quote: Quote) -> _Chain:
        if not hmac.compare_digest(quote.root_der, self.anchor.certificate_der):
            found = TrustAnchor(kind=self.anchor.kind, certificate_der=quote.root_der).fingerprint
            raise VerificationError(f"root: expected {self.anchor.fingerprint[:16]}, got {found[:16]}")
        return _certified(quote.pck_chain)

    def _proven(self, judged: _Judged) -> Mapping[str, object]:
        seconds = int(judged.now.timestamp())
        try:
            collateral = _collateral(judged.endorsements)
        except ValueError as exc:
            raise EndorsementError(f"endorsements: {exc}") from exc
        try:
            # claims_only judges no status: appraisal does, and says every reason.
            result = dcap_qvl.QuoteVerifier(self.anchor.certificate_der).verify_with_policy(
                judged.quote.raw, collateral, seconds, dcap_qvl.QuotePolicy.claims_only(seconds)
            )
        except ValueError as exc:
            try:
                refusal = _classified(str(exc), judged)
            except UNREADABLE:  # what explains a refusal is unsigned yet, so it has any form
                refusal = EndorsementError(f"endorsements: {exc}")
            raise refusal from exc
        proven = json.loads(result.to_json())
        if not isinstance(proven, dict):
            raise VerificationError("dcap-qvl answered something that is not an object")
        got = _bytes(_object(_object(proven, "platform"), "pck").get("pce_id")).hex()
        expected = str(_tcb_info(judged.endorsements).get("pceId")).lower()
        if got != expected:
            raise EndorsementError(f"pceid: expected {expected} of the TCB info, got {got}")
        return proven


@dataclass(frozen=True, slots=True)
class _Chain:
    """Leaf, CA and root, each signed by the next; `marked` if one of them says SIMULATED."""

    leaf: x509.Certificate
    issuer: x509.Certificate
    root: x509.Certificate
    marked: bool


@lru_cache(maxsize=256)
def _certified(ders: tuple[bytes, ...]) -> _Chain:
    # A machine sends the same certificates with every quote. What is kept does not depend on time or endorsements.
    issuer, root, signs = _authority(ders[1:])
    try:
        # The signature first, so that what is read below is what its issuer wrote.
        leaf = x509.load_der_x509_certificate(ders[0])
        leaf.verify_directly_issued_by(issuer)
        subject = _text(leaf.subject)
    except UNREADABLE as exc:
        raise VerificationError("chain: a certificate is not readable or not signed by the next") from exc
    if subject.removeprefix("Intel ") != "SGX PCK Certificate":
        raise VerificationError(f"leaf: expected subject SGX PCK Certificate, got {subject!r:.60}")
    if not signs:
        raise VerificationError("chain: expected an issuer that may sign certificates, got one that may not")
    return _Chain(leaf, issuer, root, marked=any(map(_marked, (leaf, issuer, root))))


@lru_cache(maxsize=16)
def _authority(ders: tuple[bytes, ...]) -> tuple[x509.Certificate, x509.Certificate, bool]:
    try:
        issuer, root = map(x509.load_der_x509_certificate, ders)
        issuer.verify_directly_issued_by(root)
        return issuer, root, issuer.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except UNREADABLE as exc:
        raise VerificationError("chain: a certificate is not readable or not signed by the next") from exc


@dataclass(frozen=True, slots=True)
class _Judged:
    """What one verification is about."""

    quote: Quote
    chain: _Chain
    signers: Mapping[str, x509.Certificate]
    endorsements: Endorsements
    now: datetime


@lru_cache(maxsize=16)
def _tcb_info(endorsements: Endorsements) -> Mapping[str, object]:
    try:
        document = parse_json(endorsements.tcb_info, "tcb_info")
    except InputError as exc:
        raise EndorsementError(f"endorsements: {exc}") from exc
    if not isinstance(document, dict) or document.get("version") != 3:
        raise EndorsementError("tcb_info: expected TCB info version 3, got another")
    return document


@lru_cache(maxsize=16)
def tcb_signers(endorsements: Endorsements, anchor: TrustAnchor) -> Mapping[str, x509.Certificate]:
    """Return the certificates over TCB info and QE identity, by part; their own signatures are not checked.

    Raises:
        EndorsementError: They are not SGX TCB Signing's directly under `anchor`.
    """
    _tcb_info(endorsements)
    found = {}
    for name in ("tcb_info", "qe_identity"):
        given = f"{name}_issuer_chain: expected SGX TCB Signing and root {anchor.fingerprint[:16]}, got "
        chain = _pem_certificates(getattr(endorsements, f"{name}_issuer_chain"))
        try:
            names = [_text(certificate.subject) for certificate in chain]
            if len(chain) != 2 or _der(chain[1]) != anchor.certificate_der:
                raise EndorsementError(f"{given}{', '.join(names) or 'nothing'}")
            chain[0].verify_directly_issued_by(chain[1])
        except UNREADABLE as exc:
            raise EndorsementError(f"{given}a certificate that the root did not sign") from exc
        if names[0].removeprefix("Intel ") != "SGX TCB Signing":
            raise EndorsementError(f"{given}{names[0]!r:.60}")
        found[name] = chain[0]
    return found


def _check_running_module(quote: Quote) -> None:
    if "body.tee_tcb_svn2" in quote.spans:
        launched, runs = ((svn[1], svn[0]) for svn in (quote["body.tee_tcb_svn"], quote["body.tee_tcb_svn2"]))
        if runs < launched:
            expected, got = (f"TDX_{version:02X} with SVN {svn}" for version, svn in (launched, runs))
            raise VerificationError(f"tdx_module: expected one no older than launched, {expected}, to run, got {got}")


def _check_crl_issuers(endorsements: Endorsements, quote: Quote) -> None:
    if _issuers(endorsements) != quote.pck_chain[1:]:
        raise EndorsementError("pck_crl_issuer_chain: expected the issuers of the PCK certificate, got others")


def covers_platform(endorsements: AnyEndorsements, quote: Quote) -> tuple[bool, bool, bool]:
    """Return whether `endorsements` are of the TEE, platform family and CA of `quote`. Only for choosing."""
    if not isinstance(endorsements, Endorsements):
        return False, False, False
    try:
        fmspc = dcap_qvl.parse_pck_extension_from_pem(quote["auth.cert_data"]).fmspc.hex()
        family = str(_tcb_info(endorsements).get("fmspc")).lower() == fmspc
    except (ValueError, EndorsementError):
        family = False
    return endorsements.tee == quote.tee, family, _issuers(endorsements) == quote.pck_chain[1:]


@lru_cache(maxsize=16)
def _issuers(endorsements: Endorsements) -> tuple[bytes, ...]:
    return tuple(map(_der, _pem_certificates(endorsements.pck_crl_issuer_chain)))


def _pem_certificates(text: str) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(text.encode("utf-8"))
        _ = [(c.subject, c.public_key(), c.not_valid_after_utc) for c in found]  # so that they can be read later
        return found
    except UNREADABLE:
        return []


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


@lru_cache(maxsize=16)
def _collateral(endorsements: Endorsements) -> dcap_qvl.QuoteCollateralV3:
    # Endorsements change once a day, quotes come all the time; what is cached is parsing, not a judgement.
    return dcap_qvl.QuoteCollateralV3.from_json(json.dumps(endorsements.to_json()))


@lru_cache(maxsize=16)
def _parts(endorsements: Endorsements) -> list[tuple[str, datetime, datetime]]:
    return endorsements.parts()


def _classified(message: str, judged: _Judged) -> AttestationError:
    said = message.removeprefix("Verification failed: ")
    low = said.lower()
    if "certificate chain" in low or "certrevoked" in low or "crl" in low:
        try:
            blamed = _withdrawn(judged) or _not_valid(judged)
        except UNREADABLE as exc:
            blamed = EndorsementError(f"endorsements: not readable: {type(exc).__name__}")
        if blamed is not None:
            return blamed
    if any(word in low for word in _EVIDENCE_WORDS):
        return EvidenceError(f"quote: {said}")
    if any(word in low for word in _ENDORSEMENT_WORDS) and "debug" not in low:
        return EndorsementError(f"endorsements: {said}{_got(low, judged)}")
    return VerificationError(f"quote: {said}")


def _withdrawn(judged: _Judged) -> AttestationError | None:
    leaf, issuer, root = judged.chain.leaf, judged.chain.issuer, judged.chain.root
    lists = {}
    for name, by in (("root_ca_crl", root), ("pck_crl", issuer)):
        crl = x509.load_der_x509_crl(getattr(judged.endorsements, name))  # readable: the window was read from it
        if crl.issuer != by.subject or not crl.is_signature_valid(by.public_key()):  # type: ignore[arg-type]
            return EndorsementError(f"{name}: expected a list signed by {_text(by.subject)}, got another's")
        lists[name] = crl
    for certificate in (leaf, issuer, root, *judged.signers.values()):
        crl = lists["pck_crl" if certificate is leaf else "root_ca_crl"]
        if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            return EndorsementError(f"revoked: {_text(certificate.subject)} with serial {certificate.serial_number:x}")
    return None


def _not_valid(judged: _Judged) -> AttestationError | None:
    now = judged.now.astimezone(UTC)
    chain = judged.chain
    given = [("chain", c) for c in (chain.leaf, chain.issuer, chain.root)] + list(judged.signers.items())
    for name, certificate in given:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not start <= now <= end:
            family = VerificationError if name == "chain" else EndorsementError
            return family(
                f"{name}: {_text(certificate.subject)} is not valid now: it holds from {start:%Y-%m-%d} to "
                f"{end:%Y-%m-%d}, the time is {now:%Y-%m-%dT%H:%M:%SZ}"
            )
    return None


def _got(low: str, judged: _Judged) -> str:
    """Return what was compared, in words, where the library names the check alone."""
    document = _tcb_info(judged.endorsements)
    if "revoked" in low:
        levels = document.get("tcbLevels")
        revoked = [v.get("advisoryIDs") for v in levels if v.get("tcbStatus") == "Revoked"] if _objects(levels) else []
        named = {str(a) for ids in revoked if isinstance(ids, list) for a in ids}
        return f"; advisories: {', '.join(sorted(named)) or 'none named'}"
    if not any(word in low for word in ("fmspc", "tcb level", "tee_tcb_svn2", "tdx module")):
        return ""
    try:
        pck = dcap_qvl.parse_pck_extension_from_pem(judged.quote["auth.cert_data"])
    except ValueError:
        return ""
    text = f": expected a level for FMSPC {document.get('fmspc')}, got FMSPC {pck.fmspc.hex().upper()}, "
    text += f"CPUSVN {pck.cpu_svn.hex()}, PCESVN {pck.pce_svn}"
    if judged.quote.tee == "tdx":
        svn = judged.quote["body.tee_tcb_svn"]
        text += f", TEE_TCB_SVN {svn.hex()} (module TDX_{svn[1]:02X})"
    return text


def _objects(value: object) -> TypeGuard[list[dict[str, object]]]:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _claims(quote: Quote, chain: _Chain, proven: Mapping[str, object], anchor: TrustAnchor, now: datetime) -> Claims:
    tcb, platform, enclave = (_object(proven, part) for part in ("tcb", "platform", "qe"))
    pck = _object(platform, "pck")
    fmspc = _bytes(pck.get("fmspc"))
    simulated = anchor.kind == "simulated" or fmspc == SIMULATED_FMSPC or chain.marked
    advisories = tcb.get("advisory_ids")
    numbers = [n for n in (tcb.get("eval_data_number"), enclave.get("tcb_eval_data_number")) if isinstance(n, int)]
    # dcap-qvl has merged the TDX module's level into the platform's.
    levels = [_object(part, "tcb_level") for part in (platform, enclave)]
    late = [level for level in levels if str(level.get("tcbStatus")).startswith("OutOfDate")]
    oldest = min(map(_date, late or levels))
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


def _text(name: x509.Name) -> str:
    values = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if len(values) == 1 else ""


def _object(value: Mapping[str, object], key: str) -> Mapping[str, object]:
    found = value.get(key)
    if not isinstance(found, dict):
        raise VerificationError(f"dcap-qvl named no {key}")
    return found


def _date(level: Mapping[str, object]) -> datetime:
    text = str(level.get("tcbDate"))
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise EndorsementError(f"endorsements: a TCB level's date is not readable: {text!r:.40}") from exc


def _bytes(value: object) -> bytes:
    return bytes(value) if isinstance(value, list) else b""
