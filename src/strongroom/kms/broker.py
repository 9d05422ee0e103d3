"""The one gate. Whatever leaves the trust service as a secret passes `Broker.release`.

Steps, in this order; the first that fails ends the release, and each release is one audit record, allowed or denied:

1. the receiver is known: an attested guest whose lease runs, or the authenticated owner of the key;
2. the receiver may have it: every use the job declares for the key is allowed by that use's policy, and so is every
   other key that the job names, whoever owns it (an owner: it is its own key; exporting needs the key's permission);
3. the key has an enabled version, the data sets exist, are under that key, and are at the epoch the job pins;
4. the record is written;
5. the answer is sealed to the receiver's fresh key.

Verification of evidence is `admit`: it turns evidence into a session and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from strongroom._encoding import b64u, canonical_json
from strongroom._secret import SecretBytes
from strongroom.attest.appraisal import appraise, names_job, references, rego_modules
from strongroom.attest.findings import AppraisalContext, Policy
from strongroom.attest.rego import asking_apart
from strongroom.crypto import jose, x509
from strongroom.errors import AppraisalError, DeniedError
from strongroom.kms.audit import AuditLog
from strongroom.kms.ca import WorkloadCA
from strongroom.kms.datasets import DatasetStore, Step
from strongroom.kms.decisions import Decisions
from strongroom.kms.job_document import KeyWanted, made_from, max_runtime_s, needed, uses, volumes
from strongroom.kms.keys import KeyStore
from strongroom.kms.owners import is_registered
from strongroom.kms.policies import OutputRule, PolicyStore
from strongroom.kms.receivers import Guest, OwnerReceiver
from strongroom.kms.stores.sql import SQLStore

__all__ = ["Broker"]

MAX_CERTIFICATE = timedelta(days=30)
CERTIFICATE_SPARE = timedelta(minutes=10)
"""A job's time begins after its certificate's, and its last connections are made at its end."""


class Broker:
    """Decides about releases and commits, and records each decision."""

    def __init__(
        self,
        store: SQLStore,
        keys: KeyStore,
        policies: PolicyStore,
        datasets: DatasetStore,
        audit: AuditLog,
        ca: WorkloadCA,
    ) -> None:
        self._store = store
        self._keys = keys
        self._policies = policies
        self._datasets = datasets
        self._ca = ca
        self._decisions = Decisions(store, keys, policies, audit)

    @asking_apart
    def release(
        self, receiver: Guest | OwnerReceiver, wanted: KeyWanted, *, now: datetime, uptime_s: float
    ) -> dict[str, str]:
        """Return the wanted key as a JWE that only the receiver opens.

        Raises:
            AppraisalError: The policy refuses the guest; carries every reason and the pending request's number.
            DeniedError: Another owner's key, an ended lease, no enabled version, no permission to export, or another
                key of the job that is not allowed.
        """
        action = "release"
        if isinstance(receiver, OwnerReceiver):
            action = "export" if receiver.purpose == "export" else "release-to-owner"
        with self._decisions.made(receiver, action, now, wanted) as decision, self._store.transaction() as tx:
            details, _ = self._decide(tx, receiver, wanted, uptime_s)
            payload = self._payload(tx, receiver, wanted, uptime_s)
            self._decisions.allow(tx, decision, details)
        return jose.jwe_seal(canonical_json(payload), receiver.public_key)

    @asking_apart
    def commit(
        self,
        guest: Guest,
        dataset: str,
        step: Step,
        *,
        inputs: Mapping[str, Mapping[str, object]],
        now: datetime,
        uptime_s: float,
    ) -> dict[str, object] | None:
        """Advance a data set's head for a guest that may write; return the new head, None if it waits for approval.

        The record says what the new state was made from: `inputs`, volume -> epoch and manifest, is the attested
        guest's word for which heads it read; the rest of a volume is the job document's.

        Raises:
            AppraisalError, DeniedError: As for `release`, for the use `write`.
            IntegrityError: Another run committed first.
        """
        with self._decisions.made(guest, "commit", now) as decision:
            found = [v for v in volumes(guest.document) if v["dataset"] == dataset]
            found.sort(key=lambda v: v["mode"] != "rw")  # the one that may be written, if any, decides about the key
            decision.wanted = wanted = next((_key(v) for v in found), decision.wanted)
            with self._store.transaction() as tx:
                if not found or found[0]["mode"] != "rw":
                    raise DeniedError(f"the job may not write data set {dataset:.64}: its spec does not say rw")
                by, _ = self._decide(tx, guest, wanted, uptime_s)
                if self._datasets.head(tx, wanted.owner, dataset)["key"] != wanted.name:
                    raise DeniedError(f"data set {dataset} is not under key {wanted.name!r}")
                origin = {"run": guest.run_id, "inputs": made_from(guest.document, inputs, wanted.owner)}
                made = {"dataset": dataset, "epoch": step.epoch + 1, "manifest": step.new_manifest}
                details = {**made, **origin, **_by(by)}
                if self._waits(tx, guest.document, wanted.owner):
                    document = {**origin, "job": guest.job, "claims": guest.claims.to_json()}
                    self._datasets.hold(tx, wanted.owner, dataset, step, document=document, now=now)
                    self._decisions.allow(tx, decision, details, action="hold")
                    return None
                head = self._datasets.commit(tx, wanted.owner, dataset, step, now=now)
                self._decisions.allow(tx, decision, details)
                return head

    def _waits(self, tx: sa.Connection, document: Mapping[str, object], owner: str) -> bool:
        mine = [key for key in needed(document) if key.owner == owner]
        return any(self._policies.outputs(tx, owner, key.name).approval for key in mine)

    @asking_apart
    def certify(self, guest: Guest, csr: str, *, evidence: bytes, now: datetime, uptime_s: float) -> dict[str, object]:
        """Return a certificate for the guest's TLS key, the root that its peers trust, and the lease.

        The certificate lives as long as the job may run. A guest that has it goes on after the lease only if it gets
        another one. In it is `evidence`, made by this guest for this key, as the caller has verified.

        Peers take whoever has the job's certificate for one of them and give it what they were given. The job document
        is the host's choice, so the policies of all its keys have to accept the guest, as for a release.

        Raises:
            AppraisalError: A policy refuses the guest.
            DeniedError: The lease ended, the job names no key, or the request is not for the TLS key that the evidence
                binds.
        """
        with self._decisions.made(guest, "certificate", now) as decision:
            names = needed(guest.document)
            decision.wanted = next(iter(names), decision.wanted)
            spki = x509.spki_id(x509.public_key_of_csr(csr))
            if not guest.tls_spki or spki != guest.tls_spki:
                bound = guest.tls_spki or "none"
                raise DeniedError(f"the certificate request is for key {spki}, the evidence binds {bound}")
            if not names:
                raise DeniedError("the job names no key, so no owner can say who its peers are")
            lifetime = min(timedelta(seconds=max_runtime_s(guest.document)), MAX_CERTIFICATE) + CERTIFICATE_SPARE
            with self._store.transaction() as tx:
                by = [self._decide(tx, guest, wanted, uptime_s)[0] for wanted in names]
                lease_s = guest.lease_s(uptime_s)
                pem = self._ca.issue(
                    csr, job=guest.job, owner=names[0].owner, evidence=evidence, now=now, lifetime=lifetime
                )
                for wanted, decided in zip(names, by, strict=True):
                    self._decisions.allow(tx, decision, {"spki": spki, **_by(decided)}, wanted=wanted)
        return {"certificate": pem, "root": self._ca.root_pem, "lease_s": lease_s}

    @asking_apart
    def accept(self, guest: Guest, wanted: KeyWanted, *, now: datetime, uptime_s: float) -> tuple[str, bool, int]:
        """Return by which policies the guest would have the key: their id, whether they name its job, its lease's rest.

        Nothing secret leaves; it is the decision of `release`, which a result may then tell others.

        Raises:
            AppraisalError, DeniedError: As for `release`.
        """
        with self._decisions.made(guest, "result", now, wanted) as decision, self._store.transaction() as tx:
            details, policies = self._decide(tx, guest, wanted, uptime_s)
            lease_s = guest.lease_s(uptime_s)
            self._decisions.allow(tx, decision, details)
        named = all(names_job(policy) for policy in policies)
        return f"{wanted.owner}/key/{wanted.name}#{details['policy_revision']}", named, lease_s

    # --- step 1 and 2: who, and may it

    def _decide(
        self, tx: sa.Connection, receiver: Guest | OwnerReceiver, wanted: KeyWanted, uptime_s: float
    ) -> tuple[dict[str, object], list[Policy]]:
        # What to record of it, and the policies that accept the guest.
        if isinstance(receiver, OwnerReceiver):
            if receiver.owner != wanted.owner:
                raise DeniedError("the key is another owner's")
            if receiver.purpose == "export" and not self._keys.exportable(tx, wanted.owner, wanted.name):
                raise DeniedError(
                    f"key {wanted.name!r} may not be exported", hint=f"`strongroom key permit-export {wanted.name}`"
                )
            return {"purpose": receiver.purpose}, []
        receiver.check_lease(uptime_s)
        kept = self._policies.get(tx, wanted.owner, wanted.name)
        asked = self._asked(kept, receiver, wanted)
        if not asked:
            raise DeniedError(f"the job does not use key {wanted.name!r} of this owner")
        for key in needed(receiver.document):
            _check_registered(tx, key)
        if reasons := self._reasons(tx, receiver, wanted, asked):
            raise AppraisalError(reasons)
        self._check_others(tx, receiver, wanted)
        self._keys.check_enabled(tx, wanted.owner, wanted.name)
        policies = [policy for policy in asked.values() if policy is not None]
        by = {"policy_revision": kept["revision"], "policy_set": kept["updated"]}
        return {"uses": list(asked), **by, **_named(receiver, policies)}, policies

    def _asked(self, kept: Mapping[str, object], guest: Guest, wanted: KeyWanted) -> dict[str, Policy | None]:
        # By use of the key: who decides about it, if there is anybody.
        return {use: self._policies.policy(kept, use) for use in uses(guest.document, wanted)}

    def _reasons(
        self, tx: sa.Connection, guest: Guest, wanted: KeyWanted, asked: Mapping[str, Policy | None]
    ) -> list[str]:
        reasons: list[str] = []
        for use, policy in asked.items():
            if policy is None:
                reasons.append(f"{use}: key {wanted.name!r} has no policy for this use: expected one, got none")
                continue
            try:
                appraise(policy, _context(guest))
            except AppraisalError as exc:
                reasons += [f"{use}: {reason}" for reason in exc.reasons]
        others = [v["name"] for v in volumes(guest.document) if v["mode"] == "rw" and v["owner"] != wanted.owner]
        if others and self._policies.outputs(tx, wanted.owner, wanted.name).approval:
            reasons.append(f"outputs: expected volumes of this owner, who approves them, got another's: {others[0]}")
        return reasons

    def _check_others(self, tx: sa.Connection, guest: Guest, wanted: KeyWanted) -> None:
        # Which key is missing is said, since the job names it; why is between the guest and that key's owner, unless it
        # was revoked (`_check_registered`).
        for other in needed(guest.document):
            if other == wanted:
                continue
            kept = self._policies.get(tx, other.owner, other.name)
            if self._reasons(tx, guest, other, self._asked(kept, guest, other)):
                whose = "the same owner" if other.owner == wanted.owner else f"owner {other.owner:.16}"
                raise DeniedError(
                    f"key {wanted.name!r} is held back: the job also needs key {other.name!r} of {whose}, "
                    "whose policy does not allow it",
                    hint="each owner of a key that the job names has to allow the job",
                )

    # --- step 3: what

    def _payload(
        self, tx: sa.Connection, receiver: Guest | OwnerReceiver, wanted: KeyWanted, uptime_s: float
    ) -> dict[str, object]:
        versions = self._keys.release(tx, wanted.owner, wanted.name)
        payload: dict[str, object] = {
            "type": "key",
            "name": wanted.name,
            "owner": wanted.owner,
            "current": max(versions),
            "versions": {str(number): _reveal(secret) for number, secret in versions.items()},
        }
        if isinstance(receiver, Guest):
            payload["heads"] = self._heads(tx, receiver, wanted)
            rule = self._policies.outputs(tx, wanted.owner, wanted.name)
            waits = self._waits(tx, receiver.document, wanted.owner)
            payload["outputs"] = OutputRule(max_bytes=rule.max_bytes, approval=waits).to_json()
            payload["run_id"] = receiver.run_id
            payload["lease_s"] = receiver.lease_s(uptime_s)
        return payload

    def _heads(self, tx: sa.Connection, guest: Guest, wanted: KeyWanted) -> dict[str, str]:
        heads = {}
        for volume in volumes(guest.document):
            if _key(volume) != wanted:
                continue
            head = self._datasets.head(tx, wanted.owner, volume["dataset"])
            if volume["mode"] == "rw":  # whoever writes would undo what waits; who reads gets the last approved epoch
                self._datasets.check_none_held(tx, volume["dataset"])
            if head["key"] != wanted.name:
                raise DeniedError(f"data set {volume['dataset']} is under key {head['key']!r}, not {wanted.name!r}")
            pinned = volume.get("epoch")
            if pinned is not None and pinned != str(head["epoch"]):
                raise DeniedError(f"volume {volume['name']}: the job pins epoch {pinned}, got epoch {head['epoch']}")
            heads[volume["dataset"]] = self._datasets.signed(head)
        return heads


def _reveal(secret: SecretBytes) -> str:
    with secret as raw:
        return b64u(raw)


def _key(volume: Mapping[str, str]) -> KeyWanted:
    return KeyWanted(owner=volume["owner"], name=volume["key"])


def _check_registered(tx: sa.Connection, key: KeyWanted) -> None:
    # Denied, not appraised: nobody could approve it.
    if not is_registered(tx, key.owner):
        raise DeniedError(
            f"the owner of key {key.name!r} is not registered here, or was revoked",
            hint="nobody gets their keys any more: take that owner's volumes out of the job, or have the data sealed "
            "anew by an owner whom the service's administrator admits",
        )


def _context(guest: Guest) -> AppraisalContext:
    return AppraisalContext(claims=guest.claims, job=dict(guest.document))


def _named(guest: Guest, policies: Sequence[Policy]) -> dict[str, object]:
    # Which reference values and modules it was accepted by.
    context = _context(guest)
    found = {name for policy in policies for name in references(policy, context)}
    modules = {digest for policy in policies for digest in rego_modules(policy)}
    return {name: sorted(values) for name, values in (("references", found), ("rego", modules)) if values}


def _by(decided: Mapping[str, object]) -> dict[str, object]:
    # Who allowed it, when, and by which values; the uses are the release's.
    return {name: decided[name] for name in ("policy_revision", "policy_set", "references", "rego") if name in decided}
