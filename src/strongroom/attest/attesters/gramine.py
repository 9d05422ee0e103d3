"""The attester inside Gramine: report data is written to one pseudo-file, the quote read from another.

The sealing key is EGETKEY's under policy MRENCLAVE, with the security versions of processor and enclave, and without
debugging: as Gramine asks for it.

Gramine answers both from inside the enclave; the quote itself passes through the host's quoting service. Nothing that
arrives is trusted; a wrong quote fails at the verifier.

Source: Gramine 1.9, Documentation/attestation.rst (`/dev/attestation`), manifest-syntax.rst (special keys).
"""

from __future__ import annotations

from pathlib import Path

from strongroom._secret import SecretBytes
from strongroom.attest.attesters import QuotingAttester
from strongroom.attest.evidence import MAX_EVIDENCE_BYTES, Evidence
from strongroom.errors import UnavailableError

__all__ = ["GramineAttester"]

_KEY_BYTES = 16


class GramineAttester(QuotingAttester):
    """Gets DCAP quotes from Gramine; one request at a time.

    Args:
        folder: Gramine's pseudo-files.
    """

    tee = "sgx"
    who = "gramine"

    def __init__(self, folder: Path = Path("/dev/attestation")) -> None:
        self._folder = folder

    def _ask(self, report_data: bytes) -> Evidence:
        try:
            kind = (self._folder / "attestation_type").read_text().strip("\0\n ")
            if kind != "dcap":
                raise UnavailableError(f"gramine: attestation type: expected dcap, got {kind:.40}")
            (self._folder / "user_report_data").write_bytes(report_data)
            with open(self._folder / "quote", "rb") as file:
                return Evidence(tee=self.tee, quote=file.read(MAX_EVIDENCE_BYTES + 1))
        except OSError as exc:
            raise UnavailableError(f"gramine: {exc.filename}: {exc.strerror}", hint="is this gramine-sgx?") from exc

    def sealing_key(self) -> SecretBytes:
        """Return the processor's key for this MRENCLAVE: 16 bytes.

        Raises:
            UnavailableError: There is none: this is no enclave.
        """
        try:
            raw = (self._folder / "keys" / "_sgx_mrenclave").read_bytes()
        except OSError as exc:
            raise UnavailableError(f"gramine: sealing key: {exc.strerror}", hint="is this gramine-sgx?") from exc
        if len(raw) != _KEY_BYTES or not any(raw):
            raise UnavailableError(f"gramine: sealing key: expected {_KEY_BYTES} bytes, got {len(raw)}, or zeros")
        return SecretBytes(raw)
