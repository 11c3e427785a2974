"""`X` of a request as columns: rows by position or by name, in JSON's types, against a recipe's columns.

Owns the two ways to shape it: few values one by one, many by numpy. Never knows what was learned. Invariant: the way
for few gives what the one for many gives, or leaves the rows to it, which says what is wrong and where.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keepfit.errors import Fault, InvalidError
from keepfit.recipe.features import Layout
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.rows.targets import shape_target, shape_weights
from keepfit.rows.values import (
    FAULTS_MAX,
    LITTLE_ENDIAN,
    PACKERS,
    SMALL_MAX,
    Word,
    number_fault,
    packed,
    shape_numbers,
    shape_words,
    summary,
    word_fault,
)

NAN = float("nan")


def shape(recipe: Recipe, X: Any, y: Any = None, sample_weight: Any = None, *, learning: bool) -> Rows:
    """Check a request's rows against `recipe` and return them in compact form.

    Parameters
    ----------
    X : list of rows, each a list of values in column order or an object by column name
    y : list of n numbers (regressors) or labels (classifiers); None for estimators that take no target
    sample_weight : list of n numbers of 0 or more, not all 0, or None
    learning : whether the rows bring their target (partial_fit, score) or not (predict)

    Raises
    ------
    InvalidError
        With row and column of what is wrong.
    """
    numbers, categories = shape_columns(recipe, X)
    target = shape_target(recipe, y, len(X)) if learning else None
    return Rows(len(X), numbers, categories, target, shape_weights(recipe, sample_weight, len(X)))


def shape_columns(recipe: Recipe, X: Any) -> tuple[bytes, list[list[Word]]]:
    """Number columns (row by row) and word columns of `X`, checked."""
    return _shape_small(recipe, X) or _shape_many(recipe, X)


def _shape_many(recipe: Recipe, X: Any) -> tuple[bytes, list[list[Word]]]:
    if not isinstance(X, list) or not X:
        raise InvalidError("X must be a list of at least one row.")
    columns, layout = _columns(recipe, X), recipe.layout
    check_number_of_rows(layout, len(X))
    if recipe.features is None:
        numbers = [shape_numbers(column, index) for index, column in enumerate(columns)]
    else:
        numbers = [shape_numbers(columns[c.index], c.name, "column", c) for c in layout.numbers]
    words = [shape_words(columns[c.index], c) for c in layout.words]
    matrix = np.column_stack(numbers) if numbers else np.empty((len(X), 0))
    return matrix.astype(LITTLE_ENDIAN, copy=False).tobytes(), words


def check_number_of_rows(layout: Layout, n: int) -> None:
    """Refuse rows whose matrix would take more memory than a worker can be asked for."""
    if not layout.plain and n > layout.rows_max:
        width, rows_max = layout.width, layout.rows_max
        raise InvalidError(f"{n} rows make a matrix of {width} columns: send at most {rows_max} rows at a time.")


def _shape_small(recipe: Recipe, X: Any) -> tuple[bytes, list[list[Word]]] | None:
    """Shape few values, all of them right; None for many, or where anything is wrong: the general way says what.

    Most requests have a single row, so this is what an ordinary one costs.
    """
    values = _values_small(recipe, X)
    if values is None:
        return None
    if recipe.features is None or recipe.layout.plain:
        numbers = packed(values)
        return None if numbers is None else (numbers, [])
    return _pack_kinds(recipe.layout, values)


def _pack_kinds(layout: Layout, values: list[Any]) -> tuple[bytes, list[list[Word]]] | None:
    """Few values, row by row, of columns of any kind."""
    width, words = len(layout.columns), []
    for column in layout.words:
        found = values[column.index :: width]
        if any(word_fault(word, column) for word in found):
            return None
        words.append(found)
    if layout.words:
        wanted = [column.index for column in layout.numbers]
        values = [values[start + i] for start in range(0, len(values), width) for i in wanted]
    missing: list[int] = []
    for column in layout.odd:
        for place in range(column.wire, len(values), len(layout.numbers)):
            value = values[place]
            if value is None and column.nullable:
                missing.append(place)
                values[place] = 0.0
            elif column.kind == "timestamp" and number_fault(value, "timestamp"):
                return None
    numbers = packed(values)
    if numbers is not None and missing:
        for place in missing:
            values[place] = NAN
        numbers = PACKERS[len(values)](*values)
    return None if numbers is None else (numbers, words)


def _values_small(recipe: Recipe, X: Any) -> list[Any] | None:
    """Values of few rows of the right form, row by row."""
    if type(X) is not list or not 0 < len(X) <= SMALL_MAX:
        return None
    features = recipe.features
    width = len(features) if features is not None else len(X[0]) if type(X[0]) is list else 0
    if not 0 < len(X) * width <= SMALL_MAX:
        return None
    values: list[Any] = []
    for row in X:
        if type(row) is list and len(row) == width:
            values += row
        elif type(row) is dict and features is not None and row.keys() == features.keys():
            values += [row[name] for name in features]
        elif type(row) is dict and features is not None and _lacks_only(row, recipe):
            values += [row.get(name) for name in features]
        else:
            return None
    return values


def _lacks_only(row: dict[str, Any], recipe: Recipe) -> bool:
    """Whether a row by name has the recipe's columns but for such as may be missing."""
    names = recipe.features.keys() if recipe.features is not None else set()
    return row.keys() <= names and names - row.keys() <= recipe.layout.optional


def _columns(recipe: Recipe, X: list[Any]) -> list[Sequence[Any]]:
    """Turn rows into columns, in the recipe's order."""
    expected = None if recipe.features is None else list(recipe.features)
    if recipe.features and all(type(row) is dict and row.keys() == recipe.features.keys() for row in X):
        # Without a list for each row: the garbage collector looks at all of them, again and again.
        return [[row[name] for row in X] for name in recipe.features]
    optional = recipe.layout.optional
    first = next((row for row in X if isinstance(row, list) and row), [])
    width = len(first if expected is None else expected)
    faults: list[Fault] = []
    ordered: list[Sequence[Any]] = []
    for i, row in enumerate(X):
        if isinstance(row, list) and len(row) == width > 0:
            ordered.append(row)
        elif isinstance(row, dict) and expected is not None and row.keys() == recipe.features.keys():  # type: ignore[union-attr]
            ordered.append([row[name] for name in expected])
        elif optional and isinstance(row, dict) and expected is not None and _lacks_only(row, recipe):
            ordered.append([row.get(name) for name in expected])
        else:
            faults.extend(_row_faults(row, i, expected, width, optional))
            if len(faults) >= FAULTS_MAX:
                break
    if faults:
        raise InvalidError(summary(faults), faults[:FAULTS_MAX])
    return list(zip(*ordered, strict=True))


def _row_faults(
    row: Any, i: int, expected: list[str] | None, width: int, optional: frozenset[str] = frozenset()
) -> list[Fault]:
    if isinstance(row, list):
        if not row:
            return [Fault("the row is empty", i)]
        return [Fault(f"the row has {len(row)} values where {width} are expected", i)]
    if not isinstance(row, dict):
        return [Fault("a row is a list of values or an object by column name", i)]
    if expected is None:
        return [Fault("the recipe names no features, so a row is a list of numbers", i)]
    missing = [Fault("the column is missing", i, name) for name in expected if name not in row and name not in optional]
    known = set(expected)
    return missing + [Fault("the recipe has no such column", i, name[:100]) for name in row if name not in known]
