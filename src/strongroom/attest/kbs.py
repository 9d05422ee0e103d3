"""Keys that lie at a stock Key Broker Service (confidential containers' Trustee): its address, and the guest's side.

The KBS is whoever holds a key under the certificate that the measured job document names, at the host in its URL; the
socket is the host's. It decides by policies of its own, which see the job as init data, bound by the evidence's config
id (under Gramine, as MRENCLAVE). Protocol: RCAR 0.4.0 (docs/formats/release-protocol.md §9). Rules:

1. A key pair and a conversation of its own for every key; a nonce that was answered is not answered again.
2. What is hashed is what a stock KBS hashes: SHA-384 over the JWK members that it knows, so none of ours is sent.
   An SEV-SNP report goes as its fields in JSON, as such a KBS reads it.
3. A key is 32 bytes. Every answer has status 200 (no redirect is followed) and at most 64 KiB.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass

from strongroom._secret import SecretBytes
from strongroom.attest.attesters import Attester
from strongroom.attest.binding import rcar_report_data
from strongroom.attest.handshake import AttestRequest, AuthRequest, Challenge, tee_pubkey
from strongroom.attest.stock_evidence import write_snp
from strongroom.crypto import jose, tls, x509
from strongroom.crypto.https import HTTPSConnection, Reply
from strongroom.errors import DeniedError, InputError, UnavailableError, VerificationError

__all__ = ["SCHEME", "KBSKey", "fetch_key"]

SCHEME = "kbs+https://"
KEY_BYTES = 32

_PART = "[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}"
_FORM = re.compile(
    rf"{re.escape(SCHEME)}(\[[0-9a-f:]{{2,39}}\]|[a-z0-9][a-z0-9.-]{{0,252}})(?::([1-9][0-9]{{0,4}}))?"
    rf"/({_PART}/{_PART}/{_PART})"
)
_COOKIE = re.compile(r"kbs-session-id=[A-Za-z0-9._~-]{1,256}")
_HASH = "sha384"
_MAX_REPLY_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class KBSKey:
    """Where a key lies: `kbs+https://HOST[:PORT]/REPOSITORY/TYPE/TAG`."""

    host: str
    port: int
    resource: str

    @classmethod
    def parse(cls, text: str) -> KBSKey:
        """Return the place in `text`.

        Raises:
            InputError: Another form.
        """
        found = _FORM.fullmatch(text)
        port = int(found[2] or 443) if found else 0
        if found is None or port > 0xFFFF:
            raise InputError(f"{text[:200]!r} is no key of a KBS: expected {SCHEME}HOST[:PORT]/REPOSITORY/TYPE/TAG")
        return cls(host=found[1].strip("[]"), port=port, resource=found[3])

    @property
    def address(self) -> str:
        """`host:port`, as sockets are asked for."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def fetch_key(
    key: KBSKey,
    certificate: str,
    attester: Attester,
    init_data: str | None,
    *,
    dial: Callable[[], socket.socket],
    answered: set[str],
) -> SecretBytes:
    """Return the 32 bytes that lie at `key`, released to this enclave.

    Args:
        key: From the job document.
        certificate: From the job document, one in PEM: the KBS' own, or its issuer's.
        attester: Makes evidence.
        init_data: The job's Initdata; None where not the evidence's config id but its measurement covers it.
        dial: Opens a socket to the KBS.
        answered: Nonces that this guest answered; this one is added.

    Raises:
        DeniedError: The KBS does not believe the evidence, or its policy refuses.
        VerificationError: Not the pinned certificate, or an answer that is not what the protocol says.
        InputError: No such key.
    """
    # Of the text only one certificate, as it was read: another beside it would be believed too.
    pinned = x509.certificate_pem(x509.certificate_from_pem(certificate))
    connection = HTTPSConnection(
        f"https://{key.address}",
        tls.client_context(pinned),
        name=key.host,
        dial=dial,
        max_reply_bytes=_MAX_REPLY_BYTES,
    )
    mine = x509.new_key()
    try:
        begun = _ask(connection, key, "POST", "/kbs/v0/auth", AuthRequest(tee=attester.tee).to_json())
        cookie = begun.headers.get("set-cookie", "").partition(";")[0]
        if not _COOKIE.fullmatch(cookie):
            raise _broken(key, "cookie", "kbs-session-id", cookie)
        connection.headers["Cookie"] = cookie
        nonce = _nonce(begun, key, answered)
        pubkey = tee_pubkey(mine.public_key())
        evidence = attester.attest(rcar_report_data(nonce, pubkey))
        shown = write_snp(evidence.quote) if evidence.tee == "snp" else evidence.to_json()
        request = AttestRequest(nonce=nonce, tee_pubkey=pubkey, evidence=shown, init_data=init_data)
        token = _ask(connection, key, "POST", "/kbs/v0/attest", request.to_json()).json().get("token")
        if not isinstance(token, str):
            raise _broken(key, "token", "a text", type(token).__name__)
        sealed = _ask(connection, key, "GET", f"/kbs/v0/resource/{key.resource}").json()
    finally:
        connection.close()
    secret = jose.jwe_open(sealed, mine)
    if len(secret) != KEY_BYTES:
        raise _broken(key, "key size", f"{KEY_BYTES} bytes", f"{len(secret)} bytes")
    return secret


def _nonce(begun: Reply, key: KBSKey, answered: set[str]) -> str:
    message = begun.json()
    try:
        nonce = Challenge.from_json(message).nonce
    except InputError as exc:
        raise VerificationError(f"KBS {key.address}: {exc}") from exc
    extra = message.get("extra-params")
    chosen = extra.get("selected-hash-algorithm", _HASH) if isinstance(extra, dict) else _HASH
    if chosen != _HASH:
        raise _broken(key, "hash algorithm", _HASH, chosen)
    if nonce in answered:
        raise _broken(key, "nonce", "a fresh one", "one that was answered before")
    answered.add(nonce)
    return nonce


def _ask(connection: HTTPSConnection, key: KBSKey, method: str, path: str, body: object = None) -> Reply:
    try:
        reply = connection.exchange(method, path, body)
    except VerificationError as exc:
        raise VerificationError(f"KBS {key.address}: expected the pinned certificate and 64 KiB, got: {exc}") from exc
    except UnavailableError as exc:
        raise UnavailableError(f"KBS {key.address}: {exc}") from exc
    if reply.status == 200:
        return reply
    said = _said(reply)
    if reply.status in (401, 403):
        raise DeniedError(f"KBS {key.address} refused {path}: {said}", hint="its administrator sets its policies")
    if reply.status == 404:
        raise InputError(f"KBS {key.address} has no {path}: {said}", hint="its administrator puts the key there")
    raise _broken(key, "status", "200", f"{reply.status} {said}".rstrip())


def _said(reply: Reply) -> str:
    # RFC 7807, of which a stock KBS sends `type` and `detail`. It is another's text: short, and printable.
    try:
        problem = reply.json()
    except VerificationError:
        return f"HTTP {reply.status}"
    words = [str(problem.get("type", "")).rsplit("/", 1)[-1], str(problem.get("detail", ""))]
    return ascii(": ".join(word[:200] for word in words if word))[1:-1] or f"HTTP {reply.status}"


def _broken(key: KBSKey, check: str, expected: str, got: object) -> VerificationError:
    return VerificationError(f"KBS {key.address}: {check}: expected {expected}, got {ascii(got)[:80]}")
