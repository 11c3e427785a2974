"""Timestamps in the forms that clients have: ISO 8601 text and numpy's datetime64, as seconds since 1970.

Owns the one rule for both: a time without an offset is UTC, and the result is the float64 that is nearest to the exact
time, whichever form it had. Never knows a time zone by name or a leap second. Text comes from JSON and Arrow,
datetime64 from Arrow and npy; the seconds go into :class:`keepfit.rows.rows.Rows`.
"""

import re
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Text that is longer is refused before it is parsed.
TEXT_LENGTH_MAX = 64
EXAMPLE = "'2024-02-29T12:30:00Z'"
EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
DAY_S = 86_400
# Units of datetime64 by what they count: seconds in a unit, or units in a second.
SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "D": DAY_S}
UNITS_PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9}
# Below, every integer is a float64, so that a division is rounded once.
EXACT_END = 2**53

_DATE = r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
_TIME = r"([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,18}))?)?"
_OFFSET = r"[Zz]|([+-])([0-9]{2})(?::?([0-9]{2}))?"
_parse = re.compile(f"{_DATE}(?:[Tt ]{_TIME}(?:{_OFFSET})?)?").fullmatch


def seconds_of_text(text: str) -> float | None:
    """Return the seconds since 1970 of ISO 8601 text: a date, or a date and time; None if `text` is neither.

    Beyond RFC 3339 the separator may be a space, the seconds may be left out, and so may the offset, which then is UTC.

    >>> seconds_of_text("1970-01-02"), seconds_of_text("1970-01-01T01:00:00.25+01:00"), seconds_of_text("noon")
    (86400.0, 0.25, None)
    """
    found = _parse(text) if len(text) <= TEXT_LENGTH_MAX else None
    if found is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, offset_hour, offset_minute = found.groups(default="")
    offset_minutes = int(offset_hour or 0) * 60 + int(offset_minute or 0)
    if (hour or "0") > "23" or (minute or "0") > "59" or (second or "0") > "59" or (offset_minute or "0") > "59":
        return None
    if offset_minutes >= 24 * 60:
        return None
    try:
        days = date(int(year), int(month), int(day)).toordinal() - EPOCH_ORDINAL
    except ValueError:
        return None
    minutes = int(hour or 0) * 60 + int(minute or 0) + (offset_minutes if sign == "-" else -offset_minutes)
    whole = days * DAY_S + minutes * 60 + int(second or 0)
    # Integers of Python are divided exactly and rounded once.
    scale: int = 10 ** len(fraction)
    return (whole * scale + int(fraction or 0)) / scale


def is_time_dtype(dtype: np.dtype[Any]) -> bool:
    """Return whether arrays of `dtype` can be read by :func:`seconds_of_times`: datetime64 in days to nanoseconds."""
    if dtype.kind != "M":
        return False
    unit, count = np.datetime_data(dtype)
    return count == 1 and (unit in SECONDS_PER_UNIT or unit in UNITS_PER_SECOND)


def seconds_of_times(times: NDArray[Any]) -> NDArray[np.float64]:
    """Return datetime64 of any shape as seconds since 1970; what stands for NaT is meaningless.

    >>> seconds_of_times(np.array(["1970-01-01T00:00:01.500"], "M8[ns]")).tolist()
    [1.5]
    """
    unit, _ = np.datetime_data(times.dtype)
    counts = times.astype(np.int64)
    if unit in SECONDS_PER_UNIT:
        return counts.astype(np.float64) * SECONDS_PER_UNIT[unit]
    per_second = UNITS_PER_SECOND[unit]
    seconds: NDArray[np.float64] = counts / per_second
    inexact = (counts >= EXACT_END) | (counts <= -EXACT_END)
    seconds[inexact] = [count / per_second for count in counts[inexact].tolist()]
    return seconds
