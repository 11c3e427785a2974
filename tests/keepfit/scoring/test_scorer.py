"""Scorers answer the bytes that a worker would send, for every eligible estimator, encoding and kind of rows."""

import pickle
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfit.model.bundle import Bundle
from keepfit.recipe.catalogue import CATALOGUE, SCALERS
from keepfit.recipe.recipe import parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.rows.values import NUMBER_MAX, TIME_MIN
from keepfit.scoring import category_codes, encoding
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
    found = models.scorer_of(bundle, 3, 17)
    assert found is not None
    return encoding.decode(encoding.encode(found.state), bundle.recipe)


@st.composite
def questions(draw: st.DrawFn, case: str) -> tuple[Bundle, Rows]:
    """Draw a bundle and 1 to 20 rows for it."""
    name = models.CASES[case][0]
    features = draw(st.sampled_from(sorted(models.FEATURES)))
    counts = name in models.COUNTS_ONLY
    scaler = None if counts else draw(st.sampled_from([None, *SCALERS]))
    encoded = draw(st.sampled_from(["ordinal", "onehot"] + ["hash"] * (not counts)))
    has_labels = CATALOGUE[name].kind == "classifier"
    labels = draw(st.sampled_from(sorted(models.LABELS))) if has_labels else ""
    bundle = models.learned(case, features, scaler, encoded, labels)
    row = st.tuples(
        *[st.none() | VALUES[kind] if nullable else VALUES[kind] for kind, nullable in models.kinds(features)]
    ).map(list)
    size = draw(st.one_of(st.just(1), st.integers(1, 20)))
    X = draw(st.lists(row, min_size=size, max_size=size))
    return bundle, shape(bundle.recipe, X, learning=False)


@pytest.mark.parametrize("case", models.CASES)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data())
def test_a_scorer_answers_the_bytes_of_a_worker(case: str, data: st.DataObject) -> None:
    """Predictions and probabilities equal a worker's JSON byte for byte; there are none where a worker has an error."""
    bundle, rows = data.draw(questions(case))
    found = scorer(bundle)
    for proba in (False, True):
        answer, expected = (
            found.answer(bundle.recipe, rows, proba=proba),
            models.worker_answer(bundle, rows, proba=proba),
        )
        # Rows of equal distances to two clusters are left to a worker.
        assert answer == expected or (answer is None and case == "clusters")


@pytest.mark.parametrize("rule", [category_codes.RULE_TEXT, category_codes.RULE_JSON])
@pytest.mark.parametrize("encoded", ["ordinal", "onehot", "hash"])
def test_codes_of_earlier_releases(encoded: str, rule: int) -> None:
    """Bundles of earlier releases keep their rules for the codes of labels, also in scorers."""
    bundle = deepcopy(models.learned("regressor", "mixed", None, encoded, ""))
    bundle.columns.rule = rule
    rows = shape(bundle.recipe, [["puma", 1.0, 3, 2.0], ["new", 1.0, "3", 2.0]], learning=False)
    answer = scorer(bundle).answer(bundle.recipe, rows, proba=False)
    assert answer is not None
    assert answer == models.worker_answer(bundle, rows, proba=False)


@pytest.mark.parametrize("params", [{"priors": [0, 1]}, {"priors": [0.25, 0.75]}])
def test_priors_of_the_recipe(params: dict[str, Any]) -> None:
    """Priors that are whole numbers, one of them 0, give the answers of a worker."""
    recipe = parse({"estimator": "GaussianNB", "params": params, "classes": ["a", "b"]})
    bundle = Bundle.new(recipe)
    bundle.partial_fit(shape(recipe, [[1.0], [2.0], [4.0], [3.0]], ["a", "b", "a", "b"], learning=True))
    rows = shape(recipe, [[1.0], [3.5]], learning=False)
    answer = scorer(bundle).answer(recipe, rows, proba=True)
    assert answer is not None
    assert answer == models.worker_answer(bundle, rows, proba=True)


def test_single_rows_of_a_constant_column() -> None:
    """GaussianNB after single rows has variances of zero, and its scorer the smoothing of the bundle."""
    recipe = parse({"estimator": "GaussianNB"})
    bundle = Bundle.new(recipe)
    for x, label in ((1.0, "a"), (3.0, "b"), (1.5, "a")):
        bundle.partial_fit(shape(recipe, [[x, 5.0]], [label], learning=True))
    rows = shape(recipe, [[1.2, 5.0]], learning=False)
    answer = scorer(bundle).answer(recipe, rows, proba=True)
    assert answer is not None
    assert answer == models.worker_answer(bundle, rows, proba=True)


def test_large_answers_are_left_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """More numbers and labels than a scorer may answer are left to a worker."""
    bundle = models.learned("log_loss", "unnamed", None, "onehot", "three")
    rows = shape(bundle.recipe, [[1.0] * models.UNNAMED_WIDTH] * 3, learning=False)
    found = scorer(bundle)
    monkeypatch.setattr("keepfit.scoring.scorer.ANSWER_VALUES_MAX", 11)
    assert found.answer(bundle.recipe, rows, proba=False) is not None
    assert found.answer(bundle.recipe, rows, proba=True) is None


def test_the_cost_grows_with_the_work() -> None:
    """More rows, probabilities and members cost more."""
    gaussian, rest = (
        scorer(models.learned(case, "unnamed", None, "onehot", "three")) for case in ("gaussian", "rest of gaussians")
    )
    one, many = (Rows(n, bytes(8 * n * models.UNNAMED_WIDTH), []) for n in (1, 1000))
    assert gaussian.cost(one, proba=False) < gaussian.cost(one, proba=True) < gaussian.cost(many, proba=False)
    assert gaussian.cost(one, proba=False) < rest.cost(one, proba=False)


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
    found, rows = models.scorer_of(bundle, 1, 1), shape(bundle.recipe, [[1.0, 2.0, 3.0, 4.0]], learning=False)
    assert found is not None
    before = found.answer(bundle.recipe, rows, proba=False)
    bundle.partial_fit(learn)
    assert found.answer(bundle.recipe, rows, proba=False) == before
    assert models.worker_answer(bundle, rows, proba=False) != before


@pytest.mark.parametrize("labels", ["named", "late"])
@pytest.mark.parametrize("case", models.CASES)
def test_the_order_of_arrays_is_that_of_a_bundle_that_was_stored(case: str, labels: str) -> None:
    """A worker that has read the bundle answers what the scorer of the worker that learned it answers."""
    has_labels = CATALOGUE[models.CASES[case][0]].kind == "classifier"
    if not has_labels and labels != "named":
        return
    bundle = models.learned(case, "unnamed", None, "onehot", labels if has_labels else "")
    stored = replace(bundle, estimator=pickle.loads(pickle.dumps(bundle.estimator)))
    X = np.abs(np.random.default_rng(4).normal(1, 3, (9, models.UNNAMED_WIDTH))).tolist()
    for count in (1, 9):
        rows = shape(bundle.recipe, X[:count], learning=False)
        for proba in (False, True):
            expected = models.worker_answer(stored, rows, proba=proba)
            assert scorer(bundle).answer(bundle.recipe, rows, proba=proba) == expected
            assert scorer(stored).answer(bundle.recipe, rows, proba=proba) == expected


def test_changed_parameters_are_those_of_the_scorer() -> None:
    """A scorer that is taken after a change of parameters answers with the new ones."""
    bundle = deepcopy(models.learned("hinge", "unnamed", None, "onehot", "three"))
    rows = shape(bundle.recipe, [[1.0] * models.UNNAMED_WIDTH], learning=False)
    assert scorer(bundle).answer(bundle.recipe, rows, proba=True) is None
    bundle.change({"loss": "log_loss"})
    answer = scorer(bundle).answer(bundle.recipe, rows, proba=True)
    assert answer is not None
    assert answer == models.worker_answer(bundle, rows, proba=True)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 100, 257, 1000, 4099])
@pytest.mark.parametrize("scaler_name", [None, *SCALERS])
@pytest.mark.parametrize("name", ["SGDRegressor", "SGDClassifier"])
def test_a_row_of_any_width_is_answered_as_by_a_worker(name: str, scaler_name: str | None, width: int) -> None:
    """A single row of numbers, which has a computation of its own, is answered bit for bit as by a worker."""
    classes = {"classes": ["no", "yes"]} if name == "SGDClassifier" else {}
    recipe = parse({"estimator": name, "scaler": scaler_name, **classes})
    random, bundle = np.random.default_rng(width), Bundle.new(recipe)
    X = random.normal(size=(20, width)) * 10.0 ** random.integers(-3, 3, width)
    y = [float(v) for v in X[:, 0]] if name == "SGDRegressor" else ["no" if v < 0 else "yes" for v in X[:, 0]]
    bundle.partial_fit(shape(recipe, X.tolist(), y, learning=True))
    found = scorer(bundle)
    for row in X:
        rows = shape(recipe, [row.tolist()], learning=False)
        expected = models.worker_answer(bundle, rows, proba=False)
        assert found.answer(recipe, rows, proba=False) == expected is not None
    wide = shape(recipe, [[1.0] * (width + 1)], learning=False)
    assert found.answer(recipe, wide, proba=False) is None


@pytest.mark.parametrize("name", SCALERS)
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e-268, 1e-272, 1e-300, 1e200, 1e268, 1e272, 1e300])
def test_a_scale_that_overflows_is_left_to_a_worker(name: str, scale: float) -> None:
    """A scaler with numbers of any size answers, or leaves to a worker, a row of the largest numbers."""
    recipe = parse({"estimator": "SGDRegressor", "scaler": name})
    bundle = Bundle.new(recipe)
    bundle.partial_fit(shape(recipe, [[1.0, 2.0], [2.0, 1.0]], [1.0, 2.0], learning=True))
    bundle.columns.scaler.scale_ = np.array([scale, 1.0])
    for row in ([NUMBER_MAX, -NUMBER_MAX], [-NUMBER_MAX, 1.0], [1.0, 2.0]):
        rows = shape(recipe, [row], learning=False)
        expected = models.worker_answer(bundle, rows, proba=False)
        assert scorer(bundle).answer(recipe, rows, proba=False) == expected


def test_a_row_that_overflows_is_answered_by_a_worker() -> None:
    """A model with weights of any size answers, or leaves to a worker, a row of the largest numbers."""
    recipe = parse({"estimator": "SGDRegressor"})
    bundle = Bundle.new(recipe)
    bundle.partial_fit(shape(recipe, [[1.0, 2.0]], [1.0], learning=True))
    rows = shape(recipe, [[NUMBER_MAX, -NUMBER_MAX]], learning=False)
    for weight in (1.0, 1e200, 1e268, 1e270, 1e300):
        bundle.estimator.coef_ = np.array([weight, weight])
        expected = models.worker_answer(bundle, rows, proba=False)
        assert scorer(bundle).answer(recipe, rows, proba=False) == expected
