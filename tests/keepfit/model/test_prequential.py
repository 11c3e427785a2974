"""Prequential metrics over all rows and over the window equal scikit-learn's for the same rows."""

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from keepfit.model.bundle import Bundle
from keepfit.model.prequential import CONFUSION_MAX, PARTS, PrequentialScores, combine_outputs
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape

numbers = st.floats(-1e6, 1e6)
sizes = st.lists(st.integers(1, 70), min_size=1, max_size=12)


def evaluated(
    kind: Any, window: int, batch_sizes: list[int], y: Any, predicted: Any, probabilities: Any = None
) -> PrequentialScores:
    """Return the scores after updating with batches of the given sizes, pickled and loaded after each."""
    scores, start = PrequentialScores(window), 0
    for size in batch_sizes:
        part = slice(start, start + size)
        scores.update(kind, y[part], predicted[part], None if probabilities is None else probabilities[part])
        scores, start = pickle.loads(pickle.dumps(scores)), start + size
    return scores


def test_there_are_no_metrics_before_the_first_row() -> None:
    """A model that was never evaluated has no metrics, not zeros."""
    assert PrequentialScores(100).metrics() == combine_outputs([]) == combine_outputs([PrequentialScores(100)]) == {}
    assert PrequentialScores(100).is_finite


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(10, 95), st.integers(0, 2**32 - 1))
def test_regression_metrics_equal_scikit_learns(batch_sizes: list[int], window: int, seed: int) -> None:
    """MAE, RMSE and R² equal scikit-learn's over all rows and over the window, for any batch sizes."""
    random = np.random.default_rng(seed)
    y = random.normal(1e5, 10, sum(batch_sizes))
    predicted = y + random.normal(0, 3, len(y))
    values = evaluated("regressor", window, batch_sizes, y, predicted).metrics()
    recent = values["window"]
    assert values["rows"] == len(y)
    assert min(len(y), window - 2 * PARTS) <= recent["rows"] <= window
    for metrics, last in ((values, len(y)), (recent, recent["rows"])):
        pair = y[-last:], predicted[-last:]
        assert metrics["mean_absolute_error"] == pytest.approx(sk.mean_absolute_error(*pair), rel=1e-9)
        assert metrics["root_mean_squared_error"] == pytest.approx(sk.root_mean_squared_error(*pair), rel=1e-9)
        expected = sk.r2_score(*pair) if last > 1 else None
        assert metrics["r2"] == (None if expected is None else pytest.approx(expected, rel=1e-6, abs=1e-6))


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(2, 5), st.booleans(), st.integers(0, 2**32 - 1))
def test_classification_metrics_equal_scikit_learns(batch_sizes: list[int], k: int, proba: bool, seed: int) -> None:
    """Accuracy, macro F1, log loss and confusion equal scikit-learn's over all rows and the last `window.rows`."""
    random = np.random.default_rng(seed)
    n = sum(batch_sizes)
    y, predicted = random.integers(0, k, (2, n))
    probabilities = random.dirichlet(np.ones(k), n) if proba else None
    known = [f"label {code}" for code in range(k)]
    values = evaluated("classifier", 40, batch_sizes, y, predicted, probabilities).metrics(known)
    for metrics, last in ((values, n), (values["window"], values["window"]["rows"])):
        pair = y[-last:], predicted[-last:]
        assert metrics["accuracy"] == pytest.approx(sk.accuracy_score(*pair))
        assert metrics["f1"] == pytest.approx(sk.f1_score(*pair, average="macro", zero_division=0.0))
        assert metrics["confusion"]["classes"] == known
        assert metrics["confusion"]["counts"] == sk.confusion_matrix(*pair, labels=range(k)).tolist()
        if probabilities is None:
            assert "log_loss" not in metrics
        else:
            expected = sk.log_loss(pair[0], probabilities[-last:], labels=range(k))
            assert metrics["log_loss"] == pytest.approx(expected, rel=1e-9)


def test_single_rows_and_batches_give_the_same_window() -> None:
    """The parts of the window do not depend on how rows are grouped into requests."""
    random = np.random.default_rng(3)
    y, predicted = random.integers(0, 3, (2, 500))
    one_by_one = evaluated("classifier", 50, [1] * 500, y, predicted)
    assert one_by_one.parts == evaluated("classifier", 50, [500], y, predicted).parts
    assert one_by_one.parts == evaluated("classifier", 50, [3, 496, 1], y, predicted).parts


def test_many_labels_have_exact_scores_and_no_confusion_matrix() -> None:
    """With more labels than a confusion matrix has, accuracy and F1 are exact and the state stays small."""
    random = np.random.default_rng(4)
    k = 20 * CONFUSION_MAX
    y, predicted = random.integers(0, k, (2, 5000))
    scores = evaluated("classifier", 1000, [1000] * 5, y, predicted)
    values = scores.metrics(list(range(k)))
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert values["f1"] == pytest.approx(sk.f1_score(y, predicted, average="macro", zero_division=0.0))
    assert "confusion" not in values
    assert len(scores.total[3]) <= CONFUSION_MAX**2 + 3 * k


def test_an_unknown_class_has_the_minimum_probability() -> None:
    """A late label without a column of probabilities has the minimum to which scikit-learn clips."""
    scores = PrequentialScores(100)
    scores.update("classifier", np.array([2]), np.array([0]), np.array([[0.5, 0.5]]))
    scores.update("classifier", np.array([2, 0]), np.array([0, 0]), np.array([[0.5, 0.5], [0.5, 0.5]]))
    loss_max = -np.log(np.finfo(np.float64).eps)
    assert scores.metrics([0, 1, 2])["log_loss"] == pytest.approx((2 * loss_max + np.log(2)) / 3)


def test_r2_of_equal_targets_is_undefined() -> None:
    """Equal targets have no variance to explain, and rounding must not create one."""
    scores = PrequentialScores(100)
    for _ in range(50):
        scores.update("regressor", np.array([0.1]), np.array([0.3]))
    assert scores.metrics()["r2"] is None


def test_several_outputs_have_mean_and_individual_metrics() -> None:
    """The metrics of several outputs are their means, with those of each output under ``outputs``."""
    outputs = [PrequentialScores(100), PrequentialScores(100)]
    for scores, error in zip(outputs, (1.0, 3.0), strict=True):
        scores.update("regressor", np.array([1.0, 2.0]), np.array([1.0, 2.0]) + error)
    metrics = combine_outputs(outputs)
    assert (metrics["mean_absolute_error"], metrics["rows"]) == (2.0, 2)
    assert metrics["window"]["mean_absolute_error"] == 2.0
    assert [values["mean_absolute_error"] for values in metrics["outputs"]] == [1.0, 3.0]


def test_sums_that_overflow_are_not_finite() -> None:
    """A prediction with a huge error makes the sums infinite, which is_finite reports before a commit."""
    scores = PrequentialScores(100)
    scores.update("regressor", np.array([0.0]), np.array([1e200]))
    assert not scores.is_finite


def test_each_request_is_evaluated_before_it_is_learned() -> None:
    """The metrics of a bundle equal those of a loop that predicts and then learns each request, from the second on."""
    recipe = parse({"estimator": "SGDClassifier", "params": {"loss": "log_loss"}, "classes": ["a", "b"], "window": 10})
    bundle, y, predicted, probabilities = Bundle.new(recipe), [], [], []
    random = np.random.default_rng(5)
    for i in range(40):
        label = "ab"[int(random.integers(2))]
        rows = shape(recipe, [random.normal(label == "a", 1, 2).tolist()], [label], learning=True)
        if i:
            y.append(label)
            predicted += bundle.predict(rows)
            probabilities += bundle.predict_proba(rows)
        bundle.partial_fit(rows)
    metrics = bundle.metrics()
    assert metrics["rows"] == 39
    assert metrics["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert metrics["log_loss"] == pytest.approx(sk.log_loss(y, probabilities, labels=["a", "b"]))
    assert metrics["window"]["rows"] == 10
    assert metrics["window"]["accuracy"] == pytest.approx(sk.accuracy_score(y[-10:], predicted[-10:]))
