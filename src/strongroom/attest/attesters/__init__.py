"""Attesters: the guest's side. One module per way of getting a quote; none of them can verify one."""

from __future__ import annotations

from typing import Protocol

from strongroom._secret import SecretBytes
from strongroom.attest.evidence import Evidence

__all__ = ["Attester"]


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
