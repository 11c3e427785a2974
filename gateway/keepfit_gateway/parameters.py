"""Parameters of routes, as the OpenAPI document shows them.

Owns their descriptions and schemas. :mod:`keepfit_gateway.handlers.inputs` and :mod:`keepfit.history.query` read them.
"""

from typing import Any

from keepfit.history.queries import comparisons, points, statistic, zones
from keepfit.history.queries.filters import DOCUMENT, KINDS
from keepfit.history.writing.checks import KEYS_MAX
from keepfit.history.writing.line_protocol import PRECISIONS_NS
from keepfit.store import events
from keepfit_gateway.handlers import inputs, model_list
from keepfit_gateway.handlers.events import LAST_EVENT_ID, LAST_EVENT_ID_PARAMETER
from keepfit_gateway.inference_protocol import messages
from keepfit_gateway.model_overview import SORTS
from keepfit_gateway.schemas.values import REFERENCE


def _parameter(name: str, where: str, description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "description": description,
        "schema": schema or {"type": "string"},
    }


# The model of the examples (`keepfit_gateway.openapi.examples`).
EXAMPLE_HASH = "1b49da00465249682d486387fffc24236d1b055c1022bce4a70bdf3573e08df8"
HASH = {
    **_parameter("hash", "path", "SHA-256 of the canonical metadata.", {"type": "string", "pattern": "^[0-9a-f]{64}$"}),
    "example": EXAMPLE_HASH,
}
VERSION = {
    **_parameter(
        "version", "path", "Version of the model: the live one.", {"type": "string", "pattern": "^[0-9]{1,16}$"}
    ),
    "example": "4",
}
HEADER_LENGTH = _parameter(
    messages.HEADER_LENGTH,
    "header",
    "Number of bytes of the JSON, if bytes of tensors follow it.",
    {"type": "integer", "minimum": 0},
)
LIMIT = _parameter("limit", "query", "Models on a page.", {"type": "integer", "minimum": 1, "maximum": inputs.PAGE_MAX})
AFTER = _parameter(
    "after",
    "query",
    "`next` of the previous page; empty for the first page.",
    {"type": "string", "pattern": "^([0-9a-f]{64})?$"},
)
MODELS_AFTER = {
    **AFTER,
    "schema": {"type": "string", "pattern": f"^({model_list.PLACE.pattern}|[0-9a-f]{{64}})?$"},
}
SORT = _parameter(
    "sort",
    "query",
    "Order of the models: by hash (the default); or the largest first: rate (rows learned each second), error (in "
    "relation to the baseline's), inbox, or rows.",
    {"type": "string", "enum": list(SORTS)},
)
SEARCH = _parameter(
    "search",
    "query",
    "Only models whose hash and metadata, as text, contain each of these words, in capitals or not.",
    {"type": "string", "maxLength": model_list.SEARCH_LENGTH_MAX},
)
DEAD_LIMIT = {**LIMIT, "description": "Requests on a page."}
DEAD_AFTER = {**AFTER, "schema": {"type": "string", "pattern": "^([0-9]{1,15}-[0-9]{1,16})?$"}}
SNAPSHOTS_LIMIT = {**LIMIT, "description": "Snapshots on a page."}
SNAPSHOTS_AFTER = {**AFTER, "schema": {"type": "string", "pattern": "^([0-9]{1,15}-[0-9]{1,15})?$"}}
FILE_COLUMNS = (
    {
        **_parameter(
            "columns", "query",
            "Of CSV and Parquet: the columns of the rows, in order; without it those of the recipe, or all.",
            {"type": "array", "items": {"type": "string"}},
        ),
        "style": "form",
        "explode": True,
    },
    _parameter(
        "label_type", "query", "Of CSV: type of the labels, if the recipe names no classes; `string` by default.",
        {"type": "string", "enum": ["string", "integer", "boolean"]},
    ),
)  # fmt: skip
FILE_TARGET = (
    *FILE_COLUMNS,
    _parameter("target", "query", "Of CSV and Parquet: column of the target; `y` by default."),
)
FILE_WEIGHT = (*FILE_TARGET, _parameter("sample_weight", "query", "Of CSV and Parquet: column of the weights."))
JOB = {
    **_parameter("job", "path", "Id of the job.", {"type": "string", "pattern": "^[0-9a-f]{32}$"}),
    "example": "5f0c1d2e3a4b5c6d7e8f90a1b2c3d4e5",
}
JOBS = (
    {**LIMIT, "description": "Jobs on a page."},
    {**AFTER, "schema": {"type": "string", "pattern": "^([0-9]{15}-[0-9a-f]{32})?$"}},
    _parameter("hash", "query", "Only jobs of this model.", HASH["schema"]),
    _parameter(
        "state", "query", "Only jobs in this state.",
        {"type": "string", "enum": ["queued", "running", "done", "failed", "cancelled"]},
    ),
)  # fmt: skip
METADATA = {
    **_parameter(
        "metadata",
        "query",
        "Only what has these values in its metadata: `metadata[brand]=nike`, or just `brand=nike`.",
        {"$ref": REFERENCE.format(name="MetadataFilter")},
    ),
    "style": "deepObject",
    "explode": True,
    # Without an example, Swagger UI makes up a filter, which nothing matches.
    "example": {},
}
METADATA_INSTEAD = _parameter(
    "metadata",
    "query",
    "Metadata of the model as JSON, for a body that is a table, or none; a JSON body then has no field `metadata`.",
    {"type": "string", "contentMediaType": "application/json"},
)
METADATA_NAME = {
    **METADATA_INSTEAD,
    "required": True,
    "description": "Metadata of the model as JSON.",
    "example": '{"type":"shoes","brand":"nike"}',
}
FORMAT = _parameter(
    "format", "query", "Format of the file: `skops` by default.", {"type": "string", "enum": ["skops", "pickle"]}
)
PART = _parameter(
    "part",
    "query",
    "What the file contains: the `model`, by default, or its `estimator` alone.",
    {"type": "string", "enum": ["model", "estimator"]},
)
PREFER = _parameter(
    "Prefer",
    "header",
    "`wait=SECONDS`: answer 200 when the rows are learned, 202 if that takes longer.",
    {"type": "string", "examples": ["wait=10"]},
)
PREFER_PATCH = {
    **PREFER,
    "description": "`wait=SECONDS`: answer 202 if it takes longer; 5 seconds by default.",
}
PREFER_ANSWER = {
    **PREFER,
    "description": "`wait=SECONDS`: answer 202 if it takes longer; 10 seconds by default.",
}
TIMEOUT = _parameter(
    "timeout",
    "query",
    "Seconds after which the request expires: it answers 504, and is dropped if it has not been computed yet.",
    {"type": "number", "exclusiveMinimum": 0, "maximum": inputs.TIMEOUT_S_MAX},
)
KEY = _parameter(
    "Idempotency-Key",
    "header",
    "A request with the same key within a day gets the first answer and learns nothing twice.",
    {"type": "string", "pattern": "^[!-~]{1,128}$"},
)
CACHE_CONTROL = _parameter(
    "Cache-Control",
    "header",
    "`no-cache`: have a worker compute the answer; `no-store`: compute it and do not store it; `max-age=SECONDS`: no "
    "older answer; `stale-if-error=SECONDS`: an answer that is outdated for so long at most, instead of a 503 or 504.",
)
IF_NONE_MATCH = _parameter(
    "If-None-Match", "header", "`ETag` of an earlier answer to the same request: 304 if it is still valid."
)
REQUEST_ID = _parameter(
    "X-Request-ID",
    "header",
    "Id of this request in logs and in the answer: 1 to 128 letters, digits and `._:/+=@-`; another is replaced.",
)
PAST = (
    _parameter(
        "version",
        "query",
        "Predict with the snapshot of this version, beside the live model; 404 names the nearest versions if there is "
        "none.",
        {"type": "string", "pattern": "^[0-9]{1,15}$", "examples": ["3"]},
    ),
    _parameter(
        "at",
        "query",
        "Predict with the newest snapshot that is not later than this time. Seconds since 1970, ISO 8601 (in the "
        "gateway's time zone if it has none), `yesterday`, `2 hours ago`; not in the future.",
        {"anyOf": [{"type": "number"}, {"type": "string"}], "examples": ["2 hours ago"]},
    ),
)
PROBA = _parameter(
    "proba", "query", "Also return probabilities; JSON bodies have a field of the same name.", {"type": "boolean"}
)

CURVE = (
    _parameter(
        "metric",
        "query",
        "Only these metrics, separated by commas; without it all that the model has.",
        {"type": "string", "pattern": "^[a-z0-9_]{1,64}(,[a-z0-9_]{1,64}){0,15}$", "examples": ["mean_absolute_error"]},
    ),
    _parameter(
        "since_rows",
        "query",
        "Only points after more than this number of rows.",
        {"type": "string", "pattern": "^[0-9]{1,15}$", "examples": ["1000"]},
    ),
)

EVENT_ID = {"type": "string", "pattern": "^([0-9]{1,15}-[0-9]{1,19})?$", "examples": ["0-0"]}
EVENTS = (
    _parameter(
        "kind",
        "query",
        "Only events of these kinds, separated by commas.",
        {
            "type": "string",
            "pattern": f"^({'|'.join(events.KINDS)})(,({'|'.join(events.KINDS)}))*$",
            "examples": ["drift,dead_letter"],
        },
    ),
    _parameter(
        "hash",
        "query",
        "Only events of these models, up to 100, separated by commas.",
        {"type": "string", "pattern": "^[0-9a-f]{64}(,[0-9a-f]{64}){0,99}$"},
    ),
    METADATA,
    _parameter(
        LAST_EVENT_ID,
        "header",
        "Id of the last event that the client has: it continues after that. Browsers send it when they connect again.",
        EVENT_ID,
    ),
    _parameter(
        LAST_EVENT_ID_PARAMETER,
        "query",
        "The same, for clients that cannot set the header, which precedes it. `0-0`: all events that are kept.",
        EVENT_ID,
    ),
    {**TIMEOUT, "description": "Seconds after which the stream ends; without it, it does not end by itself."},
)

SPAN = {"type": "string", "pattern": "^[0-9]{1,9}([.][0-9]{1,6})?(ms|[smhdw])?$", "examples": ["5m"]}
EVERY = {
    "type": "string",
    "pattern": "^([0-9]{1,9}([.][0-9]{1,6})?(ms|[smhdw])?|[0-9]{1,4}(mo|y))$",
    "examples": ["5m"],
}
TIME_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "number"}, {"type": "string"}]}
TIME = "Seconds since 1970, milliseconds (1795176000250ms), ISO 8601 (in the zone of `tz` if it has none), `yesterday`."
NAMED = {"type": "string", "minLength": 1}
FLAG = {"type": "boolean"}
STATS = "|".join(statistic.STATS)


def _several(name: str, description: str, most: int, **schema: Any) -> dict[str, Any]:
    """Return a parameter that may occur several times."""
    items = {"type": "array", "items": {**NAMED, **schema}, "minItems": 1, "maxItems": most}
    return {**_parameter(name, "query", description, items), "style": "form", "explode": True}


def _count(name: str, description: str, most: int) -> dict[str, Any]:
    return _parameter(name, "query", description, {"type": "integer", "minimum": 1, "maximum": most})


HISTORY = (
    _parameter("type", "query", "Type of the documents."),
    _parameter("hash", "query", "Hash of a model: only documents of its snapshots.", HASH["schema"]),
    _parameter(
        "kind", "query",
        "Which documents: those of snapshots, those that users store, or both. Default: snapshots if a hash is given "
        "or the type is one of models, both without type and hash, otherwise those of users.",
        {"type": "string", "enum": list(KINDS)},
    ),
    _several(
        "where",
        "Comparisons that must all hold: `rows_seen>=1000` (`=`, `!=`, `<`, `<=`, `>`, `>=`), `brand in nike,puma`, "
        "`brand not in nike`, `brand exists`, `brand not exists`.",
        comparisons.COMPARISONS_MAX, examples=["rows_seen>=1000"],
    ),
    _parameter("timestamp", "query", "Only documents of exactly this time.", {**TIME_SCHEMA, "examples": ["now"]}),
    _parameter("after", "query", f"From this time on. {TIME}", {**TIME_SCHEMA, "examples": ["1 day ago"]}),
    _parameter("before", "query", "Before this time.", {**TIME_SCHEMA, "examples": ["now"]}),
    _parameter(
        "tz", "query",
        "Time zone (IANA) of times without one, and whose days, weeks, months and years `every` means; for times "
        "without one that of the gateway by default, for `every` UTC.",
        {"type": "string", "pattern": f"^{zones.NAME.pattern}$", "examples": ["Europe/Berlin"]},
    ),
    _parameter("closest", "query", "Only the document nearest to this time.", {**TIME_SCHEMA, "examples": ["now"]}),
    _parameter(
        "last", "query", "Only the newest document, or this number of them.",
        {"type": "string", "pattern": "^(true|[0-9]{1,4})?$", "examples": ["true"]},
    ),
    _several(
        "per", "Keys of metadata or fields: only the newest document for each of their values.", points.KEYS_MAX,
        examples=["brand"],
    ),
    METADATA,
    {**LIMIT, "description": "Documents on a page; with `per`, at most so many values."},
    _parameter("page", "query", "Number of the page, from 1.", {"type": "integer", "minimum": 1, "maximum": 10**9}),
    _parameter(
        "every", "query", "Group by time: one point per span of this length: 250ms, 30s, 5m, 1h, 1d, 1w, 1mo, 1y, 90.",
        EVERY,
    ),
    _parameter(
        "stat", "query", f"Statistic of a span: {', '.join(statistic.STATS)}, or a percentile: p99.",
        {"type": "string", "pattern": f"^({STATS}|p[0-9]{{1,3}}([.][0-9]{{1,3}})?)$"},
    ),
    _parameter(
        "field", "query", "Dotted name of a number; only stat=count goes without, stat=distinct also takes texts.",
        {**NAMED, "examples": ["metrics.mean_absolute_error"]},
    ),
    _several(
        "group", "Keys of metadata or fields: each of their values has points of its own.", points.KEYS_MAX,
        examples=["brand"],
    ),
    _parameter("fill", "query", "Value of spans without documents: none, null, previous, linear, or a number.", NAMED),
    _parameter("rate", "query", "Change between points, per this span.", SPAN),
    _parameter(
        "nonnegative_rate", "query", "Growth of a counter between points, per this span; it may have been reset.", SPAN
    ),
    _parameter("increase", "query", "Growth of a counter between points; it may have been reset.", FLAG),
    _parameter("cumulative", "query", "Sum of each point and all before it.", FLAG),
    _count("moving", "Moving average over this number of points.", points.MOVING_MAX),
    _count("exponential", "Exponential average, with the weight 2 / (this number + 1) for a new point.",
           points.MOVING_MAX),
    _count(
        "top", "Only this number of groups, those with the largest mean of their points; without `every`, of "
        "documents, those with the largest `field`.", points.SERIES_MAX,
    ),
    _count("bottom", "As `top`, with the smallest ones.", points.SERIES_MAX),
    _count("series", "Only this number of groups, the first ones in order.", points.SERIES_MAX),
)  # fmt: skip
HISTORY_KEYS = {
    **_parameter(
        "keys", "query",
        "Names of fields that identify a document: it replaces the one with the same type and values of them.",
        {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": KEYS_MAX},
    ),
    "style": "form",
    "explode": True,
}  # fmt: skip
HISTORY_DELETION = (
    *(one for one in HISTORY if one["name"] in ("type", "where", "timestamp", "after", "before", "tz", "metadata")),
    _parameter("hash", "query", "Only documents with this value of their field `hash`."),
    _parameter("kind", "query", "`document`: no other can be deleted here.", {"type": "string", "enum": [DOCUMENT]}),
)
INFLUX_WRITE = (
    _parameter("org", "query", "Accepted, and without a meaning here."),
    _parameter("orgID", "query", "Accepted, and without a meaning here."),
    _parameter("bucket", "query", "Accepted, and without a meaning here."),
    _parameter("precision", "query", "Unit of the times; default: `ns`.", {"type": "string", "enum": [*PRECISIONS_NS]}),
)
