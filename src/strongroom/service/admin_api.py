"""The owners' door, what is about the service itself: its state, evidence, owners, trust and root key."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import msgspec
import sqlalchemy as sa

from strongroom import __version__
from strongroom._encoding import b64u_decode, parse_bounded
from strongroom.attest import ratls
from strongroom.attest.makers import MAKERS
from strongroom.attest.verifiers.choose import snp_rules
from strongroom.crypto import jose, x509
from strongroom.errors import DeniedError, InputError
from strongroom.kms import messages
from strongroom.kms.audit_chain import AuditHead
from strongroom.kms.owners import add_owner, list_owners, revoke_owner
from strongroom.service import trust
from strongroom.service.calls import Call, body_of, record
from strongroom.service.state import TrustService

__all__ = ["AdminAPI"]

_OUTSIDE = (
    "this trust service runs outside a TEE: whoever owns its machine has its keys, and its owners have to trust them"
)
_EVIDENCE_LIFETIME = timedelta(minutes=5)
_T = TypeVar("_T")


class AdminAPI:
    """What owners, and most of it the administrator alone, may ask of the service itself.

    Args:
        service: The unlocked or locked service.
        reload_tls: Called when other certificates of owners count.
    """

    def __init__(self, service: TrustService, reload_tls: Callable[[], None] = lambda: None) -> None:
        self._service = service
        self._reload_tls = reload_tls
        self._quoting = threading.Lock()  # attesters answer one request at a time

    def status(self, call: Call) -> dict[str, object]:
        """Return what this service is, trusts and runs on."""
        service, believed = self._service, self._service.trusted()
        return {
            "version": __version__,
            "locked": service.locked,
            "root_kind": service.root_kind,
            "identity": service.identity_pem,
            "anchors": [dict(a) for a in believed.anchors],
            "owner": call.owner,
            "admin": call.owner == service.admin,
            "attested": service.attester is not None,
            "lease_s": believed.lease_s,
            "seal_to": jose.jwk(service.unlock_key.public_key()),
            "note": _OUTSIDE if service.attester is None else "it offers evidence: `strongroom service verify`",
        }

    def evidence(self, call: Call) -> dict[str, object]:
        """Return evidence of the service's TEE for the caller's nonce, in a certificate of its key (`ratls`)."""
        service, body = self._service, body_of(call, messages.AskEvidence)
        if service.attester is None:
            raise DeniedError(_OUTSIDE, hint="its administrator: `strongroom service start --enclave KIND`")
        with self._quoting:
            locked = service.locked  # one look for key and claims: it may be unlocked meanwhile
            certificate = ratls.make_certificate(
                service.unlock_key if locked else service.parts.identity,
                service.attester,
                now=call.now,
                lifetime=_EVIDENCE_LIFETIME,
                nonce=b64u_decode(body.nonce),
                root_kind=service.root_kind,
                admin="" if locked else service.born_for,
                locked=locked,
            )
        return {"certificate": x509.certificate_pem(certificate), "locked": locked}

    def unlock(self, call: Call) -> dict[str, object]:
        """Unlock the root key."""
        body = body_of(call, messages.Unlock)
        if body.sealed:
            body = self._opened(body.sealed, messages.Unlock)
        if not body.credentials:
            raise InputError("credentials: expected a passphrase or shares, got none")
        seen = None if body.seen is None else AuditHead(seq=body.seen.seq, chain=body.seen.chain)
        self._service.unlock(body.credentials, now=call.now, seen=seen)
        with self._service.store.transaction() as tx:
            record(self._service, tx, call, "unlock", self._service.root_kind)
        self._reload_tls()
        return {"locked": False}

    def add_owner(self, call: Call) -> dict[str, object]:
        """Register an owner."""
        body = body_of(call, messages.AddOwner)
        with self._service.store.transaction() as tx:
            owner = add_owner(tx, body.name, body.certificate, now=call.now)
            record(self._service, tx, call, "add-owner", body.name, {"owner": owner})
        self._reload_tls()
        return {"owner": owner, "name": body.name}

    def list_owners(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Return the registered owners."""
        return {"owners": list_owners(tx)}

    def revoke_owner(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Let an owner in no more; jobs get no key of theirs from now on."""
        owner = call.path["owner"]
        if owner == self._service.admin:
            raise InputError("the owner who administers this service cannot be revoked")
        name = revoke_owner(tx, owner)
        record(self._service, tx, call, "revoke-owner", name, {"owner": owner})
        return {"owner": owner, "name": name}

    def set_lease(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Set the lease of guests that attest from now on."""
        body = body_of(call, messages.SetLease)
        trust.set_lease(tx, body.lease_s)
        record(self._service, tx, call, "set-lease", f"{body.lease_s} s")
        return {"lease_s": body.lease_s}

    def trust_root(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Believe evidence under a maker's root."""
        body = body_of(call, messages.TrustRoot)
        if body.own_root == (body.fingerprint in MAKERS):
            raise InputError(f"root: expected Intel's or AMD's, or own_root, got {body.fingerprint[:16]}")
        settings: dict[str, str] = {str(name): value for name, value in body.settings.items()}
        snp_rules(settings)
        anchor = {"kind": "hardware", "fingerprint": body.fingerprint, **settings}
        trust.add_root(tx, anchor)
        record(self._service, tx, call, "trust-root", body.fingerprint, dict(anchor))
        return {**anchor}

    def distrust_root(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Believe nothing under a root any more; guests that attested under it have to attest again."""
        fingerprint = call.path["fingerprint"]
        trust.take_root_back(tx, fingerprint)
        record(self._service, tx, call, "distrust-root", fingerprint)
        return {"fingerprint": fingerprint}

    def rotate_root(self, call: Call) -> dict[str, object]:
        """Rotate the root key."""
        body = body_of(call, messages.RotateRoot)
        options = self._opened(body.sealed, dict[str, str]) if body.sealed else body.options
        if body.kind == "keyfile" and self._service.attester is not None:
            raise InputError(
                "root kind keyfile: expected one that people or the TEE keep, as this service runs in one",
                hint="--kind tee, or shares",
            )
        if body.prepare:
            name, handout = self._service.prepare_root(body.kind, options)
            return {"prepared": name, "root_kind": self._service.root_kind, "handout": handout}
        handout = self._service.rotate_root(body.kind, options, actor=call.actor, now=call.now, prepared=body.prepared)
        return {"root_kind": body.kind, "handout": handout}

    def _opened(self, sealed: dict[str, str], kind: type[_T]) -> _T:
        try:
            with jose.jwe_open(sealed, self._service.unlock_key) as raw:
                return msgspec.convert(parse_bounded(raw, "what was sealed"), kind)
        except msgspec.ValidationError as exc:
            raise InputError(f"what was sealed is not as the API defines it: {exc}") from exc
