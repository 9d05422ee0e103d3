"""What the owner API answers, for its OpenAPI document: keys, policies, data sets, audit log, owners, state.

Nothing is made from these types: tests hold each route's answer against its own, and `make fuzz` does. The other routes
answer with documents of jobs, whose members are the jobs' own.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from strongroom.kms.messages import MAX_LEASE_S, Digest, JSONObject, Name

__all__ = ["ANSWERS", "Answer", "Head"]

_Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
_DatasetId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$", max_length=32)]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Answer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of all answers."""


class KeyVersion(Answer):
    """One version of a key; times are ISO 8601, UTC."""

    version: _Count
    state: Literal["enabled", "disabled", "destroying", "destroyed"]
    created: str
    destroy_at: str | None


class Key(Answer):
    """The public facts of a key."""

    name: Name
    owner: _Hex
    exportable: bool
    created: str
    versions: list[KeyVersion]


class Keys(Answer):
    """All keys of the caller."""

    keys: list[Key]


class SealedKey(Answer):
    """A key as a flattened JWE (RFC 7516) to the public key of the request."""

    jwe: dict[str, str]


class KeyPolicy(Answer):
    """A key's release policy by use; revision 0 is none."""

    key: Name
    revision: _Count
    policy: JSONObject
    updated: str | msgspec.UnsetType = msgspec.UNSET


class Head(Answer):
    """What a data set is now; no manifest while it is empty."""

    dataset: _DatasetId
    epoch: _Count
    key: Name
    manifest: Digest | None
    owner: _Hex


class SignedHead(Answer):
    """A head, and the same as a JWS by the service's identity key."""

    head: Head
    signed: str


class DatedHead(Head):
    """A head, and when the data set was registered and last committed to."""

    created: str
    updated: str


class Heads(Answer):
    """Heads of all data sets of the caller."""

    datasets: list[DatedHead]


class ForgottenDataset(Answer):
    """The data set that is no more."""

    dataset: _DatasetId


class AuditRecord(Answer):
    """One record: of another owner's the hashes alone."""

    seq: _Count
    record: str | None
    owner_tag: str
    record_hash: str
    chain: _Hex
    head: str


class AuditRecords(Answer):
    """Records in their order."""

    records: list[AuditRecord]


class Owner(Answer):
    """An owner, by certificate fingerprint."""

    owner: _Hex
    name: Name


class RegisteredOwner(Owner):
    """An owner as the administrator sees them."""

    created: str
    revoked: bool


class Owners(Answer):
    """All owners, in the order in which they came."""

    owners: list[RegisteredOwner]


class Status(Answer):
    """What this service is and trusts."""

    version: str
    locked: bool
    root_kind: str
    identity: str
    anchors: list[dict[str, str]]
    owner: _Hex
    admin: bool
    attested: bool
    lease_s: Annotated[int, msgspec.Meta(ge=120, le=MAX_LEASE_S)]
    seal_to: dict[str, str]
    note: str


class Unlocked(Answer):
    """The service is not locked any more."""

    locked: bool


class Evidence(Answer):
    """Evidence of the service's TEE in a certificate, PEM."""

    certificate: str
    locked: bool


class Lease(Answer):
    """The lease of guests that attest from now on."""

    lease_s: int


ANSWERS: dict[str, type[Answer]] = {
    **dict.fromkeys(("create_key", "show_key", "rotate_key", "set_exportable", "enable", "disable", "destroy"), Key),
    **dict.fromkeys(("create_dataset", "show_dataset", "commit", "accept_epoch", "decide_output"), SignedHead),
    **dict.fromkeys(("show_policy", "put_policy"), KeyPolicy),
    **dict.fromkeys(("add_owner", "revoke_owner"), Owner),
    "status": Status, "unlock": Unlocked, "evidence": Evidence, "list_keys": Keys, "release_key": SealedKey,
    "list_datasets": Heads, "forget_dataset": ForgottenDataset, "list_audit": AuditRecords, "list_owners": Owners,
    "set_lease": Lease,
}  # fmt: skip
"""By route."""
