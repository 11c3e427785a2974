"""Statistics: one number for the values of each bucket.

Pure (numpy). Owns which statistics there are and what each means exactly; docs/reference/history-queries.md says the
same. Invariant: NaN is never an input, and as a result it means "undefined for these values".
"""

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from keepfit.errors import MalformedError
from keepfit.history.queries.zones import Array

Indexes = NDArray[np.intp]
# Computes a statistic from times and values in order of time, and the index at which each bucket starts.
Statistic = Callable[[Array, Array, Indexes], Array]

PERCENTILE = re.compile(r"p([0-9]{1,2}(?:\.[0-9]{1,3})?|100)")


def statistic(stat: str) -> Statistic:
    """Return the function that computes a statistic.

    Raises
    ------
    MalformedError
        If the statistic is unknown; the message has all names.
    """
    if found := PERCENTILE.fullmatch(stat):
        return lambda _, values, starts: _percentile(values, starts, float(found[1]))
    if stat in STATISTICS:
        return STATISTICS[stat]
    raise MalformedError(f"stat must be one of {', '.join(STATS)}, or a percentile such as p50 or p99.9.")


def _sizes(values: Array | Indexes, starts: Indexes) -> Indexes:
    return np.diff(np.append(starts, len(values)))


def _counts(values: Array | Indexes, starts: Indexes) -> Array:
    return _sizes(values, starts).astype(np.float64)


def _means(values: Array, starts: Indexes) -> Array:
    found: Array = np.add.reduceat(values, starts) / _counts(values, starts)
    return found


def _last(values: Array, starts: Indexes) -> Array:
    found: Array = values[np.append(starts[1:], len(values)) - 1]
    return found


def _variance(values: Array, starts: Indexes) -> Array:
    """Return the variance of a sample: squared distances from the mean over n - 1; NaN for a single value."""
    counts = _sizes(values, starts)
    # From the means, not from sums of squares: those lose all digits where the values are large and close together.
    distances = values - np.repeat(_means(values, starts), counts)
    squares = np.add.reduceat(distances * distances, starts)
    found: Array = np.divide(squares, counts - 1.0, out=np.full(len(starts), np.nan), where=counts > 1)
    return found


def _ranked(values: Array, starts: Indexes) -> Array:
    """Return values in ascending order within each bucket."""
    found: Array = values[np.lexsort((values, np.repeat(np.arange(len(starts)), _sizes(values, starts))))]
    return found


def _runs(values: Array, starts: Indexes) -> tuple[Array, Indexes, Indexes]:
    """Return ranked values, the index at which each run of equal ones starts, and at which run each bucket starts."""
    ranked = _ranked(values, starts)
    begins = np.concatenate(([True], ranked[1:] != ranked[:-1]))
    begins[starts] = True
    runs = np.flatnonzero(begins)
    return ranked, runs, np.searchsorted(runs, starts)


def _distinct(values: Array, starts: Indexes) -> Array:
    _, runs, firsts = _runs(values, starts)
    return _counts(runs, firsts)


def _mode(values: Array, starts: Indexes) -> Array:
    """Return the most frequent value of each bucket, of several the smallest."""
    ranked, runs, firsts = _runs(values, starts)
    lengths = np.diff(np.append(runs, len(ranked)))
    bucket = np.repeat(np.arange(len(starts)), _sizes(runs, firsts))
    # By bucket, then longest first, then smallest first: runs of a bucket ascend already.
    order = np.lexsort((-lengths, bucket))
    found: Array = ranked[runs[order[firsts]]]
    return found


def _integral(times: Array, values: Array, starts: Indexes) -> Array:
    """Return the area below straight lines from value to value within a bucket, in units of the value times seconds."""
    areas = np.diff(times) * (values[1:] + values[:-1]) / 2
    # The line from a bucket's last value to the next bucket's first is in neither.
    areas[starts[1:] - 1] = 0.0
    found: Array = np.add.reduceat(np.append(areas, 0.0), starts)
    return found


def _percentile(values: Array, starts: Indexes, percent: float) -> Array:
    counts, ranked = _sizes(values, starts), _ranked(values, starts)
    position = (counts - 1) * (percent / 100)
    low = np.floor(position).astype(np.intp)
    share = position - low
    below, above = ranked[starts + low], ranked[starts + np.minimum(low + 1, counts - 1)]
    # Equal values are returned as they are: interpolating between them could round.
    between: Array = np.where(below == above, below, below * (1 - share) + above * share)
    return between


STATISTICS: dict[str, Statistic] = {
    "mean": lambda _, values, starts: _means(values, starts),
    "min": lambda _, values, starts: np.minimum.reduceat(values, starts),
    "max": lambda _, values, starts: np.maximum.reduceat(values, starts),
    "sum": lambda _, values, starts: np.add.reduceat(values, starts),
    "count": lambda _, values, starts: _counts(values, starts),
    "first": lambda _, values, starts: values[starts],
    "last": lambda _, values, starts: _last(values, starts),
    "median": lambda _, values, starts: _percentile(values, starts, 50.0),
    "stddev": lambda _, values, starts: np.sqrt(_variance(values, starts)),
    "variance": lambda _, values, starts: _variance(values, starts),
    "spread": lambda _, values, starts: np.maximum.reduceat(values, starts) - np.minimum.reduceat(values, starts),
    "distinct": lambda _, values, starts: _distinct(values, starts),
    "mode": lambda _, values, starts: _mode(values, starts),
    "integral": _integral,
}
STATS = tuple(STATISTICS)
