"""`X` of a request as columns: rows by position or by name, in JSON's types, against a recipe's columns.

Owns two implementations: one for few values in plain Python, one for many in numpy. Never knows what the model has
learned. Invariant: the one for few values either returns what the one for many returns, or leaves the rows to it, which
reports what is invalid and where. The result goes into :class:`keepfit.rows.rows.Rows`.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from keepfit.errors import Fault, InvalidError
from keepfit.recipe.features import NGRAMS_MAX, Layout
from keepfit.recipe.recipe import Recipe
from keepfit.rows.free_rows import shape_free
from keepfit.rows.rows import Rows, check_bytes
from keepfit.rows.targets import shape_target, shape_weights
from keepfit.rows.values import (
    FAULTS_MAX,
    LITTLE_ENDIAN,
    PACKERS,
    SMALL_MAX,
    NonNumeric,
    describe_faults,
    non_numeric_fault,
    normalized,
    number_fault,
    pack_small,
    shape_non_numeric,
    shape_numbers,
    to_number,
)

NAN = float("nan")


def shape(recipe: Recipe, X: Any, y: Any = None, sample_weight: Any = None, *, learning: bool) -> Rows:
    """Check a request's rows against `recipe` and return them in the compact form of :class:`Rows`.

    Parameters
    ----------
    X : list of rows, each a list of values in column order or an object by column name
    y : list of n numbers (regressors) or labels (classifiers), or of n lists of them for estimators with several
        outputs; None for estimators that take no target
    sample_weight : list of n numbers of 0 or more, not all 0, or None
    learning : whether the rows have a target (partial_fit, score) or not (predict)

    Raises
    ------
    InvalidError
        With the row and column of each invalid value, at most 20.
    """
    numbers, categories = shape_columns(recipe, X)
    if categories:
        check_texts(recipe, categories)
    target = shape_target(recipe, y, len(X)) if learning else None
    return Rows(len(X), numbers, categories, target, shape_weights(recipe, sample_weight, len(X)))


def shape_columns(recipe: Recipe, X: Any) -> tuple[bytes, list[list[NonNumeric]]]:
    """Check `X` and return its number columns as float64 bytes, row by row, and its category and text columns.

    Raises
    ------
    InvalidError
        With the row and column of each invalid value, at most 20.
    """
    if recipe.takes_dicts:
        return _shape_dicts(recipe, X)
    return _shape_small(recipe, X) or _shape_many(recipe, X)


def pack_row(recipe: Recipe, row: Any) -> bytes | None:
    """Return a single row of a recipe that has number columns only, as :func:`shape` would; None if that must decide.

    The caller checks the width of a row by position.
    """
    if type(row) is dict:
        features = recipe.features
        if features is None or row.keys() != features.keys():
            return None
        row = [row[name] for name in features]
    return pack_small(row)


def _shape_dicts(recipe: Recipe, X: Any) -> tuple[bytes, list[list[NonNumeric]]]:
    """Return rows for an estimator that takes dicts: the text of free rows, or columns and then those that rows lack.

    The last list exists only if a row lacks a column. A column that a row has with the value null is not among them.
    """
    if recipe.features is None:
        return b"", [list(shape_free(X))]
    numbers, non_numeric = _shape_small(recipe, X) or _shape_many(recipe, X)
    lacking: list[NonNumeric] = [lacking_columns(recipe, row) for row in X]
    return numbers, [*non_numeric, lacking] if any(lacking) else non_numeric


def lacking_columns(recipe: Recipe, row: Any) -> str | None:
    """Return the positions of the recipe's columns that a row by name lacks, as JSON; None if it lacks none."""
    features = recipe.features or {}
    if not isinstance(row, dict) or len(row) == len(features):
        return None
    row = _with_recipe_names(row, recipe)
    return msgspec.json.encode([i for i, name in enumerate(features) if name not in row]).decode()


def _shape_many(recipe: Recipe, X: Any) -> tuple[bytes, list[list[NonNumeric]]]:
    if not isinstance(X, list) or not X:
        raise InvalidError("X must be a list of at least one row.")
    columns, layout = _columns(recipe, X), recipe.layout
    check_number_of_rows(layout, len(X))
    if recipe.features is None:
        numbers = [shape_numbers(column, index) for index, column in enumerate(columns)]
    else:
        numbers = [shape_numbers(columns[c.row_index], c.name, "column", c) for c in layout.numbers]
    non_numeric = [shape_non_numeric(columns[c.row_index], c) for c in layout.non_numeric]
    matrix = np.column_stack(numbers) if numbers else np.empty((len(X), 0))
    return matrix.astype(LITTLE_ENDIAN, copy=False).tobytes(), non_numeric


def check_number_of_rows(layout: Layout, n: int, numbers: int = 0) -> None:
    """Reject rows whose matrix would take more memory than a worker may use.

    With `numbers`, those of a row that is sent as a table or in parts, also reject rows that Redis cannot hold.

    Raises
    ------
    InvalidError, TooLargeError
        With the number of rows that one request may have.
    """
    check_bytes(n, 8 * n * numbers)
    if not layout.numbers_only and n > layout.rows_max:
        width, rows_max = layout.width, layout.rows_max
        raise InvalidError(f"{n} rows make a matrix of {width} columns: send at most {rows_max} rows at a time.")


def check_texts(recipe: Recipe, non_numeric: Sequence[Sequence[NonNumeric]], ngrams: int = 0, rows: int = 0) -> int:
    """Reject texts whose words a worker would count for longer than other requests may wait.

    Return the number of n-grams of the text columns, at most, together with the `ngrams` of the `rows` before: each
    character begins one of each length.

    Raises
    ------
    InvalidError
        With the number of rows that one request may have.
    """
    columns = [non_numeric[position] for position, _ in recipe.ngram_lengths]
    for texts in zip(*columns, strict=True):
        for text, (_, lengths) in zip(texts, recipe.ngram_lengths, strict=True):
            ngrams += lengths * len(text or "")
        if ngrams > NGRAMS_MAX:
            counted = f"The first {rows + 1} rows have" if rows else "The first row has"
            advice = f"send at most {rows} of these rows at a time" if rows else "send shorter texts"
            raise InvalidError(
                f"{counted} texts of {ngrams} n-grams (characters by lengths), more than {NGRAMS_MAX}: {advice}."
            )
        rows += 1
    return ngrams


def _shape_small(recipe: Recipe, X: Any) -> tuple[bytes, list[list[NonNumeric]]] | None:
    """Shape few values, all of them valid; None for many, or if one is invalid: :func:`_shape_many` reports it.

    Most requests have a single row, so this function decides what an ordinary request costs.
    """
    values = _values_small(recipe, X)
    if values is None:
        return None
    if recipe.features is None or recipe.layout.numbers_only:
        numbers = pack_small(values)
        return None if numbers is None else (numbers, [])
    return _pack_mixed(recipe.layout, values)


def _pack_mixed(layout: Layout, values: list[Any]) -> tuple[bytes, list[list[NonNumeric]]] | None:
    """Pack few values, row by row, of columns of any kind; None if one is invalid."""
    width, non_numeric = len(layout.columns), []
    for column in layout.non_numeric:
        column_values: Any = normalized(values[column.row_index :: width])
        if any(non_numeric_fault(value, column) for value in column_values):
            return None
        non_numeric.append(column_values)
    if layout.non_numeric:
        number_indexes = [column.row_index for column in layout.numbers]
        values = [values[start + i] for start in range(0, len(values), width) for i in number_indexes]
    missing: list[int] = []
    for column in layout.checked_numbers:
        for position in range(column.rows_index, len(values), len(layout.numbers)):
            value = values[position]
            if value is None and column.nullable:
                missing.append(position)
                values[position] = 0.0
            elif column.kind != "number":
                values[position] = number = to_number(value, column.kind)
                if number_fault(number, column.kind):
                    return None
    numbers = pack_small(values)
    if numbers is not None and missing:
        for position in missing:
            values[position] = NAN
        numbers = PACKERS[len(values)](*values)
    return None if numbers is None else (numbers, non_numeric)


def _values_small(recipe: Recipe, X: Any) -> list[Any] | None:
    """Return the values of few rows, row by row; None for many rows, or if a row is malformed."""
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
        elif type(row) is dict and features is not None and _lacks_nullable_only(row, recipe):
            values += [row.get(name) for name in features]
        else:
            return None
    return values


def _lacks_nullable_only(row: dict[str, Any], recipe: Recipe) -> bool:
    """Return whether a row by name has all columns of the recipe except nullable ones, and no others."""
    names = recipe.features.keys() if recipe.features is not None else set()
    return row.keys() <= names and names - row.keys() <= recipe.layout.nullable


def _columns(recipe: Recipe, X: list[Any]) -> list[Sequence[Any]]:
    """Return the columns of rows, in the recipe's order."""
    expected = None if recipe.features is None else list(recipe.features)
    if recipe.features and all(type(row) is dict and row.keys() == recipe.features.keys() for row in X):
        # Builds no list per row: the garbage collector would traverse each of them repeatedly.
        return [[row[name] for row in X] for name in recipe.features]
    first = next((row for row in X if isinstance(row, list) and row), [])
    width = len(first if expected is None else expected)
    faults: list[Fault] = []
    ordered: list[Sequence[Any]] = []
    for i, row in enumerate(X):
        values = _row_values(row, recipe, width)
        if values is not None:
            ordered.append(values)
            continue
        faults.extend(_row_faults(_with_recipe_names(row, recipe), i, expected, width, recipe.layout.nullable))
        if len(faults) >= FAULTS_MAX:
            break
    if faults:
        raise InvalidError(describe_faults(faults), faults[:FAULTS_MAX])
    return list(zip(*ordered, strict=True))


def _row_values(row: Any, recipe: Recipe, width: int) -> Sequence[Any] | None:
    """Return the values of a row in the recipe's order; None if it has other columns."""
    if isinstance(row, list):
        return row if len(row) == width > 0 else None
    features = recipe.features
    if not isinstance(row, dict) or features is None:
        return None
    if row.keys() != features.keys():
        row = _with_recipe_names(row, recipe)
    if row.keys() == features.keys() or _lacks_nullable_only(row, recipe):
        return [row.get(name) for name in features]
    return None


def _with_recipe_names(row: Any, recipe: Recipe) -> Any:
    """Return a row by name with each name that the recipe has in another Unicode form as the recipe has it.

    Where the row has one name in several forms it is returned unchanged, and they are reported as unknown.
    """
    if not isinstance(row, dict) or recipe.features is None or row.keys() <= recipe.features.keys():
        return row
    renamed = {recipe.known_name(name): value for name, value in row.items()}
    return renamed if len(renamed) == len(row) else row


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
