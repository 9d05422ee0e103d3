"""OwnerClient: an owner's connection to a trust service, with the service's identity pinned."""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from cryptography.hazmat.primitives.asymmetric import ec

from strongroom._encoding import b64u_decode, canonical_json, parse_json
from strongroom._secret import SecretBytes
from strongroom.client.seen import Seen
from strongroom.client.workspace import PIN_FILE, Workspace
from strongroom.crypto import jose, tls, x509
from strongroom.crypto.https import HTTPSConnection, Reply
from strongroom.crypto.keys import StaticKeyRing
from strongroom.crypto.proof import DATASET_HEAD_TYPE, HEAD, PROOF
from strongroom.errors import InputError, IntegrityError, UnavailableError, VerificationError
from strongroom.kms.audit_chain import LINKS, SEEN, AuditHead, follow_links, read_head, verify_records
from strongroom.storage.dataset import Head

if TYPE_CHECKING:
    from strongroom.client.evidence import Pin, Shown

__all__ = ["OwnerClient", "pinned_identity", "verify_exported"]

_PAGE = 1000
_BEFORE = ("/v1/status", "/v1/evidence")
"""What is asked before the evidence is judged, and given nothing."""
_EMPTY_PAGES = 5
_PROVEN_S = 300.0
"""So long a client believes, over one connection, what the service showed; a notebook's lives for days."""


def pinned_identity(workspace: Workspace) -> ec.EllipticCurvePublicKey:
    """Return the service's identity key, which must be the one pinned when the workspace was made.

    Raises:
        VerificationError: It is another.
        InputError: None is pinned yet.
    """
    if not workspace.identity:
        raise InputError(
            "this workspace knows no trust service yet", hint="`strongroom service verify --identity FILE`, at first"
        )
    key = x509.certificate_from_pem(workspace.identity_pem).public_key()
    if isinstance(key, ec.EllipticCurvePublicKey) and hmac.compare_digest(x509.spki_id(key), workspace.identity):
        return key
    raise VerificationError(f"{workspace.folder}/identity.pem is not the identity pinned in workspace.toml")


def verify_exported(workspace: Workspace, records: Sequence[dict[str, object]]) -> AuditHead:
    """Return the head of an exported audit log after checking every record; needs no running service.

    Raises:
        IntegrityError: Names the first record that does not hold, or says that the log is older than what was seen.
    """
    newest = Seen.load(workspace.folder / "seen.json").head
    return verify_records(records, [pinned_identity(workspace)], owner=workspace.owner, newest=newest)


class OwnerClient:
    """Talks to the trust service of `workspace` as its owner; starts an embedded service that is not running."""

    def __init__(self, workspace: Workspace) -> None:
        key, pem = pinned_identity(workspace), workspace.identity_pem
        workspace.ensure_running()
        self.workspace = workspace
        self.owner = workspace.owner
        self._identity = key
        context = tls.client_context(
            pem,
            certificate_pem=(workspace.folder / "owner.pem").read_text(),
            key_pem=(workspace.folder / "owner.key").read_bytes(),
        )
        self._connection = HTTPSConnection(workspace.address, context)
        self.seen = Seen.load(workspace.folder / "seen.json")
        self._proven_until = 0.0

    def call(self, method: str, path: str, body: object = None) -> dict[str, object]:
        """Return the answer to one request of the owner API.

        Raises:
            StrongroomError: As the service reports it.
            AttestationError: The service's identity key did not sign the answer to this request, or the workspace
                pins what the service is, and it is something else.
            IntegrityError: The service shows an older state than this owner saw.
        """
        pin = None if path in _BEFORE else _pin(self.workspace.folder)
        if pin and not (self._connection.is_known() and time.monotonic() < self._proven_until):
            shown = self._shown()
            if shown.locked:  # its evidence names no identity: what is unlocked elsewhere could show it
                raise UnavailableError("the trust service is locked", hint="unlock it: `strongroom service unlock`")
            pin.check(shown, self.workspace.folder, self.workspace.identity)
            self._proven_until = time.monotonic() + _PROVEN_S
        return self.send(method, path, body, known=pin is not None)

    def sealed(self, value: object) -> dict[str, str]:
        """Return `value` sealed to the service's process: whoever holds a TLS key of the service takes requests.

        Raises:
            UnavailableError: It is locked, so that its identity cannot say which key that is.
        """
        found = self.call("GET", "/v1/status")
        if found.get("locked") is not False:
            raise UnavailableError("the trust service is locked", hint="unlock it: `strongroom service unlock`")
        return jose.jwe_seal(canonical_json(value), jose.jwk_public_key(cast(dict[str, object], found["seal_to"])))

    def unlock(self, credentials: Sequence[str]) -> None:
        """Send the credentials and what this owner saw; with a pin, sealed to a key that the accepted code made.

        Raises:
            DeniedError: They are not enough.
            IntegrityError: The state that they would unlock was altered, or is older than what this owner saw.
            AttestationError: As for `call`.
        """
        seen = self.seen.head and {"seq": self.seen.head.seq, "chain": self.seen.head.chain}
        body: dict[str, object] = {"credentials": list(credentials), "seen": seen}
        if pin := _pin(self.workspace.folder):
            shown = self._shown()
            pin.check(shown, self.workspace.folder, self.workspace.identity)
            body = {"sealed": jose.jwe_seal(canonical_json(body), shown.key)}
        self.send("POST", "/v1/unlock", body)

    def send(self, method: str, path: str, body: object = None, *, known: bool = False) -> dict[str, object]:
        """Return the answer to one request, without a look at what the workspace pins; as `call` otherwise."""
        try:
            reply = self._connection.proven(
                method, path, body, _seen(self.seen.head), to=self.owner, key=self._identity, known=known
            )
        except UnavailableError as exc:
            if not self.workspace.embedded and self.seen.head is None:
                # A server that refuses a certificate may close the connection before its alert is read.
                exc.hint = "never let in so far: did its administrator run `strongroom owner admit`, and is it up?"
            raise
        if token := reply.headers.get(HEAD):
            self._see(read_head(token, [self._identity]), reply)
        elif PROOF in reply.headers and self.seen.head is not None:
            raise IntegrityError(
                "audit head: expected the newest beside the answer, got none: it may be an older state"
            )
        return reply.json()

    def _shown(self) -> Shown:
        from strongroom.client.evidence import ask  # noqa: PLC0415  # slow, and few services run in a TEE

        return ask(self.send)

    def _see(self, head: AuditHead, reply: Reply) -> None:
        # A log that is longer than the one seen may be another that has grown: it has to lead there.
        found, seen = self.seen.head, self.seen.head and self.seen.head.seq
        while found is not None and found.seq < head.seq:
            links = b64u_decode(reply.headers.get(LINKS, ""))
            before, found = found, follow_links(found, links[: 64 * (head.seq - found.seq)])
            if found == before or (found.seq == head.seq and found != head):
                raise IntegrityError(
                    f"the trust service's audit log of {head.seq} records does not go on from record {seen}, "
                    "which was seen before: an older database was restored, and used since",
                    hint="find the newest database; `strongroom doctor` names the workspace's files",
                )
            if found.seq < head.seq:
                reply = self._connection.request("GET", "/v1/status", None, _seen(found))
        self.seen.see_head(head)

    def key_ring(self, name: str, purpose: Literal["data", "export"] = "data") -> StaticKeyRing:
        """Return a key's enabled versions, released to this owner.

        Raises:
            DeniedError: No enabled version, or no permission to export.
        """
        mine = x509.new_key()
        jwk = jose.jwk(mine.public_key())
        answer = self.call("POST", f"/v1/keys/{name}/release", {"public_key": jwk, "purpose": purpose})
        with jose.jwe_open(answer.get("jwe"), mine) as raw:
            released = parse_json(raw, "the release")
        if not isinstance(released, dict) or released.get("name") != name or released.get("owner") != self.owner:
            raise VerificationError(f"the release is not this owner's key {name!r}")
        versions = {int(n): SecretBytes(b64u_decode(v)) for n, v in released["versions"].items()}
        return StaticKeyRing(name, versions)

    # --- storage.dataset.HeadStore

    def create_dataset(self, key: str) -> Head:
        """Register a new data set under `key`."""
        return self._head(self.call("POST", "/v1/datasets", {"key": key}))

    def current(self, dataset: str) -> Head:
        """Return the head of a data set."""
        head = self._head(self.call("GET", f"/v1/datasets/{dataset}"))
        if head.dataset != dataset:
            raise VerificationError(f"asked for the head of data set {dataset}, got that of {head.dataset}")
        return head

    def commit(self, expected: Head, manifest: str, versions: Sequence[int]) -> Head:
        """Replace the head `expected` by its successor that names `manifest`."""
        body = {
            "epoch": expected.epoch,
            "manifest": expected.manifest,
            "new_manifest": manifest,
            "versions": list(versions),
        }
        return self._head(self.call("POST", f"/v1/datasets/{expected.dataset}/commit", body))

    def accept_epoch(self, dataset: str, manifest: str, versions: Sequence[int]) -> Head:
        """Make a restored manifest the head."""
        body = {"manifest": manifest, "versions": list(versions)}
        return self._head(self.call("POST", f"/v1/datasets/{dataset}/accept-epoch", body))

    def _head(self, answer: dict[str, object]) -> Head:
        found = jose.verify_jws(str(answer.get("signed")), [self._identity], typ=DATASET_HEAD_TYPE)
        try:
            head = Head(**found)  # type: ignore[arg-type]
        except TypeError as exc:
            raise VerificationError("the signed head is not a head") from exc
        self.seen.see_epoch(head.dataset, head.epoch)
        return head

    # --- audit

    def audit_records(self) -> list[dict[str, object]]:
        """Return the whole log, other owners' records as hashes."""
        records: list[dict[str, object]] = []
        empty = 0
        while True:
            page = self.call("GET", f"/v1/audit?after={len(records)}&limit={_PAGE}").get("records")
            if isinstance(page, list) and page:
                records += page
                continue
            # An answer's head is read after its page, and records may come in between: they are in the next page.
            empty += 1
            if self.seen.head is None or len(records) >= self.seen.head.seq or empty == _EMPTY_PAGES:
                return records

    def verified_audit(self) -> tuple[AuditHead, list[dict[str, object]]]:
        """Return the log's head and records after checking every record against what this owner saw.

        Raises:
            IntegrityError: Names the first record that does not hold.
        """
        records = self.audit_records()
        return verify_records(records, [self._identity], owner=self.owner, newest=self.seen.head), records

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _pin(folder: Path) -> Pin | None:
    if not (folder / PIN_FILE).exists():
        return None
    from strongroom.client.evidence import Pin  # noqa: PLC0415  # slow, and few services run in a TEE

    return Pin.load(folder)


def _seen(head: AuditHead | None) -> dict[str, str]:
    return {SEEN: f"{head.seq}.{head.chain}"} if head else {}
