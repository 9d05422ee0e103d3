"""The guest's conversation with the trust service: attest, receive, commit (docs/formats/release-protocol.md).

The service is whoever holds an identity key whose SPKI id the measured job document names. The address comes from the
host and proves nothing. What the service gives counts only with that key's signature for this request (`crypto.proof`).
"""

from __future__ import annotations

import hmac
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec

from strongroom._encoding import b64u_decode, parse_json
from strongroom._secret import SecretBytes
from strongroom.attest.attesters import Attester
from strongroom.attest.binding import init_data_digest, rcar_report_data
from strongroom.attest.handshake import COMMIT_TYPE, AttestRequest, AuthRequest, Challenge, tee_pubkey
from strongroom.crypto import jose, tls, x509
from strongroom.crypto.https import HTTPSConnection
from strongroom.crypto.keys import KeyRing, StaticKeyRing
from strongroom.crypto.proof import DATASET_HEAD_TYPE
from strongroom.errors import DeniedError, IntegrityError, UnavailableError, VerificationError

if TYPE_CHECKING:  # attesting does not need the storage: guest/main.py imports it meanwhile
    from strongroom.storage.dataset import Head

__all__ = ["Certified", "Grant", "ServiceSession", "boottime"]

_log = logging.getLogger(__name__)

COMMIT_RETRY_S, COMMIT_PATIENCE_S = 1.0, 300.0
"""A service that was away for a minute is back well before this ends, however slowly it starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one release gave.

    Attributes:
        ring: The named key's versions.
        heads: Data-set id -> head, signed by the service.
        run_id: 16 bytes that mark this run's files.
        max_bytes: What each output of the job may hold, None for any number.
        approval: Outputs of this key's owner wait for them.
        ends_at: End of the lease on CLOCK_BOOTTIME, counted from before the release was asked for; infinite for a key
            that came from elsewhere, without one.
    """

    ring: KeyRing
    heads: Mapping[str, Head]
    run_id: bytes
    ends_at: float
    max_bytes: int | None = None
    approval: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """What the service gave for the guest's TLS key.

    Attributes:
        certificate_pem: Names job and owner as URIs, and carries the evidence for its key.
        key_pem: The TLS key.
        root_pem: The root of all workload certificates, which alone says nothing about the job.
        ends_at: End of the lease on CLOCK_BOOTTIME, counted from before the certificate was asked for.
    """

    certificate_pem: str
    key_pem: bytes
    root_pem: str
    ends_at: float


class ServiceSession:
    """One attested session. It has one connection: whoever shares the session between threads holds `lock`.

    Args:
        address: From the host.
        identity_pem: From the host; checked against `identity`.
        identity: SPKI ids from the job document.
        attester: Makes evidence.
        init_data: The job's Initdata, as measured.
        says_init_data: For an enclave whose evidence has no place for it: the guest's key says which it is.
    """

    def __init__(
        self,
        address: str,
        identity_pem: str,
        identity: Sequence[str],
        attester: Attester,
        init_data: str,
        *,
        says_init_data: bool = False,
    ) -> None:
        certificate = x509.certificate_from_pem(identity_pem)
        key = certificate.public_key()
        found = x509.spki_id(key) if isinstance(key, ec.EllipticCurvePublicKey) else ""
        if not any(hmac.compare_digest(found, wanted) for wanted in identity):
            raise VerificationError(
                f"the trust service's identity key: expected {' or '.join(identity)}, got {found}",
                hint="the job was built for another trust service",
            )
        assert isinstance(key, ec.EllipticCurvePublicKey)
        self._identity = key
        self._attester = attester
        self._init_data = init_data
        self._said = f"sha256:{init_data_digest(init_data).hex()}" if says_init_data else None
        # Of the host's text only what was compared: another certificate beside it would be believed too.
        self._connection = HTTPSConnection(address, tls.client_context(x509.certificate_pem(certificate)))
        self._key = x509.new_key()
        self._tls_key = x509.new_key()
        self._nonce = ""
        self.lock = threading.RLock()
        self.inputs: Mapping[str, Head] = {}
        """What the job reads, by volume: commits say so."""

    def attest(self) -> str:
        """Prove what this enclave is; return the attestation result (EAR token).

        Raises:
            AttestationError, DeniedError: The service does not believe the evidence.
        """
        reply = self._connection.request("POST", "/kbs/v0/auth", AuthRequest(tee=self._attester.tee).to_json())
        challenge = Challenge.from_json(reply.json())
        self._nonce = challenge.nonce
        self._connection.headers["Cookie"] = reply.headers.get("set-cookie", "").partition(";")[0]
        pubkey = tee_pubkey(self._key.public_key(), self._tls_key.public_key(), self._said)
        evidence = self._attester.attest(rcar_report_data(challenge.nonce, pubkey))
        request = AttestRequest(
            nonce=challenge.nonce, tee_pubkey=pubkey, evidence=evidence.to_json(), init_data=self._init_data
        )
        token = self._connection.request("POST", "/kbs/v0/attest", request.to_json()).json().get("token")
        if not isinstance(token, str):
            raise VerificationError("the service's answer has no token")
        return token

    def key(self, owner: str, name: str) -> Grant:
        """Return the release of a named key.

        Raises:
            AppraisalError: The key's policy refuses this guest.
            DeniedError, VerificationError: Not ours, not sealed to this guest, or without a lease.
        """
        asked_at = boottime()
        message = self._proven("GET", f"/kbs/v0/resource/{owner}/key/{name}")
        with jose.jwe_open(message, self._key) as raw:
            released = parse_json(raw, "the release")
        if not isinstance(released, dict) or (released.get("type"), released.get("name")) != ("key", name):
            raise VerificationError(f"the release is not key {name!r}")
        lease_s = _lease(released, f"the release of key {name!r}")
        versions = {int(n): SecretBytes(b64u_decode(v)) for n, v in released["versions"].items()}
        limit, approval = _rule(name, released.get("outputs"))
        heads = {str(d): self.head(str(token)) for d, token in released["heads"].items()}
        return Grant(
            ring=StaticKeyRing(name, versions),
            heads=heads,
            run_id=bytes.fromhex(str(released["run_id"])),
            ends_at=asked_at + lease_s,
            max_bytes=limit,
            approval=approval,
        )

    def _proven(self, method: str, path: str, body: object = None) -> dict[str, object]:
        to = x509.spki_id(self._key.public_key())
        return self._connection.proven(method, path, body, to=to, key=self._identity).json()

    def head(self, token: str) -> Head:
        """Return the head in a statement signed by the service."""
        found = jose.verify_jws(token, [self._identity], typ=DATASET_HEAD_TYPE)
        from strongroom.storage.dataset import Head  # noqa: PLC0415  # see above

        try:
            return Head(**found)  # type: ignore[arg-type]
        except TypeError as exc:
            raise VerificationError("the signed head is not a head") from exc

    def certificate(self) -> Certified:
        """Return certificate, private key and root for this guest's TLS key, with fresh evidence for it.

        Raises:
            AppraisalError, DeniedError: The policy of a key of the job refuses this guest.
            VerificationError: The answer has no lease.
        """
        from strongroom.attest import ratls  # noqa: PLC0415  # most jobs run alone, and need no certificate

        asked_at = boottime()
        evidence = ratls.make_extension(
            self._tls_key.public_key(),
            self._attester,
            nonce=self._nonce.encode(),
            texts={"strongroom-job": f"sha256:{init_data_digest(self._init_data).hex()}"},
        )
        csr = x509.new_csr(self._tls_key, "workload", {ratls.EXTENSION: evidence})
        found = self._proven("POST", "/kbs/v0/strongroom/certificate", {"csr": csr})
        lease_s = _lease(found, "the certificate")
        return Certified(
            certificate_pem=str(found["certificate"]),
            key_pem=x509.private_key_pem(self._tls_key),
            root_pem=str(found["root"]),
            ends_at=asked_at + lease_s,
        )

    def commit(self, owner: str, expected: Head, manifest: str, versions: Sequence[int]) -> Head | None:
        """Replace the head `expected` by its successor that names `manifest`; None if that waits for the owner.

        A service that was restarted in between has forgotten this session, and may or may not have committed: the guest
        attests again and looks, for up to five minutes. Who is denied twice running, freshly attested, is denied.

        Raises:
            DeniedError: The service takes no commit of this job any more.
            IntegrityError: Another run committed first.
            UnavailableError: The service does not come back in time.
        """
        limit, denied, again = time.monotonic() + COMMIT_PATIENCE_S, 0, False
        while True:
            try:
                with self.lock:
                    if again:
                        self.attest()
                        found = self._current(owner, expected)
                        if found and (found.epoch, found.manifest) == (expected.epoch + 1, manifest):
                            return found
                    return self._commit(expected, manifest, versions)
            except (UnavailableError, DeniedError) as exc:
                denied = denied + 1 if isinstance(exc, DeniedError) else 0
                if denied == 2 or time.monotonic() > limit:
                    raise
                _log.warning("commit not answered reason=%s, attesting again", exc)
            time.sleep(COMMIT_RETRY_S)
            again = True

    def _current(self, owner: str, expected: Head) -> Head | None:
        try:
            return self.key(owner, expected.key).heads[expected.dataset]
        except DeniedError:  # as while an output waits, which may be this one: the commit says which
            return None

    def _commit(self, expected: Head, manifest: str, versions: Sequence[int]) -> Head | None:
        body: dict[str, object] = {
            "dataset": expected.dataset,
            "epoch": expected.epoch,
            "manifest": expected.manifest,
            "new_manifest": manifest,
            "versions": list(versions),
            "inputs": {name: {"epoch": h.epoch, "manifest": h.manifest} for name, h in self.inputs.items()},
        }
        key = jose.jwk(self._tls_key.public_key())
        del key["alg"]
        signed = {"key": key, "signed": jose.sign_jws(body, self._tls_key, typ=COMMIT_TYPE)}
        answer = self._proven("POST", "/kbs/v0/strongroom/commit", signed)
        if answer.get("held") is True:
            return None
        head = self.head(str(answer.get("signed")))
        if (head.dataset, head.epoch, head.manifest) != (expected.dataset, expected.epoch + 1, manifest):
            raise IntegrityError(f"the service committed another head than asked for: {json.dumps(answer.get('head'))}")
        return head


def _lease(given: Mapping[str, object], what: str) -> int:
    lease_s = given.get("lease_s")
    if type(lease_s) is not int or lease_s < 1:
        raise VerificationError(f"{what} has no lease: got {lease_s!r:.40}")
    return lease_s


def _rule(name: str, rule: object) -> tuple[int | None, bool]:
    found = rule if isinstance(rule, dict) else {}
    limit, approval = found.get("max_bytes", ""), found.get("approval")
    if not (limit is None or type(limit) is int) or type(approval) is not bool:
        raise VerificationError(f"the release of key {name!r} does not say what outputs may be: got {rule!r:.80}")
    return limit, approval


def boottime() -> float:
    """Return seconds of CLOCK_BOOTTIME, which goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
