"""Sums of scored rows, and the metrics that they give.

Owns the form of the sums, how labels are added to them, and the definitions of the metrics. Pure: knows no window and
no model. Invariant: sums are those of rows added one by one, bit for bit. They are plain lists, dicts and numbers,
because they are pickled with every commit.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from keepfit.recipe.recipe import CLASSES_MAX, Label

# Each pair of true and predicted label is counted for this many labels; for labels beyond, only how often each was
# predicted correctly, missed, and predicted wrongly. A larger confusion matrix is too large to read.
CONFUSION_MAX = 32
EPSILON = float(np.finfo(np.float64).eps)
# Smaller probabilities count as this, as in scikit-learn's log_loss: 0 would make the loss of all rows infinite.
PROBABILITY_MIN = EPSILON
# A pair is stored as one number, which takes a fifth of the time of a tuple to pickle.
PAIR_STRIDE = CLASSES_MAX + 2
NO_LABEL = -1

# Regression: number of rows, sums of absolute errors, squared errors, targets and squared targets, both of the latter
# relative to the first target. Classification: number of rows, rows with probabilities, their log loss, counts of
# pairs. Both then have the rows that the baseline answered, and its absolute errors or its right answers.
Sums = list[Any]
Metrics = dict[str, Any]
REGRESSION_ZERO: Sums = [0, 0.0, 0.0, 0.0, 0.0, 0, 0.0]
CLASSIFICATION_ZERO: Sums = [0, 0, 0.0, {}, 0, 0]


def is_classification(sums: Sums) -> bool:
    """Return whether these are the sums of a classifier."""
    return type(sums[3]) is dict


def zeros_like(sums: Sums) -> Sums:
    """Return sums of no rows, of the same form."""
    return [{} if type(value) is dict else type(value)() for value in sums]


def added_up(parts: Sequence[Sums]) -> Sums:
    """Return the sums of the rows of all parts, of which there is at least one."""
    columns = list(zip(*parts, strict=True))
    if not is_classification(parts[0]):
        return list(map(sum, columns))
    counts: dict[int, int] = {}
    for part in columns.pop(3):
        for pair, count in part.items():
            counts[pair] = counts.get(pair, 0) + count
    rows, scored, loss, answered, right = map(sum, columns)
    return [rows, scored, loss, counts, answered, right]


def pair_of(truth: int, predicted: int) -> int:
    """Return the number that stands for a pair of codes."""
    return (truth + 1) * PAIR_STRIDE + predicted + 1


def added(total: float, values: Any) -> float:
    """Return `total` plus `values`, shape (n,) and n > 0, added in order; numpy's ``sum`` adds them in another order.

    The values are overwritten.
    """
    values[0] += total
    return float(np.add.accumulate(values, out=values)[-1])


def add_labels(sums: Sums, y: Any, predicted: Any, probabilities: Any, baseline: int | None) -> None:
    """Add a batch of labels to `sums`."""
    counts = sums[3]
    distinct, occurrences = np.unique((y + 1) * PAIR_STRIDE + predicted + 1, return_counts=True)
    for code, count in zip(distinct.tolist(), occurrences.tolist(), strict=True):
        for pair, n in pairs_of(code // PAIR_STRIDE - 1, code % PAIR_STRIDE - 1, count).items():
            counts[pair] = counts.get(pair, 0) + n
    sums[0] += len(y)
    losses = () if probabilities is None else log_losses(y, probabilities)
    if len(losses):
        sums[1] += len(losses)
        sums[2] = added(sums[2], losses)
    if baseline is not None:
        sums[4] += len(y)
        sums[5] += int((y == baseline).sum())


def log_losses(y: Any, probabilities: Any) -> Any:
    """Return the log loss of each row that has probabilities, by the codes `y`, shape (n,).

    A code without a column has the probability 0. Rows whose probabilities are NaN have none.
    """
    answered = ~np.isnan(probabilities).any(axis=1)
    y, probabilities = y[answered], probabilities[answered]
    of_truth = np.zeros(len(y))
    learned = y < probabilities.shape[1]
    of_truth[learned] = probabilities[np.flatnonzero(learned), y[learned]]
    return -np.log(np.where(of_truth > PROBABILITY_MIN, of_truth, PROBABILITY_MIN))


def pairs_of(truth: int, predicted: int, count: int) -> dict[int, int]:
    """Return the counts for `count` rows; a wrong prediction beyond the confusion matrix counts once per label."""
    if predicted in (truth, NO_LABEL) or max(truth, predicted) < CONFUSION_MAX:
        return {pair_of(truth, predicted): count}
    return {pair_of(truth, NO_LABEL): count, pair_of(NO_LABEL, predicted): count}


def metrics_of(sums: Sums, labels: Sequence[Label] | None) -> Metrics:
    """Return the metrics that sums of at least one row give, by scikit-learn's names."""
    rows = sums[0]
    if is_classification(sums):
        return _label_metrics(sums, labels or ())
    _, absolute, squared, level, level_squared, answered, of_baseline = sums
    # Rounding may make this negative if all targets are equal.
    spread = level_squared - level * level / rows
    return {
        "mean_absolute_error": absolute / rows,
        "baseline_mean_absolute_error": of_baseline / answered if answered else None,
        "root_mean_squared_error": math.sqrt(squared / rows),
        "r2": 1.0 - squared / spread if rows > 1 and spread > EPSILON * level_squared else None,
        "rows": rows,
    }


def _label_metrics(sums: Sums, labels: Sequence[Label]) -> Metrics:
    rows, scored, loss, pairs, answered, of_baseline = sums
    correct: dict[int, int] = defaultdict(int)
    # Per label: rows that have it plus rows predicted as it.
    occurrences: dict[int, int] = defaultdict(int)
    for pair, count in pairs.items():
        truth, predicted = pair // PAIR_STRIDE - 1, pair % PAIR_STRIDE - 1
        if truth == predicted != NO_LABEL:
            correct[truth] += count
        occurrences[truth] += count
        occurrences[predicted] += count
    occurrences.pop(NO_LABEL, None)
    f1_by_label = [2 * correct[label] / count for label, count in occurrences.items()]
    metrics: Metrics = {
        "accuracy": sum(correct.values()) / rows,
        "baseline_accuracy": of_baseline / answered if answered else None,
        "f1": math.fsum(f1_by_label) / len(f1_by_label),
    }
    if scored:
        metrics["log_loss"] = loss / scored
    if 0 < len(labels) <= CONFUSION_MAX:
        codes = range(len(labels))
        counts = [[pairs.get(pair_of(truth, predicted), 0) for predicted in codes] for truth in codes]
        metrics["confusion"] = {"classes": list(labels), "counts": counts}
    metrics["rows"] = rows
    return metrics
