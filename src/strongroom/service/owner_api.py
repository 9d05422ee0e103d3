"""The owners' door: one method per route of `kms.messages.ROUTES`, each already authenticated.

Every method works on the caller's own keys, data sets, policies and records; the owner's id comes from the client
certificate, never from the request. With its record it is one transaction. What is about the service itself is in
`admin_api`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import sqlalchemy as sa

from strongroom.crypto import jose
from strongroom.errors import DeniedError, InputError
from strongroom.kms import messages
from strongroom.kms.audit import AuditLog
from strongroom.kms.audit_chain import AuditHead
from strongroom.kms.datasets import Step
from strongroom.kms.job_document import KeyWanted
from strongroom.kms.owners import is_registered
from strongroom.kms.receivers import OwnerReceiver
from strongroom.service.admin_api import AdminAPI
from strongroom.service.calls import Call, body_of, number, record

__all__ = ["OwnerAPI"]

_ALONE = {"status", "evidence", "unlock", "add_owner", "release_key", "rotate_root"}
"""Operations that make transactions of their own, or none."""


class OwnerAPI(AdminAPI):
    """The operations of the owner API on one trust service."""

    def perform(self, name: str, call: Call) -> dict[str, object]:
        """Return the answer of the operation `name` to one request."""
        operation: Callable[..., dict[str, object]] = getattr(self, name)
        if name in _ALONE:
            return operation(call)
        with self._service.store.transaction() as tx:
            return operation(call, tx)

    # --- keys

    def list_keys(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Return the owner's keys."""
        keys = self._service.parts.keys
        return {"keys": [keys.describe(tx, call.owner, name) for name in keys.names(tx, call.owner)]}

    def create_key(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Create a key."""
        body = body_of(call, messages.CreateKey)
        keys = self._service.parts.keys
        keys.create(tx, call.owner, body.name, exportable=body.exportable, now=call.now)
        record(self._service, tx, call, "create-key", f"key {body.name}", {"exportable": body.exportable})
        return keys.describe(tx, call.owner, body.name)

    def show_key(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Return one key."""
        return self._service.parts.keys.describe(tx, call.owner, call.path["key"])

    def rotate_key(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Make a new version."""
        name = call.path["key"]
        version = self._service.parts.keys.rotate(tx, call.owner, name, now=call.now)
        record(self._service, tx, call, "rotate-key", f"key {name}", {"version": version})
        return self._service.parts.keys.describe(tx, call.owner, name)

    def set_exportable(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Grant or take back export."""
        body, name = body_of(call, messages.SetExportable), call.path["key"]
        self._service.parts.keys.set_exportable(tx, call.owner, name, body.exportable)
        record(self._service, tx, call, "permit-export", f"key {name}", {"exportable": body.exportable})
        return self._service.parts.keys.describe(tx, call.owner, name)

    def release_key(self, call: Call) -> dict[str, object]:
        """Release the key to its owner, through the gate."""
        body = body_of(call, messages.ReleaseToOwner)
        receiver = OwnerReceiver(
            owner=call.owner, public_key=jose.jwk_public_key(dict(body.public_key)), purpose=body.purpose
        )
        wanted = KeyWanted(owner=call.owner, name=call.path["key"])
        uptime_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        return {"jwe": self._service.parts.broker.release(receiver, wanted, now=call.now, uptime_s=uptime_s)}

    def enable(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Enable a version."""
        return self._set_enabled(call, tx, True)

    def disable(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Disable a version."""
        return self._set_enabled(call, tx, False)

    def _set_enabled(self, call: Call, tx: sa.Connection, enabled: bool) -> dict[str, object]:
        name, version = call.path["key"], call.number("version")
        self._service.parts.keys.set_enabled(tx, call.owner, name, version, enabled)
        action = "enable-version" if enabled else "disable-version"
        record(self._service, tx, call, action, f"key {name}", {"version": version})
        return self._service.parts.keys.describe(tx, call.owner, name)

    def destroy(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Schedule a version's destruction."""
        body, name, version = body_of(call, messages.DestroyVersion), call.path["key"], call.number("version")
        keys = self._service.parts.keys
        wait = timedelta(seconds=body.wait_s)
        when = keys.schedule_destroy(tx, call.owner, name, version, now=call.now, wait=wait)
        details: dict[str, object] = {"version": version, "at": when.isoformat()}
        record(self._service, tx, call, "destroy-version", f"key {name}", details)
        self._service.destroy_due(tx, now=call.now)
        return keys.describe(tx, call.owner, name)

    # --- policies and requests

    def show_policy(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Return the key's policy."""
        self._service.parts.keys.describe(tx, call.owner, call.path["key"])
        return self._service.parts.policies.get(tx, call.owner, call.path["key"])

    def put_policy(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Replace the key's policy if it is still the revision the owner saw."""
        body, name, policies = body_of(call, messages.PutPolicy), call.path["key"], self._service.parts.policies
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
        record(self._service, tx, call, "set-policy", f"key {name}", details)
        return policies.get(tx, call.owner, name)

    def list_requests(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Return refused jobs."""
        return {"requests": self._service.parts.policies.requests(tx, call.owner)}

    def show_request(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Return one refused job."""
        return self._service.parts.policies.request(tx, call.owner, call.number("number"))

    def close_request(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Dismiss a refused job."""
        body, number = body_of(call, messages.CloseRequest), call.number("number")
        self._service.parts.policies.close_request(tx, call.owner, number, body.state)
        record(self._service, tx, call, "dismiss-request", f"request {number}")
        return self._service.parts.policies.request(tx, call.owner, number)

    # --- data sets

    def list_datasets(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Return the heads of the owner's data sets."""
        return {"datasets": self._service.parts.datasets.all(tx, call.owner)}

    def create_dataset(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Register a data set."""
        body = body_of(call, messages.CreateDataset)
        self._service.parts.keys.describe(tx, call.owner, body.key)
        head = self._service.parts.datasets.create(tx, call.owner, body.key, now=call.now)
        record(self._service, tx, call, "create-dataset", f"data set {head['dataset']}", {"key": body.key})
        return self._signed(head)

    def show_dataset(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Return a data set's signed head."""
        return self._signed(self._service.parts.datasets.head(tx, call.owner, call.path["dataset"]))

    def commit(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Advance a head."""
        body, dataset = body_of(call, messages.Commit), call.path["dataset"]
        step = Step(epoch=body.epoch, manifest=body.manifest, new_manifest=body.new_manifest, versions=body.versions)
        head = self._service.parts.datasets.commit(tx, call.owner, dataset, step, now=call.now)
        details: dict[str, object] = {"epoch": head["epoch"], "manifest": body.new_manifest}
        record(self._service, tx, call, "commit", f"data set {dataset}", details)
        return self._signed(head)

    def list_outputs(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Return the outputs that wait."""
        return {"outputs": self._service.parts.datasets.all_held(tx, call.owner)}

    def decide_output(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Commit an output that waits, or forget it."""
        body, dataset = body_of(call, messages.DecideOutput), call.path["dataset"]
        approve = body.state == "approved"
        head = self._service.parts.datasets.decide_held(
            tx, call.owner, dataset, manifest=body.manifest, approve=approve, now=call.now
        )
        details: dict[str, object] = {"epoch": head["epoch"], "manifest": body.manifest}
        action = "approve-output" if approve else "reject-output"
        record(self._service, tx, call, action, f"data set {dataset}", details)
        return self._signed(head)

    def accept_epoch(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Accept a restored manifest."""
        body, dataset = body_of(call, messages.AcceptEpoch), call.path["dataset"]
        head = self._service.parts.datasets.accept(
            tx, call.owner, dataset, manifest=body.manifest, versions=body.versions, now=call.now
        )
        details: dict[str, object] = {"epoch": head["epoch"], "manifest": body.manifest}
        record(self._service, tx, call, "accept-epoch", f"data set {dataset}", details)
        return self._signed(head)

    def forget_dataset(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Forget a data set."""
        dataset = call.path["dataset"]
        self._service.parts.datasets.forget(tx, call.owner, dataset)
        record(self._service, tx, call, "forget-dataset", f"data set {dataset}")
        return {"dataset": dataset}

    def _signed(self, head: dict[str, object]) -> dict[str, object]:
        return {"head": head, "signed": self._service.parts.datasets.signed(head)}

    # --- audit, and who may ask

    def list_audit(self, call: Call, tx: sa.Connection) -> dict[str, object]:
        """Return audit records: the owner's own in full, of the others the hashes."""
        after, limit = (number(n, call.query.get(n, d)) for n, d in (("after", "0"), ("limit", "1000")))
        records = self._service.parts.audit.export(tx, call.owner, after=after, limit=max(1, min(limit, 1000)))
        return {"records": records}

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
