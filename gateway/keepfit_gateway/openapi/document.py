"""The OpenAPI 3.1 document, generated from the routes and their forms.

Owns the layout of the document. Never states a fact about a single call: those are in the entry of its route.
"""

import inspect
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import keepfit
from keepfit.security.api_keys import OPEN
from keepfit_gateway.openapi import headers
from keepfit_gateway.openapi.components import schemas_of
from keepfit_gateway.openapi.examples import EXAMPLES, PROBLEM, Example
from keepfit_gateway.routes import TAGS, Route
from keepfit_gateway.schemas import Event, InferenceError, Problem
from keepfit_gateway.schemas.history import InfluxError
from keepfit_gateway.web import inference_answers, influx_answers, problems
from keepfit_gateway.web.rows_body import ARROW, BINARY, CSV, NPY, PARQUET

SCHEME = "key"
DESCRIPTION = """\
Machine-learning models that never stop learning.

Bodies are JSON; `Content-Encoding` may be `gzip`, `zstd` or `deflate`. Errors are problem documents (RFC 9457);
below `/v2` they are objects with the field `error`, below `/api/v2` with `code` and `message`. Every answer has an
`X-Request-ID`: the one of the request, or a new one. A gateway with API keys needs `Authorization: Bearer KEY`; the
document of that gateway names the scope of each operation.
"""
TABLE_DESCRIPTION = (
    "Rows as JSON; or as a table: an npy file or an Arrow IPC stream, whose last column (npy) or column `y` (Arrow) is "
    "the target; or a Parquet file. A table may also be sent with its own media type, "
    f"`{NPY}`, `{ARROW}` or `{PARQUET}`; CSV only so, as `{CSV}`."
)
TENSORS_DESCRIPTION = (
    f"Tensors in JSON; or `{BINARY}`: JSON, whose length is in `Inference-Header-Content-Length`, and then the bytes "
    "of the tensors that have `binary_data_size`, in their order."
)
# Bytes of any form; generators of clients know no other type for them.
BYTES = {"schema": {"type": "string", "format": "binary"}}
MEANINGS = {
    200: "Success.",
    201: "Created.",
    202: "Accepted: durably stored, and done as soon as a worker gets to it.",
    204: "Success, without a body.",
    304: "The client has the newest answer.",
    400: "The path, the query or the body does not have the required form.",
    401: "The API key is missing or unknown.",
    403: "The API key lacks the scope of this operation or is bound to other metadata, or a web page of another site "
    "sent the request.",
    404: "The model does not exist, or not for this API key, which is bound to other metadata.",
    406: "`Accept-Encoding` excludes every coding that the gateway has.",
    408: "The body did not arrive in time.",
    409: "The state of the model conflicts with this request.",
    413: "The body is too large, or the answer would be.",
    415: "The media type or the encoding of the body is not supported.",
    417: "`Expect` has anything but `100-continue`.",
    421: "The gateway does not have the host name of this request.",
    422: "The form is right and the content is invalid; `errors` names rows and columns.",
    429: "A limit is reached; retry after `Retry-After` seconds.",
    500: "An unforeseen error, or a damaged model; the gateway's log has the details.",
    503: "A dependency or all workers are unavailable; retry.",
    504: "There was no answer in time.",
}
REJECTIONS = (401, 403, 429)
# Keys that are sent to an operation which needs none count, too.
RATED = (429,)
# What every operation may answer.
COMMON = (400, 406, 417, 421, 500)
OTHER = "A problem before the operation is known: 408 (the head took too long), 431 (a header is too long)."


def document(routes: Sequence[Route], *, keys: bool = False) -> dict[str, Any]:
    """Return the document of `routes`; `keys` says whether this gateway requires API keys."""
    forms = [
        Problem,
        InferenceError,
        InfluxError,
        Event,
        *(form for route in routes for form in (route.form, *route.answers.values()) if form not in (None, bytes)),
    ]
    schema_of, components = schemas_of(forms)
    components["Problem"]["examples"] = [PROBLEM]
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of, keys=keys)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "keepfit",
            "version": keepfit.__version__,
            "summary": "Models that keep learning",
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        # Optional where this gateway requires no keys; each operation of a gateway that requires them names its scope.
        "security": [{SCHEME: []}] if keys else [{}, {SCHEME: []}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": components,
            "headers": headers.COMPONENTS,
            "securitySchemes": {
                SCHEME: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, as `keepfit key new` prints it.",
                }
            },
        },
    }


def _operation(route: Route, schema_of: dict[str, Any], *, keys: bool) -> dict[str, Any]:
    name = operation_id(route)
    example = EXAMPLES.get(name, Example())
    closed = keys and route.needs != OPEN
    answers = {
        str(status): _answer(route, status, form, schema_of, example, keys=keys)
        for status, form in route.answers.items()
    }
    # Without keys, pages of other sites are refused what changes something.
    rejected = REJECTIONS if closed else RATED if keys else () if route.method == "GET" else (403,)
    errors = dict.fromkeys([*COMMON, *route.errors, *rejected])
    rejections = {
        str(status): _error(route, status, schema_of, keys=keys) for status in errors if str(status) not in answers
    }
    operation: dict[str, Any] = {
        "operationId": name,
        "tags": [route.tag],
        "summary": route.summary,
        "description": route.description,
        "parameters": list(route.parameters),
        "responses": {
            **dict(sorted({**answers, **rejections}.items())),
            "default": _error(None, None, schema_of, keys=keys),
        },
    }
    if keys:
        # The scope is written where OpenAPI 3.1 has roles.
        operation["security"] = [{SCHEME: [*route.scopes]}] if closed else []
    if route.form is not None:
        operation["requestBody"] = _request_body(route, schema_of, example)
    elif route.file:
        operation["requestBody"] = {"required": True, "content": {BINARY: BYTES}}
    elif route.lines is not None:
        content = {BINARY: BYTES}
        operation["requestBody"] = {"required": True, "description": f"Lines of `{route.lines}`.", "content": content}
    return operation


def operation_id(route: Route) -> str:
    """Return the id of an operation: the name of the function in generated clients."""
    suffix = "_by_metadata" if route.by_metadata else "_of_version" if "{version}" in route.path else ""
    return f"{route.handler.__name__}{suffix}"


def _request_body(route: Route, schema_of: dict[str, Any], example: Example) -> dict[str, Any]:
    content = {"application/json": {"schema": schema_of[repr(route.form)], **_examples(example.requests)}}
    body: dict[str, Any] = {"required": not route.body_optional, "content": content}
    if route.lines is not None:
        body["description"] = f"JSON; or lines of JSON, as `{route.lines}`."
    if route.tables:
        body["description"] = TABLE_DESCRIPTION
        content[BINARY] = BYTES
    if route.tensors:
        body["description"] = TENSORS_DESCRIPTION
        content[BINARY] = BYTES
    return body


def _answer(
    route: Route, status: int, form: type[Any] | None, schema_of: dict[str, Any], example: Example, *, keys: bool
) -> dict[str, Any]:
    doc = inspect.cleandoc(form.__doc__ or "").split("\n\n")[0] if hasattr(form, "__struct_fields__") else ""
    answer: dict[str, Any] = {
        "description": " ".join(doc.split()) or MEANINGS[status],
        "headers": headers.references(status, (*route.headers.get(status, ()),), keys=keys),
    }
    if form is not None:
        if form is bytes:
            return answer | {"content": {route.media_type: BYTES}}
        shown = {"answer": example.answers[status]} if status in example.answers else {}
        answer["content"] = {route.media_type: {"schema": schema_of[repr(form)], **_examples(shown)}}
        if route.tensors:
            answer["content"][BINARY] = BYTES
        if status == HTTPStatus.OK:
            answer["content"] |= {media_type: {"schema": {"type": "string"}} for media_type in route.streams}
    return answer


def _error(route: Route | None, status: int | None, schema_of: dict[str, Any], *, keys: bool) -> dict[str, Any]:
    """Describe an error of a route; one that precedes the choice of the route has no status here."""
    form: type[Any] = Problem
    media_type = problems.MEDIA_TYPE
    if route is not None and inference_answers.is_path(route.path):
        form, media_type = InferenceError, "application/json"
    elif route is not None and influx_answers.is_path(route.path):
        form, media_type = InfluxError, "application/json"
    return {
        "description": OTHER if status is None else MEANINGS[status],
        "headers": headers.references(status, (), keys=keys),
        "content": {media_type: {"schema": schema_of[repr(form)]}},
    }


def _examples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"examples": {name: {"value": value} for name, value in values.items()}} if values else {}
