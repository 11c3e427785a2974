"""Nothing that is not a finite number is ever part of a bundle, wherever an estimator or scaler may keep it."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from keepfit.model import finite
from keepfit.model.bundle import Bundle
from keepfit.recipe import catalogue as estimators
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from tests import catalogue

# Where an infinity is right: the logarithm of a count of zero.
LOGARITHMS = ("log_prob_", "log_prior_")
PARAMS: dict[str, dict[str, Any]] = {
    **{name: params for name, (params, _) in catalogue.MADE.items()},
    "SGDClassifier": {"average": True},
}
SHAPES: list[tuple[str, str | None]] = [(name, None) for name in estimators.CATALOGUE if name != "HashingVectorizer"]
SHAPES += [("SGDRegressor", scaler) for scaler in estimators.SCALERS]

each_shape = pytest.mark.parametrize(("name", "scaler"), SHAPES, ids=str)


@pytest.fixture(autouse=True)
def _as_in_a_worker() -> Iterator[None]:
    """Let numpy overflow, and take the logarithm of a class never seen, as it does where nobody asks for errors."""
    with np.errstate(all="ignore"):
        yield


def recipe_of(name: str, scaler: str | None) -> Recipe:
    """Recipe of two columns of numbers."""
    document: dict[str, Any] = {"estimator": name, "params": PARAMS.get(name, {}), "scaler": scaler}
    if estimators.CATALOGUE[name].kind == "classifier":
        document["classes"] = [["a", "b", "c"]] * 2 if estimators.CATALOGUE[name].many else ["a", "b", "c"]
    return parse(document)


def rows_of(recipe: Recipe, size: float = 1.0, weight: float | None = None) -> Rows:
    """Ten rows of numbers of about `size`."""
    X = [[size * (i % 3), size * (1 + i % 2)] for i in range(10)]
    y: list[Any] | None = None
    if recipe.entry.takes_y:
        y = list("ab" * 5) if recipe.entry.kind == "classifier" else [size * i / 10 for i in range(10)]
        y = [[value, value] for value in y] if recipe.entry.many else y
    weights = None if weight is None or not recipe.entry.takes_sample_weight else [weight] * 10
    return shape(recipe, X, y, weights, learning=True)


def numbers(thing: Any, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """All floating point numbers that can be reached from an object, each with the way to it."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, float) or (isinstance(thing, np.ndarray) and thing.dtype.kind == "f"):
        yield path, thing
    elif isinstance(thing, list | tuple):
        for item in thing:
            yield from numbers(item, path, seen)
    elif isinstance(thing, dict):
        for name, value in thing.items():
            yield from numbers(value, f"{path}.{name}", seen)
    else:
        names = [*getattr(thing, "__dict__", {}), *getattr(thing, "__slots__", ())]
        for name in names:
            yield from numbers(getattr(thing, name, None), f"{path}.{name}", seen)


def wrong(bundle: Bundle) -> list[str]:
    """Ways to what is not finite in a bundle, found by looking at everything."""
    return [
        path
        for path, value in (*numbers(bundle.estimator), *numbers(bundle.columns), *numbers(bundle.running))
        if np.isnan(value).any()
        or (not np.isfinite(value).all() and not path.endswith(LOGARITHMS) and "best_loss" not in path)
    ]


@each_shape
def test_what_was_learned_of_ordinary_rows_passes(name: str, scaler: str | None) -> None:
    """No estimator and no scaler is refused for what it keeps after ordinary rows, classes never seen among it."""
    recipe = recipe_of(name, scaler)
    bundle = Bundle.new(recipe)
    for _ in range(3):
        bundle.partial_fit(rows_of(recipe))
    assert bundle.rows_seen == 30
    assert wrong(bundle) == []


@each_shape
def test_each_corner_is_looked_at(name: str, scaler: str | None) -> None:
    """A NaN in any one of the arrays and numbers that an estimator or scaler has learned is found, and named."""
    recipe = recipe_of(name, scaler)
    bundle = Bundle.new(recipe)
    for _ in range(2):
        bundle.partial_fit(rows_of(recipe))
    looked_at = 0
    for learned in (bundle.estimator, bundle.columns.scaler):
        for owner, attribute, value in attributes(learned):
            setattr(owner, attribute, spoilt(value))
            assert attribute in (finite.find_non_finite(learned) or ""), f"{attribute} is not looked at"
            setattr(owner, attribute, value)
            looked_at += 1
        assert learned is None or finite.find_non_finite(learned) is None
    assert looked_at >= 2


def attributes(learned: Any) -> list[tuple[Any, str, Any]]:
    """Owner, name and value of all that an estimator or scaler has learned in floating point."""
    if learned is None:
        return []
    params = set(learned.get_params(deep=False))
    inner = getattr(learned, "estimators_", None) or [getattr(learned, "estimator_", None)]
    within = [found for one in inner for found in attributes(one)]
    owners = [learned, *([learned._optimizer] if hasattr(learned, "_optimizer") else [])]
    return within + [
        (owner, name, value)
        for owner in owners
        for name, value in vars(owner).items()
        if name not in params | {"loss_curve_", "explained_variance_ratio_", "estimator_", "estimators_"}
        and next(numbers(value), None) is not None
        # A Birch tree's nodes are sums of the leaves, which stand in an array of their own.
        and name not in ("root_", "dummy_leaf_", "_random_state", "_label_binarizer")
    ]


def spoilt(value: Any) -> Any:
    """Copy of a learned value with a NaN as its last number."""
    if isinstance(value, list):
        return [*value[:-1], spoilt(value[-1])]
    if isinstance(value, np.ndarray):
        copy = value.copy()
        copy.flat[-1] = np.nan
        return copy
    return float("nan")


@each_shape
@pytest.mark.parametrize("weight", [None, 1e38], ids=["rows", "weights"])
def test_numbers_at_the_bound_are_learned_or_refused(name: str, scaler: str | None, weight: float | None) -> None:
    """Rows and weights as large as may be end in an error or in finite numbers, however often they come."""
    recipe = recipe_of(name, scaler)
    bundle = Bundle.new(recipe)
    bundle.partial_fit(rows_of(recipe))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(8):
            try:
                bundle.partial_fit(rows_of(recipe, 5e37, weight))
            except (ValueError, ArithmeticError):
                # What is left of it would be thrown away.
                return
            assert wrong(bundle) == []


def test_a_running_error_that_overflows_is_refused() -> None:
    """A model that predicts so far off that the sum of its errors overflows does not commit that sum."""
    recipe = recipe_of("SGDRegressor", None)
    bundle = Bundle.new(recipe)
    bundle.partial_fit(rows_of(recipe))
    bundle.partial_fit(rows_of(recipe))
    bundle.running[0].total[1] = 1.7e308
    bundle.estimator.coef_[:] = 1e307
    with pytest.raises(ArithmeticError, match=r"running error|finite"):
        bundle.partial_fit(shape(recipe, [[10.0, 10.0]], [0.0], learning=True))


def test_a_number_that_scikit_learn_takes_and_keepfit_does_not() -> None:
    """Control: a row of 1e200, which the check at the door refuses, makes SGDRegressor's coefficients absurd."""
    recipe = recipe_of("SGDRegressor", None)
    bundle = Bundle.new(recipe)
    bundle.estimator.partial_fit(np.array([[1e200, 1.0]]), np.array([1.0]))
    assert abs(bundle.estimator.coef_).max() > 1e100
