"""Targets and sample weights of a request's rows, checked against a recipe.

Owns the check of `y` and `sample_weight`, of one output or of several. Never knows what was learned. Invariant: what
these functions return can be learned, as far as that can be known without the model. Several outputs become one flat
list, row by row.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from keepfit.errors import Fault, InvalidError
from keepfit.recipe.recipe import Label, Recipe, label_fault
from keepfit.rows.values import FAULTS_MAX, LITTLE_ENDIAN, Floats, packed, shape_numbers, shown, summary

OUTPUTS_MAX = 1000


def shape_target(recipe: Recipe, y: Any, n: int) -> bytes | list[Label] | None:
    """`y` of `n` rows as bytes or labels, checked; None for estimators that take none."""
    if not recipe.entry.takes_y:
        if y is not None:
            raise InvalidError(f"{recipe.name} takes no y: leave it out.")
        return None
    if not isinstance(y, list):
        raise InvalidError(f"y must be a list of {n} values, one per row of X.")
    if len(y) != n:
        raise InvalidError(f"X has {n} rows and y has {len(y)} values; they must be as many.")
    entry, classes = recipe.entry, recipe.classes
    if entry.many:
        named: Any = classes or ()
        return flattened(y, len(named) or None, lambda column, i: _shape_output(recipe, column, i))
    if entry.target == "numbers":
        return packed(y) or shape_numbers(y, "y", "target").astype(LITTLE_ENDIAN).tobytes()
    return shape_classes(classes, y)


def _shape_output(recipe: Recipe, column: Sequence[Any], output: int) -> bytes | list[Label]:
    if recipe.entry.target == "numbers":
        return shape_numbers(column, f"y[{output}]", "target").astype(LITTLE_ENDIAN).tobytes()
    named: Any = recipe.classes
    return shape_classes(named and named[output], column, f"y[{output}]")


def flattened(y: Sequence[Any], named: int | None, shaped: Callable[[Sequence[Any], int], Any]) -> bytes | list[Label]:
    """Check a target of lists, one for each row, and return it flat, row by row.

    `named` is how many outputs the recipe names; `shaped` checks the column of one and returns its numbers as bytes, or
    its labels.

    Raises
    ------
    InvalidError
        With the row that is no list or has another length.
    """
    count = named or next((len(row) for row in y if isinstance(row, list)), 0)
    wrong = next((i for i, row in enumerate(y) if not isinstance(row, list) or len(row) != count or not row), None)
    if wrong is not None:
        row = y[wrong]
        found = f"has {len(row)} values where {count or 'one or more'} are expected"
        detail = found if isinstance(row, list) else "is not a list of values, one for each output"
        raise InvalidError(f"y: the row {detail} (row {wrong}).", [Fault(f"the row {detail}", wrong, "y")])
    if count > OUTPUTS_MAX:
        raise InvalidError(f"y has {count} values in each row, more than {OUTPUTS_MAX}.")
    columns = [shaped([row[i] for row in y], i) for i in range(count)]
    if isinstance(columns[0], bytes):
        return np.column_stack([np.frombuffer(column) for column in columns]).tobytes()
    return list(chain.from_iterable(zip(*columns, strict=True)))


def shape_classes(classes: Sequence[Any] | None, y: Sequence[Any], name: str = "y") -> list[Label]:
    """Labels of a classifier's target, checked: strings, integers or booleans, all as the recipe's classes if named."""
    kinds = set(map(type, y))
    wanted = {type(classes[0])} if classes else {str, int, bool}
    if kinds <= wanted and not any(map(label_fault, y)):
        return list(y)
    faults = [Fault(wrong, i, name) for i, value in enumerate(y) if (wrong := _class_fault(value, wanted))]
    raise InvalidError(summary(faults, "target"), faults[:FAULTS_MAX])


def _class_fault(value: Any, wanted: set[type]) -> str | None:
    if type(value) not in (str, int, bool):
        return f"{shown(value)} is not a label: send a string, an integer or a boolean"
    if type(value) not in wanted:
        return f"{shown(value)} is not one of the recipe's classes, nor of their kind"
    return label_fault(value)


def shape_weights(recipe: Recipe, sample_weight: Any, n: int) -> bytes | None:
    """`sample_weight` of `n` rows as bytes, checked; None where there is none."""
    if sample_weight is None:
        return None
    if not recipe.entry.takes_sample_weight:
        raise InvalidError(f"{recipe.name} takes no sample_weight.")
    if not isinstance(sample_weight, list) or len(sample_weight) != n:
        raise InvalidError(f"sample_weight must be a list of {n} numbers, one per row of X.")
    small = packed(sample_weight)
    if small is not None and min(sample_weight) >= 0 < max(sample_weight):
        return small
    values = shape_numbers(sample_weight, "sample_weight", "weights")
    return check_weights(values, sample_weight)


def check_weights(values: Floats, given: Sequence[Any]) -> bytes:
    """Weights as bytes, if all are 0 or more and not all 0; `given` is what they were made of, for the message."""
    if (values < 0).any():
        row = int(np.argmax(values < 0))
        faults = [Fault(f"{shown(given[row])} is negative", row, "sample_weight")]
        raise InvalidError(summary(faults, "weights"), faults)
    if not values.any():
        raise InvalidError("sample_weight is 0 for every row: at least one must be more.")
    return values.astype(LITTLE_ENDIAN, copy=False).tobytes()
