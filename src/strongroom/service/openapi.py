"""Both doors as one OpenAPI 3.1 document: the owners', made from `kms.messages`, and the guests' (`guest_messages`)."""

from __future__ import annotations

import re

import msgspec

from strongroom import __version__
from strongroom.kms import messages
from strongroom.service import answers, guest_messages

__all__ = ["openapi"]


_ROUTES = (*messages.ROUTES, *guest_messages.ROUTES)
_ANSWERS = answers.ANSWERS | guest_messages.ANSWERS
_ABOUT = (
    "Paths under /kbs and /.well-known are the guests' (RCAR 0.4.0, docs/formats/release-protocol.md): on a socket and "
    "a port of their own, without client certificates."
)


def openapi() -> dict[str, object]:
    """Return the document."""
    bodies = [r.body for r in _ROUTES if r.body is not messages.Empty]
    _, components = msgspec.json.schema_components(
        [*bodies, *_ANSWERS.values()],
        ref_template="#/components/schemas/{name}",
        schema_hook=lambda _any: {"description": "any JSON value"},
    )
    paths: dict[str, dict[str, object]] = {}
    for route in _ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Strongroom trust service", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {"schemas": {**components, "Problem": _PROBLEM_SCHEMA}, "securitySchemes": _SHOWN},
    }


_SHOWN = {
    "certificate": {"type": "mutualTLS"},
    "session": {"type": "apiKey", "in": "cookie", "name": "kbs-session-id"},
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
}
_SESSIONS: dict[str, list[str]] = {"kbs_auth": [], "jwks": [], "kbs_resource": ["session", "token"]}
"""What a guest shows, one of these; on its other routes the session, an owner its certificate."""
_PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "hint": {"type": "string"},
    },
}


def _operation(route: messages.Route) -> dict[str, object]:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    known = _ANSWERS.get(route.name)
    shown = _SESSIONS.get(route.name, ["certificate" if route in messages.ROUTES else "session"])
    answer = {"$ref": f"#/components/schemas/{known.__name__}"} if known else {"type": "object"}
    operation: dict[str, object] = {
        "operationId": route.name,
        "summary": route.summary,
        "security": [{scheme: list[str]()} for scheme in shown],
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)}", route.path)
        ],
        "responses": {
            "200": {"description": "done", "content": {"application/json": {"schema": answer}}},
            "4XX": {"description": "refused", "content": problem},
            "503": {"description": "locked or overloaded", "content": problem},
        },
    }
    if route.body is not messages.Empty:
        schema = {"$ref": f"#/components/schemas/{route.body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation
