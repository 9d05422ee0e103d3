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
5. TCB info is for this PCE (PCEID), and the TDX module that runs is no older than the one that was launched;
6. an enclave has the attributes, and a domain is one, that nobody else may enter (`checks.attributes`).

dcap-qvl 0.7 takes SGX quotes of version 3 alone, Intel's own library those of 4 and 5 too: `sgx` judges those, and
dcap-qvl as far as it goes.

Source: Intel QVL `QuoteVerifier.cpp`, checks 4.1.2.4.x.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import dcap_qvl

from strongroom.attest.claims import Claims
from strongroom.attest.endorsement_snp import AnyEndorsements
from strongroom.attest.endorsements import Endorsements, TrustAnchor, check_window
from strongroom.attest.evidence import Evidence
from strongroom.attest.makers import stands_for
from strongroom.attest.markers import SIMULATED_FMSPC
from strongroom.attest.quote import Quote, parse_quote
from strongroom.attest.verifiers import sgx
from strongroom.attest.verifiers.chains import Chain, certified, issuers, tcb_info, tcb_signers
from strongroom.attest.verifiers.checks import attributes, classified, judge, reached
from strongroom.attest.verifiers.refusals import Judged
from strongroom.errors import AttestationError, EndorsementError, EvidenceError, VerificationError

__all__ = ["DCAPVerifier"]

_SIMULATED = "SIMULATED: a program on the host measured this and signed it; what follows holds of hardware alone"
_MRENCLAVE = (
    "MRENCLAVE: the enclave's pages and their rights as they were before it started; what it reads later only as far "
    "as its code checks it (Gramine: trusted files, whose hashes are in the manifest that is measured)"
)
_CONFIGID = (
    "CONFIGID, CONFIGSVN: chosen by whoever started the enclave, and not measured; MRSIGNER alone names a key, and no "
    "code or version"
)
_MRTD = "MRTD: what the host put into memory before the domain started, which is its firmware; nothing later"
_RTMRS = (
    "RTMR0 to RTMR3: extended after the start, by firmware (0: its configuration and the host's ACPI tables, 1: the "
    "kernel, 2: command line and first file system) and by the kernel and its programs (3); each is as true as the "
    "code that measures, so all of them and MRTD have to be named; nothing that is read from a disk later"
)
_MRCONFIGID = (
    "MRCONFIGID, MROWNER, MROWNERCONFIG: chosen by the host at launch, and not measured; they bind a job or name "
    "somebody only where they are compared"
)
_LIMITS = {"sgx": (_MRENCLAVE, _CONFIGID), "tdx": (_MRTD, _RTMRS, _MRCONFIGID)}
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
            _check_crlissuers(endorsements, quote)
            # 5. dcap-qvl proves the rest. A TDX module of 1.5 may be replaced while domains run, by a newer one alone.
            judged = Judged(quote, chain, signers, endorsements, now)
            proven = self._proven(judged)
            try:
                _check_pce(judged)
                _check_running_module(quote)
                for refusal in attributes(quote):
                    raise refusal
            except AttestationError as exc:
                exc.details |= self._reached(judged)
                raise
            # 6. Claims are what the signatures cover.
            return _claims(judged, proven, self.anchor)
        except EndorsementError as exc:
            exc.hint = exc.hint or _FRESH
            raise

    def _chain(self, quote: Quote) -> Chain:
        if not hmac.compare_digest(quote.root_der, self.anchor.certificate_der):
            found = TrustAnchor(kind=self.anchor.kind, certificate_der=quote.root_der).fingerprint
            raise VerificationError(f"root: expected {self.anchor.fingerprint[:16]}, got {found[:16]}")
        return certified(quote.pck_chain)

    def _reached(self, judged: Judged) -> Mapping[str, object]:
        try:
            return reached(judge(judged, self.anchor))
        except AttestationError as exc:  # it came as far as this says
            return exc.details

    def _proven(self, judged: Judged) -> Mapping[str, object]:
        try:
            collateral = _collateral(judged.endorsements)
        except ValueError as exc:
            raise EndorsementError(f"endorsements: {exc}") from exc
        seconds = int(judged.now.timestamp())

        def library(raw: bytes) -> str:
            # claims_only judges no status: appraisal does, and says every reason.
            policy = dcap_qvl.QuotePolicy.claims_only(seconds)
            verifier = dcap_qvl.QuoteVerifier(self.anchor.certificate_der)
            return str(verifier.verify_with_policy(raw, collateral, seconds, policy).to_json())

        try:
            if judged.quote.tee == "sgx" and judged.quote.version > 3:
                proven = sgx.verify(judged, self.anchor, library)
            else:
                proven = json.loads(library(judged.quote.raw))
        except ValueError as exc:
            raise classified(str(exc), judged, self.anchor) from exc
        if not isinstance(proven, dict):
            raise VerificationError("dcap-qvl answered something that is not an object")
        return proven


def _check_pce(judged: Judged) -> None:
    got, expected = judged.platform.pce_id.hex(), str(tcb_info(judged.endorsements).get("pceId")).lower()
    if got != expected:
        raise EndorsementError(f"pceid: expected {expected} of the TCB info, got {got}")


def _check_running_module(quote: Quote) -> None:
    if "body.tee_tcb_svn2" in quote.spans:
        launched, runs = ((svn[1], svn[0]) for svn in (quote["body.tee_tcb_svn"], quote["body.tee_tcb_svn2"]))
        if runs < launched:
            expected, got = (f"TDX_{version:02X} with SVN {svn}" for version, svn in (launched, runs))
            raise VerificationError(f"tdx_module: expected one no older than launched, {expected}, to run, got {got}")


def _check_crlissuers(endorsements: Endorsements, quote: Quote) -> None:
    if issuers(endorsements) != quote.pck_chain[1:]:
        raise EndorsementError("pck_crl_issuer_chain: expected the issuers of the PCK certificate, got others")


@lru_cache(maxsize=16)
def _collateral(endorsements: Endorsements) -> dcap_qvl.QuoteCollateralV3:
    # Endorsements change once a day, quotes come all the time; what is cached is parsing, not a judgement.
    return dcap_qvl.QuoteCollateralV3.from_json(json.dumps(endorsements.to_json()))


@lru_cache(maxsize=16)
def _parts(endorsements: Endorsements) -> list[tuple[str, datetime, datetime]]:
    return endorsements.parts()


def _claims(judged: Judged, proven: Mapping[str, object], anchor: TrustAnchor) -> Claims:
    quote, pck, now = judged.quote, judged.platform, judged.now
    tcb, platform, enclave = (_object(proven, part) for part in ("tcb", "platform", "qe"))
    root = stands_for(anchor, marked=pck.fmspc == SIMULATED_FMSPC or judged.chain.marked)
    advisories = tcb.get("advisory_ids")
    numbers = [n for n in (tcb.get("eval_data_number"), enclave.get("tcb_eval_data_number")) if isinstance(n, int)]
    # dcap-qvl has merged the TDX module's level into the platform's.
    levels = [_object(part, "tcb_level") for part in (platform, enclave)]
    late = [level for level in levels if str(level.get("tcbStatus")).startswith("OutOfDate")]
    oldest = min(_date(str(level.get("tcbDate"))) for level in late or levels)
    return Claims(
        tee=quote.tee,
        root=root,
        root_fingerprint=anchor.fingerprint,
        simulated=root == "simulated",
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
        fmspc=pck.fmspc.hex(),
        tcb_eval_number=min(numbers) if len(numbers) == 2 else None,
        ppid=pck.ppid,
        piid=pck.piid,
        dynamic_platform=pck.dynamic_platform,
        cached_keys=pck.cached_keys,
        smt=pck.smt,
        rtmrs=tuple(quote[f"body.rtmr{i}"] for i in range(4)) if quote.tee == "tdx" else (),
        limits=(*((_SIMULATED,) if root == "simulated" else ()), *_LIMITS[quote.tee]),
    )


def _object(value: Mapping[str, object], key: str) -> Mapping[str, object]:
    found = value.get(key)
    if not isinstance(found, dict):
        raise VerificationError(f"dcap-qvl named no {key}")
    return found


@lru_cache(maxsize=64)
def _date(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise EndorsementError(f"endorsements: a TCB level's date is not readable: {text!r:.40}") from exc
