"""Drift: the error of the last rows is significantly larger than that of the rows before them.

Owns the test, and collecting what it has found until a commit announces it. Pure. Invariant: the result depends on the
errors of the last rows only, which the bundle holds for its metrics anyway (:mod:`keepfit.model.prequential`), so a
bundle of an earlier release, or one that moves between workers, detects the same.

The errors of two consecutive windows are compared, as in STEPD (Nishida and Yamauchi, 2007, "Detecting concept drift
using statistical testing"). STEPD tests the accuracy of classifiers; here Welch's statistic (1947, "The generalization
of Student's problem when several different population variances are involved") compares the mean loss, which is the
absolute error of a regressor, and 0 or 1 of a classifier. STEPD compares with all rows since the last drift, this test
with those of the sliding window: a model that has improved for long is compared with what it is, not with what it was.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# Parts of the sliding window that are recent, and those before them. Together one less than the window has: the test at
# the end of the part before uses the same number.
RECENT, BEFORE = 2, 7
BEFORE_MIN = 2
# Fewer rows are too few for a test (STEPD compares 30), so a window of less than 150 rows detects no drift.
PART_ROWS_MIN = 15
# By chance a normal variable exceeds this once in 31,000 times: in the errors of a stable stream, with the default
# window, once in three million rows.
THRESHOLD = 4.0
# Drifts that a bundle holds until its commit.
HELD_MAX = 8


class Losses(NamedTuple):
    """Losses of some rows: their number, sum, and sum of squares."""

    rows: int
    total: float
    squares: float

    @property
    def mean(self) -> float:
        """Mean loss."""
        return self.total / self.rows

    @property
    def error_squared(self) -> float:
        """Square of the standard error of the mean."""
        # Rounding may make the variance negative if all losses are equal.
        return max(self.squares - self.total * self.mean, 0.0) / (self.rows - 1) / self.rows


def pooled(parts: Iterable[Losses]) -> Losses:
    """Return the losses of several parts together."""
    return Losses(*map(sum, zip(*parts, strict=True)))


def statistic(before: Losses, recent: Losses) -> float:
    """Return by how many standard errors the recent mean loss is larger.

    >>> statistic(Losses(700, 70.0, 70.0), Losses(200, 60.0, 60.0)) > THRESHOLD
    True
    >>> statistic(Losses(700, 70.0, 70.0), Losses(200, 25.0, 25.0)) > THRESHOLD
    False
    >>> statistic(Losses(700, 0.0, 0.0), Losses(200, 200.0, 200.0))
    inf
    """
    difference = recent.mean - before.mean
    error = math.sqrt(before.error_squared + recent.error_squared)
    if error:
        return difference / error
    return math.inf if difference > 0 else 0.0


def is_drift(before: Losses, recent: Losses, resolution: float) -> bool:
    """Return whether the recent loss is significantly larger; a mean loss up to `resolution` is rounding."""
    return recent.mean > resolution and statistic(before, recent) > THRESHOLD


def found(parts: Sequence[Losses], resolution: float = 0.0) -> tuple[Losses, Losses] | None:
    """Return the losses before and after a drift that the last of these parts shows and the one before it did not.

    `parts` are those of the sliding window, all complete, oldest first.
    """
    now = _split(parts)
    if now is None or not is_drift(*now, resolution):
        return None
    earlier = _split(parts[:-1])
    return None if earlier is not None and is_drift(*earlier, resolution) else now


def _split(parts: Sequence[Losses]) -> tuple[Losses, Losses] | None:
    """Return the losses of the parts before the recent ones, and of those; None if there are too few."""
    before, recent = parts[-RECENT - BEFORE : -RECENT], parts[-RECENT:]
    if len(before) < BEFORE_MIN:
        return None
    return pooled(before), pooled(recent)


def take(outputs: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the drifts that the scores of each output have found since the last call, for the events of a commit."""
    drifts = []
    for number, scores in enumerate(outputs):
        of_output = {"output": number} if len(outputs) > 1 else {}
        drifts += [{**drift, **of_output} for drift in scores.drifts]
        scores.drifts.clear()
    return drifts
