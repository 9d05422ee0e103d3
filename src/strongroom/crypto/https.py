"""One HTTPS connection to a trust service, over TCP or a Unix socket.

Standard library and `cryptography`, since the guest uses it inside the enclave. The address is the host's word and
needs no trust: TLS ends at the identity key that the caller pins.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric import ec

from strongroom._encoding import b64u, parse_json
from strongroom._unix import connect_unix
from strongroom.crypto.proof import HEAD, NONCE, PROOF, check_proof
from strongroom.crypto.tls import SERVICE_NAME
from strongroom.errors import (
    DeniedError,
    InputError,
    StrongroomError,
    UnavailableError,
    VerificationError,
    from_code,
)

__all__ = ["HTTPSConnection", "Reply"]

_MAX_REPLY_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the service answered.

    Attributes:
        status: HTTP status.
        headers: With lower-case names.
        body: At most 256 MiB.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        """Return the body as a JSON object.

        Raises:
            VerificationError: It is none.
        """
        try:
            value = parse_json(self.body, "the service's answer", max_bytes=_MAX_REPLY_BYTES)
        except InputError as exc:
            raise VerificationError(str(exc)) from exc
        if not isinstance(value, dict):
            raise VerificationError("the service's answer is not a JSON object")
        return value


class _Connection(http.client.HTTPConnection):
    def __init__(self, name: str, context: ssl.SSLContext, timeout_s: float, dial: Callable[[], socket.socket]) -> None:
        super().__init__(name, timeout=timeout_s)
        self._name = name
        self._context = context
        self._dial = dial

    def connect(self) -> None:
        raw = self._dial()
        try:
            self.sock = self._context.wrap_socket(raw, server_hostname=self._name)
        except BaseException:
            raw.close()
            raise


@dataclass(slots=True)
class HTTPSConnection:
    """A kept-alive connection that speaks JSON and raises the service's errors as ours.

    Attributes:
        address: `unix:/path` or `https://host:port`.
        context: From `crypto.tls.client_context`.
        timeout_s: For connecting and for each read.
        headers: Sent with every request.
        name: In the server's certificate.
        dial: Opens the socket where `address` is not reached from here.
        max_reply_bytes: What an answer may have.
        known: Whether a proven answer came over this very connection: its other end is then no holder of a TLS key
            alone, who could not ask the service in the caller's name.
    """

    address: str
    context: ssl.SSLContext
    timeout_s: float = 30.0
    headers: dict[str, str] = field(default_factory=dict)
    name: str = SERVICE_NAME
    dial: Callable[[], socket.socket] | None = None
    max_reply_bytes: int = _MAX_REPLY_BYTES
    known: bool = False
    _connection: _Connection | None = None

    def proven(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        *,
        to: str,
        key: ec.EllipticCurvePublicKey,
        known: bool = False,
    ) -> Reply:
        """Return the service's answer to one request, which its identity key signed for this request and `to`.

        A locked service cannot sign: it may say that it is locked, and show evidence, which needs no other proof.

        Raises:
            VerificationError: It did not; and as for `request`.
        """
        nonce = b64u(os.urandom(24))
        reply = self.request(method, path, body, {**headers, NONCE: nonce}, known=known)
        proof, head = reply.headers.get(PROOF, ""), reply.headers.get(HEAD, "")
        if proof or path not in ("/v1/status", "/v1/evidence") or reply.json().get("locked") is not True:
            check_proof(proof, [key], request=f"{method} {path}", nonce=nonce, to=to, answer=reply.body, head=head)
            self.known = True
        return reply

    def is_known(self) -> bool:
        """Return whether the next request goes over a connection that is `known`."""
        if self._connection is not None and _is_ended(self._connection.sock):
            self.close()
        return self.known

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        *,
        known: bool = False,
    ) -> Reply:
        """Return the service's answer to one request.

        Raises:
            UnavailableError: Nobody answers.
            VerificationError: Whoever answers does not hold the pinned identity.
            StrongroomError: What the service reported.
        """
        reply = self.exchange(method, path, body, headers, known=known)
        if reply.status >= 400:
            raise _error(reply)
        return reply

    def exchange(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        *,
        known: bool = False,
    ) -> Reply:
        """Return the server's answer to one request, whatever its status says; no redirect is followed.

        Raises:
            UnavailableError: Nobody answers; or, with `known`, the connection is not, and the request is no GET.
            VerificationError: Whoever answers does not hold the pinned identity, or says too much.
        """
        raw = None if body is None else json.dumps(body, separators=(",", ":")).encode("utf-8")
        sent = {**self.headers, **headers}
        if raw is not None:
            sent["Content-Type"] = "application/json"
        if not self.is_known() and known and method != "GET":
            raise UnavailableError(
                "the trust service ended the connection over which it had shown what it is", hint="repeat the command"
            )
        fresh = self._connection is None
        try:
            return self._exchange(method, path, raw, sent)
        except UnavailableError:
            # The server may close an idle connection at any time; only a used connection is worth one more try, and
            # only for requests that change nothing.
            if fresh or method != "GET":
                raise
            return self._exchange(method, path, raw, sent)

    def _open(self) -> socket.socket:
        if self.dial is not None:
            return self.dial()
        if self.address.startswith("unix:"):
            return connect_unix(self.address[5:], self.timeout_s)
        host, _, port = self.address.removeprefix("https://").rstrip("/").rpartition(":")
        raw = socket.create_connection((host.strip("[]"), int(port)), self.timeout_s)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return raw

    def _exchange(self, method: str, path: str, raw: bytes | None, headers: Mapping[str, str]) -> Reply:
        if self._connection is None:
            self._connection = _Connection(self.name, self.context, self.timeout_s, self._open)
        try:
            self._connection.request(method, path, raw, dict(headers))
            answer = self._connection.getresponse()
            content = answer.read(self.max_reply_bytes + 1)
            # `read` with a limit returns what came before the connection broke
            if answer.length and len(content) <= self.max_reply_bytes:
                raise ConnectionResetError("the answer is cut off")
        except ssl.SSLCertVerificationError as exc:
            self.close()
            raise VerificationError(
                f"the trust service at {self.address} does not hold the pinned identity key: {exc.verify_message}",
                hint="check the address; if the service was set up anew, fetch its identity again",
            ) from exc
        except ssl.SSLError as exc:
            self.close()
            if "ALERT" in (exc.reason or ""):
                raise DeniedError(
                    f"the trust service at {self.address} does not accept this client certificate: {exc.reason}",
                    hint="its administrator admits an owner with `strongroom owner admit`",
                ) from exc
            raise UnavailableError(f"the trust service at {self.address} does not speak our TLS: {exc}") from exc
        except (OSError, http.client.HTTPException, ValueError) as exc:
            self.close()
            raise UnavailableError(
                f"the trust service at {self.address} does not answer: {exc}",
                hint="start it with `strongroom service start`, or, for guests who come over a network, `strongroom "
                "service run --listen HOST:PORT`; or check the address",
            ) from exc
        if len(content) > self.max_reply_bytes:
            self.close()
            raise VerificationError("the service's answer is too long")
        return Reply(status=answer.status, headers={k.lower(): v for k, v in answer.getheaders()}, body=content)

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self.known = None, False


def _is_ended(sock: socket.socket | None) -> bool:
    # Between requests the server has nothing to say: whatever can be read is the end of the connection.
    if sock is None:
        return True
    waiting = select.poll()  # select() knows no descriptor over 1023
    waiting.register(sock, select.POLLIN)
    return bool(waiting.poll(0))


def _error(reply: Reply) -> StrongroomError:
    # RFC 7807; `type` ends in our stable code.
    try:
        problem = reply.json()
    except VerificationError:
        return StrongroomError(f"the trust service answered HTTP {reply.status}")
    code = str(problem.get("type", "")).rsplit("/", 1)[-1]
    details = {k: v for k, v in problem.items() if k not in {"type", "title", "status", "detail", "hint"}}
    return from_code(
        code, str(problem.get("detail", f"HTTP {reply.status}")), hint=str(problem.get("hint", "")), details=details
    )
