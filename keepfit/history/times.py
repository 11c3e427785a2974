"""Parse times and durations: seconds, datetimes, ISO 8601, "yesterday", "2 hours ago", "5m".

Pure, except for the clock. Numbers, ISO 8601 and a few plain phrases are parsed here; other words go to dateparser (in
English), which is imported only then, and never by services. Invariant: a time is a finite number of seconds since 1970
(UTC); text without a zone is local time.
"""

import math
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from keepfit.errors import MalformedError

Time = float | datetime | str

TEXT_MAX = 64
# The years 1 to 9999: the range of datetime.
SECONDS_MIN, SECONDS_MAX = -62_135_596_800.0, 253_402_300_799.0

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(s|m|h|d|w)?")
AGO = re.compile(r"([0-9]{1,9}) ?(s|m|h|d|w|sec|second|min|minute|hour|day|week)s? ago")
DAYS = {"today": 0, "yesterday": -1, "tomorrow": 1}


def parse_time(time_: Time, *, now: float | None = None, words: bool = True) -> float:
    """Return a time in seconds since 1970.

    >>> parse_time(12.5), parse_time("12.5"), parse_time("2 hours ago", now=7200.0), parse_time("2026-11-20T12:00Z")
    (12.5, 12.5, 0.0, 1795176000.0)

    Parameters
    ----------
    time_
        Seconds, a datetime, or text.
    now
        The time (seconds) that relative times refer to; the clock's by default.
    words
        Whether dateparser reads text that has no other known form.

    Raises
    ------
    MalformedError
        If it is not a time, or outside of the years 1 to 9999.
    """
    if isinstance(time_, datetime):
        found: float | None = time_.timestamp()
    elif isinstance(time_, str):
        found = _parse_text(time_.strip(), time.time() if now is None else now, words)
    elif isinstance(time_, bool):
        found = None
    else:
        found = float(time_)
    if found is None or not SECONDS_MIN <= found <= SECONDS_MAX:
        raise MalformedError(
            f"{str(time_)[:TEXT_MAX]!r} is not a valid time: use 2026-11-20 12:00, yesterday, 2 hours ago, or seconds "
            "since 1970."
        )
    return found


def parse_duration(text: str, *, unit_optional: bool = False) -> float:
    """Return a duration in seconds; without a unit a number is seconds where `unit_optional`.

    >>> parse_duration("30s"), parse_duration("5m"), parse_duration("1.5h"), parse_duration("1w")
    (30.0, 300.0, 5400.0, 604800.0)
    >>> parse_duration("1.5", unit_optional=True)
    1.5

    Raises
    ------
    MalformedError
        If it is not a duration, or 0.
    """
    found = DURATION.fullmatch(text)
    unit = found[2] or ("s" if unit_optional else None) if found else None
    seconds = float(found[1]) * UNITS_S[unit] if found and unit else 0.0
    if not seconds:
        raise MalformedError(f"{text[:TEXT_MAX]!r} is not a valid duration: use 60s, 5m or 1h.")
    return seconds


def _parse_text(text: str, now: float, words: bool) -> float | None:
    if len(text) > TEXT_MAX:
        return None
    plain = text.lower()
    ago = AGO.fullmatch(plain)
    if plain == "now":
        return now
    if ago:
        return now - float(ago[1]) * UNITS_S[ago[2][0]]
    if plain in DAYS:
        midnight = datetime.fromtimestamp(now).astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        # Count calendar days: on days of a clock change a day does not have 24 hours.
        return (midnight.replace(tzinfo=None) + timedelta(days=DAYS[plain])).timestamp()
    for parse in (_parse_number, _parse_iso):
        found = parse(text)
        if found is not None:
            return found
    return _parse_words(text, now) if words else None


def _parse_number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _parse_iso(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _parse_words(text: str, now: float) -> float | None:
    try:
        import dateparser  # noqa: PLC0415 - slow to import, and seldom needed
    except ModuleNotFoundError:
        return None
    settings: Any = {"RELATIVE_BASE": datetime.fromtimestamp(now), "PREFER_DATES_FROM": "past"}
    # English only: trying all 200 languages on text that is in none of them takes seconds.
    found: datetime | None = dateparser.parse(text, languages=["en"], settings=settings)
    return None if found is None else found.timestamp()


def format_time(timestamp: float) -> str:
    """Format seconds since 1970 as date and time in UTC.

    >>> format_time(1795176000.0)
    '2026-11-20 12:00:00'
    """
    return datetime.fromtimestamp(timestamp, UTC).isoformat(" ", "seconds").removesuffix("+00:00")
