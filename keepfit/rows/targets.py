"""Targets and sample weights of a request's rows, checked against a recipe.

Owns the check of `y` and `sample_weight`, for one output or several. Never knows what the model has learned. Invariant:
what these functions return can be learned, as far as that can be checked without the model. Several outputs are
returned as one flat list, row by row.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from keepfit.errors import Fault, InvalidError
from keepfit.recipe.recipe import Label, Recipe, label_fault
from keepfit.rows.free_rows import shape_free_targets
from keepfit.rows.values import (
    FAULTS_MAX,
    LITTLE_ENDIAN,
    OUTPUTS_MAX,
    Floats,
    class_fault,
    describe_faults,
    format_value,
    normalized,
    pack_small,
    shape_numbers,
)


def shape_target(recipe: Recipe, y: Any, n: int) -> bytes | list[Label] | None:
    """Check `y` of `n` rows and return it as float64 bytes or labels; None for estimators that take no target.

    Raises
    ------
    InvalidError
        With the row of each invalid value, or with the expected length.
    """
    if not recipe.entry.takes_y:
        if y is not None:
            raise InvalidError(f"{recipe.name} takes no y: leave it out.")
        return None
    if not isinstance(y, list):
        raise InvalidError(f"y must be a list of {n} values, one per row of X.")
    if len(y) != n:
        raise InvalidError(f"X has {n} rows and y has {len(y)} values; the numbers must be equal.")
    entry, classes = recipe.entry, recipe.classes
    if entry.multi_output and recipe.takes_dicts:
        return list[Label](shape_free_targets(y, labelled=entry.target == "labels"))
    if entry.multi_output:
        classes_by_output: Any = classes or ()
        return flatten_outputs(y, len(classes_by_output) or None, lambda column, i: _shape_output(recipe, column, i))
    if entry.target == "numbers":
        return pack_small(y) or shape_numbers(y, "y", "target").astype(LITTLE_ENDIAN).tobytes()
    return shape_classes(classes, y)


def _shape_output(recipe: Recipe, column: Sequence[Any], output: int) -> bytes | list[Label]:
    if recipe.entry.target == "numbers":
        return shape_numbers(column, f"y[{output}]", "target").astype(LITTLE_ENDIAN).tobytes()
    classes_by_output: Any = recipe.classes
    return shape_classes(classes_by_output and classes_by_output[output], column, f"y[{output}]")


def flatten_outputs(
    y: Sequence[Any], n_outputs: int | None, shape_column: Callable[[Sequence[Any], int], Any]
) -> bytes | list[Label]:
    """Check a target of lists, one per row, and return it flat, row by row.

    Parameters
    ----------
    n_outputs : number of outputs that the recipe names; None where the first row defines it
    shape_column : checks the column of one output, and returns its numbers as bytes or its labels

    Raises
    ------
    InvalidError
        With the row that is not a list or has another length.
    """
    count = n_outputs or next((len(row) for row in y if isinstance(row, list)), 0)
    invalid = next((i for i, row in enumerate(y) if not isinstance(row, list) or len(row) != count or not row), None)
    if invalid is not None:
        row = y[invalid]
        if isinstance(row, list):
            detail = f"the row has {len(row)} values where {count or 'one or more'} are expected"
        else:
            detail = "the row is not a list of values, one for each output"
        raise InvalidError(f"y: {detail} (row {invalid}).", [Fault(detail, invalid, "y")])
    if count > OUTPUTS_MAX:
        raise InvalidError(f"y has {count} values in each row, more than {OUTPUTS_MAX}.")
    columns = [shape_column([row[i] for row in y], i) for i in range(count)]
    if isinstance(columns[0], bytes):
        return np.column_stack([np.frombuffer(column) for column in columns]).tobytes()
    return list(chain.from_iterable(zip(*columns, strict=True)))


def shape_classes(classes: Sequence[Any] | None, y: Sequence[Any], name: str = "y") -> list[Label]:
    """Check a classifier's target and return its labels.

    Labels are strings, integers or booleans; where the recipe names classes, all are of the type of those.

    Raises
    ------
    InvalidError
        With the row of each invalid label, at most 20.
    """
    y = normalized(y)
    allowed_types = {type(classes[0])} if classes else {str, int, bool}
    if set(map(type, y)) <= allowed_types and not any(map(label_fault, y)):
        return list(y)
    faults = [Fault(detail, i, name) for i, value in enumerate(y) if (detail := class_fault(value, allowed_types))]
    raise InvalidError(describe_faults(faults, "target"), faults[:FAULTS_MAX])


def shape_weights(recipe: Recipe, sample_weight: Any, n: int) -> bytes | None:
    """Check `sample_weight` of `n` rows and return it as float64 bytes; None where there is none.

    Raises
    ------
    InvalidError
        If the estimator takes no weights, or with the row of each invalid weight.
    """
    if sample_weight is None:
        return None
    if not recipe.entry.takes_sample_weight:
        raise InvalidError(f"{recipe.name} takes no sample_weight.")
    if not isinstance(sample_weight, list) or len(sample_weight) != n:
        raise InvalidError(f"sample_weight must be a list of {n} numbers, one per row of X.")
    packed = pack_small(sample_weight)
    if packed is not None and min(sample_weight) >= 0 < max(sample_weight):
        return packed
    values = shape_numbers(sample_weight, "sample_weight", "weights")
    return check_weights(values, sample_weight)


def check_weights(values: Floats, original: Sequence[Any]) -> bytes:
    """Return weights, shape (n,), as bytes; `original` holds the values as they were sent, for the error message.

    Raises
    ------
    InvalidError
        If a weight is negative, or all are 0.
    """
    if (values < 0).any():
        row = int(np.argmax(values < 0))
        faults = [Fault(f"{format_value(original[row])} is negative", row, "sample_weight")]
        raise InvalidError(describe_faults(faults, "weights"), faults)
    if not values.any():
        raise InvalidError("sample_weight is 0 for every row: at least one weight must be greater than 0.")
    return values.astype(LITTLE_ENDIAN, copy=False).tobytes()
