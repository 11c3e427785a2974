"""Times and spans as people write them."""

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from keepfit.errors import MalformedError
from keepfit.history.times import seconds, span

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def _zone() -> Iterator[None]:
    """Clocks here are an hour ahead of UTC, two in summer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("given", "wanted"),
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
def test_plain_times_need_no_library(given: float | str | datetime, wanted: float) -> None:
    """Numbers, datetimes, ISO 8601 and the usual phrases are read, local time where no zone is named."""
    assert seconds(given, now=NOON, words=False) == wanted


def test_a_day_is_one_of_the_calendar() -> None:
    """Yesterday begins at midnight, on the day after clocks were changed, too."""
    monday = datetime(2026, 10, 26, 9, tzinfo=timezone(timedelta(hours=1))).timestamp()
    assert seconds("yesterday", now=monday) == datetime(2026, 10, 25, tzinfo=timezone(timedelta(hours=2))).timestamp()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_words_are_left_to_dateparser() -> None:
    """Words that nothing else fits are read by dateparser, where that is wanted."""
    assert seconds("20 November 2026 13:00", now=NOON) == NOON
    with pytest.raises(MalformedError):
        seconds("20 November 2026 13:00", now=NOON, words=False)


@pytest.mark.parametrize("given", ["", "x" * 65, "nan", "inf", "1e300", "2026-13-01", "99999999999 weeks ago", True])
def test_what_is_no_time_is_an_error(given: str) -> None:
    """What is no time, or none that a calendar has, is an error that says how to write one."""
    with pytest.raises(MalformedError, match="is no time: write"):
        seconds(given, words=False)


@pytest.mark.parametrize("text", ["", "5", "m", "0s", "0.0h", "-5m", "5M", "5 m", "1mo", "1e3s", "9999999999s", "٣m"])
def test_what_is_no_span_is_an_error(text: str) -> None:
    """A span is a number above 0 and one of five units."""
    with pytest.raises(MalformedError, match="is no span of time: write"):
        span(text)


def test_the_history_is_light() -> None:
    """Importing the history imports neither pandas nor dateparser, which gateways shall not carry."""
    script = (
        "import sys, keepfit.history, keepfit.history.timeline_upkeep, keepfit.history.query\n"
        "print(sorted({'pandas', 'dateparser', 'plotille', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
