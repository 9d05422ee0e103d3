"""One connection between two enclaves of a job: a greeting each way, then packets (docs/formats/job-network.md)."""

from __future__ import annotations

import collections
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Mapping

from strongroom._encoding import parse_json
from strongroom.errors import InputError, StrongroomError, UnavailableError

__all__ = ["HANDSHAKE_S", "SILENCE_S", "Link", "hang_up", "receive_greeting", "send_greeting", "watch_over"]

HANDSHAKE_S = 15.0
SILENCE_S = 20.0
"""A peer that says nothing for so long is lost; it gives a sign of life four times as often."""
MAX_BYTES_PER_KEY = 1 << 36
"""After so many a connection is replaced: a sixth of what AES-GCM records of 16 KiB may carry (RFC 8446, 5.5)."""
_QUEUE = 2048  # packets; what does not fit is dropped, and TCP sends it again
_BATCH = 1 << 19
_MAX_GREETING = 1 << 15


class Link:
    """Packets to one peer, over a connection of its own: TLS connections are not read and written at the same time.

    Args:
        sock: The connection.
        renewed: Returns another one.
    """

    def __init__(self, sock: ssl.SSLSocket, renewed: Callable[[], ssl.SSLSocket]) -> None:
        self.sock = sock
        self._renewed = renewed
        self._waiting: collections.deque[bytes] = collections.deque()
        self._wake = threading.Condition()
        self._closed = False

    def send(self, packet: bytes) -> None:
        """Queue a packet; a full queue drops it."""
        with self._wake:
            if len(self._waiting) < _QUEUE:
                self._waiting.append(packet)
                self._wake.notify()

    def run(self) -> None:
        """Send what is queued until the link breaks or is closed."""
        with contextlib.suppress(OSError, StrongroomError):
            while not self._closed:
                self._use()
        self.sock.close()

    def _use(self) -> None:
        self.sock.settimeout(SILENCE_S)
        sent = 0
        while sent < MAX_BYTES_PER_KEY:
            with self._wake:
                if not self._waiting and not self._closed:
                    self._wake.wait(SILENCE_S / 4)
                if self._closed:
                    return
                batch, size = [], 0
                while self._waiting and size < _BATCH:
                    batch.append(self._waiting.popleft())
                    size += len(batch[-1])
            self.sock.sendall(b"".join(batch) or b"\0")
            sent += size
        worn, self.sock = self.sock, self._renewed()
        worn.close()

    def close(self) -> None:
        """Send nothing more."""
        with self._wake:
            self._closed = True
            self._wake.notify()


def hang_up(sock: ssl.SSLSocket | None) -> None:
    """End a connection that another thread may read, which then finds its end."""
    # Below TLS: SSLSocket.shutdown would take TLS off a socket that another thread reads, which then reads raw bytes.
    if sock is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def watch_over(raw: socket.socket) -> None:
    """Wait for a handshake only so long, and have the kernel notice that the other machine is gone.

    A connection that waits for requests, as the agent's, would never notice.
    """
    raw.settimeout(HANDSHAKE_S)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
        raw.setsockopt(socket.IPPROTO_TCP, option, value)


def send_greeting(sock: ssl.SSLSocket, value: Mapping[str, object]) -> None:
    """Send one JSON object."""
    body = json.dumps(value).encode()
    sock.sendall(len(body).to_bytes(4, "big") + body)


def receive_greeting(sock: ssl.SSLSocket) -> dict[str, object]:
    """Return the JSON object that the peer sends.

    Raises:
        InputError: Something else, or too long.
        UnavailableError: It hangs up.
    """
    size = int.from_bytes(_exactly(sock, 4), "big")
    if size > _MAX_GREETING:
        raise InputError("a peer's greeting is too long")
    value = parse_json(_exactly(sock, size), "a peer's greeting")
    if not isinstance(value, dict):
        raise InputError("a peer's greeting is no object")
    return value


def _exactly(sock: ssl.SSLSocket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = sock.recv(size - len(parts))
        if not part:
            raise UnavailableError("a peer closed the connection")
        parts += part
    return parts
