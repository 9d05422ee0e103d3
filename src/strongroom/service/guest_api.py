"""The guests' door: RCAR (docs/formats/release-protocol.md) and nothing else.

Everything here is said by strangers until evidence is verified, and even then by a guest that a policy has yet to
accept. Nonces are used once; sessions live in memory and end with the lease or the process.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec

from strongroom._encoding import canonical_json, check_bounds, parse_bounded
from strongroom.attest import ratls
from strongroom.attest.binding import JOB_FILE, MAX_JOB_BYTES, init_data_digest
from strongroom.attest.claims import check_init_data, check_report_data
from strongroom.attest.handshake import COMMIT_TYPE, AttestRequest, AuthRequest, Challenge
from strongroom.attest.result import NOT_APPRAISED, issue_ear
from strongroom.attest.verifiers import verify_any
from strongroom.crypto import jose, x509
from strongroom.errors import (
    AttestationError,
    DeniedError,
    EvidenceError,
    InputError,
    StrongroomError,
    UnattestedError,
    VerificationError,
)
from strongroom.kms.datasets import Step
from strongroom.kms.job_document import KeyWanted
from strongroom.kms.receivers import Guest
from strongroom.kms.repeats import HourlyLimit
from strongroom.service.endorsements import EndorsementFolder
from strongroom.service.guest_messages import CertificateRequest, CommitStatement, SignedCommit
from strongroom.service.sessions import Sessions
from strongroom.service.state import TrustService

__all__ = ["GuestAPI"]

_log = logging.getLogger(__name__)

_STATUS = {"report_data", "tcb_status", "advisory_ids", "tcb_date", "tcb_age_days", "tcb_eval_number", "tcb", "limits"}
"""Claims that two quotes of one enclave may differ in: what was bound, and what endorsements of the moment say."""
_NO_NONCE = "the nonce is unknown, used or too old"
STRANGERS_RECORDED = 60
"""Refused strangers that are logged and recorded per hour; of the rest only the number is."""


class GuestAPI:
    """Sessions of guests on one trust service.

    Args:
        service: The unlocked or locked service.
        uptime: Seconds of CLOCK_BOOTTIME, so that a suspended machine does not stretch a lease.
    """

    def __init__(self, service: TrustService, *, uptime: Callable[[], float] | None = None) -> None:
        self._service = service
        self._uptime = uptime or (lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
        self.sessions = Sessions(self._uptime)
        self.endorsements = EndorsementFolder(service)
        self._lock = threading.Lock()  # of what follows
        self._strangers = HourlyLimit(STRANGERS_RECORDED)

    def auth(self, body: object) -> tuple[str, dict[str, object]]:
        """Begin a session: return its id and the challenge."""
        request = AuthRequest.from_json(body)
        self._service.parts  # noqa: B018  # a locked service says so before it hands out a nonce
        session, nonce = self.sessions.begin(request.tee)
        return session, Challenge(nonce=nonce).to_json()

    def check_begun(self, session: str, *, now: datetime) -> None:
        """Return only if `session` has a challenge to answer.

        Raises:
            UnattestedError: It has none; recorded under the admin.
        """
        if not self.sessions.waits(session):
            refusal = UnattestedError(_NO_NONCE, hint="begin again with /auth")
            self._note("attest", refusal, now)
            raise refusal

    def attest(self, session: str, body: object, *, now: datetime) -> dict[str, object]:
        """Return the attestation result of evidence that holds; record evidence that does not under the admin.

        Raises:
            AttestationError, InputError: What failed; the caller tells strangers only the code.
        """
        with self._noted("attest", now, AttestationError, DeniedError):
            return self._attest(session, body, now=now)

    @contextlib.contextmanager
    def _noted(self, action: str, now: datetime, *refusals: type[StrongroomError]) -> Iterator[None]:
        try:
            yield
        except refusals as refusal:
            self._note(action, refusal, now)
            raise
        except StrongroomError:
            raise
        except Exception as exc:  # also the unforeseen: nothing is refused without a record
            self._note(action, DeniedError(f"unexpected error: {type(exc).__name__}"), now)
            raise

    def _attest(self, session: str, body: object, *, now: datetime) -> dict[str, object]:
        """Verify evidence and return the attestation result.

        Steps: 1. the nonce is this session's, unused and fresh; 2. the evidence verifies; 3. its report data binds
        nonce and guest key; 4. its config id binds the init data; 5. the init data holds a job document in canonical
        form, so that all that is said about it later can be written down.
        """
        waiting = self.sessions.take(session)  # 1. used up, whatever comes of it
        request = AttestRequest.from_json(body)
        if waiting is None or waiting.nonce != request.nonce:
            raise UnattestedError(_NO_NONCE, hint="begin again with /auth")
        key = request.tee_key()
        trust = self._service.trusted()
        evidence = request.read_evidence(waiting.tee)
        claims = verify_any(evidence, self.endorsements.choices(trust.anchors, now), now=now)  # 2.
        claims = replace(claims, limits=claims.limits + evidence.unread)
        check_report_data(claims, request.report_data())  # 3.
        if request.init_data is None:
            raise DeniedError("the guest sent no init data")
        files = check_init_data(claims, request.init_data, key.init_data)  # 4.
        document = _job_document(files.get(JOB_FILE, ""))  # 5.
        job = "sha256:" + init_data_digest(request.init_data).hex()
        guest = Guest(
            claims=claims,
            job=job,
            document=document,
            nonce=waiting.nonce,
            public_key=key.key,
            tls_spki=key.tls_spki or "",
            run_id=secrets.token_hex(16),
            expires_at=self._uptime() + trust.lease_s,
        )
        changes = trust.changes.get(claims.root_fingerprint, 0)
        token = self._result(guest, now, trust.lease_s)
        self.sessions.add(session, guest, changes=changes, held_chars=len(request.init_data), token=token)
        return {"token": token}

    def _result(self, guest: Guest, now: datetime, lease_s: int, policy_id: str = NOT_APPRAISED, **found: bool) -> str:
        # What a key's policy says is decided per key, so until a guest asks for one nobody has appraised anything.
        return issue_ear(
            guest.claims,
            policy_id=policy_id,
            **{"appraised": False, **found},
            nonce=guest.nonce,
            key=self._service.parts.identity,
            now=now,
            lifetime=timedelta(seconds=lease_s),
            job_digest=guest.job,
            receiver=guest.public_key,
        )

    def jwks(self) -> dict[str, object]:
        """Return the key that signs attestation results, as a JWK set (RFC 7517); a locked service knows of none."""
        key = self._service.parts.identity.public_key()
        return {"keys": [jose.jwk(key, alg="ES256", use="sig", kid=x509.spki_id(key))]}

    def guest(self, session: str, *, now: datetime) -> Guest:
        """Return the attested guest of a session.

        Raises:
            UnattestedError: There is none; recorded under the admin.
        """
        guest = self.sessions.guest(session, lambda root: self._service.trusted().changes.get(root, 0))
        if guest is None:
            refusal = UnattestedError("this session has not attested", hint="begin again with /auth")
            self._note("session", refusal, now)
            raise refusal
        return guest

    def _note(self, action: str, refusal: StrongroomError, now: datetime) -> None:
        # A stranger belongs to no owner and can come as often as it likes: bounded, and under the admin.
        with self._lock:
            missed = self._strangers.take(now)
        if missed is None or self._service.locked:
            return
        reason = str(refusal)[:2000].encode("utf-8", "replace").decode()
        _log.warning("refused a stranger action=%s code=%s reason=%.1000r", action, refusal.code, reason)
        subjects = {"attest": "evidence", "certificate": "evidence", "commit": "signature"}
        details: dict[str, object] = {"code": refusal.code, "reasons": [reason], "not_recorded": missed}
        try:
            with self._service.store.transaction() as tx:
                self._service.parts.audit.append(
                    tx,
                    now=now,
                    owner=self._service.admin,
                    actor="stranger",
                    action=action,
                    subject=subjects.get(action, "no session"),
                    allowed=False,
                    details=details,
                )
        except StrongroomError as exc:  # it is refused all the same
            _log.error("a refused stranger is not in the audit log reason=%s", exc)

    def resource(
        self, session: str, owner: str, kind: str, tag: str, *, now: datetime, by_token: bool = False
    ) -> dict[str, str]:
        """Return a resource as a flattened JWE.

        It is `<owner>/key/<name>`, or `<owner>/ear/<name>`, the attestation result of the same decision about that key.
        `by_token`: the request shows the session's token, as whoever has seen that can.
        """
        guest = replace(self.guest(session, now=now), by_token=by_token)
        if kind not in ("key", "ear"):
            raise InputError(
                f"there are no resources of type {kind!r}", hint="expected <owner>/key/<name> or <owner>/ear/<name>"
            )
        wanted, broker = KeyWanted(owner=owner, name=tag), self._service.parts.broker
        if kind == "key":
            released = broker.release(guest, wanted, now=now, uptime_s=self._uptime())
        else:
            policy_id, named, lease_s = broker.accept(guest, wanted, now=now, uptime_s=self._uptime())
            token = self._result(guest, now, lease_s, policy_id, appraised=True, job_named=named)
            released = jose.jwe_seal(token.encode(), guest.public_key)
        self.guest(session, now=now)  # an owner's module may have been waited for: is its root believed still?
        return released

    def certificate(self, session: str, body: CertificateRequest, *, now: datetime) -> dict[str, object]:
        """Return a certificate for the guest's TLS key, with the evidence for that key that the request carries."""
        guest = self.guest(session, now=now)
        with self._noted("certificate", now, StrongroomError):
            evidence = self._shown(guest, body.csr, now)
        certified = self._service.parts.broker.certify(
            guest, body.csr, evidence=evidence, now=now, uptime_s=self._uptime()
        )
        self.guest(session, now=now)
        return certified

    def _shown(self, guest: Guest, csr: str, now: datetime) -> bytes:
        """Return the evidence in a certificate request: for its key, in answer to this session's nonce, for its job.

        It proves what the session's evidence proved, which is what policies are asked about. How good the platform is
        was judged then, for one lease.
        """
        if (raw := x509.extension_of_csr(csr, ratls.EXTENSION)) is None:
            oid = ratls.EXTENSION.dotted_string
            raise EvidenceError(f"certificate request: expected the extension {oid}, got none")
        choices = self.endorsements.choices(self._service.trusted().anchors, now)
        claims = ratls.verify_extension(
            raw,
            x509.public_key_of_csr(csr),
            lambda one: verify_any(one, choices, now=now),
            nonce=guest.nonce.encode(),
            job=guest.job,
        )
        found = claims.to_json()
        for name, expected in guest.claims.to_json().items():
            if name not in _STATUS and found[name] != expected:
                raise VerificationError(
                    f"certificate request: {name}: expected {expected} as attested, got {found[name]}"
                )
        return raw

    def commit(self, session: str, body: SignedCommit, *, now: datetime) -> dict[str, object]:
        """Advance a data set's head for the guest's job."""
        guest = self.guest(session, now=now)
        with self._noted("commit", now, DeniedError, VerificationError):
            said = _signed(guest, body)
        step = Step(epoch=said.epoch, manifest=said.manifest, new_manifest=said.new_manifest, versions=said.versions)
        inputs = {volume: {"epoch": read.epoch, "manifest": read.manifest} for volume, read in said.inputs.items()}
        head = self._service.parts.broker.commit(
            guest, said.dataset, step, inputs=inputs, now=now, uptime_s=self._uptime()
        )
        if head is None:
            return {"held": True}
        return {"head": head, "signed": self._service.parts.datasets.signed(head)}


def _job_document(text: str) -> dict[str, object]:
    # It is JSON in a text of the request, so the request's own limits did not see inside.
    document = parse_bounded(text, "the job document", max_bytes=MAX_JOB_BYTES)
    canonical = canonical_json(document).decode("utf-8")
    if not isinstance(document, dict) or canonical != text:
        raise InputError("the job document is not a canonical JSON object")
    return document


def _signed(guest: Guest, body: SignedCommit) -> CommitStatement:
    # Whoever took the session off the wire cannot commit: the evidence names the key that signs.
    key = jose.jwk_public_key(body.key)
    if (spki := x509.spki_id(key)) != guest.tls_spki:
        raise DeniedError(f"the commit: expected the signature of {guest.tls_spki or 'none'}, got {spki}'s")
    said = jose.verify_jws(body.signed, [key], typ=COMMIT_TYPE)
    check_bounds(said, "the commit")
    try:
        return msgspec.convert(said, CommitStatement)
    except msgspec.ValidationError as exc:
        raise InputError(f"the commit is not as the protocol defines it: {exc}") from exc
