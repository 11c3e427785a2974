"""Parsing of times and durations."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from keepfit.errors import MalformedError
from keepfit.history.times import parse_duration, parse_time

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


@pytest.mark.parametrize("text", ["", "x" * 65, "nan", "inf", "1e300", "2026-13-01", "99999999999 weeks ago", True])
def test_an_invalid_time_is_an_error(text: str) -> None:
    """Text that is not a time, or not one of the calendar, is an error that names the valid forms."""
    with pytest.raises(MalformedError, match="is not a valid time: use"):
        parse_time(text, words=False)


@pytest.mark.parametrize("text", ["", "5", "m", "0s", "0.0h", "-5m", "5M", "5 m", "1mo", "1e3s", "9999999999s", "٣m"])
def test_an_invalid_duration_is_an_error(text: str) -> None:
    """A duration is a number above 0 and one of five units; anything else is an error."""
    with pytest.raises(MalformedError, match=f"^{re.escape(repr(text))} is not a valid duration: use 60s, 5m or 1h.$"):
        parse_duration(text)


def test_a_duration_without_a_unit_is_seconds_where_allowed() -> None:
    """With unit_optional a bare number is seconds; 0 and text stay errors."""
    assert [parse_duration(text, unit_optional=True) for text in ("60", "1.5", "5m")] == [60.0, 1.5, 300.0]
    for text in ("0", "", "m", "five"):
        with pytest.raises(MalformedError):
            parse_duration(text, unit_optional=True)


def test_importing_the_history_imports_no_heavy_library() -> None:
    """Importing keepfit.history imports none of pandas, dateparser, plotille and sklearn: gateways do without them."""
    script = (
        "import sys, keepfit.history, keepfit.history.timeline_upkeep, keepfit.history.query\n"
        "print(sorted({'pandas', 'dateparser', 'plotille', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
