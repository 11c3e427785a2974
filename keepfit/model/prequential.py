"""Prequential metrics: each batch is predicted before it is learned ("test, then train"), and its errors are added up.

Owns the sums behind the metrics, over all rows and over a sliding window of the last rows (Gama, Sebastião and
Rodrigues, 2013, "On evaluating stream learning algorithms"). Never changes the model. Invariants: sums do not depend on
how a sequence of rows was divided among processes; memory and time per batch do not depend on the number of earlier
rows. The state consists of plain lists, dicts and numbers, because it is pickled with every commit.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keepfit.recipe.catalogue import Kind
from keepfit.recipe.recipe import CLASSES_MAX, Label

# The window consists of this many parts; the oldest part is dropped as a whole.
PARTS = 10
# Each pair of true and predicted label is counted for this many labels; for labels beyond, only how often each was
# predicted correctly, missed, and predicted wrongly. A larger confusion matrix is too large to read.
CONFUSION_MAX = 32
EPSILON = float(np.finfo(np.float64).eps)
# Smaller probabilities count as this, as in scikit-learn's log_loss: 0 would make the loss of all rows infinite.
PROBABILITY_MIN = EPSILON
# A pair is stored as one number, which takes a fifth of the time of a tuple to pickle.
PAIR_STRIDE = CLASSES_MAX + 2
NO_LABEL = -1

Metrics = dict[str, Any]
# Regression: number of rows, sums of absolute errors, squared errors, targets and squared targets, both of the latter
# relative to the first target. Classification: number of rows, rows with probabilities, their log loss, counts of
# pairs.
Sums = list[Any]


@dataclass(slots=True)
class PrequentialScores:
    """Prequential sums of one output; `window` is the number of last rows that have metrics of their own."""

    window: int
    total: Sums = field(default_factory=list)
    parts: list[Sums] = field(default_factory=list)
    first: float = 0.0

    def update(self, kind: Kind, y: Any, predicted: Any, probabilities: Any = None) -> None:
        """Add one batch.

        Parameters
        ----------
        y, predicted : targets and predictions, shape (n,): numbers of a regressor, codes of a classifier's labels
        probabilities : shape (n, classes); None where the classifier gives none
        """
        rows = len(y)
        size = self.window // PARTS
        if not self.total:
            self.total = [0, 0.0, 0.0, 0.0, 0.0] if kind == "regressor" else [0, 0, 0.0, {}]
            self.parts = [_zeros_like(self.total)]
            self.first = float(y[0])
        if rows == 1:
            self._open_part(size)
            if kind == "regressor":
                one = self._number_sums_of_row(y[0], predicted[0])
            else:
                one = _label_sums_of_row(y, predicted, probabilities)
            for sums in (self.total, self.parts[-1]):
                _add(sums, one)
            return
        _add(self.total, self._sums(kind, y, predicted, probabilities))
        # Rows that would leave the window at once are only counted; parts still end where they end for single rows.
        start = 0
        while start < rows:
            self._open_part(size)
            stop = min(rows, start + size - self.parts[-1][0])
            if rows - stop < PARTS * size:
                part = slice(start, stop)
                of_part = None if probabilities is None else probabilities[part]
                _add(self.parts[-1], self._sums(kind, y[part], predicted[part], of_part))
            else:
                self.parts[-1][0] += stop - start
            start = stop

    def _open_part(self, size: int) -> None:
        """Begin another part if the last one has `size` rows."""
        if self.parts[-1][0] >= size:
            self.parts.append(_zeros_like(self.total))
            del self.parts[:-PARTS]

    def _sums(self, kind: Kind, y: Any, predicted: Any, probabilities: Any) -> Sums:
        """Return the sums of a batch."""
        if kind != "regressor":
            return _label_sums(y, predicted, probabilities)
        error, level = np.abs(y - predicted), y - self.first
        return [len(y), float(error.sum()), float(error @ error), float(level.sum()), float(level @ level)]

    def _number_sums_of_row(self, y: Any, predicted: Any) -> Sums:
        error, level = abs(float(y) - float(predicted)), float(y) - self.first
        return [1, error, error * error, level, level * level]

    @property
    def is_finite(self) -> bool:
        """Whether all sums are finite; a prediction with a huge error would make them infinite permanently."""
        return not self.total or math.isfinite(math.fsum(self.total[1:5] if len(self.total) > 4 else self.total[1:3]))

    def metrics(self, labels: Sequence[Label] | None = None) -> Metrics:
        """Return the metrics by scikit-learn's names over all rows, and over the last rows under ``window``.

        Empty before the first row. `labels` are a classifier's labels in order of their codes; with more than 32 of
        them there is no confusion matrix.
        """
        if not self.total:
            return {}
        recent = _zeros_like(self.total)
        for part in self.parts:
            _add(recent, part)
        return {**_metrics(self.total, labels), "window": _metrics(recent, labels)}


def combine_outputs(outputs: Sequence[PrequentialScores], labels: Sequence[Sequence[Label]] | None = None) -> Metrics:
    """Return the metrics of a model.

    They are those of its only output, or else the means over its outputs, with those of each under ``outputs``.
    """
    labels_by_output = labels or [()] * len(outputs)
    each = [scores.metrics(known) for scores, known in zip(outputs, labels_by_output, strict=False)]
    if len(each) < 2:
        return each[0] if each else {}
    return {**_means(each), "window": _means([metrics["window"] for metrics in each]), "outputs": each}


def _means(each: Sequence[Metrics]) -> Metrics:
    means: Metrics = {"rows": each[0]["rows"]}
    for name in each[0]:
        values = [value for metrics in each if isinstance(value := metrics.get(name), float)]
        if len(values) == len(each):
            means[name] = math.fsum(values) / len(values)
    return means


def _zeros_like(sums: Sums) -> Sums:
    return [{} if type(value) is dict else type(value)() for value in sums]


def _add(sums: Sums, more: Sums) -> None:
    for i, value in enumerate(more):
        if type(value) is dict:
            counts = sums[i]
            for pair, count in value.items():
                counts[pair] = counts.get(pair, 0) + count
        else:
            sums[i] += value


def _pair(truth: int, predicted: int) -> int:
    return (truth + 1) * PAIR_STRIDE + predicted + 1


def _label_sums_of_row(y: Any, predicted: Any, probabilities: Any) -> Sums:
    """Return the sums of a single row."""
    truth, label = int(y[0]), int(predicted[0])
    if probabilities is None:
        return [1, 0, 0.0, _pairs(truth, label, 1)]
    probability = float(probabilities[0, truth]) if truth < probabilities.shape[1] else 0.0
    # NaN, which naive Bayes gives after a single row, counts as the minimum.
    loss = -math.log(probability if probability > PROBABILITY_MIN else PROBABILITY_MIN)
    return [1, 1, loss, _pairs(truth, label, 1)]


def _label_sums(y: Any, predicted: Any, probabilities: Any) -> Sums:
    """Return the sums of a batch."""
    counts: dict[int, int] = {}
    distinct, occurrences = np.unique(np.stack([y, predicted]), axis=1, return_counts=True)
    for truth, label, count in zip(*distinct.tolist(), occurrences.tolist(), strict=True):
        for pair, n in _pairs(truth, label, count).items():
            counts[pair] = counts.get(pair, 0) + n
    if probabilities is None:
        return [len(y), 0, 0.0, counts]
    of_truth = np.zeros(len(y))
    learned = y < probabilities.shape[1]
    of_truth[learned] = probabilities[np.flatnonzero(learned), y[learned]]
    of_truth = np.where(of_truth > PROBABILITY_MIN, of_truth, PROBABILITY_MIN)
    return [len(y), len(y), float(-np.log(of_truth).sum()), counts]


def _pairs(truth: int, predicted: int, count: int) -> dict[int, int]:
    """Return the counts for `count` rows; a wrong prediction beyond the confusion matrix counts once per label."""
    if truth == predicted or max(truth, predicted) < CONFUSION_MAX:
        return {_pair(truth, predicted): count}
    return {_pair(truth, NO_LABEL): count, _pair(NO_LABEL, predicted): count}


def _metrics(sums: Sums, labels: Sequence[Label] | None) -> Metrics:
    rows = sums[0]
    if len(sums) == 4:
        return _label_metrics(sums, labels or ())
    _, absolute, squared, level, level_squared = sums
    # Rounding may make this negative if all targets are equal.
    spread = level_squared - level * level / rows
    return {
        "mean_absolute_error": absolute / rows,
        "root_mean_squared_error": math.sqrt(squared / rows),
        "r2": 1.0 - squared / spread if rows > 1 and spread > EPSILON * level_squared else None,
        "rows": rows,
    }


def _label_metrics(sums: Sums, labels: Sequence[Label]) -> Metrics:
    rows, scored, loss, pairs = sums
    correct: dict[int, int] = defaultdict(int)
    # Per label: rows that have it plus rows predicted as it.
    occurrences: dict[int, int] = defaultdict(int)
    for pair, count in pairs.items():
        truth, predicted = pair // PAIR_STRIDE - 1, pair % PAIR_STRIDE - 1
        if truth == predicted:
            correct[truth] += count
        occurrences[truth] += count
        occurrences[predicted] += count
    occurrences.pop(NO_LABEL, None)
    f1_by_label = [2 * correct[label] / count for label, count in occurrences.items()]
    metrics: Metrics = {"accuracy": sum(correct.values()) / rows, "f1": math.fsum(f1_by_label) / len(f1_by_label)}
    if scored:
        metrics["log_loss"] = loss / scored
    if 0 < len(labels) <= CONFUSION_MAX:
        codes = range(len(labels))
        counts = [[pairs.get(_pair(truth, predicted), 0) for predicted in codes] for truth in codes]
        metrics["confusion"] = {"classes": list(labels), "counts": counts}
    metrics["rows"] = rows
    return metrics
