"""Points: numbers of documents, aggregated by time.

Pure. Owns the order of the steps, each of which is in :mod:`keepfit.history.grouping`, and the limits of a query.
Invariant: a query that is too large is refused before it is computed.
"""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from keepfit.errors import InvalidError
from keepfit.history import grouping, reading
from keepfit.history.grouping import Array, Fill, Series
from keepfit.history.reading import Columns, Scalar

POINTS_MAX = 11_000
SERIES_POINTS_MAX = 10 * POINTS_MAX
MOVING_MAX = 10_000


class Point(TypedDict, total=False):
    """One point: start of its bucket in seconds, value or None, and the value of its group if there are groups."""

    timestamp: float
    value: float | None
    group: Scalar | None


@dataclass(frozen=True, slots=True)
class Aggregation:
    """How documents are aggregated to points, in the order `group`, `stat`, `fill`, `rate`, `moving`.

    `every` and `rate` are durations in seconds; `fill` is one of :data:`grouping.FILLS` or a value; `moving` is a
    number of points; `group` is a key of metadata.
    """

    every: float
    stat: str = "mean"
    field: str | None = None
    group: str | None = None
    fill: Fill = "none"
    rate: float | None = None
    moving: int | None = None

    def check(self) -> "Aggregation":
        """Return this aggregation; raise MalformedError or InvalidError if it is invalid."""
        grouping.statistic(self.stat)
        if self.field is not None:
            reading.check_field(self.field)
        elif self.stat != "count":
            raise InvalidError("field is missing: name the number field to aggregate; only stat=count needs none.")
        if isinstance(self.fill, str) and self.fill not in grouping.FILLS:
            raise InvalidError(f"fill must be one of {', '.join(grouping.FILLS)}, or a number.")
        if self.moving is not None and not 1 <= self.moving <= MOVING_MAX:
            raise InvalidError(f"moving must be a number of points from 1 to {MOVING_MAX}.")
        return self


def check_length(start: float, stop: float, every: float) -> None:
    """Raise InvalidError if a time range has more than :data:`POINTS_MAX` buckets."""
    if every and (stop - start) / every > POINTS_MAX:
        raise InvalidError(f"More than {POINTS_MAX:,} points: use a longer interval or a shorter time range.")


def compute(columns: Columns, aggregation: Aggregation, start: float | None, stop: float | None) -> list[Point]:
    """Return the points of columns. CPU-bound: call it in a thread.

    Raises
    ------
    InvalidError
        If there are too many points.
    """
    points: list[Point] = []
    # Sort by type first: numbers and strings are not comparable.
    for value in sorted(columns, key=lambda value: (str(type(value)), value)):
        series = _series(*columns[value], aggregation, start, stop)
        if len(points) + len(series) > SERIES_POINTS_MAX:
            raise InvalidError(f"More than {SERIES_POINTS_MAX:,} points: use a longer interval or fewer groups.")
        group: Point = {} if aggregation.group is None else {"group": value}
        points += [
            {"timestamp": moment, "value": None if number != number else number, **group}  # noqa: PLR0124 - NaN
            for moment, number in zip(series.times.tolist(), series.values.tolist(), strict=True)
        ]
    return points


def _series(times: Array, values: Array, aggregation: Aggregation, start: float | None, stop: float | None) -> Series:
    series = grouping.aggregate(times, values, aggregation.every, aggregation.stat)
    if len(series):
        first = series.times[0] if start is None else min(start, series.times[0])
        last = series.times[-1] if stop is None else stop
        check_length(first, last, aggregation.every if aggregation.fill != "none" else 0.0)
        if len(series) > POINTS_MAX:
            raise InvalidError(f"More than {POINTS_MAX:,} points: use a longer interval or a shorter time range.")
    # `stop` is exclusive: at the end of a bucket it does not reach into the next one.
    end = None if stop is None else float(np.nextafter(stop, -np.inf))
    series = grouping.fill(series, aggregation.every, aggregation.fill, start, end)
    if aggregation.rate is not None:
        series = grouping.rate_of_change(series, aggregation.rate)
    return series if aggregation.moving is None else grouping.moving_average(series, aggregation.moving)
