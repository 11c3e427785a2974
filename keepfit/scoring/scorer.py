"""Scorers: the half of a bundle that predicts, as plain data.

::

    bundle ──▶ encode ──▶ gateway: decode ──▶ answer(recipe, rows) ──▶ JSON

Owns the answer to a prediction: the JSON text that a worker would send for the same rows, bit for bit, or None where
only a worker can answer. Never learns, never raises for rows, and never imports scikit-learn. Invariants: the
computations are the functions of this package, which bundles call too; a scorer does not change. Scorers come from
:mod:`keepfit.model.scorers` and :mod:`keepfit.scoring.encoding`.
"""

import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from keepfit.errors import KeepfitError
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.rows.values import LITTLE_ENDIAN, NUMBER_MAX, Floats, NonNumeric
from keepfit.scoring import category_codes, class_labels, computations, linear, matrix, scalers
from keepfit.scoring.class_labels import CLASSES_MIN
from keepfit.scoring.functions import is_finite
from keepfit.scoring.records import LOGISTIC_COST
from keepfit.scoring.scalers import Scaler
from keepfit.scoring.state import State, positions

# Numbers and labels of one answer; workers give larger ones.
ANSWER_VALUES_MAX = 1 << 16
# Memory of a scorer besides its arrays and labels, approximately: the objects that hold them.
FIXED_BYTES, LABEL_BYTES = 4096, 128
# Time in multiplications and additions, of which a microsecond has at least 160: of a call of numpy; and of what Python
# does one by one, a label of a category and a value of the answer.
CALL_COST, CATEGORY_COST, VALUE_COST = 160, 160, 20
# A product up to this, with the numbers of a request at their largest, cannot overflow.
PRODUCT_MAX = sys.float_info.max / 2
# A row of up to this many numbers is scaled value by value.
SHORT_MAX = 24
# Calls of numpy for a column that may be missing, and for a part of a timestamp.
NULLABLE_CALLS, PART_CALLS = 12, 8


@dataclass(frozen=True, slots=True)
class Columns:
    """The learned columns of a scorer, as :mod:`keepfit.scoring.matrix` takes them."""

    scaler: Any
    labels: tuple[category_codes.Known, ...]
    mean_values: Floats | None
    rule: int
    room: int


class Scorer:
    """What answers predictions of one version of a model.

    Of some models `answer_row` is a function that answers a single row of numbers, given as `row_bytes` bytes of
    little-endian float64, with the text that :meth:`answer` returns; `row_bytes` is 0 for all others.
    """

    __slots__ = (
        "_columns",
        "_fixed_cost",
        "_multi_output",
        "_predict",
        "_row_cost",
        "_width",
        "answer_row",
        "row_bytes",
        "size_bytes",
        "state",
    )

    def __init__(self, state: State, recipe: Recipe) -> None:
        """Prepare the answers of `state`, which was checked for `recipe`."""
        self.state = state
        self._width = state.final.n_features_in_
        self._columns = Columns(
            state.scaler,
            tuple(map(positions, state.label_lists)),
            state.means,
            state.rule,
            category_codes.SIZE_MAX - sum(map(category_codes.size, state.label_lists)),
        )
        self._multi_output = recipe.entry.multi_output
        self._predict = computations.PREDICT[type(state.final)]
        layout, final = recipe.layout, state.final
        parts = len(layout.number_places) if layout.has_expanded else 0
        calls = final.calls + NULLABLE_CALLS * layout.has_nullable_numbers + PART_CALLS * parts
        self._fixed_cost = CALL_COST * calls
        self._row_cost = (
            4 * self._width + final.row_cost + CATEGORY_COST * len(recipe.categories) + VALUE_COST * len(final.outputs)
        )
        self.answer_row = _row_answer(state, recipe)
        self.row_bytes = 8 * self._width if self.answer_row is not None else 0
        self.size_bytes = _size_bytes(state)

    @property
    def generation(self) -> int:
        """The generation of the model."""
        return self.state.generation

    @property
    def version(self) -> int:
        """The version of the model."""
        return self.state.version

    @property
    def rows_seen(self) -> int:
        """The number of rows that this version has learned."""
        return self.state.rows_seen

    def cost(self, rows: Rows, *, proba: bool) -> int:
        """Return how long an answer takes, in multiplications and additions, approximately."""
        cost = self._fixed_cost + rows.n * self._row_cost
        return cost if not proba else 2 * cost + rows.n * LOGISTIC_COST * sum(self.state.final.outputs)

    def answer(self, recipe: Recipe, rows: Rows, *, proba: bool) -> bytes | None:
        """Return the JSON text that a worker would send for `rows`; None where only a worker can answer.

        A list of predictions; with `proba` an object with `predictions`, and `probabilities` and `classes`, or
        `scores`. A worker answers what is an error, what has numbers that are not finite, and large answers.
        """
        if self.answer_row is not None and rows.n == 1 and not proba and len(rows.numbers) == self.row_bytes:
            return self.answer_row(rows.numbers)
        try:
            # Large numbers overflow; naive Bayes takes the logarithm of zero.
            with np.errstate(all="ignore"):
                return self._answer(recipe, rows, proba)
        except (KeepfitError, ArithmeticError, LookupError, MemoryError, TypeError, ValueError):
            return None

    def _answer(self, recipe: Recipe, rows: Rows, proba: bool) -> bytes | None:
        final = self.state.final
        X = matrix.build(self._columns, recipe, rows, computations.scale)
        for step in self.state.steps:
            X = computations.scale(step, X)
        if X.shape[1] != self._width or not is_finite(X) or rows.n * self._row_values(proba) > ANSWER_VALUES_MAX:
            return None
        if proba and not (final.has_probabilities or type(final) is linear.InlierDetector):
            return None
        predicted = self._predict(final, X)
        if predicted is None:
            return None
        predictions = self._named(predicted)
        if not proba:
            return _encode(predictions)
        if type(final) is linear.InlierDetector:
            return _encode({"predictions": predictions, "scores": linear.inlier_scores(final, X).tolist()})
        return _encode({"predictions": predictions, **self._probabilities(X)})

    def _row_values(self, proba: bool) -> int:
        """Return the number of values of the answer for each row."""
        outputs = self.state.final.outputs
        return len(outputs) + (sum(outputs) if proba else 0)

    def _named(self, predicted: Any) -> Any:
        """Return predictions as a list, codes as labels."""
        if not self.state.labels:
            return predicted.tolist()
        if not self._multi_output:
            return class_labels.decode(self.state.labels[0], predicted)
        return class_labels.decode_outputs(self.state.labels, predicted)

    def _probabilities(self, X: Floats) -> dict[str, Any]:
        """Return the probabilities of the known labels, and the labels."""
        each, shares = self.state.labels, computations.probabilities(self.state.final, X)
        if not self._multi_output:
            return {"probabilities": class_labels.known_probabilities(each[0], shares).tolist(), "classes": each[0]}
        known = [class_labels.known_probabilities(*pair) for pair in zip(each, shares, strict=True)]
        return {"probabilities": class_labels.by_row(known), "classes": each}


def _row_answer(state: State, recipe: Recipe) -> Callable[[bytes], bytes] | None:
    """Return what answers a single row of numbers with few calls of numpy; None for other models.

    In a gateway, which does other things between two rows, each call takes several microseconds, and so does ignoring
    overflows, of which there are none here. The matrix product of a row and a column is numpy's dot product too, and
    the sum of two numbers is one.
    """
    final: Any = state.final
    is_binary = type(final) is linear.LinearClassifier and len(final.coef_) == 1 and len(state.labels[0]) == CLASSES_MIN
    if (
        not recipe.layout.numbers_only
        or state.steps
        or recipe.entry.multi_output
        or not (is_binary or type(final) is linear.LinearRegressor)
    ):
        return None
    weights, bias, width = final.coef_.ravel(), float(final.intercept_[0]), final.n_features_in_
    scaler = state.scaler
    with np.errstate(all="ignore"):
        if not float(np.abs(weights) @ _largest(scaler, width)) <= PRODUCT_MAX:
            return None
    labels = [_encode([state.labels[0][code]]) for code in final.classes_.tolist()] if is_binary else None
    scale = None if scaler is None else _row_scaler(scaler, width)

    def answer(numbers: bytes) -> bytes:
        row: Any = np.frombuffer(numbers if scale is None else scale(numbers), LITTLE_ENDIAN)
        score = row.dot(weights).item() + bias
        return _encode((score,)) if labels is None else labels[score > 0]

    return answer


def _row_scaler(scaler: Scaler, width: int) -> Callable[[bytes], bytes | Floats]:
    """Return what scales a row of float64: value by value if it is short, and else with numpy."""
    if width > SHORT_MAX:
        return lambda numbers: computations.scale(scaler, np.frombuffer(bytearray(numbers), LITTLE_ENDIAN))
    form, scale = struct.Struct(f"<{width}d"), scalers.row_function(scaler)
    pack, unpack = form.pack, form.unpack
    return lambda numbers: pack(*scale(unpack(numbers)))


def _largest(scaler: Any, width: int) -> Floats:
    """Return the largest magnitude that each number of a request has after scaling, shape (width,).

    It is at one of the ends, because scaling is linear; infinite where an intermediate result may overflow.
    """
    ends: Floats = np.full((2, width), NUMBER_MAX)
    ends[0] = -NUMBER_MAX
    if scaler is None:
        return np.full(width, NUMBER_MAX)
    if getattr(scaler, "clip", False):
        # Clipping hides an overflow before it.
        return np.full(width, np.inf)
    largest: Floats = np.abs(computations.scale(scaler, ends)).max(axis=0)
    return largest


def _size_bytes(state: State) -> int:
    labels: list[Sequence[NonNumeric]] = [*state.label_lists, *state.labels]
    return (
        FIXED_BYTES + state.array_bytes + sum(category_codes.size(known) + LABEL_BYTES * len(known) for known in labels)
    )


_encode = msgspec.json.Encoder().encode
