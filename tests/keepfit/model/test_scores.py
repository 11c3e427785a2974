"""Metrics of a score call: scikit-learn's own."""

import numpy as np
import pytest
from sklearn import metrics as sk

from keepfit.model.scores import classification_score, regression_score


def test_regression_scores_are_scikit_learns() -> None:
    """max_error, mean_absolute_error and r2 are scikit-learn's own, as plain floats."""
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


def test_r2_of_one_row_is_not_defined() -> None:
    """A single row has no variance to explain: r2 is None, and nothing warns."""
    assert regression_score(np.array([1.0]), np.array([3.0])) == {
        "max_error": 2.0,
        "mean_absolute_error": 2.0,
        "r2": None,
    }


@pytest.mark.parametrize(
    ("slots", "y", "predicted"),
    [
        (3, [0, 1, 2, 0], [0, 2, 2, 0]),
        (3, [0, 0], [1, 2]),
        (2, [1, 0, 1], [1, 1, 1]),
        (2, [1], [1]),
    ],
    ids=["three", "never-right", "two", "one-row"],
)
def test_classification_scores_are_scikit_learns(slots: int, y: list[int], predicted: list[int]) -> None:
    """accuracy, macro f1 and log_loss are scikit-learn's own, also where some labels do not occur."""
    truth, guessed = np.array(y), np.array(predicted)
    probabilities = np.random.default_rng(2).dirichlet(np.ones(slots), len(y))
    assert classification_score(truth, guessed, probabilities, slots) == {
        "accuracy": sk.accuracy_score(truth, guessed),
        "f1": sk.f1_score(truth, guessed, average="macro", zero_division=0.0),
        "log_loss": sk.log_loss(truth, probabilities, labels=np.arange(slots)),
    }
    assert classification_score(truth, guessed, None, slots)["log_loss"] is None


def test_a_label_that_was_never_learned_is_missed() -> None:
    """Rows of a label that the model does not know count as wrong, with the least probability there is."""
    scored = classification_score(np.array([0, 2]), np.array([0, 1]), np.array([[1.0, 0.0], [0.5, 0.5]]), 2)
    assert scored["accuracy"] == 0.5
    assert scored["log_loss"] == pytest.approx(-np.log(np.finfo(np.float64).eps) / 2)
