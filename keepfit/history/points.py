"""Points: what becomes of documents' numbers when they are grouped by time.

Pure. Owns the order of the steps (:mod:`keepfit.history.grouping` has each) and the bounds of what is asked for.
Invariant: what is too much is said before it is computed.
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
    """One point: its bucket's begin in seconds, its value or None, and the group's value where points are grouped."""

    timestamp: float
    value: float | None
    group: Scalar | None


@dataclass(frozen=True, slots=True)
class Shape:
    """How documents become points.

    `every` and `rate` are spans in seconds; `fill` is one of :data:`grouping.FILLS` or a value; `moving` counts points;
    `group` is a key of metadata. Done in this order: `group`, `stat`, `fill`, `rate`, `moving`.
    """

    every: float
    stat: str = "mean"
    field: str | None = None
    group: str | None = None
    fill: Fill = "none"
    rate: float | None = None
    moving: int | None = None

    def check(self) -> "Shape":
        """Return this; raises MalformedError or InvalidError where something in it cannot be."""
        grouping.statistic(self.stat)
        if self.field is not None:
            reading.check_field(self.field)
        elif self.stat != "count":
            raise InvalidError("Name the field whose numbers are wanted; only stat=count goes without.")
        if isinstance(self.fill, str) and self.fill not in grouping.FILLS:
            raise InvalidError(f"fill is one of {', '.join(grouping.FILLS)}, or a number.")
        if self.moving is not None and not 1 <= self.moving <= MOVING_MAX:
            raise InvalidError(f"moving is a number of points from 1 to {MOVING_MAX}.")
        return self


def check_length(start: float, stop: float, every: float) -> None:
    """Raise InvalidError where a time has too many spans."""
    if every and (stop - start) / every > POINTS_MAX:
        raise InvalidError(f"These are more than {POINTS_MAX:,} points: choose a longer span or a shorter time.")


def of(found: Columns, shape: Shape, start: float | None, stop: float | None) -> list[Point]:
    """Make points of columns; runs beside the loop."""
    points: list[Point] = []
    # By kind first: numbers and texts have no order.
    for value in sorted(found, key=lambda value: (str(type(value)), value)):
        series = _series(*found[value], shape, start, stop)
        if len(points) + len(series) > SERIES_POINTS_MAX:
            raise InvalidError(f"More than {SERIES_POINTS_MAX:,} points: choose a longer span or fewer groups.")
        named: Point = {} if shape.group is None else {"group": value}
        points += [
            {"timestamp": moment, "value": None if number != number else number, **named}  # noqa: PLR0124 - NaN
            for moment, number in zip(series.times.tolist(), series.values.tolist(), strict=True)
        ]
    return points


def _series(times: Array, values: Array, shape: Shape, start: float | None, stop: float | None) -> Series:
    series = grouping.aggregate(times, values, shape.every, shape.stat)
    if len(series):
        first = series.times[0] if start is None else min(start, series.times[0])
        check_length(first, series.times[-1] if stop is None else stop, shape.every if shape.fill != "none" else 0.0)
        if len(series) > POINTS_MAX:
            raise InvalidError(f"These are more than {POINTS_MAX:,} points: choose a longer span or a shorter time.")
    # What ends with a bucket does not reach into the next one.
    last = None if stop is None else float(np.nextafter(stop, -np.inf))
    series = grouping.fill(series, shape.every, shape.fill, start, last)
    if shape.rate is not None:
        series = grouping.rate(series, shape.rate)
    return series if shape.moving is None else grouping.moving(series, shape.moving)
