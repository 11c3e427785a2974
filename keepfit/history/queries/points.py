"""Points: numbers of documents, aggregated by time.

Pure. Owns the order of the steps, each of which is in :mod:`keepfit.history.queries.grouping` or
:mod:`keepfit.history.queries.steps`, which groups are answered, and the limits of a query. Invariant: a query that is
too large is refused before it is computed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Protocol, TypedDict

import numpy as np

from keepfit.conditions import Scalar
from keepfit.errors import InvalidError, MalformedError
from keepfit.history.queries import grouping, statistic, steps
from keepfit.history.queries.buckets import Buckets
from keepfit.history.queries.columns import Group
from keepfit.history.queries.grouping import Fill, Series
from keepfit.history.queries.sources import check_field
from keepfit.times import Duration, parse_duration

POINTS_MAX = 11_000
SERIES_POINTS_MAX = 10 * POINTS_MAX
MOVING_MAX = 10_000
KEYS_MAX = 8
SERIES_MAX = 10_000


class GroupValues(Protocol):
    """Numbers of one group: of documents, or of roll-ups."""

    @property
    def group(self) -> Group:
        """The value of each key by which documents are grouped."""

    def series(self, buckets: Buckets, stat: str) -> Series:
        """Return one point per bucket that contains any."""


class Point(TypedDict, total=False):
    """One point: start of its bucket in seconds, value or None, and its group if there are groups.

    The group is the value of the key, or an object with the values of several keys.
    """

    timestamp: float
    value: float | None
    group: Scalar | dict[str, Scalar | None] | None


@dataclass(frozen=True, slots=True)
class Aggregation:
    """How documents are aggregated to points, in the order of the fields.

    `field` is the dotted name of a value, a number but for ``distinct``; `groups` are keys of metadata or fields;
    `fill` is one of :data:`grouping.FILLS` or a value; `rate` and `nonnegative_rate` are durations in seconds; `moving`
    and `exponential` are numbers of points; `top`, `bottom` and `series` are numbers of groups.
    """

    buckets: Buckets
    stat: str = "mean"
    field: str | None = None
    groups: tuple[str, ...] = ()
    fill: Fill = "none"
    rate: float | None = None
    nonnegative_rate: float | None = None
    increase: bool = False
    cumulative: bool = False
    moving: int | None = None
    exponential: int | None = None
    top: int | None = None
    bottom: int | None = None
    series: int | None = None

    def check(self) -> "Aggregation":
        """Return this aggregation; raise MalformedError or InvalidError if it is invalid."""
        names = [("stat", self.stat), ("field", self.field or ""), *(("group", key) for key in self.groups)]
        for name, text in names:
            if not isinstance(text, str):
                raise MalformedError(f"{name} must be text, not {text!r}.")
        statistic.statistic(self.stat)
        if "timestamp" in self.groups:
            raise InvalidError("group must be a key of metadata or a field; use every to group by time.")
        if len(self.groups) > KEYS_MAX or len(set(self.groups)) < len(self.groups):
            raise InvalidError(f"group names at most {KEYS_MAX} different keys.")
        if self.field is not None:
            check_field(self.field)
        elif self.stat != "count":
            raise InvalidError("field is missing: name the number field to aggregate; only stat=count needs none.")
        if self.fill not in grouping.FILLS and not _is_finite(self.fill):
            raise InvalidError(f"fill must be one of {', '.join(grouping.FILLS)}, or a number; it is {self.fill!r}.")
        for name, count, most in (
            ("moving", self.moving, MOVING_MAX), ("exponential", self.exponential, MOVING_MAX),
            ("top", self.top, SERIES_MAX), ("bottom", self.bottom, SERIES_MAX), ("series", self.series, SERIES_MAX),
        ):  # fmt: skip
            if count is not None:
                check_count(name, count, 1, most)
        self._check_alternatives()
        return self

    def _check_alternatives(self) -> None:
        changes = {"rate": self.rate, "nonnegative_rate": self.nonnegative_rate, "increase": self.increase or None}
        averages = {"moving": self.moving, "exponential": self.exponential}
        choices = {"top": self.top, "bottom": self.bottom, "series": self.series}
        for given in (changes, averages, choices):
            named = [name for name, value in given.items() if value is not None]
            if len(named) > 1:
                raise MalformedError(f"{named[1]} cannot be combined with {named[0]}.")
            if named and given is choices and not self.groups:
                raise MalformedError(f"{named[0]} requires group: it chooses groups.")


class Steps(TypedDict, total=False):
    """Steps of :meth:`keepfit.history.Timeline.points` that are named, with the meaning of :class:`Aggregation`."""

    nonnegative_rate: Duration | None
    increase: bool
    cumulative: bool
    exponential: int | None
    top: int | None
    bottom: int | None
    series: int | None


def with_steps(aggregation: Aggregation, steps: Mapping[str, Any]) -> Aggregation:
    """Return an aggregation with more steps, durations of which are text or seconds.

    Raises
    ------
    InvalidError
        If there is no such step; the message has all.
    """
    known = ("rate", *Steps.__annotations__)
    for name in steps:
        if name not in known:
            raise InvalidError(f"points has no parameter {name!r}: its steps are {', '.join(known)}, and moving.")
    for name in ("increase", "cumulative"):
        if not isinstance(steps.get(name, False), bool):
            raise InvalidError(f"{name} must be True or False, not {steps[name]!r}.")
    durations = {
        name: parse_duration(steps[name], unit_optional=True)
        for name in ("rate", "nonnegative_rate")
        if steps.get(name) is not None
    }
    return replace(aggregation, **{**steps, **durations})


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


def compute(
    columns: Sequence[GroupValues], aggregation: Aggregation, start: float | None, stop: float | None
) -> list[Point]:
    """Return the points of columns, one group after the other. CPU-bound: call it in a thread.

    Raises
    ------
    InvalidError
        If there are too many points.
    """
    # Sort by type first: numbers and strings are not comparable.
    ordered = sorted(columns, key=lambda each: [(str(type(value)), value) for value in each.group])
    if aggregation.series is not None:
        ordered = ordered[: aggregation.series]
    found: list[tuple[Group, Series]] = []
    count = 0
    for each in ordered:
        with np.errstate(over="ignore", invalid="ignore"):
            series = _series(each.series(aggregation.buckets, aggregation.stat), aggregation, start, stop)
        count += len(series)
        is_chosen_later = aggregation.top is not None or aggregation.bottom is not None
        if not is_chosen_later:
            _check_all(count)
        found.append((each.group, series))
        if is_chosen_later:
            found = _chosen(found, aggregation)
    _check_all(sum(len(series) for _, series in found))
    return [
        # A sum beyond the largest float is no number that JSON has.
        {"timestamp": moment, "value": number if math.isfinite(number) else None, **_label(group, aggregation)}
        for group, series in found
        for moment, number in zip(series.times.tolist(), series.values.tolist(), strict=True)
    ]


def _check_all(count: int) -> None:
    if count > SERIES_POINTS_MAX:
        raise InvalidError(f"More than {SERIES_POINTS_MAX:,} points: use a longer interval or fewer groups.")


def _chosen(found: list[tuple[Group, Series]], aggregation: Aggregation) -> list[tuple[Group, Series]]:
    """Return the groups with the largest, or smallest, mean of their points, the first of them first."""
    sign = -1.0 if aggregation.bottom is None else 1.0

    def rank(each: tuple[Group, Series]) -> float:
        values = each[1].values[~np.isnan(each[1].values)]
        return sign * float(values.mean()) if len(values) else math.inf

    # The sort is stable: of equal means the first group in order.
    return sorted(found, key=rank)[: aggregation.bottom if aggregation.top is None else aggregation.top]


def _label(group: Group, aggregation: Aggregation) -> Point:
    if not group:
        return {}
    if len(group) == 1:
        return {"group": group[0]}
    return {"group": dict(zip(aggregation.groups, group, strict=True))}


def _series(series: Series, aggregation: Aggregation, start: float | None, stop: float | None) -> Series:
    buckets = aggregation.buckets
    if len(series):
        first = series.times[0] if start is None else min(start, series.times[0])
        last = series.times[-1] if stop is None else stop
        check_length(first, last, buckets.length_s if aggregation.fill != "none" else 0.0)
        if len(series) > POINTS_MAX:
            raise InvalidError(f"More than {POINTS_MAX:,} points: use a longer interval or a shorter time range.")
    # `stop` is exclusive: at the end of a bucket it does not reach into the next one.
    end = None if stop is None else float(np.nextafter(stop, -np.inf))
    series = grouping.fill(series, buckets, aggregation.fill, start, end)
    if aggregation.rate is not None:
        series = steps.rate_of_change(series, aggregation.rate)
    if aggregation.increase or aggregation.nonnegative_rate is not None:
        series = steps.increase(series, aggregation.nonnegative_rate)
    if aggregation.cumulative:
        series = steps.cumulative_sum(series)
    if aggregation.moving is not None:
        series = steps.moving_average(series, aggregation.moving)
    return series if aggregation.exponential is None else steps.exponential_average(series, aggregation.exponential)
