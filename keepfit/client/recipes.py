"""Recipes of estimators: the JSON that names an estimator of scikit-learn with its parameters.

Pure. Never pickles: an object that is not of scikit-learn has no recipe by name, and is signed by its owner
(:func:`keepfit.objects.dump`). Never imports scikit-learn. Invariant: parameters at their defaults are left out.
"""

import inspect
from typing import Any

from keepfit.errors import InvalidError

STEPS_CLASS = "Pipeline"


def recipe_of(estimator: Any) -> dict[str, Any]:
    """Return the recipe of an estimator: its name, an unfitted object of scikit-learn, or a pipeline of them.

    >>> recipe_of("SGDRegressor")
    {'estimator': 'SGDRegressor'}

    Raises
    ------
    InvalidError
        If it is something else.
    """
    if isinstance(estimator, str):
        return {"estimator": estimator}
    if _is_of_sklearn(estimator) and type(estimator).__name__ == STEPS_CLASS:
        return {"steps": [_named(step) for _, step in estimator.steps]}
    (pair,) = _named(estimator).items()
    return {"estimator": pair[0], "params": pair[1]}


def _named(estimator: Any) -> dict[str, Any]:
    if not _is_of_sklearn(estimator):
        raise InvalidError(
            f"{type(estimator).__name__} is not of scikit-learn, so it has no name in a recipe, and keepfit pickles "
            'nothing by itself: give recipe={"object": keepfit.objects.dump(estimator)}.'
        )
    return {type(estimator).__name__: _params(estimator)}


def _params(estimator: Any) -> dict[str, Any]:
    defaults = {name: one.default for name, one in inspect.signature(type(estimator)).parameters.items()}
    found = {}
    for name, value in estimator.get_params(deep=False).items():
        if _is_of_sklearn(value):
            found[name] = _named(value)
        elif not _is_same(value, defaults.get(name)):
            found[name] = value
    return found


def _is_same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))


def _is_of_sklearn(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "sklearn" and hasattr(value, "get_params")
