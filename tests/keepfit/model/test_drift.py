"""Drift in the running errors of real models."""

import random
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

from keepfit.model import drift
from keepfit.model.bundle import Bundle
from keepfit.model.drift import Losses
from keepfit.model.prequential import PrequentialScores
from keepfit.recipe import recipe as recipes
from keepfit.rows import shaping


def learned(scores: PrequentialScores, errors: Any, sizes: Any = None) -> list[dict[str, Any]]:
    """Let scores see rows with these errors, in batches of these sizes; return the drifts."""
    begin = 0
    for size in sizes or [1] * len(errors):
        part = np.asarray(errors[begin : begin + size], dtype=float)
        scores.update("regressor", part, np.zeros(len(part)))
        begin += size
    return drift.take([scores])


def noise(seed: int, count: int, scale: float = 1.0) -> list[float]:
    """Return normal errors."""
    source = random.Random(seed)
    return [source.gauss(0, scale) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_larger_errors_are_one_drift(seed: int) -> None:
    """When errors double, one drift is found within the recent rows, and none before or after."""
    scores = PrequentialScores(1000)
    assert learned(scores, noise(seed, 5000)) == []
    (found,) = learned(scores, noise(seed + 100, 3000, 2.0))
    assert found["metric"] == "mean_absolute_error"
    assert found["before"] < 1.0 < found["recent"]
    assert found["rows"] == 200
    assert learned(scores, noise(seed + 200, 3000, 2.0)) == []


def test_smaller_errors_are_no_drift() -> None:
    """A model that becomes better does not drift, and one that becomes worse again does."""
    scores = PrequentialScores(1000)
    assert learned(scores, [*noise(1, 3000, 4.0), *noise(2, 3000)]) == []
    assert len(learned(scores, noise(3, 2000, 4.0))) == 1


@pytest.mark.parametrize("sizes", [[7] * 571 + [3], [350] * 11 + [150], [1000] * 4, [1, 999, 400, 1600, 1000]])
def test_batches_give_what_single_rows_give(sizes: list[int]) -> None:
    """The drifts are the same however the rows were divided into requests, up to the size of the window."""
    errors = [*noise(1, 2000), *noise(2, 2000, 3.0)]
    assert sum(sizes) == len(errors)
    alone = learned(PrequentialScores(2000), errors)
    batches = learned(PrequentialScores(2000), errors, sizes)
    assert len(alone) == len(batches) == 1
    assert [each["rows"] for each in alone] == [each["rows"] for each in batches]
    assert alone[0]["recent"] == pytest.approx(batches[0]["recent"], rel=1e-9)


def test_rows_beyond_the_window_raise_no_alarm() -> None:
    """A request with many more rows than the window, whose first rows are only counted, is no drift."""
    scores = PrequentialScores(1000)
    errors = noise(1, 50_000)
    assert learned(scores, errors, [500, 30_000, 1, 19_499]) == []
    assert len(learned(scores, noise(2, 1000, 3.0))) == 1


def test_rounding_is_no_drift() -> None:
    """Errors of a perfect model that differ by rounding only are no drift, however significant."""
    scores = PrequentialScores(1000)
    targets = np.arange(4000.0)
    predicted = targets + np.repeat([1e-13, 1e-12], 2000)
    for target, answer in zip(targets, predicted, strict=True):
        scores.update("regressor", np.array([target]), np.array([answer]))
    assert drift.take([scores]) == []


def test_a_small_window_detects_nothing() -> None:
    """Windows of less than 150 rows are too small for a test; those of 150 are not."""
    for window, count in ((149, 0), (150, 1)):
        assert len(learned(PrequentialScores(window), [*noise(1, 1000), *noise(2, 1000, 50.0)])) == count


def test_a_stored_bundle_has_no_drifts() -> None:
    """Drifts are taken once; scores from stored fields, also those of earlier releases, go on with the test."""
    scores = PrequentialScores(1000)
    learned(scores, noise(1, 3000))
    restored = PrequentialScores.from_stored(1000, scores.total[:5], [part[:5] for part in scores.parts], scores.first)
    assert len(learned(restored, noise(2, 1000, 3.0))) == 1
    assert restored.drifts == []


def test_a_classifier_drifts_by_its_labels() -> None:
    """A classifier whose labels are swapped drifts in accuracy; the bundle is the same as without looking at it."""
    recipe = recipes.parse({"estimator": "GaussianNB", "classes": ["a", "b"], "window": 500})
    bundle = Bundle.new(recipe)
    found = []
    for number in range(3000):
        label = "ab"[(number % 2) ^ (number >= 2000)]
        bundle.partial_fit(shaping.shape(recipe, [[float(number % 2)]], [label], None, learning=True))
        found += [(number, each) for each in drift.take(bundle.prequential)]
    ((number, only),) = found
    assert 2000 < number < 2100
    assert only["metric"] == "accuracy"
    assert only["before"] == 1.0
    assert only["recent"] < 0.9


def test_the_statistic_is_that_of_welch() -> None:
    """The statistic equals that of SciPy's test for means with unequal variances."""
    one, two = np.abs(noise(1, 70)), np.abs(noise(2, 20, 3.0))
    expected = ttest_ind(two, one, equal_var=False).statistic
    parts = [Losses(len(each), float(each.sum()), float(each @ each)) for each in (one, two)]
    assert drift.statistic(*parts) == pytest.approx(float(expected))
