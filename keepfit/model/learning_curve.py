"""The learning curve: the prequential metrics of a model as they were after some of its rows, and when.

Owns which rows have a point: those whose number is a multiple of the spacing, from the first evaluated row on. The
spacing is 1; when :data:`POINTS_MAX` points are full, it doubles, and every second point stays. Never evaluates rows
(:mod:`keepfit.model.evaluation` does). Invariants: points depend on the rows and their answers only, not on how the
rows were divided into calls; no row is looked at twice; memory does not depend on the number of rows. The bundle holds
the curve, so it is that of its version, whatever happens to the model.
"""

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np

from keepfit.model import single_precision
from keepfit.model.prequential import PrequentialScores, combine_outputs
from keepfit.recipe.catalogue import Kind

POINTS_MAX = 1000
# The metrics of a point: over all rows, and once more over the window.
METRICS: dict[Kind, tuple[str, ...]] = {
    "regressor": ("mean_absolute_error", "baseline_mean_absolute_error", "root_mean_squared_error", "r2"),
    "classifier": ("accuracy", "baseline_accuracy", "f1", "log_loss"),
}
# Single precision is not enough for times.
METRIC_TYPE, TIME_TYPE = single_precision.TYPE, "d"

Point = dict[str, Any]


class LearningCurve:
    """The learning curve of one bundle.

    `rows_before` is the number of rows that the bundle had learned when the curve began: 0, unless an earlier release
    of keepfit wrote it. `spacing` is the number of rows between two points, `time` when the last request was accepted,
    in seconds since 1970, 0.0 if that is not known.
    """

    __slots__ = ("_first", "_metrics", "_names", "_requests", "_times", "rows_before", "spacing", "time")

    def __init__(self, rows_before: int = 0) -> None:
        self.rows_before = rows_before
        self.spacing = 1
        self.time = 0.0
        self._names: tuple[str, ...] = ()
        # Rows seen at the first point, in units of the spacing; the others follow without a gap.
        self._first = 0
        self._times: array[float] = array(TIME_TYPE)
        # Point by point: the metrics over all rows, then those over the window, in the order of the names.
        self._metrics: array[float] = array(METRIC_TYPE)
        # Requests that are learned together: the rows seen after each, and when it, or one before it, was accepted.
        self._requests: Sequence[tuple[int, float]] = ()

    @classmethod
    def from_stored(
        cls, rows_before: int, spacing: int, time: float, names: Sequence[str], first: int, times: bytes, metrics: bytes
    ) -> Self:
        """Return the curve of the fields that :meth:`stored` returned."""
        curve = cls(rows_before)
        curve.spacing, curve.time, curve._names, curve._first = spacing, time, tuple(names), first
        curve._times.frombytes(times)
        curve._metrics.frombytes(metrics)
        return curve

    def stored(self) -> tuple[Any, ...]:
        """Return the curve as plain values, for the pickle of its bundle."""
        arrays = self._times.tobytes(), self._metrics.tobytes()
        return (self.rows_before, self.spacing, self.time, list(self._names), self._first, *arrays)

    def __len__(self) -> int:
        return len(self._times)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LearningCurve) and self.stored() == other.stored()

    __hash__ = None  # type: ignore[assignment]

    def accepted(self, rows_seen: int, requests: Sequence[tuple[int, float]]) -> None:
        """Note the requests that are learned next, after `rows_seen` rows: the rows of each, and when it was accepted.

        A time of 0.0 is not known. Times of points never decrease: clocks of gateways may differ.
        """
        noted: list[tuple[int, float]] = []
        self._requests = noted
        if len(requests) == 1:
            # All rows have the time of this one.
            self.time = max(self.time, requests[0][1])
            return
        for n, time in requests:
            rows_seen += n
            self.time = max(self.time, time)
            noted.append((rows_seen, self.time))

    def has_point_within(self, rows_seen: int, n: int) -> bool:
        """Return whether one of the `n` rows after the first `rows_seen` may have a point."""
        return n >= self.spacing or (rows_seen + n) // self.spacing > rows_seen // self.spacing

    def parts(
        self, kind: Kind, rows_seen: int, n: int, first: int, scores: Sequence[PrequentialScores]
    ) -> Iterator[slice]:
        """Divide `n` rows, which follow the first `rows_seen`, after the rows that have a point.

        The caller adds each part to `scores` before it asks for the next one; then the point is taken. `first` is the
        position of the first row with an answer, `n` if none has one.
        """
        start = 0
        if not self._names:
            if any(each.total for each in scores):
                # An earlier release has evaluated rows.
                first = 0
            if first >= n:
                # Without an evaluated row there are no metrics, and no point.
                yield slice(0, n)
                return
            self._names, self._first = METRICS[kind], rows_seen + first + 1
        # Points that would not stay are not taken.
        while (rows_seen + n) // self.spacing - self._first >= POINTS_MAX:
            self._thin()
        for due in range(
            self.spacing * max(rows_seen // self.spacing + 1, self._first), rows_seen + n + 1, self.spacing
        ):
            yield slice(start, due - rows_seen)
            start = due - rows_seen
            self._times.append(self._time_at(due))
            self._metrics.extend(_values(self._names, scores))
        if start < n:
            yield slice(start, n)

    def _thin(self) -> None:
        """Double the spacing: keep the points after even multiples of it."""
        if self._times:
            keep = slice(self._first % 2, None, 2)
            table = np.frombuffer(self._metrics, self._metrics.typecode).reshape(len(self), -1)
            self._metrics = array(METRIC_TYPE, table[keep].tobytes())
            self._times = self._times[keep]
        self._first = (self._first + 1) // 2
        self.spacing *= 2

    def _time_at(self, rows_seen: int) -> float:
        position = bisect_left(self._requests, (rows_seen, 0.0))
        return self._requests[position][1] if position < len(self._requests) else self.time

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics of its points; empty before the first point."""
        return self._names

    def points(self, names: Sequence[str] | None = None, since_rows: int = 0) -> list[Point]:
        """Return the points after more than `since_rows` rows, oldest first, with the metrics of these `names`.

        Each has `rows_seen`, `time` (None if it is not known), the metrics over all rows so far, and under `window`
        those over the last ones. A metric that is undefined there is None.
        """
        if not self._times:
            return []
        begin = max(since_rows // self.spacing + 1 - self._first, 0)
        table = np.frombuffer(self._metrics, self._metrics.typecode).reshape(len(self), 2, -1)[begin:]
        shown = [position for position, name in enumerate(self._names) if names is None or name in names]
        shown_names = [self._names[position] for position in shown]
        halves = single_precision.as_lists(table[:, :, shown].transpose(1, 0, 2))
        values = [[dict(zip(shown_names, row, strict=True)) for row in half] for half in halves]
        return [
            {"rows_seen": (self._first + position) * self.spacing, "time": time or None, **overall, "window": window}
            for position, (time, overall, window) in enumerate(zip(self._times[begin:], *values, strict=True), begin)
        ]


def _values(names: Sequence[str], scores: Sequence[PrequentialScores]) -> list[float]:
    """Return the metrics over all rows, then those over the window; NaN for those that are undefined."""
    metrics = combine_outputs(scores)
    return [
        math.nan if (value := values.get(name)) is None else value
        for values in (metrics, metrics["window"])
        for name in names
    ]
