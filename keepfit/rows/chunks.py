"""Rows of a large request, shaped in parts while they are decoded.

Owns the check that all parts of one request agree. Never keeps the lists that it gets. Invariant: the parts give the
same rows as one call of :func:`keepfit.rows.shaping.shape` for all of them; of invalid rows, the error lists only those
of the first part that has some.
"""

from typing import Any, cast

from keepfit.errors import Fault, InvalidError
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import check_number_of_rows, check_texts, shape_columns
from keepfit.rows.targets import shape_target, shape_weights
from keepfit.rows.values import NonNumeric, describe_faults


class Collector:
    """Rows of one request, part by part."""

    def __init__(self, recipe: Recipe, *, learning: bool) -> None:
        self._recipe = recipe
        self._targets = int(learning and recipe.entry.takes_y)
        self._n = self._ngrams = 0
        self._width: int | None = None
        self._numbers = bytearray()
        # Rows as dicts have one list more, see shape_columns.
        self._non_numeric: list[list[NonNumeric]] = [
            [] for _ in (*recipe.layout.non_numeric, *[0] * recipe.takes_dicts)
        ]
        # Equal labels share one object: labels are few and rows are many. Texts are mostly distinct.
        self._interned: list[dict[NonNumeric, NonNumeric] | None] = [
            {} if column.kind == "category" else None for column in recipe.layout.non_numeric
        ]
        self._interned += [None] * recipe.takes_dicts

    def add(self, X: list[Any]) -> None:
        """Add the next rows, in the form that :func:`keepfit.rows.shaping.shape` takes.

        Raises
        ------
        InvalidError
            With the row (counted from the first of the request) and the column of each invalid value.
        """
        try:
            numbers, non_numeric = shape_columns(self._recipe, X)
        except InvalidError as error:
            faults = [Fault(f.detail, self._n + (f.row or 0), f.column) for f in error.faults]
            raise InvalidError(describe_faults(faults) if faults else str(error), faults) from None
        self._ngrams = check_texts(self._recipe, non_numeric, self._ngrams, self._n)
        width = len(numbers) // (8 * len(X))
        check_number_of_rows(self._recipe.layout, self._n + len(X), width + self._targets)
        if self._width not in (None, width):
            faults = [Fault(f"the row has {width} values where {self._width} are expected", self._n)]
            raise InvalidError(describe_faults(faults), faults)
        self._width = width
        self._n += len(X)
        self._numbers += numbers
        if len(non_numeric) < len(self._non_numeric):
            non_numeric = [*non_numeric, [None] * len(X)]
        for column, interned, values in zip(self._non_numeric, self._interned, non_numeric, strict=True):
            column.extend(values if interned is None else map(interned.setdefault, values, values))

    def rows(self, y: Any, sample_weight: Any, *, learning: bool) -> Rows:
        """Return all rows with their target and weights.

        Raises
        ------
        InvalidError
            If target or weights are invalid.
        """
        target = shape_target(self._recipe, y, self._n) if learning else None
        weights = shape_weights(self._recipe, sample_weight, self._n)
        has_all = self._recipe.takes_dicts and not any(self._non_numeric[-1])
        non_numeric = self._non_numeric[:-1] if has_all else self._non_numeric
        return Rows(self._n, cast("bytes", self._numbers), non_numeric, target, weights)
