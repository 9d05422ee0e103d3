"""The endorsements that a trust service verifies guests with: files in its folder, read again when they change.

The files are the host's word: the chain in them ends in an anchor that the database names, every part is signed under
it, and none is older than one that was seen before, or they are not used. What is refused stops no other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import date, datetime

from strongroom.attest.endorsement_files import SOON_DAYS, ends, read_folder, stamp_of
from strongroom.attest.endorsement_snp import AnyEndorsements
from strongroom.attest.endorsements import TrustAnchor
from strongroom.attest.verifiers import Verifier
from strongroom.attest.verifiers.choose import verifier_for
from strongroom.errors import EndorsementError
from strongroom.service import trust
from strongroom.service.state import TrustService

__all__ = ["EndorsementFolder"]

_log = logging.getLogger(__name__)
_Known = tuple[list[tuple[TrustAnchor, AnyEndorsements]], list[str]]


class EndorsementFolder:
    """The endorsements of one trust service: `{"anchor": ..., "endorsements": [...]}` a file."""

    def __init__(self, service: TrustService) -> None:
        self._service = service
        self._known: tuple[object, _Known] = (None, ([], []))
        self._warned: date | None = None

    def choices(self, anchors: Sequence[Mapping[str, str]], now: datetime) -> list[tuple[Verifier, AnyEndorsements]]:
        """Return a verifier with endorsements for each that may be used under `anchors`.

        Raises:
            EndorsementError: There is none.
        """
        found, refused = self.current(anchors, now)
        choices = [
            (verifier_for(anchor, endorsements, trusted), endorsements)
            for anchor, endorsements in found
            for trusted in anchors
            if (anchor.fingerprint, anchor.kind) == (trusted["fingerprint"], trusted["kind"])
        ]
        if not choices:
            why = "".join(f"; {reason}" for reason in refused)
            raise EndorsementError(
                f"the trust service has no endorsements for any root it trusts{why}",
                hint="`strongroom attest endorsements fetch`; SIMULATED: `strongroom service refresh-endorsements`",
            )
        return choices

    def current(self, anchors: Sequence[Mapping[str, str]], now: datetime) -> _Known:
        """Return what may be used under `anchors`, and why the rest may not; log once a day what ends soon."""
        folder = self._service.folder / "endorsements"
        trusted = frozenset((a["fingerprint"], a["kind"]) for a in anchors)
        stamp = (trusted, stamp_of(folder))
        before, known = self._known
        if stamp != before:
            found, refused = read_folder(folder)
            with self._service.store.transaction() as tx:
                found, more = trust.renewed(tx, [(a, e) for a, e in found if (a.fingerprint, a.kind) in trusted])
            known = found, refused + more
            self._known = stamp, known
            for reason in known[1]:
                _log.warning("endorsements are not used reason=%s", reason)
        if self._warned != now.date():  # for the day after the last every guest is refused
            self._warned = now.date()
            for days, text in ends(known[0], now):
                if days < SOON_DAYS:
                    _log.warning("endorsements end days=%d %s", days, text)
        return known
