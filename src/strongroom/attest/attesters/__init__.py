"""Attesters: the guest's side. One module per way of getting a quote; none of them can verify one."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Protocol

from strongroom._secret import SecretBytes
from strongroom.attest.evidence import Evidence
from strongroom.errors import EvidenceError, InputError

__all__ = ["Attester", "carrying"]


class Attester(Protocol):
    """Makes evidence about the enclave it runs in."""

    @property
    def tee(self) -> str:
        """Whose evidence it makes: sgx, tdx or snp."""
        ...

    def attest(self, report_data: bytes) -> Evidence:
        """Return evidence that carries exactly these 64 bytes.

        Raises:
            InputError: Not 64 bytes.
            EvidenceError: The answer is not a quote, or carries other report data.
            UnavailableError: The quoting service does not answer or refuses.
        """
        ...

    def sealing_key(self) -> SecretBytes:
        """Return a key of 16 bytes or more that this code alone gets, on this machine alone, after each start.

        Whoever seals by it derives another from it first, by a label of their own.

        Raises:
            UnavailableError: The TEE has none, or refuses it.
        """
        ...


def carrying(report_data: bytes, ask: Callable[[], Evidence], who: str) -> Evidence:
    """Return the evidence that `ask` gets, which carries exactly `report_data`.

    Raises:
        InputError: Not 64 bytes; nobody is asked.
        EvidenceError: `who` answers with something that is no evidence, or carries other report data.
    """
    if len(report_data) != 64:
        raise InputError(f"report data has 64 bytes, got {len(report_data)}")
    evidence = ask()
    if evidence.tee == "snp":
        from strongroom.attest.snp import parse_report  # noqa: PLC0415  # elsewhere it costs a launch its time

        what, carried = "report", parse_report(evidence.quote)["report_data"]
    else:
        from strongroom.attest.quote import parse_quote  # noqa: PLC0415  # a platform quotes meanwhile

        what, carried = "quote", parse_quote(evidence.quote).report_data
    if not hmac.compare_digest(carried, report_data):
        raise EvidenceError(f"{who}: the {what} carries other report data")
    return evidence
