"""What a running trust service holds: its store, its root key once unlocked, and the parts built on both."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec

from strongroom._secret import SecretBytes
from strongroom._unix import flush_folder, write_whole
from strongroom.attest.attesters import Attester
from strongroom.crypto import x509
from strongroom.crypto.tls import SERVICE_NAME
from strongroom.errors import InputError, IntegrityError, StrongroomError, UnavailableError
from strongroom.kms.audit import AuditLog
from strongroom.kms.audit_chain import AuditHead
from strongroom.kms.broker import Broker
from strongroom.kms.ca import WorkloadCA
from strongroom.kms.datasets import DatasetStore
from strongroom.kms.keys import KeyStore
from strongroom.kms.owners import add_owner, certificates
from strongroom.kms.policies import PolicyStore
from strongroom.kms.roots import RootKey
from strongroom.kms.roots.registry import RootFolder
from strongroom.kms.stores.sql import SQLStore, get_meta, set_meta
from strongroom.service import birth, trust

__all__ = ["TrustService", "Unlocked"]

_log = logging.getLogger(__name__)

LEAF_DAYS = 30
_IDENTITY_CONTEXT = b"strongroom-service-identity-v1"
_CA_CONTEXT = b"strongroom-workload-ca-v1"
_BORN = "born"
_STATE_CONTEXT = b"strongroom-state-key-v1"
_STATE_KEY = "state-key"
_STATE_KEY_BYTES = 32
_ROOT_KIND = "root-kind"
_LOCKED_LEAF = "locked-leaf.pem"
_PEM_END = "-----END PRIVATE KEY-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlocked:
    """The parts that need the root key."""

    root: RootKey
    identity: ec.EllipticCurvePrivateKey
    keys: KeyStore
    policies: PolicyStore
    datasets: DatasetStore
    audit: AuditLog
    broker: Broker


class TrustService:
    """A trust service on `folder` (database, endorsements) and `root_folder` (root key, outside the data folder).

    Attributes:
        attester: Of the TEE that it runs in, None outside one.
        unlock_key: Of this process alone: what a locked service's evidence names.
        born_for: The administrator for whom the identity was made in this TEE; "" if it was not, or while locked.
    """

    def __init__(self, folder: Path, root_folder: Path, attester: Attester | None = None) -> None:
        self.attester = attester
        self.unlock_key = x509.new_key()
        self.born_for = ""
        self.folder = folder
        self.roots = RootFolder(root_folder, attester)
        if not (folder / "state.db").exists():
            raise InputError(f"there is no trust service in {folder}", hint="run `strongroom init`")
        _tighten(folder, root_folder)
        self.store = SQLStore(folder / "state.db")
        self._unlocked: Unlocked | None = None
        self._prepared: tuple[str, RootKey] | None = None
        self._lock = threading.Lock()
        with self.store.transaction() as tx:
            self._read_facts(tx)

    def _read_facts(self, tx: sa.Connection) -> None:
        # All that a locked service needs; until `unlock` reads it again it is the disk's word (decisions/0028).
        self.root_name = _text(tx, "root")
        self.identity_pem = _text(tx, "identity-certificate")
        self.admin = _text(tx, "admin")

    @classmethod
    def create(
        cls,
        folder: Path,
        root_folder: Path,
        *,
        kind: str,
        options: Mapping[str, str],
        owner_name: str,
        owner_pem: str,
        anchors: Sequence[Mapping[str, str]],
        now: datetime,
        attester: Attester | None = None,
    ) -> tuple[TrustService, list[str]]:
        """Set up a new service and its first owner, who administers it; return it and what people must keep."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        root_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (folder / "state.db").exists():
            raise InputError(f"there is a trust service in {folder}")
        _tighten(folder, root_folder)
        root, handout = RootFolder(root_folder, attester).create(kind, options)
        made = folder / "making.db"  # whole, or not there: what a crash leaves here is no service, and in nobody's way
        for left in folder.glob(f"{made.name}*"):
            left.unlink()
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # what SQLite puts beside has its mode
        store = SQLStore(made)
        identity, ca, state = x509.new_key(), x509.new_key(), SecretBytes.random(_STATE_KEY_BYTES)
        store.unseal(state, fresh=True)
        certificate = x509.self_signed(identity, "Strongroom trust service", now=now, days=3650, ca=True)
        with store.transaction() as tx:
            set_meta(tx, "root", root.id.encode())
            set_meta(tx, _ROOT_KIND, kind.encode())
            set_meta(tx, _STATE_KEY, root.wrap(state, _STATE_CONTEXT))
            set_meta(tx, "identity-key", root.wrap(_pem(identity), _IDENTITY_CONTEXT))
            set_meta(tx, "ca-key", root.wrap(_pem(ca), _CA_CONTEXT))
            set_meta(tx, "identity-certificate", x509.certificate_pem(certificate).encode())
            trust.believe(tx, anchors)
            owner = add_owner(tx, owner_name, owner_pem, now=now)
            set_meta(tx, "admin", owner.encode())
            if attester is not None:
                set_meta(tx, _BORN, birth.mark(attester, identity, owner))
            AuditLog(identity).append(
                tx, now=now, owner=owner, actor="setup", action="create-service", subject=kind, allowed=True
            )
        store.close()  # which leaves one file
        made.rename(folder / "state.db")
        flush_folder(folder)
        service = cls(folder, root_folder, attester)
        if service.needs_credentials:
            chain, key_pem = _new_leaf(identity, service.identity_pem, now)
            write_whole(folder / _LOCKED_LEAF, key_pem + chain.encode(), 0o600)
        return service, handout

    @property
    def needs_credentials(self) -> bool:
        """Whether somebody must unlock this service after a start."""
        return self.roots.kind(self.root_name).needs_credentials

    @property
    def root_kind(self) -> str:
        """The kind of the root key in use: by which it was unlocked, whatever the disk says since."""
        return self.parts.root.kind if self._unlocked else self.roots.kind_name(self.root_name)

    @property
    def parts(self) -> Unlocked:
        """The unlocked parts.

        Raises:
            UnavailableError: The service is locked.
        """
        if self._unlocked is None:
            raise UnavailableError("the trust service is locked", hint="`strongroom service unlock`")
        return self._unlocked

    @property
    def locked(self) -> bool:
        """Whether the root key is not there yet."""
        return self._unlocked is None

    def unlock(self, credentials: Sequence[str], *, now: datetime, seen: AuditHead | None = None) -> None:
        """Open the root key, check the state, which must not be older than what was `seen`, and build what needs both.

        Raises:
            DeniedError: The credentials are not enough.
            IntegrityError: Root key and database do not belong together, or the database was altered.
        """
        with self._lock:
            self.roots.unlock(self.root_name, credentials, lambda root: self._build(root, now, seen))
            self._forget_retired()
            with self.store.transaction() as tx:
                born = get_meta(tx, _BORN)
            self.born_for = self.admin if birth.holds(born, self.attester, self.parts.identity, self.admin) else ""

    def _build(self, root: RootKey, now: datetime, seen: AuditHead | None) -> None:
        with self.store.transaction() as tx:
            state = root.unwrap(get_meta(tx, _STATE_KEY) or b"", _STATE_CONTEXT)
        self.store.unseal(state)
        with self.store.transaction() as tx:
            self._read_facts(tx)
            if (kind := _text(tx, _ROOT_KIND)) != root.kind:  # the descriptor is its disk's word
                raise IntegrityError(
                    f"root kind: expected {kind}, which the state says, got {root.kind}: the descriptor was altered",
                    hint=f"restore root-{root.id}.json from your backup, and do not trust this machine",
                )
            identity = _private(tx, root, "identity-key", _IDENTITY_CONTEXT)
            ca = _private(tx, root, "ca-key", _CA_CONTEXT)
            AuditLog.check_end(tx)
            if seen is not None:
                AuditLog.check_extends(tx, seen)
        keys, policies, datasets = KeyStore(root), PolicyStore(), DatasetStore(identity)
        audit = AuditLog(identity)
        self._unlocked = Unlocked(
            root=root,
            identity=identity,
            keys=keys,
            policies=policies,
            datasets=datasets,
            audit=audit,
            broker=Broker(self.store, keys, policies, datasets, audit, WorkloadCA(ca, now=now)),
        )

    def trusted(self) -> trust.Trust:
        """Return what is believed now, be it changed by another process on this state; nothing while locked."""
        if self.locked:
            return trust.Trust()
        with self.store.transaction() as tx:
            return trust.trusted(tx)

    def prepare_root(self, kind: str, options: Mapping[str, str]) -> tuple[str, list[str]]:
        """Make a root key for a later `rotate_root`; return its name and what people must keep."""
        with self._lock:
            root, handout = self.roots.create(kind, options)
            self._prepared = (kind, root)
            return root.id, handout

    def rotate_root(
        self, kind: str, options: Mapping[str, str], *, actor: str, now: datetime, prepared: str = ""
    ) -> list[str]:
        """Wrap everything under a new root key, in one transaction; return what people must keep.

        A crash before the transaction ends leaves the old root key in force, after it the new one.

        Raises:
            InputError: `prepared` does not name the root key that was prepared last.
        """
        with self._lock:
            parts = self.parts
            if prepared:
                if self._prepared is None or (kind, prepared) != (self._prepared[0], self._prepared[1].id):
                    raise InputError(f"no root key {prepared} of kind {kind} is prepared", hint="prepare it again")
                root, handout = self._prepared[1], list[str]()
            else:
                root, handout = self.roots.create(kind, options)
            self._prepared = None
            if self.roots.kind(root.id).needs_credentials:  # without it, it could not even say that it is locked
                self._keep_leaf(now)
            try:
                count = self._rewrap(parts, root, actor=actor, kind=kind, now=now)
            except BaseException:
                parts.keys.use(parts.root)
                raise
            self.root_name = root.id
            self._unlocked = replace(parts, root=root)
            _log.info("rotated the root key kind=%s versions=%d", kind, count)
            try:
                self._forget_retired()
            except (OSError, StrongroomError) as exc:  # the next start does it; the handout must not be lost for it
                _log.warning("the old root key is still there reason=%s", exc)
            return handout

    def _rewrap(self, parts: Unlocked, root: RootKey, *, actor: str, kind: str, now: datetime) -> int:
        with self.store.transaction() as tx:
            count = parts.keys.rewrap_all(tx, root)
            state = SecretBytes.random(_STATE_KEY_BYTES)  # who had the old root key must not write the new state
            set_meta(tx, _STATE_KEY, root.wrap(state, _STATE_CONTEXT))
            self.store.rekey(state)
            for name, context in (("identity-key", _IDENTITY_CONTEXT), ("ca-key", _CA_CONTEXT)):
                wrapped = get_meta(tx, name) or b""
                set_meta(tx, name, root.wrap(parts.root.unwrap(wrapped, context), context))
            if kind not in ("shares", "tee"):  # by then somebody may have the identity key who was not there at birth
                set_meta(tx, _BORN, b"")
                self.born_for = ""
            set_meta(tx, "retired-root", parts.root.id.encode())
            set_meta(tx, "root", root.id.encode())
            set_meta(tx, _ROOT_KIND, kind.encode())
            parts.audit.append(
                tx,
                now=now,
                owner=self.admin,
                actor=actor,
                action="rotate-root",
                subject=kind,
                allowed=True,
                details={"versions": count, "root": root.id},
            )
            # Whoever has the next turn at the database must already wrap under the new root.
            parts.keys.use(root)
        return count

    def _forget_retired(self) -> None:
        # The old root key's file goes only once the database no longer needs it; also after a crash in between.
        with self.store.transaction() as tx:
            retired = get_meta(tx, "retired-root")
        if retired is not None and retired.decode() != self.root_name:
            self.roots.forget(retired.decode())
        if not self.needs_credentials:
            (self.folder / _LOCKED_LEAF).unlink(missing_ok=True)

    def destroy_due(self, tx: sa.Connection, *, now: datetime) -> None:
        """Destroy every key version whose waiting time is over, and record each."""
        for owner, name, version in self.parts.keys.destroy_due(tx, now=now):
            self.parts.audit.append(
                tx,
                now=now,
                owner=owner,
                actor="service",
                action="destroyed-version",
                subject=f"key {name}",
                allowed=True,
                details={"version": version},
            )

    def leaf(self, *, now: datetime) -> tuple[str, bytes]:
        """Return a TLS certificate chain under the identity key, and its private key.

        A locked service cannot sign. So that it can still say under its identity that it is locked, a service whose
        root key needs a person keeps its last leaf in `locked-leaf.pem` (0600, valid for 30 days).
        """
        path = self.folder / _LOCKED_LEAF
        if self.locked:
            try:
                text = path.read_text()
            except OSError as exc:
                raise IntegrityError(f"{path} is not readable, so the locked service has no certificate") from exc
            key, _, chain = text.partition(_PEM_END)
            return chain.lstrip(), (key + _PEM_END + "\n").encode()
        if self.needs_credentials:
            return self._keep_leaf(now)
        return _new_leaf(self.parts.identity, self.identity_pem, now)

    def _keep_leaf(self, now: datetime) -> tuple[str, bytes]:
        chain, key_pem = _new_leaf(self.parts.identity, self.identity_pem, now)
        write_whole(self.folder / _LOCKED_LEAF, key_pem + chain.encode(), 0o600)
        return chain, key_pem

    def owner_certificates(self) -> list[str]:
        """Return the certificates of every owner that is not revoked."""
        with self.store.transaction() as tx:
            return certificates(tx)


def _new_leaf(identity: ec.EllipticCurvePrivateKey, identity_pem: str, now: datetime) -> tuple[str, bytes]:
    key = x509.new_key()
    leaf = x509.issue(
        x509.certificate_from_pem(identity_pem),
        identity,
        key.public_key(),
        SERVICE_NAME,
        now=now,
        lifetime=timedelta(days=LEAF_DAYS),
        dns=[SERVICE_NAME],
    )
    return x509.certificate_pem(leaf) + identity_pem, x509.private_key_pem(key)


def _tighten(folder: Path, root_folder: Path) -> None:
    # Folders of an older version or from a backup may be open to others, whatever this process's umask is.
    for path, mode in ((folder, 0o700), (root_folder, 0o700), *((file, 0o600) for file in folder.glob("state.db*"))):
        try:
            if path.stat().st_mode & 0o077:
                path.chmod(mode)
                _log.warning("closed to other users path=%s", path)
        except FileNotFoundError:  # a file of SQLite's that has just gone
            continue
        except OSError as exc:
            raise IntegrityError(f"{path} is open to other users: {exc.strerror}", hint=f"chmod go= {path}") from exc


def _pem(key: ec.EllipticCurvePrivateKey) -> SecretBytes:
    return SecretBytes(x509.private_key_pem(key))


def _private(tx: sa.Connection, root: RootKey, name: str, context: bytes) -> ec.EllipticCurvePrivateKey:
    with root.unwrap(get_meta(tx, name) or b"", context) as pem:
        return x509.private_key_from_pem(pem)


def _text(tx: sa.Connection, name: str) -> str:
    value = get_meta(tx, name)
    if value is None:
        raise IntegrityError(f"the database has no {name!r}: it is not complete", hint="restore the newest backup")
    return value.decode(errors="replace")
