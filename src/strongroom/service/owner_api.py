"""The owners' door: one method per route of `kms.messages.ROUTES`, each already authenticated.

Every method works on the caller's own keys, data sets, policies and records; the owner's id comes from the client
certificate, never from the request.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
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
from strongroom.kms.audit import AuditHead, AuditLog
from strongroom.kms.job_document import KeyWanted
from strongroom.kms.owners import add_owner, is_registered, list_owners, revoke_owner
from strongroom.kms.receivers import OwnerReceiver
from strongroom.service import trust
from strongroom.service.state import TrustService

__all__ = ["Call", "OwnerAPI"]

_OUTSIDE = (
    "this trust service runs outside a TEE: whoever owns its machine has its keys, and its owners have to trust them"
)
_EVIDENCE_LIFETIME = timedelta(minutes=5)
_B = TypeVar("_B", bound=messages.Body)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One authenticated request.

    Attributes:
        owner: Fingerprint of the client certificate.
        path: Path parameters.
        query: Query parameters.
        body: Parsed body.
        now: UTC.
    """

    owner: str
    path: dict[str, str]
    query: dict[str, str]
    body: messages.Body
    now: datetime

    @property
    def actor(self) -> str:
        """How the audit log calls the caller."""
        return f"owner {self.owner[:16]}"

    def number(self, name: str) -> int:
        """Return a whole number from the path."""
        return _number(name, self.path[name])


class OwnerAPI:
    """The operations of the owner API on one trust service."""

    def __init__(self, service: TrustService, reload_tls: object = None) -> None:
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
        service, body = self._service, _body(call, messages.AskEvidence)
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
        body = _body(call, messages.Unlock)
        if body.sealed:
            body = self._opened(body.sealed, messages.Unlock)
        if not body.credentials:
            raise InputError("credentials: expected a passphrase or shares, got none")
        seen = None if body.seen is None else AuditHead(seq=body.seen.seq, chain=body.seen.chain)
        self._service.unlock(body.credentials, now=call.now, seen=seen)
        with self._service.store.transaction() as tx:
            self._append(tx, call, "unlock", self._service.root_kind)
        if callable(self._reload_tls):
            self._reload_tls()
        return {"locked": False}

    # --- keys

    def list_keys(self, call: Call) -> dict[str, object]:
        """Return the owner's keys."""
        with self._service.store.transaction() as tx:
            keys = self._service.parts.keys
            return {"keys": [keys.describe(tx, call.owner, name) for name in keys.names(tx, call.owner)]}

    def create_key(self, call: Call) -> dict[str, object]:
        """Create a key."""
        body = _body(call, messages.CreateKey)
        with self._service.store.transaction() as tx:
            keys = self._service.parts.keys
            keys.create(tx, call.owner, body.name, exportable=body.exportable, now=call.now)
            self._append(tx, call, "create-key", f"key {body.name}", {"exportable": body.exportable})
            return keys.describe(tx, call.owner, body.name)

    def show_key(self, call: Call) -> dict[str, object]:
        """Return one key."""
        with self._service.store.transaction() as tx:
            return self._service.parts.keys.describe(tx, call.owner, call.path["key"])

    def rotate_key(self, call: Call) -> dict[str, object]:
        """Make a new version."""
        name = call.path["key"]
        with self._service.store.transaction() as tx:
            version = self._service.parts.keys.rotate(tx, call.owner, name, now=call.now)
            self._append(tx, call, "rotate-key", f"key {name}", {"version": version})
            return self._service.parts.keys.describe(tx, call.owner, name)

    def set_exportable(self, call: Call) -> dict[str, object]:
        """Grant or take back export."""
        body, name = _body(call, messages.SetExportable), call.path["key"]
        with self._service.store.transaction() as tx:
            self._service.parts.keys.set_exportable(tx, call.owner, name, body.exportable)
            self._append(tx, call, "permit-export", f"key {name}", {"exportable": body.exportable})
            return self._service.parts.keys.describe(tx, call.owner, name)

    def release_key(self, call: Call) -> dict[str, object]:
        """Release the key to its owner, through the gate."""
        body = _body(call, messages.ReleaseToOwner)
        receiver = OwnerReceiver(
            owner=call.owner, public_key=jose.jwk_public_key(dict(body.public_key)), purpose=body.purpose
        )
        wanted = KeyWanted(owner=call.owner, name=call.path["key"])
        uptime_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        return {"jwe": self._service.parts.broker.release(receiver, wanted, now=call.now, uptime_s=uptime_s)}

    def enable(self, call: Call) -> dict[str, object]:
        """Enable a version."""
        return self._set_enabled(call, True)

    def disable(self, call: Call) -> dict[str, object]:
        """Disable a version."""
        return self._set_enabled(call, False)

    def _set_enabled(self, call: Call, enabled: bool) -> dict[str, object]:
        name, version = call.path["key"], call.number("version")
        with self._service.store.transaction() as tx:
            self._service.parts.keys.set_enabled(tx, call.owner, name, version, enabled)
            action = "enable-version" if enabled else "disable-version"
            self._append(tx, call, action, f"key {name}", {"version": version})
            return self._service.parts.keys.describe(tx, call.owner, name)

    def destroy(self, call: Call) -> dict[str, object]:
        """Schedule a version's destruction."""
        body, name, version = _body(call, messages.DestroyVersion), call.path["key"], call.number("version")
        with self._service.store.transaction() as tx:
            keys = self._service.parts.keys
            wait = timedelta(seconds=body.wait_s)
            when = keys.schedule_destroy(tx, call.owner, name, version, now=call.now, wait=wait)
            details: dict[str, object] = {"version": version, "at": when.isoformat()}
            self._append(tx, call, "destroy-version", f"key {name}", details)
            self._service.destroy_due(tx, now=call.now)
            return keys.describe(tx, call.owner, name)

    # --- policies and requests

    def show_policy(self, call: Call) -> dict[str, object]:
        """Return the key's policy."""
        with self._service.store.transaction() as tx:
            self._service.parts.keys.describe(tx, call.owner, call.path["key"])
            return self._service.parts.policies.get(tx, call.owner, call.path["key"])

    def put_policy(self, call: Call) -> dict[str, object]:
        """Replace the key's policy if it is still the revision the owner saw."""
        body, name, policies = _body(call, messages.PutPolicy), call.path["key"], self._service.parts.policies
        with self._service.store.transaction() as tx:
            self._service.parts.keys.describe(tx, call.owner, name)
            found = policies.get(tx, call.owner, name)["revision"]
            if found != body.revision:
                raise InputError(f"the policy is at revision {found}, expected {body.revision}: read it again")
            revision = policies.put(tx, call.owner, name, body.policy, now=call.now)
            for job in body.approved:
                document = {"job_document": job.document, "claims": job.claims or {"measurement": job.measurement}}
                policies.record_approval(
                    tx, call.owner, name, job=job.job, measurement=job.measurement, document=document, now=call.now
                )
            # A job under several keys has a request under each: this closes the one of this key.
            if body.request is not None and policies.request(tx, call.owner, body.request)["key"] == name:
                policies.close_request(tx, call.owner, body.request, "approved")
            details: dict[str, object] = {"revision": revision, "policy": body.policy}
            self._append(tx, call, "set-policy", f"key {name}", details)
            return policies.get(tx, call.owner, name)

    def list_requests(self, call: Call) -> dict[str, object]:
        """Return refused jobs."""
        with self._service.store.transaction() as tx:
            return {"requests": self._service.parts.policies.requests(tx, call.owner)}

    def show_request(self, call: Call) -> dict[str, object]:
        """Return one refused job."""
        with self._service.store.transaction() as tx:
            return self._service.parts.policies.request(tx, call.owner, call.number("number"))

    def close_request(self, call: Call) -> dict[str, object]:
        """Dismiss a refused job."""
        body, number = _body(call, messages.CloseRequest), call.number("number")
        with self._service.store.transaction() as tx:
            self._service.parts.policies.close_request(tx, call.owner, number, body.state)
            self._append(tx, call, "dismiss-request", f"request {number}")
            return self._service.parts.policies.request(tx, call.owner, number)

    # --- data sets

    def list_datasets(self, call: Call) -> dict[str, object]:
        """Return the heads of the owner's data sets."""
        with self._service.store.transaction() as tx:
            return {"datasets": self._service.parts.datasets.all(tx, call.owner)}

    def create_dataset(self, call: Call) -> dict[str, object]:
        """Register a data set."""
        body = _body(call, messages.CreateDataset)
        with self._service.store.transaction() as tx:
            self._service.parts.keys.describe(tx, call.owner, body.key)
            head = self._service.parts.datasets.create(tx, call.owner, body.key, now=call.now)
            self._append(tx, call, "create-dataset", f"data set {head['dataset']}", {"key": body.key})
            return self._signed(head)

    def show_dataset(self, call: Call) -> dict[str, object]:
        """Return a data set's signed head."""
        with self._service.store.transaction() as tx:
            return self._signed(self._service.parts.datasets.head(tx, call.owner, call.path["dataset"]))

    def commit(self, call: Call) -> dict[str, object]:
        """Advance a head."""
        body, dataset = _body(call, messages.Commit), call.path["dataset"]
        with self._service.store.transaction() as tx:
            head = self._service.parts.datasets.commit(
                tx,
                call.owner,
                dataset,
                epoch=body.epoch,
                manifest=body.manifest,
                new_manifest=body.new_manifest,
                versions=body.versions,
                now=call.now,
            )
            details: dict[str, object] = {"epoch": head["epoch"], "manifest": body.new_manifest}
            self._append(tx, call, "commit", f"data set {dataset}", details)
            return self._signed(head)

    def list_outputs(self, call: Call) -> dict[str, object]:
        """Return the outputs that wait."""
        with self._service.store.transaction() as tx:
            return {"outputs": self._service.parts.datasets.all_held(tx, call.owner)}

    def decide_output(self, call: Call) -> dict[str, object]:
        """Commit an output that waits, or forget it."""
        body, dataset = _body(call, messages.DecideOutput), call.path["dataset"]
        approve = body.state == "approved"
        with self._service.store.transaction() as tx:
            head = self._service.parts.datasets.decide_held(
                tx, call.owner, dataset, manifest=body.manifest, approve=approve, now=call.now
            )
            details: dict[str, object] = {"epoch": head["epoch"], "manifest": body.manifest}
            action = "approve-output" if approve else "reject-output"
            self._append(tx, call, action, f"data set {dataset}", details)
            return self._signed(head)

    def accept_epoch(self, call: Call) -> dict[str, object]:
        """Accept a restored manifest."""
        body, dataset = _body(call, messages.AcceptEpoch), call.path["dataset"]
        with self._service.store.transaction() as tx:
            head = self._service.parts.datasets.accept(
                tx, call.owner, dataset, manifest=body.manifest, versions=body.versions, now=call.now
            )
            details: dict[str, object] = {"epoch": head["epoch"], "manifest": body.manifest}
            self._append(tx, call, "accept-epoch", f"data set {dataset}", details)
            return self._signed(head)

    def forget_dataset(self, call: Call) -> dict[str, object]:
        """Forget a data set."""
        dataset = call.path["dataset"]
        with self._service.store.transaction() as tx:
            self._service.parts.datasets.forget(tx, call.owner, dataset)
            self._append(tx, call, "forget-dataset", f"data set {dataset}")
            return {"dataset": dataset}

    def _signed(self, head: dict[str, object]) -> dict[str, object]:
        return {"head": head, "signed": self._service.parts.datasets.signed(head)}

    # --- audit, owners, root

    def list_audit(self, call: Call) -> dict[str, object]:
        """Return audit records: the owner's own in full, of the others the hashes."""
        after, limit = (_number(n, call.query.get(n, d)) for n, d in (("after", "0"), ("limit", "1000")))
        with self._service.store.transaction() as tx:
            records = self._service.parts.audit.export(tx, call.owner, after=after, limit=max(1, min(limit, 1000)))
        return {"records": records}

    def add_owner(self, call: Call) -> dict[str, object]:
        """Register an owner."""
        body = _body(call, messages.AddOwner)
        with self._service.store.transaction() as tx:
            owner = add_owner(tx, body.name, body.certificate, now=call.now)
            self._append(tx, call, "add-owner", body.name, {"owner": owner})
        if callable(self._reload_tls):
            self._reload_tls()
        return {"owner": owner, "name": body.name}

    def list_owners(self, call: Call) -> dict[str, object]:
        """Return the registered owners."""
        with self._service.store.transaction() as tx:
            return {"owners": list_owners(tx)}

    def revoke_owner(self, call: Call) -> dict[str, object]:
        """Let an owner in no more; jobs get no key of theirs from now on."""
        owner = call.path["owner"]
        if owner == self._service.admin:
            raise InputError("the owner who administers this service cannot be revoked")
        with self._service.store.transaction() as tx:
            name = revoke_owner(tx, owner)
            self._append(tx, call, "revoke-owner", name, {"owner": owner})
        return {"owner": owner, "name": name}

    def set_lease(self, call: Call) -> dict[str, object]:
        """Set the lease of guests that attest from now on."""
        body = _body(call, messages.SetLease)
        with self._service.store.transaction() as tx:
            trust.set_lease(tx, body.lease_s)
            self._append(tx, call, "set-lease", f"{body.lease_s} s")
        return {"lease_s": body.lease_s}

    def trust_root(self, call: Call) -> dict[str, object]:
        """Believe evidence under a maker's root."""
        body = _body(call, messages.TrustRoot)
        if body.own_root == (body.fingerprint in MAKERS):
            raise InputError(f"root: expected Intel's or AMD's, or own_root, got {body.fingerprint[:16]}")
        settings: dict[str, str] = {str(name): value for name, value in body.settings.items()}
        snp_rules(settings)
        anchor = {"kind": "hardware", "fingerprint": body.fingerprint, **settings}
        with self._service.store.transaction() as tx:
            trust.add_root(tx, anchor)
            self._append(tx, call, "trust-root", body.fingerprint, dict(anchor))
        return {**anchor}

    def distrust_root(self, call: Call) -> dict[str, object]:
        """Believe nothing under a root any more; guests that attested under it have to attest again."""
        fingerprint = call.path["fingerprint"]
        with self._service.store.transaction() as tx:
            trust.take_root_back(tx, fingerprint)
            self._append(tx, call, "distrust-root", fingerprint)
        return {"fingerprint": fingerprint}

    def rotate_root(self, call: Call) -> dict[str, object]:
        """Rotate the root key."""
        body = _body(call, messages.RotateRoot)
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

    def _append(
        self,
        tx: sa.Connection,
        call: Call,
        action: str,
        subject: str,
        details: dict[str, object] | None = None,
    ) -> None:
        self._service.parts.audit.append(
            tx,
            now=call.now,
            owner=call.owner,
            actor=call.actor,
            action=action,
            subject=subject,
            allowed=True,
            details=details,
        )

    def check_owner(self, fingerprint: str, seen: AuditHead | None = None) -> None:
        """Refuse certificates that TLS accepts but that no owner has, and owners who saw a newer state than this.

        Such as one that an owner's certificate signed, or a revoked owner's while the service has not restarted.

        Raises:
            DeniedError: Not a registered owner's certificate.
            IntegrityError: The audit log does not go on from what was `seen`.
        """
        with self._service.store.transaction() as tx:
            if not is_registered(tx, fingerprint):
                raise DeniedError("this client certificate is not a registered owner's, or was revoked")
            if seen is not None and not self._service.locked:
                AuditLog.check_extends(tx, seen)

    def check_admin(self, call: Call) -> None:
        """Refuse owners that do not administer this service.

        Raises:
            DeniedError: The caller is another owner.
        """
        if call.owner != self._service.admin:
            raise DeniedError("only the owner who set this service up may do that")


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InputError(f"{name} is a whole number, got {text[:40]!r}")
    return int(text)


def _body(call: Call, kind: type[_B]) -> _B:
    assert isinstance(call.body, kind)
    return call.body
