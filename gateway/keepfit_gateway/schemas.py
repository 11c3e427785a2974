"""Forms of requests and answers; the OpenAPI document is generated from them.

Owns shapes only: what a row may hold depends on the model's recipe, and :mod:`keepfit.rows.shaping` checks it.
Invariant: a request that converts to its form has the right shape (else 400); its content may still be invalid (422).
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from keepfit.errors import MalformedError

Metadata = Annotated[
    dict[str, Any],
    Meta(
        description="JSON object that names the model. It holds a non-empty string `type` and no `timestamp`.",
        examples=[{"type": "shoes", "brand": "nike"}],
    ),
]
X = Annotated[
    list[list[Any] | dict[str, Any]],
    # The minimum of one row is checked together with the content of the rows.
    Meta(
        description="Rows: lists of values in column order, or objects with column names as keys.",
        extra_json_schema={"minItems": 1},
        examples=[[[1.0, 2.0], [3.0, 4.0]]],
    ),
]
Y = Annotated[
    list[Any] | None,
    Meta(
        description="One number or label per row, or a list of them; omit it for estimators without target.",
        examples=[[0.5, 1.5]],
    ),
]


class Form(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request body."""


class CreateModel(Form, kw_only=True):
    """The model to create."""

    metadata: Metadata
    recipe: Annotated[
        dict[str, Any],
        Meta(
            description="How to build the model: estimator, params, features, …",
            examples=[{"estimator": "SGDRegressor", "params": {"alpha": 0.001}}],
        ),
    ]


class PatchModel(Form, kw_only=True):
    """The parameters to change."""

    params: Annotated[
        dict[str, Any],
        Meta(
            description="Parameters of the estimator with their new values; all others keep theirs.",
            extra_json_schema={"minProperties": 1},
            examples=[{"alpha": 0.01}],
        ),
    ]


class PartialFit(Form, kw_only=True):
    """Rows to learn."""

    X: X
    y: Y = None
    sample_weight: Annotated[
        list[Any] | None, Meta(description="One non-negative number per row.", examples=[[1.0, 0.5]])
    ] = None


class Predict(Form, kw_only=True):
    """Rows to predict."""

    X: X
    proba: Annotated[bool, Meta(description="Also return probabilities, or anomaly scores.")] = False


class Score(Form, kw_only=True):
    """Rows to score on, with their target."""

    X: X
    y: Y = None


class PartialFitByMetadata(PartialFit, kw_only=True):
    """Rows to learn, for the model that `metadata` names."""

    metadata: Metadata


class PredictByMetadata(Predict, kw_only=True):
    """Rows to predict, for the model that `metadata` names."""

    metadata: Metadata


class ScoreByMetadata(Score, kw_only=True):
    """Rows to score on, for the model that `metadata` names."""

    metadata: Metadata


class ModelAnswer(msgspec.Struct, kw_only=True):
    """A model and its progress; `inbox` is the number of pending requests.

    `recipe` is the one in force: with all changes of parameters since the model was created.
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
    """Models in order of their hash; send `next` as `after` to get the next page, null on the last page."""

    models: list[ModelAnswer]
    next: str | None


class AcceptedAnswer(msgspec.Struct, kw_only=True):
    """The rows are accepted and will be learned; `version` is the current version of the model.

    `sequence` counts the model's requests within a `generation`; a restore from a snapshot begins a new generation.
    """

    hash: str
    accepted: int
    sequence: int
    generation: int
    version: int


class ChangeAnswer(msgspec.Struct, kw_only=True):
    """The change is accepted; it applies after all rows with a lower `sequence` and before all with a higher one."""

    hash: str
    sequence: int
    generation: int
    version: int


class LearnedAnswer(msgspec.Struct, kw_only=True):
    """The rows are learned; `version` is the first that contains them."""

    hash: str
    accepted: int
    sequence: int
    version: int
    rows_seen: int


DeadId = Annotated[str, Meta(pattern="^[0-9]{1,15}-[0-9]{1,16}$", description="Id of a dead letter, from GET …/dead.")]


class RetryDead(Form, kw_only=True):
    """The dead letters to retry; without `ids` the oldest ones."""

    ids: Annotated[list[DeadId], Meta(max_length=128)] | None = None


class DiscardDead(Form, kw_only=True):
    """The dead letters to delete."""

    ids: Annotated[list[DeadId], Meta(min_length=1, max_length=128)]


class DeadEntry(msgspec.Struct, kw_only=True):
    """A dead letter: a request that was accepted and, at `timestamp` (seconds), put aside for `reason`.

    `rows` is the number of its rows, null if they are lost. `X`, `y` and `sample_weight` hold them, unless they are
    large. A change of parameters has no rows; `params` holds it.
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
    """Dead letters, oldest first; send `next` as `after` to get the next page, null on the last page."""

    hash: str
    version: int
    dead: list[DeadEntry]
    next: str | None


class RefusedRetry(msgspec.Struct, kw_only=True):
    """A dead letter that was not retried, and the reason."""

    id: str
    reason: str


class RetriedAnswer(msgspec.Struct, kw_only=True):
    """`accepted` dead letters are pending again, the last with `sequence`; `left` dead letters remain."""

    hash: str
    version: int
    generation: int
    accepted: int
    sequence: int | None
    refused: list[RefusedRetry]
    left: int


class DiscardedAnswer(msgspec.Struct, kw_only=True):
    """`discarded` dead letters were deleted."""

    hash: str
    version: int
    discarded: int


class RestoreModel(Form, kw_only=True):
    """The snapshot to restore: the newest not later than `at`, of this `version`; without both, what Redis lost."""

    at: Annotated[float | str | None, Meta(description="Seconds since 1970, or an ISO 8601 time.")] = None
    version: Annotated[int, Meta(ge=1, le=2**53 - 1, examples=[1])] | None = None


class SnapshotAnswer(msgspec.Struct, kw_only=True):
    """The history document of a snapshot; `sequence` is the last request that the snapshot contains."""

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
    """Snapshots, newest first; send `next` as `after` to get the next page, null on the last page."""

    hash: str
    version: int
    snapshots: list[SnapshotAnswer]
    next: str | None


class RestoredAnswer(msgspec.Struct, kw_only=True):
    """The model after the restore; `sequence` is the last request that the restored bundle contains.

    `restored` is false if the live bundle already was that one. `rows_forgotten` counts rows that the live model had
    learned in addition, `replayed` rows that were learned again from the row log, `damaged` snapshots that were skipped
    because they are damaged. `snapshot` is null if the model has no snapshot and began from scratch.
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
    """The aggregate of the documents in one time span from `timestamp` (seconds); `group` is the value grouped by."""

    timestamp: float
    value: float | None
    group: str | float | bool | msgspec.UnsetType | None = msgspec.UNSET


class HistoryAnswer(msgspec.Struct, kw_only=True):
    """Documents, newest first; or, if the query has `every`, points in order of group and time."""

    documents: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET
    points: list[HistoryPoint] | msgspec.UnsetType = msgspec.UNSET


class PredictAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One prediction per row, by the bundle of `version`, in the form of the estimator.

    `classes` names the columns of `probabilities`; with several outputs both have one list per output. `scores` are the
    anomaly scores of an outlier detector: negative for outliers; lower means more abnormal.
    """

    hash: str
    version: int
    rows_seen: int
    predictions: list[Any]
    probabilities: list[list[Any]] | None = None
    classes: list[Any] | None = None
    scores: list[float] | None = None


class ScoreAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The scores of the bundle of `version`; a metric that is undefined for these rows is null."""

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
    """A problem document (RFC 9457); `errors` lists the invalid values."""

    type: str
    title: str
    status: int
    detail: str
    errors: list["ProblemError"] | None = None


class ProblemError(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One invalid value: its row (from 0) and column."""

    detail: str
    row: int | None = None
    column: str | int | None = None


class Live(msgspec.Struct, kw_only=True):
    """The process responds."""

    status: str


class Ready(msgspec.Struct, kw_only=True):
    """The state of the service and of each dependency.

    `status` is `ok`; `degraded` if it learns and predicts but another dependency fails; or `unavailable`, with a 503.
    Each dependency is `ok` or the reason of its failure; `row_log` is present if one is configured.
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
    """Convert parsed JSON to `form`.

    Raises
    ------
    MalformedError
        With the path and the type of the value that does not fit.
    """
    try:
        return msgspec.convert(document, form)
    except msgspec.ValidationError as error:
        raise MalformedError(f"The body does not have the required form: {error}.") from None
