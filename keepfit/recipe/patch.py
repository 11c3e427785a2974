"""Changes of a model's parameters or of its object's code, as far as they can be checked without scikit-learn.

Owns the current recipe of a model, the form of a change of code, and the word with which the gateway announces a change
to its checker process. Never builds an estimator and never changes the posted recipe. Changes come from clients with
``PATCH /models/{hash}`` (docs/guides/changing-parameters.md, docs/guides/your-own-objects.md);
:mod:`keepfit.model.parameters` checks and applies those of parameters, :mod:`keepfit.model.new_code` those of code.
"""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from keepfit.errors import ConflictError, InvalidError
from keepfit.recipe import uploads
from keepfit.recipe.other_estimators import NAME_SHOWN_MAX
from keepfit.recipe.recipe import Recipe, is_same
from keepfit.security.envelope import Keyring

# Begins a line that holds a change for the checker process. No JSON document begins like this.
CHANGE = "change "
# A model of an object has no parameters to change, so this name is free: what it holds in a change is the text of the
# new object, and in what was changed the text that describes it.
OBJECT = "object"
# What becomes of the learned state when the code is replaced.
STATE, KEEP, LEARN_AGAIN = "state", "keep", "learn_again"


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
    if recipe.object is not None:
        return msgspec.structs.replace(recipe, object=changed[OBJECT])
    steps = list(recipe.named_steps)
    for name, value in changed.items():
        position, inner_name = locate(recipe, name)
        cls, params = steps[position]
        steps[position] = cls, _replaced(params, inner_name, value)
    if recipe.steps is None:
        return msgspec.structs.replace(recipe, params=steps[0][1])
    return msgspec.structs.replace(recipe, steps=[{cls: params} for cls, params in steps])


def new_code(
    recipe: Recipe, changed: Mapping[str, Any], text: str, state: str, keyring: Keyring | None
) -> dict[str, Any]:
    """Check the object `text` as the new code of a model; return the change in the form to store.

    Raises
    ------
    InvalidError
        If the model has no object, or the new one is not signed, is for other rows, or `state` is neither :data:`KEEP`
        nor :data:`LEARN_AGAIN`.
    ConflictError
        If the model is to learn again, and had learned before it was uploaded.
    """
    if recipe.object is None:
        raise InvalidError(f"object: the model is made of {recipe.name}, not of an uploaded object: change its params.")
    if state not in (KEEP, LEARN_AGAIN):
        raise InvalidError('state: write "keep" (keep what was learned) or "learn_again" (learn all rows again).')
    header, described = uploads.verify(text, keyring), with_changes(recipe, changed).object or ""
    uploads.check_same_interface(uploads.header_of(described), header)
    if state == LEARN_AGAIN and uploads.trained_file(described) is not None:
        raise ConflictError(
            "The model had learned before it was uploaded, from rows that are not here, so it cannot learn all of them "
            'again; use "state": "keep".'
        )
    return {OBJECT: text, STATE: state}


def shown(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a change as it is shown, with the digest of an object in place of its text.

    >>> shown({"alpha": 1})
    {'alpha': 1}
    """
    text = params.get(OBJECT)
    if isinstance(text, str) and STATE in params:
        return {**params, OBJECT: f"sha256:{uploads.digest_of(text)}"}
    return dict(params)


def is_in_force(
    recipe: Recipe, changed: Mapping[str, Any], posted: Recipe, fields_left_out: Collection[str] = ()
) -> bool:
    """Return whether `posted` is the recipe with what was `changed`; `fields_left_out` as of :func:`is_same`."""
    current = with_changes(recipe, changed)
    texts = posted.object, current.object
    if None not in texts and uploads.digest_of(texts[0] or "") == uploads.digest_of(texts[1] or ""):
        posted = msgspec.structs.replace(posted, object=current.object)
    return is_same(current, posted, fields_left_out)


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
