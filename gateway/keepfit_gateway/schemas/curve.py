"""Forms of the answer with a learning curve and the last scored rows."""

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from keepfit_gateway.schemas.values import Hash, RowsSeen, Version

Value = Annotated[float | UnsetType | None, Meta(description="Null where it is undefined.")]


class CurveMetrics(Struct, kw_only=True):
    """Metrics of rows that were predicted before they were learned; those of the kind of the estimator.

    Numbers of single precision. `baseline_…` is the metric of the mean target, or of the most frequent label, so far.
    """

    mean_absolute_error: Value = UNSET
    baseline_mean_absolute_error: Value = UNSET
    root_mean_squared_error: Value = UNSET
    r2: Value = UNSET
    accuracy: Value = UNSET
    baseline_accuracy: Value = UNSET
    f1: Value = UNSET
    log_loss: Value = UNSET


class CurvePoint(CurveMetrics, kw_only=True):
    """The metrics over all rows so far, and under `window` those over the last rows."""

    rows_seen: Annotated[int, Meta(description="Rows that the model had learned.")]
    time: Annotated[
        float | None,
        Meta(description="When the last of these rows was accepted, in seconds since 1970; null if it is not known."),
    ]
    window: CurveMetrics


class ScoredRows(Struct, kw_only=True):
    """The last scored rows of an output, oldest first: at most 200. Numbers of single precision."""

    output: Annotated[int, Meta(description="Its position: 0 for the only one.")]
    target: Annotated[str | None, Meta(description="Its name, where targets have names.")]
    truth: Annotated[list[float | None], Meta(description="The targets.")]
    prediction: Annotated[
        list[float | None],
        Meta(description="The predictions that were scored: each was made before its row was learned."),
    ]


class CurveAnswer(Struct, kw_only=True):
    """The learning curve of a model: at most 1,000 points, in the order of the rows."""

    hash: Hash
    version: Version
    rows_seen: RowsSeen
    rows_before: Annotated[
        int,
        Meta(description="Rows that the model had learned when its curve began: before an upgrade, or an upload."),
    ]
    spacing: Annotated[int, Meta(description="Rows between two points. It doubles when 1,000 points are full.")]
    points: list[CurvePoint]
    scored: Annotated[
        list[ScoredRows],
        Meta(description="The last scored rows of a regressor, of its first 8 outputs; empty for other models."),
    ]
