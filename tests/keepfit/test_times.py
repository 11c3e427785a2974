"""Parsing of times and durations."""

import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keepfit.errors import InvalidError, MalformedError
from keepfit.times import (
    SECONDS_MAX,
    SECONDS_MIN,
    format_time,
    parse_duration,
    parse_past_time,
    parse_time,
)

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def _zone() -> Iterator[None]:
    """Set local time to one hour ahead of UTC, two in summer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("time_", "expected"),
    [
        (12.5, 12.5),
        (-3, -3.0),
        ("1795176000.25", NOON + 0.25),
        (datetime(2026, 11, 20, 12, tzinfo=UTC), NOON),
        (datetime(2026, 11, 20, 13), NOON),
        ("2026-11-20 13:00", NOON),
        ("2026-11-20T12:00Z", NOON),
        ("2026-11-20T14:00:00+02:00", NOON),
        ("2026-11-20T12:00:00.0000001Z", NOON + 1e-7),
        ("2026-11-20 12:00:00,25 UTC", NOON + 0.25),
        ("20261120T120000.5Z", NOON + 0.5),
        ("2026-11-20T14:00:00.123456789+02:00", NOON + 0.123456789),
        ("2026/11/20 13:00", NOON),
        (np.int64(12), 12.0),
        (pd.Timestamp(2026, 11, 20, 13), NOON),
        ("now", NOON),
        ("2 hours ago", NOON - 7200),
        ("1 minute ago", NOON - 60),
        ("30s ago", NOON - 30),
        ("3 weeks ago", NOON - 3 * 604_800),
        (" Yesterday ", datetime(2026, 11, 19, tzinfo=timezone(timedelta(hours=1))).timestamp()),
        ("today", datetime(2026, 11, 20, tzinfo=timezone(timedelta(hours=1))).timestamp()),
    ],
    ids=str,
)
def test_plain_times_are_parsed_without_a_library(time_: float | str | datetime, expected: float) -> None:
    """Numbers, datetimes, ISO 8601 and common phrases are parsed; text without a zone is local time."""
    assert parse_time(time_, now=NOON, words=False) == expected


def test_yesterday_is_a_calendar_day() -> None:
    """Yesterday begins at midnight, also on the day after a clock change."""
    monday = datetime(2026, 10, 26, 9, tzinfo=timezone(timedelta(hours=1))).timestamp()
    assert (
        parse_time("yesterday", now=monday) == datetime(2026, 10, 25, tzinfo=timezone(timedelta(hours=2))).timestamp()
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dateparser_parses_other_words() -> None:
    """dateparser parses text of no other known form, unless words=False."""
    assert parse_time("20 November 2026 13:00", now=NOON) == NOON
    with pytest.raises(MalformedError):
        parse_time("20 November 2026 13:00", now=NOON, words=False)


@pytest.mark.parametrize(
    "wrong",
    ["", "x" * 65, "nan", "inf", "1e300", "1_000", "1795176000000", "2026-13-01", "2026-02-30", "2026-11-20T24:00",
     "2026-11-20T12.5", "99999999999 weeks ago", True, None, [], b"12", float("nan"), timedelta(1), np.True_, pd.NaT,
     np.datetime64("2026-11-20"), datetime(1, 1, 1)],
    ids=str,
)  # fmt: skip
def test_an_invalid_time_is_an_error(wrong: Any) -> None:
    """What is not a time, or not one of the calendar, is an error that names the valid forms."""
    with pytest.raises(MalformedError, match="is not a valid time: use 2026-11-20T12:00Z"):
        parse_time(wrong, words=False)


@pytest.mark.parametrize(
    "text",
    [
        "2026-13-01",
        "2026-11-20 25:00",
        "05/04/2026",
        "4.5.2026",
        "a",
        "-",
        "-1h",
        "1795975142.85s",
        "20 o'clock",
        "5ms ago",
        "5 ms ago",
        "5us ago",
        "3 fortnights ago",
    ],
)
def test_text_with_several_meanings_is_an_error(text: str) -> None:
    """dateparser does not guess: text without a word or with a wrong date is an error."""
    with pytest.raises(MalformedError, match="is not a valid time: use"):
        parse_time(text)


def test_a_date_without_separators_is_an_error() -> None:
    """20261120 is a date and a number of seconds; the error names both forms, and each of them is valid."""
    with pytest.raises(MalformedError, match="'20261120' is a date and a number of seconds: write 2026-11-20, or"):
        parse_time("20261120")
    assert parse_time("20261120.0") == parse_time(20261120) == 20261120.0


@given(
    st.floats(SECONDS_MIN, SECONDS_MAX) | st.floats(1.6e9, 2e9) | st.decimals(1_600_000_000, 2_000_000_000, places=6)
)
@example(-0.0)
@example(-1e-300)
@example(5e-324)
@example(SECONDS_MIN)
@example(1795975142.8589914)
def test_a_formatted_time_is_parsed_to_the_same_number(timestamp: float | Decimal) -> None:
    """format_time prints a time in UTC from which parse_time returns the same number."""
    shown = format_time(float(timestamp))
    if abs(timestamp) > 1e-6:
        assert re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?Z", shown)
    assert parse_time(shown, words=False) == float(timestamp)
    assert parse_time(format_time(SECONDS_MAX), words=False) == SECONDS_MAX
    assert format_time(1e15) == "1000000000000000.0"


def test_a_local_time_that_occurs_twice_or_never_is_an_error() -> None:
    """When clocks go back, the error names both times with their offsets; when they go forward, it says so."""
    with pytest.raises(MalformedError, match="occurs twice in local time: use") as twice:
        parse_time("2026-10-25 02:30")
    first, second = str(twice.value).rstrip(".").partition("use ")[2].split(" or ")
    assert parse_time(second) - parse_time(first) == 3600
    for text in ("2026-03-29 02:30", "29 March 2026 02:30"):
        with pytest.raises(MalformedError, match="local clocks skip it"):
            parse_time(text)
    # A datetime says which of the two it is.
    assert parse_time(datetime(2026, 10, 25, 2, 30, fold=1)) == parse_time(second)


def test_a_past_time_is_not_in_the_future() -> None:
    """A time in the future is an error that says what it means; clocks may differ by seconds."""
    now = time.time()
    assert parse_past_time(now + 5) == now + 5
    assert now <= parse_past_time("now") <= time.time()
    for future in ("tomorrow", now + 3600, str(now + 60)):
        with pytest.raises(InvalidError, match=r"is in the future: it means 20.*Z, and now it is 20.*Z\."):
            parse_past_time(future)


@pytest.mark.parametrize(
    "wrong",
    ["", "5", "m", "0s", "0.0h", "-5m", "5M", "5 m", "1mo", "1e3s", "9999999999s", "٣m", 0, -1, True, None, math.nan,
     math.inf, 1e-7, 1e12, timedelta(0), b"5m"],
)  # fmt: skip
def test_an_invalid_duration_is_an_error(wrong: Any) -> None:
    """A duration is a number above 0 and one of five units; anything else is an error."""
    with pytest.raises(
        MalformedError, match=f"^{re.escape(repr(str(wrong)))} is not a valid duration: use 60s, 5m or 1h.$"
    ):
        parse_duration(wrong)


@pytest.mark.parametrize("seconds", [1209600, 123456.7, 1 / 3, 1e-6, 1e10, np.float32(0.5), np.int64(60)], ids=str)
def test_a_number_of_seconds_is_a_duration(seconds: float) -> None:
    """A number is a duration in seconds, without rounding; so is a timedelta."""
    assert parse_duration(seconds) == seconds
    assert parse_duration(timedelta(minutes=1.5)) == 90


def test_a_duration_without_a_unit_is_seconds_where_allowed() -> None:
    """With unit_optional a bare number is seconds; 0 and text stay errors."""
    assert [parse_duration(text, unit_optional=True) for text in ("60", "1.5", "5m")] == [60.0, 1.5, 300.0]
    for text in ("0", "", "m", "five"):
        with pytest.raises(MalformedError):
            parse_duration(text, unit_optional=True)


def test_importing_the_history_imports_no_heavy_library() -> None:
    """Importing keepfit.history imports none of pandas, dateparser, plotille and sklearn: gateways do without them."""
    script = (
        "import sys, keepfit.history, keepfit.history.upkeep.timeline_upkeep, keepfit.history.query\n"
        "print(sorted({'pandas', 'dateparser', 'plotille', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
