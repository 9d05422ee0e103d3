"""The attester inside Occlum: one ioctl on its own device takes report data and fills in the quote.

The pseudo-files that Occlum has beside it (`/dev/attestation_report_data`) are one for the whole enclave, so that
another process may write between; the ioctl is one call. The quote passes through the host's quoting service. Nothing
that arrives is trusted; a wrong quote fails at the verifier.

Source: Occlum 0.30 and 0.31, src/libos/src/fs/dev_fs/dev_sgx (command numbers 7 and 8 of `s`, `IoctlGenDCAPQuoteArg`).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from strongroom._secret import SecretBytes
from strongroom.attest.attesters import QuotingAttester
from strongroom.attest.evidence import MAX_EVIDENCE_BYTES, Evidence
from strongroom.attest.quote import trimmed
from strongroom.errors import EvidenceError, UnavailableError

__all__ = ["DEVICE", "OcclumAttester"]

DEVICE = Path("/dev/sgx")
_GET_SIZE, _GENERATE = 0x80047307, 0xC0187308  # _IOR('s', 7, uint32), _IOWR('s', 8, three pointers)


class OcclumAttester(QuotingAttester):
    """Gets DCAP quotes from Occlum; one request at a time.

    Args:
        device: Occlum's device.
        ioctl: `fcntl.ioctl`, which changes the bytes that it is given.
    """

    tee = "sgx"
    who = "occlum"

    def __init__(self, device: Path = DEVICE, ioctl: Callable[[int, int, bytearray], object] = fcntl.ioctl) -> None:
        self._device = device
        self._ioctl = ioctl

    def sealing_key(self) -> SecretBytes:
        """Refuse: a key for this measurement would be one for whatever files its host puts there (decisions/0018)."""
        raise UnavailableError(
            "occlum: it has no sealing key for the files it runs", hint="root kind shares or passphrase"
        )

    def _ask(self, report_data: bytes) -> Evidence:
        try:
            handle = os.open(self._device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return Evidence(tee=self.tee, quote=trimmed(self._quote(handle, report_data)))
            finally:
                os.close(handle)
        except OSError as exc:
            hint = "is this Occlum with DCAP, on a machine with SGX?"
            raise UnavailableError(f"occlum: {self._device}: {exc.strerror}", hint=hint) from exc

    def _quote(self, handle: int, report_data: bytes) -> bytes:
        length = bytearray(4)
        self._ioctl(handle, _GET_SIZE, length)
        size = int.from_bytes(length, "little")
        if not 0 < size <= MAX_EVIDENCE_BYTES:
            raise EvidenceError(f"occlum: expected a quote of 1 to {MAX_EVIDENCE_BYTES} bytes, got {size}")
        asked, quote = ctypes.create_string_buffer(report_data, 64), ctypes.create_string_buffer(size)
        parts = (asked, ctypes.c_uint32(size), quote)
        self._ioctl(handle, _GENERATE, bytearray().join(ctypes.addressof(p).to_bytes(8, "little") for p in parts))
        return quote.raw
