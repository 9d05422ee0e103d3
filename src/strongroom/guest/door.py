"""The way out of a sandbox without a network: the platform opens TCP sockets outside and hands them in.

Where they lead is the host's business; what matters is who answers, which `peers.py` checks.
Request: one message `listen` or `connect HOST:PORT`, with a socket beside it (SCM_RIGHTS) for its answer, so that none
waits for another's. Answer: one message, u8 status, then (0) the address in text with the socket beside it, or (1) one
sentence.
"""

from __future__ import annotations

import os
import socket

from strongroom.errors import UnavailableError

__all__ = ["Door"]

_MAX_REPLY = 4096


class Door:
    """Asks the platform for sockets; may be used by several threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def listen(self) -> tuple[socket.socket, str]:
        """Return the listening socket and the address at which other machines reach it.

        Raises:
            UnavailableError: The platform cannot listen there.
        """
        return self._ask("listen")

    def connect(self, at: str) -> socket.socket:
        """Return a socket connected to `at` (`host:port`).

        Raises:
            UnavailableError: Nobody answers there.
        """
        return self._ask(f"connect {at}")[0]

    def _ask(self, what: str) -> tuple[socket.socket, str]:
        handles: list[int] = []
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours:
                with theirs:
                    socket.send_fds(self._sock, [what.encode()], [theirs.fileno()])
                body, handles, _, _ = socket.recv_fds(ours, _MAX_REPLY, 1)
        except OSError as exc:
            body, said = b"", f"the platform's door: {exc.strerror or type(exc).__name__}"
        else:
            said = body[1:].decode("utf-8", "replace") or "the platform's door answers nonsense"
        if body[:1] != b"\0" or len(handles) != 1:
            for handle in handles:
                os.close(handle)
            raise UnavailableError(f"{what}: {said[:200]}")
        return socket.socket(fileno=handles[0]), said
