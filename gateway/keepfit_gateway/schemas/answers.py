"""Forms of answers.

A field without a default is always present; one that may be :data:`UNSET` is left out where it does not apply. Answers
may get more fields in later versions, so their schemas are open. `metadata`, `recipe` and `metrics` are passed on as
they are stored; their types here are for the OpenAPI document.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from keepfit_gateway.schemas.values import (
    DeadId,
    Generation,
    Hash,
    LabelList,
    Metadata,
    Next,
    Params,
    PredictionList,
    Probabilities,
    Recipe,
    Row,
    RowsSeen,
    Sequence,
    TargetList,
    Timestamp,
    Version,
)

Score = Annotated[float | UnsetType | None, Meta(description="Null where it is undefined.")]
Uri = Annotated[str, Meta(description="Where the bundle is stored.")]
Sha256 = Annotated[str, Meta(description="SHA-256 of the stored bundle, in hexadecimal digits.")]
SizeBytes = Annotated[int, Meta(description="Size of the stored bundle.")]


class Confusion(Struct, kw_only=True):
    """The confusion matrix: `counts` has one row for each true label and one column for each predicted label."""

    classes: LabelList
    counts: list[list[int]]


class WindowMetrics(Struct, kw_only=True):
    """Metrics of rows that were predicted before they were learned; those of the kind of the estimator.

    `baseline_…` is the metric of the mean target, or of the most frequent label, so far.
    """

    rows: Annotated[int, Meta(description="Number of rows with predictions.")] | UnsetType = UNSET
    mean_absolute_error: float | UnsetType = UNSET
    baseline_mean_absolute_error: Score = UNSET
    root_mean_squared_error: float | UnsetType = UNSET
    r2: Score = UNSET
    accuracy: float | UnsetType = UNSET
    baseline_accuracy: Score = UNSET
    f1: Annotated[float, Meta(description="Macro average over the labels.")] | UnsetType = UNSET
    log_loss: float | UnsetType = UNSET
    confusion: Confusion | UnsetType = UNSET


class Metrics(WindowMetrics, kw_only=True):
    """Running metrics of a model, and under `window` those of its last rows; empty before the first row.

    With several outputs they are means, and `outputs` has the metrics of each, and its name as `target` if it has one.
    """

    window: WindowMetrics | UnsetType = UNSET
    target: str | UnsetType = UNSET
    outputs: "list[Metrics] | UnsetType" = UNSET


class SnapshotSummary(Struct, kw_only=True):
    """The newest snapshot of a model."""

    timestamp: Timestamp
    version: Version
    rows_seen: RowsSeen
    uri: Uri
    sha256: Sha256
    size_bytes: SizeBytes


class ObjectSummary(Struct, kw_only=True):
    """An uploaded object: the name of its class, its size, and the digest of its text in the recipe.

    Of an object that had learned before it was uploaded, size and digest are those of its file, in `format`. After its
    code was replaced, they are those of the new object.
    """

    name: str
    size_bytes: int
    sha256: Sha256
    format: Literal["skops", "pickle"] | UnsetType = UNSET


class ModelAnswer(Struct, kw_only=True):
    """A model and its progress; `inbox` is the number of pending requests.

    `recipe` is the one in force: with all changes since the model was created. Of an uploaded object, its `object` is
    `sha256:` and a digest, except for the scope `admin` in the answer about a single model whose code was not replaced.
    """

    hash: Hash
    metadata: Metadata
    recipe: Recipe
    object: ObjectSummary | UnsetType = UNSET
    warnings: Annotated[
        list[str],
        Meta(
            description="What makes the model learn badly, and what to write in the recipe instead; or that no worker "
            "can load it."
        ),
    ]
    version: Version
    rows_seen: RowsSeen
    metrics: Metrics
    inbox: Annotated[int, Meta(description="Number of requests that wait to be learned.")]
    open_rows: (
        Annotated[int, Meta(description="Number of rows that wait for their labels; left out if there are none.")]
        | UnsetType
    ) = UNSET
    snapshot: SnapshotSummary | None


class AcceptedAnswer(Struct, kw_only=True):
    """The rows are accepted and will be learned; `version` is the current version of the model.

    `sequence` counts the model's requests within a `generation`; a restore from a snapshot begins a new generation.
    """

    hash: Hash
    accepted: Annotated[int, Meta(description="Number of accepted rows.")]
    sequence: Sequence
    generation: Generation
    version: Version


class ChangeAnswer(Struct, kw_only=True):
    """The change is accepted; it applies after all rows with a lower `sequence` and before all with a higher one."""

    hash: Hash
    sequence: Sequence
    generation: Generation
    version: Version


class LearnedAnswer(Struct, kw_only=True):
    """The rows are learned; `version` is the first that contains them."""

    hash: Hash
    accepted: Annotated[int, Meta(description="Number of accepted rows.")]
    sequence: Sequence
    version: Version
    rows_seen: RowsSeen


class DeadEntry(Struct, kw_only=True):
    """A dead letter: a request that was accepted and, at `timestamp` (seconds), put aside for `reason`.

    `rows` is the number of its rows, null if they are lost. `X`, `y` and `sample_weight` hold them, unless they are
    large. A change has no rows; `params` holds it, with the digest in place of an object.
    """

    id: DeadId
    generation: Generation
    sequence: Sequence
    timestamp: Timestamp
    reason: str
    rows: int | None
    size_bytes: int
    X: list[Row] | UnsetType = UNSET
    y: TargetList | UnsetType = UNSET
    sample_weight: list[float] | UnsetType = UNSET
    params: Params | UnsetType = UNSET


class DeadAnswer(Struct, kw_only=True):
    """Dead letters, oldest first; send `next` as `after` to get the next page, null on the last page."""

    hash: Hash
    version: Version
    dead: list[DeadEntry]
    next: Next


class RefusedRetry(Struct, kw_only=True):
    """A dead letter that was not retried, and the reason."""

    id: DeadId
    reason: str


class RetriedAnswer(Struct, kw_only=True):
    """`accepted` dead letters are pending again, the last with `sequence`; `left` dead letters remain."""

    hash: Hash
    version: Version
    generation: Generation
    accepted: int
    sequence: Sequence | None
    refused: list[RefusedRetry]
    left: int


class DiscardedAnswer(Struct, kw_only=True):
    """`discarded` dead letters were deleted."""

    hash: Hash
    version: Version
    discarded: int


class SnapshotAnswer(Struct, kw_only=True):
    """The history document of a snapshot; `sequence` is the last request that the snapshot contains."""

    type: str
    timestamp: Timestamp
    hash: Hash
    metadata: Metadata
    generation: Generation
    version: Version
    sequence: Sequence
    rows_seen: RowsSeen
    metrics: Metrics
    uri: Uri
    sha256: Sha256
    size_bytes: SizeBytes
    runtime: Annotated[dict[str, str], Meta(title="Runtime", description="Versions of Python, scikit-learn and numpy.")]
    open_rows: (
        Annotated[
            int, Meta(description="Number of rows that waited for their labels; a snapshot does not contain them.")
        ]
        | UnsetType
    ) = UNSET


class SnapshotList(Struct, kw_only=True):
    """Snapshots, newest first; send `next` as `after` to get the next page, null on the last page."""

    hash: Hash
    version: Version
    snapshots: list[SnapshotAnswer]
    next: Next


class RestoredAnswer(Struct, kw_only=True):
    """The model after the restore; `sequence` is the last request that the restored bundle contains.

    `restored` is false if the live bundle already was that one. `rows_forgotten` counts rows that the live model had
    learned in addition, `replayed` rows that were learned again from the row log, `damaged` snapshots that were skipped
    because they are damaged. `snapshot` is null if the model has no snapshot and began from scratch.
    """

    hash: Hash
    version: Version
    rows_seen: RowsSeen
    generation: Generation
    sequence: Sequence
    restored: bool
    rows_forgotten: int
    replayed: int
    damaged: int
    snapshot: SnapshotAnswer | None


HistoryDocument = Annotated[dict[str, Any], Meta(title="HistoryDocument")]


PointGroup = Annotated[
    dict[str, str | float | bool | None],
    Meta(title="PointGroup", description="Values of several keys by which points are grouped."),
]


class HistoryPoint(Struct, kw_only=True):
    """The aggregate of the documents in one time span from `timestamp` (seconds); `group` has what it is grouped by."""

    timestamp: Timestamp
    value: float | None
    group: str | float | bool | PointGroup | UnsetType | None = UNSET


class HistoryAnswer(Struct, kw_only=True):
    """Documents, newest first; or, if the query has `every`, points in order of group and time."""

    documents: list[HistoryDocument] | UnsetType = UNSET
    points: list[HistoryPoint] | UnsetType = UNSET


class PredictAnswer(Struct, kw_only=True):
    """One prediction per row, by the bundle of `version`, in the form of the estimator; null where it has none.

    `classes` names the columns of `probabilities`; with several outputs both have one list per output. `scores` are the
    anomaly scores of an outlier detector: negative for outliers; lower means more abnormal.
    """

    hash: Hash
    version: Version
    rows_seen: RowsSeen
    predictions: PredictionList
    probabilities: list[Probabilities] | UnsetType = UNSET
    classes: TargetList | UnsetType = UNSET
    scores: list[float | None] | UnsetType = UNSET


class ScoreAnswer(Struct, kw_only=True):
    """The scores of the bundle of `version`, of the rows that have a prediction; null where undefined for them."""

    hash: Hash
    version: Version
    rows_seen: RowsSeen
    max_error: Score = UNSET
    mean_absolute_error: Score = UNSET
    r2: Score = UNSET
    accuracy: Score = UNSET
    f1: Score = UNSET
    log_loss: Score = UNSET
    rows_without_prediction: int | UnsetType = UNSET


class Problem(Struct, kw_only=True):
    """A problem document (RFC 9457); `errors` lists the invalid values."""

    type: Annotated[str, Meta(description="`urn:keepfit:problem:` and the name of the kind.")]
    title: Annotated[str, Meta(description="Phrase of the status code.")]
    status: Annotated[int, Meta(description="Status code.")]
    detail: Annotated[str, Meta(description="What is wrong, where, and what would be right.")]
    errors: "list[ProblemError] | UnsetType" = UNSET


class ProblemError(Struct, kw_only=True):
    """One invalid value: its row (from 0) and column."""

    detail: str
    row: int | UnsetType = UNSET
    column: str | int | UnsetType = UNSET


class Live(Struct, kw_only=True):
    """The process responds."""

    status: Literal["ok"]


class Ready(Struct, kw_only=True):
    """The state of the service and of each dependency.

    `status` is `ok`; `degraded` if it learns and predicts but another dependency fails; or `unavailable`, with a 503.
    Each dependency is `ok` or `fails`; an API key with the scope `admin` gets the reason of the failure instead.
    `row_log` is present if one is configured. `detail` is present if workers are alive and none can take work, if none
    loads some models, or if one of several servers of the queue does not answer; it says why.
    """

    status: Annotated[Literal["ok", "degraded", "unavailable"], Meta(title="ReadyStatus")]
    redis: str
    queue: str
    mongo: str
    snapshots: str
    workers: int
    row_log: str | UnsetType = UNSET
    detail: str | UnsetType = UNSET


class WorkerAnswer(Struct, kw_only=True):
    """A worker process. All but its first three fields are as of its last heartbeat, which is seconds old.

    `state` is `idle` without work, `busy` while it has a lease, and `long_call` while it cannot take other work for
    longer than a prediction may take.
    """

    name: str
    host: str
    pid: int
    state: Annotated[Literal["idle", "busy", "long_call"], Meta(title="WorkerState")]
    models_held: Annotated[int, Meta(description="Bundles in its memory, after its last batch.")]
    rows_per_s: Annotated[float, Meta(description="Rows that it has learned each second, over the last ten seconds.")]
    call_s: Annotated[int, Meta(description="Seconds for which its current call has kept it from taking other work.")]


class WorkerList(Struct, kw_only=True):
    """The workers that are alive, ordered by name."""

    workers: list[WorkerAnswer]
