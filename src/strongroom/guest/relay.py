"""A worker's key agent: passes each request on to the driver's, which alone holds keys and knows the job's files."""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import struct
from collections.abc import Callable
from functools import partial

from strongroom._unix import listen_unix, serve_connections
from strongroom.errors import StrongroomError
from strongroom.keyagent import protocol

__all__ = ["start_relay"]

_log = logging.getLogger(__name__)


def start_relay(path: str, connect: Callable[[], socket.socket]) -> None:
    """Listen at `path`, for this user only; `connect` returns a new connection to the driver's agent."""
    serve_connections(listen_unix(path), partial(_serve, connect), "relay")


def _serve(connect: Callable[[], socket.socket], near: socket.socket) -> None:
    with near:
        try:
            far = connect()
        except StrongroomError as exc:
            _log.warning("the driver's agent is not reached reason=%s", exc)
            return
        with far, contextlib.suppress(OSError):
            asked, answered = near.makefile("rb"), far.makefile("rb")
            while _pass(asked, far, protocol.MAX_REQUEST_BYTES) and _pass(answered, near, protocol.MAX_REPLY_BYTES):
                pass


def _pass(source: io.BufferedReader, target: socket.socket, limit: int) -> bool:
    head = source.read(4)
    if len(head) < 4:
        return False
    (size,) = struct.unpack(">I", head)
    if size > limit:
        return False
    body = source.read(size)
    target.sendall(head + body)
    return bool(len(body) == size)
