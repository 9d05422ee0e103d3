"""One authenticated request of an owner, and its record."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import sqlalchemy as sa

from strongroom.errors import InputError
from strongroom.kms import messages
from strongroom.service.state import TrustService

__all__ = ["Call", "body_of", "number", "record"]

_B = TypeVar("_B", bound=messages.Body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One authenticated request.

    Attributes:
        owner: Fingerprint of the client certificate.
        path: Path parameters.
        query: Query parameters.
        body: Parsed body.
        now: UTC.
    """

    owner: str
    path: dict[str, str]
    query: dict[str, str]
    body: messages.Body
    now: datetime

    @property
    def actor(self) -> str:
        """How the audit log calls the caller."""
        return f"owner {self.owner[:16]}"

    def number(self, name: str) -> int:
        """Return a whole number from the path."""
        return number(name, self.path[name])


def record(
    service: TrustService,
    tx: sa.Connection,
    call: Call,
    action: str,
    subject: str,
    details: dict[str, object] | None = None,
) -> None:
    """Note in the audit log what the caller did."""
    service.parts.audit.append(
        tx,
        now=call.now,
        owner=call.owner,
        actor=call.actor,
        action=action,
        subject=subject,
        allowed=True,
        details=details,
    )


def number(name: str, text: str) -> int:
    """Return the whole number in a path or query."""
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise InputError(f"{name} is a whole number, got {text[:40]!r}")
    return int(text)


def body_of(call: Call, kind: type[_B]) -> _B:
    """Return the body, which was parsed as `kind`."""
    assert isinstance(call.body, kind)
    return call.body
