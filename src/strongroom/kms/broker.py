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

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypedDict

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec

from strongroom._encoding import b64u, canonical_json
from strongroom._secret import SecretBytes
from strongroom.attest.appraisal import AppraisalContext, appraise, names_job, references, rego_modules
from strongroom.attest.claims import Claims
from strongroom.attest.rego import asking_apart
from strongroom.crypto import jose, x509
from strongroom.errors import AppraisalError, DeniedError, InputError, StrongroomError, UnattestedError
from strongroom.kms.audit import AuditLog
from strongroom.kms.ca import WorkloadCA
from strongroom.kms.datasets import DatasetStore
from strongroom.kms.keys import KeyStore
from strongroom.kms.owners import is_registered
from strongroom.kms.policies import OutputRule, PolicyStore, difference
from strongroom.kms.repeats import HourlyLimit, Repeats
from strongroom.kms.stores.sql import SQLStore, owners

__all__ = ["Broker", "Guest", "KeyWanted", "OwnerReceiver"]

_log = logging.getLogger(__name__)

MIN_LEASE_S = 60
_EPOCH = re.compile("[0-9]{1,15}")
"""A release is good for at least this long: no guest receives a key that it has to give back at once."""
MAX_CERTIFICATE = timedelta(days=30)
CERTIFICATE_SPARE = timedelta(minutes=10)
"""A job's time begins after its certificate's, and its last connections are made at its end."""
MAX_REFUSALS_PER_HOUR = 500
"""Of guests, recorded in full for one owner. Each could come as another job."""
_MAX_LINES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """An attested guest: what verification proved, and the key that answers are sealed to.

    Attributes:
        claims: Proven by the quote.
        job: `sha256:<hex>` of the init-data that the quote binds.
        document: The job document in that init-data.
        nonce: The session's challenge, which the evidence answered.
        public_key: The guest's fresh key, bound by the report data.
        tls_spki: SPKI id of the guest's TLS key, bound alike; "" if it has none.
        run_id: Of this session, 16 bytes in hex.
        expires_at: End of the lease, in seconds of CLOCK_BOOTTIME.
    """

    claims: Claims
    job: str
    document: Mapping[str, object]
    nonce: str
    public_key: jose.ReceiverKey
    tls_spki: str
    run_id: str
    expires_at: float

    @property
    def actor(self) -> str:
        """How the audit log calls this guest."""
        own = f"own root {self.claims.root_fingerprint[:16]} "
        kind = {"simulated": "SIMULATED ", "own": own}.get(self.claims.root, "")
        return f"{kind}guest {self.claims.measurement.hex()[:16]} job {self.job[7:23]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerReceiver:
    """The authenticated owner, with the fresh key of this request."""

    owner: str
    public_key: ec.EllipticCurvePublicKey
    purpose: Literal["data", "export"]

    @property
    def actor(self) -> str:
        """How the audit log calls this owner."""
        return f"owner {self.owner[:16]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyWanted:
    """A named key of an owner."""

    owner: str
    name: str


class _Step(TypedDict):
    epoch: int
    manifest: str | None
    new_manifest: str
    versions: list[int]


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
        self._audit = audit
        self._ca = ca
        self._repeats = Repeats()
        self._limits: dict[str, HourlyLimit] = {}  # by owner; changed inside transactions, so one at a time

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
        try:
            with self._store.transaction() as tx:
                details = self._decide(tx, receiver, wanted, uptime_s)
                payload = self._payload(tx, receiver, wanted, uptime_s)
                self._record(tx, receiver, wanted, now, allowed=True, details=details)
        except Exception as refusal:  # also the unforeseen: nothing is refused without a record
            self._refuse(receiver, wanted, refusal, now)
            raise
        return jose.jwe_seal(canonical_json(payload), receiver.public_key)

    @asking_apart
    def commit(
        self,
        guest: Guest,
        dataset: str,
        *,
        epoch: int,
        manifest: str | None,
        new_manifest: str,
        versions: list[int],
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
        wanted = KeyWanted(owner="", name="")
        try:
            volumes = [v for v in _volumes(guest.document) if v["dataset"] == dataset]
            volumes.sort(key=lambda v: v["mode"] != "rw")  # the one that may be written, if any, decides about the key
            wanted = next((KeyWanted(owner=v["owner"], name=v["key"]) for v in volumes), wanted)
            with self._store.transaction() as tx:
                if not volumes or volumes[0]["mode"] != "rw":
                    raise DeniedError(f"the job may not write data set {dataset:.64}: its spec does not say rw")
                by = self._decide(tx, guest, wanted, uptime_s)
                if self._datasets.head(tx, wanted.owner, dataset)["key"] != wanted.name:
                    raise DeniedError(f"data set {dataset} is not under key {wanted.name!r}")
                origin = {"run": guest.run_id, "inputs": _inputs(guest.document, inputs, wanted.owner)}
                step: _Step = {"epoch": epoch, "manifest": manifest, "new_manifest": new_manifest, "versions": versions}
                details = {"dataset": dataset, "epoch": epoch + 1, "manifest": new_manifest, **origin, **_by(by)}
                head = None
                if self._waits(tx, guest.document, wanted.owner):
                    document = {**origin, "job": guest.job, "claims": guest.claims.to_json()}
                    self._datasets.hold(tx, wanted.owner, dataset, **step, document=document, now=now)
                    self._append(tx, guest, wanted, "hold", now, allowed=True, details=details)
                else:
                    head = self._datasets.commit(tx, wanted.owner, dataset, **step, now=now)
                    self._append(tx, guest, wanted, "commit", now, allowed=True, details=details)
        except Exception as refusal:  # also the unforeseen: nothing is refused without a record
            self._refuse(guest, wanted, refusal, now, action="commit")
            raise
        return head

    def _waits(self, tx: sa.Connection, document: Mapping[str, object], owner: str) -> bool:
        mine = [key for key in _needed(document) if key.owner == owner]
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
        names: list[KeyWanted] = []
        try:
            names = _needed(guest.document)
            spki = x509.spki_id(x509.public_key_of_csr(csr))
            if not guest.tls_spki or spki != guest.tls_spki:
                bound = guest.tls_spki or "none"
                raise DeniedError(f"the certificate request is for key {spki}, the evidence binds {bound}")
            if not names:
                raise DeniedError("the job names no key, so no owner can say who its peers are")
            lifetime = min(timedelta(seconds=_max_runtime_s(guest.document)), MAX_CERTIFICATE) + CERTIFICATE_SPARE
            with self._store.transaction() as tx:
                by = [self._decide(tx, guest, wanted, uptime_s) for wanted in names]
                lease_s = _lease_s(guest, uptime_s)
                pem = self._ca.issue(
                    csr, job=guest.job, owner=names[0].owner, evidence=evidence, now=now, lifetime=lifetime
                )
                for wanted, decided in zip(names, by, strict=True):
                    details = {"spki": spki, **_by(decided)}
                    self._append(tx, guest, wanted, "certificate", now, allowed=True, details=details)
        except Exception as refusal:  # also the unforeseen: nothing is refused without a record
            self._refuse(guest, names[0] if names else KeyWanted(owner="", name=""), refusal, now, action="certificate")
            raise
        return {"certificate": pem, "root": self._ca.root_pem, "lease_s": lease_s}

    @asking_apart
    def accept(self, guest: Guest, wanted: KeyWanted, *, now: datetime, uptime_s: float) -> tuple[str, bool, int]:
        """Return by which policies the guest would have the key: their id, whether they name its job, its lease's rest.

        Nothing secret leaves; it is the decision of `release`, which a result may then tell others.

        Raises:
            AppraisalError, DeniedError: As for `release`.
        """
        try:
            with self._store.transaction() as tx:
                details = self._decide(tx, guest, wanted, uptime_s)
                uses = _uses(guest.document, wanted)
                policies = [self._policies.policy(tx, wanted.owner, wanted.name, use) for use in uses]
                lease_s = _lease_s(guest, uptime_s)
                self._append(tx, guest, wanted, "result", now, allowed=True, details=details)
        except Exception as refusal:  # also the unforeseen: nothing is refused without a record
            self._refuse(guest, wanted, refusal, now, action="result")
            raise
        named = all(policy is not None and names_job(policy) for policy in policies)
        return f"{wanted.owner}/key/{wanted.name}#{details['policy_revision']}", named, lease_s

    # --- step 1 and 2: who, and may it

    def _decide(
        self, tx: sa.Connection, receiver: Guest | OwnerReceiver, wanted: KeyWanted, uptime_s: float
    ) -> dict[str, object]:
        if isinstance(receiver, OwnerReceiver):
            if receiver.owner != wanted.owner:
                raise DeniedError("the key is another owner's")
            if receiver.purpose == "export" and not self._keys.exportable(tx, wanted.owner, wanted.name):
                raise DeniedError(
                    f"key {wanted.name!r} may not be exported", hint=f"`strongroom key permit-export {wanted.name}`"
                )
            return {"purpose": receiver.purpose}
        _check_lease(receiver, uptime_s)
        uses = _uses(receiver.document, wanted)
        if not uses:
            raise DeniedError(f"the job does not use key {wanted.name!r} of this owner")
        reasons = self._reasons(tx, receiver, wanted)
        if reasons:
            raise AppraisalError(reasons)
        self._check_others(tx, receiver, wanted)
        self._keys.check_enabled(tx, wanted.owner, wanted.name)
        policy = self._policies.get(tx, wanted.owner, wanted.name)
        by = {"policy_revision": policy["revision"], "policy_set": policy["updated"]}
        return {"uses": uses, **by, **self._references(tx, receiver, wanted, uses)}

    def _references(self, tx: sa.Connection, guest: Guest, wanted: KeyWanted, uses: Sequence[str]) -> dict[str, object]:
        context = AppraisalContext(claims=guest.claims, job=dict(guest.document))
        policies = [self._policies.policy(tx, wanted.owner, wanted.name, use) for use in uses]
        found = {name for policy in policies if policy is not None for name in references(policy, context)}
        modules = {digest for policy in policies if policy is not None for digest in rego_modules(policy)}
        return {name: sorted(values) for name, values in (("references", found), ("rego", modules)) if values}

    def _reasons(self, tx: sa.Connection, guest: Guest, wanted: KeyWanted) -> list[str]:
        if not is_registered(tx, wanted.owner):
            return [f"the owner of key {wanted.name!r} is not registered here, or was revoked"]
        reasons: list[str] = []
        for use in _uses(guest.document, wanted):
            policy = self._policies.policy(tx, wanted.owner, wanted.name, use)
            if policy is None:
                reasons.append(f"{use}: key {wanted.name!r} has no policy for this use: expected one, got none")
                continue
            try:
                appraise(policy, AppraisalContext(claims=guest.claims, job=dict(guest.document)))
            except AppraisalError as exc:
                reasons += [f"{use}: {reason}" for reason in exc.reasons]
        others = [v["name"] for v in _volumes(guest.document) if v["mode"] == "rw" and v["owner"] != wanted.owner]
        if others and self._policies.outputs(tx, wanted.owner, wanted.name).approval:
            reasons.append(f"outputs: expected volumes of this owner, who approves them, got another's: {others[0]}")
        return reasons

    def _check_others(self, tx: sa.Connection, guest: Guest, wanted: KeyWanted) -> None:
        # Which key is missing is said, since the job names it; why is between the guest and that key's owner.
        for other in _needed(guest.document):
            if other != wanted and self._reasons(tx, guest, other):
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
        key = self._keys.release(tx, wanted.owner, wanted.name)
        payload: dict[str, object] = {
            "type": "key",
            "name": key.name,
            "owner": key.owner,
            "current": key.current,
            "versions": {str(number): _reveal(secret) for number, secret in key.versions.items()},
        }
        if isinstance(receiver, Guest):
            payload["heads"] = self._heads(tx, receiver, wanted)
            rule = self._policies.outputs(tx, wanted.owner, wanted.name)
            waits = self._waits(tx, receiver.document, wanted.owner)
            payload["outputs"] = OutputRule(max_bytes=rule.max_bytes, approval=waits).to_json()
            payload["run_id"] = receiver.run_id
            payload["lease_s"] = _lease_s(receiver, uptime_s)
        return payload

    def _heads(self, tx: sa.Connection, guest: Guest, wanted: KeyWanted) -> dict[str, str]:
        heads = {}
        for volume in _volumes(guest.document):
            if (volume["owner"], volume["key"]) != (wanted.owner, wanted.name):
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

    # --- step 4: the record

    def _record(
        self,
        tx: sa.Connection,
        receiver: Guest | OwnerReceiver,
        wanted: KeyWanted,
        now: datetime,
        *,
        allowed: bool,
        details: dict[str, object],
    ) -> None:
        action = "release"
        if isinstance(receiver, OwnerReceiver):
            action = "export" if receiver.purpose == "export" else "release-to-owner"
        self._append(tx, receiver, wanted, action, now, allowed=allowed, details=details)

    def _append(
        self,
        tx: sa.Connection,
        receiver: Guest | OwnerReceiver,
        wanted: KeyWanted,
        action: str,
        now: datetime,
        *,
        allowed: bool,
        details: dict[str, object],
    ) -> None:
        if isinstance(receiver, Guest):
            details = {**details, "job": receiver.job, "claims": receiver.claims.to_json()}
        self._audit.append(
            tx,
            now=now,
            owner=wanted.owner,
            actor=receiver.actor,
            action=action,
            subject=f"key {wanted.name:.64}" if wanted.name else "no key",
            allowed=allowed,
            details=details,
        )

    def _refuse(
        self,
        receiver: Guest | OwnerReceiver,
        wanted: KeyWanted,
        refusal: Exception,
        now: datetime,
        action: str = "",
    ) -> None:
        reasons = refusal.reasons if isinstance(refusal, AppraisalError) else [str(refusal)]
        if not isinstance(refusal, StrongroomError):  # its text may hold anything
            reasons = [f"unexpected error: {type(refusal).__name__}"]
        # What a refused guest wrote into its job document must not fill the owner's log.
        reasons = [_short(reason) for reason in reasons[:_MAX_LINES]]
        details: dict[str, object] = {"reasons": reasons}
        kind = None
        if isinstance(receiver, Guest):
            measurement = receiver.claims.measurement.hex()
            kind = (wanted.owner, wanted.name[:64], receiver.job, measurement, action, type(refusal).__name__)
        with self._store.transaction() as tx:
            if tx.execute(sa.select(owners.c.id).where(owners.c.id == wanted.owner)).first() is None:
                _log.warning("refused about an unknown owner actor=%s reason=%.200r", receiver.actor, reasons[:1])
                return  # nobody could read the record
            known = wanted.name in self._keys.names(tx, wanted.owner)
            if known and isinstance(receiver, Guest) and isinstance(refusal, AppraisalError):
                changes = self._pending(tx, receiver, wanted, reasons, now)
                refusal.details.update(changes)
                details.update(changes)
            if kind is not None:
                repeated = self._repeats.missed(kind, now)
                if repeated is None:
                    return  # one of this kind was recorded within the hour
                left_out = self._limits.setdefault(wanted.owner, HourlyLimit(MAX_REFUSALS_PER_HOUR)).take(now)
                if left_out is None:
                    _log.warning("refused and not recorded actor=%s reason=%.200r", receiver.actor, reasons[:1])
                    return
                details |= {"repeated": repeated} if repeated else {}
                details |= {"not_recorded": left_out} if left_out else {}
            if action:
                self._append(tx, receiver, wanted, action, now, allowed=False, details=details)
            else:
                self._record(tx, receiver, wanted, now, allowed=False, details=details)
        if kind is not None:
            self._repeats.recorded(kind, now)

    def _pending(
        self, tx: sa.Connection, guest: Guest, wanted: KeyWanted, reasons: list[str], now: datetime
    ) -> dict[str, object]:
        last = self._policies.last_approved(tx, wanted.owner, wanted.name)
        changes: list[str] = []
        if isinstance(last, dict):
            changes = difference(last.get("job_document"), dict(guest.document))
            known = last.get("claims") or {}
            changes += difference(known, {k: v for k, v in guest.claims.to_json().items() if k in known}, "claims")
            noise = ("claims.report_data", "claims.config_id", "claims.tcb_age_days", "claims.limits")
            changes = [line for line in changes if not line.startswith(noise)]
            changes = [_short(line) for line in changes[:_MAX_LINES]]
        document = {
            "job_document": dict(guest.document),
            "claims": guest.claims.to_json(),
            "uses": _uses(guest.document, wanted),
            "reasons": reasons,
            "difference": changes,
        }
        number = self._policies.record_refusal(
            tx,
            wanted.owner,
            wanted.name,
            job=guest.job,
            measurement=guest.claims.measurement.hex(),
            document=document,
            now=now,
        )
        return {"request": number, "difference": changes}


def _reveal(secret: SecretBytes) -> str:
    with secret as raw:
        return b64u(raw)


def _short(line: str) -> str:
    return line if len(line) <= 2000 else line[:1997] + "..."


def _check_lease(guest: Guest, uptime_s: float) -> None:
    if uptime_s >= guest.expires_at:
        raise UnattestedError("the guest's lease has ended", hint="attest again")


def _lease_s(guest: Guest, uptime_s: float) -> int:
    left_s = int(guest.expires_at - uptime_s)
    if left_s < MIN_LEASE_S:
        raise UnattestedError(
            f"the guest's lease: expected at least {MIN_LEASE_S} s for a release, got {left_s} s", hint="attest again"
        )
    return left_s


def _volumes(document: Mapping[str, object]) -> list[dict[str, str]]:
    volumes = document.get("volumes")
    if not isinstance(volumes, list) or not all(isinstance(v, dict) for v in volumes):
        raise InputError("the job document has no list of volumes")
    needed = ("name", "dataset", "key", "owner", "mode")
    for volume in volumes:
        if any(not isinstance(volume.get(k), str) for k in needed) or volume["mode"] not in ("ro", "rw"):
            raise InputError(f"a volume of the job document has {', '.join(needed)}, mode ro or rw")
    at_kbs = document.get("kbs")
    names = [
        str(v.get("name")) for v in (*volumes, *(at_kbs if isinstance(at_kbs, list) else ())) if isinstance(v, dict)
    ]
    if len(set(names)) != len(names):
        raise InputError("two volumes of the job document have one name")
    return [{k: str(v) for k, v in volume.items()} for volume in volumes]


def _by(decided: Mapping[str, object]) -> dict[str, object]:
    # Who allowed it, when, and by which values; the uses are the release's.
    return {name: decided[name] for name in ("policy_revision", "policy_set", "references", "rego") if name in decided}


def _inputs(
    document: Mapping[str, object], read: Mapping[str, Mapping[str, object]], owner: str
) -> list[dict[str, object]]:
    # Of another owner's volume the log of this one has the name in the job, no more.
    found: list[dict[str, object]] = []
    volumes = _volumes(document)
    if set(read) != {volume["name"] for volume in volumes}:
        raise InputError("commit: inputs names the volumes of the job, each of them")
    for volume in volumes:
        own = {k: volume[k] for k in ("dataset", "key")} | {**read.get(volume["name"], {})}
        found.append({"volume": volume["name"], **(own if volume["owner"] == owner else {})})
    # What a KBS has the key of is pinned by the document; last, for a commit is found by the first of its data set.
    at_kbs = document.get("kbs", [])
    if not isinstance(at_kbs, list) or not all(
        isinstance(v, dict) and _EPOCH.fullmatch(str(v.get("epoch"))) for v in at_kbs
    ):
        raise InputError("kbs of the job document is no list of pinned volumes")
    pinned = [{k: str(v.get(k)) for k in ("dataset", "key", "manifest")} | {"epoch": int(v["epoch"])} for v in at_kbs]
    return found + [
        {"volume": str(v["name"]), "kbs": str(v["owner"]), **own} for v, own in zip(at_kbs, pinned, strict=True)
    ]


def _keys(document: Mapping[str, object]) -> list[tuple[KeyWanted, str]]:
    """Return each key that the job uses, for a volume or for columns, with the mode."""
    found = [(KeyWanted(owner=v["owner"], name=v["key"]), v["mode"]) for v in _volumes(document)]
    keys = document.get("keys", [])
    if not isinstance(keys, list) or not all(isinstance(k, dict) for k in keys):
        raise InputError("the keys of the job document are no list of objects")
    for key in keys:
        if any(not isinstance(key.get(k), str) for k in ("name", "owner")) or key.get("mode") not in ("ro", "rw"):
            raise InputError("a key of the job document has name, owner, mode ro or rw")
        found.append((KeyWanted(owner=key["owner"], name=key["name"]), key["mode"]))
    return found


def _needed(document: Mapping[str, object]) -> list[KeyWanted]:
    return list(dict.fromkeys(wanted for wanted, _ in _keys(document)))


def _uses(document: Mapping[str, object], wanted: KeyWanted) -> list[str]:
    modes = {mode for key, mode in _keys(document) if key == wanted}
    return (["read"] if modes else []) + (["write"] if "rw" in modes else [])


def _max_runtime_s(document: Mapping[str, object]) -> int:
    limits = document.get("limits")
    value = limits.get("max_runtime_s") if isinstance(limits, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else 86_400
