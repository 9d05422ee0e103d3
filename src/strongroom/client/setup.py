"""Setting a workspace up: owner certificate, simulated platform, embedded trust service."""

from __future__ import annotations

import contextlib
import fcntl
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.x509 import Certificate

from strongroom._unix import read_text, write_whole
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.simulated.platform import load_seed
from strongroom.client.endorsements import refresh_endorsements
from strongroom.client.owner import pinned_identity
from strongroom.client.petnames import check_name
from strongroom.client.workspace import FOLDER, PIN_FILE, Workspace
from strongroom.crypto import x509
from strongroom.errors import InputError, VerificationError
from strongroom.service.state import TrustService

__all__ = ["Created", "accept_look", "create_workspace", "first_look", "request_workspace"]

OWNER_DAYS = 3650


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """A new workspace, and what its root kind hands to people (shares), to be shown once."""

    workspace: Workspace
    handout: list[str]


def create_workspace(
    parent: Path, *, owner: str = "owner", root_kind: str = "keyfile", root_options: Mapping[str, str] | None = None
) -> Created:
    """Make `parent/.strongroom` with an embedded trust service that trusts a simulated platform of its own.

    Raises:
        InputError: There is one already, the folder cannot be written, or `owner` cannot stand in KEY@OWNER.
    """
    check_name(owner)
    folder = _new_folder(parent)
    now = datetime.now(UTC)
    try:
        certificate = _new_owner(folder, owner, now)
        seed = folder / "simulated" / "seed"
        anchor = SimulatedPKI.create(load_seed(seed), now=now).anchor()
        service, handout = TrustService.create(
            folder / "service",
            folder / "root",
            kind=root_kind,
            options=root_options or {},
            owner_name=owner,
            owner_pem=x509.certificate_pem(certificate),
            anchors=[{"kind": anchor.kind, "fingerprint": anchor.fingerprint}],
            now=now,
        )
    except OSError as exc:
        raise InputError(f"the workspace {folder} cannot be written: {exc.strerror}") from exc
    write_whole(folder / "identity.pem", service.identity_pem)
    refresh_endorsements(folder, now=now)
    service.store.close()
    _, identity = _read_identity(folder / "identity.pem")
    made = Workspace(folder=folder.resolve(), identity=identity, owner=x509.fingerprint(certificate), name=owner)
    return Created(workspace=made.written(), handout=handout)


def request_workspace(
    parent: Path, *, name: str, service: str, identity: Path | None = None, first: bool = False
) -> tuple[Workspace, Path]:
    """Make `parent/.strongroom` for a further owner of the trust service at `service`; return it and the request.

    The request is the owner's certificate, signed by its own key: its fingerprint is who the owner is from now on. The
    service's administrator admits it; nothing has to come back.

    Args:
        parent: The new workspace's folder.
        name: What the owner is called.
        service: Folder of the service's workspace on this machine, or `host:port`.
        identity: The service's identity certificate, from its administrator; needed for `host:port`.
        first: The service does not exist yet: it is made in its TEE, for this owner to administer.

    Raises:
        InputError: There is a workspace or request already, or no such service.
        VerificationError: The service's folder has another identity than `identity`.
    """
    check_name(name)
    pem, pin, where = _service(service, identity, first=first)
    folder, request = _new_folder(parent), parent / f"{name}.pem"
    if request.exists():
        raise InputError(f"{request} exists", hint="choose another name or folder")
    try:
        certificate = _new_owner(folder, name, datetime.now(UTC))
        if pem:
            write_whole(folder / "identity.pem", pem)
        request.write_text(x509.certificate_pem(certificate))
        own = x509.fingerprint(certificate)
        made = Workspace(folder=folder.resolve(), identity=pin, owner=own, name=name, service=where)
        return made.written(), request
    except OSError as exc:
        with contextlib.suppress(OSError):
            request.unlink()  # else it would be in the way of the next one
        raise InputError(f"the workspace {folder} cannot be written: {exc.strerror}") from exc


@contextlib.contextmanager
def first_look(workspace: Workspace, identity: Path) -> Iterator[Workspace]:
    """Give a workspace as if the service with the identity certificate `identity` were its own, to look at it.

    It has a folder of its own, which goes afterwards: the certificate is the host's word until `accept_look`.
    """
    pem, spki = _read_identity(identity)
    with tempfile.TemporaryDirectory(dir=workspace.folder, prefix=".look-") as name:
        folder = Path(name)
        for own in ("owner.key", "owner.pem"):
            (folder / own).symlink_to(workspace.folder / own)
        write_whole(folder / "identity.pem", pem)
        yield replace(workspace, folder=folder, identity=spki)


def accept_look(workspace: Workspace, looked: Workspace) -> None:
    """Make the service that `first_look` gave as `looked` the workspace's own, with what was seen and pinned of it.

    Raises:
        InputError: Another look was accepted meanwhile.
    """
    with open(workspace.folder / ".workspace.toml.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if Workspace.find(workspace.folder).identity:
            raise InputError("this workspace knows a trust service by now: another look was accepted meanwhile")
        for name in (PIN_FILE, "seen.json", "identity.pem"):  # workspace.toml last: before it, nothing of this counts
            if (looked.folder / name).exists():
                (looked.folder / name).replace(workspace.folder / name)
            else:  # of a look whose end was cut off
                (workspace.folder / name).unlink(missing_ok=True)
        replace(workspace, identity=looked.identity).written()


def _read_identity(path: Path) -> tuple[str, str]:
    # Its PEM, and its key's id.
    text = read_text(path, "ask the administrator for it")
    try:
        certificate = x509.certificate_from_pem(text)
        x509.check_own(certificate, ca=True, now=datetime.now(UTC))
    except InputError as exc:
        exc.hint = "the administrator's .strongroom/identity.pem, not a request or an owner's certificate"
        exc.args = (f"{path} is not a trust service's identity: {exc}",)
        raise
    return x509.certificate_pem(certificate), x509.spki_id(certificate.public_key())  # type: ignore[arg-type]  # P-256


def _service(service: str, identity: Path | None, *, first: bool) -> tuple[str, str, str]:
    given = _read_identity(identity) if identity else None
    if not first and service and Path(service).is_dir():
        found = Workspace.find(Path(service))
        if not found.embedded:
            raise InputError(f"{service} has no trust service of its own", hint=f"name its service: {found.service}")
        pinned_identity(found)
        if given is not None and given[0] != found.identity_pem:
            raise VerificationError(f"the trust service in {service} has another identity than {identity}")
        return found.identity_pem, found.identity, str(found.folder)
    if not re.fullmatch(r"[^/\s:]+:[0-9]{1,5}|\[[0-9a-fA-F:]+\]:[0-9]{1,5}", service):
        raise InputError(
            f"{service!r} is neither a workspace nor host:port", hint="strongroom owner request --service FOLDER"
        )
    if first and given is None:
        return "", "", service
    if given is None or first:
        raise InputError(
            f"how to know the trust service at {service}?",
            hint="--identity FILE, its .strongroom/identity.pem, which its administrator hands you; or --first",
        )
    return *given, service


def _new_folder(parent: Path) -> Path:
    folder = parent / FOLDER
    if (folder / "workspace.toml").exists():
        raise InputError(f"there is a workspace in {parent}", hint="use it, or choose another folder")
    return folder


def _new_owner(folder: Path, name: str, now: datetime) -> Certificate:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = x509.new_key()
    certificate = x509.self_signed(key, name, now=now, days=OWNER_DAYS, ca=False)
    write_whole(folder / "owner.key", x509.private_key_pem(key), 0o600)
    write_whole(folder / "owner.pem", x509.certificate_pem(certificate))
    return certificate
