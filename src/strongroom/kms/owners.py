"""Owners: who is registered at this trust service, and who was.

An owner is the fingerprint of a certificate that its own key signed. A revoked owner's row stays, without certificate,
so that neither the fingerprint nor the name can come back by a replayed admission.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from strongroom.crypto import x509
from strongroom.errors import InputError
from strongroom.kms.stores.sql import datasets, held, key_versions, owners, policies, requests

__all__ = ["add_owner", "certificates", "check_room", "is_registered", "list_owners", "revoke_owner"]

_REVOKED = ""
_MAX_ROWS = 10_000
_MAX_POLICY_CHARS = 8 << 20


def add_owner(tx: sa.Connection, name: str, pem: str, *, now: datetime) -> str:
    """Register an owner; return the owner's id, the certificate's fingerprint.

    Raises:
        InputError: Not an owner's certificate, signed by its own key, that holds now; or name or certificate are taken,
            be it by a revoked owner.
    """
    certificate = x509.certificate_from_pem(pem)  # the first one; whatever else is in the text gets no trust
    try:
        x509.check_own(certificate, ca=False, now=now)
    except InputError as exc:
        exc.hint = "`strongroom owner request` writes it"
        raise
    owner, pem = x509.fingerprint(certificate), x509.certificate_pem(certificate)
    taken = sa.select(owners.c.certificate).where(sa.or_(owners.c.id == owner, owners.c.name == name))
    row = tx.execute(taken).first()
    if row is not None:
        revoked = " and was revoked" if row.certificate == _REVOKED else ""
        raise InputError(
            f"an owner with the name {name!r} or this certificate exists{revoked}",
            hint="a new owner has a new name and a new certificate: `strongroom owner request`",
        )
    tx.execute(sa.insert(owners).values(id=owner, name=name, certificate=pem, created=now.isoformat()))
    return owner


def revoke_owner(tx: sa.Connection, owner: str) -> str:
    """Let an owner in no more, for good; return the owner's name.

    Raises:
        InputError: No such owner, or revoked already.
    """
    row = tx.execute(sa.select(owners).where(owners.c.id == owner)).first()
    if row is None or row.certificate == _REVOKED:
        raise InputError(f"there is no owner {owner:.64} to revoke", hint="`strongroom owner list` shows them")
    tx.execute(sa.update(owners).where(owners.c.id == owner).values(certificate=_REVOKED))
    for table in (policies, requests, held):  # nobody may read them again; keys and data sets stay, which are small
        tx.execute(sa.delete(table).where(table.c.owner == owner))
    return str(row.name)


def check_room(tx: sa.Connection, owner: str) -> None:
    """Return only if what the owner keeps leaves room for others: the state lies in the service's memory.

    Raises:
        InputError: Too many versions of keys and data sets, or policies that are too long.
    """
    counts = (sa.select(sa.func.count()).select_from(t).where(t.c.owner == owner) for t in (key_versions, datasets))
    rows = sum(tx.execute(count).scalar_one() for count in counts)
    if rows > _MAX_ROWS:
        raise InputError(f"an owner has at most {_MAX_ROWS} versions of keys and data sets")
    length = sa.select(sa.func.sum(sa.func.length(policies.c.document))).where(policies.c.owner == owner)
    if (tx.execute(length).scalar() or 0) > _MAX_POLICY_CHARS:
        raise InputError(f"an owner's release policies have at most {_MAX_POLICY_CHARS} characters in all")


def is_registered(tx: sa.Connection, owner: str) -> bool:
    """Return whether `owner` is registered and not revoked."""
    found = tx.execute(sa.select(owners.c.certificate).where(owners.c.id == owner)).scalar()
    return bool(found)


def certificates(tx: sa.Connection) -> list[str]:
    """Return the certificates of every owner that is not revoked."""
    return [str(pem) for pem in tx.execute(sa.select(owners.c.certificate)).scalars() if pem != _REVOKED]


def list_owners(tx: sa.Connection) -> list[dict[str, object]]:
    """Return every owner's id, name, date and whether it was revoked."""
    rows = tx.execute(sa.select(owners).order_by(owners.c.created))
    return [{"owner": r.id, "name": r.name, "created": r.created, "revoked": r.certificate == _REVOKED} for r in rows]
