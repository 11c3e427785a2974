"""Parts of timestamps: hour, weekday, month.

Owns the Gregorian calendar in UTC, as :mod:`datetime` has it, for whole arrays. Never knows a time zone or a leap
second. Invariant: the parts of a timestamp are those of the second that contains it, also before 1970; the parts of NaN
are NaN.
"""

import numpy as np
from numpy.typing import NDArray

from keepfit.recipe.features import TimePart

HOUR_S, DAY_S = 3600, 86_400
# Monday is 0, and 1970-01-01 was a Thursday.
WEEKDAY_1970 = 3


def extract_part(times: NDArray[np.float64], part: TimePart) -> NDArray[np.float64]:
    """Return one part of `times`, shape (n,), which are seconds since 1970 of a year from 1 to 9999.

    >>> [extract_part(np.array([0.0, -0.5, np.nan]), part).tolist() for part in ("hour", "weekday", "month")]
    [[0.0, 23.0, nan], [3.0, 2.0, nan], [1.0, 12.0, nan]]
    """
    if part == "seconds":
        return times
    missing = np.isnan(times)
    seconds = np.floor(np.where(missing, 0.0, times)).astype(np.int64)
    if part == "hour":
        values = seconds // HOUR_S % 24
    elif part == "weekday":
        values = (seconds // DAY_S + WEEKDAY_1970) % 7
    else:
        values = seconds.astype("M8[s]").astype("M8[M]").astype(np.int64) % 12 + 1
    return np.where(missing, np.nan, values)
