"""Times as the parts that habits go by: hour, weekday, month.

Owns the Gregorian calendar in UTC, as :mod:`datetime` has it, for whole arrays. Never knows a time zone or a leap
second. Invariant: the parts of a time are those of the second that it lies in, also before 1970; of NaN they are NaN.
"""

import numpy as np
from numpy.typing import NDArray

from keepfit.recipe.features import Part

HOUR_S, DAY_S = 3600, 86_400
# Monday is 0, and 1970-01-01 was a Thursday.
WEEKDAY_1970 = 3


def part(times: NDArray[np.float64], wanted: Part) -> NDArray[np.float64]:
    """One part of `times`, shape (n,), in seconds since 1970 of a year from 1 to 9999.

    >>> [part(np.array([0.0, -0.5, np.nan]), wanted).tolist() for wanted in ("hour", "weekday", "month")]
    [[0.0, 23.0, nan], [3.0, 2.0, nan], [1.0, 12.0, nan]]
    """
    if wanted == "seconds":
        return times
    missing = np.isnan(times)
    seconds = np.floor(np.where(missing, 0.0, times)).astype(np.int64)
    if wanted == "hour":
        found = seconds // HOUR_S % 24
    elif wanted == "weekday":
        found = (seconds // DAY_S + WEEKDAY_1970) % 7
    else:
        found = seconds.astype("M8[s]").astype("M8[M]").astype(np.int64) % 12 + 1
    return np.where(missing, np.nan, found)
