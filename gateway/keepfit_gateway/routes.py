"""The table of routes: what is where, which form it takes, what it answers. The OpenAPI document is made from it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from keepfit.history import points
from keepfit.security.api_keys import ADMIN, LEARN, OPEN, PREDICT, READ
from keepfit_gateway import schemas
from keepfit_gateway.handlers import dead_letters, history, models, patching, snapshots

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `answers` maps status codes to forms (None: no body); `errors` are further status codes.

    `tables` tells whether rows may come as one of the media types of tables, too; `media_type` is that of the answers.
    `scope` is what an API key must have for it; where none is named, READ for what only reads and ADMIN for all else.
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
        """Scope that the caller's key must have."""
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
LIMIT = _parameter("limit", "query", "Models on a page.", {"type": "integer", "minimum": 1, "maximum": models.PAGE_MAX})
AFTER = _parameter(
    "after", "query", "`next` of the page before, or nothing.", {"type": "string", "pattern": "^([0-9a-f]{64})?$"}
)
DEAD_LIMIT = {**LIMIT, "description": "Requests on a page."}
DEAD_AFTER = {**AFTER, "schema": {"type": "string", "pattern": "^([0-9]{1,15}-[0-9]{1,16})?$"}}
SNAPSHOTS_LIMIT = {**LIMIT, "description": "Snapshots on a page."}
SNAPSHOTS_AFTER = {**AFTER, "schema": {"type": "string", "pattern": "^([0-9]{1,15}-[0-9]{1,15})?$"}}
PREFER = _parameter(
    "Prefer", "header", "`wait=SECONDS` answers 200 once the rows are learned, 202 if that takes longer."
)
PREFER_PATCH = {
    **PREFER,
    "description": "`wait=SECONDS` answers 202 if it takes longer; 5 seconds where it is left out.",
}
TIMEOUT = _parameter(
    "timeout",
    "query",
    "Seconds after which the answer is not wanted any more: 504, and what still waits is dropped, not computed.",
    {"type": "number", "exclusiveMinimum": 0, "maximum": models.TIMEOUT_S_MAX},
)
KEY = _parameter(
    "Idempotency-Key",
    "header",
    "The same key again within a day gives the first answer and learns nothing twice.",
    {"type": "string", "pattern": "^[!-~]{1,128}$"},
)
CACHE_CONTROL = _parameter(
    "Cache-Control",
    "header",
    "`no-cache`: compute anew; `no-store`: and do not keep it; `max-age=SECONDS`: nothing that was computed earlier.",
)
IF_NONE_MATCH = _parameter(
    "If-None-Match", "header", "`ETag` of an answer to the same request: 304 if it would be the same still."
)
PROBA = _parameter("proba", "query", "Ask for probabilities too; JSON has a field of that name.", {"type": "boolean"})

SPAN = {"type": "string", "pattern": "^[0-9]{1,9}([.][0-9]{1,6})?[smhdw]$", "examples": ["5m"]}
TIME = "Seconds since 1970, ISO 8601 (the gateway's zone where it names none), `yesterday`, `2 hours ago`."
NAMED = {"type": "string", "minLength": 1}
HISTORY = (
    _parameter("type", "query", "Type of the documents."),
    _parameter("hash", "query", "Hash of the model whose snapshots are meant.", HASH["schema"]),
    _parameter("after", "query", f"From this time on. {TIME}", {"type": "string", "examples": ["1 day ago"]}),
    _parameter("before", "query", "Before this time.", {"type": "string", "examples": ["now"]}),
    _parameter("closest", "query", "Only the document nearest to this time.", {"type": "string", "examples": ["now"]}),
    _parameter(
        "last", "query", "Only the newest document, or so many.",
        {"type": "string", "pattern": "^(true|[0-9]{1,4})?$", "examples": ["true"]},
    ),
    {**LIMIT, "description": "Documents on a page."},
    _parameter("page", "query", "Which page, from 1.", {"type": "integer", "minimum": 1, "maximum": 10**9}),
    _parameter("every", "query", "Group by time: one point for each such span, 30s, 5m, 1h, 1d, 1w.", SPAN),
    _parameter(
        "stat", "query", "What of each span: mean, min, max, sum, count, first, last, median, or a percentile: p99.",
        {"type": "string", "pattern": "^(mean|min|max|sum|count|first|last|median|p[0-9]{1,3}([.][0-9]{1,3})?)$"},
    ),
    _parameter(
        "field", "query", "Dotted name of a number; only stat=count goes without.",
        {**NAMED, "examples": ["metrics.mean_absolute_error"]},
    ),
    _parameter("group", "query", "Key of metadata whose values have points of their own.", NAMED),
    _parameter("fill", "query", "Spans without documents: none, null, previous, linear, or a number.", NAMED),
    _parameter("rate", "query", "The change from point to point in this span.", SPAN),
    _parameter(
        "moving", "query", "Mean over so many points.",
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
        "POST", "/v1/models", models.create_model, "Make a model",
        {201: schemas.ModelAnswer, 200: schemas.ModelAnswer}, schemas.CreateModel, (*BODY_ERRORS, 409, 503, 504),
    ),
    Route(
        "GET", "/v1/models", models.list_models,
        "List models; any other query parameter is compared with the metadata's value of that name",
        {200: schemas.ModelList}, errors=(400, 503), parameters=(LIMIT, AFTER),
    ),
    Route(
        "GET", "/v1/models/{hash}", models.get_model, "Describe a model",
        {200: schemas.ModelAnswer}, errors=(400, 404, 503, 504), parameters=(HASH,),
    ),
    Route(
        "PATCH", "/v1/models/{hash}", patching.patch_model, "Change parameters of a model, in order with its rows",
        {200: schemas.ModelAnswer, 202: schemas.ChangeAnswer}, schemas.PatchModel, LEARN_ERRORS,
        (HASH, PREFER_PATCH, KEY),
    ),
    Route(
        "DELETE", "/v1/models/{hash}", models.delete_model, "Forget a model; its snapshots stay",
        {204: None}, errors=(400, 404, 503), parameters=(HASH,),
    ),
    Route(
        "POST", "/v1/models/{hash}/partial_fit", models.partial_fit, "Learn rows",
        LEARNED, schemas.PartialFit, LEARN_ERRORS, (HASH, PREFER, KEY), tables=True, scope=LEARN,
    ),
    Route(
        "POST", "/v1/models/{hash}/predict", models.predict, "Predict rows",
        PREDICTED, schemas.Predict, ASK_ERRORS, (HASH, PROBA, TIMEOUT, CACHE_CONTROL, IF_NONE_MATCH), tables=True,
        scope=PREDICT,
    ),
    Route(
        "POST", "/v1/models/{hash}/score", models.score, "Score on rows and their target",
        SCORED, schemas.Score, ASK_ERRORS, (HASH, TIMEOUT), tables=True, scope=PREDICT,
    ),
    Route(
        "GET", "/v1/models/{hash}/dead", dead_letters.list_dead, "List requests that were put aside unlearned",
        {200: schemas.DeadAnswer}, errors=(400, 404, 503, 504), parameters=(HASH, DEAD_LIMIT, DEAD_AFTER),
        scope=ADMIN,  # it shows rows
    ),
    Route(
        "POST", "/v1/models/{hash}/dead/retry", dead_letters.retry_dead,
        "Move requests that were put aside back to the inbox",
        {202: schemas.RetriedAnswer}, schemas.RetryDead, LEARN_ERRORS, (HASH,),
    ),
    Route(
        "POST", "/v1/models/{hash}/dead/discard", dead_letters.discard_dead, "Forget requests that were put aside",
        {200: schemas.DiscardedAnswer}, schemas.DiscardDead, (*BODY_ERRORS, 404, 503), (HASH,),
    ),
    Route(
        "POST", "/v1/models/{hash}/snapshot", snapshots.make_snapshot, "Save the model as it is now",
        {201: schemas.SnapshotAnswer}, errors=(400, 404, 409, 429, 503, 504), parameters=(HASH,),
    ),
    Route(
        "GET", "/v1/models/{hash}/snapshots", snapshots.list_snapshots, "List a model's snapshots, newest first",
        {200: schemas.SnapshotList}, errors=(400, 404, 503), parameters=(HASH, SNAPSHOTS_LIMIT, SNAPSHOTS_AFTER),
    ),
    Route(
        "POST", "/v1/models/{hash}/restore", snapshots.restore_model,
        "Put back the newest snapshot of a version or time, over a live model too; or what Redis lost",
        {200: schemas.RestoredAnswer}, schemas.RestoreModel, (*BODY_ERRORS, 404, 409, 429, 503, 504), (HASH,),
    ),
    Route(
        "POST", "/v1/partial_fit", models.partial_fit, "Learn rows, by metadata",
        LEARNED, schemas.PartialFitByMetadata, LEARN_ERRORS, (PREFER, KEY), scope=LEARN,
    ),
    Route(
        "POST", "/v1/predict", models.predict, "Predict rows, by metadata",
        PREDICTED, schemas.PredictByMetadata, ASK_ERRORS, (TIMEOUT, CACHE_CONTROL, IF_NONE_MATCH), scope=PREDICT,
    ),
    Route(
        "POST", "/v1/score", models.score, "Score on rows and their target, by metadata",
        SCORED, schemas.ScoreByMetadata, ASK_ERRORS, (TIMEOUT,), scope=PREDICT,
    ),
    Route(
        "GET", "/v1/history", history.list_history,
        "Documents by time, or points of their numbers; any other query parameter is compared with the metadata",
        {200: schemas.HistoryAnswer}, errors=(400, 422, 503), parameters=HISTORY,
    ),
    Route("GET", "/livez", models.livez, "Whether the process answers", {200: schemas.Live}, scope=OPEN),
    Route(
        "GET", "/readyz", models.readyz, "Whether the service can do its work",
        {200: schemas.Ready, 503: schemas.Ready}, scope=OPEN,
    ),
    Route(
        "GET", "/metrics", models.show_metrics, "What this gateway has counted, and the state of its parts",
        {200: str}, media_type="text/plain",
    ),
    Route("GET", "/openapi.json", models.openapi, "This document", {200: dict[str, Any]}, scope=OPEN),
)  # fmt: skip

# Answered to who sends no key: probes have none, and the API's description is in the source for all to read.
OPEN_PATHS = frozenset(route.path for route in ROUTES if route.needs == OPEN)
