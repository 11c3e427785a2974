"""Scorers: the half of a bundle that predicts, as plain data.

::

    bundle ──▶ scorer_of ──▶ encode ──▶ gateway: decode ──▶ answer(recipe, rows) ──▶ JSON

Owns the answer to a prediction: the JSON text that a worker would send for the same rows, bit for bit, or None where
only a worker can answer. Never learns, never raises for rows, and never imports scikit-learn. Invariants: the
computations are the functions of this package, which bundles call too; a scorer does not change. Scorers come from
:mod:`keepfit.model.scorers` and :mod:`keepfit.scoring.encoding`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from keepfit.errors import KeepfitError
from keepfit.recipe.recipe import Recipe
from keepfit.rows.rows import Rows
from keepfit.rows.values import Floats, NonNumeric
from keepfit.scoring import category_codes, class_labels, linear, matrix, records, scalers
from keepfit.scoring.functions import is_finite
from keepfit.scoring.state import State, positions

# Numbers and labels of one answer; workers give larger ones.
ANSWER_VALUES_MAX = 1 << 16
# Memory of a scorer besides its arrays and labels, approximately: the objects that hold them.
FIXED_BYTES, LABEL_BYTES = 4096, 128
# Time of a probability, in multiplications and additions: Python computes each.
PROBABILITY_COST = 50

# Takes a record and a matrix.
Computation = Callable[[Any, Floats], Any]

SCALE: Mapping[type[Any], Computation] = {
    records.StandardScaler: scalers.standard,
    records.MinMaxScaler: scalers.min_max,
    records.MaxAbsScaler: scalers.max_abs,
}
PREDICT: Mapping[type[Any], Computation] = {
    records.LinearRegressor: linear.values,
    records.LinearClassifier: linear.label,
    records.InlierDetector: linear.inlier_label,
}
PROBABILITIES: Mapping[type[Any], Computation] = {
    records.LinearClassifier: linear.probabilities,
}


@dataclass(frozen=True, slots=True)
class Columns:
    """The learned columns of a scorer, as :mod:`keepfit.scoring.matrix` takes them."""

    scaler: Any
    labels: tuple[category_codes.Known, ...]
    mean_values: Floats | None
    rule: int
    room: int


class Scorer:
    """What answers predictions of one version of a model."""

    __slots__ = (
        "_columns",
        "_final",
        "_predict",
        "_probabilities",
        "_row_cost",
        "_steps",
        "_width",
        "size_bytes",
        "state",
    )

    def __init__(self, state: State, recipe: Recipe) -> None:
        """Prepare the answers of `state`, which was checked for `recipe`."""
        self.state = state
        self._final = state.final
        self._width = state.final.n_features_in_
        self._columns = Columns(
            state.scaler,
            tuple(map(positions, state.label_lists)),
            state.means,
            state.rule,
            category_codes.SIZE_MAX - sum(map(category_codes.size, state.label_lists)),
        )
        self._steps = [(SCALE[type(step)], step) for step in state.steps]
        self._predict = PREDICT[type(state.final)]
        self._probabilities = PROBABILITIES[type(state.final)] if state.final.has_probabilities else None
        self._row_cost = self._width + state.final.multiply_adds
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
        """Return the multiplications and additions of an answer, approximately."""
        return rows.n * (self._row_cost + (PROBABILITY_COST * sum(self._final.outputs) if proba else 0))

    def answer(self, recipe: Recipe, rows: Rows, *, proba: bool) -> bytes | None:
        """Return the JSON text that a worker would send for `rows`; None where only a worker can answer.

        A list of predictions; with `proba` an object with `predictions`, and `probabilities` and `classes`, or
        `scores`. A worker answers what is an error, what has numbers that are not finite, and large answers.
        """
        try:
            # Large numbers overflow; naive Bayes takes the logarithm of zero.
            with np.errstate(all="ignore"):
                return self._answer(recipe, rows, proba)
        except (KeepfitError, ArithmeticError, LookupError, MemoryError, TypeError, ValueError):
            return None

    def _answer(self, recipe: Recipe, rows: Rows, proba: bool) -> bytes | None:
        X = matrix.build(self._columns, recipe, rows, scale)
        for compute, step in self._steps:
            X = compute(step, X)
        if X.shape[1] != self._width or not is_finite(X):
            return None
        if proba:
            return self._confidences(X)
        if rows.n > ANSWER_VALUES_MAX:
            return None
        return _encode(self._named(self._predict(self._final, X)))

    def _named(self, predicted: Any) -> Any:
        """Return predictions as a list, codes as labels."""
        if not self.state.labels:
            return predicted.tolist()
        return class_labels.decode(self.state.labels[0], predicted)

    def _confidences(self, X: Floats) -> bytes | None:
        final = self._final
        if type(final) is records.InlierDetector:
            scores = linear.inlier_scores(final, X)
            return _encode({"predictions": self._predict(final, X).tolist(), "scores": scores.tolist()})
        if self._probabilities is None or len(X) * (1 + sum(final.outputs)) > ANSWER_VALUES_MAX:
            return None
        (known,) = self.state.labels
        predictions = class_labels.decode(known, self._predict(final, X))
        shares = class_labels.known_probabilities(known, self._probabilities(final, X))
        return _encode({"predictions": predictions, "probabilities": shares.tolist(), "classes": known})


def _size_bytes(state: State) -> int:
    labels: list[Sequence[NonNumeric]] = [*state.label_lists, *state.labels]
    return (
        FIXED_BYTES + state.array_bytes + sum(category_codes.size(known) + LABEL_BYTES * len(known) for known in labels)
    )


def scale(scaler: Any, X: Floats) -> Floats:
    """Return `X`, which is overwritten, as the record of a scaler scales it."""
    scaled: Floats = SCALE[type(scaler)](scaler, X)
    return scaled


_encode = msgspec.json.Encoder().encode
