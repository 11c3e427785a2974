"""A bundle never holds a number that is not finite, in any attribute of an estimator or scaler."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from keepfit.errors import InvalidError
from keepfit.model import finite
from keepfit.model.bundle import Bundle
from keepfit.recipe import catalogue as estimators
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from tests import catalogue

# Attributes in which infinity is valid: the logarithm of a count of zero.
LOGARITHMS = ("log_prob_", "log_prior_")
PARAMS: dict[str, dict[str, Any]] = {
    **{name: params for name, (params, _) in catalogue.MADE.items()},
    "SGDClassifier": {"average": True},
}
SHAPES: list[tuple[str, str | None]] = [(name, None) for name in estimators.CATALOGUE if name != "HashingVectorizer"]
SHAPES += [("SGDRegressor", scaler) for scaler in estimators.SCALERS]

each_shape = pytest.mark.parametrize(("name", "scaler"), SHAPES, ids=str)


@pytest.fixture(autouse=True)
def _numpy_errors_as_in_a_worker() -> Iterator[None]:
    """Let numpy overflow and take the logarithm of zero without warnings, as workers do."""
    with np.errstate(all="ignore"):
        yield


def recipe_of(name: str, scaler: str | None) -> Recipe:
    """Return a recipe of two number columns."""
    document: dict[str, Any] = {"estimator": name, "params": PARAMS.get(name, {}), "scaler": scaler}
    if estimators.CATALOGUE[name].kind == "classifier":
        document["classes"] = [["a", "b", "c"]] * 2 if estimators.CATALOGUE[name].multi_output else ["a", "b", "c"]
    return parse(document)


def rows_of(recipe: Recipe, size: float = 1.0, weight: float | None = None) -> Rows:
    """Return ten rows of numbers of about `size`."""
    X = [[size * (i % 3), size * (1 + i % 2)] for i in range(10)]
    y: list[Any] | None = None
    if recipe.entry.takes_y:
        y = list("ab" * 5) if recipe.entry.kind == "classifier" else [size * i / 10 for i in range(10)]
        y = [[value, value] for value in y] if recipe.entry.multi_output else y
    weights = None if weight is None or not recipe.entry.takes_sample_weight else [weight] * 10
    return shape(recipe, X, y, weights, learning=True)


def numbers(thing: Any, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield all floating point numbers reachable from an object, each with its path."""
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


def non_finite_paths(bundle: Bundle) -> list[str]:
    """Return the paths of all numbers in a bundle that are not finite."""
    return [
        path
        for path, value in (*numbers(bundle.estimator), *numbers(bundle.columns), *numbers(bundle.prequential))
        if np.isnan(value).any()
        or (not np.isfinite(value).all() and not path.endswith(LOGARITHMS) and "best_loss" not in path)
    ]


@each_shape
def test_ordinary_rows_pass_the_check(name: str, scaler: str | None) -> None:
    """No estimator or scaler is rejected after ordinary rows, also with classes that have no rows."""
    recipe = recipe_of(name, scaler)
    bundle = Bundle.new(recipe)
    for _ in range(3):
        bundle.partial_fit(rows_of(recipe))
    assert bundle.rows_seen == 30
    assert non_finite_paths(bundle) == []


@each_shape
def test_every_learned_attribute_is_checked(name: str, scaler: str | None) -> None:
    """A NaN in any array or number that an estimator or scaler has learned is found and named."""
    recipe = recipe_of(name, scaler)
    bundle = Bundle.new(recipe)
    for _ in range(2):
        bundle.partial_fit(rows_of(recipe))
    checked = 0
    for learned in (bundle.estimator, bundle.columns.scaler):
        for owner, attribute, value in attributes(learned):
            setattr(owner, attribute, with_nan(value))
            assert attribute in (finite.find_non_finite(learned) or ""), f"{attribute} is not checked"
            setattr(owner, attribute, value)
            checked += 1
        assert learned is None or finite.find_non_finite(learned) is None
    assert checked >= 2


def attributes(learned: Any) -> list[tuple[Any, str, Any]]:
    """Return owner, name and value of all floating point attributes that an estimator or scaler has learned."""
    if learned is None:
        return []
    params = set(learned.get_params(deep=False))
    inner = getattr(learned, "estimators_", None) or [getattr(learned, "estimator_", None)]
    nested = [attribute for member in inner for attribute in attributes(member)]
    owners = [learned, *([learned._optimizer] if hasattr(learned, "_optimizer") else [])]
    return nested + [
        (owner, name, value)
        for owner in owners
        for name, value in vars(owner).items()
        if name not in params | {"loss_curve_", "explained_variance_ratio_", "estimator_", "estimators_"}
        and next(numbers(value), None) is not None
        # The nodes of a Birch tree are sums of the leaves, which have an array of their own.
        and name not in ("root_", "dummy_leaf_", "_random_state", "_label_binarizer")
    ]


def with_nan(value: Any) -> Any:
    """Return a copy of a learned value with NaN as its last number."""
    if isinstance(value, list):
        return [*value[:-1], with_nan(value[-1])]
    if isinstance(value, np.ndarray):
        copy = value.copy()
        copy.flat[-1] = np.nan
        return copy
    return float("nan")


@each_shape
@pytest.mark.parametrize("weight", [None, 1e38], ids=["rows", "weights"])
def test_numbers_at_the_bound_are_learned_or_rejected(name: str, scaler: str | None, weight: float | None) -> None:
    """Repeated rows and weights at the bound raise an error or leave finite numbers."""
    recipe = recipe_of(name, scaler)
    bundle = Bundle.new(recipe)
    bundle.partial_fit(rows_of(recipe))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(8):
            try:
                bundle.partial_fit(rows_of(recipe, 5e37, weight))
            except (ValueError, ArithmeticError):
                # The caller discards the bundle.
                return
            except InvalidError as error:
                # Numbers that are no codes of a category.
                assert name == "CategoricalNB", error  # noqa: PT017 - all others may raise no such error
                return
            assert non_finite_paths(bundle) == []


def test_overflowing_prequential_sums_are_rejected() -> None:
    """A bundle whose sum of errors overflows raises an error instead of being committed."""
    recipe = recipe_of("SGDRegressor", None)
    bundle = Bundle.new(recipe)
    bundle.partial_fit(rows_of(recipe))
    bundle.partial_fit(rows_of(recipe))
    bundle.prequential[0].total[1] = 1.7e308
    bundle.estimator.coef_[:] = 5e306
    with pytest.raises(ArithmeticError, match=r"running error|finite"):
        bundle.partial_fit(shape(recipe, [[10.0, 10.0]], [0.0], learning=True))


def test_a_number_beyond_the_bound_would_corrupt_an_estimator() -> None:
    """Control: a row of 1e200, which the gateway rejects, makes SGDRegressor's coefficients absurd."""
    recipe = recipe_of("SGDRegressor", None)
    bundle = Bundle.new(recipe)
    bundle.estimator.partial_fit(np.array([[1e200, 1.0]]), np.array([1.0]))
    assert abs(bundle.estimator.coef_).max() > 1e100
