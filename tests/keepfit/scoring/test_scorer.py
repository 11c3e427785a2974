"""Scorers answer the bytes that a worker would send, for every eligible estimator, encoding and kind of rows."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfit.model.bundle import Bundle
from keepfit.model.scorers import scorer_of
from keepfit.recipe.catalogue import CATALOGUE, SCALERS
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.rows.values import NUMBER_MAX, TIME_MIN
from keepfit.scoring import encoding
from keepfit.scoring.scorer import Scorer
from tests.keepfit.scoring import models

NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1e-300, NUMBER_MAX, -NUMBER_MAX]), st.floats(-20, 20), st.floats(-1e9, 1e9)
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "number": NUMBERS,
    "category": st.sampled_from([*models.MAKES, "unknown", "x" * 900]),
    "boolean": st.booleans(),
    "timestamp": st.floats(TIME_MIN, 4e9),
}


def scorer(bundle: Bundle) -> Scorer:
    """Return the scorer of a bundle after it was encoded and decoded."""
    found = scorer_of(bundle, 3, 17)
    assert found is not None
    return encoding.decode(encoding.encode(found), bundle.recipe)


@st.composite
def questions(draw: st.DrawFn, case: str) -> tuple[Bundle, Rows]:
    """Draw a bundle and 1 to 20 rows for it."""
    name = models.CASES[case][0]
    features = draw(st.sampled_from(sorted(models.FEATURES)))
    counts = name in models.COUNTS_ONLY
    scaler = None if counts else draw(st.sampled_from([None, *SCALERS]))
    encoded = draw(st.sampled_from(["ordinal", "onehot"] + ["hash"] * (not counts)))
    labels = draw(st.sampled_from(sorted(models.LABELS))) if CATALOGUE[name].target == "labels" else ""
    bundle = models.learned(case, features, scaler, encoded, labels)
    row = st.tuples(
        *[st.none() | VALUES[kind] if nullable else VALUES[kind] for kind, nullable in models.kinds(features)]
    ).map(list)
    size = draw(st.one_of(st.just(1), st.integers(1, 20)))
    X = draw(st.lists(row, min_size=size, max_size=size))
    return bundle, shape(bundle.recipe, X, learning=False)


@pytest.mark.parametrize("case", models.CASES)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_scorer_answers_the_bytes_of_a_worker(case: str, data: st.DataObject) -> None:
    """Predictions and probabilities equal a worker's JSON byte for byte; there are none where a worker has an error."""
    bundle, rows = data.draw(questions(case))
    found = scorer(bundle)
    for proba in (False, True):
        expected = models.worker_answer(bundle, rows, proba=proba)
        assert found.answer(bundle.recipe, rows, proba=proba) == expected


def test_a_scorer_names_its_version() -> None:
    """A scorer has generation, version and number of rows of the bundle that it was taken from."""
    bundle = models.learned("regressor", "unnamed", "StandardScaler", "onehot", "")
    found = scorer(bundle)
    assert (found.generation, found.version, found.rows_seen) == (3, 17, bundle.rows_seen)
    assert found.size_bytes > 0


@pytest.mark.parametrize("width", [1, 3, 5])
def test_rows_of_another_width_have_no_answer(width: int) -> None:
    """Rows of another width than was learned are left to a worker, which has the error."""
    bundle = models.learned("regressor", "unnamed", "StandardScaler", "onehot", "")
    rows = shape(bundle.recipe, [[1.0] * width], learning=False)
    assert scorer(bundle).answer(bundle.recipe, rows, proba=False) is None


def test_a_scorer_does_not_change_while_its_bundle_learns() -> None:
    """A scorer shares no array with its bundle."""
    bundle = Bundle.new(models.learned("regressor", "unnamed", None, "onehot", "").recipe)
    learn = shape(bundle.recipe, [[1.0, 2.0, 3.0, 4.0]], [5.0], learning=True)
    bundle.partial_fit(learn)
    found, rows = scorer_of(bundle, 1, 1), shape(bundle.recipe, [[1.0, 2.0, 3.0, 4.0]], learning=False)
    assert found is not None
    before = found.answer(bundle.recipe, rows, proba=False)
    bundle.partial_fit(learn)
    assert found.answer(bundle.recipe, rows, proba=False) == before
    assert models.worker_answer(bundle, rows, proba=False) != before
