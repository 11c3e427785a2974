"""Points: numbers of documents, aggregated by time.

Pure. Owns the order of the steps, each of which is in :mod:`keepfit.history.grouping`, and the limits of a query.
Invariant: a query that is too large is refused before it is computed.
"""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TypedDict

import numpy as np

from keepfit.conditions import Scalar
from keepfit.errors import InvalidError, MalformedError
from keepfit.history import grouping
from keepfit.history.grouping import Array, Fill, Series
from keepfit.history.reading import Columns
from keepfit.history.sources import check_field

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
        for name, text in {"stat": self.stat, "field": self.field or "", "group": self.group or ""}.items():
            if not isinstance(text, str):
                raise MalformedError(f"{name} must be text, not {text!r}.")
        grouping.statistic(self.stat)
        if self.group == "timestamp":
            raise InvalidError("group must be a key of metadata or a field; use every to group by time.")
        if self.field is not None:
            check_field(self.field)
        elif self.stat != "count":
            raise InvalidError("field is missing: name the number field to aggregate; only stat=count needs none.")
        if self.fill not in grouping.FILLS and not _is_finite(self.fill):
            raise InvalidError(f"fill must be one of {', '.join(grouping.FILLS)}, or a number; it is {self.fill!r}.")
        if self.moving is not None:
            check_count("moving", self.moving, 1, MOVING_MAX)
        return self


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_count(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise InvalidError unless a parameter is a whole number from `least` to `most`."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or int(value) < least or (most is not None and int(value) > most):  # type: ignore[call-overload]
        bounds = f"{least} or more" if most is None else f"from {least} to {most}"
        raise InvalidError(f"{name} must be a whole number, {bounds}; it is {value!r}.")


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
