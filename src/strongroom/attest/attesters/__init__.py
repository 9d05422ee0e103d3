"""Attesters: the guest's side. One module per way of getting a quote; none of them can verify one."""

from __future__ import annotations

import hmac
from abc import ABC, abstractmethod
from typing import Protocol

from strongroom._secret import SecretBytes
from strongroom.attest.evidence import Evidence
from strongroom.errors import EvidenceError, InputError

__all__ = ["Attester", "QuotingAttester"]


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
            EvidenceError: The answer is not a quote or report, or carries other report data.
            UnavailableError: Nobody quotes here, or whoever does refuses or does not answer.
        """
        ...

    def sealing_key(self) -> SecretBytes:
        """Return a key of 16 bytes or more that this code alone gets, on this machine alone, after each start.

        Whoever seals by it derives another from it first, by a label of their own.

        Raises:
            UnavailableError: The TEE has none, or refuses it.
        """
        ...


class QuotingAttester(ABC):
    """An attester that asks for a quote or report, and hands on only one that carries what it asked for."""

    who: str
    """Answers, by the name that refusals say."""

    def attest(self, report_data: bytes) -> Evidence:
        """Return evidence that carries exactly `report_data`; raises as `Attester.attest` says."""
        if len(report_data) != 64:
            raise InputError(f"report data has 64 bytes, got {len(report_data)}")
        evidence = self._ask(report_data)
        if evidence.tee == "snp":
            from strongroom.attest.snp import parse_report  # noqa: PLC0415  # elsewhere it costs a launch its time

            what, carried = "report", parse_report(evidence.quote)["report_data"]
        else:
            from strongroom.attest.quote import parse_quote  # noqa: PLC0415  # a platform quotes meanwhile

            what, carried = "quote", parse_quote(evidence.quote).report_data
        if not hmac.compare_digest(carried, report_data):
            raise EvidenceError(f"{self.who}: the {what} carries other report data")
        return evidence

    @abstractmethod
    def _ask(self, report_data: bytes) -> Evidence:
        """Return what answers to `report_data`, unread."""
