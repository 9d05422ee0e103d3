"""The owner API's contract: one record per route. The service parses by it, the OpenAPI page is made from it.

Unknown fields are errors. The guests' protocol is RCAR and lives in `attest.handshake`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["MAX_LEASE_S", "ROUTES", "Route"]

MAX_LEASE_S = 3600

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Digest = Annotated[str, msgspec.Meta(pattern="^sha256:[0-9a-f]{64}$", max_length=71)]
"""Patterns alone would let a line end follow."""
JSONObject = dict[str, object]


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of all request bodies."""


class Empty(Body):
    """No fields."""


class CreateKey(Body):
    """A new named key; `exportable` decides whether the purpose `export` is answered: a guard against accidents."""

    name: Name
    exportable: bool = False


class SetExportable(Body):
    """Whether the purpose `export` is answered; a guard against accidents, not against the owner."""

    exportable: bool


class DestroyVersion(Body):
    """Destroy a version after a waiting time."""

    wait_s: Annotated[int, msgspec.Meta(ge=0, le=365 * 86_400)] = 7 * 86_400


class ReleaseToOwner(Body):
    """Give the key to its owner, sealed to a fresh public key (JWK, P-256)."""

    public_key: dict[str, str]
    purpose: Literal["data", "export"] = "data"


class Approved(Body):
    """A job that the owner allows, kept so that a later refusal can say what differs."""

    job: Digest
    measurement: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64,128}$(?!\n)")]
    document: JSONObject
    claims: JSONObject = {}


class PutPolicy(Body):
    """The key's whole release policy; `revision` is the one it replaces."""

    policy: JSONObject
    revision: int
    approved: list[Approved] = []
    request: Annotated[int, msgspec.Meta(ge=1, lt=2**53)] | None = None


class CloseRequest(Body):
    """Dismiss a pending request."""

    state: Literal["dismissed"]


class CreateDataset(Body):
    """A new, empty data set under a key."""

    key: Name


class Commit(Body):
    """Advance a data set's head by compare-and-swap."""

    epoch: Annotated[int, msgspec.Meta(ge=0)]
    manifest: Digest | None
    new_manifest: Digest
    versions: list[Annotated[int, msgspec.Meta(ge=1)]]


class AcceptEpoch(Body):
    """Make a restored manifest the head, on purpose."""

    manifest: Digest
    versions: list[Annotated[int, msgspec.Meta(ge=1)]]


class DecideOutput(Body):
    """Commit an output that waits, or refuse it; `manifest` is the one that the owner looked at."""

    manifest: Digest
    state: Literal["approved", "rejected"]


class AddOwner(Body):
    """Register another owner by certificate."""

    name: Name
    certificate: Annotated[str, msgspec.Meta(max_length=8192)]


class SeenHead(Body):
    """The newest record of the audit log that the caller saw."""

    seq: Annotated[int, msgspec.Meta(ge=1)]
    chain: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]


class Unlock(Body):
    """Passphrase, or one share per entry, and what the state must not be older than.

    Or the same as a JWE to the key that a locked service's evidence names.
    """

    credentials: Annotated[list[str], msgspec.Meta(max_length=16)] = []
    seen: SeenHead | None = None
    sealed: dict[str, str] = {}


class AskEvidence(Body):
    """Evidence of the TEE that the service runs in, for the caller's own nonce: 32 bytes, base64url."""

    nonce: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{43}$", max_length=43)]


class TrustRoot(Body):
    """A maker's root certificate, by its SHA-256; `settings` for AMD's: minimum_tcb, minimum_abi, smt, cxl, vlek.

    `own_root` says that the owner means a root that is no known maker's.
    """

    fingerprint: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
    own_root: bool = False
    settings: dict[
        Literal["minimum_tcb", "minimum_abi", "smt", "cxl", "vlek"], Annotated[str, msgspec.Meta(max_length=400)]
    ] = {}


class SetLease(Body):
    """How long a guest that attests from now on may use what is released to it before it has to attest again.

    At least twice what a release must be good for (`receivers.MIN_LEASE_S`): guests renew at half time.
    """

    lease_s: Annotated[int, msgspec.Meta(ge=120, le=MAX_LEASE_S)]


class RotateRoot(Body):
    """Wrap every key under a new root key.

    With `prepare` the new root key is only made and its shares are returned; `prepared` names it in a second request,
    once people hold them, so that a crash in between loses nothing. `sealed` are the options as a JWE to the status's
    `seal_to`: a passphrase.
    """

    kind: Literal["keyfile", "passphrase", "shares", "tee"]
    options: dict[str, str] = {}
    sealed: dict[str, str] = {}
    prepare: bool = False
    prepared: str = ""


class Route(msgspec.Struct, frozen=True):
    """One operation of the owner API."""

    method: str
    path: str
    name: str
    summary: str
    body: type[Body] = Empty
    admin: bool = False
    locked: bool = False  # works while the service is locked


ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/status", "status", "What this service is and trusts", locked=True),
    Route("POST", "/v1/unlock", "unlock", "Unlock the root key", Unlock, admin=True, locked=True),
    Route("POST", "/v1/evidence", "evidence", "Evidence of the service's own TEE", AskEvidence, locked=True),
    Route("GET", "/v1/keys", "list_keys", "The owner's keys"),
    Route("POST", "/v1/keys", "create_key", "Create a key", CreateKey),
    Route("GET", "/v1/keys/{key}", "show_key", "One key and its versions"),
    Route("POST", "/v1/keys/{key}/rotate", "rotate_key", "Make a new version for new writes"),
    Route("POST", "/v1/keys/{key}/exportable", "set_exportable", "Grant or take back export", SetExportable),
    Route("POST", "/v1/keys/{key}/release", "release_key", "Release the key to its owner", ReleaseToOwner),
    Route("POST", "/v1/keys/{key}/versions/{version}/enable", "enable", "Enable a version"),
    Route("POST", "/v1/keys/{key}/versions/{version}/disable", "disable", "Disable a version"),
    Route(
        "POST",
        "/v1/keys/{key}/versions/{version}/destroy",
        "destroy",
        "Destroy a version after a waiting time",
        DestroyVersion,
    ),
    Route("GET", "/v1/keys/{key}/policy", "show_policy", "The key's release policy"),
    Route("PUT", "/v1/keys/{key}/policy", "put_policy", "Replace the policy", PutPolicy),
    Route("GET", "/v1/requests", "list_requests", "Refused jobs that wait for the owner"),
    Route("GET", "/v1/requests/{number}", "show_request", "One refused job"),
    Route("POST", "/v1/requests/{number}", "close_request", "Dismiss a request", CloseRequest),
    Route("GET", "/v1/datasets", "list_datasets", "Heads of the owner's data sets"),
    Route("POST", "/v1/datasets", "create_dataset", "Register a data set", CreateDataset),
    Route("GET", "/v1/outputs", "list_outputs", "Outputs that wait for the owner"),
    Route("POST", "/v1/outputs/{dataset}", "decide_output", "Approve or reject an output", DecideOutput),
    Route("GET", "/v1/datasets/{dataset}", "show_dataset", "One data set's signed head"),
    Route("POST", "/v1/datasets/{dataset}/commit", "commit", "Advance the head", Commit),
    Route("POST", "/v1/datasets/{dataset}/accept-epoch", "accept_epoch", "Accept a restored manifest", AcceptEpoch),
    Route("DELETE", "/v1/datasets/{dataset}", "forget_dataset", "Forget a data set"),
    Route("GET", "/v1/audit", "list_audit", "Audit records after ?after=, ?limit="),
    Route("POST", "/v1/owners", "add_owner", "Register an owner", AddOwner, admin=True),
    Route("GET", "/v1/owners", "list_owners", "Registered owners", admin=True),
    Route("DELETE", "/v1/owners/{owner}", "revoke_owner", "Revoke an owner", admin=True),
    Route("PUT", "/v1/anchors", "trust_root", "Trust a root", TrustRoot, admin=True),
    Route("DELETE", "/v1/anchors/{fingerprint}", "distrust_root", "Trust a root no more", admin=True),
    Route("PUT", "/v1/lease", "set_lease", "Set guests' lease", SetLease, admin=True),
    Route("POST", "/v1/root/rotate", "rotate_root", "Rotate the root key", RotateRoot, admin=True),
)
