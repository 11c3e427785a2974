"""Which models have a scorer: the table of docs/reference/scorers.md is that of the code."""

import re
from pathlib import Path
from typing import Any

import pytest

from keepfit.model.bundle import Bundle
from keepfit.model.scorers import RECORDS
from keepfit.recipe.catalogue import CATALOGUE, SCALERS
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape
from keepfit.scoring import computations, state
from tests import catalogue
from tests.keepfit.scoring import models

PAGE = Path(__file__).parents[3] / "docs/reference/scorers.md"


def documented(part: str) -> set[str]:
    """Return the names with a scorer in one row of the table."""
    (row,) = re.findall(rf"^\| {part} \|([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    return set(re.findall(r"`(\w+)`", row))


def test_the_page_names_every_eligible_estimator() -> None:
    """The page has the estimators of the catalogue whose class has a record."""
    eligible = {name for name, entry in CATALOGUE.items() if entry.name in state.FINALS}
    assert documented("estimator, or last step") == eligible
    assert documented("other steps") == set(state.SCALERS) == set(SCALERS)


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_a_fitted_model_has_a_scorer_if_its_estimator_is_on_the_page(name: str) -> None:
    """Each estimator of the catalogue has a scorer once it has learned, or never has one."""
    recipe = catalogue.recipe(name)
    bundle = Bundle.new(recipe)
    assert models.scorer_of(bundle, 1, 1) is None
    for seed in range(3):
        bundle.partial_fit(catalogue.batch(name, 12, seed).learned(recipe))
    assert (models.scorer_of(bundle, 1, 1) is not None) == state.is_eligible(recipe)
    assert state.is_eligible(recipe) == (name in documented("estimator, or last step"))


@pytest.mark.parametrize("inner", ["CategoricalNB", "GaussianNB"])
def test_a_wrapper_is_eligible_if_its_inner_estimator_is(inner: str) -> None:
    """A wrapper around an estimator without a record has no scorer."""
    recipe = parse({"estimator": "OneVsRestClassifier", "params": {"estimator": {inner: {}}}})
    assert state.is_eligible(recipe) == (inner == "GaussianNB")


@pytest.mark.parametrize(
    "document",
    [
        {"estimator": "SGDRegressor", "features": {"note": "text", "a": "number"}},
        {"steps": [{"IncrementalPCA": {}}, {"SGDRegressor": {}}]},
        {"steps": [{"HashingVectorizer": {}}, {"SGDRegressor": {}}], "features": {"note": "text"}},
        {"estimator": "StandardScaler"},
    ],
)
def test_what_has_no_scorer(document: dict[str, Any]) -> None:
    """Words, transformers, and steps other than scalers have no scorer."""
    assert not state.is_eligible(parse(document))


def test_rows_that_wait_for_the_first_call_give_no_scorer() -> None:
    """A model whose rows wait has no scorer until its estimator has learned."""
    recipe = parse({"estimator": "MiniBatchKMeans", "params": {"n_clusters": 3}})
    bundle = Bundle.new(recipe)
    for n, expected in ((2, False), (1, True)):
        bundle.partial_fit(shape(recipe, [[float(i), n] for i in range(n)], learning=True))
        assert (models.scorer_of(bundle, 1, 1) is not None) == expected


def test_every_record_has_a_computation_and_a_case() -> None:
    """The tables of records, computations and tests name the same estimators."""
    assert set(state.FINALS.values()) == set(computations.PREDICT)
    assert set(state.SCALERS.values()) == set(computations.SCALE)
    assert {kind.__name__ for kind in RECORDS} == set(state.FINALS) | set(state.SCALERS)
    assert {CATALOGUE[name].name for name, _ in models.CASES.values()} == set(state.FINALS)
