"""The two ASGI applications of a trust service, and what both do to every request: limits, errors, headers.

Owners are known by their client certificate before a request is read. Guests are strangers: their requests are
limited in size, time and rate, and a refusal before verification tells them its code only.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from strongroom._encoding import b64u, parse_bounded
from strongroom.crypto import x509
from strongroom.crypto.proof import HEAD, NONCE, PROOF, sign_proof
from strongroom.errors import (
    AttestationError,
    DeniedError,
    InputError,
    StrongroomError,
    UnavailableError,
)
from strongroom.kms import messages
from strongroom.kms.audit import AuditLog
from strongroom.kms.audit_chain import LINKS, SEEN, AuditHead
from strongroom.service import guest_messages
from strongroom.service.calls import Call
from strongroom.service.guest_api import GuestAPI
from strongroom.service.guest_messages import CertificateRequest, SignedCommit
from strongroom.service.openapi import openapi
from strongroom.service.owner_api import OwnerAPI
from strongroom.service.state import TrustService

__all__ = ["PEER", "guest_app", "owner_app"]

_log = logging.getLogger(__name__)

PEER = "strongroom.peer"
"""ASGI scope entry: fingerprint of the client certificate, set by the transport."""

GUEST_BODY_BYTES = 512 << 10
OWNER_BODY_BYTES = 16 << 20
BODY_TIMEOUT_S = 10.0
GUEST_RATE_PER_S = 500.0
SESSION_COOKIE = "kbs-session-id"
_NONCE = re.compile(r"[A-Za-z0-9_-]{32}")
_SEEN = re.compile(r"([0-9]{1,15})\.([0-9a-f]{64})")
_PROBLEM = "https://strongroom.invalid/errors/"

_B = TypeVar("_B", bound=messages.Body)
_Handler = Callable[[Request], Awaitable[Response]]


def owner_app(service: TrustService, api: OwnerAPI) -> Starlette:
    """Return the owners' application."""

    def handler(route: messages.Route) -> _Handler:
        async def handle(request: Request) -> Response:
            owner = request.scope.get(PEER)
            if not isinstance(owner, str):
                raise DeniedError("no client certificate")
            await run_in_threadpool(api.check_owner, owner, _seen(request))
            call = Call(
                owner=owner,
                path=dict(request.path_params),
                query=dict(request.query_params),
                body=await _sent(request, route.body, OWNER_BODY_BYTES),
                now=datetime.now(UTC),
            )
            if route.admin:
                api.check_admin(call)
            if not route.locked:
                service.parts  # noqa: B018  # UNAVAILABLE while locked
            result = await run_in_threadpool(api.perform, route.name, call)
            return _proven(service, request, await _with_head(service, request, JSONResponse(result)), owner)

        return handle

    routes = [Route(r.path, _guarded(handler(r), tells=lambda _: True), methods=[r.method]) for r in messages.ROUTES]

    async def describe(_request: Request) -> Response:
        return JSONResponse(openapi())

    return Starlette(routes=[*routes, Route("/openapi.json", describe, methods=["GET"])], exception_handlers=_NOT_HERE)


def guest_app(service: TrustService, api: GuestAPI) -> Starlette:
    """Return the guests' application: RCAR."""
    strangers, guests = _TokenBucket(GUEST_RATE_PER_S), _TokenBucket(GUEST_RATE_PER_S)

    def known(request: Request, token: str = "") -> str:
        # Before a byte of the body is read: who never began a session costs a look-up and a turn of the strangers.
        session = api.sessions.by_token(token) if token else _session(request)
        (guests if api.sessions.knows(session) else strangers).take()
        return session

    async def attested(request: Request, token: str = "") -> tuple[str, str]:
        session = known(request, token)
        guest = await run_in_threadpool(lambda: api.guest(session, now=datetime.now(UTC)))
        return session, x509.spki_id(guest.public_key)

    async def auth(request: Request) -> Response:
        strangers.take()
        session, challenge = await run_in_threadpool(api.auth, await _json(request))
        answer = JSONResponse(challenge)
        answer.set_cookie(SESSION_COOKIE, session, secure=True, httponly=True, samesite="strict")
        return answer

    async def attest(request: Request) -> Response:
        session = known(request)
        await run_in_threadpool(lambda: api.check_begun(session, now=datetime.now(UTC)))
        body = await _json(request)
        return JSONResponse(await run_in_threadpool(lambda: api.attest(session, body, now=datetime.now(UTC))))

    async def resource(request: Request) -> Response:
        token, path = _token(request), request.path_params
        session, to = await attested(request, token)
        names, by_token = (path["repository"], path["type"], path["tag"]), bool(token)
        answer = await run_in_threadpool(
            lambda: api.resource(session, *names, now=datetime.now(UTC), by_token=by_token)
        )
        return _proven(service, request, JSONResponse(answer), to)

    async def certificate(request: Request) -> Response:
        (session, to), body = await attested(request), await _sent(request, CertificateRequest, GUEST_BODY_BYTES)
        answer = await run_in_threadpool(lambda: api.certificate(session, body, now=datetime.now(UTC)))
        return _proven(service, request, JSONResponse(answer), to)

    async def jwks(_request: Request) -> Response:
        strangers.take()
        return JSONResponse(api.jwks())

    async def commit(request: Request) -> Response:
        (session, to), body = await attested(request), await _sent(request, SignedCommit, GUEST_BODY_BYTES)
        answer = await run_in_threadpool(lambda: api.commit(session, body, now=datetime.now(UTC)))
        return _proven(service, request, JSONResponse(answer), to)

    to_strangers = {"kbs_auth": auth, "kbs_attest": attest, "jwks": jwks}
    to_guests = {"kbs_resource": resource, "kbs_certificate": certificate, "kbs_commit": commit}
    handlers = {name: _guarded(handle) for name, handle in to_strangers.items()}
    # Who shows a token need not be the guest.
    handlers |= {
        name: _guarded(handle, tells=lambda request: not _token(request)) for name, handle in to_guests.items()
    }
    routes = [Route(r.path, handlers[r.name], methods=[r.method]) for r in guest_messages.ROUTES]
    return Starlette(routes=routes, exception_handlers=_NOT_HERE)


def _guarded(handle: _Handler, *, tells: Callable[[Request], bool] = lambda _: False) -> _Handler:
    async def guarded(request: Request) -> Response:
        try:
            return await handle(request)
        except StrongroomError as exc:
            _log.info("refused path=%r code=%s reason=%.1000r", request.url.path, exc.code, str(exc))
            return _problem(exc, tell_all=tells(request))
        except Exception:
            _log.exception("unexpected path=%s", request.url.path)
            return _problem(StrongroomError("unexpected error"), tell_all=False)

    return guarded


async def _not_here(_request: Request, exc: Exception) -> Response:
    # Clients of other makers read RFC 7807 from whatever is not 200.
    assert isinstance(exc, HTTPException)
    body = {"type": f"{_PROBLEM}input", "title": InputError.code, "status": exc.status_code, "detail": exc.detail}
    media_type = "application/problem+json"
    return JSONResponse(body, status_code=exc.status_code, headers=exc.headers, media_type=media_type)


_NOT_HERE = {HTTPException: _not_here}


def _problem(exc: StrongroomError, *, tell_all: bool) -> Response:
    # To a caller that nobody has verified, only the code; wrong requests and "not now" are its own business.
    telling = tell_all or (isinstance(exc, InputError | UnavailableError) and not isinstance(exc, AttestationError))
    body: dict[str, object] = {"type": _PROBLEM + exc.code, "title": exc.code, "status": exc.http_status}
    if telling:
        body |= {"detail": str(exc), "hint": exc.hint, **exc.details}
    else:
        body |= {
            "detail": f"refused: {exc.code}",
            "hint": "the trust service's log and the audit log of its administrator, or of the key's owner, say why",
        }
    return JSONResponse(body, status_code=exc.http_status, media_type="application/problem+json")


def _session(request: Request) -> str:
    return request.cookies.get(SESSION_COOKIE, "")


def _token(request: Request) -> str:
    # A cookie counts before a token.
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and not _session(request) else ""


async def _json(request: Request) -> object:
    raw = await _body(request, GUEST_BODY_BYTES)
    return await run_in_threadpool(parse_bounded, raw, "the request", max_bytes=GUEST_BODY_BYTES)


async def _body(request: Request, limit: int) -> bytes:
    # The whole body has to be there in time, so that a slow client holds nothing for long.
    parts = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                parts += part
                if len(parts) > limit:
                    raise InputError(f"the request is larger than {limit} bytes")
    except TimeoutError as exc:
        raise InputError(f"the request did not arrive within {BODY_TIMEOUT_S:.0f} seconds") from exc
    return bytes(parts)


async def _sent(request: Request, kind: type[_B], max_bytes: int) -> _B:
    return await run_in_threadpool(_parse, await _body(request, max_bytes), kind, max_bytes)


def _parse(raw: bytes, kind: type[_B], max_bytes: int = OWNER_BODY_BYTES) -> _B:
    try:
        return msgspec.convert(parse_bounded(raw or b"{}", "the request", max_bytes=max_bytes), kind)
    except msgspec.ValidationError as exc:
        raise InputError(f"the request is not as the API defines it: {exc}") from exc


async def _with_head(service: TrustService, request: Request, response: Response) -> Response:
    seen = _seen(request)

    def read() -> tuple[str | None, bytes]:
        with service.store.transaction() as tx:
            return AuditLog.head(tx), b"" if seen is None else AuditLog.links(tx, after=seen.seq)

    try:
        head, links = await run_in_threadpool(read)
    except StrongroomError as exc:  # what the request did is done, and its answer may be the only one
        _log.warning("no audit head for an answer reason=%s", exc)
        return response
    if head is not None:
        response.headers[HEAD] = head
        response.headers[LINKS] = b64u(links)
    return response


def _seen(request: Request) -> AuditHead | None:
    found = _SEEN.fullmatch(request.headers.get(SEEN, ""))
    return found and AuditHead(seq=int(found[1]), chain=found[2])


def _proven(service: TrustService, request: Request, response: Response, to: str) -> Response:
    # Who sends no nonce, as clients of other makers, gets no proof; a locked service cannot sign one.
    nonce, query = request.headers.get(NONCE, ""), request.url.query
    if _NONCE.fullmatch(nonce) and not service.locked:
        target = request.scope["raw_path"].decode("ascii") + (f"?{query}" if query else "")
        key, asked, answer = service.parts.identity, f"{request.method} {target}", bytes(response.body)
        head = response.headers.get(HEAD, "")
        response.headers[PROOF] = sign_proof(key, request=asked, nonce=nonce, to=to, answer=answer, head=head)
    return response


class _TokenBucket:
    """Lets `rate` requests a second through, and as many at once."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._tokens = rate
        self._last = time.monotonic()

    def take(self) -> None:
        now = time.monotonic()
        self._tokens = min(self._rate, self._tokens + (now - self._last) * self._rate)
        self._last = now
        if self._tokens < 1:
            raise UnavailableError("too many requests", hint="try again in a second")
        self._tokens -= 1
