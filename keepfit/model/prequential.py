"""Running evaluation: each batch is predicted before it is learned, and the error noted (test, then train).

Owns the sums behind the metrics, over all rows and over a sliding window of the last ones (Gama, Sebastião and
Rodrigues, 2013, "On evaluating stream learning algorithms"). Never changes the model. Invariants: sums do not depend on
how a run was cut into processes; memory and time of a batch do not depend on how many rows came before. What is kept is
plain lists, dicts and numbers, because it is pickled with every commit.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keepfit.recipe.catalogue import Kind
from keepfit.recipe.recipe import CLASSES_MAX, Label

# The window is so many parts, of which the oldest is let go as a whole.
PARTS = 10
# Pairs of true and predicted label are counted one by one for so many labels; of all others, only how often each was
# right, missed, and wrongly predicted. The confusion of more labels is nothing that anybody reads.
CONFUSION_MAX = 32
# Never taken for zero: the loss of one row would be infinite, and with it that of all (scikit-learn's log_loss).
CHANCE_MIN = float(np.finfo(np.float64).eps)
# A pair as one number: pickled in a fifth of the time of a tuple.
STRIDE = CLASSES_MAX + 2
NOBODY = -1

Values = dict[str, Any]
# Of numbers: rows, absolute and squared errors, targets and their squares, both from the first target on.
# Of labels: rows, rows with probabilities, their log loss, and the counts of pairs.
Sums = list[Any]


@dataclass(slots=True)
class PrequentialScores:
    """Evaluation of one output; `window` is the number of last rows that are told of apart."""

    window: int
    total: Sums = field(default_factory=list)
    parts: list[Sums] = field(default_factory=list)
    first: float = 0.0

    def update(self, kind: Kind, y: Any, predicted: Any, chances: Any = None) -> None:
        """Take in one batch.

        Parameters
        ----------
        y, predicted : targets and predictions, shape (n,): numbers of a regressor, codes of a classifier's labels
        chances : probabilities, shape (n, classes), where the classifier gives them
        """
        rows = len(y)
        size = self.window // PARTS
        if not self.total:
            self.total = [0, 0.0, 0.0, 0.0, 0.0] if kind == "regressor" else [0, 0, 0.0, {}]
            self.parts = [_nothing(self.total)]
            self.first = float(y[0])
        if rows == 1:
            self._open(size)
            one = self._number(y[0], predicted[0]) if kind == "regressor" else _label(y, predicted, chances)
            for sums in (self.total, self.parts[-1]):
                _add(sums, one)
            return
        _add(self.total, self._sums(kind, y, predicted, chances))
        # What would leave the window at once need not enter it; the cuts are those of single rows all the same.
        start = 0
        while start < rows:
            self._open(size)
            stop = min(rows, start + size - self.parts[-1][0])
            if rows - stop < PARTS * size:
                part = slice(start, stop)
                of_part = None if chances is None else chances[part]
                _add(self.parts[-1], self._sums(kind, y[part], predicted[part], of_part))
            else:
                self.parts[-1][0] += stop - start
            start = stop

    def _open(self, size: int) -> None:
        """Begin another part where the last one is full."""
        if self.parts[-1][0] >= size:
            self.parts.append(_nothing(self.total))
            del self.parts[:-PARTS]

    def _sums(self, kind: Kind, y: Any, predicted: Any, chances: Any) -> Sums:
        if kind != "regressor":
            return _labels(y, predicted, chances)
        off, level = np.abs(y - predicted), y - self.first
        return [len(y), float(off.sum()), float(off @ off), float(level.sum()), float(level @ level)]

    def _number(self, y: Any, predicted: Any) -> Sums:
        off, level = abs(float(y) - float(predicted)), float(y) - self.first
        return [1, off, off * off, level, level * level]

    @property
    def sound(self) -> bool:
        """Whether all sums are finite; predictions that are far enough off would make them infinite for ever."""
        return not self.total or math.isfinite(math.fsum(self.total[1:5] if len(self.total) > 4 else self.total[1:3]))

    def values(self, known: Sequence[Label] | None = None) -> Values:
        """Metrics by scikit-learn's names over all rows, and over the last ones under ``window``; empty before any.

        `known` are a classifier's labels in order of their codes. Of more than 32 labels no confusion is told.
        """
        if not self.total:
            return {}
        recent = _nothing(self.total)
        for part in self.parts:
            _add(recent, part)
        return {**_values(self.total, known), "window": _values(recent, known)}


def together(outputs: Sequence[PrequentialScores], known: Sequence[Sequence[Label]] | None = None) -> Values:
    """Metrics of a model: of its one output, or the means over its outputs and those of each under ``outputs``."""
    labels = known or [()] * len(outputs)
    each = [running.values(names) for running, names in zip(outputs, labels, strict=False)]
    if len(each) < 2:
        return each[0] if each else {}
    return {**_means(each), "window": _means([values["window"] for values in each]), "outputs": each}


def _means(each: Sequence[Values]) -> Values:
    means: Values = {"rows": each[0]["rows"]}
    for name in each[0]:
        found = [value for values in each if isinstance(value := values.get(name), float)]
        if len(found) == len(each):
            means[name] = math.fsum(found) / len(found)
    return means


def _nothing(like: Sums) -> Sums:
    return [{} if type(value) is dict else type(value)() for value in like]


def _add(sums: Sums, more: Sums) -> None:
    for i, value in enumerate(more):
        if type(value) is dict:
            counts = sums[i]
            for pair, count in value.items():
                counts[pair] = counts.get(pair, 0) + count
        else:
            sums[i] += value


def _pair(truth: int, guess: int) -> int:
    return (truth + 1) * STRIDE + guess + 1


def _label(y: Any, predicted: Any, chances: Any) -> Sums:
    """Sums of a single row."""
    truth, guess = int(y[0]), int(predicted[0])
    if chances is None:
        return [1, 0, 0.0, _pairs(truth, guess, 1)]
    chance = float(chances[0, truth]) if truth < chances.shape[1] else 0.0
    # A probability that is not a number, as of naive Bayes after a single row, says as little as none.
    return [1, 1, -math.log(chance if chance > CHANCE_MIN else CHANCE_MIN), _pairs(truth, guess, 1)]


def _labels(y: Any, predicted: Any, chances: Any) -> Sums:
    counts: dict[int, int] = {}
    both, found = np.unique(np.stack([y, predicted]), axis=1, return_counts=True)
    for truth, guess, count in zip(*both.tolist(), found.tolist(), strict=True):
        for pair, n in _pairs(truth, guess, count).items():
            counts[pair] = counts.get(pair, 0) + n
    if chances is None:
        return [len(y), 0, 0.0, counts]
    of_truth = np.zeros(len(y))
    there = y < chances.shape[1]
    of_truth[there] = chances[np.flatnonzero(there), y[there]]
    of_truth = np.where(of_truth > CHANCE_MIN, of_truth, CHANCE_MIN)
    return [len(y), len(y), float(-np.log(of_truth).sum()), counts]


def _pairs(truth: int, guess: int, count: int) -> dict[int, int]:
    if truth == guess or max(truth, guess) < CONFUSION_MAX:
        return {_pair(truth, guess): count}
    return {_pair(truth, NOBODY): count, _pair(NOBODY, guess): count}


def _values(sums: Sums, known: Sequence[Label] | None) -> Values:
    rows = sums[0]
    if len(sums) == 4:
        return _label_values(sums, known or ())
    _, absolute, squared, level, level_squared = sums
    # Rounding may leave less than nothing of targets that are all the same.
    spread = level_squared - level * level / rows
    return {
        "mean_absolute_error": absolute / rows,
        "root_mean_squared_error": math.sqrt(squared / rows),
        "r2": 1.0 - squared / spread if rows > 1 and spread > CHANCE_MIN * level_squared else None,
        "rows": rows,
    }


def _label_values(sums: Sums, known: Sequence[Label]) -> Values:
    rows, scored, loss, pairs = sums
    right: dict[int, int] = defaultdict(int)
    # Of each label: rows that have it and rows that were taken for it.
    there: dict[int, int] = defaultdict(int)
    for pair, count in pairs.items():
        truth, guess = pair // STRIDE - 1, pair % STRIDE - 1
        if truth == guess:
            right[truth] += count
        there[truth] += count
        there[guess] += count
    there.pop(NOBODY, None)
    values: Values = {
        "accuracy": sum(right.values()) / rows,
        "f1": math.fsum(2 * right[label] / both for label, both in there.items()) / len(there),
    }
    if scored:
        values["log_loss"] = loss / scored
    if 0 < len(known) <= CONFUSION_MAX:
        codes = range(len(known))
        counts = [[pairs.get(_pair(truth, guess), 0) for guess in codes] for truth in codes]
        values["confusion"] = {"classes": list(known), "counts": counts}
    values["rows"] = rows
    return values
