"""Changes of a model's parameters, as far as they can be checked without scikit-learn.

Owns the recipe in force, and the words that the gateway and its checker process exchange about a change. Never builds
an estimator, never changes a recipe as it was posted. Changes come from clients with ``PATCH /models/{hash}``
(docs/guides/changing-parameters.md); :mod:`keepfit.model.parameters` checks and makes them.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from keepfit.errors import InvalidError
from keepfit.recipe.catalogue import NAME_SHOWN_MAX
from keepfit.recipe.recipe import Recipe

# Begins a line that holds a change for the checker process. No JSON document begins like this.
CHANGE = "change "


def in_force(recipe: Recipe, changed: Mapping[str, Any]) -> Recipe:
    """The recipe with the parameters `changed`, by scikit-learn's nested names, in place of those it came with.

    Raises
    ------
    InvalidError
        If a name leads nowhere.

    >>> in_force(Recipe("SGDRegressor", {"alpha": 1}), {"alpha": 2}).params
    {'alpha': 2}
    """
    if not changed:
        return recipe
    parts = list(recipe.parts)
    for name, value in changed.items():
        position, inside = address(recipe, name)
        cls, params = parts[position]
        parts[position] = cls, _placed(params, inside, value)
    if recipe.steps is None:
        return msgspec.structs.replace(recipe, params=parts[0][1])
    return msgspec.structs.replace(recipe, steps=[{cls: params} for cls, params in parts])


def address(recipe: Recipe, name: str) -> tuple[int, str]:
    """Position of the step that `name` is about, and the name within it."""
    if recipe.steps is None:
        return 0, name
    head, _, rest = name.partition("__")
    names = [cls for cls, _ in recipe.parts]
    if names.count(head) != 1 or not rest:
        told = f"there are two steps {head!r}" if head in names else f"{name[:NAME_SHOWN_MAX]!r} names no step"
        raise InvalidError(f"params: {told}; a parameter of a step is named like {names[-1]}__…, after its step.")
    return names.index(head), rest


def _placed(params: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    head, _, rest = name.partition("__")
    if not rest:
        return {**params, name: value}
    inner = params.get(head)
    if not isinstance(inner, dict) or len(inner) != 1:
        raise InvalidError(f"params: there is no {name[:NAME_SHOWN_MAX]!r} in this recipe.")
    ((cls, inside),) = inner.items()
    return {**params, head: {cls: _placed(inside, rest, value)}}
