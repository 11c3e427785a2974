"""Rehearsal: a recipe is tried on a few rows made up, before it is taken.

scikit-learn looks at some parameters only when rows come: priors that are not as many as classes, more components than
columns. Owns what such rows look like. Never keeps what was learned of them. Invariant: a recipe is refused only for
what would be refused of every row; numbers that grow too large, which depends on the rows, are not. Models too large to
be tried in passing are taken untried.
"""

import json
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from keepfit.errors import ConflictError, InvalidError, KeepfitError
from keepfit.model import first_call, parameters, pipeline
from keepfit.model.bundle import Bundle
from keepfit.recipe import catalogue
from keepfit.recipe.patch import CHANGE
from keepfit.recipe.recipe import Recipe, from_text, parse
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import shape

# Rows that nobody has told the width of have so many columns, or as many as the parameters speak of.
WIDTH_GUESSED = 8
# What is tried: so many columns, numbers in all, and units of a network.
WIDTH_MAX, NUMBERS_MAX, UNITS_MAX, CLASSES_MAX = 256, 20_000, 2_000, 50
# Sizes, whether a number or as many as a list is long.
SIZES = ("n_components", "n_clusters")
PER_COLUMN = ("alpha", "min_categories", "coef_init")


def rehearse(recipe: Recipe) -> None:
    """Refuse a recipe whose estimator would refuse any rows.

    Raises
    ------
    InvalidError
        In the estimator's own words.
    """
    _rehearse(recipe.text())


# The check of a recipe is asked for again and again where many models have the same one.
@lru_cache(256)
def _rehearse(text: str) -> None:
    recipe = from_text(text)
    estimator = Bundle.new(recipe).estimator
    known = None if recipe.takes_text else first_call.matrix_width(recipe)
    first_call.check(estimator, known, recipe.name)
    width = known or max(WIDTH_GUESSED, *_widths(pipeline.parts(estimator)[0]))
    needed = first_call.rows_needed(estimator, width)
    if width > WIDTH_MAX or width * needed > NUMBERS_MAX or _units(pipeline.last(estimator)) > UNITS_MAX:
        return
    if len(recipe.classes or ()) > CLASSES_MAX:
        return
    features: dict[str, Any] | None = {"text": "text"} if recipe.takes_text else None
    tried = msgspec.structs.replace(recipe, features=features, scaler=None)
    first, second = _rows(tried, max(needed, 2), width), _rows(tried, 1, width)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            _try(tried, first, second)
    except ConflictError:
        return
    except KeepfitError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        if not any(word in str(error) for word in ("overflow", "infinity", "NaN")):
            said = catalogue.as_asked(recipe.parts[-1][0], str(error))
            raise InvalidError(f"params of {recipe.name}: {said}") from None
    except ArithmeticError:
        return


def _try(recipe: Recipe, first: Rows, second: Rows) -> None:
    bundle = Bundle.new(recipe)
    for rows in (first, second):
        bundle.partial_fit(rows)
        bundle.predict(second)


def _widths(step: Any) -> Iterator[int]:
    """Numbers of columns that the parameters of the first estimator speak of."""
    yield 0
    for name, value in step.get_params().items():
        last = name.rpartition("__")[2]
        if last in SIZES and isinstance(value, int):
            yield value
        elif last in PER_COLUMN and isinstance(value, list):
            yield len(value)
        elif last == "init" and isinstance(value, list) and value and isinstance(value[0], list):
            yield len(value[0])


def _units(step: Any) -> int:
    layers = getattr(getattr(step, "estimator", step), "hidden_layer_sizes", 0)
    return int(np.sum(layers)) if isinstance(layers, int | list) else 0


def _rows(recipe: Recipe, n: int, width: int) -> Rows:
    """Small whole numbers, which every estimator takes, with a target that suits."""
    X: list[Any] = [[(3 * row + 5 * column + row * column) % 7 % 4 for column in range(width)] for row in range(n)]
    if recipe.takes_text:
        X = [[f"some text {row}"] for row in range(n)]
    entry, classes = recipe.entry, recipe.classes
    y: list[Any] | None = None
    if entry.many:
        named: Any = classes or [[0, 1], [0, 1]]
        y = [[_value(entry.target, one, row) for one in named] for row in range(n)]
    elif entry.takes_y:
        y = [_value(entry.target, classes or [0, 1], row) for row in range(n)]
    return shape(recipe, X, y, learning=True)


def _value(target: str | None, classes: Any, row: int) -> Any:
    return float(row % 3) if target == "numbers" else classes[row % len(classes)]


def verdict(line: bytes) -> dict[str, Any] | None:
    """Check one line of JSON from the gateway: a recipe, or after :data:`CHANGE` a change of parameters.

    Return None for a valid recipe, ``{"kept": params}`` for a valid change, and ``{"error": class, "detail": message}``
    otherwise.
    """
    try:
        if line.startswith(CHANGE.encode()):
            recipe, changed, params = json.loads(line.removeprefix(CHANGE.encode()))
            return {"kept": parameters.check(msgspec.convert(recipe, Recipe), changed, params)}
        parse(json.loads(line))
    except KeepfitError as error:
        return {"error": type(error).__name__, "detail": str(error)}
    return None


def main() -> None:
    """Check the lines of standard input until it ends. Write one line of JSON for each to standard output."""
    try:
        for line in sys.stdin.buffer:
            sys.stdout.write(json.dumps(verdict(line)) + "\n")
            sys.stdout.flush()
    except (KeyboardInterrupt, BrokenPipeError):
        # Ctrl-C reaches all processes of a terminal, so the gateway is ending too.
        return


if __name__ == "__main__":
    main()
