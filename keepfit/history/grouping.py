"""Grouping by time: from documents' times and values to one point for each span of time.

Pure (numpy). Owns buckets, statistics, filling of gaps, rate of change and moving average. Invariants: a bucket begins
at a multiple of its span since 1970 in UTC (weeks on Mondays) and holds its begin and not its end; a point's time is
its bucket's begin; NaN stands for "no value" and never comes in.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keepfit.errors import MalformedError

Array = NDArray[np.float64]

WEEK_S = 604_800.0
# 1970 began on a Thursday.
MONDAY_S = 345_600.0
PERCENTILE = re.compile(r"p([0-9]{1,2}(?:\.[0-9]{1,3})?|100)")
STATS = ("mean", "min", "max", "sum", "count", "first", "last", "median")
# What gives a point where there are no documents.
FILLS = ("none", "null", "previous", "linear")
Fill = str | float


@dataclass(frozen=True, slots=True)
class Series:
    """Points in order of time: begins of buckets (seconds) and values, NaN where there is none; shapes (n,), (n,)."""

    times: Array
    values: Array

    def __len__(self) -> int:
        return len(self.times)


def array(value: float) -> Array:
    """Return an array of one number, shape (1,)."""
    return np.array([value], dtype=np.float64)


def offset_of(every: float) -> float:
    """Seconds after 1970 at which a bucket of this span begins."""
    return MONDAY_S if every % WEEK_S == 0 else 0.0


def floor(times: Array, every: float) -> NDArray[np.int64]:
    """Numbers of the buckets that times are in; number n begins at n · `every` (+ the offset of weeks)."""
    offset = offset_of(every)
    numbers = np.floor((times - offset) / every).astype(np.int64)
    # A quotient is rounded: a time just before a bucket may seem to be in it.
    numbers -= numbers * every + offset > times
    numbers += (numbers + 1) * every + offset <= times
    return numbers


def begin(number: NDArray[np.int64], every: float) -> Array:
    """Begins of numbered buckets."""
    return np.asarray(number * every + offset_of(every), dtype=np.float64)


def aggregate(times: Array, values: Array, every: float, stat: str) -> Series:
    """One point for each bucket with documents.

    Parameters
    ----------
    times, values
        Shape (n,), in any order; of documents of one time, the one that comes later is the later one.
    stat
        One of :data:`STATS`, or ``p50``, ``p99.9``: a percentile, linear between the two nearest values.

    Raises
    ------
    MalformedError
        If there is no such statistic.
    """
    compute = statistic(stat)
    if not len(times):
        return Series(np.empty(0), np.empty(0))
    order = np.argsort(times, kind="stable")
    numbers = floor(times[order], every)
    starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1])))
    return Series(begin(numbers[starts], every), compute(values[order], starts))


def statistic(stat: str) -> Callable[[Array, NDArray[np.intp]], Array]:
    """Find what computes a statistic of values in order of time, given where each bucket starts.

    Raises
    ------
    MalformedError
        If there is no such statistic.
    """
    if stat == "median":
        return lambda values, starts: _percentile(values, starts, 50.0)
    if found := PERCENTILE.fullmatch(stat):
        return lambda values, starts: _percentile(values, starts, float(found[1]))
    if stat in SIMPLE:
        return SIMPLE[stat]
    raise MalformedError(f"stat is one of {', '.join(STATS)}, or a percentile like p50 or p99.9.")


def _counts(values: Array, starts: NDArray[np.intp]) -> Array:
    return np.diff(np.append(starts, len(values))).astype(np.float64)


def _last(values: Array, starts: NDArray[np.intp]) -> Array:
    found: Array = values[np.append(starts[1:], len(values)) - 1]
    return found


def _percentile(values: Array, starts: NDArray[np.intp], percent: float) -> Array:
    counts = np.diff(np.append(starts, len(values)))
    ranked = values[np.lexsort((values, np.repeat(np.arange(len(starts)), counts)))]
    position = (counts - 1) * (percent / 100)
    low = np.floor(position).astype(np.intp)
    share = position - low
    below, above = ranked[starts + low], ranked[starts + np.minimum(low + 1, counts - 1)]
    # Not the difference times the share alone: between two like values nothing is to be rounded.
    between: Array = np.where(below == above, below, below * (1 - share) + above * share)
    return between


SIMPLE: dict[str, Callable[[Array, NDArray[np.intp]], Array]] = {
    "mean": lambda values, starts: np.add.reduceat(values, starts) / _counts(values, starts),
    "min": np.minimum.reduceat,
    "max": np.maximum.reduceat,
    "sum": np.add.reduceat,
    "count": _counts,
    "first": lambda values, starts: values[starts],
    "last": _last,
}


def buckets(first: float, last: float, every: float) -> float:
    """How many buckets there are from that of `first` to that of `last`."""
    return (last - first) // every + 1


def fill(series: Series, every: float, how: Fill, first: float | None = None, last: float | None = None) -> Series:
    """Give every bucket a point, from that of time `first` to that of `last`; where None, of the first and last point.

    Parameters
    ----------
    how
        ``none``: leave gaps; ``null``: NaN; ``previous``: the value before; ``linear``: on the line between the values
        on both sides; or the value itself. Before the first value (and after the last one, for ``linear``) stays NaN.
    """
    if how == "none" or (not len(series) and (first is None or last is None)):
        return series
    bounds = [
        floor(array(bound), every)[0] if bound is not None else floor(series.times[[place]], every)[0]
        for bound, place in ((first, 0), (last, -1))
    ]
    numbers = np.arange(bounds[0], bounds[1] + 1)
    times = begin(numbers, every)
    values = np.full(len(times), np.nan)
    if len(series):
        places = floor(series.times, every) - bounds[0]
        inside = (places >= 0) & (places < len(values))
        values[places[inside]] = series.values[inside]
    known = np.flatnonzero(~np.isnan(values))
    if isinstance(how, float):
        values[np.isnan(values)] = how
    elif how == "previous" and len(known):
        before = np.searchsorted(known, np.arange(len(values)), side="right") - 1
        values = np.where(before >= 0, values[known[np.maximum(before, 0)]], np.nan)
    elif how == "linear" and len(known):
        values = np.interp(np.arange(len(values)), known, values[known], left=np.nan, right=np.nan)
    return Series(times, values)


def rate(series: Series, per: float) -> Series:
    """Change from each value to the next in `per` seconds, at the later one's time; NaN is passed over."""
    known = ~np.isnan(series.values)
    times, values = series.times[known], series.values[known]
    return Series(times[1:], np.diff(values) / np.diff(times) * per)


def moving(series: Series, count: int) -> Series:
    """Mean of each point and those before it, `count` altogether or as many as there are; NaN is passed over."""
    padded = np.concatenate((np.full(count - 1, np.nan), series.values))
    known = ~np.isnan(padded)
    if not len(series):
        return series
    windows = np.lib.stride_tricks.sliding_window_view(np.where(known, padded, 0.0), count).sum(axis=1)
    counts = np.lib.stride_tricks.sliding_window_view(known, count).sum(axis=1)
    return Series(series.times, np.divide(windows, counts, out=np.full(len(series), np.nan), where=counts > 0))
