"""The table of routes: method, path, handler, form and answers. The OpenAPI document is generated from it.

Owns no behaviour. Invariant: every path of the API is in this table, with the scope that it needs. The files that the
API page loads are no calls: they are in a list beside it.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from keepfit.security.api_keys import ADMIN, LEARN, OPEN, PREDICT, READ
from keepfit_gateway import api_page, schemas
from keepfit_gateway.handlers import api_page as page_handlers
from keepfit_gateway.handlers import (
    dead_letters,
    history,
    inference_protocol,
    learning,
    models,
    operations,
    prediction,
    snapshots,
)
from keepfit_gateway.parameters import (
    AFTER,
    CACHE_CONTROL,
    DEAD_AFTER,
    DEAD_LIMIT,
    HASH,
    HEADER_LENGTH,
    HISTORY,
    IF_NONE_MATCH,
    KEY,
    LIMIT,
    METADATA,
    PREFER,
    PREFER_PATCH,
    PROBA,
    REQUEST_ID,
    SNAPSHOTS_AFTER,
    SNAPSHOTS_LIMIT,
    TIMEOUT,
    VERSION,
)
from keepfit_gateway.schemas.values import OpenApiDocument
from keepfit_gateway.web.incoming import SERVER_PATH

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Parameter = dict[str, Any]

MODELS, LEARNING, PREDICTING = "models", "learning", "predicting"
DEAD_LETTERS, SNAPSHOTS, HISTORY_TAG, OPERATION = "dead letters", "snapshots", "history", "operation"
PROTOCOL = "inference protocol"
TAGS = {
    MODELS: "Create, describe, change and delete models.",
    LEARNING: "Send rows to learn.",
    PREDICTING: "Ask for predictions and scores.",
    DEAD_LETTERS: "Requests that were accepted and could not be learned.",
    SNAPSHOTS: "Save and restore models.",
    HISTORY_TAG: "Snapshots and their metrics by time.",
    PROTOCOL: "Predictions for clients of the Open Inference Protocol, version 2.",
    OPERATION: "Probes, metrics and this document.",
}


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `answers` maps status codes to forms (None: no body); `errors` are the other status codes.

    `tables` says whether rows are also accepted as a table; `tensors` whether bytes of tensors may follow the JSON of
    the request and of the answer; `media_type` is that of the answers; `headers` are fields of an answer by its status.
    `scope` is the scope that an API key needs; by default READ for GET and ADMIN for all other methods.
    """

    method: str
    path: str
    handler: Handler
    tag: str
    summary: str
    description: str
    answers: Mapping[int, type[Any] | None]
    form: type[schemas.Form] | None = None
    errors: tuple[int, ...] = ()
    own_parameters: tuple[Parameter, ...] = ()
    headers: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    tables: bool = False
    tensors: bool = False
    body_optional: bool = False
    scope: str | None = None
    media_type: str = "application/json"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Its own parameters, and the one of every operation."""
        return (*self.own_parameters, REQUEST_ID)

    @property
    def needs(self) -> str:
        """The scope that the API key of the caller needs."""
        if self.scope is not None:
            return self.scope
        return READ if self.method == "GET" else ADMIN


BODY_ERRORS = (400, 408, 413, 415, 422)
LEARNED: Mapping[int, type[Any] | None] = {200: schemas.LearnedAnswer, 202: schemas.AcceptedAnswer}
PREDICTED: Mapping[int, type[Any] | None] = {200: schemas.PredictAnswer, 304: None}
SCORED: Mapping[int, type[Any] | None] = {200: schemas.ScoreAnswer}
LEARN_ERRORS = (*BODY_ERRORS, 404, 409, 429, 503, 504)
ASK_ERRORS = LEARN_ERRORS
PREFERRED = {200: ("Preference-Applied",)}
INFERRED = {200: ("Inference-Header-Content-Length", "Age", "Cache-Status")}
CACHED = dict.fromkeys((200, 304), ("ETag", "Cache-Control", "Age", "Cache-Status"))

LEARN_TEXT = (
    "202 as soon as the rows are durable. With `Prefer: wait=SECONDS` 200 once they are learned, or the 202 when the "
    "time is up. Send an `Idempotency-Key`, and the same request may be repeated safely for a day."
)
PREDICT_TEXT = (
    "One prediction for each row, by the newest version of the model. With `proba` also probabilities of the classes, "
    "or scores of an outlier detector. `If-None-Match` with the `ETag` of an earlier answer: 304 while it is valid. "
    "`Cache-Control: stale-if-error=SECONDS`: an answer that is outdated for so long at most, instead of a 503 or 504."
)
MODEL_TEXT = "Its inputs and outputs with their datatypes, and its live version. -1 stands for any length."
READY_TEXT = "200 if the model has learned rows, so that it can predict; else 409."
INFER_TEXT = (
    "One prediction for each row, by the newest version of the model. The rows are tensors: `X`, or one for each "
    "column of the recipe. Outputs are `predictions` and, if they are named, `probabilities`, `classes` and `scores`. "
    "The bytes of binary tensors follow the JSON, whose length is then in `Inference-Header-Content-Length`."
)
VERSION_TEXT = "404 unless `version` is the live version."
SCORE_TEXT = "Regressors answer `max_error`, `mean_absolute_error`, `r2`; classifiers `accuracy`, `f1`, `log_loss`."

ROUTES = (
    Route(
        "POST", "/v1/models", models.create_model, MODELS, "Create a model",
        "201 if it was created, 200 if it exists with this recipe, 409 if it exists with another one.",
        {200: schemas.ModelAnswer, 201: schemas.ModelAnswer}, schemas.CreateModel, (*BODY_ERRORS, 409, 503, 504),
        headers={200: ("Location",), 201: ("Location",)},
    ),
    Route(
        "GET", "/v1/models", models.list_models, MODELS, "List models",
        "In order of their hash. `metadata` selects models by values of their metadata; any other query parameter does "
        "the same: `brand=nike`.",
        {200: schemas.ModelList}, errors=(400, 503), own_parameters=(METADATA, LIMIT, AFTER),
    ),
    Route(
        "GET", "/v1/models/{hash}", models.get_model, MODELS, "Describe a model",
        "Metadata, the recipe in force, progress and running metrics. A model that Redis lost is restored first.",
        {200: schemas.ModelAnswer}, errors=(400, 404, 503, 504), own_parameters=(HASH,),
    ),
    Route(
        "PATCH", "/v1/models/{hash}", models.patch_model, MODELS, "Change parameters of a model",
        "In order with its rows. 200 with the model once the change is made, 202 if that takes longer than "
        "`Prefer: wait=SECONDS` (5 seconds by default).",
        {200: schemas.ModelAnswer, 202: schemas.ChangeAnswer}, schemas.PatchModel, LEARN_ERRORS,
        (HASH, PREFER_PATCH, KEY), PREFERRED,
    ),
    Route(
        "DELETE", "/v1/models/{hash}", models.delete_model, MODELS, "Delete a model",
        "From Redis and from the registry; its snapshots stay.",
        {204: None}, errors=(400, 404, 503), own_parameters=(HASH,),
    ),
    Route(
        "POST", "/v1/models/{hash}/partial_fit", learning.partial_fit, LEARNING, "Learn rows", LEARN_TEXT,
        LEARNED, schemas.PartialFit, LEARN_ERRORS, (HASH, PREFER, KEY), PREFERRED, tables=True, scope=LEARN,
    ),
    Route(
        "POST", "/v1/models/{hash}/predict", prediction.predict, PREDICTING, "Predict rows", PREDICT_TEXT,
        PREDICTED, schemas.Predict, ASK_ERRORS, (HASH, PROBA, TIMEOUT, CACHE_CONTROL, IF_NONE_MATCH), CACHED,
        tables=True, scope=PREDICT,
    ),
    Route(
        "POST", "/v1/models/{hash}/score", prediction.score, PREDICTING, "Score a model on rows", SCORE_TEXT,
        SCORED, schemas.Score, ASK_ERRORS, (HASH, TIMEOUT), tables=True, scope=PREDICT,
    ),
    Route(
        "GET", "/v1/models/{hash}/dead", dead_letters.list_dead, DEAD_LETTERS, "List dead letters",
        "Oldest first. It shows rows, so it needs the scope `admin`.",
        {200: schemas.DeadAnswer}, errors=(400, 404, 503, 504), own_parameters=(HASH, DEAD_LIMIT, DEAD_AFTER),
        scope=ADMIN,
    ),
    Route(
        "POST", "/v1/models/{hash}/dead/retry", dead_letters.retry_dead, DEAD_LETTERS, "Retry dead letters",
        "Move them to the end of the inbox: those named by `ids`, or the oldest 128.",
        {202: schemas.RetriedAnswer}, schemas.RetryDead, LEARN_ERRORS, (HASH,),
    ),
    Route(
        "POST", "/v1/models/{hash}/dead/discard", dead_letters.discard_dead, DEAD_LETTERS, "Delete dead letters",
        "For good: those named by `ids`.",
        {200: schemas.DiscardedAnswer}, schemas.DiscardDead, (*BODY_ERRORS, 404, 503), (HASH,),
    ),
    Route(
        "POST", "/v1/models/{hash}/snapshot", snapshots.make_snapshot, SNAPSHOTS, "Save a snapshot now",
        "201 also if this version was saved already; 409 before the first row.",
        {201: schemas.SnapshotAnswer}, errors=(400, 404, 409, 429, 503, 504), own_parameters=(HASH,),
        headers={201: ("Location",)},
    ),
    Route(
        "GET", "/v1/models/{hash}/snapshots", snapshots.list_snapshots, SNAPSHOTS, "List snapshots",
        "Of one model, newest first.",
        {200: schemas.SnapshotList}, errors=(400, 404, 503), own_parameters=(HASH, SNAPSHOTS_LIMIT, SNAPSHOTS_AFTER),
    ),
    Route(
        "POST", "/v1/models/{hash}/restore", snapshots.restore_model, SNAPSHOTS, "Restore a snapshot",
        "The newest one not later than `at`, or the one of `version`, which also rewinds a live model. Without both: "
        "what Redis lost; 409 if the model is live and has learned since its snapshot.",
        {200: schemas.RestoredAnswer}, schemas.RestoreModel, (*BODY_ERRORS, 404, 409, 429, 503, 504), (HASH,),
        body_optional=True,
    ),
    Route(
        "POST", "/v1/partial_fit", learning.partial_fit, LEARNING, "Learn rows, by metadata", LEARN_TEXT,
        LEARNED, schemas.PartialFitByMetadata, LEARN_ERRORS, (PREFER, KEY), PREFERRED, scope=LEARN,
    ),
    Route(
        "POST", "/v1/predict", prediction.predict, PREDICTING, "Predict rows, by metadata", PREDICT_TEXT,
        PREDICTED, schemas.PredictByMetadata, ASK_ERRORS, (TIMEOUT, CACHE_CONTROL, IF_NONE_MATCH), CACHED,
        scope=PREDICT,
    ),
    Route(
        "POST", "/v1/score", prediction.score, PREDICTING, "Score a model on rows, by metadata", SCORE_TEXT,
        SCORED, schemas.ScoreByMetadata, ASK_ERRORS, (TIMEOUT,), scope=PREDICT,
    ),
    Route(
        "GET", "/v1/history", history.list_history, HISTORY_TAG, "Query the history",
        "Documents, newest first; or, with `every`, points aggregated from their numbers. `metadata` selects documents "
        "by values of their metadata; any other query parameter selects by metadata or field: `brand=nike`.",
        {200: schemas.HistoryAnswer}, errors=(400, 422, 503), own_parameters=HISTORY,
    ),
    Route(
        "GET", "/v2", inference_protocol.server_metadata, PROTOCOL, "Describe the server",
        "Its name, its version, and the extensions of the protocol that it has.",
        {200: schemas.ServerMetadata}, scope=OPEN,
    ),
    Route(
        "GET", "/v2/health/live", inference_protocol.server_live, PROTOCOL, "Liveness of the server",
        "200 if the process responds.",
        {200: schemas.ServerLive}, scope=OPEN,
    ),
    Route(
        "GET", "/v2/health/ready", inference_protocol.server_ready, PROTOCOL, "Readiness of the server",
        "200 if the service can learn and predict, 503 if not; `/readyz` names what is unavailable.",
        {200: schemas.ServerReady, 503: schemas.ServerReady}, scope=OPEN,
    ),
    Route(
        "GET", "/v2/models/{hash}", inference_protocol.model_metadata, PROTOCOL, "Describe the tensors of a model",
        MODEL_TEXT, {200: schemas.ModelMetadata}, errors=(404, 503, 504), own_parameters=(HASH,),
    ),
    Route(
        "GET", "/v2/models/{hash}/versions/{version}", inference_protocol.model_metadata, PROTOCOL,
        "Describe the tensors of a version", f"{MODEL_TEXT} {VERSION_TEXT}",
        {200: schemas.ModelMetadata}, errors=(404, 503, 504), own_parameters=(HASH, VERSION),
    ),
    Route(
        "GET", "/v2/models/{hash}/ready", inference_protocol.model_ready, PROTOCOL, "Readiness of a model",
        READY_TEXT, {200: schemas.ModelReady}, errors=(404, 409, 503, 504), own_parameters=(HASH,),
    ),
    Route(
        "GET", "/v2/models/{hash}/versions/{version}/ready", inference_protocol.model_ready, PROTOCOL,
        "Readiness of a version", f"{READY_TEXT} {VERSION_TEXT}",
        {200: schemas.ModelReady}, errors=(404, 409, 503, 504), own_parameters=(HASH, VERSION),
    ),
    Route(
        "POST", "/v2/models/{hash}/infer", inference_protocol.infer, PROTOCOL, "Predict tensors", INFER_TEXT,
        {200: schemas.InferenceAnswer}, schemas.InferenceRequest, ASK_ERRORS, (HASH, HEADER_LENGTH, CACHE_CONTROL),
        INFERRED, tensors=True, scope=PREDICT,
    ),
    Route(
        "POST", "/v2/models/{hash}/versions/{version}/infer", inference_protocol.infer, PROTOCOL,
        "Predict tensors with a version", f"{INFER_TEXT} {VERSION_TEXT}",
        {200: schemas.InferenceAnswer}, schemas.InferenceRequest, ASK_ERRORS,
        (HASH, VERSION, HEADER_LENGTH, CACHE_CONTROL), INFERRED, tensors=True, scope=PREDICT,
    ),
    Route(
        "GET", "/livez", operations.livez, OPERATION, "Liveness probe", "200 if the process responds.",
        {200: schemas.Live}, scope=OPEN,
    ),
    Route(
        "GET", "/readyz", operations.readyz, OPERATION, "Readiness probe",
        "Whether the service can learn and predict: 200 with `status` `ok` or `degraded`, 503 with `unavailable`.",
        {200: schemas.Ready, 503: schemas.Ready}, scope=OPEN,
    ),
    Route(
        "GET", "/v1/workers", operations.list_workers, OPERATION, "List workers",
        "The worker processes that are alive, on all machines. One that died is listed until its supervisor removes "
        "it, or its record expires.",
        {200: schemas.WorkerList}, errors=(503,),
    ),
    Route(
        "GET", "/metrics", operations.show_metrics, OPERATION, "Metrics",
        "Of this gateway and its dependencies, in the text format of Prometheus.",
        {200: str}, errors=(503,), media_type="text/plain",
    ),
    Route(
        "GET", "/openapi.json", operations.openapi, OPERATION, "This document", "OpenAPI 3.1, in JSON.",
        {200: OpenApiDocument}, errors=(503,), scope=OPEN,
    ),
    Route(
        "GET", "/docs", page_handlers.docs, OPERATION, "API page",
        "This document as a page, in HTML, from which a browser can send requests. It needs no other server.",
        {200: str, 304: None}, errors=(503,), own_parameters=(IF_NONE_MATCH,),
        headers=dict.fromkeys((200, 304), ("ETag", "Cache-Control")), scope=OPEN, media_type="text/html",
    ),
)  # fmt: skip

# The files that the page loads, by path.
PAGE_FILES: Mapping[str, Handler] = {f"/docs/{name}": page_handlers.file(name) for name in api_page.FILES}


def methods_of_paths() -> dict[str, set[str]]:
    """Return the methods of each path: those of the table, HEAD beside GET, OPTIONS; of `SERVER_PATH` all of them."""
    methods: dict[str, set[str]] = {SERVER_PATH: {"OPTIONS"}}
    for route in ROUTES:
        of_path = {"GET", "HEAD", "OPTIONS"} if route.method == "GET" else {route.method, "OPTIONS"}
        methods.setdefault(route.path, set()).update(of_path)
        methods[SERVER_PATH] |= of_path
    return methods | {path: {"GET", "HEAD", "OPTIONS"} for path in PAGE_FILES}


# Paths without an API key: probes have none, and the description of the API is public.
OPEN_PATHS = frozenset(route.path for route in ROUTES if route.needs == OPEN) | PAGE_FILES.keys()
