"""The forms of requests and answers, from which the OpenAPI document is made too.

Owns shapes only: what a row may hold depends on the model's recipe and is checked by :mod:`keepfit.rows.shaping`.
Invariant: a request that converts into one of these has the form asked for (else 400); its content may still be wrong
(422).
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from keepfit.errors import MalformedError

Metadata = Annotated[
    dict[str, Any],
    Meta(
        description="JSON object that names the model; holds a non-empty string `type`, and no `timestamp`.",
        examples=[{"type": "shoes", "brand": "nike"}],
    ),
]
X = Annotated[
    list[list[Any] | dict[str, Any]],
    # That there is one is checked with the content of the rows.
    Meta(
        description="Rows: lists of values in column order, or objects by column name.",
        extra_json_schema={"minItems": 1},
        examples=[[[1.0, 2.0], [3.0, 4.0]]],
    ),
]
Y = Annotated[
    list[Any] | None,
    Meta(
        description="One number or label per row, or a list of them; left out for estimators without target.",
        examples=[[0.5, 1.5]],
    ),
]


class Form(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request body."""


class CreateModel(Form, kw_only=True):
    """A model to make."""

    metadata: Metadata
    recipe: Annotated[
        dict[str, Any],
        Meta(
            description="How to build the bundle: estimator, params, features, …",
            examples=[{"estimator": "SGDRegressor", "params": {"alpha": 0.001}}],
        ),
    ]


class PatchModel(Form, kw_only=True):
    """Parameters to change."""

    params: Annotated[
        dict[str, Any],
        Meta(
            description="Parameters of the estimator with their new values; the others stay as they are.",
            extra_json_schema={"minProperties": 1},
            examples=[{"alpha": 0.01}],
        ),
    ]


class PartialFit(Form, kw_only=True):
    """Rows to learn."""

    X: X
    y: Y = None
    sample_weight: Annotated[
        list[Any] | None, Meta(description="One number of 0 or more per row.", examples=[[1.0, 0.5]])
    ] = None


class Predict(Form, kw_only=True):
    """Rows to predict."""

    X: X
    proba: Annotated[bool, Meta(description="Ask for probabilities too, or anomaly scores.")] = False


class Score(Form, kw_only=True):
    """Rows to score against their target."""

    X: X
    y: Y = None


class PartialFitByMetadata(PartialFit, kw_only=True):
    """Rows to learn, for the model that `metadata` names."""

    metadata: Metadata


class PredictByMetadata(Predict, kw_only=True):
    """Rows to predict, for the model that `metadata` names."""

    metadata: Metadata


class ScoreByMetadata(Score, kw_only=True):
    """Rows to score, for the model that `metadata` names."""

    metadata: Metadata


class ModelAnswer(msgspec.Struct, kw_only=True):
    """A model and how far it has learned; `inbox` counts requests waiting to be learned.

    The `recipe` is the one in force: with the parameters that were changed since the model was made.
    """

    hash: str
    metadata: dict[str, Any]
    recipe: dict[str, Any]
    version: int
    rows_seen: int
    metrics: dict[str, Any]
    inbox: int
    snapshot: dict[str, Any] | None


class ModelList(msgspec.Struct, kw_only=True):
    """Models in order of their hash; `next` goes into `after` of the next call, null at the end."""

    models: list[ModelAnswer]
    next: str | None


class AcceptedAnswer(msgspec.Struct, kw_only=True):
    """The rows are in Redis and will be learned; `version` is the model's at that moment.

    `sequence` counts the model's requests within a `generation`, which a restore from a snapshot begins anew.
    """

    hash: str
    accepted: int
    sequence: int
    generation: int
    version: int


class ChangeAnswer(msgspec.Struct, kw_only=True):
    """The change is in Redis and will be made after all rows with a lower `sequence`, and before all with a higher."""

    hash: str
    sequence: int
    generation: int
    version: int


class LearnedAnswer(msgspec.Struct, kw_only=True):
    """The rows are learned, and `version` is the first that holds them."""

    hash: str
    accepted: int
    sequence: int
    version: int
    rows_seen: int


DeadId = Annotated[str, Meta(pattern="^[0-9]{1,15}-[0-9]{1,16}$", description="As GET …/dead lists it.")]


class RetryDead(Form, kw_only=True):
    """Requests to retry, of those put aside; the oldest ones where no `ids` are named."""

    ids: Annotated[list[DeadId], Meta(max_length=128)] | None = None


class DiscardDead(Form, kw_only=True):
    """Requests to forget, of those put aside."""

    ids: Annotated[list[DeadId], Meta(min_length=1, max_length=128)]


class DeadEntry(msgspec.Struct, kw_only=True):
    """A request that was accepted and put aside at `timestamp` (seconds), for `reason`.

    `rows` counts its rows (null where they are lost); they stand in `X`, `y` and `sample_weight`, but for large ones.
    A change of parameters has none, and stands in `params`.
    """

    id: str
    generation: int
    sequence: int
    timestamp: float
    reason: str
    rows: int | None
    size_bytes: int
    X: list[list[Any]] | msgspec.UnsetType = msgspec.UNSET
    y: list[Any] | msgspec.UnsetType = msgspec.UNSET
    sample_weight: list[float] | msgspec.UnsetType = msgspec.UNSET
    params: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class DeadAnswer(msgspec.Struct, kw_only=True):
    """Requests put aside, oldest first; `next` goes into `after` of the next call, null at the end."""

    hash: str
    version: int
    dead: list[DeadEntry]
    next: str | None


class RefusedRetry(msgspec.Struct, kw_only=True):
    """A request that was not retried, and why."""

    id: str
    reason: str


class RetriedAnswer(msgspec.Struct, kw_only=True):
    """So many requests wait in the inbox again, `sequence` the last of them; `left` are still put aside."""

    hash: str
    version: int
    generation: int
    accepted: int
    sequence: int | None
    refused: list[RefusedRetry]
    left: int


class DiscardedAnswer(msgspec.Struct, kw_only=True):
    """So many requests were forgotten."""

    hash: str
    version: int
    discarded: int


class RestoreModel(Form, kw_only=True):
    """The snapshot to put back: the newest not later than `at`, of this `version`; of all, what Redis lost."""

    at: Annotated[float | str | None, Meta(description="Seconds since 1970, or a time in ISO 8601.")] = None
    version: Annotated[int, Meta(ge=1, le=2**53 - 1, examples=[1])] | None = None


class SnapshotAnswer(msgspec.Struct, kw_only=True):
    """A snapshot's history document; `sequence` is the last request that the model had learned by then."""

    type: str
    timestamp: float
    hash: str
    metadata: dict[str, Any]
    generation: int
    version: int
    sequence: int
    rows_seen: int
    metrics: dict[str, Any]
    uri: str
    sha256: str
    size_bytes: int
    runtime: dict[str, str]


class SnapshotList(msgspec.Struct, kw_only=True):
    """Snapshots, newest first; `next` goes into `after` of the next call, null at the end."""

    hash: str
    version: int
    snapshots: list[SnapshotAnswer]
    next: str | None


class RestoredAnswer(msgspec.Struct, kw_only=True):
    """The model as it is now; `sequence` is the last request that was learned in what was put back.

    `restored` is false where it was just that already; `rows_forgotten` counts what a live model had learned more, and
    `replayed` the rows that were learned again from the row log, `damaged` the snapshots that were passed over.
    `snapshot` is null where a model without any began anew.
    """

    hash: str
    version: int
    rows_seen: int
    generation: int
    sequence: int
    restored: bool
    rows_forgotten: int
    replayed: int
    damaged: int
    snapshot: SnapshotAnswer | None


class HistoryPoint(msgspec.Struct, kw_only=True):
    """What documents had from `timestamp` (seconds) on for a span; `group` is the value of the key grouped by."""

    timestamp: float
    value: float | None
    group: str | float | bool | msgspec.UnsetType | None = msgspec.UNSET


class HistoryAnswer(msgspec.Struct, kw_only=True):
    """Documents, newest first; or, where `every` was given, points, by group and time."""

    documents: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET
    points: list[HistoryPoint] | msgspec.UnsetType = msgspec.UNSET


class PredictAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One prediction per row, by the bundle of `version`, in the form that suits the estimator.

    `classes` are the columns of `probabilities`; with several outputs both have a list for each. `scores` are the
    anomaly scores of an outlier detector: negative for outliers, the lower the more so.
    """

    hash: str
    version: int
    rows_seen: int
    predictions: list[Any]
    probabilities: list[list[Any]] | None = None
    classes: list[Any] | None = None
    scores: list[float] | None = None


class ScoreAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Score of the bundle of `version`; a metric that is not defined for these rows is null."""

    hash: str
    version: int
    rows_seen: int
    max_error: float | msgspec.UnsetType | None = msgspec.UNSET
    mean_absolute_error: float | msgspec.UnsetType | None = msgspec.UNSET
    r2: float | msgspec.UnsetType | None = msgspec.UNSET
    accuracy: float | msgspec.UnsetType | None = msgspec.UNSET
    f1: float | msgspec.UnsetType | None = msgspec.UNSET
    log_loss: float | msgspec.UnsetType | None = msgspec.UNSET


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What went wrong (RFC 9457); `errors` says where."""

    type: str
    title: str
    status: int
    detail: str
    errors: list["ProblemError"] | None = None


class ProblemError(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One wrong value: row (from 0) and column."""

    detail: str
    row: int | None = None
    column: str | int | None = None


class Live(msgspec.Struct, kw_only=True):
    """The process answers."""

    status: str


class Ready(msgspec.Struct, kw_only=True):
    """Whether the service can do its work, part by part.

    `status` is `ok`; `degraded`, where it learns and predicts and something else is amiss; `unavailable`, with a 503.
    Each part is `ok`, or why it is not; `row_log` is named where there is one.
    """

    status: str
    redis: str
    queue: str
    mongo: str
    snapshots: str
    workers: int
    row_log: str | msgspec.UnsetType = msgspec.UNSET


FormT = TypeVar("FormT", bound=Form)


def convert(document: Any, form: type[FormT]) -> FormT:
    """Read a parsed body as `form`.

    Raises
    ------
    MalformedError
        With the place and the kind of what does not fit.
    """
    try:
        return msgspec.convert(document, form)
    except msgspec.ValidationError as error:
        raise MalformedError(f"The body does not have the form asked for: {error}.") from None
