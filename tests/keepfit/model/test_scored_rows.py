"""The last scored rows of a regressor: which are kept, however rows are divided, and what of them is stored."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from keepfit.model import serialization
from keepfit.model.bundle import Bundle
from keepfit.model.prequential import PrequentialScores
from keepfit.model.scored_rows import OUTPUTS_MAX, ROWS_MAX, ScoredRows
from keepfit.model.serialization import seal, unseal
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring

RING = Keyring.from_text("k1:" + "5e" * 32)
HASH = "ab" * 32
HEADER = Header(envelope.BUNDLE, HASH, 1, 2, 3, 4, "", envelope.runtime())


def scores_of(y: Any, predicted: Any, size: int) -> PrequentialScores:
    """Return the scores of rows that came in batches of a size."""
    scores = PrequentialScores.of_output(0, window=50)
    for start in range(0, len(y), size):
        part = slice(start, start + size)
        scores.update("regressor", y[part], predicted[part])
        scores.learn("regressor", y[part])
    return scores


@pytest.mark.parametrize("n", [1, ROWS_MAX, 3 * ROWS_MAX + 17])
def test_the_same_rows_are_kept_however_they_came(n: int) -> None:
    """The last rows that have a prediction are kept, oldest first; the stored bytes do not depend on the batches."""
    random = np.random.default_rng(n)
    y = random.normal(50, 9, n).astype(np.float32).astype(np.float64)
    predicted = (y + random.normal(0, 1, n)).astype(np.float32).astype(np.float64)
    predicted[random.random(n) < 0.1] = np.nan
    answered = np.flatnonzero(np.isfinite(predicted))[-ROWS_MAX:]
    each = [scores_of(y.copy(), predicted.copy(), size) for size in (1, 7, 450, n)]
    truth, prediction = each[0].scored.columns()
    assert truth == pytest.approx(y[answered].tolist(), rel=1e-6)
    assert prediction == pytest.approx(predicted[answered].tolist(), rel=1e-6)
    assert len({scores.scored.stored() for scores in each}) == 1
    assert len(each[0].scored.stored()) <= 8 * ROWS_MAX


def test_numbers_beyond_single_precision_are_null() -> None:
    """A target or prediction that is too large for single precision is None, and disturbs no other."""
    for scores in (scores_of(np.array([1e100, 2.5]), np.array([0.1, -1e100]), size) for size in (1, 2)):
        assert scores.scored.columns() == ([None, 2.5], [0.1, None])


def test_a_classifier_and_further_outputs_keep_none() -> None:
    """Labels have a confusion matrix instead; of many outputs the first ones keep rows."""
    labels = PrequentialScores.of_output(0, window=50)
    for batch in ([1], [0, 1]):
        labels.update("classifier", np.array(batch), np.array(batch))
    assert labels.scored.columns() == ([], [])
    further = PrequentialScores.of_output(OUTPUTS_MAX, window=50)
    for batch in ([1.0], [2.0, 3.0]):
        further.update("regressor", np.array(batch), np.array(batch))
    assert further.scored.stored() == b""
    again = PrequentialScores.from_stored(*further.stored(), position=OUTPUTS_MAX)
    again.update("regressor", np.array([4.0]), np.array([4.0]))
    assert again.scored.stored() == b""


def test_a_bundle_goes_on_with_its_rows_and_an_older_one_begins() -> None:
    """The rows survive a store; a bundle that was stored without them loads, and keeps those that come next."""
    recipe = parse({"estimator": "SGDRegressor", "params": {"learning_rate": "constant", "eta0": 0.05}})
    bundle = Bundle.new(recipe)
    for value in range(3):
        bundle.partial_fit(shape(recipe, [[float(value), 1.0]], [value], learning=True))
    _, restored = unseal(seal(bundle, RING, HEADER), RING, recipe, HASH)
    assert restored.prequential == bundle.prequential
    (scores,) = restored.prequential
    assert scores.scored.columns()[0] == [1.0, 2.0]
    older = PrequentialScores.from_stored(*scores.stored()[:5])
    assert dataclasses.replace(older, scored=scores.scored) == scores
    older.update("regressor", np.array([7.0]), np.array([6.0]))
    assert older.scored.columns() == ([7.0], [6.0])
    assert math.isfinite(older.metrics()["mean_absolute_error"])


def test_stored_bytes_hold_no_object_of_keepfit() -> None:
    """What the pickle gets of the scores are plain values."""
    scores = scores_of(np.arange(5.0), np.arange(5.0), 2)
    assert {type(value) for value in scores.stored()} == {int, list, float, bytes}
    assert ScoredRows(stored=scores.stored()[5]) == scores.scored
    assert serialization.FORMAT == 3
