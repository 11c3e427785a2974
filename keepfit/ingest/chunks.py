"""Chunks of a source: consecutive rows that one request is made of, checked against the model's recipe.

Owns the division into chunks, and which rows of a chunk are left out. Never counts or stores. Invariant: chunk `k` has
the rows from ``k * rows_per_call`` on, whatever was read before in one go; its valid rows are shaped as they would be
in a request of their own over HTTP, and are the same however often the chunk is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from keepfit.errors import InvalidError
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.store.pull_jobs import Skipped

Indices = NDArray[np.intp]


class Batch(Protocol):
    """Consecutive rows of a source, as their reader has them."""

    @property
    def n(self) -> int:
        """Number of rows."""

    def shape(self, recipe: Recipe, rows: Indices | None) -> Rows:
        """Return the rows, or those with the numbers `rows`, checked against `recipe` as rows to learn.

        Raises
        ------
        InvalidError
            With the rows that are invalid, counted among those that are shaped.
        """


class Reader(Protocol):
    """A source as rows."""

    total: int | None
    names: list[str]

    def batches(self, count: int, skip: int) -> Iterator[Batch]:
        """Yield the rows from number `skip` on, `count` at a time; the last ones are fewer."""

    @property
    def malformed(self) -> tuple[int, list[str]]:
        """The number of lines so far that are no rows, and the first of them."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The rows of a batch that fit, None if none does; and the others, at most as many as may be skipped and one."""

    rows: Rows | None
    skipped: list[Skipped]


def shape_valid(batch: Batch, recipe: Recipe, first: int, skip_max: int) -> Chunk:
    """Return the valid rows of a batch whose first row has the number `first` in its source.

    Stops once more than `skip_max` rows are invalid.

    Raises
    ------
    InvalidError
        If it is not single rows that are invalid: a column has another type, or the rows are too many.
    """
    kept: Indices | None = None
    skipped: list[Skipped] = []
    while True:
        try:
            return Chunk(batch.shape(recipe, kept), _in_order(skipped))
        except InvalidError as error:
            wrong = {fault.row: fault for fault in reversed(error.faults) if fault.row is not None}
            if not wrong:
                raise
        numbers = np.arange(batch.n) if kept is None else kept
        for row, fault in sorted(wrong.items()):
            column = "" if fault.column is None else f"column {fault.column!r}: "
            skipped.append(Skipped(first + int(numbers[row]), f"{column}{fault.detail}"))
        kept = np.delete(numbers, sorted(wrong))
        if len(kept) == 0 or len(skipped) > skip_max:
            return Chunk(None, _in_order(skipped))


def _in_order(skipped: list[Skipped]) -> list[Skipped]:
    return sorted(skipped, key=lambda one: one.row or 0)
