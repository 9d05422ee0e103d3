"""The guests' door: RCAR (docs/formats/release-protocol.md) and nothing else.

Everything here is said by strangers until evidence is verified, and even then by a guest that a policy has yet to
accept. Nonces are used once; sessions live in memory and end with the lease or the process.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import TypeGuard

from strongroom._encoding import b64u, canonical_json, check_bounds, parse_json
from strongroom.attest import ratls
from strongroom.attest.binding import JOB_FILE, MAX_JOB_BYTES, init_data_digest
from strongroom.attest.claims import check_init_data, check_report_data
from strongroom.attest.endorsement_files import SOON_DAYS, ends, read_folder, stamp_of
from strongroom.attest.endorsement_snp import AnyEndorsements
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.handshake import COMMIT_TYPE, AttestRequest, AuthRequest, Challenge
from strongroom.attest.result import issue_ear, verify_ear
from strongroom.attest.verifiers import AnchoredVerifier, verify_any
from strongroom.attest.verifiers.choose import verifier_for
from strongroom.crypto import jose, x509
from strongroom.errors import (
    AttestationError,
    DeniedError,
    EndorsementError,
    EvidenceError,
    InputError,
    StrongroomError,
    UnattestedError,
    UnavailableError,
    VerificationError,
)
from strongroom.kms.broker import Guest, KeyWanted
from strongroom.kms.repeats import HourlyLimit
from strongroom.service.state import TrustService

__all__ = ["GuestAPI"]

_log = logging.getLogger(__name__)

NONCE_LIFETIME_S = 60.0
_MANIFEST = re.compile(r"sha256:[0-9a-f]{64}")
MAX_WAITING = 32_768
"""More than the rate limit lets begin within a nonce's life, so that strangers cannot fill it."""
MAX_SESSIONS = 65_536
MAX_JOB_DEPTH = 32
MAX_HELD_CHARS = 16 << 20
"""Of init data, over all sessions: what is parsed from it takes some twenty times as much memory."""
_STATUS = {"report_data", "tcb_status", "advisory_ids", "tcb_date", "tcb_age_days", "tcb_eval_number", "tcb", "limits"}
"""Claims that two quotes of one enclave may differ in: what was bound, and what endorsements of the moment say."""
_NO_NONCE = "the nonce is unknown, used or too old"
STRANGERS_RECORDED = 60
"""Refused strangers that are logged and recorded per hour; of the rest only the number is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    nonce: str
    tee: str
    until: float


class GuestAPI:
    """Sessions of guests on one trust service.

    Args:
        service: The unlocked or locked service.
        uptime: Seconds of CLOCK_BOOTTIME, so that a suspended machine does not stretch a lease.
    """

    def __init__(self, service: TrustService, *, uptime: Callable[[], float] | None = None) -> None:
        self._service = service
        self._uptime = uptime or (lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._guests: OrderedDict[str, tuple[Guest, int]] = (
            OrderedDict()
        )  # with the count of changes of trust in its root
        self._held: dict[str, int] = {}  # session -> characters of init data
        self._lock = threading.Lock()
        self._naming = secrets.token_bytes(32)
        self._strangers = HourlyLimit(STRANGERS_RECORDED)
        self._endorsements = _EndorsementFiles(service)

    def auth(self, body: object) -> tuple[str, dict[str, object]]:
        """Begin a session: return its id and the challenge."""
        request = AuthRequest.from_json(body)
        self._service.parts  # noqa: B018  # a locked service says so before it hands out a nonce
        nonce = secrets.token_urlsafe(32)
        session = self._named(nonce)
        with self._lock:
            self._forget_old()
            if len(self._waiting) >= MAX_WAITING:
                raise UnavailableError("too many guests wait to attest")
            self._waiting[session] = _Waiting(nonce=nonce, tee=request.tee, until=self._uptime() + NONCE_LIFETIME_S)
        return session, Challenge(nonce=nonce).to_json()

    def _named(self, nonce: str) -> str:
        # A token tells others the nonce: only this process finds the session by it.
        return b64u(hmac.digest(self._naming, nonce.encode(), "sha256"))

    def session_of(self, token: str, *, now: datetime) -> str:
        """Return the session that an attestation result of this service is about, "" if it is no such result."""
        try:
            result = verify_ear(token, [self._service.parts.identity.public_key()], now)
        except VerificationError:
            return ""
        return self._named(str(result.get("eat_nonce")))

    def knows(self, session: str) -> bool:
        """Return whether `session` has begun or attested: whether its sender is worth reading a request of."""
        with self._lock:
            return session in self._guests or session in self._waiting

    def check_begun(self, session: str, *, now: datetime) -> None:
        """Return only if `session` has a challenge to answer.

        Raises:
            UnattestedError: It has none; recorded under the admin.
        """
        with self._lock:
            begun = session in self._waiting
        if not begun:
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
        with self._lock:
            waiting = self._waiting.pop(session, None)  # 1. used up, whatever comes of it
        request = AttestRequest.from_json(body)
        if waiting is None or waiting.until < self._uptime() or waiting.nonce != request.nonce:
            raise UnattestedError(_NO_NONCE, hint="begin again with /auth")
        key = request.tee_key()
        trust = self._service.trusted()
        evidence = request.read_evidence(waiting.tee)
        claims = verify_any(evidence, self._choices(trust.anchors, now), now=now)  # 2.
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
        with self._lock:
            self._guests[session] = guest, trust.changes.get(claims.root_fingerprint, 0)
            self._held[session] = len(request.init_data)
            while len(self._guests) > MAX_SESSIONS:
                self._held.pop(self._guests.popitem(last=False)[0])
            # The largest goes first: a flood of large documents pushes out itself, and no honest job.
            while sum(self._held.values()) > MAX_HELD_CHARS:
                largest = max(self._held, key=self._held.__getitem__)
                del self._held[largest], self._guests[largest]
        return {"token": self._result(guest, now, trust.lease_s)}

    def _result(
        self, guest: Guest, now: datetime, lease_s: int, policy_id: str = "verification-only", **found: bool
    ) -> str:
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
        with self._lock:
            guest, change = self._guests.get(session, (None, 0))
        if guest is not None and self._service.trusted().changes.get(guest.claims.root_fingerprint, 0) != change:
            guest = None  # what it has shown was judged by a trust that was taken back
            with self._lock:
                self._held.pop(session, None)
                self._guests.pop(session, None)
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

    def resource(self, session: str, owner: str, kind: str, tag: str, *, now: datetime) -> dict[str, str]:
        """Return a resource as a flattened JWE.

        It is `<owner>/key/<name>`, or `<owner>/ear/<name>`, the attestation result of the same decision about that key.
        """
        guest = self.guest(session, now=now)
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

    def certificate(self, session: str, body: object, *, now: datetime) -> dict[str, object]:
        """Return a certificate for the guest's TLS key, with the evidence for that key that the request carries."""
        guest = self.guest(session, now=now)
        csr = _fields(body, {"csr"})["csr"]
        if not isinstance(csr, str):
            raise InputError("csr is PEM text")
        with self._noted("certificate", now, StrongroomError):
            evidence = self._shown(guest, csr, now)
        certified = self._service.parts.broker.certify(guest, csr, evidence=evidence, now=now, uptime_s=self._uptime())
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
        choices = self._choices(self._service.trusted().anchors, now)
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

    def commit(self, session: str, body: object, *, now: datetime) -> dict[str, object]:
        """Advance a data set's head for the guest's job."""
        guest = self.guest(session, now=now)
        try:
            said = _signed(guest, body)
        except (DeniedError, VerificationError) as refusal:
            self._note("commit", refusal, now)
            raise
        fields = _fields(said, {"dataset", "epoch", "manifest", "new_manifest", "versions", "inputs"})
        dataset, epoch, manifest = fields["dataset"], fields["epoch"], fields["manifest"]
        new_manifest, versions = fields["new_manifest"], fields["versions"]
        if not isinstance(dataset, str) or not _is_number(epoch) or not isinstance(new_manifest, str):
            raise InputError("commit: dataset and new_manifest are text, epoch is a number")
        if not isinstance(versions, list) or not all(_is_number(v) for v in versions):
            raise InputError("commit: versions is a list of numbers")
        head = self._service.parts.broker.commit(
            guest,
            dataset,
            epoch=epoch,
            manifest=None if manifest is None else str(manifest),
            new_manifest=new_manifest,
            versions=versions,
            inputs=_inputs(fields["inputs"]),
            now=now,
            uptime_s=self._uptime(),
        )
        if head is None:
            return {"held": True}
        return {"head": head, "signed": self._service.parts.datasets.signed(head)}

    def _choices(
        self, anchors: Sequence[Mapping[str, str]], now: datetime
    ) -> list[tuple[AnchoredVerifier, AnyEndorsements]]:
        choices: list[tuple[AnchoredVerifier, AnyEndorsements]] = []
        found, refused = self._endorsements.current(anchors, now)
        for anchor, endorsements in found:
            for trusted in anchors:
                if (anchor.fingerprint, anchor.kind) == (trusted["fingerprint"], trusted["kind"]):
                    choices.append((verifier_for(anchor, endorsements, trusted), endorsements))
        if not choices:
            why = "".join(f"; {reason}" for reason in refused)
            raise EndorsementError(
                f"the trust service has no endorsements for any root it trusts{why}",
                hint="`strongroom attest endorsements fetch`; SIMULATED: `strongroom service refresh-endorsements`",
            )
        return choices

    def _forget_old(self) -> None:
        uptime = self._uptime()
        while self._waiting and next(iter(self._waiting.values())).until < uptime:
            self._waiting.popitem(last=False)
        while self._guests and next(iter(self._guests.values()))[0].expires_at < uptime:
            self._held.pop(self._guests.popitem(last=False)[0])


class _EndorsementFiles:
    """Endorsements as files, `{"anchor": ..., "endorsements": [...]}`, read again when folder or trust changes.

    The files are the host's word: the chain in them ends in an anchor that the database names, every part is signed
    under it, and none is older than one that was seen before, or they are not used. What is refused stops no other.
    """

    def __init__(self, service: TrustService) -> None:
        self._service = service
        self._known: tuple[object, list[tuple[TrustAnchor, AnyEndorsements]], list[str]] = (None, [], [])
        self._warned: date | None = None

    def current(
        self, anchors: Sequence[Mapping[str, str]], now: datetime
    ) -> tuple[list[tuple[TrustAnchor, AnyEndorsements]], list[str]]:
        """Return what may be used under `anchors`, and why the rest may not."""
        folder = self._service.folder / "endorsements"
        trusted = frozenset((a["fingerprint"], a["kind"]) for a in anchors)
        stamp = (trusted, stamp_of(folder))
        before, found, refused = self._known
        if stamp != before:
            found, refused = read_folder(folder)
            found = [(anchor, one) for anchor, one in found if (anchor.fingerprint, anchor.kind) in trusted]
            found, more = self._service.renewed(found)
            refused += more
            self._known = (stamp, found, refused)
            for reason in refused:
                _log.warning("endorsements are not used reason=%s", reason)
        if self._warned != now.date():  # once a day, for the day after the last every guest is refused
            self._warned = now.date()
            for days, text in ends(found, now):
                if days < SOON_DAYS:
                    _log.warning("endorsements end days=%d %s", days, text)
        return found, refused


def _job_document(text: str) -> dict[str, object]:
    # It is JSON in a text of the request, so the request's own limits did not see inside.
    document = parse_json(text, "the job document", max_bytes=MAX_JOB_BYTES)
    check_bounds(document, "the job document", max_depth=MAX_JOB_DEPTH)
    canonical = canonical_json(document).decode("utf-8")
    if not isinstance(document, dict) or canonical != text:
        raise InputError("the job document is not a canonical JSON object")
    return document


def _signed(guest: Guest, body: object) -> dict[str, object]:
    # Whoever took the session off the wire cannot commit: the evidence names the key that signs.
    fields = _fields(body, {"key", "signed"})
    jwk, signed = fields["key"], fields["signed"]
    if not isinstance(jwk, dict) or not isinstance(signed, str):
        raise InputError("commit: key is a JWK, signed is text")
    key = jose.jwk_public_key(jwk)
    if (spki := x509.spki_id(key)) != guest.tls_spki:
        raise DeniedError(f"the commit: expected the signature of {guest.tls_spki or 'none'}, got {spki}'s")
    said = jose.verify_jws(signed, [key], typ=COMMIT_TYPE)
    check_bounds(said, "the commit", max_depth=MAX_JOB_DEPTH)
    return said


def _inputs(value: object) -> dict[str, dict[str, object]]:
    if not isinstance(value, dict) or not all(isinstance(one, dict) for one in value.values()):
        raise InputError("commit: inputs is an object of objects")
    for one in value.values():
        manifest = one.get("manifest")
        if set(one) != {"epoch", "manifest"} or not _is_number(one["epoch"]) or one["epoch"] < 0:
            raise InputError("commit: an input has epoch and manifest")
        if manifest is not None and (not isinstance(manifest, str) or not _MANIFEST.fullmatch(manifest)):
            raise InputError("commit: an input's manifest is named sha256:<64 hex digits>")
    return value


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _fields(body: object, expected: set[str]) -> Mapping[str, object]:
    if not isinstance(body, dict) or set(body) != expected:
        raise InputError(f"expected the fields {', '.join(sorted(expected))}")
    return body
