"""A large request's rows, shaped part by part as they are decoded.

Owns what the parts must have in common. Never keeps the lists it is given. Invariant: parts give the same rows as all
of them in one call of :func:`keepfit.rows.shaping.shape`; of wrong rows only those of the first part that has some are
named.
"""

from typing import Any, cast

from keepfit.errors import Fault, InvalidError
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.rows.shaping import check_number_of_rows, shape_columns
from keepfit.rows.targets import shape_target, shape_weights
from keepfit.rows.values import Word, summary


class Collector:
    """Rows of one request so far."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._n = 0
        self._width: int | None = None
        self._numbers = bytearray()
        self._words: list[list[Word]] = [[] for _ in recipe.layout.words]
        # Equal labels become one object: there are few, and many rows. Texts are mostly all different.
        self._known: list[dict[Word, Word] | None] = [
            {} if column.kind == "category" else None for column in recipe.layout.words
        ]

    def add(self, X: list[Any]) -> None:
        """Take in some more rows, as :func:`keepfit.rows.shaping.shape` takes them.

        Raises
        ------
        InvalidError
            With row (from the request's first) and column of what is wrong.
        """
        try:
            numbers, words = shape_columns(self._recipe, X)
        except InvalidError as error:
            faults = [Fault(f.detail, self._n + (f.row or 0), f.column) for f in error.faults]
            raise InvalidError(summary(faults) if faults else str(error), faults) from None
        check_number_of_rows(self._recipe.layout, self._n + len(X))
        width = len(numbers) // (8 * len(X))
        if self._width not in (None, width):
            wrong = [Fault(f"the row has {width} values where {self._width} are expected", self._n)]
            raise InvalidError(summary(wrong), wrong)
        self._width = width
        self._n += len(X)
        self._numbers += numbers
        for column, known, values in zip(self._words, self._known, words, strict=True):
            column.extend(values if known is None else map(known.setdefault, values, values))

    def rows(self, y: Any, sample_weight: Any, *, learning: bool) -> Rows:
        """Return all rows with their target and weights."""
        target = shape_target(self._recipe, y, self._n) if learning else None
        weights = shape_weights(self._recipe, sample_weight, self._n)
        return Rows(self._n, cast("bytes", self._numbers), self._words, target, weights)
