"""The platform's side of the way out of a sandbox without a network (`guest/door.py`): sockets, opened outside.

Trusts that only the guest asks. What passes through the sockets is TLS, and the host may do with it what it likes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Collection

__all__ = ["doorway", "open_door", "serve_door"]

_CONNECT_S = 5.0
_MAX_REQUEST = 4096


def doorway() -> tuple[socket.socket, socket.socket]:
    """Return the platform's end and the guest's: each message is one request, with the socket for its answer."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def serve_door(door: socket.socket, *, listen: str, outward: Collection[str]) -> None:
    """Answer requests, each on a thread of its own: an address may be silent for long. Ends with the guest.

    Args:
        door: The platform's end.
        listen: `host:port` of a job on several machines, which may go anywhere; "" for others.
        outward: Where these may go.
    """
    with door:  # so that whoever asks next is not left waiting
        while True:
            request, handles, _, _ = socket.recv_fds(door, _MAX_REQUEST, 1)
            if not request or len(handles) != 1:
                for handle in handles:
                    os.close(handle)
                return
            try:
                answer = socket.socket(fileno=handles[0])
            except OSError:  # no socket
                os.close(handles[0])
                return
            threading.Thread(target=_answer, args=(answer, request, listen, outward), daemon=True).start()


def _answer(sock: socket.socket, request: bytes, listen: str, outward: Collection[str]) -> None:
    with sock, contextlib.suppress(OSError):  # nobody waits any more
        try:
            opened = open_door(request.decode(), listen=listen, outward=outward)
        except (OSError, ValueError) as exc:
            sock.send(b"\1" + (getattr(exc, "strerror", None) or str(exc)).encode())
            return
        with opened:
            host, port = opened.getsockname()[:2]
            said = f"{listen.rpartition(':')[0] or host}:{port}"
            socket.send_fds(sock, [b"\0" + said.encode()], [opened.fileno()])


def open_door(request: str, *, listen: str, outward: Collection[str]) -> socket.socket:
    """Return the socket that is asked for; `listen` and `outward` as for `serve_door`.

    Raises:
        ValueError: It is not the job's to have.
        OSError: Nobody answers there.
    """
    what, _, at = request.partition(" ")
    if not listen and at not in outward:
        raise ValueError(f"not an address of this job: {at[:100]}")
    host, _, port = (listen if what == "listen" else at).rpartition(":")
    if what == "listen":
        return socket.create_server((host, int(port)), backlog=128)
    opened = socket.create_connection((host, int(port)), timeout=_CONNECT_S)
    opened.settimeout(None)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened
