"""uvicorn as the service runs it: it says who the TLS client is, and drops clients that stall before a request."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from strongroom.service.app import PEER

__all__ = ["Loop", "Server", "make_server"]

REQUEST_HEAD_S = 10.0
MAX_HEAD_BYTES = 64 << 10
MAX_REST_BYTES = 32 << 20


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which also says who the TLS client is and drops clients that send nothing."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        tls_object = transport.get_extra_info("ssl_object")
        der = tls_object.getpeercert(binary_form=True) if tls_object is not None else None
        inner, peer = self.app, hashlib.sha256(der).hexdigest() if der else None

        async def app(scope, receive, send):  # type: ignore[no-untyped-def]
            await inner({**scope, PEER: peer}, receive, send)

        self.app = app
        self._unread_bytes = 0
        self._limit: asyncio.TimerHandle | None = None
        self._watch(0)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._limit is not None:
            self._limit.cancel()

    def _watch(self, size_bytes: int) -> None:
        # Between requests, only the head of the next one may arrive: soon, and it is small.
        if not self._is_between_requests():
            if self._limit is not None:
                self._limit.cancel()
            self._limit, self._unread_bytes = None, 0
            return
        if self._limit is None:
            self._limit = self.loop.call_later(REQUEST_HEAD_S, self._drop)
        self._unread_bytes += size_bytes
        # After an early refusal the rest of its body still arrives.
        if self._unread_bytes > (MAX_HEAD_BYTES if self.cycle is None else MAX_REST_BYTES):
            self.transport.abort()

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _drop(self) -> None:
        self._limit = None
        if self._is_between_requests():
            self.transport.abort()


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose servers drop clients that do not finish the TLS handshake; uvicorn has no setting for it."""

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        """Return asyncio's own, under time limits for TLS."""
        if options.get("ssl") is not None:
            options |= {"ssl_handshake_timeout": REQUEST_HEAD_S, "ssl_shutdown_timeout": 2.0}
        return await super().create_server(*args, **options)


class Server(uvicorn.Server):
    """A server that says when it is up and when down: uvicorn ends the process by its signal, nothing runs after it."""

    is_down = False
    after_startup: Callable[[], None] | None = None
    after_shutdown: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections from now on."""
        await super().startup(sockets)
        if self.after_startup is not None:
            self.after_startup()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down, then say so."""
        await super().shutdown(sockets)
        self.is_down = True
        if self.after_shutdown is not None:
            self.after_shutdown()


def make_server(app: object, context: ssl.SSLContext) -> Server:
    """Return a server of `app` over TLS."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        limit_concurrency=2048,
        backlog=512,
        ssl_context_factory=lambda _config, _default: context,
    )
    return Server(config)
