"""What guests ask and get (docs/formats/release-protocol.md), one record per route, for the OpenAPI document.

The service reads certificate requests and commits by it. The messages of RCAR, here to be described, are read by
`attest.handshake`, which guests use too, and they have no msgspec: tests hold what guests and stock clients send, and
each answer, against these types; so does `make fuzz`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from strongroom.attest.binding import MAX_INIT_DATA_BYTES
from strongroom.kms.messages import MAX_LEASE_S, Body, Digest, JSONObject, Route
from strongroom.service.answers import Answer, Head

__all__ = ["ANSWERS", "ROUTES", "AttestRequest", "CertificateRequest", "CommitStatement", "SignedCommit"]

_Nonce = Annotated[str, msgspec.Meta(min_length=16, max_length=256)]
_Member = Annotated[str, msgspec.Meta(max_length=128)]
_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class AuthRequest(Body):
    """Which TEE the guest will claim to be in; what `extra-params` says is ignored."""

    version: Literal["0.4.0"]
    tee: Literal["sgx", "tdx", "snp"]
    extra_params: object = msgspec.field(name="extra-params", default=None)


class Challenge(Answer):
    """A nonce, for one answer within a minute; the session is in the cookie `kbs-session-id`."""

    nonce: _Nonce
    extra_params: JSONObject = msgspec.field(name="extra-params")


class ECKey(Body, tag_field="kty", tag="EC"):
    """A P-256 key (RFC 7517); the members with x- are Strongroom's."""

    crv: Literal["P-256"]
    x: _Member
    y: _Member
    alg: Literal["ECDH-ES+A256KW"] | msgspec.UnsetType = msgspec.UNSET
    tls_spki: Digest | msgspec.UnsetType = msgspec.field(name="x-tls-spki", default=msgspec.UNSET)
    init_data: Digest | msgspec.UnsetType = msgspec.field(name="x-init-data", default=msgspec.UNSET)


class RSAKey(Body, tag_field="kty", tag="RSA"):
    """An RSA key of 2048 to 4096 bits, of clients of other makers."""

    alg: Literal["RSA-OAEP-256"]
    n: Annotated[str, msgspec.Meta(max_length=1024)]
    e: Literal["AQAB"]
    tls_spki: Digest | msgspec.UnsetType = msgspec.field(name="x-tls-spki", default=msgspec.UNSET)
    init_data: Digest | msgspec.UnsetType = msgspec.field(name="x-init-data", default=msgspec.UNSET)


class RuntimeData(Body):
    """What the evidence's report data is the hash of, beside `additional_evidence`."""

    nonce: Annotated[str, msgspec.Meta(max_length=256)]
    tee_pubkey: ECKey | RSAKey = msgspec.field(name="tee-pubkey")


class InitData(Body):
    """What the guest was started with; it holds the job document, and the evidence binds it."""

    format: Literal["toml"]
    body: Annotated[str, msgspec.Meta(max_length=MAX_INIT_DATA_BYTES)]


class TEEEvidence(Body):
    """A quote, or an SEV-SNP report's fields; nothing of further devices is read."""

    primary_evidence: JSONObject
    additional_evidence: Literal["", "{}"] = ""


class AttestRequest(Body):
    """Evidence, and all that it binds."""

    runtime_data: RuntimeData = msgspec.field(name="runtime-data")
    tee_evidence: TEEEvidence = msgspec.field(name="tee-evidence")
    init_data: InitData | None = msgspec.field(name="init-data", default=None)


class Token(Answer):
    """The attestation result (EAR): a compact JWS."""

    token: str


class FlattenedJWE(Answer):
    """A key, or an attestation result, sealed to the session's `tee-pubkey` (RFC 7516)."""

    protected: str
    encrypted_key: str
    iv: str
    ciphertext: str
    tag: str


class CertificateRequest(Body):
    """A PKCS#10 request in PEM, with evidence for its key in the extension 2.23.133.5.4.9."""

    csr: str


class Certificate(Answer):
    """A certificate for the guest's TLS key, the root that its peers trust, and its lease's rest."""

    certificate: str
    root: str
    lease_s: Annotated[int, msgspec.Meta(ge=1, le=MAX_LEASE_S)]


class SignedCommit(Body):
    """A commit, signed by the key that the evidence names in `x-tls-spki`."""

    key: JSONObject
    signed: str


class CommitInput(Body):
    """The head that the job began with, of one volume."""

    epoch: _Count
    manifest: Digest | None


class CommitStatement(Body):
    """What is signed: the head as the guest knows it, the new one, and which heads the job read, by volume."""

    dataset: str
    epoch: _Count
    manifest: Digest | None
    new_manifest: Digest
    versions: list[int]
    inputs: dict[str, CommitInput]


class Committed(Answer):
    """The new head and the same as a JWS, or that the commit waits for its owner."""

    held: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    head: Head | msgspec.UnsetType = msgspec.UNSET
    signed: str | msgspec.UnsetType = msgspec.UNSET


class SigningKeys(Answer):
    """The keys that sign attestation results, as a JWK set (RFC 7517)."""

    keys: list[dict[str, str]]


ROUTES = (
    Route("POST", "/kbs/v0/auth", "kbs_auth", "Begin a session", AuthRequest),
    Route("POST", "/kbs/v0/attest", "kbs_attest", "Show evidence", AttestRequest),
    Route(
        "GET",
        "/kbs/v0/resource/{repository}/{type}/{tag}",
        "kbs_resource",
        "A key (type key), or the result of the same decision (type ear), of the owner `repository`",
    ),
    Route(
        "POST",
        "/kbs/v0/strongroom/certificate",
        "kbs_certificate",
        "A certificate for the guest's TLS key",
        CertificateRequest,
    ),
    Route(
        "POST",
        "/kbs/v0/strongroom/commit",
        "kbs_commit",
        "Advance the head of a data set that the job writes",
        SignedCommit,
    ),
    Route("GET", "/.well-known/jwks.json", "jwks", "The keys that sign attestation results"),
)
ANSWERS: dict[str, type[Answer]] = {
    "kbs_auth": Challenge, "kbs_attest": Token, "kbs_resource": FlattenedJWE, "kbs_certificate": Certificate,
    "kbs_commit": Committed, "jwks": SigningKeys,
}  # fmt: skip
