"""The OpenAPI 3.1 document, generated from the routes and their forms.

Owns no facts: everything in the document comes from the entry of a route and its forms.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

import keepfit
from keepfit.security.api_keys import OPEN
from keepfit_gateway.routes import Route
from keepfit_gateway.schemas import Problem
from keepfit_gateway.web import problems
from keepfit_gateway.web.rows_body import TABLES

REFERENCE = "#/components/schemas/{name}"
SCHEME = "key"


def document(routes: Sequence[Route], *, keys: bool = False) -> dict[str, Any]:
    """Return the document of `routes`; `keys` says whether this gateway requires API keys."""
    types = [
        Problem,
        *(t for route in routes for t in (route.form, *route.answers.values()) if t is not None),
    ]
    schemas, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    schema_of = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
        if keys:
            _require_key(paths[route.path][route.method.lower()], route, schema_of)
    schemes = {"securitySchemes": {SCHEME: {"type": "http", "scheme": "bearer"}}} if keys else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "keepfit",
            "version": keepfit.__version__,
            "description": "Machine-learning models that never stop learning.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": components, **schemes},
    }


def _operation(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{route.handler.__name__}{'_by_metadata' if _by_metadata(route) else ''}",
        "summary": route.summary,
        "parameters": list(route.parameters),
        "responses": {
            **{
                str(status): _answer(status, form, schema_of, route.media_type)
                for status, form in route.answers.items()
            },
            **{str(status): _problem(status, schema_of) for status in route.errors},
            "default": {
                "description": "Any other problem",
                "content": _content(problems.MEDIA_TYPE, Problem, schema_of),
            },
        },
    }
    if route.form is not None:
        body = _content("application/json", route.form, schema_of)
        if route.tables:
            # Binary bodies have no schema in OpenAPI 3.1.
            body.update({media_type: {} for media_type in TABLES})
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _require_key(operation: dict[str, Any], route: Route, schema_of: dict[str, Any]) -> None:
    """Add the security requirement of an operation; the scope is written where OpenAPI 3.1 has roles."""
    operation["security"] = [] if route.needs == OPEN else [{SCHEME: [route.needs]}]
    if route.needs != OPEN:
        rejections = {str(status): _problem(status, schema_of) for status in (401, 403, 429)}
        operation["responses"] = {**rejections, **operation["responses"]}


def _by_metadata(route: Route) -> bool:
    return route.form is not None and route.form.__name__.endswith("ByMetadata")


def _answer(status: int, form: type[Any] | None, schema_of: dict[str, Any], media_type: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if form is not None:
        answer["content"] = _content(media_type, form, schema_of)
    return answer


def _problem(status: int, schema_of: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": HTTPStatus(status).phrase,
        "content": _content(problems.MEDIA_TYPE, Problem, schema_of),
    }


def _content(media_type: str, form: type[Any], schema_of: dict[str, Any]) -> dict[str, Any]:
    return {media_type: {"schema": schema_of[repr(form)]}}
