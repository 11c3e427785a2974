"""The table of routes: method, path, handler, form and answers. The OpenAPI document is generated from it.

Owns no behaviour. Invariant: every path of the API is in this table, with the scope that it needs.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from keepfit.history import points
from keepfit.security.api_keys import ADMIN, LEARN, OPEN, PREDICT, READ
from keepfit_gateway import schemas
from keepfit_gateway.handlers import (
    dead_letters,
    history,
    inputs,
    learning,
    models,
    operations,
    prediction,
    snapshots,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `answers` maps status codes to forms (None: no body); `errors` are the other status codes.

    `tables` says whether rows are also accepted as a table; `media_type` is that of the answers. `scope` is the scope
    that an API key needs; by default READ for GET and ADMIN for all other methods.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answers: dict[int, type[Any] | None]
    form: type[schemas.Form] | None = None
    errors: tuple[int, ...] = ()
    parameters: tuple[dict[str, Any], ...] = field(default=())
    tables: bool = False
    scope: str | None = None
    media_type: str = "application/json"

    @property
    def needs(self) -> str:
        """The scope that the API key of the caller needs."""
        if self.scope is not None:
            return self.scope
        return READ if self.method == "GET" else ADMIN


def _parameter(name: str, where: str, description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "description": description,
        "schema": schema or {"type": "string"},
    }


HASH = _parameter("hash", "path", "SHA-256 of the canonical metadata.", {"type": "string", "pattern": "^[0-9a-f]{64}$"})
LIMIT = _parameter("limit", "query", "Models on a page.", {"type": "integer", "minimum": 1, "maximum": inputs.PAGE_MAX})
AFTER = _parameter(
    "after",
    "query",
    "`next` of the previous page; empty for the first page.",
    {"type": "string", "pattern": "^([0-9a-f]{64})?$"},
)
DEAD_LIMIT = {**LIMIT, "description": "Requests on a page."}
DEAD_AFTER = {**AFTER, "schema": {"type": "string", "pattern": "^([0-9]{1,15}-[0-9]{1,16})?$"}}
SNAPSHOTS_LIMIT = {**LIMIT, "description": "Snapshots on a page."}
SNAPSHOTS_AFTER = {**AFTER, "schema": {"type": "string", "pattern": "^([0-9]{1,15}-[0-9]{1,15})?$"}}
PREFER = _parameter(
    "Prefer", "header", "`wait=SECONDS`: answer 200 when the rows are learned, 202 if that takes longer."
)
PREFER_PATCH = {
    **PREFER,
    "description": "`wait=SECONDS`: answer 202 if it takes longer; 5 seconds by default.",
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
    "`no-cache`: do not answer from the cache; `no-store`: nor store the answer; `max-age=SECONDS`: no older answer.",
)
IF_NONE_MATCH = _parameter(
    "If-None-Match", "header", "`ETag` of an earlier answer to the same request: 304 if it is still valid."
)
PROBA = _parameter(
    "proba", "query", "Also return probabilities; JSON bodies have a field of the same name.", {"type": "boolean"}
)

SPAN = {"type": "string", "pattern": "^[0-9]{1,9}([.][0-9]{1,6})?[smhdw]$", "examples": ["5m"]}
TIME = "Seconds since 1970, ISO 8601 (in the gateway's time zone if it has none), `yesterday`, `2 hours ago`."
NAMED = {"type": "string", "minLength": 1}
HISTORY = (
    _parameter("type", "query", "Type of the documents."),
    _parameter("hash", "query", "Hash of a model: only documents of its snapshots.", HASH["schema"]),
    _parameter("after", "query", f"From this time on. {TIME}", {"type": "string", "examples": ["1 day ago"]}),
    _parameter("before", "query", "Before this time.", {"type": "string", "examples": ["now"]}),
    _parameter("closest", "query", "Only the document nearest to this time.", {"type": "string", "examples": ["now"]}),
    _parameter(
        "last", "query", "Only the newest document, or this number of them.",
        {"type": "string", "pattern": "^(true|[0-9]{1,4})?$", "examples": ["true"]},
    ),
    {**LIMIT, "description": "Documents on a page."},
    _parameter("page", "query", "Number of the page, from 1.", {"type": "integer", "minimum": 1, "maximum": 10**9}),
    _parameter("every", "query", "Group by time: one point per span of this length: 30s, 5m, 1h, 1d, 1w.", SPAN),
    _parameter(
        "stat", "query", "Aggregate of a span: mean, min, max, sum, count, first, last, median, or a percentile: p99.",
        {"type": "string", "pattern": "^(mean|min|max|sum|count|first|last|median|p[0-9]{1,3}([.][0-9]{1,3})?)$"},
    ),
    _parameter(
        "field", "query", "Dotted name of a number; only stat=count goes without.",
        {**NAMED, "examples": ["metrics.mean_absolute_error"]},
    ),
    _parameter("group", "query", "Metadata key: points are computed separately for each of its values.", NAMED),
    _parameter("fill", "query", "Value of spans without documents: none, null, previous, linear, or a number.", NAMED),
    _parameter("rate", "query", "Change between points, per this span.", SPAN),
    _parameter(
        "moving", "query", "Moving average over this number of points.",
        {"type": "integer", "minimum": 1, "maximum": points.MOVING_MAX},
    ),
)  # fmt: skip

BODY_ERRORS = (400, 408, 413, 415, 422)
LEARNED: dict[int, type[Any] | None] = {200: schemas.LearnedAnswer, 202: schemas.AcceptedAnswer}
PREDICTED: dict[int, type[Any] | None] = {200: schemas.PredictAnswer, 304: None}
SCORED: dict[int, type[Any] | None] = {200: schemas.ScoreAnswer}
LEARN_ERRORS = (*BODY_ERRORS, 404, 409, 429, 503, 504)
ASK_ERRORS = (*BODY_ERRORS, 404, 409, 429, 503, 504)

ROUTES = (
    Route(
        "POST", "/v1/models", models.create_model, "Create a model",
        {201: schemas.ModelAnswer, 200: schemas.ModelAnswer}, schemas.CreateModel, (*BODY_ERRORS, 409, 503, 504),
    ),
    Route(
        "GET", "/v1/models", models.list_models,
        "List models; any other query parameter filters by the metadata value of that name",
        {200: schemas.ModelList}, errors=(400, 503), parameters=(LIMIT, AFTER),
    ),
    Route(
        "GET", "/v1/models/{hash}", models.get_model, "Describe a model",
        {200: schemas.ModelAnswer}, errors=(400, 404, 503, 504), parameters=(HASH,),
    ),
    Route(
        "PATCH", "/v1/models/{hash}", models.patch_model, "Change parameters of the estimator, in order with the rows",
        {200: schemas.ModelAnswer, 202: schemas.ChangeAnswer}, schemas.PatchModel, LEARN_ERRORS,
        (HASH, PREFER_PATCH, KEY),
    ),
    Route(
        "DELETE", "/v1/models/{hash}", models.delete_model, "Delete a model; its snapshots stay",
        {204: None}, errors=(400, 404, 503), parameters=(HASH,),
    ),
    Route(
        "POST", "/v1/models/{hash}/partial_fit", learning.partial_fit, "Learn rows",
        LEARNED, schemas.PartialFit, LEARN_ERRORS, (HASH, PREFER, KEY), tables=True, scope=LEARN,
    ),
    Route(
        "POST", "/v1/models/{hash}/predict", prediction.predict, "Predict rows",
        PREDICTED, schemas.Predict, ASK_ERRORS, (HASH, PROBA, TIMEOUT, CACHE_CONTROL, IF_NONE_MATCH), tables=True,
        scope=PREDICT,
    ),
    Route(
        "POST", "/v1/models/{hash}/score", prediction.score, "Score rows against their target",
        SCORED, schemas.Score, ASK_ERRORS, (HASH, TIMEOUT), tables=True, scope=PREDICT,
    ),
    Route(
        "GET", "/v1/models/{hash}/dead", dead_letters.list_dead, "List dead letters",
        {200: schemas.DeadAnswer}, errors=(400, 404, 503, 504), parameters=(HASH, DEAD_LIMIT, DEAD_AFTER),
        scope=ADMIN,  # it returns rows
    ),
    Route(
        "POST", "/v1/models/{hash}/dead/retry", dead_letters.retry_dead,
        "Move dead letters back to the inbox",
        {202: schemas.RetriedAnswer}, schemas.RetryDead, LEARN_ERRORS, (HASH,),
    ),
    Route(
        "POST", "/v1/models/{hash}/dead/discard", dead_letters.discard_dead, "Delete dead letters",
        {200: schemas.DiscardedAnswer}, schemas.DiscardDead, (*BODY_ERRORS, 404, 503), (HASH,),
    ),
    Route(
        "POST", "/v1/models/{hash}/snapshot", snapshots.make_snapshot, "Save a snapshot of the model now",
        {201: schemas.SnapshotAnswer}, errors=(400, 404, 409, 429, 503, 504), parameters=(HASH,),
    ),
    Route(
        "GET", "/v1/models/{hash}/snapshots", snapshots.list_snapshots, "List a model's snapshots, newest first",
        {200: schemas.SnapshotList}, errors=(400, 404, 503), parameters=(HASH, SNAPSHOTS_LIMIT, SNAPSHOTS_AFTER),
    ),
    Route(
        "POST", "/v1/models/{hash}/restore", snapshots.restore_model,
        "Restore a snapshot by version or time, also over a live model; or a model that Redis lost",
        {200: schemas.RestoredAnswer}, schemas.RestoreModel, (*BODY_ERRORS, 404, 409, 429, 503, 504), (HASH,),
    ),
    Route(
        "POST", "/v1/partial_fit", learning.partial_fit, "Learn rows, by metadata",
        LEARNED, schemas.PartialFitByMetadata, LEARN_ERRORS, (PREFER, KEY), scope=LEARN,
    ),
    Route(
        "POST", "/v1/predict", prediction.predict, "Predict rows, by metadata",
        PREDICTED, schemas.PredictByMetadata, ASK_ERRORS, (TIMEOUT, CACHE_CONTROL, IF_NONE_MATCH), scope=PREDICT,
    ),
    Route(
        "POST", "/v1/score", prediction.score, "Score rows against their target, by metadata",
        SCORED, schemas.ScoreByMetadata, ASK_ERRORS, (TIMEOUT,), scope=PREDICT,
    ),
    Route(
        "GET", "/v1/history", history.list_history,
        "Documents by time, or points aggregated from them; any other query parameter filters by metadata",
        {200: schemas.HistoryAnswer}, errors=(400, 422, 503), parameters=HISTORY,
    ),
    Route("GET", "/livez", operations.livez, "Whether the process responds", {200: schemas.Live}, scope=OPEN),
    Route(
        "GET", "/readyz", operations.readyz, "Whether the service can learn and predict",
        {200: schemas.Ready, 503: schemas.Ready}, scope=OPEN,
    ),
    Route(
        "GET", "/metrics", operations.show_metrics, "Metrics of this gateway and the state of its dependencies",
        {200: str}, media_type="text/plain",
    ),
    Route("GET", "/openapi.json", operations.openapi, "This document", {200: dict[str, Any]}, scope=OPEN),
)  # fmt: skip

# Paths without an API key: probes have none, and the description of the API is public.
OPEN_PATHS = frozenset(route.path for route in ROUTES if route.needs == OPEN)
