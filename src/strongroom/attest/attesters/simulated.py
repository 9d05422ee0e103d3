"""The attester of a guest that holds one end of a socket: asks whoever quotes for it over that.

Outside a sandbox that is the simulated platform; in a confidential VM it is process one, which asks the hardware
(`guest/cvm.py`). It quotes for the holder of the other end and for no other, so the request names no measurement.
Request: u32 big-endian length, "quote", 64 bytes of report data; or "seal", which a trust service's platform answers.
Response: u32 length, u8 status, then quote or sealing key (status 0), or one sentence. Nothing that arrives is trusted;
a wrong quote fails at the verifier, a wrong key opens nothing.
"""

from __future__ import annotations

import socket

from strongroom._secret import SecretBytes
from strongroom._unix import receive_exactly
from strongroom.attest.attesters import QuotingAttester
from strongroom.attest.evidence import MAX_EVIDENCE_BYTES, Evidence
from strongroom.errors import EvidenceError, UnavailableError

__all__ = ["SimulatedAttester"]

_KEY_BYTES = 32


class SimulatedAttester(QuotingAttester):
    """Gets quotes from the simulated platform, or a confidential VM's process one; one request at a time.

    Attributes:
        tee: Whose evidence comes back.
    """

    who = "simulated platform"

    def __init__(self, sock: socket.socket, tee: str = "sgx") -> None:
        self._sock = sock
        self.tee = tee

    def sealing_key(self) -> SecretBytes:
        """Return the platform's key for whoever it measured at the other end: 32 bytes.

        Raises:
            EvidenceError: The answer has another size.
            UnavailableError: The platform does not answer or refuses.
        """
        raw = self._exchange(b"seal")
        if len(raw) != _KEY_BYTES:
            raise EvidenceError(f"simulated platform: sealing key: expected {_KEY_BYTES} bytes, got {len(raw)}")
        return SecretBytes(raw)

    def _ask(self, report_data: bytes) -> Evidence:
        return Evidence(tee=self.tee, quote=self._exchange(b"quote" + report_data))

    def _exchange(self, request: bytes) -> bytes:
        try:
            self._sock.sendall(len(request).to_bytes(4, "big") + request)
            import strongroom.attest.quote  # noqa: F401, PLC0415  # while the platform quotes

            size = int.from_bytes(receive_exactly(self._sock, 4), "big")
            if not 1 <= size <= 1 + MAX_EVIDENCE_BYTES:
                raise EvidenceError(f"simulated platform: expected an answer of 1 to 65537 bytes, got {size}")
            answer = receive_exactly(self._sock, size)
        except OSError as exc:
            raise UnavailableError(f"simulated platform: {exc.strerror or type(exc).__name__}") from exc
        if answer[0] != 0:
            raise UnavailableError(f"simulated platform refuses: {answer[1:200].decode('utf-8', 'replace')!r}")
        return answer[1:]
