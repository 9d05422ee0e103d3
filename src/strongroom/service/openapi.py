"""The owner API as an OpenAPI 3.1 document, made from `kms.messages`."""

from __future__ import annotations

import re

import msgspec

from strongroom import __version__
from strongroom.kms import messages
from strongroom.service.answers import ANSWERS

__all__ = ["openapi"]


def openapi() -> dict[str, object]:
    """Return the document."""
    bodies = [r.body for r in messages.ROUTES if r.body is not messages.Empty]
    _, components = msgspec.json.schema_components(
        [*bodies, *ANSWERS.values()],
        ref_template="#/components/schemas/{name}",
        schema_hook=lambda _any: {"description": "any JSON value"},
    )
    paths: dict[str, dict[str, object]] = {}
    for route in messages.ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Strongroom owner API", "version": __version__},
        "paths": paths,
        "components": {"schemas": {**components, "Problem": _PROBLEM_SCHEMA}},
    }


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
    known = ANSWERS.get(route.name)
    answer = {"$ref": f"#/components/schemas/{known.__name__}"} if known else {"type": "object"}
    operation: dict[str, object] = {
        "operationId": route.name,
        "summary": route.summary,
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
