"""Running evaluation: the metrics of all rows and of the last ones are scikit-learn's of those very rows."""

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


def fed(kind: Any, window: int, cuts: list[int], y: Any, predicted: Any, chances: Any = None) -> PrequentialScores:
    """Feed rows in batches of the given sizes, through a pickle after each."""
    running, start = PrequentialScores(window), 0
    for size in cuts:
        part = slice(start, start + size)
        running.update(kind, y[part], predicted[part], None if chances is None else chances[part])
        running, start = pickle.loads(pickle.dumps(running)), start + size
    return running


def test_nothing_is_said_before_the_first_row() -> None:
    """A model that was never evaluated has no metrics, rather than a zero."""
    assert PrequentialScores(100).metrics() == combine_outputs([]) == combine_outputs([PrequentialScores(100)]) == {}
    assert PrequentialScores(100).is_finite


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(10, 95), st.integers(0, 2**32 - 1))
def test_errors_are_those_of_all_rows_and_of_the_window(cuts: list[int], window: int, seed: int) -> None:
    """Mean absolute error, RMSE and R² are scikit-learn's over all rows and over those of the window, however cut."""
    random = np.random.default_rng(seed)
    y = random.normal(1e5, 10, sum(cuts))
    predicted = y + random.normal(0, 3, len(y))
    values = fed("regressor", window, cuts, y, predicted).metrics()
    recent = values["window"]
    assert values["rows"] == len(y)
    assert min(len(y), window - 2 * PARTS) <= recent["rows"] <= window
    for found, last in ((values, len(y)), (recent, recent["rows"])):
        of = y[-last:], predicted[-last:]
        assert found["mean_absolute_error"] == pytest.approx(sk.mean_absolute_error(*of), rel=1e-9)
        assert found["root_mean_squared_error"] == pytest.approx(sk.root_mean_squared_error(*of), rel=1e-9)
        wanted = sk.r2_score(*of) if last > 1 else None
        assert found["r2"] == (None if wanted is None else pytest.approx(wanted, rel=1e-6, abs=1e-6))


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(2, 5), st.booleans(), st.integers(0, 2**32 - 1))
def test_hits_are_those_of_all_rows_and_of_the_window(cuts: list[int], k: int, proba: bool, seed: int) -> None:
    """Accuracy, macro F1, log loss and confusion are scikit-learn's, over all rows and the last `window.rows`."""
    random = np.random.default_rng(seed)
    n = sum(cuts)
    y, predicted = random.integers(0, k, (2, n))
    chances = random.dirichlet(np.ones(k), n) if proba else None
    known = [f"label {code}" for code in range(k)]
    values = fed("classifier", 40, cuts, y, predicted, chances).metrics(known)
    for found, last in ((values, n), (values["window"], values["window"]["rows"])):
        of = y[-last:], predicted[-last:]
        assert found["accuracy"] == pytest.approx(sk.accuracy_score(*of))
        assert found["f1"] == pytest.approx(sk.f1_score(*of, average="macro", zero_division=0.0))
        assert found["confusion"]["classes"] == known
        assert found["confusion"]["counts"] == sk.confusion_matrix(*of, labels=range(k)).tolist()
        if chances is None:
            assert "log_loss" not in found
        else:
            wanted = sk.log_loss(of[0], chances[-last:], labels=range(k))
            assert found["log_loss"] == pytest.approx(wanted, rel=1e-9)


def test_single_rows_and_batches_give_the_same_window() -> None:
    """Where the window is cut does not depend on how rows were put into requests."""
    random = np.random.default_rng(3)
    y, predicted = random.integers(0, 3, (2, 500))
    one_by_one = fed("classifier", 50, [1] * 500, y, predicted)
    assert one_by_one.parts == fed("classifier", 50, [500], y, predicted).parts
    assert one_by_one.parts == fed("classifier", 50, [3, 496, 1], y, predicted).parts


def test_many_labels_keep_their_scores_and_no_confusion() -> None:
    """Accuracy and F1 of more labels than a confusion shows are exact, and what is kept stays small."""
    random = np.random.default_rng(4)
    k = 20 * CONFUSION_MAX
    y, predicted = random.integers(0, k, (2, 5000))
    running = fed("classifier", 1000, [1000] * 5, y, predicted)
    values = running.metrics(list(range(k)))
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert values["f1"] == pytest.approx(sk.f1_score(y, predicted, average="macro", zero_division=0.0))
    assert "confusion" not in values
    assert len(running.total[3]) <= CONFUSION_MAX**2 + 3 * k


def test_an_unknown_class_has_the_least_probability() -> None:
    """A label that turns up later, and that the classifier had no column for, costs what scikit-learn clips it to."""
    running = PrequentialScores(100)
    running.update("classifier", np.array([2]), np.array([0]), np.array([[0.5, 0.5]]))
    running.update("classifier", np.array([2, 0]), np.array([0, 0]), np.array([[0.5, 0.5], [0.5, 0.5]]))
    least = -np.log(np.finfo(np.float64).eps)
    assert running.metrics([0, 1, 2])["log_loss"] == pytest.approx((2 * least + np.log(2)) / 3)


def test_r2_of_targets_that_are_all_the_same_is_not_defined() -> None:
    """Without a spread there is nothing to explain, and rounding must not make one up."""
    running = PrequentialScores(100)
    for _ in range(50):
        running.update("regressor", np.array([0.1]), np.array([0.3]))
    assert running.metrics()["r2"] is None


def test_several_outputs_are_told_of_together_and_apart() -> None:
    """The metrics of several outputs are their means, and those of each stand beside them."""
    outputs = [PrequentialScores(100), PrequentialScores(100)]
    for running, off in zip(outputs, (1.0, 3.0), strict=True):
        running.update("regressor", np.array([1.0, 2.0]), np.array([1.0, 2.0]) + off)
    told = combine_outputs(outputs)
    assert (told["mean_absolute_error"], told["rows"]) == (2.0, 2)
    assert told["window"]["mean_absolute_error"] == 2.0
    assert [values["mean_absolute_error"] for values in told["outputs"]] == [1.0, 3.0]


def test_sums_that_overflow_are_not_sound() -> None:
    """A prediction far enough off would make the error infinite for ever: it is told of before it is committed."""
    running = PrequentialScores(100)
    running.update("regressor", np.array([0.0]), np.array([1e200]))
    assert not running.is_finite


def test_each_request_is_evaluated_before_it_is_learned() -> None:
    """The metrics of a bundle are those of a loop that predicts each request and then learns it, from the second on."""
    recipe = parse({"estimator": "SGDClassifier", "params": {"loss": "log_loss"}, "classes": ["a", "b"], "window": 10})
    bundle, y, predicted, chances = Bundle.new(recipe), [], [], []
    random = np.random.default_rng(5)
    for i in range(40):
        label = "ab"[int(random.integers(2))]
        rows = shape(recipe, [random.normal(label == "a", 1, 2).tolist()], [label], learning=True)
        if i:
            y.append(label)
            predicted += bundle.predict(rows)
            chances += bundle.predict_proba(rows)
        bundle.partial_fit(rows)
    told = bundle.metrics()
    assert told["rows"] == 39
    assert told["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    assert told["log_loss"] == pytest.approx(sk.log_loss(y, chances, labels=["a", "b"]))
    assert told["window"]["rows"] == 10
    assert told["window"]["accuracy"] == pytest.approx(sk.accuracy_score(y[-10:], predicted[-10:]))
