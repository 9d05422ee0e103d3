"""A client of the key agent, for Python programs inside the enclave."""

from __future__ import annotations

import socket
import struct
from types import TracebackType

from strongroom._unix import receive_exactly
from strongroom.errors import UnavailableError
from strongroom.keyagent import protocol
from strongroom.keyagent.protocol import Operation

__all__ = ["KeyAgentClient"]


class KeyAgentClient:
    """One connection to the key agent, at a Unix socket path or made already; not for several threads."""

    def __init__(self, at: str | socket.socket) -> None:
        if isinstance(at, socket.socket):
            self._sock = at
            return
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.connect(at)
        except OSError as exc:
            self._sock.close()
            raise UnavailableError(f"the key agent at {at} does not answer: {exc.strerror}") from exc

    def call(self, operation: Operation, *fields: bytes | str | int) -> tuple[bytes, ...]:
        """Return the reply's fields; numbers become u64, text UTF-8.

        Raises:
            StrongroomError: The agent's refusal.
        """
        raw = [f.encode() if isinstance(f, str) else protocol.number(f) if isinstance(f, int) else f for f in fields]
        try:
            self._sock.sendall(protocol.frame(protocol.encode_request(operation, *raw)))
            (size,) = struct.unpack(">I", receive_exactly(self._sock, 4))
            if size > protocol.MAX_REPLY_BYTES:
                raise UnavailableError("the key agent's reply is too long")
            return protocol.decode_reply(receive_exactly(self._sock, size))
        except OSError as exc:
            raise UnavailableError(f"the key agent does not answer: {exc.strerror}") from exc

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def __enter__(self) -> KeyAgentClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
