"""What a trust service believes: the roots of evidence, and how new the endorsements under them have to be.

It lies in the state, so that another process on the same state sees a change at its next request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from strongroom.attest.endorsement_snp import AnyEndorsements
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.verifiers.newest import Mark, newest
from strongroom.errors import EndorsementError, InputError
from strongroom.kms.messages import MAX_LEASE_S
from strongroom.kms.stores.sql import get_meta, meta, set_meta

__all__ = ["Trust", "add_root", "believe", "renewed", "set_lease", "take_root_back", "trusted"]

_ANCHORS = "anchors"
_CHANGES = "trust-changes"
_LEASE = "lease-s"
_SEEN = "endorsements-seen"
_ALL = sa.select(meta).where(sa.or_(*(meta.c.name == name for name in (_ANCHORS, _CHANGES, _LEASE))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What the service believes at one moment.

    Attributes:
        anchors: The roots of evidence, each with its settings.
        changes: How often trust in a root changed, by fingerprint: so what attested before does not come back with it.
        lease_s: Of guests that attest now.
    """

    anchors: Sequence[Mapping[str, str]] = ()
    changes: Mapping[str, int] = field(default_factory=dict)
    lease_s: int = MAX_LEASE_S


def believe(tx: sa.Connection, anchors: Sequence[Mapping[str, str]]) -> None:
    """Set which roots a new service believes."""
    set_meta(tx, _ANCHORS, json.dumps([dict(a) for a in anchors]).encode())


def trusted(tx: sa.Connection) -> Trust:
    """Return what is believed now."""
    found = {row.name: row.value for row in tx.execute(_ALL)}  # each request asks: one statement
    return Trust(
        anchors=json.loads(found[_ANCHORS]),
        changes=json.loads(found.get(_CHANGES, b"{}")),
        lease_s=int(found.get(_LEASE, MAX_LEASE_S)),
    )


def set_lease(tx: sa.Connection, lease_s: int) -> None:
    """Give guests that attest from now on a lease of `lease_s`; leases that run stay as they are."""
    set_meta(tx, _LEASE, str(lease_s).encode())


def add_root(tx: sa.Connection, anchor: Mapping[str, str]) -> None:
    """Believe evidence under the hardware root `anchor` from now on, or under other settings than before."""
    _change(tx, anchor["fingerprint"], dict(anchor))


def take_root_back(tx: sa.Connection, fingerprint: str) -> None:
    """Believe nothing under a root any more; which of its endorsements were seen is remembered.

    Raises:
        InputError: It is not trusted.
    """
    if not _change(tx, fingerprint, None):
        raise InputError(f"the root {fingerprint[:16]} is not trusted")


def renewed(
    tx: sa.Connection, found: Sequence[tuple[TrustAnchor, AnyEndorsements]]
) -> tuple[list[tuple[TrustAnchor, AnyEndorsements]], list[str]]:
    """Return endorsements that are proven and no older than what was ever seen, and why others are refused."""
    seen: dict[str, Mark] = {k: (v[0], v[1]) for k, v in json.loads(get_meta(tx, _SEEN) or b"{}").items()}
    before, judged = dict(seen), newest(found, seen)
    if seen != before:
        set_meta(tx, _SEEN, json.dumps(seen).encode())
    good = [(a, one) for (a, _), one in zip(found, judged, strict=True) if not isinstance(one, EndorsementError)]
    return good, [str(one) for one in judged if isinstance(one, EndorsementError)]


def _change(tx: sa.Connection, fingerprint: str, anchor: dict[str, str] | None) -> bool:
    # Changes are counted, so that what attested under a root does not come back when the root does.
    before = trusted(tx).anchors
    others = [a for a in before if a["fingerprint"] != fingerprint]
    changed = others != before if anchor is None else anchor not in before
    if changed:
        changes = trusted(tx).changes
        set_meta(tx, _CHANGES, json.dumps({**changes, fingerprint: changes.get(fingerprint, 0) + 1}).encode())
        believe(tx, [*others, anchor] if anchor else others)
    return changed
