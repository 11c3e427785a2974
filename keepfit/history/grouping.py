"""Group times and values into buckets of equal duration, one point per bucket.

Pure (numpy). Owns buckets, statistics, filling of gaps, rate of change and moving average. Invariants: a bucket starts
at a multiple of its duration since 1970 in UTC (weeks on Mondays) and includes its start but not its end; the time of a
point is the start of its bucket; NaN means "no value" and is never an input.
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
# Values of buckets without documents.
FILLS = ("none", "null", "previous", "linear")
Fill = str | float


@dataclass(frozen=True, slots=True)
class Series:
    """Points in order of time: starts of buckets (seconds) and values, NaN for no value; shapes (n,), (n,)."""

    times: Array
    values: Array

    def __len__(self) -> int:
        return len(self.times)


def as_array(value: float) -> Array:
    """Return an array with one number, shape (1,)."""
    return np.array([value], dtype=np.float64)


def bucket_offset(every: float) -> float:
    """Return the seconds after 1970 at which bucket number 0 of this duration starts."""
    return MONDAY_S if every % WEEK_S == 0 else 0.0


def bucket_numbers(times: Array, every: float) -> NDArray[np.int64]:
    """Return the numbers of the buckets that contain times; bucket n starts at n · `every` (+ the offset of weeks)."""
    offset = bucket_offset(every)
    numbers = np.floor((times - offset) / every).astype(np.int64)
    # The quotient is rounded: it may place a time just before a bucket inside it.
    numbers -= numbers * every + offset > times
    numbers += (numbers + 1) * every + offset <= times
    return numbers


def bucket_starts(number: NDArray[np.int64], every: float) -> Array:
    """Return the starts (seconds) of numbered buckets."""
    return np.asarray(number * every + bucket_offset(every), dtype=np.float64)


def aggregate(times: Array, values: Array, every: float, stat: str) -> Series:
    """Return one point per bucket that contains documents.

    Parameters
    ----------
    times, values
        Shape (n,), in any order; of documents with equal times the one with the higher index is the later one.
    stat
        One of :data:`STATS`, or ``p50``, ``p99.9``: a percentile, interpolated between the two nearest values.

    Raises
    ------
    MalformedError
        If the statistic is unknown.
    """
    compute = statistic(stat)
    if not len(times):
        return Series(np.empty(0), np.empty(0))
    order = np.argsort(times, kind="stable")
    numbers = bucket_numbers(times[order], every)
    starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1])))
    return Series(bucket_starts(numbers[starts], every), compute(values[order], starts))


def statistic(stat: str) -> Callable[[Array, NDArray[np.intp]], Array]:
    """Return the function that computes a statistic of values in order of time, given the start index of each bucket.

    Raises
    ------
    MalformedError
        If the statistic is unknown.
    """
    if stat == "median":
        return lambda values, starts: _percentile(values, starts, 50.0)
    if found := PERCENTILE.fullmatch(stat):
        return lambda values, starts: _percentile(values, starts, float(found[1]))
    if stat in STATISTICS:
        return STATISTICS[stat]
    raise MalformedError(f"stat must be one of {', '.join(STATS)}, or a percentile such as p50 or p99.9.")


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
    # Equal values are returned as they are: interpolating between them could round.
    between: Array = np.where(below == above, below, below * (1 - share) + above * share)
    return between


STATISTICS: dict[str, Callable[[Array, NDArray[np.intp]], Array]] = {
    "mean": lambda values, starts: np.add.reduceat(values, starts) / _counts(values, starts),
    "min": np.minimum.reduceat,
    "max": np.maximum.reduceat,
    "sum": np.add.reduceat,
    "count": _counts,
    "first": lambda values, starts: values[starts],
    "last": _last,
}


def fill(series: Series, every: float, how: Fill, first: float | None = None, last: float | None = None) -> Series:
    """Return a point for every bucket from that of time `first` to that of `last`; None: the first and last point.

    Parameters
    ----------
    how
        ``none``: leave gaps; ``null``: NaN; ``previous``: the value before; ``linear``: interpolated between the
        values on both sides; or the value itself. ``previous`` and ``linear`` leave NaN before the first value,
        ``linear`` also after the last one.
    """
    if how == "none" or (not len(series) and (first is None or last is None)):
        return series
    bounds = [
        bucket_numbers(series.times[[index]] if bound is None else as_array(bound), every)[0]
        for bound, index in ((first, 0), (last, -1))
    ]
    numbers = np.arange(bounds[0], bounds[1] + 1)
    times = bucket_starts(numbers, every)
    values = np.full(len(times), np.nan)
    if len(series):
        places = bucket_numbers(series.times, every) - bounds[0]
        inside = (places >= 0) & (places < len(values))
        values[places[inside]] = series.values[inside]
    known = np.flatnonzero(~np.isnan(values))
    if not isinstance(how, str):
        values[np.isnan(values)] = how
    elif how == "previous" and len(known):
        before = np.searchsorted(known, np.arange(len(values)), side="right") - 1
        values = np.where(before >= 0, values[known[np.maximum(before, 0)]], np.nan)
    elif how == "linear" and len(known):
        values = np.interp(np.arange(len(values)), known, values[known], left=np.nan, right=np.nan)
    return Series(times, values)


def rate_of_change(series: Series, per: float) -> Series:
    """Return the change from each value to the next per `per` seconds, at the time of the later one; skip NaN."""
    known = ~np.isnan(series.values)
    times, values = series.times[known], series.values[known]
    return Series(times[1:], np.diff(values) / np.diff(times) * per)


def moving_average(series: Series, count: int) -> Series:
    """Return the mean of each point and those before it, `count` points or as many as exist; skip NaN."""
    padded = np.concatenate((np.full(count - 1, np.nan), series.values))
    known = ~np.isnan(padded)
    if not len(series):
        return series
    windows = np.lib.stride_tricks.sliding_window_view(np.where(known, padded, 0.0), count).sum(axis=1)
    counts = np.lib.stride_tricks.sliding_window_view(known, count).sum(axis=1)
    return Series(series.times, np.divide(windows, counts, out=np.full(len(series), np.nan), where=counts > 0))
