"""Metrics of a score call equal scikit-learn's."""

import numpy as np
import pytest
from sklearn import metrics as sk

from keepfit.model.scores import classification_score, regression_score, score


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
    assert classification_score(truth, predicted_codes, probabilities) == {
        "accuracy": sk.accuracy_score(truth, predicted_codes),
        "f1": sk.f1_score(truth, predicted_codes, average="macro", zero_division=0.0),
        "log_loss": pytest.approx(sk.log_loss(truth, probabilities, labels=np.arange(n_classes)), rel=1e-12),
    }
    assert classification_score(truth, predicted_codes, None)["log_loss"] is None


def test_an_unknown_label_counts_as_wrong() -> None:
    """Rows of an unknown label count as wrong, with the minimum probability."""
    scores = classification_score(np.array([0, 2]), np.array([0, 1]), np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert scores["accuracy"] == 0.5
    assert scores["log_loss"] == pytest.approx(-np.log(np.finfo(np.float64).eps) / 2)


def test_rows_without_a_prediction_are_counted_and_in_no_metric() -> None:
    """Predictions that are not finite are counted; the metrics are those of the other rows, or None without any."""
    y = np.array([1.0, 2.0, 4.0])
    assert score(y, np.array([1.5, np.nan, 3.0]), labelled=False) == {
        **regression_score(y[[0, 2]], np.array([1.5, 3.0])),
        "rows_without_prediction": 1,
    }
    nothing = {"max_error": None, "mean_absolute_error": None, "r2": None, "rows_without_prediction": 3}
    assert score(y, np.array([np.inf, np.nan, -np.inf]), labelled=False) == nothing


def test_rows_without_probabilities_are_not_in_the_log_loss() -> None:
    """The log loss is that of the rows that have probabilities, and None if there are none."""
    y, probabilities = np.array([0, 1]), np.array([[np.nan, np.nan], [0.25, 0.75]])
    assert score(y, y, probabilities, labelled=True)["log_loss"] == pytest.approx(-np.log(0.75))
    assert score(y, y, probabilities * np.nan, labelled=True) == {"accuracy": 1.0, "f1": 1.0, "log_loss": None}
