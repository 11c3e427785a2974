"""The full check of a recipe: its fields, its parameters, and a trial on a few generated rows.

scikit-learn looks at some parameters only when rows come: priors that are not as many as classes, more components than
columns. Owns the generated rows. Never keeps what the trial learned. Invariants: a recipe that passes can be built; one
is refused only for what would be refused with every row. Numbers that grow too large depend on the rows and pass.
Models that are too large for a quick trial pass without it.
The gateway runs this module as a process of its own (:func:`main`), because building an estimator takes 130 MB.
"""

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from sklearn.multiclass import OneVsOneClassifier

from keepfit.errors import ConflictError, InvalidError, KeepfitError
from keepfit.model import estimators, first_call, parameters, pipeline
from keepfit.model.bundle import Bundle
from keepfit.recipe.patch import CHANGE
from keepfit.recipe.recipe import Recipe, check_fields, from_document, from_text, left_out
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape
from keepfit.security.envelope import Keyring

# Columns of the generated rows if neither recipe nor parameters tell it.
DEFAULT_WIDTH = 8
# Limits of the trial: columns (16 one-hot category columns), numbers in all, components, units of a network, classes.
WIDTH_MAX, NUMBERS_MAX, COMPONENT_VALUES_MAX, UNITS_MAX, CLASSES_MAX = 2048, 20_000, 2**16, 2_000, 50
# Redis takes no larger value, so no model with more could be stored.
COEFFICIENT_BYTES_MAX = 2**29
# Parameters whose value, or the length of whose value, is a number of columns.
WIDTH_PARAMS = ("n_components", "n_clusters")
PER_COLUMN_PARAMS = ("alpha", "min_categories", "coef_init")


def check(document: Any, keyring: Keyring | None = None) -> Recipe:
    """Return the recipe of a JSON document after all checks.

    `keyring` has the upload keys, None where no objects are accepted. An object is verified but not unpickled. An
    encoding that the document leaves out is the one that suits the estimator. If the estimator refuses that one, it is
    "ordinal": a parameter may have a value for each column, of which one-hot categories make more.

    Raises
    ------
    InvalidError
        With what is wrong and what would be right, in the estimator's own words where it refuses.
    """
    recipe = from_document(document, keyring)
    try:
        _check(recipe)
    except InvalidError:
        if "encoding" not in left_out(document) or recipe.encoding in (None, "ordinal"):
            raise
        ordinal = msgspec.structs.replace(recipe, encoding="ordinal")
        with suppress(InvalidError):
            _check(ordinal)
            _check_size(ordinal)
            return ordinal
        raise
    # Not among the checks above: what is too large in one-hot columns is not to be stored with ordinal codes instead.
    _check_size(recipe)
    return recipe


def _check(recipe: Recipe) -> None:
    # Before the other fields, because the estimators' messages say more.
    for name, params in recipe.named_steps:
        estimators.build(name, params)
    check_fields(recipe)
    if recipe.object is None:
        _check_trial(recipe.text())


# Cached, because many models are made with one recipe.
@lru_cache(256)
def _check_trial(text: str) -> None:
    """Raise InvalidError if the estimator of the recipe `text` would refuse all rows."""
    recipe = from_text(text)
    estimator = Bundle.new(recipe).estimator
    known_width = None if recipe.reads_text else first_call.matrix_width(recipe)
    first_call.check_rows_needed(estimator, known_width, recipe.name)
    width = known_width or max(DEFAULT_WIDTH, *_widths(pipeline.steps_of(estimator)[0]))
    needed = first_call.rows_needed(estimator, width)
    if width > WIDTH_MAX or width * needed > NUMBERS_MAX or _units(pipeline.final_of(estimator)) > UNITS_MAX:
        return
    if len(recipe.classes or ()) > CLASSES_MAX or first_call.component_values(estimator, width) > COMPONENT_VALUES_MAX:
        return
    features: dict[str, Any] | None = {"text": "text"} if recipe.reads_text else None
    trial_recipe = msgspec.structs.replace(recipe, features=features, scaler=None)
    first, second = _generated_rows(trial_recipe, max(needed, 2), width), _generated_rows(trial_recipe, 1, width)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            _fit_and_predict(trial_recipe, first, second)
    except ConflictError:
        return
    except KeepfitError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        if not any(word in str(error) for word in ("overflow", "infinity", "NaN")):
            reason = estimators.in_recipe_terms(recipe.named_steps[-1][0], str(error))
            raise InvalidError(f"params of {recipe.name}: {reason}") from None
    except ArithmeticError:
        return


def _check_size(recipe: Recipe) -> None:
    """Reject a recipe whose coefficients no Redis can hold; those of an uploaded object are not known.

    A classifier of the catalogue has a number for each column and class, or pair of classes; a network for each pair of
    units; a decomposition for each column and component.
    """
    if recipe.object is not None:
        return
    estimator = Bundle.new(recipe).estimator
    columns = (None if recipe.reads_text else first_call.matrix_width(recipe)) or 1
    width, final = first_call.width_of_final(estimator, columns), pipeline.final_of(estimator)
    classes: Any = recipe.classes or []
    # Two classes have one row of coefficients, and so has a regressor.
    counts = [len(one) for one in classes] if recipe.entry.multi_output else [len(classes)]
    outputs = sum([count if count > 2 else 1 for count in counts]) or 1
    layers = [width, *_hidden_layers(final), outputs]
    if isinstance(final, OneVsOneClassifier):
        layers[-1] = max(1, outputs * (outputs - 1) // 2)
    values = sum(before * after for before, after in pairwise(layers))
    size = 8 * max(values, first_call.component_values(estimator, columns))
    if size > COEFFICIENT_BYTES_MAX:
        raise InvalidError(
            f"{recipe.name} needs at least {size} bytes for {columns} columns and {outputs} outputs; a model may have "
            f"{COEFFICIENT_BYTES_MAX}: use fewer columns, classes, units or components."
        )


def _fit_and_predict(recipe: Recipe, first: Rows, second: Rows) -> None:
    bundle = Bundle.new(recipe)
    for rows in (first, second):
        bundle.partial_fit(rows)
        bundle.predict(second)


def _widths(step: Any) -> Iterator[int]:
    """Yield numbers of columns that the parameters of the first estimator imply."""
    yield 0
    for name, value in step.get_params().items():
        last = name.rpartition("__")[2]
        if last in WIDTH_PARAMS and isinstance(value, int):
            yield value
        elif last in PER_COLUMN_PARAMS and isinstance(value, list):
            yield len(value)
        elif last == "init" and isinstance(value, list) and value and isinstance(value[0], list):
            yield len(value[0])


def _units(step: Any) -> int:
    return int(np.sum(_hidden_layers(step)))


def _hidden_layers(step: Any) -> list[int]:
    """Return the units of each hidden layer; none if they are no numbers, which scikit-learn rejects."""
    layers = getattr(getattr(step, "estimator", step), "hidden_layer_sizes", [])
    layers = [layers] if isinstance(layers, int) else layers
    return list(layers) if all(isinstance(layer, int) for layer in layers) else []


def _generated_rows(recipe: Recipe, n: int, width: int) -> Rows:
    """Return rows of small whole numbers, which every estimator accepts, with a target that fits the recipe."""
    X: list[Any] = [[(3 * row + 5 * column + row * column) % 7 % 4 for column in range(width)] for row in range(n)]
    if recipe.reads_text:
        X = [[f"some text {row}"] for row in range(n)]
    entry, classes = recipe.entry, recipe.classes
    y: list[Any] | None = None
    if entry.multi_output:
        named: Any = classes or [[0, 1], [0, 1]]
        y = [[_value(entry.target, one, row) for one in named] for row in range(n)]
    elif entry.takes_y:
        y = [_value(entry.target, classes or [0, 1], row) for row in range(n)]
    return shape(recipe, X, y, learning=True)


def _value(target: str | None, classes: Any, row: int) -> Any:
    return float(row % 3) if target == "numbers" else classes[row % len(classes)]


def check_line(line: bytes) -> dict[str, Any]:
    """Check one line of JSON from the gateway: a recipe, or after :data:`CHANGE` a change of parameters.

    Return ``{"encoding": encoding}`` for a valid recipe, ``{"params": params}`` for a valid change, and for an error
    ``{"error": class, "detail": message}``.
    """
    try:
        if line.startswith(CHANGE.encode()):
            recipe, changed, params = json.loads(line.removeprefix(CHANGE.encode()))
            return {"params": parameters.check(msgspec.convert(recipe, Recipe), changed, params)}
        return {"encoding": check(json.loads(line)).encoding}
    except KeepfitError as error:
        return {"error": type(error).__name__, "detail": str(error)}


def main() -> None:
    """Check the lines of standard input until it ends. Write one line of JSON for each to standard output."""
    try:
        for line in sys.stdin.buffer:
            sys.stdout.write(json.dumps(check_line(line)) + "\n")
            sys.stdout.flush()
    except (KeyboardInterrupt, BrokenPipeError):
        # Ctrl-C reaches all processes of a terminal, so the gateway is ending too.
        return


if __name__ == "__main__":
    main()
