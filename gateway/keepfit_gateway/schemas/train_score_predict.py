"""Forms of train_score_predict: rows to learn in two parts and rows to predict, and the answer.

Owns shapes only. A worker makes the fields of the answer from `train_rows` on
(:mod:`keepfit.model.train_score_predict`).
"""

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from keepfit_gateway.schemas.answers import Score
from keepfit_gateway.schemas.requests import PartialFit
from keepfit_gateway.schemas.values import (
    Hash,
    PredictionList,
    Probabilities,
    RowsSeen,
    Sequence,
    TargetList,
    Version,
    X,
)

TEST_SIZE = 0.25


class TrainScorePredict(PartialFit, kw_only=True):
    """Rows to learn, of which the last ones are scored first, and rows to predict after that."""

    X_pred: X
    test_size: Annotated[
        int | float,
        Meta(description="Rows that are scored: a share of them, above 0 and below 1, or their number."),
    ] = TEST_SIZE
    proba: Annotated[bool, Meta(description="Also return probabilities, or anomaly scores.")] = False


class Scores(Struct, kw_only=True):
    """The scores of the rows that have a prediction; null where undefined for them."""

    max_error: Score = UNSET
    mean_absolute_error: Score = UNSET
    r2: Score = UNSET
    accuracy: Score = UNSET
    f1: Score = UNSET
    log_loss: Score = UNSET
    rows_without_prediction: int | UnsetType = UNSET


class TrainScorePredictAnswer(Struct, kw_only=True):
    """The rows are learned; `version` has learned them and nothing after them, and `predictions` are its own.

    `score` is that of the last `test_rows` of the rows, by a model that had learned the `train_rows` before them.
    `score` and `predictions` are null if there are none; then `warnings` says why.
    """

    hash: Hash
    accepted: Annotated[int, Meta(description="Number of accepted rows.")]
    sequence: Sequence
    version: Version
    rows_seen: RowsSeen
    train_rows: Annotated[int, Meta(description="Number of rows that were learned before the score.")]
    test_rows: Annotated[int, Meta(description="Number of rows that were scored and then learned.")]
    score: Scores | None
    predictions: PredictionList | None
    probabilities: list[Probabilities] | UnsetType = UNSET
    classes: TargetList | UnsetType = UNSET
    scores: list[float | None] | UnsetType = UNSET
    warnings: Annotated[list[str], Meta(description="Why there is no score, or no predictions.")]
