"""Metrics of a score call equal scikit-learn's."""

import numpy as np
import pytest
from sklearn import metrics as sk

from keepfit.model.scores import classification_score, regression_score


def test_regression_scores_equal_scikit_learns() -> None:
    """max_error, mean_absolute_error and r2 equal scikit-learn's, as plain floats."""
    y, predicted = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0])
    assert regression_score(y, predicted) == {
        "max_error": sk.max_error(y, predicted),
        "mean_absolute_error": sk.mean_absolute_error(y, predicted),
        "r2": sk.r2_score(y, predicted),
    }
    assert {type(value) for value in regression_score(y, predicted).values()} == {float}


def test_r2_of_two_rows_is_defined() -> None:
    """Two rows are enough for r2."""
    assert regression_score(np.array([1.0, 3.0]), np.array([1.0, 2.0]))["r2"] == 0.5


def test_r2_of_one_row_is_undefined() -> None:
    """A single row has no variance to explain: r2 is None, without a warning."""
    assert regression_score(np.array([1.0]), np.array([3.0])) == {
        "max_error": 2.0,
        "mean_absolute_error": 2.0,
        "r2": None,
    }


@pytest.mark.parametrize(
    ("n_classes", "y", "predicted"),
    [
        (3, [0, 1, 2, 0], [0, 2, 2, 0]),
        (3, [0, 0], [1, 2]),
        (2, [1, 0, 1], [1, 1, 1]),
        (2, [1], [1]),
    ],
    ids=["three", "never-right", "two", "one-row"],
)
def test_classification_scores_equal_scikit_learns(n_classes: int, y: list[int], predicted: list[int]) -> None:
    """accuracy, macro f1 and log_loss equal scikit-learn's, also if some labels do not occur."""
    truth, predicted_codes = np.array(y), np.array(predicted)
    probabilities = np.random.default_rng(2).dirichlet(np.ones(n_classes), len(y))
    assert classification_score(truth, predicted_codes, probabilities, n_classes) == {
        "accuracy": sk.accuracy_score(truth, predicted_codes),
        "f1": sk.f1_score(truth, predicted_codes, average="macro", zero_division=0.0),
        "log_loss": sk.log_loss(truth, probabilities, labels=np.arange(n_classes)),
    }
    assert classification_score(truth, predicted_codes, None, n_classes)["log_loss"] is None


def test_an_unknown_label_counts_as_wrong() -> None:
    """Rows of an unknown label count as wrong, with the minimum probability."""
    scores = classification_score(np.array([0, 2]), np.array([0, 1]), np.array([[1.0, 0.0], [0.5, 0.5]]), 2)
    assert scores["accuracy"] == 0.5
    assert scores["log_loss"] == pytest.approx(-np.log(np.finfo(np.float64).eps) / 2)
