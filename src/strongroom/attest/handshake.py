"""The messages of the release protocol (KBS RCAR), as values: both sides, no I/O.

Everything that arrives is from the other side's host. Format: docs/formats/release-protocol.md, which follows trustee's
`kbs_attestation_protocol.md`. Rules: sizes are limited, unknown fields are refused, except inside `extra-params`, which
is ignored, and none of it is logged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from strongroom.attest.binding import MAX_INIT_DATA_BYTES, rcar_report_data
from strongroom.attest.evidence import TEES, Evidence
from strongroom.attest.stock_evidence import read_message
from strongroom.crypto.jose import ReceiverKey, jwk, jwk_receiver
from strongroom.crypto.x509 import spki_id
from strongroom.errors import EvidenceError, InputError

__all__ = [
    "COMMIT_TYPE",
    "INIT_DATA",
    "PROTOCOL_VERSION",
    "TLS_SPKI",
    "AttestRequest",
    "AuthRequest",
    "Challenge",
    "TeeKey",
    "tee_pubkey",
]

COMMIT_TYPE = "strongroom-commit+jwt"
"""Of the statement in which a guest asks for a commit; ours (release-protocol.md §6)."""

PROTOCOL_VERSION = "0.4.0"
"""The version that existing clients send and existing services demand (trustee compares for equality)."""

TLS_SPKI = "x-tls-spki"
"""Member of the guest's JWK that names its TLS key; ours (release-protocol.md §3)."""

INIT_DATA = "x-init-data"
"""Member by which an enclave whose config id stays zero, as Gramine's does, says its init data; ours too."""

_MAX_NONCE_CHARS = 256
_SPKI = re.compile(r"sha256:[0-9a-f]{64}")
_JWK_FIELDS = {"EC": frozenset({"kty", "crv", "x", "y"}), "RSA": frozenset({"kty", "n", "e"})}
_NO_DEVICES = ("", "{}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthRequest:
    """`POST /kbs/v0/auth`: the guest says who it will claim to be."""

    tee: str

    def to_json(self) -> dict[str, object]:
        """Return the message."""
        return {"version": PROTOCOL_VERSION, "tee": self.tee, "extra-params": {}}

    @classmethod
    def from_json(cls, value: object) -> AuthRequest:
        """Return the message in `value`.

        Raises:
            InputError: Another shape, protocol version, or a TEE that no verifier here knows.
        """
        fields = _object(value, "auth request", required={"version", "tee"}, optional={"extra-params"})
        version = _string(fields, "version", 32)
        if version != PROTOCOL_VERSION:
            raise InputError(f"auth request: expected protocol version {PROTOCOL_VERSION}, got {version!r}")
        tee = _string(fields, "tee", 32)
        if tee not in TEES:
            raise InputError(f"auth request: expected a TEE of {', '.join(TEES)}, got {tee!r}")
        return cls(tee=tee)


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """The service's answer to `auth`; `nonce` is used once."""

    nonce: str

    def to_json(self) -> dict[str, object]:
        """Return the message."""
        return {"nonce": self.nonce, "extra-params": {}}

    @classmethod
    def from_json(cls, value: object) -> Challenge:
        """Return the message in `value`.

        Raises:
            InputError: Another shape, or a nonce of less than 16 or more than 256 characters.
        """
        fields = _object(value, "challenge", required={"nonce"}, optional={"extra-params"})
        nonce = _string(fields, "nonce", _MAX_NONCE_CHARS)
        if len(nonce) < 16:
            raise InputError("challenge: the nonce is too short to be fresh")
        return cls(nonce=nonce)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeeKey:
    """What a guest's JWK says.

    Attributes:
        key: Receives the keys (ECDH-ES+A256KW, or RSA-OAEP-256 from clients of other makers).
        tls_spki: `sha256:<hex>` of the TLS key's SubjectPublicKeyInfo, None from a client that wants no certificate.
        init_data: `sha256:<hex>` of the init data, None from an enclave whose config id binds it.
    """

    key: ReceiverKey
    tls_spki: str | None
    init_data: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestRequest:
    """`POST /kbs/v0/attest`: evidence, and everything that the evidence binds.

    Attributes:
        nonce: The challenge's, unchanged.
        tee_pubkey: The guest's JWK, every member; `tee_key` reads it.
        evidence: The evidence object, still unread: the session knows its TEE.
        init_data: An Initdata document, None if the measurement holds the job.
        additional_evidence: Evidence of devices; under the hash, not read yet.
    """

    nonce: str
    tee_pubkey: Mapping[str, object]
    evidence: Mapping[str, object] = field(repr=False)
    init_data: str | None = field(default=None, repr=False)
    additional_evidence: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the message."""
        message: dict[str, object] = {
            "runtime-data": {"nonce": self.nonce, "tee-pubkey": dict(self.tee_pubkey)},
            "tee-evidence": {
                "primary_evidence": dict(self.evidence),
                "additional_evidence": self.additional_evidence,
            },
        }
        if self.init_data is not None:
            message["init-data"] = {"format": "toml", "body": self.init_data}
        return message

    @classmethod
    def from_json(cls, value: object) -> AttestRequest:
        """Return the message in `value`.

        Raises:
            InputError: Another shape, unknown fields, or a part that is too large.
        """
        what = "attest request"
        top = _object(value, what, required={"runtime-data", "tee-evidence"}, optional={"init-data"})
        runtime = _object(top["runtime-data"], f"{what}: runtime-data", required={"nonce", "tee-pubkey"})
        proof = _object(
            top["tee-evidence"],
            f"{what}: tee-evidence",
            required={"primary_evidence"},
            optional={"additional_evidence"},
        )
        key = _key(runtime["tee-pubkey"], f"{what}: tee-pubkey")
        primary = proof["primary_evidence"]
        if not isinstance(primary, Mapping):
            raise InputError(f"{what}: primary_evidence is not an object")
        extra = _string(proof, "additional_evidence", 1 << 16) if "additional_evidence" in proof else ""
        return cls(
            nonce=_string(runtime, "nonce", _MAX_NONCE_CHARS),
            tee_pubkey=key,
            evidence=primary,
            init_data=_init_data(top.get("init-data")),
            additional_evidence=extra,
        )

    def tee_key(self) -> TeeKey:
        """Return the guest's keys.

        Raises:
            InputError: No key for ECDH-ES+A256KW or RSA-OAEP-256, or a TLS key's digest of another form.
        """
        spki, init_data = self._digest(TLS_SPKI), self._digest(INIT_DATA)
        return TeeKey(key=jwk_receiver(self.tee_pubkey), tls_spki=spki, init_data=init_data)

    def _digest(self, name: str) -> str | None:
        value = self.tee_pubkey.get(name)
        if value is not None and not (isinstance(value, str) and _SPKI.fullmatch(value)):
            raise InputError(f"attest request: {name} is not sha256:<64 hex digits>")
        return value

    def read_evidence(self, tee: str) -> Evidence:
        """Return the evidence as that of `tee`, the TEE that the session began with.

        Raises:
            EvidenceError: Not the evidence object of `tee`.
        """
        if self.additional_evidence not in _NO_DEVICES:
            # Silently dropping what a guest claims about its devices would let it be read as believed.
            raise EvidenceError("attest request: evidence of further devices is not supported")
        return read_message(self.evidence, tee)

    def report_data(self) -> bytes:
        """Return the 64 bytes that the evidence must carry for this message."""
        return rcar_report_data(self.nonce, self.tee_pubkey, self.additional_evidence)


def tee_pubkey(
    key: ec.EllipticCurvePublicKey, tls_key: ec.EllipticCurvePublicKey | None = None, init_data: str | None = None
) -> dict[str, str]:
    """Return the guest's JWK; with `tls_key`, it names the only TLS key that a certificate will be given to.

    With `init_data`, `sha256:<hex>`, the measured guest says which it has: for an enclave without a config id.

    A stock KBS rebuilds the JWK from the members it knows before it hashes: leave `tls_key` out for one.
    """
    said = ({TLS_SPKI: spki_id(tls_key)} if tls_key else {}) | ({INIT_DATA: init_data} if init_data else {})
    return jwk(key, **said)


def _key(value: object, what: str) -> Mapping[str, object]:
    kind = value.get("kty") if isinstance(value, Mapping) else None
    required = _JWK_FIELDS.get(kind if isinstance(kind, str) else "", _JWK_FIELDS["EC"])
    key = _object(value, what, required=required, optional={"alg", TLS_SPKI, INIT_DATA})
    for name in key:
        _string(key, name, 1024 if name == "n" else 128)
    return key


def _init_data(value: object) -> str | None:
    if value is None:
        return None
    fields = _object(value, "attest request: init-data", required={"format", "body"})
    if fields["format"] != "toml":
        raise InputError(f"attest request: expected init-data in toml, got {fields['format']!r:.40}")
    return _string(fields, "body", MAX_INIT_DATA_BYTES)


def _object(
    value: object, what: str, *, required: frozenset[str] | set[str], optional: set[str] | None = None
) -> Mapping[str, object]:
    allowed = required | (optional or set())
    if not isinstance(value, Mapping) or not required <= set(value) or not set(value) <= allowed:
        got = sorted(map(str, value))[:16] if isinstance(value, Mapping) else type(value).__name__
        raise InputError(f"{what}: expected {sorted(required)} and at most {sorted(allowed)}, got {got}")
    return value


def _string(fields: Mapping[str, object], name: str, limit: int) -> str:
    value = fields[name]
    if not isinstance(value, str) or len(value) > limit:
        raise InputError(f"{name} is not text of at most {limit} characters")
    return value
