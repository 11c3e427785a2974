"""Scores over HTTP: scikit-learn's metrics for the predictions of the same bundle."""

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from tests.gateway.api_client import CLASSIFIER, REGRESSOR, Api

RNG = np.random.default_rng(11)
X: list[list[float]] = RNG.normal(size=(30, 2)).tolist()
NUMBERS = [2 * a - b for a, b in X]
LABELS = ["yes" if a > b else "no" for a, b in X]
# Targets that a good model sometimes misses.
OTHER_LABELS = LABELS[:20] + ["yes"] * 10


async def test_a_regressor_is_scored(api: Api, metadata: dict[str, Any]) -> None:
    """`max_error`, `mean_absolute_error` and `r2` equal scikit-learn's; hash, version and rows_seen are returned."""
    path = await api.make(metadata, REGRESSOR)
    learned = await api.learn(path, X, NUMBERS)
    predicted = (await api.predict(path, X))["predictions"]
    score = (await api.post(f"{path}/score", {"X": X, "y": NUMBERS})).of(200)
    assert score == {
        "hash": learned["hash"],
        "version": learned["version"],
        "rows_seen": 30,
        "max_error": sk.max_error(NUMBERS, predicted),
        "mean_absolute_error": sk.mean_absolute_error(NUMBERS, predicted),
        "r2": sk.r2_score(NUMBERS, predicted),
    }
    by_metadata = await api.post("/v1/score", {"metadata": metadata, "X": X, "y": NUMBERS})
    assert by_metadata.of(200) == score


async def test_one_row_has_no_r2(api: Api, metadata: dict[str, Any]) -> None:
    """A metric that is undefined for the rows is null."""
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, X, NUMBERS)
    score = (await api.post(f"{path}/score", {"X": X[:1], "y": NUMBERS[:1]})).of(200)
    assert score["r2"] is None
    assert score["max_error"] == score["mean_absolute_error"] > 0


async def test_a_classifier_is_scored(api: Api, metadata: dict[str, Any]) -> None:
    """`accuracy`, `f1` (macro) and `log_loss` equal scikit-learn's."""
    path = await api.make(metadata, {"estimator": "GaussianNB", "classes": ["yes", "no"]})
    learned = await api.learn(path, X, LABELS)
    predicted = await api.predict(path, X, proba=True)
    score = (await api.post(f"{path}/score", {"X": X, "y": OTHER_LABELS})).of(200)
    assert score == {
        "hash": learned["hash"],
        "version": learned["version"],
        "rows_seen": 30,
        "accuracy": sk.accuracy_score(OTHER_LABELS, predicted["predictions"]),
        "f1": sk.f1_score(OTHER_LABELS, predicted["predictions"], average="macro"),
        "log_loss": sk.log_loss(OTHER_LABELS, predicted["probabilities"], labels=predicted["classes"]),
    }
    assert 0 < score["accuracy"] < 1


async def test_a_classifier_without_probabilities_has_no_log_loss(api: Api, metadata: dict[str, Any]) -> None:
    """For an estimator without probabilities `log_loss` is null and the other metrics are present."""
    path = await api.make(metadata, CLASSIFIER)
    await api.learn(path, X, LABELS)
    score = (await api.post(f"{path}/score", {"X": X, "y": LABELS})).of(200)
    assert score["log_loss"] is None
    assert score["accuracy"] > 0.5


@pytest.mark.parametrize(
    ("recipe", "document", "reason"),
    [
        (REGRESSOR, {"X": X}, "y must be a list of 30 values"),
        (REGRESSOR, {"X": X, "y": NUMBERS[:29]}, "29 values"),
        (CLASSIFIER, {"X": X, "y": [1] * 30}, "1 is not one of"),
        ({"estimator": "MiniBatchKMeans"}, {"X": X}, "nothing to score against"),
        ({"estimator": "MiniBatchKMeans"}, {"X": X, "y": NUMBERS}, "takes no y"),
    ],
)
async def test_a_score_needs_the_target_of_the_estimator(
    api: Api, metadata: dict[str, Any], recipe: dict[str, Any], document: dict[str, Any], reason: str
) -> None:
    """Rows without the target that the estimator needs answer 422 with the reason."""
    path = await api.make(metadata, recipe)
    y = {"SGDRegressor": NUMBERS, "SGDClassifier": LABELS}.get(recipe["estimator"])
    await api.learn(path, X, y)
    assert reason in (await api.post(f"{path}/score", document)).problem(422)["detail"]


async def test_a_model_without_rows_cannot_be_scored(api: Api, metadata: dict[str, Any]) -> None:
    """Before the first learned row a score answers 409."""
    path = await api.make(metadata, REGRESSOR)
    (await api.post(f"{path}/score", {"X": X, "y": NUMBERS})).problem(409)
