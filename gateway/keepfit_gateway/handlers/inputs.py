"""What handlers read of a request: path, query parameters, header fields, and the body about rows.

Owns the syntax of these inputs and their defaults. Never touches Redis, except to look up the model before a large
body is read. Invariant: what does not match the syntax answers 400 with what would be right.
"""

import re
from collections.abc import Collection
from typing import Any, NamedTuple, TypeVar, cast

from aiohttp import web

from keepfit import identity
from keepfit.errors import MalformedError
from keepfit.history.metadata_labels import filters_of
from keepfit.rows.selection import Selection
from keepfit.rows.text_columns import LabelType
from keepfit.rows.values import format_value
from keepfit.security.api_keys import UNRESTRICTED
from keepfit_gateway import bound_key, schemas
from keepfit_gateway.auth.guard import CALLER
from keepfit_gateway.schemas import Form
from keepfit_gateway.service import SERVICE, SETTINGS
from keepfit_gateway.web import bodies, fields, rows_body
from keepfit_gateway.web.incoming import expects_continue
from keepfit_gateway.web.offload import INLINE_BYTES_MAX, compute, compute_in_thread
from keepfit_gateway.web.rows_body import RowsBody, TableOptions

HASH_DIGITS = 64
HASH = re.compile(r"[0-9a-f]{64}")
DIGITS = re.compile(r"[0-9a-f]+")
NAME_IT = 'Name the model by the query parameter metadata, as percent-encoded JSON: metadata={"type":"shoes"}.'
HASH_FORM = f"The hash of a model is {HASH_DIGITS} hexadecimal digits in lower case"
# An error names up to this many models whose hash begins with the digits that were sent, if those are enough digits.
HINT_MODELS_MAX, HINT_DIGITS_MIN = 3, 4
KEY = re.compile(r"[\x21-\x7e]{1,128}")
# More digits than matter are ignored.
WAIT = re.compile(r"wait\s*=\s*(\"?)0*(\d{1,9})\d*\1", re.IGNORECASE)
WAIT_S_MAX = 60
SECONDS = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})?")
TIMEOUT_S_MAX = 600
NUMBER = re.compile(r"[0-9]{1,9}")
PAGE_DEFAULT = 100
PAGE_MAX = 1000
BOOLEAN = {"true": True, "false": False}
METADATA = "metadata"
# Every character may be escaped.
METADATA_TEXT_BYTES_MAX = 6 * identity.METADATA_BYTES_MAX
FormT = TypeVar("FormT", bound=Form)


# Seconds that a large request may still take after its wait for a turn.
LEFT_S = web.RequestKey("left_s", float)


class Page(NamedTuple):
    """The page of a list that a request asks for; `filters` are its other query parameters."""

    limit: int
    after: str
    filters: dict[str, str]


async def read_rows(request: web.Request, form: type[Form], timeout_s: float | None = None) -> RowsBody:
    """Read and parse the rows of a request about one model, which path, query or body name (:func:`named_hash`).

    A large body waits for its turn, at most `timeout_s` seconds (by default those of a prediction).

    Raises
    ------
    MalformedError, InvalidError
        If path, query or body are invalid.
    NotFoundError
        If the body is large, or the client waits before sending it, and the model does not exist.
    UnavailableError
        If the bodies of other requests use all memory for bodies.
    DeadlineError
        If a large body had no turn in time.
    web.HTTPException
        408 if the body does not arrive in time, 413 over the limits of size and width, 415 for another type or
        encoding.
    """
    settings, media_type = request.app[SETTINGS], bodies.media_type_of(request)
    model_hash = await named_hash(request)
    if model_hash is not None:
        await find_before_body(request, model_hash)
    elif media_type in rows_body.TABLES:
        raise MalformedError(f"A table has no field for metadata. {NAME_IT}")
    proba = form is schemas.Predict and proba_parameter(request)
    rows_body.check_media_type(media_type)
    options = table_options(request)
    body = await bodies.read(request, settings, (bodies.JSON, *rows_body.TABLES))
    await begin_turn(request, len(body), timeout_s)
    if model_hash is None:
        rows = await compute(len(body), rows_body.parse, body, schemas.with_metadata(form))
    elif media_type == bodies.JSON:
        rows = await compute(len(body), rows_body.parse, body, form, model_hash)
    else:
        rows = await compute_in_thread(len(body), rows_body.parse_table, body, form, media_type, model_hash, options)
        await _hold_inflated(request, len(body), rows.size, timeout_s)
    rows.proba |= proba
    return rows


async def read_form(request: web.Request, form: type[FormT], bytes_max: int) -> tuple[str, FormT]:
    """Read a JSON body of `form`, about one model, which path, query or body name; return its hash and the form.

    Raises
    ------
    MalformedError, InvalidError, web.HTTPException
        As :func:`read_rows`, and over the limit of `bytes_max` bytes.
    """
    model_hash = await named_hash(request)
    bytes_max += METADATA_TEXT_BYTES_MAX if model_hash is None else 0
    body = await bodies.read(request, request.app[SETTINGS], bytes_max=bytes_max)
    await begin_turn(request, len(body), None)
    document = await compute(len(body), identity.parse_json, body)
    if model_hash is not None:
        return model_hash, schemas.convert(document, form)
    named: Any = schemas.convert(document, schemas.with_metadata(form))
    return bound_key.hash_of(named.metadata), named


async def read_optional_form(request: web.Request, form: type[FormT], bytes_max: int) -> tuple[str, FormT]:
    """Read a body as :func:`read_form` does; without a body, no field has a value."""
    if request.body_exists:
        return await read_form(request, form, bytes_max)
    return await model_hash_of(request), form()


async def find_before_body(request: web.Request, model_hash: str) -> None:
    """Look the model up if the body is large: do not read one for a model that does not exist, nor ask for one.

    Raises
    ------
    NotFoundError
        If it does not exist.
    """
    length = request.content_length
    if length is None or length > INLINE_BYTES_MAX or expects_continue(request):
        await request.app[SERVICE].models.find(model_hash)


async def begin_turn(request: web.Request, size: int, timeout_s: float | None) -> None:
    """Wait until a large body may be parsed; the turn ends when the request's memory is released."""
    timeout_s = request.app[SETTINGS].predict_timeout_s if timeout_s is None else timeout_s
    request[LEFT_S] = await request.app[bodies.BODY_MEMORY].turns.begin(request, size, timeout_s)


async def _hold_inflated(request: web.Request, arrived: int, size: int, timeout_s: float | None) -> None:
    """Count the memory of a body of `arrived` bytes that takes `size` once it is read, and wait for that turn."""
    if size > max(arrived, INLINE_BYTES_MAX):
        memory = request.app[bodies.BODY_MEMORY]
        memory.reserve(request, size - arrived)
        memory.turns.end(request)
        await begin_turn(request, size, time_left(request, timeout_s))


def time_left(request: web.Request, timeout_s: float | None) -> float | None:
    """Return what the wait for a turn has left of the seconds for an answer; None stands for those of the settings."""
    left_s: float | None = request.get(LEFT_S, timeout_s)
    return left_s


async def named_hash(request: web.Request) -> str | None:
    """Return the hash of the model that the path names by its hash, or the query by its metadata; None if neither does.

    Raises
    ------
    MalformedError
        If the hash or the query parameter ``metadata`` is malformed, or there are several names.
    InvalidError
        If the metadata are invalid.
    """
    values = request.query.getall(METADATA, []) if request.query_string else []
    if "hash" in request.match_info:
        if values:
            raise MalformedError("The path names the model: leave out the query parameter metadata.")
        return await check_hash(request, request.match_info["hash"])
    if not values:
        return None
    if len(values) > 1:
        raise MalformedError("The query parameter metadata must occur once.")
    return bound_key.hash_of_text(values[0].encode(), "The query parameter metadata")


async def model_hash_of(request: web.Request) -> str:
    """Return the hash of the model that path or query name; raises as :func:`named_hash`, and if neither names one."""
    model_hash = await named_hash(request)
    if model_hash is None:
        raise MalformedError(NAME_IT)
    return model_hash


async def check_hash(request: web.Request, text: str) -> str:
    """Return `text` if it has the form of a hash.

    Raises
    ------
    MalformedError
        If it has another form; the message names the models whose hash begins so, because listings show short hashes.
    """
    if HASH.fullmatch(text):
        return text
    digits = text.lower()
    if not DIGITS.fullmatch(digits):
        raise MalformedError(f"{HASH_FORM}; {format_value(text)} is something else.")
    lookup, models = request.app[SERVICE].models, list[str]()
    if len(digits) >= HINT_DIGITS_MIN:
        models = await lookup.beginning_with(digits, HINT_MODELS_MAX + 1)
    hint = ""
    if len(models) == 1:
        hint = f" It begins the hash of one model: {models[0]}."
    elif models:
        hint = f" It begins the hashes of several models: {', '.join(models[:HINT_MODELS_MAX])}{_more(models)}."
    count = f"{len(digits)} digits" if len(digits) != HASH_DIGITS else "capital letters"
    raise MalformedError(f"{HASH_FORM}; {format_value(text)} has {count}.{hint}")


def _more(models: list[str]) -> str:
    return ", ..." if len(models) > HINT_MODELS_MAX else ""


def page_parameters(
    request: web.Request, after_pattern: re.Pattern[str], *, filters: bool = False, own: Collection[str] = ()
) -> Page:
    """Return the query parameters `limit` and `after`, and the others but those in `own` if `filters` are allowed."""
    if len(request.query) != len(set(request.query)):
        raise MalformedError("A query parameter occurs more than once.")
    others = {name: value for name, value in request.query.items() if name not in own}
    if not filters:
        # It names the model, or is refused where that is read.
        others.pop(METADATA, None)
    limit, after = others.pop("limit", str(PAGE_DEFAULT)), others.pop("after", "")
    if others and not filters:
        raise MalformedError("The only query parameters are limit and after.")
    if not NUMBER.fullmatch(limit) or not 1 <= int(limit) <= PAGE_MAX:
        raise MalformedError(f"limit must be an integer from 1 to {PAGE_MAX}.")
    if after and not after_pattern.fullmatch(after):
        raise MalformedError("after must be the value of next in the previous page.")
    return Page(int(limit), after, filters_of(others))


def timeout_parameter(request: web.Request) -> float | None:
    """Return the query parameter ``timeout``: seconds until the request expires; None without it."""
    values = request.query.getall("timeout", []) if request.query_string else []
    if not values:
        return None
    value, *others = values
    if others:
        raise MalformedError("timeout must occur once.")
    if not SECONDS.fullmatch(value) or not 0 < float(value) <= TIMEOUT_S_MAX:
        raise MalformedError(f"timeout must be a number of seconds above 0, at most {TIMEOUT_S_MAX}.")
    return float(value)


def proba_parameter(request: web.Request) -> bool:
    """Return the query parameter ``proba``: whether probabilities are requested. Tables have no field for it."""
    values = request.query.getall("proba", ["false"])
    if len(values) != 1 or values[0] not in BOOLEAN:
        raise MalformedError("proba must be true or false, and occur once.")
    return BOOLEAN[values[0]]


def table_options(request: web.Request) -> TableOptions:
    """Return the query parameters about the columns of CSV and Parquet.

    Raises
    ------
    MalformedError
        If one that has one value occurs twice, or names a type of labels that there is not.
    """
    bytes_max = request.app[SETTINGS].body_bytes_max
    if not request.query_string:
        return TableOptions(bytes_max)
    found = {name: request.query.getall(name, []) for name in ("target", "sample_weight", "label_type")}
    twice = next((name for name, values in found.items() if len(values) > 1), None)
    if twice is not None:
        raise MalformedError(f"{twice} must occur once.")
    target, weight, label_type = (values[0] if values else None for values in found.values())
    if label_type not in (None, "string", "integer", "boolean"):
        raise MalformedError("label_type must be string, integer or boolean.")
    selection = Selection(request.query.getall("columns", []) or None, target, weight)
    return TableOptions(bytes_max, selection, cast("LabelType | None", label_type))


def idempotency_key(request: web.Request) -> str | None:
    """Return the header field ``Idempotency-Key``, then a space and the name of the caller's API key; None without it.

    Two callers may choose the same key. Keys hold no space. A gateway without API keys has one caller, without a name.
    """
    key = fields.single(request.headers, "Idempotency-Key")
    if key is not None and not KEY.fullmatch(key):
        raise MalformedError("Idempotency-Key must be 1 to 128 visible ASCII characters.")
    caller = request[CALLER]
    return key if key is None or caller is UNRESTRICTED else f"{key} {caller.name}"


def preferred_wait_s(request: web.Request) -> int | None:
    """Return the seconds of ``Prefer: wait=N`` (RFC 7240), at most 60; None without it or if N is no number."""
    # Some clients separate preferences by semicolons.
    for preference in (part for item in fields.items(request.headers, "Prefer") for part in fields.parameters(item)):
        if preference.partition("=")[0].strip().lower() == "wait":
            # Of a preference that occurs more than once, the first counts.
            found = WAIT.fullmatch(preference)
            return None if found is None else min(int(found[2]), WAIT_S_MAX)
    return None
