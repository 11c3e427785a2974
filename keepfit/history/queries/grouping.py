"""Group times and values into buckets, one point per bucket, and fill the gaps.

Pure (numpy). :mod:`keepfit.history.queries.buckets` owns where buckets begin, :mod:`keepfit.history.queries.statistic`
what is computed of their values. Invariants: the time of a point is the start of its bucket; NaN means "no value" and
is never an input.
"""

from dataclasses import dataclass

import numpy as np

from keepfit.history.queries.buckets import Buckets, FixedBuckets
from keepfit.history.queries.statistic import statistic
from keepfit.history.queries.zones import Array

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


def aggregate(times: Array, values: Array, every: float | Buckets, stat: str) -> Series:
    """Return one point per bucket that contains documents.

    Parameters
    ----------
    times, values
        Shape (n,), in any order; of documents with equal times the one with the higher index is the later one.
    every
        The buckets, or the duration of those since 1970 in UTC (seconds).
    stat
        One of :data:`keepfit.history.queries.statistic.STATS`, or ``p50``, ``p99.9``: a percentile.

    Raises
    ------
    MalformedError
        If the statistic is unknown.
    """
    compute = statistic(stat)
    if not len(times):
        return Series(np.empty(0), np.empty(0))
    order = np.argsort(times, kind="stable")
    stamps = times[order]
    begins = _buckets(every).starts(stamps)
    starts = np.flatnonzero(np.concatenate(([True], begins[1:] != begins[:-1])))
    return Series(begins[starts], compute(stamps, values[order], starts))


def fill(
    series: Series, every: float | Buckets, how: Fill, first: float | None = None, last: float | None = None
) -> Series:
    """Return a point for every bucket from that of time `first` to that of `last`; None: the first and last point.

    Parameters
    ----------
    how
        ``none``: leave gaps; ``null``: NaN; ``previous``: the value before; ``linear``: interpolated in time between
        the values on both sides; or the value itself. ``previous`` and ``linear`` leave NaN before the first value,
        ``linear`` also after the last one.
    """
    if how == "none" or (not len(series) and (first is None or last is None)):
        return series
    low, high = (float(series.times[index]) if bound is None else bound for bound, index in ((first, 0), (last, -1)))
    buckets = _buckets(every)
    times = buckets.between(low, high)
    values = np.full(len(times), np.nan)
    if len(series) and len(times):
        inside = (series.times >= times[0]) & (series.times <= times[-1])
        values[np.searchsorted(times, series.times[inside])] = series.values[inside]
    known = np.flatnonzero(~np.isnan(values))
    if not isinstance(how, str):
        values[np.isnan(values)] = how
    elif how == "previous" and len(known):
        before = np.searchsorted(known, np.arange(len(values)), side="right") - 1
        values = np.where(before >= 0, values[known[np.maximum(before, 0)]], np.nan)
    elif how == "linear" and len(known):
        # Starts of equal buckets are rounded, their numbers are not.
        elapsed = times - times[0] if buckets.fixed_s is None else np.arange(len(times), dtype=np.float64)
        values = np.interp(elapsed, elapsed[known], values[known], left=np.nan, right=np.nan)
    return Series(times, values)


def _buckets(every: float | Buckets) -> Buckets:
    return FixedBuckets(every) if isinstance(every, int | float) else every
