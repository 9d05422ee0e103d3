"""Data-set heads: what each data set is right now, changed by compare-and-swap only."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec

from strongroom.crypto import jose
from strongroom.crypto.proof import DATASET_HEAD_TYPE
from strongroom.errors import DeniedError, InputError, IntegrityError
from strongroom.kms.owners import check_room
from strongroom.kms.stores.sql import datasets, held, key_versions

__all__ = ["DatasetStore", "Step"]

_MANIFEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A commit: from which head to which.

    Attributes:
        epoch: Of the head that it follows.
        manifest: Of that head, None if the data set is empty.
        new_manifest: What the next epoch's is to be.
        versions: Of the key, which the files need.
    """

    epoch: int
    manifest: str | None
    new_manifest: str
    versions: Sequence[int]


class DatasetStore:
    """Heads in a store, signed with the service's signing key (formats/data-set.md §3)."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    def create(self, tx: sa.Connection, owner: str, key: str, *, now: datetime) -> dict[str, object]:
        """Register a new, empty data set; return its head."""
        row = {
            "id": secrets.token_hex(16),
            "owner": owner,
            "key": key,
            "epoch": 0,
            "manifest": None,
            "versions": "[]",
            "created": now.isoformat(),
            "updated": now.isoformat(),
        }
        tx.execute(sa.insert(datasets).values(**row))
        check_room(tx, owner)
        return self.head(tx, owner, str(row["id"]))

    def head(self, tx: sa.Connection, owner: str, dataset: str) -> dict[str, object]:
        """Return the head of a data set of this owner.

        Raises:
            InputError: The owner has none of that id.
        """
        row = tx.execute(sa.select(datasets).where(datasets.c.id == dataset, datasets.c.owner == owner)).first()
        if row is None:
            raise InputError(f"there is no data set {dataset}", hint="`strongroom data list` shows yours")
        return {
            "dataset": row.id,
            "epoch": row.epoch,
            "key": row.key,
            "manifest": row.manifest,
            "owner": row.owner,
        }

    def signed(self, head: Mapping[str, object]) -> str:
        """Return `head` as a signed statement."""
        return jose.sign_jws(head, self._key, typ=DATASET_HEAD_TYPE)

    def all(self, tx: sa.Connection, owner: str) -> list[dict[str, object]]:
        """Return the heads of all the owner's data sets, with when each came and changed."""
        found = sa.select(datasets.c.id, datasets.c.created, datasets.c.updated).where(datasets.c.owner == owner)
        rows = tx.execute(found.order_by(datasets.c.created)).all()
        return [{**self.head(tx, owner, row.id), "created": row.created, "updated": row.updated} for row in rows]

    def commit(self, tx: sa.Connection, owner: str, dataset: str, step: Step, *, now: datetime) -> dict[str, object]:
        """Replace the head that `step` follows by the next epoch's; return the new head.

        Raises:
            InputError: Not the name of a manifest, or not versions that exist.
            IntegrityError: The head is not the one expected: somebody else committed, or the data set was rolled back.
        """
        found = self._expected(tx, owner, dataset, step)
        return self._set(tx, found, step.new_manifest, step.versions, now)

    def _expected(self, tx: sa.Connection, owner: str, dataset: str, step: Step) -> dict[str, object]:
        _check_manifest(step.new_manifest)
        found = self.head(tx, owner, dataset)
        if (found["epoch"], found["manifest"]) != (step.epoch, step.manifest):
            raise IntegrityError(
                f"data set {dataset} is at epoch {found['epoch']}, expected {step.epoch}: another run committed first",
                hint="nothing was lost; run the job again on the newer data",
            )
        return found

    def hold(
        self,
        tx: sa.Connection,
        owner: str,
        dataset: str,
        step: Step,
        *,
        document: Mapping[str, object],
        now: datetime,
    ) -> None:
        """Keep a commit until the owner decides; the head stays. `document` says who made it from what, for the owner.

        Raises:
            InputError, IntegrityError: As for `commit`; or another output waits.
        """
        found = self._expected(tx, owner, dataset, step)
        _check_versions(tx, found, step.versions)
        same = sa.and_(held.c.dataset == dataset, held.c.epoch == step.epoch, held.c.new_manifest == step.new_manifest)
        if tx.execute(sa.select(held.c.dataset).where(same)).first() is not None:
            return  # asked for again: the answer was lost
        self.check_none_held(tx, dataset)
        tx.execute(
            sa.insert(held).values(
                dataset=dataset,
                owner=owner,
                epoch=step.epoch,
                manifest=step.manifest,
                new_manifest=step.new_manifest,
                versions=json.dumps(sorted(set(step.versions))),
                document=json.dumps(dict(document)),
                created=now.isoformat(),
            )
        )

    @staticmethod
    def check_none_held(tx: sa.Connection, dataset: str) -> None:
        """Refuse a data set of which an output waits for its owner.

        Raises:
            DeniedError: It has one.
        """
        if tx.execute(sa.select(held.c.dataset).where(held.c.dataset == dataset)).first() is not None:
            raise DeniedError(
                f"an output of data set {dataset} waits for its owner's approval",
                hint="the owner: `strongroom output list`, then approve or reject it",
            )

    def all_held(self, tx: sa.Connection, owner: str) -> list[dict[str, object]]:
        """Return the outputs that wait for this owner."""
        rows = tx.execute(sa.select(held).where(held.c.owner == owner).order_by(held.c.created)).all()
        return [
            {
                "dataset": row.dataset,
                "key": self.head(tx, owner, row.dataset)["key"],
                "epoch": row.epoch + 1,
                "manifest": row.new_manifest,
                "since": row.created,
                **json.loads(row.document),
            }
            for row in rows
        ]

    def decide_held(
        self, tx: sa.Connection, owner: str, dataset: str, *, manifest: str, approve: bool, now: datetime
    ) -> dict[str, object]:
        """Commit or forget the output that waits, which must be the one named; return the head.

        Raises:
            InputError: There is no such output.
        """
        of_owner = sa.and_(held.c.dataset == dataset, held.c.owner == owner, held.c.new_manifest == manifest)
        row = tx.execute(sa.select(held).where(of_owner)).first()
        if row is None:
            raise InputError(f"no such output of data set {dataset} waits", hint="`strongroom output list`")
        tx.execute(sa.delete(held).where(of_owner))
        if not approve:
            return self.head(tx, owner, dataset)
        versions = json.loads(row.versions)
        step = Step(epoch=row.epoch, manifest=row.manifest, new_manifest=row.new_manifest, versions=versions)
        return self.commit(tx, owner, dataset, step, now=now)

    def accept(
        self, tx: sa.Connection, owner: str, dataset: str, *, manifest: str, versions: Sequence[int], now: datetime
    ) -> dict[str, object]:
        """Make `manifest` the head at the next epoch, whatever it was: the owner restored a backup on purpose."""
        found = self.head(tx, owner, dataset)
        _check_manifest(manifest)
        self.check_none_held(tx, dataset)
        return self._set(tx, found, manifest, versions, now)

    def forget(self, tx: sa.Connection, owner: str, dataset: str) -> None:
        """Remove a data set's head; its files can no longer be read."""
        self.head(tx, owner, dataset)
        tx.execute(sa.delete(datasets).where(datasets.c.id == dataset))
        tx.execute(sa.delete(held).where(held.c.dataset == dataset))

    def _set(
        self, tx: sa.Connection, head: Mapping[str, object], manifest: str, versions: Sequence[int], now: datetime
    ) -> dict[str, object]:
        _check_versions(tx, head, versions)
        tx.execute(sa.delete(held).where(held.c.dataset == head["dataset"]))  # what waited does not follow the new head
        needed = json.dumps(sorted(set(versions)))
        changes = {"epoch": datasets.c.epoch + 1, "manifest": manifest, "versions": needed, "updated": now.isoformat()}
        tx.execute(sa.update(datasets).where(datasets.c.id == head["dataset"]).values(**changes))
        return self.head(tx, str(head["owner"]), str(head["dataset"]))


def _check_manifest(name: str) -> None:
    if not _MANIFEST.fullmatch(name):
        raise InputError("a manifest is named sha256:<64 hex digits>")


def _check_versions(tx: sa.Connection, head: Mapping[str, object], versions: Sequence[int]) -> None:
    # They keep key versions from being destroyed: a list that is empty or wrong would lose the data with the key.
    if not versions or any(isinstance(v, bool) or not isinstance(v, int) for v in versions):
        raise InputError("the key versions that the files need: expected a list of numbers that is not empty")
    of_key = (key_versions.c.owner == head["owner"], key_versions.c.name == head["key"])
    there = sa.select(key_versions.c.version).where(*of_key, key_versions.c.state != "destroyed")
    missing = sorted(set(versions) - set(tx.execute(there).scalars()))
    if missing:
        raise InputError(
            f"version {missing[0]} of key {head['key']!r} is destroyed or never was: its files could not be read",
            hint="run the job again: it writes with a version that is there",
        )
