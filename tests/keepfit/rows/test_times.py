"""Times as text and as datetime64: the nearest double to the exact time, in UTC."""

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfit.errors import InvalidError
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape
from keepfit.rows.times import is_time_dtype, seconds_of_text, seconds_of_times

SOLD = parse({"estimator": "SGDRegressor", "features": {"sold": "timestamp"}})
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
offsets = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)), st.none() | offsets)
def test_texts_equal_pythons_datetime(time: datetime, zone: timezone | None) -> None:
    """Text of Python's isoformat, with or without an offset, gives the seconds that datetime computes."""
    aware = time.replace(tzinfo=zone or UTC)
    expected = (aware - EPOCH) / timedelta(seconds=1)
    assert seconds_of_text(time.replace(tzinfo=zone).isoformat()) == expected
    assert seconds_of_text(str(time.replace(tzinfo=zone))) == expected
    assert shape(SOLD, [[str(aware)]], [1], learning=True).number_list() == [expected]


@given(st.integers(-(2**63) + 1, 2**63 - 1), st.sampled_from(["s", "ms", "us", "ns"]))
def test_datetime64_is_the_nearest_double(count: int, unit: Any) -> None:
    """Every count of every unit, also of more bits than a double has, gives the nearest double."""
    found = seconds_of_times(np.array([[count]], f"M8[{unit}]"))
    assert found.tolist() == [[float(Fraction(count, {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]))]]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-02", 86_400.0),
        ("1970-01-01T00:01", 60.0),
        ("1970-01-01 00:00:01z", 1.0),
        ("1970-01-01t00:00:00,5Z", 0.5),
        ("1970-01-01T01:00:00+01", 0.0),
        ("1970-01-01T00:00:00-0130", 5400.0),
        ("2024-02-29T12:30:15.123456789Z", 1709209815.123456789),
        ("0001-01-01", -62_135_596_800.0),
        ("9999-12-31T23:59:59.999", 253_402_300_799.999),
    ],
)
def test_forms_of_text(text: str, seconds: float) -> None:
    """Offset, seconds and time may be left out; a fraction may have any number of digits up to 18."""
    assert seconds_of_text(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "1700000000",
        "20240229",
        "2024-02",
        "2024-W09-4",
        "2023-02-29",
        "2024-13-01",
        "0000-01-01",
        "+10000-01-01",
        "2024-02-29T24:00",
        "2024-02-29T23:60",
        "2024-02-29T23:59:60Z",
        "2024-02-29T12",
        "2024-02-29T12:00Z+01:00",
        "2024-02-29T12:00+24:00",
        "2024-02-29T12:00+01:60",
        "2024-02-29T12:00[Europe/Paris]",
        "2024-02-29T12:00:00 UTC",
        " 2024-02-29",
        "2024-02-29\n",
        "\uff12024-02-29",
        "Thu, 29 Feb 2024 12:00:00 GMT",
        "2024-02-29T12:00:00." + "1" * 19,
        "2024-02-29T12:00:00." + "1" * 100_000,
    ],
)
def test_other_texts_are_rejected(text: str) -> None:
    """Text that is not a time is rejected with row and column, and with what would be right."""
    assert seconds_of_text(text) is None
    with pytest.raises(
        InvalidError, match=r"is not a time: send seconds since 1970 or ISO 8601 text such as"
    ) as caught:
        shape(SOLD, [["2024-02-29"], [text]], [1, 2], learning=True)
    assert [(fault.row, fault.column) for fault in caught.value.faults] == [(1, "sold")]


@pytest.mark.parametrize("text", ["0001-01-01T00:00+00:01", "9999-12-31T23:59:59-00:01"])
def test_an_offset_may_leave_the_range(text: str) -> None:
    """A time that its offset moves out of the years 1 to 9999 is rejected."""
    with pytest.raises(InvalidError, match="within the years 1 to 9999"):
        shape(SOLD, [[text]], [1], learning=True)


@pytest.mark.parametrize(("dtype", "expected"), [("M8[D]", True), ("M8[25s]", False), ("M8[Y]", False), ("f8", False)])
def test_units_of_datetime64(dtype: str, expected: bool) -> None:
    """Days to nanoseconds are times; units of several seconds, and months, are not."""
    assert is_time_dtype(np.dtype(dtype)) is expected
