"""What the guest reads from the job document, and leaves for the operator: its evidence, and how the job ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from strongroom._encoding import parse_json
from strongroom._secret import SecretBytes
from strongroom.attest.attesters import Attester
from strongroom.attest.binding import JOB_FILE, parse_init_data
from strongroom.attest.evidence import Evidence
from strongroom.errors import EndorsementError, InputError, StrongroomError, VerificationError

__all__ = [
    "LeftEvidence",
    "Report",
    "column_keys",
    "kbs_volumes",
    "read_job",
    "read_object",
    "service_volumes",
    "table",
    "texts",
    "volumes",
]


@dataclass(slots=True)
class Report:
    """What the guest tells the operator at the end: outcomes and public facts, never data."""

    status: str = "failed"
    exit_code: int | None = None
    error: dict[str, object] = field(default_factory=dict)
    details: dict[str, object] = field(default_factory=dict)

    def fail(self, error: StrongroomError, *, status: str = "failed") -> None:
        """Record what went wrong."""
        self.status = status
        self.error = {"code": error.code, "message": str(error), "hint": error.hint, "details": error.details}

    @property
    def exit_status(self) -> int:
        """The program's exit code, or 1 if it did not run to its end."""
        return 1 if self.exit_code is None or self.status != "completed" else self.exit_code

    def to_json(self) -> dict[str, object]:
        """Return it as JSON-ready data."""
        return {"status": self.status, "exit_code": self.exit_code, "error": self.error, "details": self.details}


@dataclass(slots=True)
class LeftEvidence:
    """An attester whose first evidence is left for the host: who fetches endorsements needs one quote of the machine.

    It says what every reader of the quote learns, and is worth nothing to them: what it binds is one nonce, which the
    service takes once, and a key of this guest's. It is written before it is sent, so also by a guest that is refused.

    Attributes:
        attester: Makes the evidence.
        place: The host's: a link there is not followed, and a host that takes no file gets none.
        left: Whether it is there.
    """

    attester: Attester
    place: Path
    left: bool = False

    @property
    def tee(self) -> str:
        """As the attester's."""
        return self.attester.tee

    def sealing_key(self) -> SecretBytes:
        """As the attester's."""
        return self.attester.sealing_key()

    def attest(self, report_data: bytes) -> Evidence:
        """As the attester's; leave the first."""
        evidence = self.attester.attest(report_data)
        if not self.left:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
            with contextlib.suppress(OSError), open(os.open(self.place, flags, 0o644), "wb") as file:
                file.write(evidence.quote)
                self.left = True
        return evidence

    def explain(self, error: dict[str, object]) -> None:
        """Say in a report's error what the evidence is for, if it was not believed."""
        if self.left and error.get("code") in (EndorsementError.code, VerificationError.code):
            error["hint"] = (
                f"{error.get('hint')}; if it has no endorsements for this machine, or does not trust their root: take "
                f"launch/{self.place.name} to it, `strongroom attest endorsements fetch {self.place.name}`, and "
                "`strongroom service trust` as that says"
            )


def read_job(folder: Path) -> tuple[str, dict[str, object]]:
    """Return the Initdata text in `folder`, and the job document in it."""
    init_data = (folder / "init-data.toml").read_text()
    parsed = parse_json(parse_init_data(init_data)[JOB_FILE], "the job document")
    if not isinstance(parsed, dict):
        raise InputError("the job document is not an object")
    return init_data, parsed


def read_object(path: Path) -> dict[str, object]:
    """Return the JSON object in a file."""
    value = parse_json(path.read_bytes(), path.name)
    if not isinstance(value, dict):
        raise InputError(f"{path.name} is not an object")
    return value


def volumes(document: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the job's volumes, wherever their keys lie."""
    return service_volumes(document) + kbs_volumes(document)


def service_volumes(document: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the volumes whose keys the trust service has."""
    return [v for v in _items(document, "volumes") if isinstance(v, dict)]


def kbs_volumes(document: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the volumes whose keys lie at a stock KBS, their owner its URL; only a job with some has the list."""
    return [v for v in _items({"kbs": [], **document}, "kbs") if isinstance(v, dict)]


def column_keys(document: Mapping[str, object]) -> list[dict[str, object]]:
    """Return the keys that the job uses without a volume; only a job with some has the list."""
    return [k for k in _items({"keys": [], **document}, "keys") if isinstance(k, dict)]


def texts(document: Mapping[str, object], name: str) -> list[str]:
    """Return a list of texts."""
    found = _items(document, name)
    if not all(isinstance(item, str) for item in found):
        raise InputError(f"the job document has no list of texts {name!r}")
    return [str(item) for item in found]


def table(document: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return a table, which is empty if the document has none."""
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _items(document: Mapping[str, object], name: str) -> list[object]:
    value = document.get(name)
    if not isinstance(value, list):
        raise InputError(f"the job document has no list {name!r}")
    return value
