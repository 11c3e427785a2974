"""Steps from one series of points to another: increase, rates, cumulative sums and averages of points.

Pure (numpy). docs/reference/history-queries.md has the order in which a query applies them. Invariant: a point without
a value (NaN) contributes nothing.
"""

import numpy as np

from keepfit.history.queries.grouping import Series


def rate_of_change(series: Series, per: float) -> Series:
    """Return the change from each value to the next per `per` seconds, at the time of the later one; skip NaN."""
    times, values = _known(series)
    return Series(times[1:], np.diff(values) / np.diff(times) * per)


def increase(series: Series, per: float | None = None) -> Series:
    """Return how much a counter grew from each value to the next, at the time of the later one; skip NaN.

    A value below the one before it means that the counter was reset to 0 meanwhile: it grew by that value. With `per`,
    return the growth per `per` seconds.
    """
    times, values = _known(series)
    changes = np.diff(values)
    grown = np.where(changes < 0, np.maximum(values[1:], 0.0), changes)
    return Series(times[1:], grown if per is None else grown / np.diff(times) * per)


def cumulative_sum(series: Series) -> Series:
    """Return the sum of each value and all before it; NaN stays NaN."""
    known = ~np.isnan(series.values)
    sums = np.cumsum(np.where(known, series.values, 0.0))
    return Series(series.times, np.where(known, sums, np.nan))


def moving_average(series: Series, count: int) -> Series:
    """Return the mean of each point and those before it, `count` points or as many as exist; skip NaN."""
    padded = np.concatenate((np.full(count - 1, np.nan), series.values))
    known = ~np.isnan(padded)
    if not len(series):
        return series
    windows = np.lib.stride_tricks.sliding_window_view(np.where(known, padded, 0.0), count).sum(axis=1)
    counts = np.lib.stride_tricks.sliding_window_view(known, count).sum(axis=1)
    return Series(series.times, np.divide(windows, counts, out=np.full(len(series), np.nan), where=counts > 0))


def exponential_average(series: Series, count: int) -> Series:
    """Return the exponentially weighted average of each point and all before it.

    The first value is the first average; each further value moves the average towards it by 2 / (`count` + 1) of the
    distance. NaN leaves the average as it is.
    """
    share, average = 2 / (count + 1), float("nan")
    averages = []
    for value in series.values.tolist():
        if average != average:  # noqa: PLR0124 - NaN
            average = value
        elif value == value:  # noqa: PLR0124 - NaN
            average += share * (value - average)
        averages.append(average)
    return Series(series.times, np.array(averages, dtype=np.float64))


def _known(series: Series) -> tuple[np.ndarray, np.ndarray]:
    known = ~np.isnan(series.values)
    return series.times[known], series.values[known]
