"""Is the trust service the code that its owner looked at, in a TEE? Asked for a nonce of the owner's own.

The answer is an RA-TLS certificate (`attest.ratls`) of the service's identity key, which signs all its answers: the
evidence names that key and the nonce, so neither an earlier answer nor another service's passes. Of a locked service,
whose identity key is not there, it is one of a key that its process made, to which credentials are sealed.

It proves which code has the key, not that nobody else has it: that follows from where the root key rests, which the
evidence says too. A *pin* keeps what an owner accepted; a workspace that has one asks again before anything else.
"""

from __future__ import annotations

import hmac
import json
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from strongroom._encoding import b64u, parse_json
from strongroom._unix import write_whole
from strongroom.attest import ratls
from strongroom.attest.appraisal import findings, policy_from_json, policy_to_json
from strongroom.attest.claims import Claims
from strongroom.attest.endorsement_files import read_bundle, read_folder
from strongroom.attest.endorsement_snp import AnyEndorsements
from strongroom.attest.evidence import Evidence
from strongroom.attest.findings import AppraisalContext, Finding, Policy
from strongroom.attest.verifiers import Verifier, verify_any
from strongroom.attest.verifiers.choose import verifier_for
from strongroom.attest.verifiers.newest import Mark, newest
from strongroom.client.workspace import PIN_FILE
from strongroom.crypto import x509
from strongroom.errors import AppraisalError, EndorsementError, InputError, VerificationError

__all__ = ["Pin", "Shown", "ask"]

_ROOTS = ("passphrase", "shares", "tee")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a service showed for one nonce; nothing of it is believed yet."""

    der: bytes
    nonce: bytes

    @property
    def said(self) -> ratls.RATLSClaims:
        """The certificate's claims, which the evidence is for: what the answer says beside them counts for nothing."""
        return ratls.read_claims(ratls.read_certificate(self.der)[1].claims or b"")

    @property
    def locked(self) -> bool:
        """Whether the key is for credentials alone, and not the service's identity."""
        return self.said.locked

    @property
    def evidence(self) -> Evidence:
        """The evidence in the certificate."""
        return Evidence.of(ratls.read_certificate(self.der)[1].quote)

    @property
    def key(self) -> ec.EllipticCurvePublicKey:
        """The certificate's key."""
        key = ratls.read_certificate(self.der)[0].public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise VerificationError("the trust service's evidence is for no key on P-256")
        return key

    def findings(self, claims: Claims, identity: str, *, now: datetime, admin: str = "") -> list[Finding]:
        """Return whether evidence that proves `claims` is for this nonce and the pinned identity, and what else holds.

        Args:
            claims: Of `evidence`.
            identity: SPKI id of the service's identity.
            now: UTC.
            admin: Fingerprint of the owner for whom the identity has to be made in this TEE; "" if it is known already.

        Raises:
            AttestationError: It is for another key or nonce.
        """
        ratls.verify_certificate(self.der, lambda _: claims, now=now, nonce=self.nonce)
        said = self.said
        kind = (said.root_kind or b"nothing").decode("ascii", "replace")
        made_for = (said.admin or b"nobody: it was not made in this TEE").decode("ascii", "replace")
        spki = x509.spki_id(self.key)
        found = Finding("identity", identity, spki, hmac.compare_digest(spki, identity))
        if self.locked:
            got = "LOCKED: a key of this process, for credentials alone"
            found = Finding("identity", identity, got, passed=not admin)
        asked = "this command's, and this key"
        roots = f"one that people or the TEE keep ({', '.join(_ROOTS)})"
        return [
            Finding("nonce", asked, asked, passed=True),
            found,
            *(
                [Finding("administrator", admin, made_for, hmac.compare_digest(said.admin or b"", admin.encode()))]
                if admin
                else []
            ),
            Finding("root_key", roots, kind, kind in _ROOTS),
        ]


def ask(call: Callable[[str, str, object], dict[str, object]]) -> Shown:
    """Return what the service shows for a fresh nonce.

    Raises:
        DeniedError: It runs outside a TEE.
        VerificationError: The answer is not a certificate.
    """
    nonce = os.urandom(32)
    answer = call("POST", "/v1/evidence", {"nonce": b64u(nonce)})
    try:
        der = ssl.PEM_cert_to_DER_cert(str(answer.get("certificate")))
    except ValueError as exc:
        raise VerificationError("the trust service's evidence is not a certificate") from exc
    return Shown(der=der, nonce=nonce)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What an owner accepted of a service, and expects at every connection from then on.

    Attributes:
        policy: What its evidence has to satisfy.
        root: Fingerprint of the root that it has to be under.
        kind: Of the root: hardware or simulated.
        endorsements: The bundle, or a folder of them; read anew each time, and proven each time.
        settings: Of AMD's root, as `service trust` takes them.
        seen: The newest endorsements that were ever seen there, by what they are for: none older is believed.
    """

    policy: Policy
    root: str
    kind: str
    endorsements: str
    settings: dict[str, str]
    seen: dict[str, Mark] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Pin | None:
        """Return the pin of the workspace in `folder`, None without one.

        Raises:
            InputError: It is not readable: who cannot say what was accepted accepts nothing.
        """
        path = folder / PIN_FILE
        if not path.exists():
            return None
        try:
            value = parse_json(path.read_bytes(), str(path))
            assert isinstance(value, dict)
            seen = {name: (int(edition), float(issued)) for name, (edition, issued) in value["seen"].items()}
            return cls(**{**value, "policy": policy_from_json(value["policy"]), "seen": seen})
        except (OSError, AssertionError, AttributeError, KeyError, TypeError, ValueError, InputError) as exc:
            raise InputError(f"{path} is not readable: {exc}", hint="`strongroom service verify --pin` anew") from exc

    def save(self, folder: Path) -> None:
        """Pin it in the workspace in `folder`."""
        names = ("root", "kind", "endorsements", "settings", "seen")
        value = {"policy": policy_to_json(self.policy), **{name: getattr(self, name) for name in names}}
        write_whole(folder / PIN_FILE, json.dumps(value, indent=2) + "\n")

    def check(self, shown: Shown, folder: Path, identity: str, *, now: datetime | None = None) -> None:
        """Return only if what was shown is what was accepted; the pin in `folder` then knows which endorsements it saw.

        Raises:
            AttestationError: It is not true, or, with every reason, not what was accepted.
        """
        now = now or datetime.now(UTC)
        seen = dict(self.seen)
        claims = verify_any(shown.evidence, self._choices(seen), now=now)
        found = findings(self.policy, AppraisalContext(claims=claims)) + shown.findings(claims, identity, now=now)
        reasons = [f"trust service: {finding}" for finding in found if not finding.passed]
        if reasons:
            raise AppraisalError(reasons, hint="give it nothing; `strongroom service verify` shows every check")
        if seen != self.seen:
            replace(self, seen=seen).save(folder)

    def _choices(self, seen: dict[str, Mark]) -> Sequence[tuple[Verifier, AnyEndorsements]]:
        path = Path(self.endorsements)
        if path.is_dir():
            found = read_folder(path)[0]
        else:
            anchor, bundle = read_bundle(path)
            found = [(anchor, one) for one in bundle]
        found = [(a, one) for a, one in found if (a.fingerprint, a.kind) == (self.root, self.kind)]
        judged = newest(found, seen)
        good = [(a, one) for (a, _), one in zip(found, judged, strict=True) if not isinstance(one, EndorsementError)]
        if not good:
            raise next(
                (one for one in judged if isinstance(one, EndorsementError)),
                EndorsementError(
                    f"root: expected endorsements under {self.root[:16]} ({self.kind}) in {self.endorsements}, got none"
                ),
            )
        return [(verifier_for(a, one, self.settings), one) for a, one in good]
