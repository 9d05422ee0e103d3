"""What the guest reads from the job document and says about the job at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from strongroom.errors import InputError, StrongroomError

__all__ = ["Report", "column_keys", "kbs_volumes", "service_volumes", "texts", "volumes"]


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
    return [str(item) for item in _items(document, name)]


def _items(document: Mapping[str, object], name: str) -> list[object]:
    value = document.get(name)
    if not isinstance(value, list):
        raise InputError(f"the job document has no list {name!r}")
    return value
