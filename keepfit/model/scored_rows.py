"""The last scored rows of a regressor: the target of each, and the prediction that was scored.

Owns how many are kept, and their form in the bundle. Never computes a metric: :mod:`keepfit.model.prequential` scores
rows, and adds them here. Invariants: the rows depend on what was scored only, not on how it was divided into calls;
memory does not depend on the number of rows. The bundle holds them, so they are those of its version, whatever happens
to the model.
"""

from array import array
from typing import Any, Self

import numpy as np

from keepfit.model import single_precision

ROWS_MAX = 200
# Outputs of which rows are kept: with all of them, the bundle of a model with many outputs would be several times as
# large.
OUTPUTS_MAX = 8
# Single precision, as the metrics of the learning curve: each commit writes these bytes.
TYPE = single_precision.TYPE
# Numbers that are kept, and numbers with which the older ones are dropped.
KEPT, HELD_MAX = 2 * ROWS_MAX, 4 * ROWS_MAX


class ScoredRows:
    """The last scored rows of one output; with `rows_max` 0 it keeps none."""

    __slots__ = ("_numbers", "_rows_max")

    def __init__(self, rows_max: int = ROWS_MAX, stored: bytes = b"") -> None:
        self._rows_max = rows_max
        # Target, prediction, target, prediction, …
        self._numbers: array[float] = array(TYPE, stored)

    @classmethod
    def of_output(cls, position: int, stored: bytes = b"") -> Self:
        """Return those of the output at this position, with the bytes that :meth:`stored` returned."""
        return cls(ROWS_MAX if position < OUTPUTS_MAX else 0, stored)

    def add(self, target: float, predicted: float) -> None:
        """Add a row."""
        if self._rows_max:
            numbers = self._numbers
            numbers.append(target)
            numbers.append(predicted)
            if len(numbers) > HELD_MAX:
                del numbers[:-KEPT]

    def extend(self, y: Any, predicted: Any) -> None:
        """Add rows, shape (n,) each."""
        if self._rows_max:
            pairs = np.column_stack((y[-ROWS_MAX:], predicted[-ROWS_MAX:]))
            with np.errstate(over="ignore"):
                self._numbers.frombytes(pairs.astype(TYPE).tobytes())
            del self._numbers[:-KEPT]

    def stored(self) -> bytes:
        """Return the rows as bytes, for the pickle of the bundle."""
        return self._numbers[-KEPT:].tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScoredRows) and self.stored() == other.stored()

    __hash__ = None  # type: ignore[assignment]

    def columns(self) -> tuple[list[float | None], list[float | None]]:
        """Return targets and predictions, oldest first, with the digits of single precision; None beyond its range."""
        pairs = np.frombuffer(self.stored(), TYPE).reshape(-1, 2)
        truth, prediction = single_precision.as_lists(pairs.T)
        return truth, prediction
