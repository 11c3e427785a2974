"""What handlers read of a request: path, query parameters, header fields, and the body about rows.

Owns the syntax of these inputs and their defaults. Never touches Redis, except to look up the model before a large
body is read. Invariant: what does not match the syntax answers 400 with what would be right.
"""

import asyncio
import re
from typing import NamedTuple

from aiohttp import web

from keepfit.errors import MalformedError
from keepfit.rows import arrow
from keepfit_gateway import schemas
from keepfit_gateway.schemas import Form
from keepfit_gateway.service import SERVICE, SETTINGS
from keepfit_gateway.web import bodies, rows_body
from keepfit_gateway.web.offload import INLINE_BYTES_MAX, run_in_thread_if_large
from keepfit_gateway.web.rows_body import RowsBody

HASH = re.compile(r"[0-9a-f]{64}")
KEY = re.compile(r"[\x21-\x7e]{1,128}")
WAIT = re.compile(r"(?:^|[,;]\s*)wait\s*=\s*\"?(\d{1,9})\"?", re.IGNORECASE)
WAIT_S_MAX = 60
SECONDS = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})?")
TIMEOUT_S_MAX = 600
NUMBER = re.compile(r"[0-9]{1,9}")
PAGE_DEFAULT = 100
PAGE_MAX = 1000
BOOLEAN = {"true": True, "false": False}


class Page(NamedTuple):
    """The page of a list that a request asks for; `filters` are its other query parameters."""

    limit: int
    after: str
    filters: dict[str, str]


async def read_rows(request: web.Request, form: type[Form], form_by_metadata: type[Form]) -> RowsBody:
    """Read and parse the rows of a request about one model.

    The path names the model by its hash, and the body has `form`; or metadata in the body name it, in
    `form_by_metadata`.

    Raises
    ------
    MalformedError, InvalidError
        If path, query or body are invalid.
    NotFoundError
        If the body is large and the model does not exist.
    UnavailableError
        If the bodies of other requests use all memory for bodies.
    web.HTTPException
        408 if the body does not arrive in time, 413 over the limits of size and width, 415 for another type or
        encoding.
    """
    settings, media_type = request.app[SETTINGS], request.content_type
    if "hash" not in request.match_info:
        if media_type in rows_body.TABLES:
            raise web.HTTPUnsupportedMediaType(
                text=f"A table cannot hold metadata: send {media_type} to /v1/models/{{hash}}/…, or JSON here."
            )
        body = await bodies.read(request, settings)
        return await run_in_thread_if_large(len(body), rows_body.parse, body, form_by_metadata)
    model_hash, length = path_hash(request), request.content_length
    if length is None or length > INLINE_BYTES_MAX:
        # Look the model up first: do not read a large body for a model that does not exist.
        await request.app[SERVICE].models.find(model_hash)
    proba = form is schemas.Predict and proba_parameter(request)
    if media_type == rows_body.ARROW and not arrow.AVAILABLE:
        raise web.HTTPUnsupportedMediaType(
            text="This gateway lacks pyarrow: install keepfit[frames] there, or send JSON or application/x-npy."
        )
    body = await bodies.read(request, settings, (bodies.JSON, *rows_body.TABLES))
    if media_type == bodies.JSON:
        rows = await run_in_thread_if_large(len(body), rows_body.parse, body, form, model_hash)
    else:
        rows = await asyncio.to_thread(rows_body.parse_table, body, form, media_type, model_hash)
    rows.proba |= proba
    return rows


def path_hash(request: web.Request) -> str:
    """Return the hash of the model that the path names."""
    model_hash: str = request.match_info["hash"]
    if not HASH.fullmatch(model_hash):
        raise MalformedError("The hash of a model is 64 hexadecimal digits in lower case.")
    return model_hash


def page_parameters(request: web.Request, after_pattern: re.Pattern[str], *, filters: bool = False) -> Page:
    """Return the query parameters `limit` and `after`, and the others if `filters` are allowed."""
    if len(request.query) != len(set(request.query)):
        raise MalformedError("A query parameter occurs more than once.")
    others = dict(request.query)
    limit, after = others.pop("limit", str(PAGE_DEFAULT)), others.pop("after", "")
    if others and not filters:
        raise MalformedError("The only query parameters are limit and after.")
    if not NUMBER.fullmatch(limit) or not 1 <= int(limit) <= PAGE_MAX:
        raise MalformedError(f"limit must be an integer from 1 to {PAGE_MAX}.")
    if after and not after_pattern.fullmatch(after):
        raise MalformedError("after must be the value of next in the previous page.")
    return Page(int(limit), after, others)


def timeout_parameter(request: web.Request) -> float | None:
    """Return the query parameter ``timeout``: seconds until the request expires; None without it."""
    value = request.query.get("timeout") if request.query_string else None
    if value is None:
        return None
    if not SECONDS.fullmatch(value) or not 0 < float(value) <= TIMEOUT_S_MAX:
        raise MalformedError(f"timeout must be a number of seconds above 0, at most {TIMEOUT_S_MAX}.")
    return float(value)


def proba_parameter(request: web.Request) -> bool:
    """Return the query parameter ``proba``: whether probabilities are requested. Tables have no field for it."""
    values = request.query.getall("proba", ["false"])
    if len(values) != 1 or values[0] not in BOOLEAN:
        raise MalformedError("proba must be true or false, and occur once.")
    return BOOLEAN[values[0]]


def idempotency_key(request: web.Request) -> str | None:
    """Return the header field ``Idempotency-Key``; None without it."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not KEY.fullmatch(key):
        raise MalformedError("Idempotency-Key must be 1 to 128 visible ASCII characters.")
    return key


def preferred_wait_s(request: web.Request, default: int = 0) -> int:
    """Return the seconds of ``Prefer: wait=N`` (RFC 7240), at most 60; `default` without it."""
    if "Prefer" not in request.headers:
        return default
    preference = WAIT.search(",".join(request.headers.getall("Prefer")))
    return min(int(preference[1]), WAIT_S_MAX) if preference else default
