"""Metrics: the running error of a bundle and the metrics of a score call."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from keepfit.metrics import Running, classification_score, regression_score

numbers = st.floats(-1e6, 1e6)


def test_nothing_is_said_before_the_first_row() -> None:
    """A model that was never evaluated has no metrics, rather than a zero."""
    assert Running().values("regressor") == Running().values("classifier") == Running().values("clusterer") == {}


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), min_size=1, max_size=6))
def test_running_error_is_the_mean_over_all_rows(batches: list[list[tuple[float, float]]]) -> None:
    """The running error of a regressor is scikit-learn's mean absolute error over all batches together."""
    running = Running()
    for batch in batches:
        y, predicted = np.array(batch).T
        running.update("regressor", y, predicted)
    y, predicted = np.array([pair for batch in batches for pair in batch]).T
    values = running.values("regressor")
    assert values["rows"] == len(y)
    assert values["mean_absolute_error"] == pytest.approx(sk.mean_absolute_error(y, predicted), rel=1e-12)


@pytest.mark.parametrize("labels", [["a", "b"], [0, 1], [True, False]], ids=str)
def test_running_accuracy_counts_hits(labels: list[Any]) -> None:
    """The running accuracy of a classifier is the share of rows whose label was predicted."""
    running, random = Running(), np.random.default_rng(0)
    y, predicted = random.choice(labels, (2, 40))
    for start in range(0, 40, 8):
        running.update("classifier", y[start : start + 8], predicted[start : start + 8])
    assert running.values("classifier") == {"accuracy": sk.accuracy_score(y, predicted), "rows": 40}


def test_a_run_cut_into_processes_has_the_same_error() -> None:
    """Pickling and unpickling between any two batches changes no bit of the running error."""
    random = np.random.default_rng(1)
    whole, cut = Running(), Running()
    for _ in range(50):
        y, predicted = random.normal(size=(2, 3))
        whole.update("regressor", y, predicted)
        cut.update("regressor", y, predicted)
        cut = pickle.loads(pickle.dumps(cut))
    assert cut == whole
    assert cut.values("regressor") == whole.values("regressor")


def test_reading_the_values_changes_nothing() -> None:
    """values() can be called any number of times."""
    running = Running(rows=3, total=1.5)
    before = copy.copy(running)
    assert running.values("regressor") == running.values("regressor") == {"mean_absolute_error": 0.5, "rows": 3}
    assert running == before


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
    ("labels", "y", "predicted"),
    [
        (["a", "b", "c"], ["a", "b", "c", "a"], ["a", "c", "c", "a"]),
        ([0, 1, 2], [0, 0], [1, 2]),
        ([False, True], [True, False, True], [True, True, True]),
        (["a", "b"], ["b"], ["b"]),
    ],
    ids=str,
)
def test_classification_scores_are_scikit_learns(labels: list[Any], y: list[Any], predicted: list[Any]) -> None:
    """accuracy, macro f1 and log_loss are scikit-learn's own, also where some labels do not occur."""
    truth, guessed, classes = np.array(y), np.array(predicted), np.array(labels)
    probabilities = np.random.default_rng(2).dirichlet(np.ones(len(labels)), len(y))
    assert classification_score(truth, guessed, probabilities, classes) == {
        "accuracy": sk.accuracy_score(truth, guessed),
        "f1": sk.f1_score(truth, guessed, average="macro", zero_division=0.0),
        "log_loss": sk.log_loss(truth, probabilities, labels=classes),
    }
    assert classification_score(truth, guessed, None, classes)["log_loss"] is None
