"""Prequential metrics: each batch is predicted before it is learned ("test, then train"), and its errors are added up.

Owns the sums (:mod:`keepfit.model.sums`) over all rows and over a sliding window of the last rows (Gama, Sebastião and
Rodrigues, 2013, "On evaluating stream learning algorithms"), and the last scored rows. Never changes the model.
Invariants: sums are those of rows added one by one, bit for bit, however their answers were divided into batches;
memory and time per batch do not depend on the number of earlier rows.

Beside the metrics of the model stand those of a baseline without features: the mean of all targets learned so far, or
the most frequent label so far. It answers the same rows at the same time, before they are learned.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from keepfit.model import drift
from keepfit.model.drift import Losses
from keepfit.model.scored_rows import ScoredRows
from keepfit.model.sums import (
    CLASSIFICATION_ZERO,
    PAIR_STRIDE,
    PROBABILITY_MIN,
    REGRESSION_ZERO,
    Metrics,
    Sums,
    add_labels,
    added,
    added_up,
    is_classification,
    metrics_of,
    pairs_of,
    zeros_like,
)
from keepfit.recipe.catalogue import Kind
from keepfit.recipe.recipe import Label

# The window consists of this many parts; the oldest part is dropped as a whole.
PARTS = 10
# A mean error below this share of the spread of the targets is rounding.
ROUNDING = 1e-9
# Rows whose errors are in memory at a time.
BLOCK_ROWS = 1 << 15


@dataclass(slots=True)
class PrequentialScores:
    """Prequential sums of one output; `window` is the number of last rows that have metrics of their own.

    `baseline` holds what the baseline has learned: the number of targets and their sum, or the most frequent label's
    code and the number of rows of each code. `scored` has the last scored rows of a regressor.
    """

    window: int
    total: Sums = field(default_factory=list)
    parts: list[Sums] = field(default_factory=list)
    first: float = 0.0
    baseline: list[Any] = field(default_factory=list)
    scored: ScoredRows = field(default_factory=ScoredRows)
    # Drifts in the rows since the last commit. Not stored with the bundle: a commit announces them.
    drifts: list[Metrics] = field(default_factory=list, compare=False)

    @classmethod
    def of_output(cls, position: int, window: int) -> Self:
        """Return the scores of the output at this position, before its first row."""
        return cls(window, scored=ScoredRows.of_output(position))

    @classmethod
    def from_stored(
        cls, window: int, total: Sums, parts: list[Sums], first: float, *rest: Any, position: int = 0
    ) -> Self:
        """Return the scores of the output at this position of the fields that :meth:`stored` returned.

        Earlier releases stored fewer: a baseline and scored rows then begin with the next rows.
        """
        if total:
            zero = CLASSIFICATION_ZERO if is_classification(total) else REGRESSION_ZERO
            total, *parts = [[*sums, *zero[len(sums) :]] for sums in (total, *parts)]
        baseline, stored = rest[0] if rest else [], rest[1] if len(rest) > 1 else b""
        return cls(window, total, parts, first, baseline, ScoredRows.of_output(position, stored))

    def stored(self) -> tuple[Any, ...]:
        """Return the scores as plain values, for the pickle of the bundle."""
        return (self.window, self.total, self.parts, self.first, self.baseline, self.scored.stored())

    def learn(self, kind: Kind, y: Any) -> None:
        """Let the baseline learn the targets `y`, shape (n,), after :meth:`update` has evaluated their rows."""
        baseline = self.baseline
        if kind == "regressor":
            if not baseline:
                baseline += [0, 0.0]
            baseline[0] += len(y)
            baseline[1] += float(y[0]) if len(y) == 1 else float(y.sum())
            return
        if not baseline:
            baseline += [0, []]
        counts = baseline[1]
        for code in y.tolist():
            if code >= len(counts):
                counts += [0] * (code + 1 - len(counts))
            counts[code] += 1
        # Of equally frequent labels the earlier one stays: otherwise the answer would change with nearly every row.
        most = code if len(y) == 1 else counts.index(max(counts))
        if counts[most] > counts[baseline[0]]:
            baseline[0] = most

    def _baseline_answer(self) -> Any:
        """Return the mean target or the most frequent label's code; None before the first target."""
        if not self.baseline:
            return None
        first, second = self.baseline
        return first if type(second) is list else second / first

    def update(self, kind: Kind, y: Any, predicted: Any, probabilities: Any = None) -> None:
        """Add one batch, which :meth:`learn` has not learned yet.

        Parameters
        ----------
        y, predicted : targets and predictions, shape (n,): numbers of a regressor, codes of a classifier's labels;
            a row whose prediction is not finite has none, and is not evaluated
        probabilities : shape (n, classes); None where the classifier gives none, NaN where it gives none for a row
        """
        if len(y) == 1:
            if kind == "regressor":
                self._update_number(float(y[0]), float(predicted[0]))
            else:
                self._update_label(int(y[0]), int(predicted[0]), probabilities)
            return
        if kind == "regressor":
            answered = np.isfinite(predicted)
            y, predicted = y[answered], predicted[answered]
            self.scored.extend(y, predicted)
        rows = len(y)
        if not rows:
            return
        size = self.window // PARTS
        if not self.total:
            self._begin(kind, float(y[0]))
        for start in range(0, rows, BLOCK_ROWS):
            self._add_rows(self.total, kind, slice(start, start + BLOCK_ROWS), y, predicted, probabilities)
        # Rows that would leave the window at once are only counted; parts still end where they end for single rows.
        start = 0
        # Parts with all their sums, since those that were only counted: a test needs a window of such parts.
        summed = PARTS
        while start < rows:
            self._open_part(size, tests=summed >= PARTS)
            stop = min(rows, start + size - self.parts[-1][0])
            if rows - stop < PARTS * size:
                self._add_rows(self.parts[-1], kind, slice(start, stop), y, predicted, probabilities)
                summed += 1
            else:
                self.parts[-1][0] += stop - start
                summed = 0
            start = stop

    def _begin(self, kind: Kind, first: float) -> None:
        self.total = zeros_like(REGRESSION_ZERO if kind == "regressor" else CLASSIFICATION_ZERO)
        self.parts = [zeros_like(self.total)]
        self.first = first

    def _update_number(self, target: float, predicted: float) -> None:
        """Add a single row of a regressor; written out, because this is done for each row of most streams."""
        if not math.isfinite(predicted):
            return
        if not self.total:
            self._begin("regressor", target)
        self.scored.add(target, predicted)
        self._open_part(self.window // PARTS)
        error, level, of_baseline = abs(target - predicted), target - self.first, 0.0
        count = 1 if self.baseline else 0
        if count:
            of_baseline = abs(target - self.baseline[1] / self.baseline[0])
        for sums in (self.total, self.parts[-1]):
            sums[0] += 1
            sums[1] += error
            sums[2] += error * error
            sums[3] += level
            sums[4] += level * level
            sums[5] += count
            sums[6] += of_baseline

    def _update_label(self, truth: int, predicted: int, probabilities: Any) -> None:
        """Add a single row of a classifier; `probabilities` has the shape (1, classes), or is None."""
        if not self.total:
            self._begin("classifier", float(truth))
        self._open_part(self.window // PARTS)
        scored, loss = 0, 0.0
        if probabilities is not None:
            probability = float(probabilities[0, truth if truth < probabilities.shape[1] else 0])
            # NaN: the row has no probabilities.
            if probability == probability:  # noqa: PLR0124 - the fastest check for NaN
                if probability < PROBABILITY_MIN or truth >= probabilities.shape[1]:
                    probability = PROBABILITY_MIN
                # Not math.log, whose last bit differs.
                scored, loss = 1, -float(np.log(probability))
        count = 1 if self.baseline else 0
        right = 1 if count and self.baseline[0] == truth else 0
        pairs = pairs_of(truth, predicted, 1)
        for sums in (self.total, self.parts[-1]):
            sums[0] += 1
            sums[1] += scored
            sums[2] += loss
            counts = sums[3]
            for pair in pairs:
                counts[pair] = counts.get(pair, 0) + 1
            sums[4] += count
            sums[5] += right

    def _open_part(self, size: int, *, tests: bool = True) -> None:
        """Begin another part if the last one has `size` rows; `tests` whether the errors show a drift before that."""
        if self.parts[-1][0] >= size:
            if tests and size >= drift.PART_ROWS_MIN:
                self._test()
            self.parts.append(zeros_like(self.total))
            del self.parts[:-PARTS]

    def _test(self) -> None:
        """Note a drift if the parts of the window show one."""
        is_classifier, resolution = is_classification(self.total), 0.0
        if not is_classifier:
            rows, _, _, level, squared, *_ = self.total
            resolution = ROUNDING * math.sqrt(max(squared - level * level / rows, 0.0) / rows)
        found = drift.found([_losses(part) for part in self.parts], resolution)
        if found is None:
            return
        before, recent = (1 - part.mean if is_classifier else part.mean for part in found)
        name = "accuracy" if is_classifier else "mean_absolute_error"
        self.drifts.append({"metric": name, "before": before, "recent": recent, "rows": found[1].rows})
        del self.drifts[: -drift.HELD_MAX]

    def _add_rows(self, sums: Sums, kind: Kind, part: slice, y: Any, predicted: Any, probabilities: Any) -> None:
        """Add the rows of `part` to `sums`, as :meth:`_update_number` and :meth:`_update_label` would one by one."""
        y, predicted, baseline = y[part], predicted[part], self._baseline_answer()
        if kind != "regressor":
            add_labels(sums, y, predicted, None if probabilities is None else probabilities[part], baseline)
            return
        error, level = np.abs(y - predicted), y - self.first
        sums[0] += len(y)
        for position, column in enumerate((error, error * error, level, level * level), start=1):
            sums[position] = added(sums[position], column)
        if baseline is not None:
            sums[5] += len(y)
            sums[6] = added(sums[6], np.abs(y - baseline))

    @property
    def is_finite(self) -> bool:
        """Whether all sums are finite; a prediction with a huge error would make them infinite permanently."""
        return math.isfinite(sum([value for value in self.total if type(value) is float]))

    def metrics(self, labels: Sequence[Label] | None = None) -> Metrics:
        """Return the metrics by scikit-learn's names over all rows, and over the last rows under ``window``.

        Empty before the first row. `labels` are a classifier's labels in order of their codes; with more than 32 of
        them there is no confusion matrix.
        """
        if not self.total:
            return {}
        return {**metrics_of(self.total, labels), "window": metrics_of(added_up(self.parts), labels)}


def combine_outputs(outputs: Sequence[PrequentialScores], labels: Sequence[Sequence[Label]] | None = None) -> Metrics:
    """Return the metrics of a model.

    They are those of its only output, or else the means over its outputs, with those of each under ``outputs``. An
    output without an evaluated row has no metrics there, and is in no mean.
    """
    labels_by_output = labels or [()] * len(outputs)
    each = [scores.metrics(known) for scores, known in zip(outputs, labels_by_output, strict=False)]
    evaluated = [metrics for metrics in each if metrics]
    if len(each) < 2 or not evaluated:
        return each[0] if len(each) == 1 else {}
    return {**_means(evaluated), "window": _means([metrics["window"] for metrics in evaluated]), "outputs": each}


def _means(each: Sequence[Metrics]) -> Metrics:
    # The outputs of some objects are evaluated in different rows.
    means: Metrics = {"rows": max(metrics["rows"] for metrics in each)}
    for name in each[0]:
        values = [value for metrics in each if isinstance(value := metrics.get(name), float)]
        if len(values) == len(each):
            means[name] = math.fsum(values) / len(values)
    return means


def _losses(sums: Sums) -> Losses:
    """Return the losses of a part: absolute errors, or 1 for each wrong label."""
    if not is_classification(sums):
        return Losses(sums[0], sums[1], sums[2])
    right = sum([count for pair, count in sums[3].items() if pair // PAIR_STRIDE == pair % PAIR_STRIDE])
    return Losses(sums[0], sums[0] - right, sums[0] - right)
