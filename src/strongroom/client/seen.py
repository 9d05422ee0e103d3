"""What this owner has seen of a trust service: its newest audit head and the highest epoch of each data set.

A service that shows less was restored from an older database, or lies. And where each data set was met last: nothing
but a person's memory.
"""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from strongroom._unix import write_whole
from strongroom.errors import IntegrityError
from strongroom.kms.audit_chain import AuditHead

__all__ = ["Seen"]


@dataclass(slots=True)
class Seen:
    """The memory in one file.

    Attributes:
        path: The file; written at each advance.
    """

    path: Path
    head: AuditHead | None = None
    epochs: dict[str, int] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Seen:
        """Return what was seen so far.

        Raises:
            IntegrityError: The file is damaged; forgetting silently would accept an old database.
        """
        if not path.exists():
            return cls(path=path)
        try:
            found = json.loads(path.read_text())
            head = found["head"]
            return cls(
                path=path,
                head=AuditHead(seq=int(head["seq"]), chain=str(head["chain"])) if head is not None else None,
                epochs={str(k): int(v) for k, v in found["epochs"].items()},
                folders={str(k): str(v) for k, v in found.get("folders", {}).items()},
            )
        except (OSError, AttributeError, ValueError, KeyError, TypeError) as exc:
            raise IntegrityError(f"{path} is damaged", hint="delete it to trust the service's present state") from exc

    def see_head(self, head: AuditHead) -> None:
        """Accept a head that is not older than the newest one seen.

        Raises:
            IntegrityError: It is older, or another at the same place.
        """
        if self.head is not None:
            if head.seq < self.head.seq:
                raise IntegrityError(
                    f"the trust service shows {head.seq} audit records, but {self.head.seq} were seen before: "
                    "an older database was restored",
                    hint="find the newest database; `strongroom doctor` names the workspace's files",
                )
            if head.seq == self.head.seq and head.chain != self.head.chain:
                raise IntegrityError(f"audit record {head.seq} is not the one seen before: the log was rewritten")
        if self.head is None or head.seq > self.head.seq:
            self.head = head
            self._save()

    def see_epoch(self, dataset: str, epoch: int) -> None:
        """Accept an epoch that is not lower than the highest one seen.

        Raises:
            IntegrityError: It is lower.
        """
        highest = self.epochs.get(dataset, 0)
        if epoch < highest:
            raise IntegrityError(
                f"the trust service shows data set {dataset} at epoch {epoch}, but epoch {highest} was seen before: "
                "an older database was restored"
            )
        if epoch > highest:
            self.epochs[dataset] = epoch
            self._save()

    def see_folder(self, dataset: str, folder: str) -> None:
        """Remember that `dataset` is in `folder`, a path from the root or a URL."""
        if self.folders.get(dataset) != folder and urlsplit(folder).password is None:  # no secret goes to the disk
            self.folders[dataset] = folder
            self._save(folder_of=dataset)

    def _save(self, folder_of: str = "") -> None:
        # Commands run side by side: each adds to what the file says, none takes anything back.
        with open(self.path.with_name(f".{self.path.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            other = Seen.load(self.path)
            if other.head is not None and (self.head is None or other.head.seq > self.head.seq):
                self.head = other.head
            for dataset, epoch in other.epochs.items():
                self.epochs[dataset] = max(epoch, self.epochs.get(dataset, 0))
            self.folders = {**self.folders, **other.folders} | {n: f for n, f in self.folders.items() if n == folder_of}
            head = {"seq": self.head.seq, "chain": self.head.chain} if self.head else None
            write_whole(self.path, json.dumps({"head": head, "epochs": self.epochs, "folders": self.folders}))
