"""Changes of a model's parameters, as far as they can be checked without scikit-learn.

Owns the current recipe of a model, and the word with which the gateway announces a change to its checker process. Never
builds an estimator and never changes the posted recipe. Changes come from clients with ``PATCH /models/{hash}``
(docs/guides/changing-parameters.md); :mod:`keepfit.model.parameters` checks and applies them.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from keepfit.errors import InvalidError
from keepfit.recipe.other_estimators import NAME_SHOWN_MAX
from keepfit.recipe.recipe import Recipe

# Begins a line that holds a change for the checker process. No JSON document begins like this.
CHANGE = "change "


def with_changes(recipe: Recipe, changed: Mapping[str, Any]) -> Recipe:
    """Return `recipe` with the parameters `changed`, which have scikit-learn's nested names.

    Raises
    ------
    InvalidError
        If the recipe has no parameter of that name.

    >>> with_changes(Recipe("SGDRegressor", {"alpha": 1}), {"alpha": 2}).params
    {'alpha': 2}
    """
    if not changed:
        return recipe
    steps = list(recipe.named_steps)
    for name, value in changed.items():
        position, inner_name = locate(recipe, name)
        cls, params = steps[position]
        steps[position] = cls, _replaced(params, inner_name, value)
    if recipe.steps is None:
        return msgspec.structs.replace(recipe, params=steps[0][1])
    return msgspec.structs.replace(recipe, steps=[{cls: params} for cls, params in steps])


def locate(recipe: Recipe, name: str) -> tuple[int, str]:
    """Return the position of the step that the parameter `name` belongs to, and its name within the step."""
    if recipe.steps is None:
        return 0, name
    head, _, rest = name.partition("__")
    names = [cls for cls, _ in recipe.named_steps]
    if names.count(head) != 1 or not rest:
        reason = f"there are two steps {head!r}" if head in names else f"{name[:NAME_SHOWN_MAX]!r} names no step"
        raise InvalidError(f"params: {reason}; write the name of the step before the parameter: {names[-1]}__….")
    return names.index(head), rest


def _replaced(params: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    head, _, rest = name.partition("__")
    if not rest:
        return {**params, name: value}
    inner = params.get(head)
    if not isinstance(inner, dict) or len(inner) != 1:
        raise InvalidError(f"params: there is no {name[:NAME_SHOWN_MAX]!r} in this recipe.")
    ((cls, nested),) = inner.items()
    return {**params, head: {cls: _replaced(nested, rest, value)}}
