"""Rows to learn, and rows to predict or to score: their routes.

Owns no behaviour. A part of the table of :mod:`keepfit_gateway.routes`.
"""

from collections.abc import Mapping
from typing import Any

from keepfit.security.api_keys import LEARN, PREDICT
from keepfit_gateway import schemas
from keepfit_gateway.handlers import labels, learning, past, prediction, train_score_predict
from keepfit_gateway.parameters import (
    CACHE_CONTROL,
    FILE_TARGET,
    FILE_WEIGHT,
    HASH,
    IF_NONE_MATCH,
    KEY,
    PAST,
    PREFER,
    PREFER_ANSWER,
    PROBA,
    TIMEOUT,
)
from keepfit_gateway.routes.route import ASK_ERRORS, LEARN_ERRORS, LEARNING, PREDICTING, Route

LEARNED: Mapping[int, type[Any] | None] = {200: schemas.LearnedAnswer, 202: schemas.AcceptedAnswer}
LABELLED: Mapping[int, type[Any] | None] = {200: schemas.LabelsLearnedAnswer, 202: schemas.LabelsAnswer}
PREDICTED: Mapping[int, type[Any] | None] = {200: schemas.PredictAnswer, 304: None}
SCORED: Mapping[int, type[Any] | None] = {200: schemas.ScoreAnswer}
PREFERRED = {200: ("Preference-Applied",)}
CACHED = dict.fromkeys((200, 304), ("ETag", "Cache-Control", "Age", "Cache-Status"))

LEARN_TEXT = (
    "202 as soon as the rows are durable. With `Prefer: wait=SECONDS` 200 once they are learned, or the 202 when the "
    "time is up. Send an `Idempotency-Key`, and the same request may be repeated safely for a day."
)
TRAIN_SCORE_PREDICT_TEXT = (
    "In one step: learn the first rows, score the last ones (`test_size`), learn those too, predict `X_pred`. The "
    "predictions are those of the version that has learned these rows and nothing after them. 202 if that takes longer "
    "than `Prefer: wait=SECONDS` (10 seconds by default); the rows are accepted, and the same call with the same "
    "`Idempotency-Key` gets the answer."
)
PREDICT_TEXT = (
    "One prediction for each row, by the newest version of the model. With `proba` also probabilities of the classes, "
    "or scores of an outlier detector. `If-None-Match` with the `ETag` of an earlier answer: 304 while it is valid. "
    "`Cache-Control: stale-if-error=SECONDS`: an answer that is outdated for so long at most, instead of a 503 or 504. "
    "With `id` the rows are kept until their labels come; the same request again gets the same answer. `version` and "
    "`at` name a snapshot to predict with instead, which changes nothing of the live model."
)
LABELS_TEXT = (
    "Join rows that were predicted with an `id` with their labels, and learn each as a request of one row, in this "
    "order. `errors` names each label that was not accepted, with the reason. `Prefer: wait=SECONDS` and "
    "`Idempotency-Key` work as for rows to learn."
)
SCORE_TEXT = "Regressors answer `max_error`, `mean_absolute_error`, `r2`; classifiers `accuracy`, `f1`, `log_loss`."

ROUTES = (
    Route(
        "POST", "/v1/models/{hash}/partial_fit", learning.partial_fit, LEARNING, "Learn rows", LEARN_TEXT,
        LEARNED, schemas.PartialFit, LEARN_ERRORS, (HASH, PREFER, KEY, *FILE_WEIGHT), PREFERRED,
        tables=True, scope=LEARN,
    ),
    Route(
        "POST", "/v1/models/{hash}/train_score_predict", train_score_predict.train_score_predict, LEARNING,
        "Learn, score and predict rows", TRAIN_SCORE_PREDICT_TEXT,
        {200: schemas.TrainScorePredictAnswer, 202: schemas.AcceptedAnswer}, schemas.TrainScorePredict, LEARN_ERRORS,
        (HASH, PREFER_ANSWER, KEY), PREFERRED, scope=LEARN, also_needs=PREDICT,
    ),
    Route(
        "POST", "/v1/models/{hash}/predict", past.predict, PREDICTING, "Predict rows", PREDICT_TEXT,
        PREDICTED, schemas.Predict, ASK_ERRORS,
        (HASH, PROBA, *PAST, TIMEOUT, CACHE_CONTROL, IF_NONE_MATCH, *FILE_TARGET), CACHED,
        tables=True, scope=PREDICT,
    ),
    Route(
        "POST", "/v1/models/{hash}/labels", labels.label_rows, LEARNING, "Label predicted rows", LABELS_TEXT,
        LABELLED, schemas.LabelRows, LEARN_ERRORS, (HASH, PREFER, KEY), PREFERRED, scope=LEARN,
    ),
    Route(
        "POST", "/v1/models/{hash}/score", prediction.score, PREDICTING, "Score a model on rows", SCORE_TEXT,
        SCORED, schemas.Score, ASK_ERRORS, (HASH, TIMEOUT, *FILE_TARGET), tables=True, scope=PREDICT,
    ),
)  # fmt: skip
